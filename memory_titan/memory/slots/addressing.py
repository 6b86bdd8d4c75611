"""Where a token's key leads, for all tokens of a chunk at once: known or new, which new slots, the k nearest slots."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.memory.slots.rule import SlotRule, SlotState

SHARE = 0.7  # of the dtype's range of exponents, for what is divided by


def divides(logarithms: Tensor) -> bool:
    """Whether exp(-x) is far from infinity for all of these, which are 0 or less."""
    return bool(logarithms.detach().amin() > -SHARE * math.log(torch.finfo(logarithms.dtype).max))


def familiar(before: Tensor, within: Tensor, rule: SlotRule, place: int) -> Tensor:
    """s, `[B, H, c]`, 0 to 1: whether a key is in a slot since the chunk's start, or among the chunk's before it.

    Args:
        before: `[B, H, c, N]`, cosines of the keys of the chunk's tokens from `place` on with the slots' at its start.
        within: `[B, H, c, C]`, the same with the keys of the chunk's tokens, each times its write gate.
    """
    if rule.config.allocation == "none":
        return before.new_ones(before.shape[:3])
    earlier = torch.ones(within.shape[2:], dtype=torch.bool, device=within.device).tril(place - 1)
    known = torch.maximum(before.max(-1).values, within.masked_fill(~earlier, -torch.inf).amax(-1))
    slope, threshold = rule.familiarity[..., None]
    return torch.sigmoid(slope * (F.relu(known) - threshold))  # empty slots and open places have 0


def allocate(taken: Tensor, state: SlotState, rule: SlotRule) -> tuple[Tensor, Tensor]:
    """The slots that each token takes if it takes one, `[B, H, c, A]`, and how much each gets, of 1.

    Args:
        taken: `[B, H, c]`, how much of new slots the chunk's tokens before each have taken.
    """
    config, N = rule.config, rule.config.slots

    def at(rank: Tensor, of: Tensor) -> Tensor:
        return of.gather(-1, rank.flatten(2)).view_as(rank)

    if config.allocation in ("lru", "none"):
        slots = at((taken.detach() + 0.5).floor().long()[..., None] % N, state.order)
        return slots, torch.ones_like(slots, dtype=taken.dtype)
    ranks = torch.arange(config.top_k, device=taken.device)
    if config.allocation == "gumbel":  # Jang et al. 2017, arXiv 1611.01144
        slots = at(((taken.detach() + 0.5).floor().long()[..., None] + ranks) % N, state.order)
        logits = -at(slots, state.start_usage) / config.gumbel_temperature
        soft = torch.softmax(logits, -1)
        if rule.noise:
            soft = torch.softmax(logits - torch.empty_like(logits).exponential_().log(), -1)
            choice = soft.argmax(-1)
        else:
            choice = torch.zeros_like(slots[..., 0])
        return slots, F.one_hot(choice, config.top_k).to(soft) + soft - soft.detach()
    rank = taken.detach().floor().long()[..., None] + ranks
    slots = at(rank % N, state.order)
    # what the chunk has taken before counts as used
    used = 1 - (1 - at(slots, state.start_usage)) * (1 - (taken[..., None] - rank).clamp(0, 1))
    before = torch.cat([torch.ones_like(used[..., :1]), used.cumprod(-1)[..., :-1]], -1)
    return slots, (1 - used) * before


def as_found(after: Tensor, first: float) -> Tensor:
    """`[B, H, 2 c, N]`: how a chunk's keys find the slots, before their tokens, then its queries, after theirs.

    Args:
        after: `[B, H, c, N]`, how each token leaves them.
        first: how the first finds them.
    """
    return torch.cat([torch.full_like(after[..., :1, :], first), after[..., :-1, :], after], -2)


def in_chunk_cosines(
    at_slots: Tensor, at_chunk: Tensor, left: Tensor, taking: Tensor, slots: Tensor, take: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Cosines of a chunk's keys and queries with slots that the chunk's tokens take meanwhile.

    Args:
        at_slots: `[B, H, 2 c, N]`, of the chunk's keys, then of its queries, with the slots as they were before it.
        at_chunk: `[B, H, 2 c, c]`, of the same with the chunk's keys.
        left: `[B, H, c, N]`, logarithm of what is left of the old key of each slot after each token.
        taking: `[B, H, c, N]`, how much of each slot each token took.
        slots, take: `[B, H, c, A]`, which those were, and how much of them.

    Returns:
        `[B, H, 2 c, N]`; and `[B, H, c, N]`, taking / exp(left), None where that is no number.
    """
    c, A = slots.shape[2:]
    ones = torch.ones(c, c, dtype=torch.bool, device=left.device)
    earlier = torch.cat([ones.tril(-1), ones.tril()])
    if divides(left):
        share = left.exp()
        since = taking * (-left).exp()  # the derivative of taking / share would be infinite
        return (at_slots + (at_chunk * earlier) @ since) * as_found(share, 1.0), since
    then = as_found(left, 0.0)
    flat = slots.flatten(2)  # [B, H, c * A]
    rows = flat[..., None, :].expand(-1, -1, 2 * c, -1)
    taken = left.gather(-1, slots).flatten(2)[..., None, :]
    ratio = torch.where(earlier.repeat_interleave(A, 1), then.gather(-1, rows) - taken, -torch.inf).exp()
    ours = at_chunk.repeat_interleave(A, -1) * ratio * take.flatten(2)[..., None, :]
    return (at_slots * then.exp()).scatter_add(-1, rows, ours), None


def address(cosines: Tensor, alive: Tensor, sharpness: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Weights and slots, `[B, H, c, k]`, of the k largest cosines among slots that hold something.

    Args:
        cosines: `[B, H, c, N]`.
        alive: `[B, H, c, N]`, bool.
        sharpness: `[H, c]`, or `[H, 1]`.
    """
    best, slots = cosines.detach().masked_fill(~alive, -torch.inf).topk(k, -1)
    there = best > -torch.inf
    logits = sharpness[..., None] * torch.where(there, cosines.gather(-1, slots), 0.0)
    weights = torch.softmax(torch.where(there, logits, -1e9), -1)  # infinities would reach the gradients as NaN
    return torch.where(there, weights, 0.0), slots
