"""The neural memory keeps the laws of a memory, and its fast form is its reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import laws
from memory_titan import NeuralMemory
from memory_titan.memory.neural import layer
from memory_titan.memory.neural.config import NeuralMemoryConfig
from memory_titan.memory.neural.presets import PRESETS

DIM, HEADS, CHUNK = 8, 2, 5
SHAPES = [
    pytest.param({"depth": depth, "algorithm": algorithm, "rule": rule}, id=f"{rule}-depth{depth}-{algorithm}")
    for rule in ("exact", "anchored")
    for depth in (1, 2, 3, 4)
    for algorithm in ("momentum", "descent")
]
SWITCHES = [
    pytest.param(options, id="-".join(f"{k}={v}" for k, v in options.items()))
    for options in (
        {"gates": "hard"},
        {"retention": "none"},
        {"retention": "none", "algorithm": "descent"},
        {"conv_size": 0},
        {"conv_size": 1},
        {"qkv_activation": False, "qk_norm": False},
        {"output_norm": False, "output_gate": False},
        {"activation": "gelu"},
        {"chunk_size": 1},
        {"chunk_size": 16},  # so long that an open chunk is kept as weights, not as tokens
        {"chunk_size": 16, "rule": "anchored", "algorithm": "descent"},
        {"rule": "token"},
        {"features": 3},
        {"reset_every": 10},
        {"read": "chunk"},
        {"step": "fixed", "init": "fixed"},
        {"checkpoint": 2},  # of the fused form, and of the general one
        {"checkpoint": 1, "bias": "huber", "rule": "anchored"},
    )
]
FAMILY = [pytest.param({"preset": name}, id=name) for name in PRESETS]


def build(seed: int = 0, preset: str = "", **options) -> NeuralMemory:
    torch.manual_seed(seed)
    options = {"dim": DIM, "heads": HEADS, "expansion": 2, "chunk_size": CHUNK, **options}
    if preset:
        window = {"window": 3} if "window" in PRESETS[preset].options else {}
        memory = NeuralMemory.preset(preset, **{**options, **window}).double()
    else:
        memory = NeuralMemory(**options).double()
    with torch.no_grad():  # gates that differ from token to token, and weights that matter
        if memory.gating.columns:
            memory.gating.linear.weight.normal_()
        for weight in memory.init_weights:
            weight.normal_(std=0.5)
    return memory


def tokens(batch: int = 3, length: int = 23, seed: int = 1, dim: int = DIM) -> torch.Tensor:
    return torch.randn(batch, length, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SHAPES + SWITCHES + FAMILY)
def memory(request) -> NeuralMemory:
    return build(**request.param)


def test_causal(memory):
    laws.causal(memory, tokens(dim=memory.config.dim), at=9)


def test_rows_alone(memory):
    laws.rows_alone(memory, tokens(dim=memory.config.dim))


@pytest.mark.parametrize("cuts", [list(range(1, 23)), [0, 4, 4, 17, 23], [5, 10]], ids=["single", "odd", "chunks"])
def test_any_split(memory, cuts):
    laws.any_split(memory, tokens(dim=memory.config.dim), cuts)


@torch.no_grad()
def test_single_tokens_without_gradients(memory):
    """A form of its own for some rules."""
    laws.any_split(memory, tokens(dim=memory.config.dim), list(range(1, 23)))
    laws.any_split(memory, tokens(dim=memory.config.dim), [3, 4, 5, 6, 11, 12, 13])


def test_long_without_gradients(memory, monkeypatch):
    """Where no gradient is wanted, a long sequence is read in pieces: one call all the same, wherever it begins."""
    monkeypatch.setattr(layer, "PIECE", 2 * CHUNK * 3 * memory.config.dim)
    x, mask = tokens(length=71, dim=memory.config.dim), torch.rand(3, 71) > 0.3
    for begin in (0, 3):
        state = memory(x[:, :begin])[1]
        for valid in (None, mask[:, begin:]):
            y, after = memory(x[:, begin:], state, valid)
            after_written, surprise = memory.memorize(x[:, begin:], state, valid)
            with torch.no_grad():
                laws.same(memory(x[:, begin:], state, valid)[0], y)
                laws.same_state(memory(x[:, begin:], state, valid)[1], after)
                again, told = memory.memorize(x[:, begin:], state, valid)
            laws.same_state(again, after_written)
            for one, other in zip(told, surprise, strict=True):
                laws.same(one, other, 1e-7)  # where almost nothing is written, the norms lose digits


def test_projections_of_ones_own():
    """Without projections it is the same memory, for a caller who brings q, k and v and takes what the heads read."""
    whole = build(output_gate=False)
    bare = build(output_gate=False, projections=False)
    bare.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith(("qkv", "out"))})
    x, mask = tokens(), torch.rand(3, 23, generator=torch.Generator().manual_seed(3)) > 0.3
    state = state_bare = None
    for begin, end in ((0, 9), (9, 23)):
        part, valid = x[:, begin:end], mask[:, begin:end]
        qkv = whole.qkv(part)
        y, state = whole(part, state, valid)
        read, state_bare = bare(part, state_bare, valid, qkv=qkv)
        laws.same(torch.where(valid[..., None], whole.out(read), 0.0), y)
        laws.same_state(state_bare, state)
    laws.same(whole.out(bare.recall(whole.qkv(x)[..., :DIM], state)), whole.recall(x, state))
    laws.same(bare.memorize(x, qkv=whole.qkv(x))[1].loss, whole.memorize(x)[1].loss)


def test_gates_of_another_width():
    bare = build(output_gate=False, projections=False, input_dim=3)
    y, _ = bare(tokens(dim=3), qkv=tokens(dim=3 * DIM))
    assert y.shape == (3, 23, DIM)
    assert "out.weight" not in dict(bare.named_parameters())


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        ({"projections": False, "output_gate": False}, None, "needs it"),
        ({}, 3 * DIM, "projections=False"),
        ({"projections": False, "output_gate": False}, DIM, r"qkv must be \[3, 23, 24\]"),
    ],
)
def test_projections_that_are_missing_or_one_too_many(options, given, words):
    with pytest.raises(ValueError, match=words):
        build(**options)(tokens(), qkv=None if given is None else tokens(dim=given))


@pytest.mark.parametrize("before", [0, 7])
@pytest.mark.parametrize("side", ["left", "right", "within", "a row of nothing but padding"])
def test_padding(memory, side, before):
    x = tokens(dim=memory.config.dim)
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(2)) > 0.4
    if side in ("left", "right"):
        mask = mask.sort(1, descending=side == "right").values
    if side.startswith("a row"):
        mask[1] = False
    laws.padding_changes_nothing(memory, x, mask, before)


def test_state_round_trip(memory, tmp_path):
    laws.state_round_trip(memory, tokens(dim=memory.config.dim), tmp_path / "state.safetensors")


def test_reading_and_writing_apart(memory):
    laws.reading_changes_nothing(memory, tokens(dim=memory.config.dim), tokens(seed=3, dim=memory.config.dim))
    laws.writing_alone_writes_the_same(memory, tokens(dim=memory.config.dim))


def test_gradients(memory):
    laws.gradients_are_true(memory, tokens(batch=2, length=9, dim=memory.config.dim))


def test_bfloat16(memory):
    laws.low_precision(memory, tokens(dim=memory.config.dim))


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 23), max_size=6).map(sorted),
    depth=st.integers(1, 4),
    chunk=st.integers(1, 30),
    rule=st.sampled_from(["exact", "anchored"]),
    algorithm=st.sampled_from(["momentum", "descent"]),
)
def test_any_split_of_any_kind(cuts, depth, chunk, rule, algorithm):
    laws.any_split(build(depth=depth, chunk_size=chunk, rule=rule, algorithm=algorithm), tokens(), cuts)


def test_depth_one_is_the_delta_rule():
    """Depth 1 without momentum is gated DeltaNet: W_t = a W + theta' k (v - W k)^T, written out here by hand."""
    memory = build(depth=1, algorithm="descent", conv_size=0, output_norm=False, output_gate=False)
    x = tokens(batch=1, length=12)
    gates = memory.gating(x, torch.float64)
    step, log_keep = gates.step, gates.log_keep
    q, k, v = memory._heads(memory.qkv(x))
    W, read = memory.init_weights[0].detach().clone(), []
    for t in range(12):
        for head in range(HEADS):
            key, value, theta = k[0, head, t], v[0, head, t], step[0, head, t] / 2  # 1 + |k|^2 = 2
            W[head] = log_keep[0, head, t].exp() * W[head] - theta * torch.outer(key, key @ W[head] - value)
        read.append(torch.cat([q[0, head, t] @ W[head] for head in range(HEADS)]))
    laws.same(memory(x)[0][0], memory.out(torch.stack(read)))


