"""Slots, a chunk at a time: the same as `naive.py`, in matrix products.

What makes it parallel: whether a token's key is known is judged by the slots at the chunk's start and by the chunk's
keys before it, which does not wait for what those wrote. So the chunk's tokens know at once which new slots they take;
with these every cosine, and with the cosines every address. Contents are then a linear recurrence with decays a slot,

    M_t = diag(a_t) M_{t-1} + w_t u_t^T,    u_t = g_t v_t - g_t e_t r_t,    r_t = w_t^T diag(a_t) M_{t-1}

whose u solve one triangular system, as in gated DeltaNet (arXiv 2412.06464):

    (I + diag(g e) P) U = diag(g) V - diag(g e) (W . A) M_0,   P[t, j] = sum_i w_ti w_ji A_ti / A_ji   for j < t

The w have few slots, so P takes a gather and not a `[C, C, N]`. Ratios of A are exp of a difference of sums of
logarithms, never quotients.
"""

from __future__ import annotations

import math
from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor

from memory_titan.memory.slots.addressing import address, allocate, familiar, in_chunk_cosines
from memory_titan.memory.slots.rule import TOUCH, SlotGates, SlotReport, SlotRule, SlotState, length


def chunk_slots(
    q: Tensor, k: Tensor, v: Tensor, gates: SlotGates, state: SlotState, rule: SlotRule, *, valid: Tensor | None = None
) -> tuple[Tensor, SlotReport, SlotState]:
    """As `naive_slots`, except that with `valid` each row's valid tokens must stand before all others.

    Args:
        q, k: `[B, H, T, d]`, of length 1.
        v: `[B, H, T, d]`.
        gates: `[B, H, T]` each.
        state: before the first token.
        rule: the policies.
        valid: `[B, T]`, bool, True first; None: all count.

    Returns:
        `(y, report, state)`, y `[B, H, T, d]`.
    """
    C, T = rule.config.chunk_size, q.shape[2]
    if T == 0:
        return v, _nothing(v, rule), state
    places = state.tokens % C
    first = int(places[0]) if len(places) else 0
    if valid is None and bool((places == first).all()):
        parts = []
        for begin in range(0, T, C) if first == 0 else [0, *range(C - first, T, C)]:
            end = min(T, C - first if begin < C - first else begin + C)
            place = (first + begin) % C
            part = slice(begin, end)
            piece = gates.map(itemgetter((..., part)))
            y, told, state = _stretch(
                q[:, :, begin:end], k[:, :, begin:end], v[:, :, begin:end], piece, state, rule, place, None
            )
            if place + end - begin == C:
                state = _close(state, rule)
            parts.append((y, told))
        return (
            torch.cat([y for y, _ in parts], 2),
            SlotReport(*(torch.cat(x, 2) for x in zip(*(told for _, told in parts), strict=True))),
            state,
        )
    return _on_a_grid(q, k, v, gates, state, rule, valid, places)


