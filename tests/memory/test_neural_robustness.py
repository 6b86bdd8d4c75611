"""The neural memory on what nobody would give it on purpose, and inside everything that torch wraps around a module."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import laws
from memory_titan import NeuralMemory
from memory_titan.memory.neural import layer
from memory_titan.memory.neural.presets import PRESETS
from memory_titan.memory.trace import trace, writing_price
from test_neural_memory import CHUNK, build

LENGTH = 2 * CHUNK + 2
WIDE = {"dim": 24}  # wide enough that an open chunk is kept as tokens
BARE = {"qkv_activation": False, "qk_norm": False, "output_norm": False, "output_gate": False}
ODD = {"features": 3, "reset_every": 2 * CHUNK, "init": "fixed", "step": "fixed"}
SWITCHES = [{}, WIDE, {**WIDE, "rule": "anchored", "window": 3}, {"rule": "token"}, {"conv_size": 0}, BARE, ODD]
SWITCHES += [{"retention": "channel", "algorithm": "descent"}]
FAMILY = {name: {"preset": name} for name in PRESETS}
NAMED = {"-".join(f"{k}={v}" for k, v in options.items()) or "default": options for options in SWITCHES} | FAMILY
ALL = [pytest.param(options, id=name) for name, options in NAMED.items()]
FEW = [p for p in ALL if p.id in ("default", "dim=24", "kda", "moneta", "omeganet", "atlas", "lact", "mesa")]

every = pytest.mark.parametrize("memory", ALL, indirect=True)
each = pytest.mark.parametrize("options", ALL)


@pytest.fixture
def memory(request) -> NeuralMemory:
    return build(**request.param)


def like(memory: NeuralMemory, batch: int = 3, length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    x = torch.randn(batch, length, memory.config.dim, dtype=torch.float64, generator=torch.manual_seed(seed))
    return x.to(memory.qkv.weight.dtype)


def is_finite(*parts) -> bool:
    """States, tensors, and gradients as `gradients` gives them."""
    parts = [p.tensors() if hasattr(p, "tensors") else p for p in parts]
    tensors = [t for p in parts for t in (p.values() if isinstance(p, dict) else [p]) if t is not None]
    return all(bool(t.isfinite().all()) for t in tensors)


@contextmanager
def accepting() -> Iterator[list[bool]]:
    """Refusals that name the rows pass; the list ends up empty then."""
    accepted = [True]
    try:
        yield accepted
    except (FloatingPointError, ValueError) as error:
        accepted.clear()
        assert re.search(r"rows \[|row \d, token", str(error))  # noqa: PT017


def gradients(memory: NeuralMemory, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    memory.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in memory.named_parameters() if p.requires_grad}


@every
def test_dull_and_extreme_input_has_finite_gradients(memory):
    memory.float()
    x = like(memory, 1)
    zeros, scales = (torch.arange(LENGTH) % 3 > 0)[:, None], torch.tensor([1e-20, 1e-38, 1e4])[:, None, None]
    x = torch.cat([x[:, torch.arange(LENGTH) % 2], x[:, :1].expand_as(x), 0 * x, x * zeros, x * scales])
    x.requires_grad_()
    y, state = memory(x)
    _, surprise = memory.memorize(x)
    assert is_finite(y, state, memory.recall(x, state), *surprise)
    assert is_finite(gradients(memory, y.square().mean() + sum(t.clamp(max=1.0).mean() for t in surprise)))
    assert x.grad.isfinite().flatten(1).all(1).tolist() == [True] * 7


@every
@pytest.mark.parametrize("scale", [1e8, 1e15, 1e19, 1e30])
def test_huge_input_is_finite_or_refused(memory, scale):
    """What was accepted may not answer NaN afterwards either."""
    memory.float()
    x = like(memory)
    _, state = memory(x)
    with accepting():
        y, after = memory(x * scale, state)
        assert is_finite(y, after, memory.recall(x, after), *memory(x, after))


@every
@pytest.mark.parametrize("gates", [0.0, -50.0])
@pytest.mark.parametrize("scale", [1e8, 1e30])
def test_surprise_overflows_only_where_it_is_too_large_itself(memory, scale, gates):
    x = like(memory) * scale
    if memory.gating.columns:
        memory.gating.linear.weight.data.zero_()
        memory.gating.linear.bias.data.fill_(gates)
    _, exact = memory.memorize(x)
    with accepting():
        _, surprise = memory.float().memorize(x.float())
        for near, true in zip(surprise, exact, strict=True):
            assert not near.isnan().any()
            assert scale > 1e8 or near[true.abs() < 1e30].isfinite().all()


@each
def test_a_row_too_large_is_left_out_with_skip(options):
    """It is named, stays as it was and says nothing; the others, and all gradients, know nothing of it."""
    memory = build(**{**options, "reset_every": 0})
    x = like(memory)
    state = memory(x)[1].detach()
    large = torch.cat([x[:1], 1e120 * x[1:2], x[2:]])
    with accepting() as accepted:
        memory.memorize(large, state)
    if accepted:
        return  # bounded, whatever it reads
    memory.config.nonfinite = "skip"
    with pytest.warns(RuntimeWarning, match=r"rows \[1\]"):
        y, after = memory(large, state)
    with pytest.warns(RuntimeWarning, match=r"rows \[1\]"):
        _, surprise = memory.memorize(large, state)
    laws.same_state(after.select([1]), state.select([1]), 0.0)
    assert all((part[1] == 0).all() for part in (y, *surprise))
    alone, alone_after = memory(large[::2], state.select([0, 2]))
    laws.same(y[::2], alone)
    laws.same_state(after.select([0, 2]), alone_after)
    assert is_finite(gradients(memory, y.square().sum()))


@pytest.mark.filterwarnings("error")
@each
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_tokens_that_are_no_numbers(options, value):
    memory = build(**options)
    x = like(memory)
    _, state = memory(x[:, :3])
    before, bad = state.clone(), x[:, 3:].clone()
    bad[1, 4, 2] = bad[2] = value
    told = rf"^{LENGTH - 2} tokens are NaN or infinite \(row 1, token 4; row 2, token 0; row 2, token 1; \.\.\.\)"
    for call in (memory, memory.memorize):
        with pytest.raises(ValueError, match=told):
            call(bad, state)
    laws.same_state(state, before, 0.0)
    expected, expected_state = memory(bad, state, bad.isfinite().all(-1))  # masked out, they are no tokens
    memory.config.nonfinite = "skip"
    with pytest.warns(RuntimeWarning, match=f"{told}; they are skipped"):
        y, after = memory(bad, state)
    laws.same(y, expected, 0.0)
    laws.same_state(after, expected_state, 0.0)
    laws.same_state(after.select([2]), state.select([2]))
    assert is_finite(gradients(memory, y.square().sum()))
    memory.config.nonfinite = "ignore"
    y, after = memory(bad, state)
    assert not is_finite(y[1], after.select([1]))
    laws.same(y[0], expected[0])


@pytest.mark.parametrize("gates", ["sigmoid", "hard"])
@each
def test_gates_at_their_ends(options, gates):
    """Each gate open and shut, the others in the middle; all open, in float32; all shut: nothing is written."""
    memory = build(**{**options, "gates": gates, "reset_every": 0})
    x, columns = like(memory), memory.gating.columns
    state = memory(x[:, :3])[1].detach()
    if not columns:
        return
    bias, begin = memory.gating.linear.bias.data, 0
    memory.gating.linear.weight.data.zero_()
    for count in columns.values():
        for end in (-50.0, 50.0):
            bias.zero_()
            bias[begin : begin + memory.config.heads * count] = end
            y, after = memory(x, state)
            assert is_finite(y, after, gradients(memory, y.square().sum()))
        begin += memory.config.heads * count
    bias.fill_(-50.0)
    with trace(memory) as traces:
        _, after = memory(x, state)
    # Muon's step is that of the whole chunk, the tokens before the gates shut included.
    if "step" in columns and memory.config.retention != "fixed" and memory.config.algorithm != "muon":
        for was, now in zip(memory.present_weights(state), memory.present_weights(after), strict=True):
            laws.same(was, now, 1e-12)
        shut = traces[""][0]
        assert shut.step.max() <= (0 if gates == "hard" else 1e-20) and shut.keep.min() > 1 - 1e-12
    bias.fill_(50.0)
    assert is_finite(*memory.float()(x.float()))


@every
def test_lengths_and_batches_down_to_nothing(memory):
    x = like(memory)
    y, state = memory(x)
    for begin, mask in ((state, None), (None, torch.ones(3, 0, dtype=torch.bool)), (state, torch.ones(3, 0))):
        nothing, after = memory(x[:, :0], begin, mask)
        assert nothing.shape == (3, 0, memory.config.dim)
        laws.same_state(after, memory.initial_state(3) if begin is None else state, 0.0)
        assert all(part.shape == (3, 0, memory.config.heads) for part in memory.memorize(x[:, :0], begin, mask)[1])
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
    rest, state = x[:, 7:], memory(x[:, :7])[1]
    expected, expected_state = memory(rest, state)
    wide = torch.zeros(6, 10, 2 * memory.config.dim, dtype=torch.float64)
    sliced = wide[::2, ::2, ::2].copy_(rest)
    for given in (rest.mT.contiguous().mT, rest.transpose(0, 1).contiguous().transpose(0, 1), sliced):
        assert not given.is_contiguous()
        laws.same(memory(given, state)[0], expected)
        laws.same(memory.recall(given, state), memory.recall(rest, state))
    laws.same(memory(rest[:1].expand(3, -1, -1))[0], memory(rest[[0, 0, 0]])[0])
    backwards = torch.tensor([2, 1, 0])
    for change in (lambda t: t.mT.contiguous().mT, lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0)):
        strided = state.select(backwards).map(lambda t: change(t) if t.dim() > 2 else t)  # noqa: B023
        turned, after = memory(rest[backwards], strided)
        laws.same(turned, expected[backwards])
        laws.same_state(after.select(backwards), expected_state)


@every
def test_autocast_and_half_precision(memory):
    exact = memory.float()
    x = like(exact)
    y, _ = exact(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near, near_state = exact(x)
        gradients(exact, exact.recall(x, near_state).float().square().mean() + near.float().square().mean())
    assert {t.dtype for t in near_state.tensors().values()} == {torch.float32, torch.int64}
    assert (near.float() - y).norm() < 0.05 * y.norm()
    near, near_state = exact.half()(x.half())
    assert near.dtype == torch.half and {t.dtype for t in near_state.tensors().values()} == {torch.float32, torch.int64}
    assert (near.float() - y).norm() < 0.01 * y.norm()


@each
def test_torch_func(options):
    """And no parameter without gradient, which DDP would wait for: over more than two chunks, as some rules read at
    the chunk's start, and learn of a gate only a chunk later."""
    memory = build(**options)
    x = like(memory)
    parameters = {name: p.detach() for name, p in memory.named_parameters()}

    def loss(p, x):
        return functional_call(memory, p, (x,))[0].square().sum()

    expected = gradients(memory, loss(dict(memory.named_parameters()), x))
    assert [name for name, one in expected.items() if one is None or not one.any()] == []
    made = grad(loss)(parameters, x)
    a_row = vmap(grad(lambda p, row: loss(p, row[None])), in_dims=(None, 0))(parameters, x)
    for name, one in expected.items():
        laws.same(made[name], one)
        laws.same(a_row[name].sum(0), one, 1e-8)
    laws.same(vmap(lambda row: memory(row[None])[0][0])(x), memory(x)[0])
    others = [memory, build(**options, seed=1)]
    both = vmap(lambda p, b: functional_call(memory, (p, b), (x,))[0])(*stack_module_state(others))
    laws.same(both, torch.stack([other(x)[0] for other in others]))


