"""Rows at different places of their chunks, or with padding among their tokens: laid out so that boundaries meet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def common_position(position: Tensor, valid: Tensor | None) -> int | None:
    """The position at which all rows stand; None where they differ or some tokens are no tokens."""
    if valid is not None and not bool(valid.all()):
        return None
    places = set(position.tolist())
    return places.pop() if len(places) == 1 else None


@dataclass
class Spans:
    """Where each row's tokens lie once rows are laid out by their places in a chunk; slot 0 is a chunk's start."""

    source: Tensor  # [B, L] the token at each slot; T where there is none
    slot: Tensor  # [B, T] the slot of each token; L where the token is not valid
    present: Tensor  # [B, L] True where there is a token
    ends: Tensor  # [B] the slot after each row's last token

    @classmethod
    def lay_out(cls, place: Tensor, valid: Tensor | None, tokens: int) -> Spans:
        """place: `[B]`, tokens in the open chunk; valid: `[B, tokens]` or None."""
        if valid is None:
            valid = torch.ones(len(place), tokens, dtype=torch.bool, device=place.device)
        ends = place + valid.sum(1)
        length = int(ends.max()) if len(ends) else 0
        slot = torch.where(valid, place[:, None] + valid.cumsum(1) - 1, length)
        source = torch.full((len(place), length + 1), tokens, dtype=torch.long, device=place.device)
        source.scatter_(1, slot, torch.arange(tokens, device=place.device).expand_as(slot))
        source = source[:, :length]
        return cls(source, slot, source < tokens, ends)

    def gather(self, x: Tensor) -> Tensor:
        """`[B, H, T, ...]` to `[B, H, L, ...]`, zeros where there is no token."""
        return _take(x, torch.where(self.present, self.source, x.shape[2]))

    def scatter(self, x: Tensor) -> Tensor:
        """`[B, H, L, ...]` back to `[B, H, T, ...]`, zeros at tokens that are not valid."""
        return _take(x, self.slot)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """`x[b, h, index[b, i], ...]`, zeros where the index is one past the end. x: `[B, H, T, ...]`, index: `[B, I]`."""
    x = torch.cat([x, torch.zeros_like(x[:, :, :1]) if x.shape[2] else x.new_zeros(*x.shape[:2], 1, *x.shape[3:])], 2)
    index = index[:, None].expand(-1, x.shape[1], -1)
    if x.dim() == 4:
        index = index[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, index)
