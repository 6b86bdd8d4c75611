"""How much of a bank is in use, and a loss on it.

A bank may write everything to the same few slots: nothing in a task's loss tells it of the others. What counts is the
MARGINAL use p_mean, over many tokens: its entropy is large when different tokens take different slots, and each single
token may still choose sharply. The loss is 1 - H(p_mean) / log N, p_mean being taken before the best m slots are, so
that the others have a gradient too: over all N = n * n slots, a token's distribution is the product of its two
distributions over sub-keys.

In a large bank p_mean itself costs too much. It has the means p1 and p2 of the two as its marginals, so that
H(p_mean) <= H(p1) + H(p2), with equality where the halves are independent, and the loss is taken on that bound,
1 - (H(p1) + H(p2)) / log N, of 2 n numbers. It is 0 where all sub-keys are used alike, and never more than the loss on
slots: small, it does not prove that the pairs are used alike too. `effective_slots` of `slot_usage`, from the addresses
themselves, tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from memory_titan.memory.trace import Trace
from memory_titan.memory.usage import slot_entropy

JOINT_SLOTS = 4096  # up to so many, p_mean itself


@dataclass(frozen=True)
class SparseTrace(Trace):
    """One call of one `SparseDeltaBank`: a `Trace` (step is g, keep the mean over the slots written, momentum 0).

    Attributes:
        write_slots, read_slots: `[B, T, H, m]`, int64; anything at tokens that a mask excludes. read: None where
            nothing was read.
        write_weights, read_weights: `[B, T, H, m]`, of unit length; 0 at tokens that a mask excludes.
        write_usage, read_usage: the mean over tokens of their distributions before the best m are taken, in the
            autograd graph: `[1, H, N]` over slots, or in a large bank `[2, H, n]` over both tables of sub-keys.
    """

    write_slots: Tensor
    write_weights: Tensor
    write_usage: Tensor
    read_slots: Tensor | None
    read_weights: Tensor | None
    read_usage: Tensor | None


def mean_choice(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean distribution over slots, `[1, H, N]`; beyond `JOINT_SLOTS` over each table of sub-keys, `[2, H, n]`.

    Args:
        logits: `[2, B, H, T, n]`, of `ProductKeys`.
        valid: `[B, T]`, bool; tokens that count.
    """
    chances = torch.softmax(logits, -1)
    _, B, _, T, side = logits.shape
    counted = chances.new_ones(B, T) if valid is None else valid.to(chances.dtype)
    counted = counted / counted.sum().clamp(min=1)
    if side**2 <= JOINT_SLOTS:
        first, second = chances.transpose(1, 2).flatten(2, 3)  # [H, B * T, n]
        return ((first * counted.view(-1, 1)).mT @ second).flatten(1)[None]
    return torch.einsum("pbhtn,bt->phn", chances, counted)


def slot_usage(slots: Tensor, weights: Tensor, count: int) -> Tensor:
    """p_mean: each token's weights over all slots, as shares of 1, and their mean over tokens.

    Args:
        slots, weights: `[B, T, H, m]`, as in a `SparseTrace`; a token whose weights are 0 does not count.
        count: N.

    Returns:
        `[H, N]`, each row of sum 1 (0 where no token counts).
    """
    total = weights.sum(-1, keepdim=True)
    shares = (weights / torch.where(total > 0, total, 1.0)).permute(2, 0, 1, 3).flatten(1)
    usage = shares.new_zeros(shares.shape[0], count).scatter_add(1, slots.permute(2, 0, 1, 3).flatten(1), shares)
    return usage / usage.sum(-1, keepdim=True).clamp(min=torch.finfo(usage.dtype).tiny)


def utilisation_loss(traces: dict[str, list[Trace]]) -> Tensor:
    """1 - H(p_mean) / log N, or its bound: the mean over banks, their calls, heads, writing and reading; from 0 to 1.

        with trace(model) as traces:
            loss = task_loss(model(x))
        loss = loss + 0.1 * utilisation_loss(traces)

    Raises:
        ValueError: no bank was traced.
    """
    losses = []
    for one in (one for calls in traces.values() for one in calls if isinstance(one, SparseTrace)):
        for usage in (one.write_usage, one.read_usage):
            if usage is not None and one.step.numel():
                most = usage.shape[0] * math.log(max(2, usage.shape[-1]))
                losses.append((1 - slot_entropy(usage).sum(0) / most).mean())
    if not losses:
        raise ValueError("no SparseDeltaBank was traced: run the model inside `with trace(model) as traces`")
    return torch.stack(losses).mean()
