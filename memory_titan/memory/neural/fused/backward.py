"""One chunk of `node.py`, backwards: `forward_chunk` line by line from its end. g_x is the outer loss's gradient at x.

For a product with a weighed sum of states, u = b (x W) + f (x S), and for an update W -= x^T diag(w) d alike, the
gradient of the weights (b, f, w) is a row's scalar product, taken on whichever side is the narrow one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memory_titan.memory.neural.fused.data import Chunks, Gates, Options, Results, Scratch, Slot
from memory_titan.memory.neural.fused.forward import act, below, times_slope


class Incoming(NamedTuple):
    """The outer loss's gradients at a chunk's results; None where there is none."""

    y: Tensor | None  # [N, C, d_v]
    error: Tensor | None  # [N, C, d_v]
    norm: Tensor | None  # [N, C]


class _Now(NamedTuple):
    """The chunk at hand, and gradients that its parts add to."""

    options: Options
    chunk: Chunks
    gates: Gates
    slot: Slot
    room: Scratch
    x: list[Tensor]  # a layer's input at the keys, [N, C, in]
    delta: list[Tensor]  # its delta, [N, C, out]
    P: Tensor
    step: Tensor  # theta'
    grads: Chunks
    g_state: list[Tensor]
    g_x: list[Tensor]
    g_delta: list[Tensor]
    g_P: Tensor  # noqa: N815


def backward_chunk(
    options: Options,
    chunk: Chunks,
    gates: Gates,
    slot: Slot,
    done: Results,
    incoming: Incoming,
    grads: Chunks,
    g_state: list[Tensor],
    room: Scratch,
) -> None:
    """A chunk that `forward_chunk` computed into the slot.

    Args:
        done: the chunk's results.
        incoming: gradients at the results.
        grads: where the gradients at `chunk` go: b, f and m_end are added to, the others are set.
        g_state: gradients at the state the chunk leaves; overwritten by those at the state it starts from.
    """
    room.start()
    L = options.depth
    W = slot.state[:L]
    step = torch.div(chunk.theta, done.size, out=room(chunk.theta)) if options.step_norm else chunk.theta
    P = torch.mul(chunk.G, step[:, None], out=room(chunk.G))

    # What the slot does not hold: activations, slopes, deltas.
    x, slope, curve = [chunk.k], [], []
    for z in slot.z:
        activated, first, second = _derivatives(z, options.activation, room)
        x.append(activated)
        slope.append(first)
        curve.append(second)
    delta = [*(torch.mul(t, s, out=room(s)) for t, s in zip(slot.t, slope, strict=True)), done.error]

    g_P = room(P).zero_()
    g_x: list[Tensor] = []
    g_delta: list[Tensor] = []
    now = _Now(options, chunk, gates, slot, room, x, delta, P, step, grads, g_state, g_x, g_delta, g_P)
    g_step = _write(now)
    if incoming.y is not None:
        _read(now, incoming.y)
    if incoming.norm is not None:
        twice = 2 * incoming.norm[..., None]
        for a, d, g_a, g_d in zip(x, delta, g_x, g_delta, strict=True):
            g_a.addcmul_(a, twice * d.square().sum(-1, keepdim=True))
            g_d.addcmul_(d, twice * a.square().sum(-1, keepdim=True))

    # Deltas, from the first layer up: delta_l = t_l act'(z_l), t_l = delta_{l+1} W_{l+1}^T.
    g_z = []
    for layer in range(L - 1):
        g_z.append(curve[layer].mul_(slot.t[layer]).mul_(g_delta[layer]))
        g_t = g_delta[layer].mul_(slope[layer])
        g_delta[layer + 1].baddbmm_(g_t, W[layer + 1])
        g_state[layer + 1].baddbmm_(g_t.mT, delta[layer + 1])
    if incoming.error is not None:
        g_delta[-1].add_(incoming.error)
    g_hh = _errors(now)

    # The step: P = G diag(theta'), theta' = theta / (1 + |h|^2), |h|^2 being the diagonal of h h^T.
    g_step = torch.mul(g_P, chunk.G, out=room(P)).sum(-2).add_(g_step)
    torch.mul(g_P, step[:, None], out=grads.G)
    if options.step_norm:
        torch.div(g_step, done.size, out=grads.theta)
        g_square = torch.mul(grads.theta, step).mul_(-2)
        if g_hh is None:
            g_x[-1].addcmul_(x[-1], g_square[..., None])
        else:
            g_hh.diagonal(dim1=-2, dim2=-1).copy_(g_square)
    else:
        grads.theta.copy_(g_step)
    if g_hh is not None:
        g_x[-1].baddbmm_(g_hh, x[-1])

    # Keys, from the last hidden layer down.
    for layer in range(L - 2, -1, -1):
        g = g_z[layer].addcmul_(g_x[layer + 1], slope[layer])
        g_x[layer].baddbmm_(g, W[layer].mT)
        g_state[layer].baddbmm_(x[layer].mT, g)
    grads.k.copy_(g_x[0])


def _derivatives(z: Tensor, activation: str, room: Scratch) -> tuple[Tensor, Tensor, Tensor]:
    """act(z), its first and its second derivative."""
    if activation == "silu":
        s = torch.sigmoid(z, out=room(z))
        rest = torch.sub(1, s, out=room(z))
        x = torch.mul(z, s, out=room(z))
        first = torch.addcmul(s, x, rest, out=room(z))
        return x, first, s.addcmul_(x, s, value=-1).add_(first).mul_(rest)
    if activation == "gelu":
        normal = torch.exp(-0.5 * z.square()) * 0.3989422804014327  # 1 / sqrt(2 pi)
        below = 0.5 * (1 + torch.erf(z * 0.7071067811865476))
        return z * below, below + z * normal, normal * (2 - z.square())
    return torch.relu(z), (z > 0).to(z), torch.zeros_like(z)


def _write(now: _Now) -> Tensor:
    """The update. Begins the gradients at the layers' inputs and at the deltas; returns the one at the steps."""
    gates, grads, room, g_state, L = now.gates, now.grads, now.room, now.g_state, now.options.depth
    moving = gates.m_end is not None
    weights = torch.mul(gates.ends, now.step, out=room(gates.ends))
    g_weights = torch.zeros_like(weights)
    for layer in range(L):
        x, d, alpha = now.x[layer], now.delta[layer], -now.options.step_of(layer)
        W, g_W = now.slot.state[layer], g_state[layer]
        # W += alpha x^T diag(weight) d, and S likewise: what the narrow side's gradients are made of is kept apart.
        kinds = [g_W, g_state[L + layer]] if moving else [g_W]
        first = x.shape[-1] < d.shape[-1]
        narrow, wide = (x, d) if first else (d, x)
        w = (weights * alpha)[..., None]
        products, weighed = room(narrow, len(kinds)), torch.mul(narrow, w, out=room(narrow, len(kinds)))
        g_wide = room(wide)
        for i, (g, product, part) in enumerate(zip(kinds, products, weighed, strict=True)):
            g = g if first else g.mT
            torch.bmm(wide, g.mT, out=product)
            torch.bmm(part, g, out=g_wide) if i == 0 else g_wide.baddbmm_(part, g)
        g_weights.add_(torch.mul(products, narrow, out=weighed).sum(-1), alpha=alpha)
        g_narrow = products.mul_(w)[0]
        if moving:
            g_narrow.add_(products[1])
        now.g_x.append(g_narrow if first else g_wide)
        now.g_delta.append(g_wide if first else g_narrow)

        grads.b[:, -1].add_(_dot(room, g_W, W))
        if gates.m_end is not None and gates.f_end is not None and grads.f is not None and grads.m_end is not None:
            S, g_S = now.slot.state[L + layer], g_state[L + layer]
            grads.f[:, -1].add_(_dot(room, g_W, S))
            grads.m_end.add_(_dot(room, g_S, S))
            g_S.mul_(gates.m_end).addcmul_(g_W, gates.f_end)
        g_W.mul_(gates.b_end)
    now.g_P[:, -1] = g_weights[0]
    if grads.M_end is None:
        return torch.zeros_like(now.step)
    torch.mul(g_weights[1], now.step, out=grads.M_end)
    return torch.mul(g_weights[1], gates.ends[1])


