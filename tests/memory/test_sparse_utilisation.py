"""How much of a sparse bank is in use: the measure, the loss, and the collapse that they are there for."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import laws
from memory_titan import NeuralMemory
from memory_titan.memory.sparse import utilisation
from memory_titan.memory.sparse.layer import SparseDeltaBank
from memory_titan.memory.sparse.utilisation import mean_choice, slot_usage, utilisation_loss
from memory_titan.memory.trace import trace
from memory_titan.memory.usage import effective_slots, slot_entropy

SLOTS, PAIRS, WIDTH, VALUES = 256, 16, 24, 8


def test_usage_and_effective_slots():
    """Two tokens on one slot and one on another, in one head; in the other head nothing but slot 2."""
    slots = torch.tensor([[[0], [2]], [[0], [2]], [[3], [2]]])[None]  # [1, T, H, 1]
    usage = slot_usage(slots, torch.ones(1, 3, 2, 1), 4)
    laws.same(usage, torch.tensor([[2 / 3, 0, 0, 1 / 3], [0, 0, 1, 0]]), 1e-6)
    entropy = math.log(3) - 2 / 3 * math.log(2)
    laws.same(effective_slots(usage), torch.tensor([math.exp(entropy) / 4, 1 / 4]), 1e-6)
    masked = torch.ones(1, 3, 2, 1)
    masked[:, 2] = 0
    assert slot_usage(slots, masked, 4)[0, 0] == 1
    laws.same(effective_slots(torch.full((7,), 1 / 7)), torch.tensor(1.0), 1e-6)


def test_the_mean_choice_and_its_bound(monkeypatch):
    """p_mean over all pairs by hand; the marginals' entropies bound its own."""
    logits = 3 * torch.randn(2, 2, 3, 5, 4, dtype=torch.float64)
    valid = torch.rand(2, 5) > 0.3
    first, second = logits.softmax(-1)
    every = (first[..., :, None] * second[..., None, :]).flatten(-2)  # [B, H, T, N]
    expected = every.transpose(1, 2)[valid].mean(0)
    joint = mean_choice(logits, valid)
    laws.same(joint, expected[None])
    monkeypatch.setattr(utilisation, "JOINT_SLOTS", 8)
    marginals = mean_choice(logits, valid)
    laws.same(marginals[0], expected.unflatten(-1, (4, 4)).sum(-1))
    laws.same(marginals[1], expected.unflatten(-1, (4, 4)).sum(-2))
    entropy = slot_entropy
    assert (entropy(joint)[0] < entropy(marginals).sum(0)).all()


@pytest.mark.parametrize("joint", [True, False])
def test_the_loss_spreads_what_points_one_way(joint, monkeypatch):
    """Between 0 and 1, near 1 where all choose alike; a step against its gradient makes it smaller."""
    monkeypatch.setattr(utilisation, "JOINT_SLOTS", 4096 if joint else 0)
    bank = SparseDeltaBank(8, heads=2, slots=64, reads=2, writes=2, query_norm="none", sharpness=50.0)
    x = torch.randn(1, 1, 8) * 20 + 0.01 * torch.randn(4, 9, 8)

    def loss() -> Tensor:
        with trace(bank) as traces:
            bank(x)
        return utilisation_loss(traces)

    before = loss()
    assert 0.5 < before <= 1
    before.backward()
    with torch.no_grad():
        for parameter in bank.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad / parameter.grad.norm().clamp(min=1e-9)
    assert loss() < before
    other = NeuralMemory(8, heads=2)
    with trace(other) as traces:
        other(x)
    with pytest.raises(ValueError, match="no SparseDeltaBank was traced"):
        utilisation_loss(traces)


class Pairs(nn.Module):
    """Associative recall: PAIRS tokens with a key and a value, then the keys alone, in another order.

    All keys are one long vector and a tenth of it in noise: a narrow cone. Keys are queries, so that nothing but the
    choice of slots has to be learned.
    """

    def __init__(self, query_norm: str) -> None:
        super().__init__()
        self.mean = F.normalize(torch.randn(WIDTH), dim=0) * 10
        self.key, self.value = nn.Linear(WIDTH, 32, bias=False), nn.Linear(VALUES, 32, bias=False)
        self.bank = SparseDeltaBank(
            32, heads=1, slots=SLOTS, reads=4, writes=4, query_norm=query_norm, conv_size=0, qkv_activation=False,
            projections=False, output_gate=False, input_dim=WIDTH + VALUES,
        )  # fmt: skip
        self.head = nn.Linear(32, VALUES)

    def forward(self, rows: int) -> tuple[Tensor, Tensor]:
        """Logits and labels of the questions of `rows` fresh sequences."""
        keys = self.mean + torch.randn(rows, PAIRS, WIDTH) / WIDTH**0.5
        labels, order = torch.randint(0, VALUES, (rows, PAIRS)), torch.rand(rows, PAIRS).argsort(1)
        asked = keys.gather(1, order[..., None].expand_as(keys))
        values = F.pad(F.one_hot(labels, VALUES).float(), (0, 0, 0, PAIRS))
        k, v = self.key(torch.cat([keys, asked], 1)), self.value(values)
        x = torch.cat([torch.cat([keys, asked], 1), values], -1)
        return self.head(self.bank(x, qkv=torch.cat([k, k, v], -1))[0][:, PAIRS:]), labels.gather(1, order)


def trained(query_norm: str, weight: float, steps: int = 200) -> tuple[float, float]:
    """Effective slots and accuracy."""
    torch.manual_seed(0)
    model = Pairs(query_norm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for step in range(steps):
        with trace(model) as traces:
            logits, labels = model(16)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        if weight:
            loss = loss + weight * utilisation_loss(traces)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad(), trace(model) as traces:
        logits, labels = model(128)
    (one,) = traces["bank"]
    usage = slot_usage(one.write_slots[:, :PAIRS], one.write_weights[:, :PAIRS], SLOTS)
    return float(effective_slots(usage)), float((logits.argmax(-1) == labels).float().mean())


def test_a_narrow_cone_collapses_without_help():
    """Without query normalisation and without the loss a few of 256 slots are in use; with either, more than half."""
    collapsed, poor = trained("none", 0.0)
    assert collapsed < 0.1 and poor < 0.9
    for query_norm, weight in (("batch", 0.0), ("none", 1.0)):
        used, good = trained(query_norm, weight)
        assert used > 0.5 and good > 0.95
