"""Gates between 0 and 1."""

from __future__ import annotations

import torch
from torch import Tensor


def opening(raw: Tensor, hard: bool, margin: float = 0.1) -> Tensor:
    """A sigmoid; a hard one is stretched by a margin on both sides and cut, so that it reaches 0 and 1."""
    if not hard:
        return torch.sigmoid(raw)
    return ((1 + 2 * margin) * torch.sigmoid(raw) - margin).clamp(0, 1)
