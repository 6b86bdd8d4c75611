"""The neural memory on what nobody would give it on purpose, and inside everything that torch wraps around a module."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import laws
from memory_titan import NeuralMemory
from memory_titan.memory.neural.presets import PRESETS
from memory_titan.memory.neural.trace import trace, writing_price
from test_neural_memory import CHUNK, build

LENGTH = 2 * CHUNK + 2
SWITCHES = [
    pytest.param(options, id="-".join(f"{k}={v}" for k, v in options.items()) or "default")
    for options in (
        {},
        {"dim": 24},  # wide enough that an open chunk is kept as tokens
        {"dim": 24, "rule": "anchored", "window": 3},
        {"rule": "token"},
        {"retention": "channel", "algorithm": "descent"},
        {"conv_size": 0, "gates": "hard"},
        {"qkv_activation": False, "qk_norm": False},
        {"output_norm": False, "output_gate": False},
        {"features": 3},
        {"reset_every": 2 * CHUNK},
        {"init": "fixed", "step": "fixed"},
    )
]
FAMILY = [pytest.param({"preset": name}, id=name) for name in PRESETS]
ALL = SWITCHES + FAMILY
FEW = [SWITCHES[0], SWITCHES[1], *(p for p in FAMILY if p.id in ("kda", "moneta", "omeganet", "atlas", "lact", "mesa"))]


@pytest.fixture
def memory(request) -> NeuralMemory:
    return build(**request.param)


every = pytest.mark.parametrize("memory", ALL, indirect=True)
some = pytest.mark.parametrize("memory", FEW, indirect=True)
each = pytest.mark.parametrize("options", ALL)


def like(memory: NeuralMemory, batch: int = 3, length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    x = torch.randn(batch, length, memory.config.dim, dtype=torch.float64, generator=torch.manual_seed(seed))
    return x.to(memory.qkv.weight.dtype)


def with_choice(options: dict, nonfinite: str) -> NeuralMemory:
    return build(**options, nonfinite=nonfinite)


def is_finite(*parts) -> bool:
    tensors = [t for p in parts for t in (p.tensors().values() if hasattr(p, "tensors") else [p])]
    return all(bool(t.isfinite().all()) for t in tensors)


@contextmanager
def accepting() -> Iterator[list[bool]]:
    """Refusals pass, if they name the rows; the list ends up empty then."""
    accepted = [True]
    try:
        yield accepted
    except (FloatingPointError, ValueError) as error:
        accepted.clear()
        if not re.search(r"rows \[|row \d, token", str(error)):
            raise


def gradients(memory: NeuralMemory, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    memory.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in memory.named_parameters() if p.requires_grad}


# What is read


@every
def test_dull_and_extreme_input_has_finite_gradients(memory):
    memory.float()
    x = like(memory, 1)
    rows = {
        "repeated": x[:, torch.arange(LENGTH) % 2],
        "constant": x[:, :1].expand_as(x),
        "zero": 0 * x,
        "tokens of zero": x * (torch.arange(LENGTH) % 3 > 0)[:, None],
        **{scale: x * float(scale) for scale in ("1e-20", "1e-38", "1e4")},
    }
    x = torch.cat(list(rows.values())).requires_grad_()
    y, state = memory(x)
    _, surprise = memory.memorize(x)
    assert is_finite(y, state, memory.recall(x, state), *surprise)
    made = gradients(memory, y.square().mean() + sum(t.clamp(max=1.0).mean() for t in surprise))
    assert [name for name, g in zip(rows, x.grad, strict=True) if not is_finite(g)] == []
    assert [name for name, g in made.items() if g is not None and not is_finite(g)] == []


@every
@pytest.mark.parametrize("scale", [1e8, 1e15, 1e19, 1e30])
def test_huge_input_is_finite_or_refused(memory, scale):
    """What was accepted may not answer NaN afterwards either."""
    memory.float()
    x = like(memory)
    _, state = memory(x)
    before = state.clone()
    with accepting() as accepted:
        y, after = memory(x * scale, state)
        assert is_finite(y, after)
        assert is_finite(memory.recall(x, after))
        assert is_finite(*memory(x, after))
    assert accepted or scale > 1e8
    laws.same_state(state, before, 0.0)


@every
@pytest.mark.parametrize("gates", [0.0, -50.0])
@pytest.mark.parametrize("scale", [1e8, 1e30])
def test_surprise_overflows_only_where_it_is_too_large_itself(memory, scale, gates):
    x = like(memory) * scale
    if memory.gating.columns:
        with torch.no_grad():
            memory.gating.linear.weight.zero_()
            memory.gating.linear.bias.fill_(gates)
    _, exact = memory.memorize(x)
    with accepting():
        _, surprise = memory.float().memorize(x.float())
        for near, true in zip(surprise, exact, strict=True):
            assert not near.isnan().any()
            assert near[true.abs() < 1e30].isfinite().all()


@each
def test_a_row_too_large_is_left_out_with_skip(options):
    """It is named, stays as it was and says nothing; the others, and all gradients, know nothing of it."""
    memory = with_choice({**options, "reset_every": 0}, "skip")
    x = like(memory)
    _, state = memory(x)
    state = state.detach()
    for scale in (1e120, 1e200, 1e300):
        large = torch.cat([x[:1], scale * x[1:2], x[2:]])
        memory.config.nonfinite = "raise"
        with accepting() as accepted:
            memory(large, state)
        if not accepted:
            break
    else:
        return  # bounded, whatever it reads
    memory.config.nonfinite = "skip"
    with pytest.warns(RuntimeWarning, match=r"rows \[1\]"):
        y, after = memory(large, state)
    with pytest.warns(RuntimeWarning, match=r"rows \[1\]"):
        _, surprise = memory.memorize(large, state)
    laws.same_state(after.select([1]), state.select([1]), 0.0)
    assert all((part[1] == 0).all() for part in (y, *surprise))
    for row in (0, 2):
        alone, alone_after = memory(large[row : row + 1], state.select([row]))
        laws.same(y[row : row + 1], alone)
        laws.same_state(after.select([row]), alone_after)
    made = gradients(memory, y.square().sum())
    assert [name for name, g in made.items() if g is not None and not is_finite(g)] == []


@each
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_token_that_is_no_number(options, value):
    memory = with_choice(options, "raise")
    x = like(memory)
    _, state = memory(x[:, :3])
    before, bad = state.clone(), x[:, 3:].clone()
    bad[1, 4, 2] = value
    for call in (memory, memory.memorize):
        with pytest.raises(ValueError, match=r"1 tokens are NaN or infinite \(row 1, token 4\)"):
            call(bad, state)
    laws.same_state(state, before, 0.0)

    mask = torch.ones(bad.shape[:2], dtype=torch.bool)
    mask[1, 4] = False
    expected, expected_state = memory(bad, state, mask)  # masked out, it is no token
    memory.config.nonfinite = "skip"
    with pytest.warns(RuntimeWarning, match="row 1, token 4.* skipped"):
        y, after = memory(bad, state)
    laws.same(y, expected, 0.0)
    laws.same_state(after, expected_state, 0.0)
    made = gradients(memory, y.square().sum())
    assert is_finite(*(g for g in made.values() if g is not None))

    memory.config.nonfinite = "ignore"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, after = memory(bad, state)
    assert not is_finite(y[1], after.select([1]))
    laws.same(y[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_many_bad_tokens_are_counted_and_a_whole_row_may_be_bad(nonfinite):
    memory = build(nonfinite=nonfinite)
    x = like(memory)
    x[1] = torch.nan
    if nonfinite == "raise":
        with pytest.raises(ValueError, match=rf"^{LENGTH} tokens .*row 1, token 2; ...\)"):
            memory(x)
        return
    with pytest.warns(RuntimeWarning, match=f"^{LENGTH} tokens"):
        y, state = memory(x)
    assert (y[1] == 0).all()
    laws.same_state(state.select([1]), memory.initial_state(1))


@pytest.mark.parametrize("gates", ["sigmoid", "hard"])
@each
def test_gates_at_their_ends(options, gates):
    """Each gate open and shut, the others in the middle; and all open in float32."""
    memory = build(**{**options, "gates": gates})
    if not memory.gating.columns:
        return
    x, bias, columns = like(memory), memory.gating.linear.bias, memory.gating.columns
    state = memory(x[:, :3])[1].detach()
    memory.gating.linear.weight.data.zero_()
    begin = 0
    for count in columns.values():
        width = memory.config.heads * count
        for end in (-50.0, 50.0):
            bias.data.zero_()
            bias.data[begin : begin + width] = end
            y, after = memory(x, state)
            made = gradients(memory, y.square().sum())
            assert is_finite(y, after, *(g for g in made.values() if g is not None))
        begin += width
    bias.data.fill_(50.0)
    assert is_finite(*memory.float()(x.float()))


@pytest.mark.parametrize("gates", ["sigmoid", "hard"])
@each
def test_shut_gates_write_and_forget_nothing(options, gates):
    memory = build(**{**options, "gates": gates, "reset_every": 0})
    if "step" not in memory.gating.columns or memory.config.retention == "fixed":
        return
    x = like(memory)
    _, state = memory(x[:, :3])
    memory.gating.linear.weight.data.zero_()
    memory.gating.linear.bias.data.fill_(-50.0)
    with trace(memory) as traces:
        _, after = memory(x, state)
    for was, now in zip(memory.present_weights(state), memory.present_weights(after), strict=True):
        if memory.config.algorithm != "muon":  # whose chunk's step counts the tokens before, too
            laws.same(was, now, 1e-12)
    shut = traces[""][0]
    assert shut.step.max() <= (0 if gates == "hard" else 1e-20) and shut.surprise.write.max() < 1e-10
    assert shut.keep.min() > 1 - 1e-12


@every
def test_lengths_and_batches_down_to_nothing(memory):
    x = like(memory)
    y, state = memory(x)
    for mask in (None, torch.ones(3, 0, dtype=torch.bool)):
        for begin in (state, None):
            nothing, after = memory(x[:, :0], begin, mask)
            assert nothing.shape == (3, 0, memory.config.dim)
            laws.same_state(after, memory.initial_state(3) if begin is None else state, 0.0)
            after, surprise = memory.memorize(x[:, :0], begin, mask)
            assert all(part.shape == (3, 0, memory.config.heads) for part in surprise)
    assert memory.recall(x[:, :0], state).shape == (3, 0, memory.config.dim)
    laws.same(memory(x[:1, :1])[0], y[:1, :1])
    laws.same(memory(x[:1, 1:2], memory(x[:1, :1])[1])[0], y[:1, 1:2])
    for mask in (None, torch.ones(0, LENGTH, dtype=torch.bool)):
        none, empty = memory(x[:0], state.select([]), mask)
        assert none.shape == (0, LENGTH, memory.config.dim) and empty.batch_size == 0
    assert memory.recall(x[:0], memory.initial_state(0)).shape == (0, LENGTH, memory.config.dim)


@every
def test_strides_do_not_matter(memory):
    x = like(memory)
    _, state = memory(x[:, :7])
    rest = x[:, 7:]
    expected, expected_state = memory(rest, state)
    wide = torch.randn(6, 10, 2 * memory.config.dim, dtype=torch.float64)
    sliced = wide[::2, 1:10:2, ::2]
    sliced.copy_(rest)
    for given in (rest.mT.contiguous().mT, rest.transpose(0, 1).contiguous().transpose(0, 1), sliced):
        assert not given.is_contiguous()
        laws.same(memory(given, state)[0], expected)
        laws.same(memory.recall(given, state), memory.recall(rest, state))
    expanded = rest[:1].expand(3, -1, -1)
    laws.same(memory(expanded)[0], memory(expanded.contiguous())[0])
    strided = state.map(lambda t: t.mT.contiguous().mT if t.dim() > 2 else t)
    laws.same_state(memory(rest, strided)[1], expected_state)
    backwards = torch.tensor([2, 1, 0])
    turned, after = memory(
        rest[backwards], state.select(backwards).map(lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0))
    )
    laws.same(turned, expected[backwards])
    laws.same_state(after.select(backwards), expected_state)


# What is wrapped around it


@every
def test_autocast_and_half_precision(memory):
    exact = memory.float()
    x = like(exact)
    y, state = exact(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near, near_state = exact(x)
        recalled = exact.recall(x, near_state)
        gradients(exact, exact(x)[0].float().square().mean())
    # under autocast a linear layer's output has the lower precision
    assert {t.dtype for t in near_state.tensors().values()} == {torch.float32, torch.int64}
    assert (near.float() - y).norm() < 0.05 * y.norm()
    assert (recalled.float() - exact.recall(x, state)).norm() < 0.1 * y.norm()
    half = exact.half()
    near, near_state = half(x.half())
    assert near.dtype == torch.half and {t.dtype for t in near_state.tensors().values()} == {torch.float32, torch.int64}
    assert (near.float() - y).norm() < 0.01 * y.norm()


@every
def test_torch_func(memory):
    x = like(memory)
    parameters = {name: p.detach() for name, p in memory.named_parameters()}
    y = memory(x)[0]

    def loss(p, x):
        return functional_call(memory, p, (x,))[0].square().sum()

    expected = gradients(memory, loss(dict(memory.named_parameters()), x))
    made = grad(loss)(parameters, x)
    for name, one in expected.items():
        laws.same(made[name], one)
    laws.same(vmap(lambda row: memory(row[None])[0][0])(x), y)
    a_row = vmap(grad(lambda p, row: loss(p, row[None])), in_dims=(None, 0))(parameters, x)
    for name, one in expected.items():
        laws.same(a_row[name].sum(0), one, 1e-8)
    others = [copy.deepcopy(memory), copy.deepcopy(memory)]
    with torch.no_grad():
        for parameter in others[1].parameters():
            parameter.mul_(1.3)
    stacked, buffers = stack_module_state(others)
    both = vmap(lambda p, b: functional_call(memory, (p, b), (x,))[0])(stacked, buffers)
    laws.same(both, torch.stack([other(x)[0] for other in others]))


@some
def test_forward_mode_and_second_derivatives(memory):
    x = like(memory, 1, CHUNK + 2)
    v = torch.randn_like(x)

    def scalar(x):
        return memory(x)[0].tanh().sum()

    forward = jvp(scalar, (x,), (v,))[1]
    laws.same(forward, (jacrev(scalar)(x) * v).sum())
    laws.same(jacfwd(scalar)(x), jacrev(scalar)(x))
    near = (jacrev(scalar)(x + 1e-6 * v) - jacrev(scalar)(x - 1e-6 * v)) / 2e-6
    laws.same(jvp(jacrev(scalar), (x,), (v,))[1], near, 1e-4)
    assert is_finite(hessian(scalar)(x[:, :2]))


@each
def test_ddp_finds_no_parameter_without_gradient(options):
    """More than two chunks: some read at the chunk's start, and learn of a gate only through the chunk after it."""
    memory = build(**options)
    made = gradients(memory, memory(like(memory))[0].square().sum())
    assert [name for name, one in made.items() if one is None or not one.any()] == []


