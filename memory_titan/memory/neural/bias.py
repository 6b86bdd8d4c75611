"""Attentional bias: the loss by which a memory learns that v belongs to k (MIRAS, the second of four choices).

With y = M(k), and summed over the components of y:

    dot     -y v                                  gradient  -v            linear attention: write, whatever is there
    l2      (y - v)^2                             y - v                   the delta rule, TTT, Titans
    lp      ((y - v)^2 + eps)^(p/2)               (y - v) ((y - v)^2 + eps)^(p/2 - 1)               Moneta, p = 3
    huber   (y - v)^2 up to |y - v| = delta,      clamp(y - v, -delta, delta)                       Yaad
            then 2 delta |y - v| - delta^2

Gradients are given up to the constant (2, p, 2) that the step takes over. MIRAS smooths l_p by replacing sign and
absolute value; here the loss itself is smooth and the gradient is truly its gradient. The Huber loss is
taken by component, which makes its gradient continuous, with a threshold for every token.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Bias = Literal["dot", "l2", "lp", "huber"]
SMOOTHING = 1e-6


def bias_loss(bias: Bias, y: Tensor, v: Tensor, p: float = 3.0, threshold: Tensor | None = None) -> Tensor:
    """The loss of each token. y, v: `[..., T, d_v]`; threshold (huber): `[..., T]`. Returns `[..., T]`."""
    if bias == "dot":
        return -(y * v).sum(-1)
    x = y - v
    if bias == "l2":
        return x.square().sum(-1)
    if bias == "lp":
        return ((x.square() + SMOOTHING).pow(p / 2) - SMOOTHING ** (p / 2)).sum(-1)
    delta = _column(threshold)
    return torch.where(x.abs() <= delta, x.square(), delta * (2 * x.abs() - delta)).sum(-1)


def bias_gradient(bias: Bias, y: Tensor, v: Tensor, p: float = 3.0, threshold: Tensor | None = None) -> Tensor:
    """The loss's gradient at y, over 2 (l2, huber) or p (lp). Shapes as in `bias_loss`; returns `[..., T, d_v]`."""
    if bias == "dot":
        return -v
    x = y - v
    if bias == "l2":
        return x
    if bias == "lp":
        return x * (x.square() + SMOOTHING).pow(p / 2 - 1)
    delta = _column(threshold)
    return torch.maximum(torch.minimum(x, delta), -delta)


def loss_over_gradient(bias: Bias, p: float = 3.0) -> float:
    """The constant between the loss's true gradient and `bias_gradient`."""
    return {"dot": 1.0, "l2": 2.0, "lp": p, "huber": 2.0}[bias]


def _column(threshold: Tensor | None) -> Tensor:
    if threshold is None:
        raise ValueError("the Huber loss needs a threshold for every token")
    return threshold[..., None]