@pytest.mark.parametrize("memory", FEW, indirect=True)
def test_forward_mode_and_second_derivatives(memory):
    x = like(memory, 1, CHUNK + 2)
    v = torch.randn_like(x)
    slope = jacrev(lambda x: memory(x)[0].tanh().sum())
    laws.same(jacfwd(lambda x: memory(x)[0].tanh().sum())(x), slope(x))
    near = (slope(x + 1e-6 * v) - slope(x - 1e-6 * v)) / 2e-6
    laws.same(jvp(slope, (x,), (v,))[1], near, 1e-4)


def test_ddp(tmp_path):
    memory, alone, x = build(), build(), like(build())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for one in (DistributedDataParallel(memory), alone):
            optimizer, state = torch.optim.SGD(one.parameters(), 0.1), None
            for part in (x, x.flip(1)):
                y, state = one(part, None if state is None else state.detach())
                optimizer.zero_grad()
                y.square().sum().backward()
                optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    for one, other, start in zip(memory.parameters(), alone.parameters(), build().parameters(), strict=True):
        laws.same(one, other, 1e-12)
        assert not torch.equal(one, start)


@pytest.mark.parametrize("memory", [FAMILY["kda"], FAMILY["mesa"]], ids=["kda", "mesa"], indirect=True)
def test_compiled(memory):
    x = like(memory, 2)
    laws.same(torch.compile(memory, backend="aot_eager")(x)[0], memory(x)[0])


