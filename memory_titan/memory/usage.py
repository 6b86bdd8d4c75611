"""How much of a bank of slots is in use."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-9  # in a logarithm: 0 log 0 is 0, with a finite gradient


def dense(slots: Tensor, weights: Tensor, count: int) -> Tensor:
    """Weights of a few slots, `[..., E]`, as those of all, `[..., count]`; what stands twice is added up."""
    return weights.new_zeros(*weights.shape[:-1], count).scatter_add(-1, slots, weights)


def slot_entropy(usage: Tensor) -> Tensor:
    """H = -sum_i p_i log(p_i + eps), in nats, of `[..., N]`: what the utilisation of slots is judged by."""
    return -(usage * (usage + EPSILON).log()).sum(-1)


def effective_slots(usage: Tensor) -> Tensor:
    """exp(H) / N, of `[..., N]`: the share of the slots that are used as if all these were used alike."""
    return slot_entropy(usage).exp() / usage.shape[-1]