def _on_a_grid(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: SlotGates,
    state: SlotState,
    rule: SlotRule,
    valid: Tensor | None,
    places: Tensor,
) -> tuple[Tensor, SlotReport, SlotState]:
    """Rows stand at different places in their chunks: lay each at its own, so that chunks begin together."""
    C, T = rule.config.chunk_size, q.shape[2]
    count = torch.full_like(places, T) if valid is None else valid.sum(1)
    ends = places + count
    cells = max(1, -(-int(ends.max()) // C)) * C
    source = torch.arange(cells, device=q.device) - places[:, None]  # [B, cells], the token at each cell
    present = (source >= 0) & (source < count[:, None])
    source = source.clamp(0, T - 1)

    def lay(x: Tensor) -> Tensor:
        index = source[:, None].expand(-1, x.shape[1], -1)
        return x.gather(2, index if x.dim() == 3 else index[..., None].expand(-1, -1, -1, x.shape[3]))

    q, k, v = lay(q), lay(k), lay(v)
    gates = gates.map(lay)
    parts = []
    for begin in range(0, cells, C):
        piece = slice(begin, begin + C)
        opened = gates.map(itemgetter((..., piece)))
        y, told, state = _stretch(
            q[:, :, piece], k[:, :, piece], v[:, :, piece], opened, state, rule, 0, present[:, piece]
        )
        closed, still = _close(state, rule).tensors(), state.tensors()
        full = ends >= begin + C
        state = SlotState(
            **{name: torch.where(full.view(-1, *[1] * (x.dim() - 1)), closed[name], x) for name, x in still.items()}
        )
        parts.append((y, told))
    back = (places[:, None] + torch.arange(T, device=q.device)).clamp(max=cells - 1)

    def collect(x: Tensor) -> Tensor:
        index = back[:, None].expand(-1, x.shape[1], -1)
        y = x.gather(2, index if x.dim() == 3 else index[..., None].expand(-1, -1, -1, x.shape[3]))
        mask = (torch.arange(T, device=q.device) < count[:, None])[:, None]
        return torch.where(mask if y.dim() == 3 else mask[..., None], y, torch.zeros_like(y))

    y = collect(torch.cat([y for y, _ in parts], 2))
    told = SlotReport(*(collect(torch.cat(x, 2)) for x in zip(*(told for _, told in parts), strict=True)))
    return y, told, state


def _nothing(v: Tensor, rule: SlotRule) -> SlotReport:
    """The report on no tokens, v `[B, H, 0, d]`."""
    flat, k = v[..., 0], rule.config.top_k
    new = 1 if rule.config.allocation in ("lru", "none") else k
    write, read = (v.new_zeros(*flat.shape, width) for width in (k + new, k))
    return SlotReport(flat, flat, flat, flat, write.long(), write, read.long(), read, flat, flat)


def _close(state: SlotState, rule: SlotRule) -> SlotState:
    """The chunk is complete: what is stale is looked at anew."""
    return replace(
        state,
        start_keys=state.keys,
        start_usage=state.usage,
        order=(state.usage if rule.config.by_usage else state.last).argsort(dim=-1, stable=True),
        taken=torch.zeros_like(state.taken),
        open_keys=torch.zeros_like(state.open_keys),
        open_gates=torch.zeros_like(state.open_gates),
    )


def _stretch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: SlotGates,
    state: SlotState,
    rule: SlotRule,
    place: int,
    present: Tensor | None,
) -> tuple[Tensor, SlotReport, SlotState]:
    """Tokens of one chunk, from `place` in it; `present` `[B, c]`: which cells hold a token."""
    config, c = rule.config, q.shape[2]
    there = None if present is None else present[:, None].to(k.dtype)  # [B, 1, c]
    g = gates.write if there is None else gates.write * there
    own = k if there is None else k * there[..., None]
    pad = (0, 0, place, config.chunk_size - place - c)
    open_keys = state.open_keys + torch.nn.functional.pad(own, pad)
    open_gates = state.open_gates + torch.nn.functional.pad(g, pad[2:])

    # which are known, which are new, and the slots that the new ones take
    s = familiar(k, open_keys, open_gates, state, rule, place)
    n = g * (1 - s)
    counts = torch.cat([state.taken[..., None], n], -1).cumsum(-1)
    new_slots, new_weights = allocate(counts[..., :-1], state, rule)
    take = n[..., None] * new_weights  # [B, H, c, A]
    blank = state.usage.new_zeros(*take.shape[:3], config.slots)
    taking = blank.scatter_add(-1, new_slots, take)
    left = _log(taking).cumsum(-2)  # what is left of a slot's old key since the stretch's start
    before = torch.nn.functional.pad(left[..., :-1, :], (0, 0, 1, 0))

    # addresses
    cosines = in_chunk_cosines(k, k, before, left, state.keys, new_slots, take, diagonal=-1)
    p, slots = address(cosines, (state.strength[..., None, :] > 0) | (before < 0), rule.sharpness[0], config.top_k)
    cosines = in_chunk_cosines(q, k, left, left, state.keys, new_slots, take, diagonal=0)
    alive = (state.strength[..., None, :] > 0) | (left < 0)
    rho, found = address(cosines, alive, rule.sharpness[1], config.top_k)
    if there is not None:
        rho = rho * there[..., None]
    at = torch.cat([slots, new_slots], -1)  # [B, H, c, E]
    weights = torch.cat([s[..., None] * p, (1 - s)[..., None] * new_weights], -1)
    W = blank.scatter_add(-1, at, weights)
    gW = g[..., None] * W

    # what each token leaves of each slot's content
    leaves = _log(taking)
    if gates.decay is not None:
        decay = torch.sigmoid(gates.decay[..., None] + rule.slot_decay[:, None])
        if config.decay == "written":
            leaves = leaves + _log(decay * gW)
        else:
            leaves = leaves + (_log(decay) if there is None else _log(decay) * there[..., None])
    read_leaves = leaves
    if config.write == "erase":
        leaves = leaves + _log(gW * gates.erase[..., None])
    A = leaves.cumsum(-2)
    A_read = A - leaves + read_leaves  # as a token finds it where it is about to write

    # u: what each token writes
    old = (W * A_read.exp()) @ state.content
    P = _overlap(at, weights, A_read, W, A, diagonal=-1)
    u = g[..., None] * v
    if config.write == "delta":
        amount = (g * gates.erase)[..., None]
        system = amount * P
        u = torch.linalg.solve_triangular(system, u - amount * old, upper=False, unitriangular=True)
    r = old + P @ u
    R = _overlap(found, rho, A, W, A, diagonal=0)
    Rho = blank.scatter_add(-1, found, rho)
    y = (Rho * A.exp()) @ state.content + R @ u

    rest = A[..., -1:, :]
    content = rest.exp().mT * state.content + (W * (rest - A).exp()).mT @ u
    rest = left[..., -1:, :]
    keys = rest.exp().mT * state.keys + (taking * (rest - left).exp()).mT @ k
    strength = 1 - (1 - state.strength) * rest[..., 0, :].exp()

    number = torch.arange(c, device=q.device) if present is None else (present.cumsum(1) - 1)[:, None, :, None]
    number = number[:, None] if present is None else number
    now = state.tokens[:, None, None, None] + number  # [B, 1, c, 1]
    used = 1 - (1 - gW.clamp(max=1)) * (1 - Rho * cosines.clamp(0, 1))
    stays = _log(used) + (1 if there is None else there[..., None]) * math.log(config.usage_decay)
    total = stays.cumsum(-2)
    usage = total[..., -1, :].exp() * state.usage + (used * (total[..., -1:, :] - total).exp()).sum(-2)
    last = torch.where(used > TOUCH, now, -1).amax(-2)
    born = torch.where(taking > 0.5, now, -1).amax(-2)
    keep = 1 - g * gates.erase
    told = SlotReport(
        (v - r).square().sum(-1),
        length(W) * length(v - r),
        length(W) * length(u),
        n,
        at,
        torch.cat([(g * s)[..., None] * p, take], -1),
        found,
        rho,
        g,
        keep,
    )
    count = c if present is None else present.sum(1)
    return (
        y,
        told,
        replace(
            state,
            keys=keys,
            content=content,
            strength=strength,
            usage=usage,
            last=torch.maximum(last, state.last),
            born=torch.maximum(born, state.born),
            taken=counts[..., -1],
            open_keys=open_keys,
            open_gates=open_gates,
            tokens=state.tokens + count,
        ),
    )


def _log(part: Tensor) -> Tensor:
    """log(1 - part), part 0 to 1. Of a part of 1 the dtype's epsilon is left, with the derivative that 1 has."""
    left = 1 - part
    return (left + (torch.finfo(part.dtype).eps - left.detach()).clamp(min=0)).log()


def _overlap(at: Tensor, weights: Tensor, left: Tensor, W: Tensor, since: Tensor, diagonal: int) -> Tensor:
    """`[B, H, c, c]`: sum over the slots i in at[t] of weights[t, i] W[j, i] exp(left[t, i] - since[j, i]), j up to t.

    Args:
        at, weights: `[B, H, c, E]`.
        left, since, W: `[B, H, c, N]`.
        diagonal: 0: with j = t; -1: without.
    """
    c, E = at.shape[2:]
    # [B, H, c * E, c]: for each slot that a token t addresses, every token j
    rows = at.flatten(2)[..., None].expand(-1, -1, -1, c)
    W_at, since_at = W.mT.gather(2, rows).unflatten(2, (c, E)), since.mT.gather(2, rows).unflatten(2, (c, E))
    left_at = left.gather(-1, at)
    earlier = torch.ones(c, c, dtype=torch.bool, device=at.device).tril(diagonal)[:, None]  # [t, 1, j]
    ratio = torch.where(earlier, left_at[..., None] - since_at, -torch.inf).exp()
    return torch.einsum("bhte,bhtej->bhtj", weights, W_at * ratio)
