"""Where a slot is emptied so often that what is left cannot be divided by, a bank's chunks are still its reference."""

from __future__ import annotations

import pytest
import torch

import laws
from memory_titan.memory.slots import addressing, layer
from memory_titan.memory.slots.chunk import chunk_slots
from memory_titan.memory.slots.layer import MultiHeadMemoryBank
from memory_titan.memory.slots.naive import naive_slots

OPTIONS = [{}, {"write": "erase"}, {"write": "add"}, {"decay": "all"}, {"allocation": "dnc"}, {"slots": 3}]


def build(dtype: torch.dtype = torch.float64, **options) -> MultiHeadMemoryBank:
    torch.manual_seed(0)
    bank = MultiHeadMemoryBank(**{"dim": 8, "heads": 2, "slots": 7, "top_k": 3, "chunk_size": 5, **options})
    with torch.no_grad():
        bank.gating.linear.weight.normal_()
        if bank.config.decay != "none":
            bank.slot_decay.normal_()
    return bank.to(dtype).eval()


def tokens(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, count, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def results(bank, form, monkeypatch, valid):
    monkeypatch.setattr(layer, "chunk_slots", form)
    bank.zero_grad()
    x = tokens(13).requires_grad_()
    y, told, state = bank._run(x, None, valid, None, None)
    outputs = [y, *told, *state.tensors().values()]
    sum((t * torch.linspace(-1, 1, t.numel()).view_as(t)).sum() for t in outputs if t.is_floating_point()).backward()
    return outputs, [x.grad, *(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in bank.parameters())]


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_division_it_is_the_same(options, masked, monkeypatch):
    valid = torch.arange(13) < torch.tensor([[13], [6]]) if masked else None
    slow = results(build(**options), naive_slots, monkeypatch, valid)
    monkeypatch.setattr(addressing, "SHARE", 0.0)  # nothing may be divided by
    fast = results(build(**options), chunk_slots, monkeypatch, valid)
    for one, other, tolerance in zip(fast, slow, (1e-9, 1e-7), strict=True):
        for a, b in zip(one, other, strict=True):
            laws.same(a, b, tolerance)


@pytest.mark.parametrize("options", [{"write": "erase"}, {"write": "erase", "slots": 3, "gates": "sigmoid"}], ids=str)
def test_slots_emptied_at_every_token(options):
    """One key throughout, every write erasing all: what is left underflows, gradients do not."""
    bank = build(torch.float32, chunk_size=32, **options)
    with torch.no_grad():
        bank.gating.linear.weight.zero_()
        bank.gating.linear.bias.fill_(20.0)
    x = tokens(1, torch.float32).expand(-1, 96, -1).clone().requires_grad_()
    assert not addressing.divides(torch.full((1,), -32 * 15.0))
    y, state = bank(x)
    y.square().sum().backward()
    assert all(t.isfinite().all() for t in (y, x.grad, *state.tensors().values()))
    assert all(p.grad.isfinite().all() for p in bank.parameters() if p.grad is not None)


def test_the_report_is_made_only_where_it_is_asked_for():
    bank, x = build(), tokens(13)
    y, told, state = bank._run(x, None, None, None, None, report=False)
    other, full, end = bank._run(x, None, None, None, None)
    assert told is None
    assert full is not None
    assert torch.equal(y, other)
    assert all(torch.equal(a, b) for a, b in zip(state.tensors().values(), end.tensors().values(), strict=True))


@pytest.mark.parametrize("options", [{}, {"write": "erase"}, {"decay": "all"}], ids=str)
def test_gradients_where_little_is_left(options):
    """Hard writes leave as little as may still be divided by; in float32 that must not overflow on the way back."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        bank = build(torch.float32, chunk_size=32, slots=32, **options).to(dtype)
        with torch.no_grad():
            bank.gating.linear.weight.mul_(5)
            bank.familiarity[0].mul_(5)
        x = tokens(64, dtype).float().to(dtype).requires_grad_()
        bank(x)[0].square().sum().backward()
        gradients.append(x.grad.double())
    assert (gradients[0] - gradients[1]).norm() < 2e-3 * gradients[1].norm()
