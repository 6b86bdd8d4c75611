"""Padding put aside: each row's valid tokens moved together in front, and what comes of them put back."""

from __future__ import annotations

import torch
from torch import Tensor


class Packing:
    """Where the valid tokens of a batch stand. What is computed causally over the packed tokens knows of no padding.

        packing = Packing(mask)
        y = packing.unpack(causal(packing.pack(x)))

    Args:
        mask: `[B, T]`, bool.

    Attributes:
        count: `[B]`, int64, valid tokens of each row.
        valid: `[B, T]`, bool, of the packed tokens: the first `count` of each row.
    """

    def __init__(self, mask: Tensor) -> None:
        self.order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
        self.slot = torch.argsort(self.order, dim=1)
        self.count, self.valid = mask.sum(1), mask.gather(1, self.order)

    def pack(self, x: Tensor) -> Tensor:
        """x `[B, T, ...]` with the valid tokens of each row in front, in their order, and 0 behind them."""
        return self._valid_only(x.gather(1, self._wide(self.order, x).expand_as(x)))

    def unpack(self, y: Tensor) -> Tensor:
        """y `[B, T, ...]` of packed tokens, each back where it stood; 0 at padding."""
        return self._valid_only(y).gather(1, self._wide(self.slot, y).expand_as(y))

    def _valid_only(self, x: Tensor) -> Tensor:
        return torch.where(self._wide(self.valid, x), x, torch.zeros((), dtype=x.dtype, device=x.device))

    def _wide(self, of_tokens: Tensor, x: Tensor) -> Tensor:
        return of_tokens[(..., *[None] * (x.dim() - 2))]