def test_ddp(tmp_path):
    memory = build()
    alone, x = copy.deepcopy(memory), like(memory)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(memory)
        for one in (wrapped, alone):
            optimizer, state = torch.optim.SGD(one.parameters(), 0.1), None
            for part in (x, x.flip(1)):
                y, state = one(part, None if state is None else state.detach())
                optimizer.zero_grad()
                y.square().sum().backward()
                optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(memory.parameters(), alone.parameters(), strict=True):
        laws.same(one, other, 1e-12)
    assert not torch.equal(memory.qkv.weight, build().qkv.weight)


@some
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(memory, backend):
    x = like(memory, 2)
    torch._dynamo.reset()
    compiled = torch.compile(memory, backend=backend)
    y, state = compiled(x)
    laws.same(y, memory(x)[0])
    laws.same(compiled(x[:, :3], state)[0], memory(x[:, :3], state)[0])


@each
def test_the_option_checkpoint_changes_nothing(options):
    plain, lean = build(**options), build(**options, checkpoint=2)
    x = like(plain, length=4 * CHUNK + 2)
    (y, state), (y_lean, state_lean) = plain(x), lean(x)
    laws.same(y_lean, y)
    laws.same_state(state_lean, state)
    expected, made = gradients(plain, y.square().sum()), gradients(lean, y_lean.square().sum())
    for name, one in expected.items():
        laws.same(made[name], one)


