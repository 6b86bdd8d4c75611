"""Slots, token by token: what a bank means. `chunk.py` computes the same, fast.

Of one head, with N slots, each a key K_i and a content M_i, the token's q, k (of length 1), v and gates g, e:

    f   = max(max_i K0_i . k, max_{j before t in the chunk} g_j k_j . k, 0)         familiar? K0: at the chunk's start
    s   = sigmoid(slope (f - cosine)),   n = g (1 - s)                               known, or new by n
    a   = the stalest slot that the chunk's writes have not yet taken                 (`allocation`)
    p   = softmax over the k largest K_i . k                                          top-k addressing
    w   = s p + (1 - s) a                                                             where the write goes
    K_a = (1 - n) K_a + n k,   M_a = (1 - n) M_a                                      a slot is taken
    M_i = (1 - lambda_i g w_i) M_i                                                    decay, where written
    r   = sum_i w_i M_i,   M_i = M_i + w_i (g v - g e r)                              delta write
    y   = sum_i rho_i M_i,   rho = softmax over the k largest K_i . q                 read, after the write

Cosine addressing, several heads, gates, erasure, age and usage are the slot memory's of the NTM line (Graves et al.,
arXiv 1410.5401; Santoro et al. 1605.06065, least recently used; Graves et al. 2016, allocation); the delta write is
DeltaNet's (2102.11174).
"""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.memory.slots.rule import TOUCH, SlotGates, SlotReport, SlotRule, SlotState, length


