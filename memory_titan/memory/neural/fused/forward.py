"""One chunk of `node.py`, forwards. Notation as in `chunk.py`.

Products go into buffers made once; `baddbmm_` adds them where they belong. A chunk's tensors have N = B * H in front.
The step theta' = theta / (1 + |h|^2) enters through P = G diag(theta') alone, whose last row also weighs the update.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memory_titan.memory.neural.fused.data import Chunks, Gates, Options, Results, Scratch, Slot


def act(z: Tensor, activation: str, out: Tensor) -> Tensor:
    """act(z)."""
    if activation == "silu":
        return torch.ops.aten.silu.out(z, out=out)
    if activation == "gelu":
        return torch.ops.aten.gelu.out(z, out=out)
    return torch.clamp(z, min=0, out=out)


def times_slope(g: Tensor, z: Tensor, activation: str, out: Tensor) -> Tensor:
    """g act'(z), in one pass."""
    if activation == "silu":
        return torch.ops.aten.silu_backward.grad_input(g, z, grad_input=out)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward.grad_input(g, z, grad_input=out)
    return torch.ops.aten.threshold_backward.grad_input(g, z, 0, grad_input=out)


def forward_chunk(
    options: Options,
    chunk: Chunks,
    gates: Gates,
    slot: Slot,
    here: Sequence[Tensor],
    after: Sequence[Tensor] | None,
    out: Results,
    room: Scratch,
) -> None:
    """A chunk from the state `here`; what it computes goes to the slot and to `out`.

    Args:
        here: weights, then momentum, `[N, in, out]`.
        after: where the state goes that the chunk leaves; may be `here`; None: nowhere.
    """
    room.start()
    L, name = options.depth, options.activation
    W, S = here[:L], here[L:]

    # Keys forward through the anchor.
    x = [chunk.k]
    for layer in range(L - 1):
        z = torch.bmm(x[-1], W[layer], out=slot.z[layer])
        x.append(act(z, name, room(z)))
        if layer < L - 2:
            torch.linalg.vector_norm(x[-1], dim=-1, out=out.norms[layer + 1])
    h = x[-1]
    if options.exact:
        square = torch.bmm(h, h.mT, out=slot.hh).diagonal(dim1=-2, dim2=-1)
    else:
        square = torch.linalg.vector_norm(h, dim=-1).square_()
    torch.add(square, 1, out=out.size)
    step = torch.div(chunk.theta, out.size, out=room(out.size)) if options.step_norm else chunk.theta
    P = torch.mul(chunk.G, step[:, None], out=room(chunk.G))

    # Errors, then deltas from the last layer down: delta_l = t_l act'(z_l).
    hw = torch.bmm(h, W[-1], out=slot.hw)
    if options.exact:
        r = torch.addcmul(chunk.minus_v, hw, gates.b_before, out=room(hw))
        if gates.f_before is not None:
            r.addcmul_(torch.bmm(h, S[-1], out=slot.hs), gates.f_before)
        invert(below(slot.hh, P, room), slot.inverse)
        torch.bmm(slot.inverse, r, out=out.error)
    else:
        torch.add(hw, chunk.minus_v, out=out.error)
    delta = [out.error]
    for layer in range(L - 2, -1, -1):
        t = torch.bmm(delta[-1], W[layer + 1].mT, out=slot.t[layer])
        delta.append(times_slope(t, slot.z[layer], name, room(t) if slot.state else t))
        torch.linalg.vector_norm(delta[-1], dim=-1, out=out.norms[L - 1 + layer])
    delta.reverse()

    if out.y is not None:
        _read(options, chunk, gates, slot, here, (x, delta, P), out.y, room)
    if after is not None:
        _write(options, gates, here, after, (x, delta, step), room)


def _read(
    options: Options,
    chunk: Chunks,
    gates: Gates,
    slot: Slot,
    here: Sequence[Tensor],
    written: tuple[list[Tensor], list[Tensor], Tensor],
    y_out: Tensor,
    room: Scratch,
) -> None:
    """Queries through the memory as it stands after each token."""
    L, (x, delta, P) = options.depth, written
    W, S = here[:L], here[L:]
    assert chunk.bq is not None and chunk.qk is not None
    y = y_out
    for layer in range(L):
        z = room(y_out) if layer == L - 1 else slot.u[layer]
        if layer == 0:  # the gates are in bq and fq already
            torch.bmm(chunk.bq, W[0], out=z)
            if chunk.fq is not None:
                z.baddbmm_(chunk.fq, S[0])
            A = torch.mul(chunk.qk, P, out=room(P))
        else:
            torch.mul(torch.bmm(y, W[layer], out=slot.yw[layer]), gates.b, out=z)
            if gates.f is not None:
                z.addcmul_(torch.bmm(y, S[layer], out=slot.ys[layer]), gates.f)
            A = torch.mul(torch.bmm(y, x[layer].mT, out=slot.yx[layer]), P, out=room(P))
        z.baddbmm_(A, delta[layer], alpha=-options.step_of(layer))
        y = act(z, options.activation, room(z) if slot.state else z) if layer < L - 1 else y_out.copy_(z)


def _write(
    options: Options,
    gates: Gates,
    here: Sequence[Tensor],
    after: Sequence[Tensor],
    written: tuple[list[Tensor], list[Tensor], Tensor],
    room: Scratch,
) -> None:
    """The state at the chunk's end."""
    L, (xs, deltas, step) = options.depth, written
    weights = torch.mul(gates.ends, step, out=room(gates.ends))[..., None]
    for layer, (x, delta) in enumerate(zip(xs, deltas, strict=True)):
        alpha, kinds = -options.step_of(layer), [after[layer]]
        torch.mul(here[layer], gates.b_end, out=after[layer])
        if gates.f_end is not None and gates.m_end is not None:
            after[layer].addcmul_(here[L + layer], gates.f_end)
            kinds.append(torch.mul(here[L + layer], gates.m_end, out=after[L + layer]))
        first = x.shape[-1] < delta.shape[-1]  # the narrower of the two takes the weights
        weighed = torch.mul(x if first else delta, weights, out=room(x if first else delta, len(kinds)))
        for kind, part in zip(kinds, weighed, strict=True):
            if first:
                kind.baddbmm_(part.mT, delta, alpha=alpha)
            else:
                kind.baddbmm_(x.mT, part, alpha=alpha)


def below(hh: Tensor, P: Tensor, room: Scratch) -> Tensor:
    """N `[N, C, C]`: hh[t, i] P[t-1, i] below the diagonal; the rest of its first row is not set."""
    n = room(P)
    torch.mul(hh[:, 1:], P[:, :-1], out=n[:, 1:])
    return n


def invert(n: Tensor, out: Tensor) -> None:
    """(I + N)^{-1} of what is below n's diagonal, by substitution. All `[N, C, C]`.

    The inverse and not a solution, since the backward pass needs it once more, transposed.
    """
    one = torch.eye(n.shape[-1], dtype=n.dtype, device=n.device).expand_as(n)
    # LAPACK wants columns: solving from the right for the transpose spares copies.
    torch.linalg.solve_triangular(n.mT, one, upper=True, left=False, unitriangular=True, out=out.mT)
