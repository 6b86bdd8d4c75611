"""Product keys (Lample et al. 2019, arXiv 1907.05242): the best of n * n slots, by looking at 2 n sub-keys.

A slot is a pair of sub-keys, and its score the sum of theirs, s1[i] + s2[j]. The m best sums are among the m best of s1
and the m best of s2; more than that, the pair of the a-th and the b-th best has at least a * b - 1 others at or above
it, so that pairs with a * b > m need not be looked at. The choice is exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from memory_titan.memory.convolution import unit
from memory_titan.memory.sparse.config import QueryNormKind
from memory_titan.memory.sparse.naive import Address

EPS = 1e-5
MOMENTUM = 0.1  # of the running statistics, as torch's BatchNorm has it


class ProductKeys(nn.Module):
    """Sub-keys of `slots = side * side` slots a head, and how sharply a query chooses.

    Args:
        heads: H.
        width: d of a query; its halves ask one table each.
        side: n, sub-keys a table.
        sharpness: at the start.
    """

    def __init__(self, heads: int, width: int, side: int, sharpness: float) -> None:
        super().__init__()
        # Of about unit length: the score of a query with unit variance then has unit variance too.
        self.keys = nn.Parameter(torch.randn(2, heads, side, width // 2) / math.sqrt(width // 2))
        self.log_sharpness = nn.Parameter(torch.full((heads,), math.log(sharpness)))

    def forward(self, query: Tensor) -> Tensor:
        """The logits of both tables for queries `[B, H, T, d]`: `[2, B, H, T, n]`, scores times sharpness."""
        halves = query.unflatten(-1, (2, -1)) * self.log_sharpness.to(query.dtype).exp()[:, None, None, None]
        return torch.stack([halves[..., i, :] @ self.keys[i].to(query.dtype).mT for i in range(2)])


def choose(logits: Tensor, count: int) -> Address:
    """The `count` best slots; their weights are the softmax of their logits, put to unit length.

    Args:
        logits: `[2, B, H, T, n]`.
        count: m, at most n * n.

    Returns:
        slots `[B, H, T, m]`, best first; slot i * n + j is the pair (i, j).
    """
    side = logits.shape[-1]
    best, at = _best(logits, min(count, side))
    first, second = _pairs(count, best.shape[-1], logits.device)
    top, which = (best[0][..., first] + best[1][..., second]).topk(count, -1)
    slots = at[0].gather(-1, first[which]) * side + at[1].gather(-1, second[which])
    return Address(slots, unit(torch.softmax(top, -1)))


def _best(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`x.topk(count, -1)`. Many long rows on a CPU go by numpy's partition: half the time."""
    length = x.shape[-1]
    if x.device.type != "cpu" or length <= 64 or length <= 2 * count or x.numel() < 1 << 16:
        return x.topk(count, -1)
    rows = x.detach().reshape(-1, length)
    least = torch.from_numpy(np.partition(rows.numpy(), length - count, axis=1)[:, length - count].copy())
    at = (rows >= least[:, None]).view(-1).nonzero()[:, 0]
    if at.shape[0] != rows.shape[0] * count:  # ties, or NaN
        return x.topk(count, -1)
    at = (at % length).view(*x.shape[:-1], count)
    best, order = x.gather(-1, at).sort(-1, descending=True)
    return best, at.gather(-1, order)


def _pairs(count: int, ranks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ranks (a, b), from 0, that may be among the best `count`."""
    grid = torch.arange(1, ranks + 1, device=device)
    first, second = (grid[:, None] * grid <= count).nonzero().unbind(1)
    return first, second


class QueryNorm(nn.Module):
    """What keeps queries that point the same way from all choosing the same few slots.

    "batch": every channel of every head to mean 0 and variance 1 over the valid tokens of the call, in training; by
    running statistics when evaluated, and then tokens do not know of each other. No scale and no shift are learned:
    sub-keys and sharpness do that. Processes do not share their statistics. "unit": both halves to mean square 1.

    Args:
        kind: see above, or "none".
        heads, width: of queries `[B, H, T, d]`.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, kind: QueryNormKind, heads: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "batch":
            self.register_buffer("mean", torch.zeros(heads, width))
            self.register_buffer("variance", torch.ones(heads, width))

    def forward(self, query: Tensor, valid: Tensor | None, running: bool = False) -> Tensor:
        """`[B, H, T, d]` to the same; `valid` `[B, T]`, bool; `running`: by what was seen, also in training."""
        if self.kind == "none":
            return query
        if self.kind == "unit":
            halves = query.unflatten(-1, (2, -1))
            return (unit(halves) * math.sqrt(halves.shape[-1])).flatten(-2)
        mean, variance = self.mean.to(query.dtype), self.variance.to(query.dtype)
        if self.training and not running:
            tokens = query.transpose(1, 2).flatten(0, 1) if valid is None else query.transpose(1, 2)[valid]
            if tokens.shape[0] > 1:  # [tokens, H, d]; one alone has no variance
                variance, mean = torch.var_mean(tokens, 0, correction=0)
                with torch.no_grad():
                    unbiased = variance * tokens.shape[0] / (tokens.shape[0] - 1)
                    if bool((mean + unbiased).isfinite().all()):  # a call that is refused for its size leaves no trace
                        self.mean.lerp_(mean.to(self.mean.dtype), MOMENTUM)
                        self.variance.lerp_(unbiased.to(self.variance.dtype), MOMENTUM)
        return (query - mean[:, None]) * (variance[:, None] + EPS).rsqrt()
