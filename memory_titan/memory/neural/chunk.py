"""The neural memory a chunk at a time: `naive.py` exactly, with nothing of weight shape per token.

Within a chunk, with gates multiplied up by one head's b_t = a_1 ... a_t and m_t = eta_1 ... eta_t,

    W_t = b_t W_0 + f_t S_0 - sum_{i<=t} G[t,i] x_i^T d_i          S_t = m_t S_0 - sum_{i<=t} (m_t/m_i) x_i^T d_i
    G[t,i] = sum_{i<=j<=t} (b_t/b_j) (m_j/m_i)                     f_t = sum_{j<=t} (b_t/b_j) m_j

for every layer, x_i being the layer's input at key i and d_i its delta (the loss's gradient at the layer's output,
times the step). So a query needs only matrix products with W_0, S_0 and the chunk's own x and d (as linear attention
has them). Deltas of the layers below the last come from the anchor by explicit backpropagation. The last layer's
are exact: its features h do not depend on its own weights, so the errors of the chunk solve one triangular system,

    (I + N) E = R,    R_t = b_{t-1} h_t W_0 + f_{t-1} h_t S_0 - v_t,    N[t,i] = G[t-1,i] (h_t . h_i) theta'_i   (i < t)

which is DeltaNet's trick (arXiv 2406.06484) extended to momentum and decay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memory_titan.memory.neural.rule import ACTIVATIONS, LOG_FLOOR, Activation, FastWeights, Rule, flush_small


def chunk_memory(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    log_keep: Tensor,
    log_momentum: Tensor | None,
    state: FastWeights,
    *,
    chunk_size: int,
    rule: Rule = "exact",
    activation: str = "silu",
    lower_step: float = 0.1,
    valid: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, FastWeights]:
    """Write `k -> v` and read `q`. Arguments, shapes and results are those of `naive_memory`."""
    start, spans = _start_of_frame(state.position, valid), None
    if start is None:
        # Rows stand at different places of their chunks: lay each out from its own place on, so that the boundaries
        # of all fall together. Slots without a token get no step and no decay, and change nothing.
        start, spans = 0, _Spans.lay_out(state.position, valid, k.shape[2])
        k, v, step, log_keep = (spans.gather(x) for x in (k, v, step, log_keep))
        q, log_momentum = (None if x is None else spans.gather(x) for x in (q, log_momentum))
    W, S, A = state.weights, state.momentum, state.anchor
    outputs, surprises = [v[:, :, :0]], [step[:, :, :0]]
    begin, length = 0, k.shape[2]
    while begin < length:
        end = min(length, begin + chunk_size - (start + begin) % chunk_size)
        part = slice(begin, end)
        gates = _Gates.multiply_up(
            log_keep[:, :, part],
            None if log_momentum is None else log_momentum[:, :, part],
            None if spans is None else spans.present[:, None, part],
        )
        y, surprise, W, S = _segment(
            None if q is None else q[:, :, part],
            k[:, :, part],
            v[:, :, part],
            step[:, :, part],
            gates,
            (W, S, A),
            rule == "exact",
            ACTIVATIONS[activation],
            lower_step,
        )
        if y is not None:
            outputs.append(y)
        surprises.append(surprise)
        if (start + end) % chunk_size == 0:  # a boundary: the anchor moves up, in the rows that have come this far
            W, S = tuple(map(flush_small, W)), tuple(map(flush_small, S))
            reached = None if spans is None else (spans.ends >= end).view(-1, 1, 1, 1)
            A = W if reached is None else tuple(torch.where(reached, w, a) for w, a in zip(W, A, strict=True))
        begin = end

    read, surprise = torch.cat(outputs, 2), torch.cat(surprises, 2)
    position = (state.position + length) if spans is None else spans.ends
    if spans is not None:
        read, surprise = read if q is None else spans.scatter(read), spans.scatter(surprise)
    return None if q is None else read, surprise, FastWeights(W, S, A, position % chunk_size)


def _segment(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    gates: _Gates,
    start: tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]],
    exact: bool,
    activation: tuple[Activation, Activation],
    lower_step: float,
) -> tuple[Tensor | None, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A chunk, or the part of one that this call holds: c tokens from the weights and momentum in `start`."""
    W, S, A = start
    act, act_grad = activation

    # Keys forward through the anchor: x[l] is the input of layer l, z[l] its output before the activation.
    x, z = [k], []
    for a in A[:-1]:
        z.append(x[-1] @ a)
        x.append(act(z[-1]))
    h = x[-1]
    step = step / (1 + h.square().sum(-1))

    carry = gates.momentum
    if exact:
        r = gates.b_before[..., None] * (h @ W[-1]) - v
        if carry is not None:
            r = r + carry.f_before[..., None] * (h @ S[-1])
        n = gates.G_before * (h @ h.mT) * step[..., None, :]
        # The solver takes the unit diagonal for granted and reads only what lies below it.
        error = torch.linalg.solve_triangular(n, r, upper=False, unitriangular=True)
    else:
        error = h @ A[-1] - v

    d = [error * step[..., None]]  # deltas, from the last layer down
    for layer in range(len(A) - 1, 0, -1):
        scale = lower_step if layer == len(A) - 1 else 1.0
        d.append((d[-1] @ A[layer].mT) * act_grad(z[layer - 1]) * scale)
    d.reverse()

    y = q
    if y is not None:
        for layer, w in enumerate(W):
            moved = gates.b[..., None] * (y @ w) - ((y @ x[layer].mT) * gates.G) @ d[layer]
            if carry is not None:
                moved = moved + carry.f[..., None] * (y @ S[layer])
            y = act(moved) if layer < len(W) - 1 else moved

    b_end, G_end = gates.b[..., -1, None, None], gates.G[..., -1, :, None]
    new_W = [b_end * w - x[i].mT @ (G_end * d[i]) for i, w in enumerate(W)]
    if carry is not None:
        f_end, m_end, M_end = carry.f[..., -1, None, None], carry.m_end[..., None, None], carry.M_end[..., None]
        new_W = [w + f_end * s for w, s in zip(new_W, S, strict=True)]
        S = tuple(m_end * s - x[i].mT @ (M_end * d[i]) for i, s in enumerate(S))
    return y, error.square().sum(-1), tuple(new_W), S