@each
def test_recomputed_in_the_backward_pass(options):
    """By the option, and by torch around it: the same gradients."""
    memory, lean = build(**options), build(**options, checkpoint=2)
    x = like(memory, length=4 * CHUNK + 2)
    state = memory(x[:, :3])[1].detach()
    y, after = memory(x, state)
    expected = gradients(memory, y.square().sum())
    y_lean, after_lean = lean(x, state)
    laws.same(y_lean, y)
    laws.same_state(after_lean, after)
    made = gradients(lean, y_lean.square().sum())
    again = gradients(memory, checkpoint(lambda x: memory(x, state)[0], x, use_reentrant=False).square().sum())
    for name, one in expected.items():
        laws.same(made[name], one)
        laws.same(again[name], one, 0.0)


def test_all_that_is_kept_for_the_backward_pass_can_be_taken_away(monkeypatch):
    """As torch.utils.checkpoint and offloading do it, by hooks on saved tensors: nothing of weight shape stays."""
    memory = build()
    shapes: list[torch.Size] = []

    def pack(x):
        shapes.append(x.shape)
        return x.detach().clone()

    x = like(memory, length=6 * CHUNK)
    expected = gradients(memory, memory(x)[0].square().sum())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = memory(x)[0]
    node, found = y.grad_fn, []
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found += [part for part in vars(node).values() if hasattr(node, "layout")] if hasattr(node, "__dict__") else []
        todo += [other for other, _ in node.next_functions]
    assert found, "the fused node is not in the graph"
    assert not _tensors_in(found)
    W = memory.init_weights[0].shape
    assert sum(shape[-2:] == W[-2:] for shape in shapes) >= 6  # the weights at every chunk's start are among them
    for name, one in gradients(memory, y.square().sum()).items():
        laws.same(one, expected[name])


