"""The sparse bank token by token: its meaning. Plain, dense and slow; `chunk.py` is the same function, fast.

For one head, with content M in R^(N x d), a write address w and a read address rho (both of unit length and 0 but for a
few slots), value v, and gates g (write), e (erase) and lambda (decay), all from 0 to 1:

    a_t = 1 - lambda_t w_t         only slots that are written fade           (1)
    r_t = w_t^T diag(a_t) M_{t-1}  what stands there                         (2)
    M_t = diag(a_t) M_{t-1} + w_t (g_t v_t - g_t e_t r_t)^T                  (3)  write="delta"
    M_t = diag(1 - g_t e_t w_t) diag(a_t) M_{t-1} + g_t w_t v_t^T            (3)  write="erase"
    M_t = diag(a_t) M_{t-1} + g_t w_t v_t^T                                  (3)  write="add"
    y_t = rho_t^T M_t                                                        (4)  after the token's own write

As |w| = |rho| = 1, (3) "delta" with g = e = 1 and then (4) with rho = w gives back v, whatever stood there before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memory_titan.memory.sparse.config import WriteKind
from memory_titan.memory.surprise import Surprise


class Address(NamedTuple):
    """Where tokens write or read.

    slots: `[B, H, T, m]`, int64; the m slots of a token differ from each other.
    weights: `[B, H, T, m]`, of unit length a token.
    """

    slots: Tensor
    weights: Tensor


class SlotGates(NamedTuple):
    """Gates of tokens, `[B, H, T]`, from 0 to 1. At `write = decay = 0` a token changes nothing.

    write: g.
    erase: e, how much of what is read is taken back; None: nothing.
    decay: lambda; None: nothing fades.
    """

    write: Tensor
    erase: Tensor | None
    decay: Tensor | None


def naive_bank(
    write: Address, read: Address, v: Tensor, gates: SlotGates, content: Tensor, *, rule: WriteKind = "delta"
) -> tuple[Tensor, Surprise, Tensor]:
    """Write v at `write` and read at `read`, one token after the other.

    Args:
        write, read: see `Address`.
        v: `[B, H, T, d]`.
        gates: see `SlotGates`.
        content: `[B, H, N, d]`, M at the start.
        rule: which (3).

    Returns:
        `(y, surprise, content)`: `[B, H, T, d]`; see `Surprise`, `[B, H, T]` each, of r by (2) and before (3), `write`
        being the length of what is added along w; M as it stands after the last token.
    """
    M = content
    outputs, reports = [v[:, :, :0]], [[gates.write[:, :, :0]] for _ in Surprise._fields]
    for t in range(v.shape[2]):
        w, rho = (_dense(address, t, M.shape[2]) for address in (write, read))  # [B, H, N]
        g = gates.write[:, :, t, None]
        e = torch.zeros_like(g) if gates.erase is None else gates.erase[:, :, t, None]
        fade = torch.zeros_like(g) if gates.decay is None else gates.decay[:, :, t, None]
        value = v[:, :, t]
        M = (1 - fade * w)[..., None] * M  # (1)
        r = (w[..., None] * M).sum(2)  # (2)
        if rule == "delta":
            u = g * value - g * e * r
        else:
            u = g * value
        if rule == "erase":
            M = (1 - g * e * w)[..., None] * M
        M = M + w[..., None] * u[:, :, None]  # (3)
        outputs.append((rho[..., None] * M).sum(2)[:, :, None])  # (4)
        error = value - r
        told = error.square().sum(-1), error.norm(dim=-1), u.norm(dim=-1)
        for report, number in zip(reports, told, strict=True):
            report.append(number[..., None])
    return torch.cat(outputs, 2), Surprise(*(torch.cat(report, 2) for report in reports)), M


def _dense(address: Address, t: int, slots: int) -> Tensor:
    """One token's weights over all slots, `[B, H, N]`."""
    chosen, weights = address.slots[:, :, t], address.weights[:, :, t]
    return weights.new_zeros(*weights.shape[:2], slots).scatter(2, chosen, weights)
