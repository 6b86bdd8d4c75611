"""The neural memory keeps the laws of a memory, and its fast form is its reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import laws
from memory_titan import NeuralMemory
from memory_titan.memory.neural.layer import NeuralMemoryConfig

DIM, HEADS, CHUNK = 8, 2, 5
SHAPES = [
    pytest.param({"depth": depth, "momentum": momentum, "rule": rule}, id=f"{rule}-depth{depth}-{name}")
    for rule in ("exact", "anchored")
    for depth in (1, 2, 3, 4)
    for momentum, name in ((True, "momentum"), (False, "plain"))
]
SWITCHES = [
    pytest.param(options, id="-".join(f"{k}={v}" for k, v in options.items()))
    for options in (
        {"gates": "hard"},
        {"decay": False},
        {"decay": False, "momentum": False},
        {"conv_size": 0},
        {"conv_size": 1},
        {"qkv_activation": False, "qk_norm": False},
        {"output_norm": False, "output_gate": False},
        {"activation": "gelu"},
        {"chunk_size": 1},
        {"chunk_size": 64},
        {"implementation": "naive"},
    )
]


def build(seed: int = 0, **options) -> NeuralMemory:
    torch.manual_seed(seed)
    memory = NeuralMemory(**{"dim": DIM, "heads": HEADS, "expansion": 2, "chunk_size": CHUNK, **options}).double()
    with torch.no_grad():  # gates that differ from token to token, and weights that matter
        memory.gates.weight.normal_()
        for weight in memory.init_weights:
            weight.normal_(std=0.5)
    return memory


def tokens(batch: int = 3, length: int = 23, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SHAPES + SWITCHES)
def memory(request) -> NeuralMemory:
    return build(**request.param)


def test_causal(memory):
    laws.causal(memory, tokens(), at=9)


def test_rows_alone(memory):
    laws.rows_alone(memory, tokens())


@pytest.mark.parametrize("cuts", [list(range(1, 23)), [0, 4, 4, 17, 23], [5, 10]], ids=["single", "odd", "chunks"])
def test_any_split(memory, cuts):
    laws.any_split(memory, tokens(), cuts)


@pytest.mark.parametrize("before", [0, 7])
@pytest.mark.parametrize("side", ["left", "right", "within", "a row of nothing but padding"])
def test_padding(memory, side, before):
    x = tokens()
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(2)) > 0.4
    if side in ("left", "right"):
        mask = mask.sort(1, descending=side == "right").values
    if side.startswith("a row"):
        mask[1] = False
    laws.padding_changes_nothing(memory, x, mask, before)


def test_state_round_trip(memory, tmp_path):
    laws.state_round_trip(memory, tokens(), tmp_path / "state.safetensors")


def test_reading_and_writing_apart(memory):
    laws.reading_changes_nothing(memory, tokens(), tokens(seed=3))
    laws.writing_alone_writes_the_same(memory, tokens())


def test_gradients(memory):
    laws.gradients_are_true(memory, tokens(batch=2, length=9))


def test_bfloat16(memory):
    laws.low_precision(memory, tokens())


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 23), max_size=6).map(sorted),
    depth=st.integers(1, 4),
    chunk=st.integers(1, 30),
    rule=st.sampled_from(["exact", "anchored"]),
    momentum=st.booleans(),
)
def test_any_split_of_any_kind(cuts, depth, chunk, rule, momentum):
    laws.any_split(build(depth=depth, chunk_size=chunk, rule=rule, momentum=momentum), tokens(), cuts)


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("length", [1, 5, 23])
def test_fast_form_is_the_reference(options, padded, length):
    """Outputs, surprise, final state and the gradient of everything, 1e-10 in float64, from the middle of a chunk."""
    fast, naive = build(**options), build(implementation="naive", **options)
    x, ahead = tokens(length=length), tokens(length=3, seed=4)
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(5)) > 0.3 if padded else None
    results = []
    for memory in (fast, naive):
        x = x.detach().requires_grad_()
        _, state = memory(ahead)
        y, new = memory(x, state, mask)
        _, surprise = memory.memorize(x, state, mask)
        outputs = [y, surprise, *(t for t in new.tensors().values() if t.is_floating_point())]
        generator = torch.Generator().manual_seed(6)
        loss = sum((o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outputs)
        gradients = torch.autograd.grad(loss, [x, *memory.parameters()])
        results.append((outputs, gradients, new.position, new.tokens))
    for a, b in zip(results[0][0] + list(results[0][1]), results[1][0] + list(results[1][1]), strict=True):
        laws.same(a, b, 1e-10)
    assert torch.equal(results[0][2], results[1][2]) and torch.equal(results[0][3], results[1][3])


def test_depth_one_is_the_delta_rule():
    """Depth 1 without momentum is gated DeltaNet: W_t = a W + theta' k (v - W k)^T, written out here by hand."""
    memory = build(depth=1, momentum=False, conv_size=0, output_norm=False, output_gate=False)
    x = tokens(batch=1, length=12)
    step, log_keep, _ = memory._gates(x, torch.float64)
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
        memory.gates.weight.zero_()
        memory.gates.bias.fill_(-50.0)
    _, after = memory(x[:, 8:], state)
    for was, now in zip(state.weights, after.weights, strict=True):
        laws.same(was, now, 1e-12)
    with torch.no_grad():
        memory.gates.bias.fill_(50.0)
    y, after = memory(x[:, 8:], state)
    assert y.isfinite().all()


def test_surprise_falls_on_repetition():
    """The second time the same is read, it surprises less; with another token it does not."""
    memory = build(depth=2, conv_size=0)
    with torch.no_grad():
        memory.gates.weight.zero_()
    x = tokens(batch=1, length=4)
    _, surprise = memory.memorize(torch.cat([x, x], 1))
    assert (surprise[:, 4:] < surprise[:, :4]).all()


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("kind", ["random", "constant", "two keys"])
def test_100k_tokens_stay_finite(options, kind):
    """With the defaults' gates, and with the step at its bound, no decay and momentum at 0.9."""
    for pushed in (False, True):
        torch.manual_seed(0)
        memory = NeuralMemory(**{"dim": DIM, "heads": HEADS, "chunk_size": 64, **options})
        if pushed:
            with torch.no_grad():
                memory.gates.weight.zero_()
                memory.gates.bias[:HEADS] = 20.0
                memory.gates.bias[HEADS : 2 * HEADS] = -50.0
                memory.gates.bias[2 * HEADS :] = 2.2
        length = {"random": 4096, "constant": 1, "two keys": 2}[kind]
        laws.stays_finite(memory, tokens(batch=1, length=length).float() * 3, 102_400)


@pytest.mark.slow
@pytest.mark.parametrize("options", SHAPES)
def test_a_million_tokens_stay_finite(options):
    torch.manual_seed(0)
    memory = NeuralMemory(**{"dim": DIM, "heads": HEADS, "chunk_size": 64, **options})
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