def test_exact_rule_with_one_layer_does_not_know_the_chunk():
    x = tokens()
    laws.same(build(depth=1, chunk_size=3)(x)[0], build(depth=1, chunk_size=16)(x)[0])


@pytest.mark.parametrize("gates", ["sigmoid", "hard"])
def test_shut_gates_keep_everything(gates):
    """Step and decay at zero: nothing is written and nothing forgotten. Gates wide open are finite."""
    memory = build(gates=gates)
    x = tokens()
    _, state = memory(x[:, :8])
    with torch.no_grad():
        memory.gating.linear.weight.zero_()
        memory.gating.linear.bias.fill_(-50.0)
    _, after = memory(x[:, 8:], state)
    for was, now in zip(memory.present_weights(state), memory.present_weights(after), strict=True):
        laws.same(was, now, 1e-12)
    with torch.no_grad():
        memory.gating.linear.bias.fill_(50.0)
    y, after = memory(x[:, 8:], state)
    assert y.isfinite().all()


def test_surprise_falls_on_repetition():
    """The second time the same is read, it surprises less; with another token it does not."""
    memory = build(depth=2, conv_size=0)
    with torch.no_grad():
        memory.gating.linear.weight.zero_()
    x = tokens(batch=1, length=4)
    _, surprise = memory.memorize(torch.cat([x, x], 1))
    for part in surprise:
        assert (part[:, 4:] < part[:, :4]).all()


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("kind", ["random", "constant", "two keys"])
def test_100k_tokens_stay_finite(options, kind):
    """With the defaults' gates, and with the step at its bound, no decay and momentum at 0.9."""
    for pushed in (False, True):
        torch.manual_seed(0)
        memory = NeuralMemory(**{"dim": DIM, "heads": HEADS, "chunk_size": 64, **options})
        if pushed:
            with torch.no_grad():
                memory.gating.linear.weight.zero_()
                memory.gating.linear.bias[:HEADS] = 20.0
                memory.gating.linear.bias[HEADS : 2 * HEADS] = -50.0
                memory.gating.linear.bias[2 * HEADS :] = 2.2
        length = {"random": 4096, "constant": 1, "two keys": 2}[kind]
        laws.stays_finite(memory, tokens(batch=1, length=length).float() * 3, 102_400)