@dataclass
class _Carry:
    """What momentum brought into the segment adds: `f`, `f_before` `[B, H, c]`; `m_end` `[B, H]`; `M_end` m_c/m_i."""

    f: Tensor
    f_before: Tensor
    m_end: Tensor
    M_end: Tensor


@dataclass
class _Gates:
    """The gates of a segment of c tokens multiplied up; b `[B, H, c]`, G `[B, H, c, c]`, and both a token earlier."""

    b: Tensor
    G: Tensor
    b_before: Tensor
    G_before: Tensor
    momentum: _Carry | None

    @classmethod
    def multiply_up(cls, log_keep: Tensor, log_momentum: Tensor | None, present: Tensor | None) -> _Gates:
        log_keep = log_keep.clamp(min=LOG_FLOOR)
        b, G = log_keep.cumsum(-1).exp(), _products(log_keep)
        if present is not None:  # a slot without a token does not add its momentum to the weights once more
            G = G * present[..., None, :]
        carry = None
        if log_momentum is not None:
            log_momentum = log_momentum.clamp(min=LOG_FLOOR)
            m, M = log_momentum.cumsum(-1).exp(), _products(log_momentum)
            f = (G @ m[..., None])[..., 0]
            G = G @ M
            carry = _Carry(f, _before(f, 0.0), m[..., -1], M[..., -1, :])
        return cls(b, G, _before(b, 1.0), _before(G.mT, 0.0).mT, carry)


def _products(log_gate: Tensor) -> Tensor:
    """`[..., c]` -> `[..., c, c]`: exp of the sum over j in (i, t] at [t, i]; 0 above the diagonal.

    Each sum is built up by itself: the difference of two running sums would lose a large gate's digits after a shut
    one has put -60 into both.
    """
    c = log_gate.shape[-1]
    lower = torch.ones(c, c, dtype=torch.bool, device=log_gate.device).tril()
    sums = log_gate[..., :, None].expand(*log_gate.shape, c).masked_fill(~lower.tril(-1), 0.0).cumsum(-2)
    return sums.masked_fill(~lower, -torch.inf).exp()


def _before(x: Tensor, first: float) -> Tensor:
    """Shift by one along the last dimension: what stood before each token."""
    return torch.cat([torch.full_like(x[..., :1], first), x[..., :-1]], -1)


def _start_of_frame(position: Tensor, valid: Tensor | None) -> int | None:
    """The place in the chunk at which all rows stand; None where they differ or some tokens are no tokens."""
    if valid is not None and not bool(valid.all()):
        return None
    places = position.unique().tolist()
    return places[0] if len(places) == 1 else None


@dataclass
class _Spans:
    """Where each row's tokens lie once rows are laid out with their chunk boundaries in common."""

    source: Tensor  # [B, L] the token at each slot; T where there is none
    slot: Tensor  # [B, T] the slot of each token; L where the token is not valid
    present: Tensor  # [B, L], of the gates' meaning: True where there is a token
    ends: Tensor  # [B] the slot after each row's last token

    @classmethod
    def lay_out(cls, position: Tensor, valid: Tensor | None, tokens: int) -> _Spans:
        if valid is None:
            valid = torch.ones(len(position), tokens, dtype=torch.bool, device=position.device)
        ends = position + valid.sum(1)
        length = int(ends.max()) if len(ends) else 0
        slot = torch.where(valid, position[:, None] + valid.cumsum(1) - 1, length)
        source = torch.full((len(position), length + 1), tokens, dtype=torch.long, device=position.device)
        source.scatter_(1, slot, torch.arange(tokens, device=position.device).expand_as(slot))
        source = source[:, :length]
        return cls(source, slot, source < tokens, ends)

    def gather(self, x: Tensor) -> Tensor:
        return _take(x, torch.where(self.present, self.source, x.shape[2]))

    def scatter(self, x: Tensor) -> Tensor:
        return _take(x, self.slot)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """`x[b, h, index[b, i], ...]`, zeros where the index is one past the end. x: `[B, H, T, ...]`, index: `[B, I]`."""
    x = torch.cat([x, torch.zeros_like(x[:, :, :1]) if x.shape[2] else x.new_zeros(*x.shape[:2], 1, *x.shape[3:])], 2)
    index = index[:, None].expand(-1, x.shape[1], -1)
    if x.dim() == 4:
        index = index[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, index)
