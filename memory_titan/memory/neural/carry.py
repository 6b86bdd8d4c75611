"""From call to call, and over a chunk's end: the state of the neural memory before and after a stretch of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memory_titan.memory.neural.coefficients import Channel, Scalar
from memory_titan.memory.neural.orthogonal import newton_schulz
from memory_titan.memory.neural.retention import at_boundary
from memory_titan.memory.neural.rule import FastWeights, Rule, flush_small
from memory_titan.memory.neural.spans import Spans

Matrices = tuple[Tensor, ...]


@dataclass
class Frame:
    """Where a stretch lies in its chunk."""

    old: int  # slots of the state's buffers that count
    positions: Tensor  # [old + c] places of old and new slots in the chunk
    present: Tensor | None  # [B, old + c], which slots hold a token; None: all

    @classmethod
    def at(cls, state: FastWeights, rule: Rule, begin: int, tokens: int, spans: Spans | None, place: Tensor) -> Frame:
        C, capacity = rule.anchor_every, state.coefficients.shape[2]
        new = torch.arange(begin % C, begin % C + tokens, device=place.device)
        if spans is None:
            old = min(begin % C, capacity)  # none where the state keeps weights in place of tokens
            return cls(old, torch.cat([new.new_zeros(0), torch.arange(old, device=place.device), new]), None)
        old = capacity if begin < C else 0
        slots = torch.arange(old, device=place.device)
        present = torch.cat([slots < place[:, None], spans.present[:, begin : begin + tokens]], 1)
        return cls(old, torch.cat([slots, new]), present)


@dataclass
class Written:
    """A stretch's tokens, behind those of its chunk that were there: what the state's next form is made of."""

    inputs: list[Tensor]
    deltas: list[Tensor]
    coefficients: Scalar | Channel


def present_weights(state: FastWeights, rule: Rule, momentum_too: bool = True) -> tuple[Matrices, Matrices]:
    """What was accumulated, and the momentum, as they stand after the last token: `[B, H, in, out]` a matrix.

    With Muon the open chunk is in the momentum only. Without `momentum_too` the momentum is not made.
    """
    if not state.inputs or state.inputs[0].shape[2] == 0:
        return state.weights, state.momentum
    weights, momentum = [], []
    channel = rule.retention == "channel"
    columns = state.scale.split([w.shape[2] for w in state.weights], -1) if channel else ()
    for i, W in enumerate(state.weights):
        x, d = state.inputs[i], state.deltas[i]
        scale = columns[i][..., None] if channel else state.scale[..., 0, None, None]
        now = scale * W
        if not rule.muon:
            now = now - x.mT @ (state.coefficients[..., :1] * d)
        if state.momentum:
            S = state.momentum[i]
            now = now if rule.muon else now + state.scale[..., 1, None, None] * S
            if momentum_too:
                momentum.append(state.scale[..., 2, None, None] * S - x.mT @ (state.coefficients[..., 1:] * d))
        weights.append(now)
    return tuple(weights), tuple(momentum)


def leave_open(state: FastWeights, written: Written, frame: Frame, rule: Rule) -> FastWeights:
    """The state inside a chunk: tokens into the buffers; or, where weights are kept in their place, into those."""
    if state.anchor:
        weights, momentum, scale = _finish(state, written, rule)
        return replace(state, weights=weights, momentum=momentum, scale=scale)
    capacity, old, c = state.coefficients.shape[2], frame.old, len(frame.positions) - frame.old
    first = int(frame.positions[old]) if frame.present is not None else old

    def into(x: Tensor) -> Tensor:
        new = x[:, :, old:]
        fits = new[:, :, : max(0, capacity - first)]
        before, behind = first, capacity - first - fits.shape[2]
        blank = [x.new_zeros(*x.shape[:2], n, x.shape[3]) for n in (before, max(0, behind))]
        if frame.present is None:
            return torch.cat([x[:, :, :old], fits, blank[1]], 2)
        laid = torch.cat([blank[0], fits, blank[1]], 2)
        return laid + x[:, :, :old] if old else laid

    if c + first > capacity and frame.present is None:
        return state  # the chunk is complete; `close_chunk` is what counts
    coefficients, scale = written.coefficients.kept()
    inputs = tuple(into(written.coefficients.aged(i, x)) for i, x in enumerate(written.inputs))
    deltas = tuple(into(d) for d in written.deltas)
    return replace(state, inputs=inputs, deltas=deltas, coefficients=into(coefficients), scale=scale)


def _finish(state: FastWeights, written: Written, rule: Rule) -> tuple[Matrices, Matrices, Tensor]:
    """Weights and momentum after the stretch, and a scale that says that all of it is in them."""
    made = [
        written.coefficients.finish(i, state, x, d, rule.muon)
        for i, (x, d) in enumerate(zip(written.inputs, written.deltas, strict=True))
    ]
    _, scale = written.coefficients.kept()
    blank = torch.ones_like(scale)
    if rule.retention != "channel":
        blank = torch.stack([blank[..., 0], 0 * blank[..., 1], blank[..., 2], scale[..., 3]], -1)
    return tuple(W for W, _ in made), tuple(S for _, S in made if S is not None), blank


def close_chunk(state: FastWeights, written: Written, rule: Rule) -> FastWeights:
    """The state at the chunk's end: the anchor moves up."""
    weights, momentum, scale = _finish(state, written, rule)
    if rule.muon:
        weights = tuple(
            w + scale[..., 3, None, None] * newton_schulz(s) for w, s in zip(weights, momentum, strict=True)
        )
    before = state.anchor or state.weights
    weights = tuple(at_boundary(rule.retention, w, a) for w, a in zip(weights, before, strict=True))
    weights, momentum = tuple(map(flush_small, weights)), tuple(map(flush_small, momentum))
    if rule.retention != "channel":
        scale = torch.stack([*scale.unbind(-1)[:3], torch.zeros_like(scale[..., 3])], -1)
    return FastWeights(
        weights,
        momentum,
        weights if state.anchor else (),
        tuple(torch.zeros_like(x) for x in state.inputs),
        tuple(torch.zeros_like(x) for x in state.deltas),
        torch.zeros_like(state.coefficients),
        scale,
        state.position,
    )


def reset_rows(state: FastWeights, initial: Matrices, rows: Tensor) -> FastWeights:
    """`rows` `[B]` of a state at a chunk's start back to the initial weights."""
    weights = tuple(initial)
    momentum = tuple(torch.zeros_like(s) for s in state.momentum)
    return choose_rows(rows, replace(state, weights=weights, momentum=momentum, anchor=state.anchor and weights), state)


def choose_rows(rows: Tensor, first: FastWeights, second: FastWeights) -> FastWeights:
    """`first` in the rows that are True, `second` in the others."""
    others = iter(second.tensors().values())
    return first.map(lambda x: torch.where(rows.view(-1, *[1] * (x.dim() - 1)), x, next(others)))
