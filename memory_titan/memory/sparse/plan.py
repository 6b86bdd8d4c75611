"""What tokens of a chunk have to do with each other: all of it follows from addresses and gates, not from the content.

An entry is one slot of one token's write address. Sorted by slot and time, the entries of one slot are a run; within
it every later entry meets the earlier ones, and only such pairs are looked at: few where slots are well used, and at
most half of m C^2 a chunk. With A_t[i] the decay of slot i from the chunk's start to t, z = w times the token's own
decay before it looks (equation (2) of `naive.py`), and M the content at the chunk's start,

    r_t = sum_i z_t[i] A_{t-1}[i] M_i + sum_{j<t}  P[t,j] u_j     P[t,j] = sum_i z_t[i]   (A_{t-1}[i] / A_j[i]) w_j[i]
    y_t = sum_i rho_t[i] A_t[i] M_i   + sum_{j<=t} R[t,j] u_j     R[t,j] = sum_i rho_t[i] (A_t[i] / A_j[i]) w_j[i]
    M_i <- A_C[i] M_i + sum_j (A_C[i] / A_j[i]) w_j[i] u_j

Ratios are exponentials of differences of summed logarithms, in float64 as the sums are long; never quotients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Logarithm of the least factor: one that is 0 counts as 1e-20. Its gradient is 0.
LOG_FLOOR = -46.0


@dataclass(frozen=True)
class Plan:
    """Of G chunks with C tokens each. What is None was not asked for, or is not needed.

    Attributes:
        look: `[G, C, m]`, z A_{t-1} of every entry.
        ask: `[G, C, r]`, rho A_t of every slot read.
        add: `[G, C, m]`, (A_C / A_j) w of every entry.
        keep: `[G, C, m]`, A_C of every entry's slot; None: 1.
        first: `[G, C, m]`, bool, whether the entry is the first of its slot.
        P, R: `[G, C, C]`.
    """

    look: Tensor | None
    ask: Tensor | None
    add: Tensor
    keep: Tensor | None
    first: Tensor | None
    P: Tensor | None
    R: Tensor | None


def make_plan(
    slots: Tensor,
    weights: Tensor,
    looked: Tensor | None,
    factor: Tensor | None,
    read_slots: Tensor | None,
    read_weights: Tensor | None,
) -> Plan:
    """Of chunks that are independent of each other here.

    Args:
        slots, weights: `[G, C, m]`, write addresses.
        looked: `[G, C, m]`, z; None: r is not wanted.
        factor: `[G, C, m]`, what a token leaves of the slots that it writes, A_t / A_{t-1}; None: 1.
        read_slots, read_weights: `[G, C, r]`, or None.
    """
    G, C, m = slots.shape
    device = slots.device
    time = torch.arange(C, device=device)[:, None]
    code, order = (slots * C + time).view(G, C * m).sort(1)
    slot = torch.div(code, C, rounding_mode="floor")
    token = (code - slot * C).view(-1)
    opens = torch.ones_like(slot, dtype=torch.bool)
    opens[:, 1:] = slot[:, 1:] != slot[:, :-1]
    begins = opens.view(-1).nonzero()[:, 0]  # of the runs, places in all G * C * m entries
    run = opens.view(-1).cumsum(0) - 1
    start = begins[run]

    def sort(x: Tensor) -> Tensor:
        return x.reshape(G, C * m).gather(1, order).view(-1)

    def unsort(x: Tensor) -> Tensor:
        return torch.zeros_like(x).view(G, C * m).scatter(1, order, x.view(G, C * m)).view(G, C, m)

    w = sort(weights)
    before = upto = torch.empty(0)
    keep = first = None
    look, add = looked, weights
    if factor is not None:
        log = sort(factor.clamp(min=math.exp(LOG_FLOOR)).log()).double()
        upto = log.view(G, C * m).cumsum(1).view(-1)
        before = upto - log
        at_start = before[start]
        end = torch.cat([begins[1:], begins.new_tensor([G * C * m])])[run] - 1

        def decayed(x: Tensor, exponent: Tensor) -> Tensor:
            return x * exponent.to(x.dtype).exp()

        look = None if looked is None else unsort(decayed(sort(looked), before - at_start))
        add = unsort(decayed(w, upto[end] - upto))
        keep = unsort(decayed(torch.ones_like(w), upto[end] - at_start))
        first = unsort(opens)

    P = R = ask = None
    if looked is not None:
        place = torch.arange(G * C * m, device=device)
        later, earlier = _pairs(start, place - start)
        value = sort(looked)[later] * w[earlier]
        if factor is not None:
            value = decayed(value, before[later] - upto[earlier])
        P = _matrix(value, later // (C * m) * C + token[later], token[earlier], G, C)
    if read_slots is not None and read_weights is not None:
        r = read_slots.shape[-1]
        asked = (read_slots * C).view(G, C * r)
        group = torch.arange(G, device=device)[:, None] * (C * m)
        begin = (torch.searchsorted(code, asked) + group).view(-1)
        past = (torch.searchsorted(code, asked + time.expand(C, r).reshape(-1), right=True) + group).view(-1)
        later, earlier = _pairs(begin, past - begin)
        rho = read_weights.reshape(-1)
        value, ask = rho[later] * w[earlier], read_weights
        if factor is not None:
            # The last entry up to the read; where there is none, nothing has faded.
            last = (past - 1).clamp(min=0)
            value = decayed(value, upto[last][later] - upto[earlier])
            fade = torch.where(past > begin, upto[last] - before[begin.clamp(max=G * C * m - 1)], 0.0)
            ask = decayed(rho, fade).view(G, C, r)
        R = _matrix(value, later // r, token[earlier], G, C)
    return Plan(look, ask, add, keep, first, P, R)


def _pairs(begin: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """(i, begin[i]), ..., (i, begin[i] + count[i] - 1) for every i."""
    place = torch.arange(count.shape[0], device=count.device)
    later = place.repeat_interleave(count)
    within = torch.arange(later.shape[0], device=count.device) - (count.cumsum(0) - count)[later]
    return later, begin[later] + within


def _matrix(value: Tensor, row: Tensor, column: Tensor, G: int, C: int) -> Tensor:
    """The sums of values by row (of all G * C) and column, `[G, C, C]`."""
    return value.new_zeros(G * C * C).index_add(0, row * C + column, value).view(G, C, C)
