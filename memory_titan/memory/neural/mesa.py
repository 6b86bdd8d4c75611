"""Mesa: the exact solution where all others take a step (von Oswald et al., arXiv 2309.05858; MesaNet, 2506.05233).

A matrix memory whose weights are, after every token, the least-squares solution over all that was read,

    W_t = argmin_W  sum_{i<=t} (a_{i+1} ... a_t) theta_i |k_i W - v_i|^2 + ridge |W|^2 = (H_t + ridge)^{-1} G_t
    H_t = a_t H_{t-1} + theta_t k_t^T k_t                 G_t = a_t G_{t-1} + theta_t k_t^T v_t

An oracle: d^3 a token. The state holds G as weights and H as momentum.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memory_titan.memory.neural.coefficients import products
from memory_titan.memory.neural.rule import LOG_FLOOR, FastWeights, Gates, safe_norm
from memory_titan.memory.surprise import Surprise

CHUNK = 16  # tokens at a time; no part of the function


def mesa_memory(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: FastWeights,
    ridge: float,
    *,
    valid: Tensor | None = None,
    surprise: bool = False,
) -> tuple[Tensor | None, Surprise | None, FastWeights]:
    """As `chunk_memory`. surprise: before the write; the gradient's norm is that of half the loss."""
    step, log_keep = gates.step, gates.log_keep.clamp(min=LOG_FLOOR)
    if valid is not None:
        step, log_keep = step * valid[:, None], log_keep * valid[:, None]
    G, H = state.weights[0], state.momentum[0]
    outputs, reports = [v[:, :, :0]], [Surprise(*[step[:, :, :0]] * 3)]
    for begin in range(0, k.shape[2], CHUNK):
        part = slice(begin, min(k.shape[2], begin + CHUNK))
        x, y, theta = k[:, :, part], v[:, :, part], step[:, :, part]
        b, L = log_keep[:, :, part].cumsum(-1).exp(), products(log_keep[:, :, part])
        share = L * theta[..., None, :]  # [t, i]: how much token i counts at t
        Hs = b[..., None, None] * H[:, :, None] + torch.einsum("bhti,bhic,bhid->bhtcd", share, x, x)
        Gs = b[..., None, None] * G[:, :, None] + torch.einsum("bhti,bhic,bhid->bhtcd", share, x, y)
        if q is not None:
            outputs.append(_answer(q[:, :, part], Hs, Gs, ridge))
        if surprise:
            before_H, before_G = (torch.cat([a[:, :, None], at[:, :, :-1]], 2) for a, at in ((H, Hs), (G, Gs)))
            error = _answer(x, before_H, before_G, ridge) - y
            norm = safe_norm(error) * safe_norm(x)
            reports.append(Surprise(error.square().sum(-1), norm, theta * norm))
        H, G = Hs[:, :, -1], Gs[:, :, -1]
    out = None if q is None else torch.cat(outputs, 2)
    told = Surprise(*(torch.cat(r, 2) for r in zip(*reports, strict=True))) if surprise else None
    if valid is not None:
        there = valid[:, None]
        out = None if out is None else torch.where(there[..., None], out, 0.0)
        told = None if told is None else Surprise(*(r * there for r in told))
    return out, told, replace(state, weights=(G,), momentum=(H,))


def read_mesa(q: Tensor, state: FastWeights, ridge: float) -> Tensor:
    """What the memory answers to q as it stands. q: `[B, H, T, d]`."""
    return q @ torch.cholesky_solve(state.weights[0], _factor(state.momentum[0], ridge))


def _factor(H: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of H + ridge. It would read one triangle only, and gradients go to both."""
    A = (H + H.mT) / 2 + ridge * torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
    factor, failed = torch.linalg.cholesky_ex(A)  # what is too large is the caller's to refuse, row by row
    return torch.where(failed[..., None, None] == 0, factor, torch.nan)


def naive_mesa(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates, weights: Tensor, momentum: Tensor, ridge: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Token by token, through the inverse of H + ridge, brought up to date by a general solver at every token."""
    G, H, outputs = weights, momentum, [v[:, :, :0]]
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    for t in range(k.shape[2]):
        part = slice(t, t + 1)
        keep, theta = gates.log_keep[:, :, t, None, None].exp(), gates.step[:, :, t, None, None]
        H = keep * H + theta * k[:, :, part].mT @ k[:, :, part]
        G = keep * G + theta * k[:, :, part].mT @ v[:, :, part]
        outputs.append(q[:, :, part] @ torch.linalg.inv(H + ridge * eye) @ G)
    return torch.cat(outputs, 2), G, H


def _answer(x: Tensor, H: Tensor, G: Tensor, ridge: float) -> Tensor:
    """x_t (H_t + ridge)^{-1} G_t. x: `[B, H, c, d]`; H: `[B, H, c, d, d]`; G: `[B, H, c, d, d_v]`."""
    solved = torch.cholesky_solve(x[..., None], _factor(H, ridge))
    return (solved.mT @ G)[..., 0, :]