def _read(now: _Now, g_y: Tensor) -> None:
    """The queries."""
    options, chunk, gates, slot, room, grads = now.options, now.chunk, now.gates, now.slot, now.room, now.grads
    L, P, g_state = options.depth, now.P, now.g_state
    assert chunk.qk is not None and grads.qk is not None and chunk.bq is not None and grads.bq is not None
    g_z = g_y
    for layer in range(L - 1, -1, -1):
        alpha = -options.step_of(layer)
        W, S = slot.state[layer], slot.state[L + layer] if gates.f is not None else None
        yx = chunk.qk if layer == 0 else slot.yx[layer]
        g_A = torch.bmm(g_z, now.delta[layer].mT, out=room(P))
        now.g_P.addcmul_(g_A, yx, value=alpha)
        now.g_delta[layer].baddbmm_(torch.mul(yx, P, out=room(P)).mT, g_z, alpha=alpha)
        g_yx = g_A.mul_(P)
        if layer == 0:
            torch.mul(g_yx, alpha, out=grads.qk)
            torch.bmm(g_z, W.mT, out=grads.bq)
            g_state[0].baddbmm_(chunk.bq.mT, g_z)
            if S is not None and chunk.fq is not None and grads.fq is not None:
                torch.bmm(g_z, S.mT, out=grads.fq)
                g_state[L].baddbmm_(chunk.fq.mT, g_z)
            return
        z = slot.u[layer - 1]
        y = act(z, options.activation, room(z))
        now.g_x[layer].baddbmm_(g_yx.mT, y, alpha=alpha)
        grads.b.add_(_rows(room, g_z, slot.yw[layer]))
        g_w = torch.mul(g_z, gates.b, out=room(g_z))
        g_below = torch.bmm(g_w, W.mT, out=room(z))
        g_state[layer].baddbmm_(y.mT, g_w)
        if S is not None and gates.f is not None and grads.f is not None:
            grads.f.add_(_rows(room, g_z, slot.ys[layer]))
            g_s = torch.mul(g_z, gates.f, out=room(g_z))
            g_below.baddbmm_(g_s, S.mT)
            g_state[L + layer].baddbmm_(y.mT, g_s)
        g_below.baddbmm_(g_yx, now.x[layer], alpha=alpha)
        g_z = times_slope(g_below, z, options.activation, g_below)


