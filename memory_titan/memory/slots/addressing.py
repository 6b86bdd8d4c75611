"""Where a token's key leads, for all tokens of a chunk at once: known or new, which new slots, the k nearest slots."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.memory.slots.rule import SlotRule, SlotState


def familiar(k: Tensor, open_keys: Tensor, open_gates: Tensor, state: SlotState, rule: SlotRule, place: int) -> Tensor:
    """s, `[B, H, c]`, 0 to 1: whether a key is in a slot since the chunk's start, or among the chunk's before it.

    Args:
        k: `[B, H, c, d]`, of the chunk's tokens from `place` on.
        open_keys, open_gates: `[B, H, C, d]`, `[B, H, C]`, of all of the chunk's tokens.
    """
    if rule.config.allocation == "none":
        return k.new_ones(k.shape[:3])
    known = (k @ state.start_keys.mT).amax(-1)
    c, C = k.shape[2], open_keys.shape[2]
    earlier = torch.ones(c, C, dtype=torch.bool, device=k.device).tril(place - 1)
    said = (k @ open_keys.mT) * open_gates[..., None, :]
    known = torch.maximum(known, said.masked_fill(~earlier, -torch.inf).amax(-1))
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


def in_chunk_cosines(
    x: Tensor, k: Tensor, left: Tensor, since: Tensor, keys: Tensor, slots: Tensor, take: Tensor, diagonal: int
) -> Tensor:
    """`[B, H, c, N]`, x_t . K_i for the slots' keys as they stand before (diagonal -1) or after (0) token t.

    Args:
        x, k: `[B, H, c, d]`, what is looked for, and the keys that slots were taken for.
        left: `[B, H, c, N]`, logarithm of what is left of the old key of each slot at that time.
        since: the same after each token.
        keys: `[B, H, N, d]`, before the first token.
        slots, take: `[B, H, c, A]`, the slots that each token took, and how much of them.
    """
    c, A = slots.shape[2:]
    old = (x @ keys.mT) * left.exp()
    if diagonal < 0 and c == 1:
        return old
    flat = slots.flatten(2)  # [B, H, c * A]
    rows = flat[..., None, :].expand(-1, -1, c, -1)
    then = since.gather(-1, slots).flatten(2)[..., None, :]
    earlier = torch.ones(c, c, dtype=torch.bool, device=x.device).tril(diagonal).repeat_interleave(A, 1)
    ratio = torch.where(earlier, left.gather(-1, rows) - then, -torch.inf).exp()
    ours = (x @ k.mT).repeat_interleave(A, -1) * ratio * take.flatten(2)[..., None, :]
    return old.scatter_add(-1, rows, ours)


def address(cosines: Tensor, alive: Tensor, sharpness: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Weights and slots, `[B, H, c, k]`, of the k largest cosines among slots that hold something.

    Args:
        cosines: `[B, H, c, N]`.
        alive: `[B, H, c, N]`, bool.
        sharpness: `[H]`.
    """
    best, slots = cosines.masked_fill(~alive, -torch.inf).topk(k, -1)
    there = best > -torch.inf
    logits = sharpness[:, None, None] * torch.where(there, best, 0.0)  # an infinity would reach the gradients as NaN
    weights = torch.softmax(torch.where(there, logits, -1e9), -1)
    return torch.where(there, weights, 0.0), slots
