"""What may be added to a loss so that slots are used well: all of them used, each read sharp, not too much written.

    with trace(model) as traces:
        loss = model(x).loss
    loss = loss + 0.01 * utilization_loss(traces) + 0.01 * pressure_loss(traces) + 0.01 * sharpness_loss(traces)

The entropy that is to be high is that of the marginal: of where reads and writes go on average. The one that is to be
low is that of each read. A single entropy for both would undo one with the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from memory_titan.memory.slots.trace import SlotTrace
from memory_titan.memory.trace import Trace
from memory_titan.memory.usage import EPSILON, slot_entropy


def marginal(slots: Tensor, weights: Tensor, count: int) -> Tensor:
    """`[H, count]`: the mean weight of each slot over batch and tokens, made to sum to 1; 0 where there is none at all.

    Args:
        slots: `[B, T, H, K]`, int64.
        weights: `[B, T, H, K]`, not negative.
        count: of slots.
    """
    flat = weights.movedim(2, 0).flatten(1)  # [H, B * T * K]
    total = flat.new_zeros(len(flat), count).scatter_add(1, slots.movedim(2, 0).flatten(1), flat)
    return total / total.sum(1, keepdim=True).clamp(min=EPSILON)


def utilization_loss(traces: dict[str, list[Trace]]) -> Tensor:
    """1 - H(p) / log N, p where reads and writes go on average; mean over heads and banks: 0 when all slots are alike.

    The entropy itself would be a loss that makes slots idle: it has to be high.
    """
    losses = []
    for call in _calls(traces):
        for slots, weights in ((call.read_slots, call.read_weights), (call.write_slots, call.write_weights)):
            usage = marginal(slots, weights, call.slots)
            losses.append(1 - slot_entropy(usage).mean() / _log(call.slots))
    return torch.stack(losses).mean()


def pressure_loss(traces: dict[str, list[Trace]]) -> Tensor:
    """The mean amount that a token writes, 0 to 1: every write takes room from what is there."""
    return torch.stack([call.write_weights.sum(-1).mean() for call in _calls(traces)]).mean()


def sharpness_loss(traces: dict[str, list[Trace]]) -> Tensor:
    """The mean entropy of a read over log K: 0 when every read looks at one slot."""
    losses = []
    for call in _calls(traces):
        losses.append(slot_entropy(call.read_weights).mean() / _log(call.read_weights.shape[-1]))
    return torch.stack(losses).mean()


def _log(count: int) -> float:
    return math.log(max(2, count))


def _calls(traces: dict[str, list[Trace]]) -> Iterator[SlotTrace]:
    found = False
    for calls in traces.values():
        for call in calls:
            if isinstance(call, SlotTrace) and call.step.numel():
                found = True
                yield call
    if not found:
        raise ValueError("no bank was traced: run a model that has one inside `with trace(model) as traces`")