@every
def test_recomputed_in_the_backward_pass(memory):
    x = like(memory)
    _, state = memory(x[:, :3])
    state = state.detach()
    expected = gradients(memory, memory(x, state)[0].square().sum())
    again = gradients(memory, checkpoint(lambda x: memory(x, state)[0], x, use_reentrant=False).square().sum())
    for name, one in expected.items():
        laws.same(again[name], one, 0.0)


# Kept and carried


@each
def test_built_on_meta_and_filled(options):
    reference = build(**options)
    with torch.device("meta"):
        empty = NeuralMemory(**vars(reference.config)).double()
    assert empty.qkv.weight.is_meta and empty.state_size == reference.state_size
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(reference.state_dict())
    x = like(reference)
    laws.same(filled(x)[0], reference(x)[0], 0.0)


@every
def test_copies(memory, tmp_path):
    x = like(memory)
    y, state = memory(x)
    torch.save(memory, tmp_path / "memory.pt")
    torch.save(state.detach(), tmp_path / "state.pt")
    with trace(memory):  # a copy of a watched memory is not watched
        copies = [copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))]
    copies.append(torch.load(tmp_path / "memory.pt", weights_only=False))
    for one in copies:
        assert one.config == memory.config and one.qkv.weight is not memory.qkv.weight and one.traces is None
        laws.same(one(x)[0], y, 0.0)
    states = [pickle.loads(pickle.dumps(state)), copy.deepcopy(state.detach())]
    states.append(torch.load(tmp_path / "state.pt", weights_only=False))
    for one in states:
        laws.same_state(one, state, 0.0)


