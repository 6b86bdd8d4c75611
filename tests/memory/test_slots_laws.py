"""The memory bank keeps the laws of a memory, and its fast form is its reference."""

from __future__ import annotations

import pytest
import torch

import laws
from memory_titan.memory.slots import layer
from memory_titan.memory.slots.chunk import chunk_slots
from memory_titan.memory.slots.layer import MultiHeadMemoryBank
from memory_titan.memory.slots.naive import naive_slots

DIM = 8
SWITCHES = [
    pytest.param(options, id="-".join(f"{k}={v}" for k, v in options.items()) or "default")
    for options in (
        {},
        {"chunk_size": 1},
        {"chunk_size": 16},
        {"slots": 3, "top_k": 3},  # fewer slots than a chunk writes
        {"top_k": 1},
        {"write": "erase"},
        {"write": "add"},
        {"write_gate": False},
        {"erase": False},
        {"gates": "sigmoid"},
        {"decay": "all"},
        {"decay": "none"},
        {"bottleneck": 3},
        {"allocation": "dnc"},
        {"allocation": "gumbel"},
        {"allocation": "none"},
        {"staleness": "usage"},
        {"conv_size": 0},
        {"conv_size": 1, "context": 0, "qkv_activation": True},
        {"output_norm": False, "output_gate": False},
        {"context": 1},
    )
]


def build(seed: int = 0, **options) -> MultiHeadMemoryBank:
    torch.manual_seed(seed)
    bank = MultiHeadMemoryBank(
        **{"dim": DIM, "heads": 2, "slots": 7, "top_k": 3, "chunk_size": 5, "context": None, **options}
    ).double()
    with torch.no_grad():  # gates that differ from token to token, and slots that decay each in its own way
        if bank.gating.columns:
            bank.gating.linear.weight.normal_()
            bank.gating.linear.bias.clamp_(min=0.0)
        if bank.config.decay != "none":
            bank.slot_decay.normal_()
    return bank.eval()


def tokens(batch: int = 3, length: int = 23, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SWITCHES)
def bank(request) -> MultiHeadMemoryBank:
    return build(**request.param)


def test_causal(bank):
    laws.causal(bank, tokens(), at=9)


def test_rows_alone(bank):
    laws.rows_alone(bank, tokens())


@pytest.mark.parametrize("cuts", [list(range(1, 23)), [0, 4, 4, 17, 23], [5, 10]], ids=["single", "odd", "chunks"])
def test_any_split(bank, cuts):
    laws.any_split(bank, tokens(), cuts)


@pytest.mark.parametrize("before", [0, 4])
@pytest.mark.parametrize("side", ["left", "right", "within"])
def test_padding(bank, side, before):
    mask = torch.ones(3, 23, dtype=torch.bool)
    if side == "within":
        mask = torch.rand(3, 23, generator=torch.Generator().manual_seed(3)) > 0.3
    else:
        for row, count in enumerate((3, 0, 9)):
            mask[row, before : before + count] = side == "right"
            mask[row, 23 - count :] = side == "left"
    laws.padding_changes_nothing(bank, tokens(), mask, before)


def test_state_round_trip(bank, tmp_path):
    laws.state_round_trip(bank, tokens(), tmp_path / "state")


def test_reading_changes_nothing(bank):
    laws.reading_changes_nothing(bank, tokens(), tokens(length=4, seed=5))


def test_writing_alone_writes_the_same(bank):
    laws.writing_alone_writes_the_same(bank, tokens())


@pytest.mark.parametrize("options", [p for p in SWITCHES if p.id != "allocation=gumbel"])  # which is straight-through
def test_gradients_are_true(options):
    """Where all slots have been taken: an empty one is not read, and between none and a little there is a step."""
    bank = build(**{**options, "slots": 3})
    laws.gradients_are_true(bank, tokens(batch=1, length=18), before=12)


def test_low_precision(bank):
    laws.low_precision(bank, tokens())


@pytest.mark.parametrize("constant", [False, True])
def test_stays_finite(bank, constant):
    x = tokens(2, 400)
    laws.stays_finite(bank.float(), (x[:, :1].expand(-1, 400, -1) if constant else x).float(), 1200, 400)


@pytest.mark.slow
def test_stays_finite_for_a_million_tokens(bank):
    laws.stays_finite(bank.float(), tokens(1, 4096).float(), 1_000_000)


@pytest.mark.parametrize(("length", "masked"), [(1, False), (23, False), (41, False), (23, True)])
def test_the_fast_form_is_the_reference(bank, length, masked, monkeypatch):
    """Outputs, reports, the state and every gradient, also the initial state's."""
    start = bank(tokens(length=7, seed=4))[1].detach()
    count = torch.tensor([length, length // 2, 0])
    valid = torch.arange(length) < count[:, None] if masked else None
    results = []
    for form in (chunk_slots, naive_slots):
        monkeypatch.setattr(layer, "chunk_slots", form)
        x = tokens(length=length, seed=2).requires_grad_()
        state = start.map(lambda t: t.clone().requires_grad_() if t.is_floating_point() else t)
        bank.zero_grad()
        y, told, new = bank._run(x, state, valid, None, None)
        outputs = [y, *told, *new.tensors().values()]
        weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(6)).to(t) for t in outputs]
        smooth = [t for t in outputs if t.is_floating_point()]
        sum((w * t).sum() for w, t in zip(weights, outputs, strict=True) if t.is_floating_point()).backward()
        leaves = [x, *[t for t in state.tensors().values() if t.requires_grad], *bank.parameters()]
        assert len(smooth) > 10
        results.append((outputs, [torch.zeros_like(x) if x.grad is None else x.grad.clone() for x in leaves]))
    for fast, slow in zip(results[0][0], results[1][0], strict=True):
        laws.same(fast, slow, 1e-9)
    for fast, slow in zip(results[0][1], results[1][1], strict=True):
        laws.same(fast, slow, 1e-7)
