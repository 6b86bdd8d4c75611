"""The sparse bank fast: a chunk of tokens at a time, and of the content only the rows that they touch.

With `plan.py`, and U the chunk's additions u_t, G_t = g_t v_t and b_t = g_t e_t,

    (I + diag(b) P) U = G - diag(b) (look M)      y = ask M + R U      M_i <- keep_i M_i + sum_t add_t[i] u_t

(for "erase" and "add", U = G). The plans of all chunks are made at once, and so are the inverses of the triangular
systems; what goes on one after the other (`walk.py`) is gathering, scattering and one product a chunk, in one buffer
that is updated in place. The chunk's length is no part of the function. The backward pass goes through the chunks the
other way, on one buffer of gradients, with the rows as they were kept before each chunk. It cannot be differentiated
again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memory_titan.memory.sparse.config import WriteKind
from memory_titan.memory.sparse.naive import Address, SlotGates
from memory_titan.memory.sparse.plan import Plan, make_plan
from memory_titan.memory.sparse.walk import Walk, slot_rows, walk, weighted_sums, zeros
from memory_titan.memory.surprise import Surprise


def chunk_bank(
    write: Address,
    read: Address | None,
    v: Tensor,
    gates: SlotGates,
    content: Tensor | None,
    *,
    slots: int,
    rule: WriteKind = "delta",
    chunk_size: int = 32,
    surprise: bool = False,
    inplace: bool = False,
) -> tuple[Tensor | None, Surprise | None, Tensor]:
    """`naive_bank`, fast.

    Args:
        write, read: see `Address`; read None: nothing is read.
        v: `[B, H, T, d]`.
        gates: see `SlotGates`.
        content: `[B, H, N, d]`, M at the start; None: zeros. Copied once, unless `inplace`.
        slots: N.
        rule: which equation (3) of `naive.py`.
        chunk_size: tokens done at a time.
        surprise: whether it is wanted.
        inplace: write into `content` itself. Without gradients only.

    Returns:
        `(y, surprise, content)`, y `[B, H, T, d]` or None.

    Raises:
        RuntimeError: on differentiating the gradients again.
    """
    B, H, T, d = v.shape
    g, e, w = gates.write, gates.erase if rule != "add" else None, write.weights
    held = None if gates.decay is None else 1 - gates.decay[..., None] * w
    looked = w if held is None else w * held
    looked_if = looked if surprise or (rule == "delta" and e is not None) else None
    b = None if e is None else g * e
    factor = held
    if rule == "erase" and b is not None:
        erased = 1 - b[..., None] * w
        factor = erased if held is None else held * erased
        b = None
    values = g[..., None] * v
    flat = None if content is None else content.contiguous().view(B * H, slots, d)
    if not torch.is_grad_enabled():
        flat = zeros(B * H, slots, d, v) if flat is None else flat if inplace else flat.clone()
    if T == 1 and flat is not None and not torch.is_grad_enabled():
        y, r, u = _token(write, read, values, b, looked_if, factor, flat)
    else:
        y, r, u, flat = _chunks(write, read, values, b, looked_if, factor, flat, slots, chunk_size)
    told = None
    if surprise:
        assert r is not None
        error = v - r
        told = Surprise(error.square().sum(-1), error.norm(dim=-1), u.norm(dim=-1))
    return y, told, flat.view(B, H, slots, d)


def read_bank(read: Address, content: Tensor) -> Tensor:
    """What stands at `read`, (4): `[B, H, T, d]` of content `[B, H, N, d]`, as it is."""
    B, H, T, m = read.weights.shape
    rows = slot_rows(read.slots.view(B * H, T, m), content.shape[2])
    found = content.reshape(-1, content.shape[-1]).index_select(0, rows)
    return weighted_sums(read.weights.reshape(-1, m), found).view(B, H, T, content.shape[3])


def _token(
    write: Address,
    read: Address | None,
    values: Tensor,
    b: Tensor | None,
    looked: Tensor | None,
    factor: Tensor | None,
    flat: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """One token a row, into `flat` `[B * H, N, d]`: y, r, u."""
    B, H, _, m = write.weights.shape
    d, N, table = values.shape[-1], flat.shape[1], flat.view(-1, flat.shape[2])
    at = slot_rows(write.slots.view(B * H, 1, m), N)
    rows, r, u = table.index_select(0, at), None, values
    if looked is not None:
        r = weighted_sums(looked.view(-1, m), rows).view(B, H, 1, d)
    if b is not None and r is not None:
        u = values - b[..., None] * r
    rows = rows if factor is None else rows * factor.reshape(-1, 1)
    table.index_copy_(0, at, rows + (write.weights[..., None] * u[..., None, :]).view(-1, d))
    y = None if read is None else read_bank(read, flat.view(B, H, N, d))
    return y, r, u


def _chunks(
    write: Address,
    read: Address | None,
    values: Tensor,
    b: Tensor | None,
    looked: Tensor | None,
    factor: Tensor | None,
    flat: Tensor | None,
    slots: int,
    chunk_size: int,
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """y, r, u and the new content `[B * H, N, d]`; without gradients it is `flat`, updated."""
    B, H, T, d = values.shape
    count = max(1, -(-T // chunk_size))
    C = max(1, -(-T // count))

    def split(x: Tensor | None, fill: float | Tensor = 0.0) -> Any:
        """`[B, H, T, ...]` to `[chunks, B * H, C, ...]`, the last chunk filled up with what does nothing."""
        if x is None:
            return None
        x = x.reshape(B * H, T, *x.shape[3:])
        if count * C > T:
            filling = torch.as_tensor(fill, dtype=x.dtype, device=x.device)
            x = torch.cat([x, filling.expand(B * H, count * C - T, *x.shape[2:])], 1)
        return x.view(B * H, count, C, *x.shape[2:]).transpose(0, 1).contiguous()

    def join(x: Tensor | None) -> Any:
        return None if x is None else x.transpose(0, 1).reshape(B, H, count * C, d)[:, :, :T]

    at, G = split(write.slots, torch.arange(write.slots.shape[-1])), split(values)
    ask_at, rho = (None, None) if read is None else (split(read.slots), split(read.weights))
    plan = _plan(at, split(write.weights), split(looked), split(factor, 1.0), ask_at, rho)
    inverse = None
    if b is not None and plan.P is not None:
        b, eye = split(b), torch.eye(C, dtype=values.dtype, device=values.device)
        system = eye + b[..., None] * plan.P
        inverse = torch.linalg.solve_triangular(system, eye.expand_as(system), upper=False, unitriangular=True)
        G, inverse = inverse @ G, inverse * b[:, :, None]
    places = slot_rows(at, slots), None if ask_at is None else slot_rows(ask_at, slots)
    given = *places, G, inverse, plan.look, plan.ask, plan.add, plan.keep
    if flat is None or torch.is_grad_enabled():
        U, r, y, flat = Walk.apply(flat, *given, plan.first, slots)
    else:
        U, r, y = walk(flat, *given)
    if y is not None:
        y = y + plan.R @ U
    if r is not None:
        r = r + plan.P @ U
    return join(y), join(r), join(U), flat


def _plan(
    at: Tensor, w: Tensor, looked: Tensor | None, factor: Tensor | None, ask_at: Tensor | None, rho: Tensor | None
) -> Plan:
    """`make_plan` of `[chunks, B * H, C, ...]`; what comes back is `[chunks, B * H, C, ...]` too."""
    chunks, heads = at.shape[:2]

    def flat(x: Tensor | None) -> Any:
        return None if x is None else x.flatten(0, 1)

    plan = make_plan(flat(at), flat(w), flat(looked), flat(factor), flat(ask_at), flat(rho))
    parts: dict[str, Any] = {
        name: None if x is None else x.view(chunks, heads, *x.shape[1:]) for name, x in vars(plan).items()
    }
    return Plan(**parts)
