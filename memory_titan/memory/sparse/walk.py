"""What the sparse bank does chunk after chunk: gather, solve, scatter, in one buffer; and the gradients of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def zeros(heads: int, slots: int, width: int, like: Tensor) -> Tensor:
    """`[heads, slots, width]` that on a CPU take memory, and time, only where something is written later."""
    if like.device.type != "cpu":
        return like.new_zeros(heads, slots, width)
    return torch.from_numpy(np.zeros((heads, slots, width), np.float64 if like.dtype == torch.float64 else np.float32))


def slot_rows(slots: Tensor, count: int) -> Tensor:
    """`[..., B * H, C, m]` slots of `count` a head to rows of all heads' slots together, `[..., B * H * C * m]`."""
    heads = torch.arange(slots.shape[-3], device=slots.device)[:, None, None] * count
    return (slots + heads).flatten(-3)


def weighted_sums(weights: Tensor, rows: Tensor) -> Tensor:
    """The weighted sum of every m rows: weights `[K, m]`, rows `[K * m, d]` -> `[K, d]`."""
    return torch.bmm(weights[:, None], rows.view(*weights.shape, rows.shape[-1]))[:, 0]


def walk(
    flat: Tensor,
    at: Tensor,
    ask_at: Tensor | None,
    G: Tensor,
    inverse: Tensor | None,
    look: Tensor | None,
    ask: Tensor | None,
    add: Tensor,
    keep: Tensor | None,
    kept: Tensor | None = None,
    kept_read: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Chunk after chunk, in place.

    Args:
        flat: `[B * H, N, d]`, M; becomes what it is after the last chunk.
        at, ask_at: `[chunks, B * H * C * m]`, the rows of all entries.
        G: `[chunks, B * H, C, d]`; with `inverse` already solved for.
        inverse: `[chunks, B * H, C, C]`, of the triangular system, times diag(b).
        look, ask, add, keep: `[chunks, B * H, C, m]`, see `Plan`.
        kept, kept_read: `[chunks, B * H * C * m, d]`, filled with the rows as they were before each chunk.

    Returns:
        U, look M and ask M, `[chunks, B * H, C, d]`.
    """
    chunks, heads, C, d = G.shape
    table = flat.view(-1, d)
    U = G if inverse is None else torch.empty_like(G)
    seen = None if look is None else torch.empty_like(G)
    asked = None if ask is None else torch.empty_like(G)
    for c in range(chunks):
        if ask is not None and asked is not None and ask_at is not None:
            rows = _gather(table, ask_at[c], kept_read, c)
            asked[c] = weighted_sums(ask[c].flatten(0, 1), rows).view(heads, C, d)
        if look is not None or keep is not None:
            rows = _gather(table, at[c], kept, c)
        if look is not None and seen is not None:
            seen[c] = weighted_sums(look[c].flatten(0, 1), rows).view(heads, C, d)
            if inverse is not None:
                torch.baddbmm(G[c], inverse[c], seen[c], alpha=-1, out=U[c])
        if keep is not None:  # all entries of one slot write the same
            table.index_copy_(0, at[c], rows * keep[c].view(-1, 1))
        table.index_add_(0, at[c], (add[c][..., None] * U[c][:, :, None]).view(-1, d))
    return U, seen, asked


def _gather(table: Tensor, at: Tensor, kept: Tensor | None, c: int) -> Tensor:
    if kept is None:
        return table.index_select(0, at)
    return torch.index_select(table, 0, at, out=kept[c])


class Walk(torch.autograd.Function):
    """`walk` with its gradients: nothing is as large as the content but one buffer each way."""

    @staticmethod
    def forward(
        ctx: Any,
        flat: Tensor | None,
        at: Tensor,
        ask_at: Tensor | None,
        G: Tensor,
        inverse: Tensor | None,
        look: Tensor | None,
        ask: Tensor | None,
        add: Tensor,
        keep: Tensor | None,
        first: Tensor | None,
        slots: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        new = zeros(G.shape[1], slots, G.shape[-1], G) if flat is None else flat.clone()
        kept = None if look is None and keep is None else G.new_empty(*at.shape, G.shape[-1])
        kept_read = None if ask_at is None else G.new_empty(*ask_at.shape, G.shape[-1])
        U, seen, asked = walk(new, at, ask_at, G, inverse, look, ask, add, keep, kept, kept_read)
        U = U.clone() if U is G else U
        ctx.save_for_backward(at, ask_at, inverse, look, ask, add, keep, first, kept, kept_read, U, seen)
        ctx.slots = slots
        return U, seen, asked, new

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dU_all: Tensor | None, dseen_all: Tensor | None, dasked: Tensor | None, dnew: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        at, ask_at, inverse, look, ask, add, keep, first, kept, kept_read, U, seen = ctx.saved_tensors
        chunks, heads, C, d = U.shape
        m = add.shape[-1]
        D_all = zeros(heads, ctx.slots, d, U) if dnew is None else dnew.clone(memory_format=torch.contiguous_format)
        D = D_all.view(-1, d)  # of M, as it stands after the chunk in hand
        dG = torch.empty_like(U)
        dinverse, dlook, dadd, dkeep = (_empty_like(x) for x in (inverse, look, add, keep))
        dask = _empty_like(None if dasked is None else ask)
        for c in reversed(range(chunks)):
            after = D.index_select(0, at[c])
            dU = weighted_sums(add[c].flatten(0, 1), after).view(heads, C, d)
            if dU_all is not None:
                dU += dU_all[c]
            dadd[c] = _dots(after, U[c], m)
            if keep is not None:
                products = (after * kept[c]).sum(-1).view(heads, C, m)
                dkeep[c] = torch.where(first[c], products, 0.0)  # a slot fades once, however many its entries
                D.index_copy_(0, at[c], after * keep[c].view(-1, 1))
            dG[c] = dU
            dseen = None if dseen_all is None else dseen_all[c]
            if inverse is not None:
                dinverse[c] = torch.bmm(dU, seen[c].mT).neg_()
                back = torch.bmm(inverse[c].mT, dU)
                dseen = -back if dseen is None else dseen - back
            if look is not None:
                if dseen is None:
                    dlook[c] = 0
                else:
                    dlook[c] = _dots(kept[c], dseen, m)
                    D.index_add_(0, at[c], (look[c][..., None] * dseen[:, :, None]).view(-1, d))
            if dasked is not None:
                dask[c] = _dots(kept_read[c], dasked[c], ask.shape[-1])
                D.index_add_(0, ask_at[c], (ask[c][..., None] * dasked[c][:, :, None]).view(-1, d))
        dflat = D_all if ctx.needs_input_grad[0] else None
        return dflat, None, None, dG, dinverse, dlook, dask, dadd, dkeep, None, None


def _empty_like(x: Tensor | None) -> Any:
    return None if x is None else torch.empty_like(x)


def _dots(rows: Tensor, of: Tensor, m: int) -> Tensor:
    """Each of m rows with its token: rows `[heads * C * m, d]`, of `[heads, C, d]` -> `[heads, C, m]`."""
    heads, C, d = of.shape
    return (rows.view(heads, C, m, d) * of[:, :, None]).sum(-1)
