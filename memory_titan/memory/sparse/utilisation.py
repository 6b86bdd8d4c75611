"""How much of a bank is in use, and a loss on it.

A bank may write everything to the same few slots: nothing in a task's loss tells it of the others. What counts is the
MARGINAL use p_mean, over many tokens: its entropy is large when different tokens take different slots, and each single
token may still choose sharply.

Over all n * n slots, before the best m are taken, a token's distribution over slots is the product of its two
distributions over sub-keys. The mean of such products has the means p1 and p2 of these as its marginals, so that
H(p_mean) <= H(p1) + H(p2), with equality where the two halves are independent. The loss is taken on that bound,
1 - (H(p1) + H(p2)) / log N, which costs 2 n numbers and not n * n. It is 0 where all sub-keys are used alike, and at
most what the loss on the slots themselves would be: small, it does not prove that the pairs are used alike too.
`effective_slots` of `slot_usage`, from the addresses themselves, tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from memory_titan.memory.trace import Trace


@dataclass(frozen=True)
class SparseTrace(Trace):
    """One call of one `SparseDeltaBank`: a `Trace` (step is g, keep the mean over the slots written, momentum 0).

    Attributes:
        write_slots, read_slots: `[B, T, H, m]`, int64; anything at tokens that a mask excludes. read: None where
            nothing was read.
        write_weights, read_weights: `[B, T, H, m]`, of unit length; 0 at tokens that a mask excludes.
        write_marginals, read_marginals: `[2, H, n]`, the mean over tokens of their distributions over both tables of
            sub-keys, in the autograd graph.
    """

    write_slots: Tensor
    write_weights: Tensor
    write_marginals: Tensor
    read_slots: Tensor | None
    read_weights: Tensor | None
    read_marginals: Tensor | None


def sub_key_marginals(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean distribution over the sub-keys of both tables: logits `[2, B, H, T, n]` -> `[2, H, n]`.

    Args:
        logits: of `ProductKeys`.
        valid: `[B, T]`, bool; tokens that count.
    """
    chances = torch.softmax(logits, -1)
    if valid is None:
        return chances.mean((1, 3))
    counted = valid.to(chances.dtype)
    return torch.einsum("pbhtn,bt->phn", chances, counted) / counted.sum().clamp(min=1)


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


def effective_slots(usage: Tensor) -> Tensor:
    """exp(H(p_mean)) / N, the share of slots that are in use: `[..., N]` -> `[...]`, from 1 / N to 1.

    T tokens of m slots each cannot use more than T m of them.
    """
    return _entropy(usage).exp() / usage.shape[-1]


def utilisation_loss(traces: dict[str, list[Trace]]) -> Tensor:
    """1 - (H(p1) + H(p2)) / log N, the mean over banks, their calls, heads, writing and reading; from 0 to 1.

        with trace(model) as traces:
            loss = task_loss(model(x))
        loss = loss + 0.1 * utilisation_loss(traces)

    Raises:
        ValueError: no bank was traced.
    """
    losses = []
    for one in (one for calls in traces.values() for one in calls if isinstance(one, SparseTrace)):
        for marginals in (one.write_marginals, one.read_marginals):
            if marginals is not None and one.step.numel():
                most = 2 * math.log(marginals.shape[-1])
                losses.append((1 - _entropy(marginals).sum(0) / most if most else 0 * marginals.sum((0, 2))).mean())
    if not losses:
        raise ValueError("no SparseDeltaBank was traced: run the model inside `with trace(model) as traces`")
    return torch.stack(losses).mean()


def _entropy(p: Tensor) -> Tensor:
    """In nats, over the last dimension; 0 log 0 is 0, with a finite gradient."""
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(-1)
