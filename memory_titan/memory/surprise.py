"""Surprise: what a memory did not expect, a token."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Surprise(NamedTuple):
    """How unexpected each token was just before it was written; all `[B, H, T]`.

    loss: the attentional bias; for l2, `|M(k) - v|^2`.
    gradient: the norm of its gradient over all weights (for l2, of half the loss), the step not counted.
    write: the norm of what the token's own loss adds to the weights by its own step; with windows or Muon that is not
        all that it moves.
    """

    loss: Tensor
    gradient: Tensor
    write: Tensor
