"""Retention: what holds a memory to what it was (MIRAS, the third of four choices).

What is written goes into an accumulator A, linearly; the weights that answer are a function of it:

    none, fixed, scalar, channel   W = A                                 decay a = 1; one a head; a token; a channel
    lq                             W = A / max(1, |A|_q)^(q-2)           Moneta, q = 4
    kl                             W = sqrt(n) softmax(A)                Memora; over the n inputs of each output
    norm                           W = A, and after each chunk every column gets back the length it began with    LaCT

Of `lq`, `kl` and `norm` the function (for lq: the size) is taken at a chunk's start. MIRAS states |A|_q without the
maximum; then what decays grows (at q = 4, W = A/|A|^2), without bound once nothing is written any more.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Retention = Literal["none", "fixed", "scalar", "channel", "lq", "kl", "norm"]


def size_factor(retention: Retention, accumulated: Tensor, q: float) -> Tensor | None:
    """The factor `[B, H, 1, 1]` that turns A `[B, H, in, out]` into W for lq; None where W is A."""
    if retention != "lq":
        return None
    # Half a power of a sum of squares: no root of zero, whose gradient is infinite.
    # Over the largest entry, or the power overflows where A does not: a factor of 0 then, and 0 * inf behind it.
    top = accumulated.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1.0)
    size = (accumulated / top).abs().pow(q).sum((-2, -1), keepdim=True)
    return torch.maximum(size, top.pow(-q)).pow((2 - q) / q) * top.pow(2 - q)


def answering(retention: Retention, accumulated: Tensor, q: float) -> Tensor:
    """The weights W that answer, from A; both `[B, H, in, out]`."""
    if retention == "kl":
        return torch.softmax(accumulated, -2) * accumulated.shape[-2] ** 0.5
    factor = size_factor(retention, accumulated, q)
    return accumulated if factor is None else accumulated * factor


def at_boundary(retention: Retention, accumulated: Tensor, before: Tensor) -> Tensor:
    """What a chunk's end does to A, given A at the chunk's start."""
    if retention != "norm":
        return accumulated
    length = before.square().sum(-2, keepdim=True)
    now = accumulated.square().sum(-2, keepdim=True)
    return accumulated * (length / now.clamp(min=1e-30)).sqrt()