def _tensors_in(thing) -> list:
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, list | tuple):
        return [x for part in thing for x in _tensors_in(part)]
    return _tensors_in(vars(thing)) if hasattr(thing, "__dict__") else []


@every
def test_copies(memory, tmp_path):
    x = like(memory)
    y, state = memory(x)
    torch.save((memory, state.detach()), tmp_path / "both.pt")
    with trace(memory):  # a copy of a watched memory is not watched
        copies = [copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))]
    loaded, kept = torch.load(tmp_path / "both.pt", weights_only=False)
    for one in (*copies, loaded):
        assert one.config == memory.config and one.qkv.weight is not memory.qkv.weight and one.traces is None
        laws.same(one(x)[0], y, 0.0)
    for one in (pickle.loads(pickle.dumps(state)), copy.deepcopy(state.detach()), kept):
        laws.same_state(one, state, 0.0)


@pytest.mark.filterwarnings("error")
@each
def test_pretrained(options, tmp_path):
    memory = build(**options, nonfinite="skip", ridge=0.5).float()
    x = like(memory)
    memory.save_pretrained(tmp_path)
    again = NeuralMemory.from_pretrained(tmp_path)
    assert again.config == memory.config
    laws.same(again(x)[0], memory(x)[0], 0.0)
    safetensors.torch.save_file(memory.state_dict(), tmp_path / "weights.safetensors")
    with torch.device("meta"):
        empty = NeuralMemory(**vars(memory.config))
    assert empty.qkv.weight.is_meta and empty.state_size == memory.state_size
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    laws.same(filled(x)[0], memory(x)[0], 0.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("rule", "words"), [("anchored", "another function$"), ("exact", "a near one")])
def test_another_chunk_length_warns(rule, words, tmp_path):
    memory = build(rule=rule).float()
    memory.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=f"chunk_size=5, and .* chunk_size=7: .*{words}"):
        other = NeuralMemory.from_pretrained(tmp_path, chunk_size=7)
    assert other.config.chunk_size == 7 and int(other.trained_chunk_size) == 5
    with pytest.warns(UserWarning, match="chunk_size=5"):
        nn.Sequential(other).load_state_dict({f"0.{name}": t for name, t in memory.state_dict().items()})
    without = {name: t for name, t in memory.state_dict().items() if name != "trained_chunk_size"}
    assert not any(other.load_state_dict(without))
    memory.load_state_dict(memory.state_dict())