@each
def test_pretrained(options, tmp_path):
    memory = build(**options, nonfinite="skip", ridge=0.5).float()
    x = like(memory)
    memory.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = NeuralMemory.from_pretrained(tmp_path)
    assert again.config == memory.config
    laws.same(again(x)[0], memory(x)[0], 0.0)
    safetensors.torch.save_file(memory.state_dict(), tmp_path / "weights.safetensors")
    again = NeuralMemory(**vars(memory.config))
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    laws.same(again(x)[0], memory(x)[0], 0.0)


@pytest.mark.parametrize(("rule", "words"), [("anchored", "another function$"), ("exact", "a near one")])
def test_another_chunk_length_warns(rule, words, tmp_path):
    memory = build(rule=rule).float()
    memory.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=f"chunk_size=5, and .* chunk_size=7: .*{words}"):
        other = NeuralMemory.from_pretrained(tmp_path, chunk_size=7)
    assert other.config.chunk_size == 7 and int(other.trained_chunk_size) == 5
    outer = nn.Sequential(NeuralMemory(8, heads=2, expansion=2, chunk_size=7, rule=rule))
    with pytest.warns(UserWarning, match="chunk_size=5"):
        outer.load_state_dict({f"0.{name}": t for name, t in memory.state_dict().items()})
    without = {name: t for name, t in memory.state_dict().items() if name != "trained_chunk_size"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(other.load_state_dict(without))
        memory.load_state_dict(memory.state_dict())
    assert "trained_chunk_size" not in without


# Traces


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


@every
def test_trace(memory):
    x, heads = like(memory), memory.config.heads
    mask = torch.rand(3, LENGTH, generator=torch.manual_seed(3)) > 0.3
    with trace(memory) as traces:
        y, _ = memory(x)
        memory(x, mask=mask)
        _, surprise = memory.memorize(x, mask=mask)
        memory(x[:, :0])
    whole, masked, written, nothing = traces[""]
    for one, length in ((whole, LENGTH), (masked, LENGTH), (nothing, 0)):
        assert all(t.shape == (3, length, heads) for t in (one.step, one.keep, one.momentum, *one.surprise))
    for t in (masked.step, masked.keep, masked.momentum, *masked.surprise):
        assert (t[~mask] == 0).all()
    row = memory.memorize(x[:1, mask[0]])[1]
    for one, other, alone in zip(written.surprise, surprise, row, strict=True):
        laws.same(one, other, 0.0)
        laws.same(one[:1, mask[0]], alone)
    assert (whole.keep > 0).all() and (whole.keep <= 1).all() and (whole.step <= memory.config.step_bound).all()
    assert (whole.momentum != 0).any() == memory.config.momentum

    with Counting() as untraced:
        again, _ = memory(x)
    with trace(memory) as traces, Counting() as traced:
        memory(x)
    assert memory.traces is None and len(traces[""]) == 1 and untraced.calls < traced.calls
    laws.same(again, y)
    if memory.config.step == "learned":
        made = gradients(memory, writing_price(traces))
        assert made["gating.linear.weight"].any()


def test_traces_by_name_and_within_each_other():
    first, second = build(), build(seed=1)
    model = nn.ModuleDict({"a": first, "b": nn.Sequential(nn.Identity(), second)})
    x = like(first)
    with trace(model) as outer:
        first(x)
        with trace(first) as inner:
            first(x)
        first(x)
        second(x)
    assert outer.keys() == {"a", "b.1"} and [len(inner[""]), len(outer["b.1"])] == [1, 1]
    assert len(outer["a"]) >= 2  # what the inner one saw may be its own, what came after is not
    with pytest.raises(RuntimeError, match="ours"), trace(model):
        raise RuntimeError("ours")
    first(x)
    assert first.traces is None and len(outer["a"]) <= 3
    with pytest.raises(ValueError, match="nothing was traced"):
        writing_price({"a": []})


@pytest.mark.parametrize("bias", ["l2", "dot"])
@pytest.mark.parametrize("options", [{}, {"dim": 24}, {"rule": "anchored"}, {"structure": "gated"}])
def test_surprise_is_the_gradient_norm(options, bias):
    """At a chunk's first token, by autograd through a network written out here."""
    memory = build(**options, bias=bias)
    x, act = like(memory), torch.nn.functional.silu
    _, state = memory(x[:, :CHUNK])
    token = x[:, CHUNK : CHUNK + 1]
    _, k, v = memory._heads(memory._convolve(torch.cat([state.tail, memory.qkv(token)], 1)))
    weights = [w.detach().requires_grad_() for w in state.weights]
    if memory.config.structure == "gated":
        y = (act(k @ weights[0]) * (k @ weights[1])) @ weights[2]
    else:
        y = act(k @ weights[0]) @ weights[1]
    loss = (y - v).square().sum(-1) if bias == "l2" else -(y * v).sum(-1)
    found = torch.autograd.grad(loss.sum() / (2 if bias == "l2" else 1), weights)
    norm = sum(g.square().sum((-2, -1)) for g in found).sqrt()
    _, surprise = memory.memorize(token, state)
    laws.same(surprise.loss[:, 0], loss[..., 0])
    laws.same(surprise.gradient[:, 0], norm)


@pytest.mark.parametrize("options", [{}, {"dim": 24}, {"structure": "residual"}, {"bias": "huber"}, {"chunk_size": 64}])
def test_surprise_is_the_size_of_the_write(options):
    memory = build(**{"rule": "anchored", "algorithm": "descent", "retention": "none", **options})
    chunk = memory.config.chunk_size
    x = like(memory, 2, chunk + 1)
    _, state = memory(x[:, :chunk])
    after, surprise = memory.memorize(x[:, chunk:], state)
    pairs = zip(memory.present_weights(after), memory.present_weights(state), strict=True)
    change = sum((new - old).square().sum((-2, -1)) for new, old in pairs).sqrt()
    assert (change > 1e-6).all()
    laws.same(surprise.write[:, 0], change)
