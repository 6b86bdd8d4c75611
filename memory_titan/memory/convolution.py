"""The short causal convolution over what keys, values and queries are made of, and their length."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def causal_convolution(projected: Tensor, conv: nn.Conv1d) -> Tensor:
    """`[B, taps - 1 + T, n]` -> `[B, T, n]`, in float32 or float64 as `projected` is."""
    if projected.shape[1] < conv.kernel_size[0]:  # no token at all: nothing but the tail
        return projected[:, :0]
    # Tap by tap: a third of the time of a grouped conv1d on a CPU, and no transposing.
    weight, taps = conv.weight.to(projected.dtype)[:, 0], conv.kernel_size[0]
    tokens = projected.shape[1] - taps + 1
    y = projected[:, taps - 1 :] * weight[:, -1]
    if conv.bias is not None:
        y = y + conv.bias.to(projected.dtype)
    for tap in range(taps - 1):
        y = torch.addcmul(y, projected[:, tap : tap + tokens], weight[:, tap])
    return y


@torch.no_grad()
def start_as_induction(conv: nn.Conv1d, qkv: nn.Linear | None, context: int) -> None:
    """A value is written under the token `context` before it, and asked for as it was written.

    So a memory answers, where training starts, with what came after the last place like this one, as an induction head
    does. A tenth of the taps' random start stays.

    Args:
        conv: over q, k, v, side by side; `[3 * dim]` channels.
        qkv: the projection before it, of which k's becomes q's; None: the caller's own.
        context: tokens, less than the taps.
    """
    taps, dim = conv.weight[:, 0], conv.weight.shape[0] // 3
    taps.mul_(0.1)
    if conv.bias is not None:
        conv.bias.zero_()
    for part, back in enumerate((0, context, 0)):
        taps[part * dim : (part + 1) * dim, -1 - back] += 1.0
    if qkv is not None:
        qkv.weight[dim : 2 * dim] = qkv.weight[:dim]


def checked_context(context: int | None, conv_size: int) -> int | None:
    """What a configuration's `context` comes to: its default, 1, is 0 or None where there is no such tap.

    Raises:
        ValueError: there is no such tap.
    """
    if context == 1 and conv_size < 2:
        return 0 if conv_size else None
    if context is not None and not 0 <= context < conv_size:
        raise ValueError(f"context must be less than conv_size={conv_size}, or None; got {context}")
    return context


def unit(x: Tensor) -> Tensor:
    """x over its length, along the last dimension; 0 stays 0.

    A key without history can be exactly 0. `torch.nn.functional.normalize` gives it a gradient of 1e12 there; here it
    passes through as it is.
    """
    length = x.norm(dim=-1, keepdim=True)
    return x / torch.where(length > 1e-12, length, 1.0)
