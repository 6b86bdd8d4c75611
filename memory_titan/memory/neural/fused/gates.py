"""The gates of whole chunks multiplied up, for `node.py`: forward and backward by hand, in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memory_titan.memory.neural.rule import LOG_FLOOR

SMALL = 1e-30  # what decays below this is set to 0: beyond it lie the denormal numbers, on which CPUs are slow


class GateProducts(torch.autograd.Function):
    """`(log_keep, log_momentum or None)`, `[..., C]` -> `(b, G, f, M_end, m_end)`; without momentum three are None.

    b, f, M_end (m_C / m_i): `[..., C]`; G: `[..., C, C]`; m_end: `[...]`. Notation of `chunk.py`.
    """

    @staticmethod
    def forward(ctx: Any, keep: Tensor, eta: Tensor | None) -> Any:
        b, K = _running(keep)
        if eta is None:
            ctx.save_for_backward(keep, b, K)
            return b, K, None, None, None
        m, M = _running(eta)
        f = (K @ m[..., None])[..., 0]
        ctx.save_for_backward(keep, b, K, eta, m, M)
        return b, K @ M, f, M[..., -1, :].clone(), m[..., -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_b: Tensor, g_G: Tensor, g_f: Tensor, g_M_end: Tensor, g_m_end: Tensor) -> Any:
        keep, b, K, *momentum = ctx.saved_tensors
        if not momentum:
            return _running_backward(keep, b, K, g_b, g_G.clone()), None
        eta, m, M = momentum
        g_K = (g_G @ M.mT).add_(g_f[..., None] * m[..., None, :])
        g_M = K.mT @ g_G
        g_M[..., -1, :] += g_M_end
        g_m = (g_f[..., None, :] @ K)[..., 0, :]
        g_m[..., -1] += g_m_end
        return _running_backward(keep, b, K, g_b, g_K), _running_backward(eta, m, M, g_m, g_M)


def _masks(x: Tensor) -> tuple[Tensor, Tensor]:
    """Ones on and below the diagonal; ones below it."""
    lower = torch.ones(x.shape[-1:] * 2, dtype=x.dtype, device=x.device).tril()
    return lower, lower.tril(-1)


def _running(log_gate: Tensor) -> tuple[Tensor, Tensor]:
    """Products of a chunk's gates: `[..., C]` over j <= t, `[..., C, C]` over i < j <= t at [t, i] and 0 above it.

    As a product with ones, each sum of logs is made of its own terms: the difference of two running sums would lose a
    large gate's digits after a shut one has put -60 into both.
    """
    log_gate = log_gate.clamp(min=LOG_FLOOR)
    lower, strict = _masks(log_gate)
    products = ((lower * log_gate[..., None, :]) @ strict).exp_()
    torch.hardshrink(products, SMALL, out=products)
    return torch.nn.functional.hardshrink(log_gate.cumsum(-1).exp_(), SMALL), products.mul_(lower)


def _running_backward(log_gate: Tensor, run: Tensor, products: Tensor, g_run: Tensor, g_products: Tensor) -> Tensor:
    """Gradient at `log_gate`; overwrites `g_products`."""
    lower, strict = _masks(run)
    terms = g_products.mul_(products) @ strict.mT  # [t, j]: of all products that end at t and hold gate j
    g = (g_run * run).flip(-1).cumsum(-1).flip(-1).add_(terms.mul_(lower).sum(-2))
    return g.mul_(log_gate >= LOG_FLOOR)