@pytest.mark.parametrize("kind", ["random", "constant"])
@pytest.mark.parametrize("name", PRESETS)
def test_20k_tokens_stay_finite(name, kind):
    """Every preset as it comes, chunks of its own length."""
    torch.manual_seed(0)
    memory = NeuralMemory.preset(name, DIM, heads=HEADS)
    laws.stays_finite(memory, tokens(batch=1, length=4096 if kind == "random" else 1).float() * 3, 20_480)


@pytest.mark.slow
@pytest.mark.parametrize("options", SHAPES)
def test_a_million_tokens_stay_finite(options):
    torch.manual_seed(0)
    memory = NeuralMemory(**{"dim": DIM, "heads": HEADS, "chunk_size": 64, **options})
    laws.stays_finite(memory, tokens(batch=1, length=4096).float(), 1_048_576)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_million_tokens_stay_finite_in_the_family(name):
    torch.manual_seed(0)
    memory = NeuralMemory.preset(name, DIM, heads=HEADS)
    laws.stays_finite(memory, tokens(batch=1, length=4096).float(), 1_048_576)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 10, "heads": 4}, "multiple of heads"),
        ({"depth": 5}, "1 to 4"),
        ({"rule": "newton"}, "newton"),
        ({"gates": "soft"}, "soft"),
        ({"activation": "tanh"}, "tanh"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"input_dim": 3}, "projections=False"),
        ({"projections": False}, "output_gate"),
    ],
)
def test_what_cannot_work_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        NeuralMemoryConfig(**{"dim": DIM, **options})


def test_wrong_shapes_are_refused():
    memory = build()
    with pytest.raises(ValueError, match="expected x"):
        memory(torch.zeros(2, 3, DIM + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="3 rows"):
        memory(tokens(batch=2), memory.initial_state(3))
    with pytest.raises(ValueError, match="mask"):
        memory(tokens(), mask=torch.ones(3, 4))


def test_a_key_without_history_has_a_gradient_like_the_others():
    """Where the convolution's last tap is 0 for keys, the first token's key is exactly 0."""
    torch.manual_seed(0)
    memory = NeuralMemory(dim=8, heads=2, depth=1, qkv_activation=False)
    with torch.no_grad():
        memory.conv.weight[8:16, :, -1] = 0.0
        memory.conv.bias.zero_()
    x = torch.randn(2, 6, 8, requires_grad=True)
    memory(x)[0].square().sum().backward()
    assert x.grad.norm() > 0
    assert all(p.grad.norm() < 1e3 for p in memory.parameters())
