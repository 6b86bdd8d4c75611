"""Slots, a chunk at a time: the same as `naive.py`, in matrix products.

What makes it parallel: whether a token's key is known is judged by the slots at the chunk's start and by the chunk's
keys before it, which does not wait for what those wrote. So the chunk's tokens know at once which new slots they take;
with these every cosine, and with the cosines every address. Contents are then a linear recurrence with decays a slot,

    M_t = diag(a_t) M_{t-1} + w_t u_t^T,    u_t = g_t v_t - g_t e_t r_t,    r_t = w_t^T diag(a_t) M_{t-1}

whose u solve one triangular system, as in gated DeltaNet (arXiv 2412.06464):

    (I + diag(g e) P) U = diag(g) V - diag(g e) (W . A) M_0,   P[t, j] = sum_i w_ti w_ji A_ti / A_ji   for j < t

A falls within the chunk. As long as 1 / A is a number all along, A_ti / A_ji is a product of two factors, and P one
matrix product; so are the cosines, what is read, and what is left at the end. Where it does not (a slot that is emptied
over and over), ratios are exp of a difference of sums of logarithms, gathered for the few slots of each w (`_overlap`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as padded

from memory_titan.memory.slots.addressing import address, allocate, as_found, divides, familiar, in_chunk_cosines
from memory_titan.memory.slots.rule import TOUCH, SlotGates, SlotReport, SlotRule, SlotState, length


def chunk_slots(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: SlotGates,
    state: SlotState,
    rule: SlotRule,
    *,
    valid: Tensor | None = None,
    report: bool = True,
) -> tuple[Tensor, SlotReport | None, SlotState]:
    """As `naive_slots`, except that with `valid` each row's valid tokens must stand before all others.

    Args:
        q, k: `[B, H, T, d]`, of length 1.
        v: `[B, H, T, d]`.
        gates: `[B, H, T]` each.
        state: before the first token.
        rule: the policies.
        valid: `[B, T]`, bool, True first; None: all count.
        report: whether it is wanted.

    Returns:
        `(y, report, state)`, y `[B, H, T, d]`; the report is None where it is not wanted.
    """
    C, T = rule.config.chunk_size, q.shape[2]
    if T == 0:
        return v, _nothing(v, rule) if report else None, state
    places = state.tokens % C
    first = int(places[0]) if len(places) else 0
    if valid is not None or not bool((places == first).all()):
        return _on_a_grid(q, k, v, gates, state, rule, valid, places, report)
    sizes = [min(T, C - first)]
    sizes += [min(C, T - begin) for begin in range(sizes[0], T, C)]
    parts = []
    for q_part, k_part, v_part, piece in _cut((q, k, v), gates, sizes):
        y, told, state = _stretch(q_part, k_part, v_part, piece, state, rule, first, None, report)
        first += q_part.shape[2]
        if first == C:
            first, state = 0, _close(state, rule)
        parts.append((y, told))
    return *_joined(parts), state


def _cut(tensors: tuple[Tensor, ...], gates: SlotGates, sizes: list[int]) -> Iterator[tuple[Any, ...]]:
    """Pieces of so many tokens. Split, not sliced: what goes back through a slice is as long as the whole."""
    split = gates.map(lambda gate: gate.split(sizes, 2))
    for at, parts in enumerate(zip(*(x.split(sizes, 2) for x in tensors), strict=True)):
        yield *parts, split.map(itemgetter(at))


def _joined(parts: list[tuple[Tensor, SlotReport | None]]) -> tuple[Tensor, SlotReport | None]:
    y = torch.cat([y for y, _ in parts], 2)
    told = [told for _, told in parts if told is not None]
    return y, SlotReport(*(torch.cat(x, 2) for x in zip(*told, strict=True))) if told else None


def _on_a_grid(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: SlotGates,
    state: SlotState,
    rule: SlotRule,
    valid: Tensor | None,
    places: Tensor,
    report: bool,
) -> tuple[Tensor, SlotReport | None, SlotState]:
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
    for begin, (q_part, k_part, v_part, piece) in zip(
        range(0, cells, C), _cut((q, k, v), gates, [C] * (cells // C)), strict=True
    ):
        here = present[:, begin : begin + C]
        y, told, state = _stretch(q_part, k_part, v_part, piece, state, rule, 0, here, report)
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

    y, told = _joined(parts)
    return collect(y), None if told is None else SlotReport(*map(collect, told)), state


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
    report: bool,
) -> tuple[Tensor, SlotReport | None, SlotState]:
    """Tokens of one chunk, from `place` in it; `present` `[B, c]`: which cells hold a token."""
    config, c = rule.config, q.shape[2]
    there = None if present is None else present[:, None].to(k.dtype)  # [B, 1, c]
    g = gates.write if there is None else gates.write * there
    own = k if there is None else k * there[..., None]
    pad = (0, 0, place, config.chunk_size - place - c)
    open_keys, open_gates = padded(own, pad), padded(g, pad[2:])
    if place or present is not None:  # else the chunk begins here
        open_keys, open_gates = state.open_keys + open_keys, state.open_gates + open_gates

    # both are looked for: where to write k, as slots stand before it is written, and q, as they stand after
    both = torch.cat([k, q], 2)  # [B, H, 2 c, d]
    at_slots, at_chunk = both @ state.keys.mT, both @ k.mT
    told_before = at_slots[:, :, :c] if state.start_keys is state.keys else k @ state.start_keys.mT
    told_within = at_chunk[:, :, :c] if own is k and c == config.chunk_size else k @ open_keys.mT

    # which are known, which are new, and the slots that the new ones take
    s = familiar(told_before, told_within * open_gates[..., None, :], rule, place)
    n = g * (1 - s)
    counts = padded(n.cumsum(-1), (1, 0)) + state.taken[..., None]
    new_slots, new_weights = allocate(counts[..., :-1], state, rule)
    take = n[..., None] * new_weights  # [B, H, c, A]
    blank = state.usage.new_zeros(*take.shape[:3], config.slots)
    taking = blank.scatter_add(-1, new_slots, take)
    gone = _log(taking)
    left = gone.cumsum(-2)  # what is left of a slot's old key since the stretch's start

    # addresses
    cosines, since = in_chunk_cosines(at_slots, at_chunk, left, taking, new_slots, take)
    alive = (state.strength[..., None, :] > 0) | as_found(left.detach(), 0.0).lt(0)
    sharpness = rule.sharpness.mT[..., None].expand(-1, -1, c).flatten(1)
    likely, nearest = address(cosines, alive, sharpness, config.top_k)
    (p, rho), (slots, found) = likely.split(c, 2), nearest.split(c, 2)
    if there is not None:
        rho = rho * there[..., None]
    at = torch.cat([slots, new_slots], -1)  # [B, H, c, E]
    weights = torch.cat([s[..., None] * p, (1 - s)[..., None] * new_weights], -1)
    W, Rho = blank.scatter_add(-1, at, weights), blank.scatter_add(-1, found, rho)
    gW = g[..., None] * W

    # what each token leaves of each slot's content
    leaves = gone
    if gates.decay is not None:
        decay = torch.sigmoid(gates.decay[..., None] + rule.slot_decay[:, None])
        if config.decay == "written":
            leaves = leaves + _log(decay * gW)
        else:
            leaves = leaves + (_log(decay) if there is None else _log(decay) * there[..., None])
    A_read = A = leaves.cumsum(-2)  # A_read: as a token finds it where it is about to write
    if config.write == "erase":
        erased = _log(gW * gates.erase[..., None])
        A = A + erased.cumsum(-2)
        A_read = A - erased

    # u: what each token writes
    share = A.exp()
    shares = torch.cat([W * (share if A_read is A else A_read.exp()), Rho * share], 2)
    old, kept = (shares @ state.content).split(c, 2)
    inverse = W * (-A).exp() if divides(A) else None  # the derivative of W / share would be infinite
    if inverse is None:
        P, R = (
            _overlap(at, weights, A_read, W, A, diagonal=-1),
            _overlap(found, rho, A, W, A, diagonal=0),
        )
    else:
        P, R = (shares @ inverse.mT).split(c, 2)
        P, R = P.tril(-1), R.tril()
    u = g[..., None] * v
    if config.write == "delta":
        amount = (g * gates.erase)[..., None]
        u = u - amount * old
        if c > 1:
            u = torch.linalg.solve_triangular(amount * P, u, upper=False, unitriangular=True)
    y = kept + R @ u

    rest = A[..., -1:, :]
    if inverse is None:
        content = rest.exp().mT * state.content + (W * (rest - A).exp()).mT @ u
    else:
        content = rest.exp().mT * (state.content + inverse.mT @ u)
    rest = left[..., -1:, :]
    if since is None:
        keys = rest.exp().mT * state.keys + (taking * (rest - left).exp()).mT @ k
    else:
        keys = rest.exp().mT * (state.keys + since.mT @ k)
    strength = 1 - (1 - state.strength) * rest[..., 0, :].exp()

    unused = (1 - gW.clamp(max=1)) * (1 - Rho * cosines[:, :, c:].clamp(0, 1))
    fade = config.usage_decay if there is None else (config.usage_decay**there)[..., None]
    stays = (unused * fade).flip(-2).cumprod(-2)
    usage = stays[..., -1, :] * state.usage + (1 - unused[..., -1, :])
    if c > 1:
        usage = usage + ((1 - unused[..., :-1, :]).flip(-2) * stays[..., :-1, :]).sum(-2)
    count = c if present is None else present.sum(1)
    number = torch.arange(c, device=q.device)[:, None] if present is None else _number(present)
    new = replace(
        state,
        keys=keys,
        content=content,
        strength=strength,
        usage=usage,
        last=_latest(unused.detach() < 1 - TOUCH, number, state.tokens, state.last),
        born=_latest(taking.detach() > 0.5, number, state.tokens, state.born),
        taken=counts[..., -1],
        open_keys=open_keys,
        open_gates=open_gates,
        tokens=state.tokens + count,
    )
    if not report:
        return y, None, new
    r = old + P @ u
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
        1 - g * gates.erase,
    )
    return y, told, new


def _number(present: Tensor) -> Tensor:
    """`[B, 1, c, 1]`: which of the row's tokens each cell of `present` `[B, c]` holds."""
    return (present.cumsum(1) - 1)[:, None, :, None]


def _latest(when: Tensor, number: Tensor, tokens: Tensor, before: Tensor) -> Tensor:
    """`[B, H, N]`, the number in the stream of the last token at which `when` `[B, H, c, N]` holds; else `before`."""
    at = torch.where(when, number, -1).amax(-2)
    return torch.where(at < 0, before, tokens[:, None, None] + at)


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