def _errors(now: _Now) -> Tensor | None:
    """The last layer at the keys, (I + N) E = R. Returns the gradient at h h^T, symmetric, if it entered."""
    gates, slot, room, grads, g_state, L = now.gates, now.slot, now.room, now.grads, now.g_state, now.options.depth
    h, g_h, g_hh = now.x[-1], now.g_x[-1], None
    g_r = g_hw = now.g_delta[-1]
    if now.options.exact:
        g_r = torch.bmm(slot.inverse.mT, g_r, out=grads.minus_v)
        g_n = torch.bmm(g_r, now.delta[-1].mT, out=room(now.P)).neg_()
        now.g_P[:, :-1].addcmul_(g_n[:, 1:].tril_(), slot.hh[:, 1:])
        g_hh = below(g_n, now.P, room)
        g_hh[:, 0] = 0
        g_hh = torch.add(g_hh, g_hh.mT, out=room(g_hh))
        grads.b[:, :-1].add_(_rows(room, g_r, slot.hw)[:, 1:])
        if gates.f_before is not None and grads.f is not None:
            grads.f[:, :-1].add_(_rows(room, g_r, slot.hs)[:, 1:])
            g_hs = torch.mul(g_r, gates.f_before, out=room(g_r))
            g_h.baddbmm_(g_hs, slot.state[-1].mT)
            g_state[-1].baddbmm_(h.mT, g_hs)
        g_hw = torch.mul(g_r, gates.b_before, out=room(g_r))
    else:
        grads.minus_v.copy_(g_r)
    g_h.baddbmm_(g_hw, slot.state[L - 1].mT)
    g_state[L - 1].baddbmm_(h.mT, g_hw)
    return g_hh


def _rows(room: Scratch, a: Tensor, b: Tensor) -> Tensor:
    """Scalar products of rows: `[N, C, d]` twice -> `[N, C]`."""
    return torch.mul(a, b, out=room(b)).sum(-1)


def _dot(room: Scratch, a: Tensor, b: Tensor) -> Tensor:
    """`[N, in, out]` twice -> `[N]`."""
    return torch.mul(a, b, out=room(a)).sum((1, 2))