@every
def test_trace(memory, monkeypatch):
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
    for one, other, alone in zip(written.surprise, surprise, memory.memorize(x[:1, mask[0]])[1], strict=True):
        laws.same(one, other, 0.0)
        laws.same(one[:1, mask[0]], alone)
    assert (whole.keep > 0).all() and (whole.keep <= 1).all() and (whole.step <= memory.config.step_bound).all()
    assert (whole.momentum != 0).any() == memory.config.momentum
    asked, name = [], "mesa_memory" if memory.config.algorithm == "solve" else "chunk_memory"
    whole_run = getattr(layer, name)
    monkeypatch.setattr(layer, name, lambda *a, **k: (asked.append(k["surprise"]), whole_run(*a, **k))[1])
    laws.same(memory(x)[0], y)
    with trace(memory) as traces:
        memory(x)
    assert asked == [False, True] and memory.traces is None and len(traces[""]) == 1
    if memory.config.step == "learned":
        assert gradients(memory, writing_price(traces))["gating.linear.weight"].any()


def test_traces_by_name_and_within_each_other():
    first, second = build(), build(seed=1)
    model = nn.ModuleDict({"a": first, "b": nn.Sequential(nn.Identity(), second)})
    with trace(model) as outer:
        first(like(first))
        with trace(first) as inner:
            first(like(first))
        model["b"](like(first)), first(like(first))
    assert outer.keys() == {"a", "b.1"} and [len(inner[""]), len(outer["b.1"])] == [1, 1]
    assert len(outer["a"]) >= 2  # what the inner one saw may be its own, what came after is not
    assert first.traces is None


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
    y = (act(k @ weights[0]) * (k @ weights[1] if len(weights) > 2 else 1)) @ weights[-1]
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
    old, new = memory.present_weights(state), memory.present_weights(after)
    change = sum((b - a).square().sum((-2, -1)) for a, b in zip(old, new, strict=True)).sqrt()
    assert (change > 1e-6).all()
    laws.same(surprise.write[:, 0], change)