def naive_slots(
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
    """Write and read every token in turn.

    Args:
        q, k: `[B, H, T, d]`, of length 1.
        v: `[B, H, T, d]`.
        gates: `[B, H, T]` each.
        state: before the first token.
        rule: the policies.
        valid: `[B, T]`, bool: tokens at False do nothing, and read 0. None: all count.
        report: whether it is wanted.

    Returns:
        `(y, report, state)`, y `[B, H, T, d]`; the report is None where it is not wanted.
    """
    rows = []
    for b in range(q.shape[0]):
        there = range(q.shape[2]) if valid is None else valid[b].nonzero()[:, 0].tolist()
        one = state.select([b])
        outs = {}
        for t in there:
            token = gates.map(itemgetter((slice(b, b + 1), slice(None), t)))
            outs[t] = _step(q[b : b + 1, :, t], k[b : b + 1, :, t], v[b : b + 1, :, t], token, one, rule)
            one = outs[t][2]
        rows.append((outs, one))
    blank = None
    for outs, _ in rows:
        for y, told, _ in outs.values():
            blank = blank or (torch.zeros_like(y), SlotReport(*map(torch.zeros_like, told)))
    assert blank is not None, "no token counts"
    y = torch.cat([torch.stack([outs.get(t, blank)[0] for t in range(q.shape[2])], 2) for outs, _ in rows])
    parts = [[outs.get(t, (None, blank[1]))[1] for t in range(q.shape[2])] for outs, _ in rows]
    every = SlotReport(
        *(
            torch.cat([torch.stack([told[i] for told in row], 2) for row in parts])
            for i in range(len(SlotReport._fields))
        )
    )
    finals = [one for _, one in rows]
    tensors = {name: torch.cat([one.tensors()[name] for one in finals]) for name in state.tensors()}
    return y, every if report else None, SlotState(**tensors)


def _step(
    q: Tensor, k: Tensor, v: Tensor, gates: SlotGates, state: SlotState, rule: SlotRule
) -> tuple[Tensor, SlotReport, SlotState]:
    """One token of one row: q, k, v `[1, H, d]`, gates `[1, H]`."""
    config, g, e = rule.config, gates.write, gates.erase
    position, K = int(state.tokens) % config.chunk_size, config.top_k
    write_sharpness, read_sharpness = rule.sharpness

    known = torch.einsum("bhnd,bhd->bhn", state.start_keys, k).amax(-1)
    said = (torch.einsum("bhcd,bhd->bhc", state.open_keys, k) * state.open_gates)[..., :position]
    known = torch.maximum(known, said.amax(-1)) if position else known
    s = torch.ones_like(g)
    if config.allocation != "none":
        slope, threshold = rule.familiarity
        s = torch.sigmoid(slope * (F.relu(known) - threshold))
    n = g * (1 - s)
    new_slots, new_weights = _allocate(state, rule)
    a = torch.zeros_like(state.usage).scatter_add(-1, new_slots, new_weights)

    p, slots = _address(k, state.keys, state.strength, write_sharpness, K)
    w = torch.zeros_like(a).scatter_add(-1, slots, s[..., None] * p) + (1 - s)[..., None] * a

    take = n[..., None] * a
    keys = (1 - take)[..., None] * state.keys + take[..., None] * k[:, :, None]
    content = (1 - take)[..., None] * state.content
    strength = (1 - take) * state.strength + take

    gw = g[..., None] * w
    if gates.decay is not None:
        decay = torch.sigmoid(gates.decay[..., None] + rule.slot_decay)
        content = (1 - decay * (gw if config.decay == "written" else 1.0))[..., None] * content
    r = torch.einsum("bhn,bhnd->bhd", w, content)
    u = g[..., None] * v
    if config.write == "delta":
        u = u - (g * e)[..., None] * r
    elif config.write == "erase":
        content = (1 - gw * e[..., None])[..., None] * content
    content = content + w[..., None] * u[:, :, None]

    rho, found = _address(q, keys, strength, read_sharpness, K)
    read = torch.zeros_like(a).scatter_add(-1, found, rho)
    y = torch.einsum("bhn,bhnd->bhd", read, content)

    cosine = torch.einsum("bhnd,bhd->bhn", keys, q).clamp(0, 1)
    used = 1 - (1 - gw.clamp(max=1)) * (1 - read * cosine)
    usage = config.usage_decay * (1 - used) * state.usage + used
    now = state.tokens[:, None, None]
    report = SlotReport(
        (v - r).square().sum(-1),
        length(w) * length(v - r),
        length(w) * length(u),
        n,
        torch.cat([slots, new_slots], -1),
        torch.cat([(g * s)[..., None] * p, n[..., None] * new_weights], -1),
        found,
        rho,
        g,
        1 - g * e,
    )
    here = F.one_hot(torch.tensor(position), config.chunk_size).to(k.dtype)
    state = replace(
        state,
        keys=keys,
        content=content,
        strength=strength,
        usage=usage,
        last=torch.where(used > TOUCH, now, state.last),
        born=torch.where(take > 0.5, now, state.born),
        taken=state.taken + n,
        open_keys=state.open_keys + here[:, None] * k[:, :, None],
        open_gates=state.open_gates + here * g[..., None],
        tokens=state.tokens + 1,
    )
    if position + 1 < config.chunk_size:
        return y, report, state
    stale = (state.usage if config.by_usage else state.last).argsort(dim=-1, stable=True)
    return (
        y,
        report,
        replace(
            state,
            start_keys=state.keys,
            start_usage=state.usage,
            order=stale,
            taken=torch.zeros_like(state.taken),
            open_keys=torch.zeros_like(state.open_keys),
            open_gates=torch.zeros_like(state.open_gates),
        ),
    )


def _address(x: Tensor, keys: Tensor, strength: Tensor, sharpness: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Weights and slots `[1, H, k]` of the k slots nearest to x `[1, H, d]`, of those that were ever taken."""
    cosines = torch.einsum("bhnd,bhd->bhn", keys, x).masked_fill(strength == 0, -torch.inf)
    best, slots = cosines.topk(k, -1)
    there = best > -torch.inf
    weights = torch.softmax(torch.where(there, sharpness[:, None] * torch.where(there, best, 0.0), -1e9), -1)
    return torch.where(there, weights, 0.0), slots


def _allocate(state: SlotState, rule: SlotRule) -> tuple[Tensor, Tensor]:
    """The next slots to be taken, `[1, H, A]`, and how much each gets, of 1."""
    config, N = rule.config, rule.config.slots
    if config.allocation in ("lru", "none"):
        slots = state.order.gather(-1, ((state.taken + 0.5).floor().long() % N)[..., None])
        return slots, torch.ones_like(slots, dtype=state.usage.dtype)
    if config.allocation == "gumbel":
        if rule.noise:
            raise NotImplementedError("the reference draws no noise")
        rank = (state.taken + 0.5).floor().long()[..., None] + torch.arange(config.top_k)
        slots = state.order.gather(-1, rank % N)
        soft = torch.softmax(-state.start_usage.gather(-1, slots) / config.gumbel_temperature, -1)
        hard = torch.zeros_like(soft)
        hard[..., 0] = 1.0  # the order is that of usage: the first is the stalest
        return slots, hard + soft - soft.detach()
    rank = state.taken.floor().long()[..., None] + torch.arange(config.top_k)
    slots = state.order.gather(-1, rank % N)
    used = state.start_usage.gather(-1, slots)
    used = 1 - (1 - used) * (1 - (state.taken[..., None] - rank).clamp(0, 1))
    before = torch.cat([torch.ones_like(used[..., :1]), used.cumprod(-1)[..., :-1]], -1)
    return slots, (1 - used) * before
