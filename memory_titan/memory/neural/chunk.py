"""The neural memory a chunk at a time: `naive.py` exactly, with nothing of weight shape per token.

Within a chunk the weights at token t are those of its start plus a sum over its tokens so far (`coefficients.py`),

    W_t = b_t W_0 + f_t S_0 - sum_{i<=t} G[t,i] x_i^T d_i

for every matrix, x_i being its input at key i and d_i its delta (the loss's gradient at the matrix's product). So a
query needs only products with W_0, S_0 and the chunk's own x and d, as linear attention has them. Deltas come from
the anchor by explicit backpropagation. Those of the last matrix are exact where `gradient="exact"`: its inputs h do
not depend on its own weights, so the errors of the chunk solve one triangular system,

    (I + N) E = R,    R_t = b_{t-1} h_t W_0 + f_{t-1} h_t S_0 - v_t,
    N[t,i] = G[t-1,i] (h_t . h_i) / (1 + |h_i|^2)   (i < t)

which is DeltaNet's trick (arXiv 2406.06484) extended to momentum and decay.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.utils.checkpoint
from torch import Tensor

from memory_titan.memory.neural.bias import bias_gradient, bias_loss
from memory_titan.memory.neural.carry import (
    Frame,
    Written,
    choose_rows,
    close_chunk,
    leave_open,
    present_weights,
    reset_rows,
)
from memory_titan.memory.neural.coefficients import Channel, Scalar
from memory_titan.memory.neural.fused.node import can_fuse, fused_chunks
from memory_titan.memory.neural.retention import answering, size_factor
from memory_titan.memory.neural.rule import FastWeights, Gates, Rule, surprise_of
from memory_titan.memory.neural.spans import Spans, common_position
from memory_titan.memory.neural.step import fits_step, is_usual, step_memory
from memory_titan.memory.surprise import Surprise

Matrices = tuple[Tensor, ...]


def chunk_memory(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: FastWeights,
    rule: Rule,
    *,
    initial: Matrices = (),
    valid: Tensor | None = None,
    surprise: bool = False,
) -> tuple[Tensor | None, Surprise | None, FastWeights]:
    """Write `k -> v` and read `q`.

    Args:
        q: `[B, H, T, d]` queries, or None to write only.
        k: `[B, H, T, d]` keys.
        v: `[B, H, T, d_v]` values.
        gates: see `Gates`.
        state: where to go on; see `FastWeights.start`.
        rule: see `Rule`.
        initial: `[B, H, in, out]` a matrix, what `rule.reset_every` goes back to.
        valid: `[B, T]`, bool; tokens that are False change nothing, and their outputs are 0.
        surprise: report it.

    Returns:
        `(y, surprise, state)`: y `[B, H, T, d_v]` or None, what the memory answers to q_t after token t was
        written (or, with `rule.read="chunk"`, at its chunk's start); surprise as asked for; the new state.
    """
    C = rule.anchor_every
    position, spans = common_position(state.position, valid), None
    if fits_step(rule, state, k.shape[2], position):
        y, report, state = step_memory(q, k, v, gates, state, rule, (position or 0) % C, surprise)
        return y, report, replace(state, position=state.position + 1)
    fusible = position is not None and _can_be_fused(q, k, v, gates, state, rule, surprise)
    if rule.checkpoint and not fusible and torch.is_grad_enabled() and k.shape[2] > rule.checkpoint * C:
        return _recomputed(q, k, v, gates, state, rule, initial, valid, surprise)
    if position == 0 and 0 < 2 * rule.reset_every <= k.shape[2]:
        return _side_by_side(q, k, v, gates, state, rule, initial, surprise)
    place = state.position % C
    if position is None:
        # Lay each row out from its own place on, so that the boundaries of all fall together. Slots without a
        # token get no step and no decay, and change nothing.
        spans = Spans.lay_out(place, valid, k.shape[2])
        k, v, gates = spans.gather(k), spans.gather(v), gates.map(spans.gather)
        q = None if q is None else spans.gather(q)
    begin, length = 0, k.shape[2]
    offset = 0 if position is None else position % C  # of the first slot in its chunk
    chunks_before = state.position // C
    outputs, reports = [v[:, :, :0]], [Surprise(*[gates.step[:, :, :0]] * 3)]
    while begin < length:
        end = min(length, begin + C - (offset + begin) % C)
        if fusible and end - begin == C:
            end = begin + (length - begin) // C * C
            if rule.reset_every:
                end = min(end, begin + rule.reset_every - (int(position or 0) + begin) % rule.reset_every)
            y, report, state = _whole_chunks(q, k, v, gates, state, rule, slice(begin, end), surprise)
            outputs += [] if y is None else [y]
            reports += [] if report is None else [report]
            if rule.reset_every:
                chunks = chunks_before + (offset + end) // C
                state = reset_rows(state, initial, chunks % (rule.reset_every // C) == 0)
            begin = end
            continue
        part = slice(begin, end)
        frame = Frame.at(state, rule, offset + begin, end - begin, spans, place)
        y, report, state_open, written = _stretch(
            None if q is None else q[:, :, part],
            k[:, :, part],
            v[:, :, part],
            gates.map(lambda x: x[:, :, part]),  # noqa: B023
            state,
            rule,
            frame,
            surprise,
        )
        outputs += [] if y is None else [y]
        reports += [] if report is None else [report]
        new = state_open
        if (offset + end) % C == 0:
            new = close_chunk(state, written, rule)
            if rule.reset_every:
                chunks = chunks_before + (offset + end) // C
                new = reset_rows(new, initial, chunks % (rule.reset_every // C) == 0)
            if spans is not None:
                new = choose_rows(spans.ends >= end, new, state_open)
        # rows that ended in an earlier chunk stay as they are
        state = new if spans is None else choose_rows(spans.ends > begin, new, state)
        begin = end

    y = None if q is None else torch.cat(outputs, 2)
    told = Surprise(*(torch.cat(x, 2) for x in zip(*reports, strict=True))) if surprise else None
    after = state.position + k.shape[2]
    if spans is not None:
        after = state.position - place + spans.ends
        y = None if y is None else spans.scatter(y)
        told = None if told is None else Surprise(*map(spans.scatter, told))
    return y, told, replace(state, position=after % rule.period)


def _recomputed(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: FastWeights,
    rule: Rule,
    initial: Matrices,
    valid: Tensor | None,
    surprise: bool,
) -> tuple[Tensor | None, Surprise | None, FastWeights]:
    """In pieces of `rule.checkpoint` chunks, of which only the state between them is kept for the backward pass."""
    plain, span = replace(rule, checkpoint=0), rule.checkpoint * rule.anchor_every
    ys, told = [], []
    for begin in range(0, k.shape[2], span):
        part = slice(begin, begin + span)
        y, report, state = torch.utils.checkpoint.checkpoint(
            chunk_memory,
            None if q is None else q[:, :, part],
            k[:, :, part],
            v[:, :, part],
            gates.map(lambda x: x[:, :, part]),  # noqa: B023
            state,
            plain,
            initial=initial,
            valid=None if valid is None else valid[:, part],
            surprise=surprise,
            use_reentrant=False,
        )
        ys.append(y)
        told.append(report)
    report = Surprise(*(torch.cat(x, 2) for x in zip(*told, strict=True))) if surprise else None
    return None if q is None else torch.cat(ys, 2), report, state


def _can_be_fused(
    q: Tensor | None, k: Tensor, v: Tensor, gates: Gates, state: FastWeights, rule: Rule, surprise: bool
) -> bool:
    """Whether `fused/` has the rule. It reports surprise, but not the gradient of every part of it."""
    if not is_usual(rule) or (surprise and torch.is_grad_enabled()) or k.shape[2] < rule.chunk_size:
        return False
    return can_fuse(q, k, v, gates.step, gates.log_keep, gates.log_momentum, *state.weights, *state.momentum)


def _whole_chunks(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: FastWeights,
    rule: Rule,
    part: slice,
    surprise: bool,
) -> tuple[Tensor | None, Surprise | None, FastWeights]:
    """The tokens in `part`, whole chunks from a boundary on."""
    made = fused_chunks(
        None if q is None else q[:, :, part],
        k[:, :, part],
        v[:, :, part],
        gates.step[:, :, part],
        gates.log_keep[:, :, part],
        None if gates.log_momentum is None else gates.log_momentum[:, :, part],
        state.weights,
        state.momentum,
        chunk_size=rule.chunk_size,
        exact=rule.gradient == "exact",
        activation=rule.structure.activation,
        lower_step=rule.lower_step,
        step_norm=rule.step_norm,
        checkpoint=rule.checkpoint,
    )
    report = None
    if surprise:
        top = made.loss * (made.size - 1)
        lower = (made.gradient - top).clamp(min=0)
        unit = gates.step[:, :, part] / (made.size if rule.step_norm else 1)
        moved = (rule.lower_step**2 * lower + top).clamp(min=1e-30).sqrt()
        report = Surprise(made.loss, made.gradient.clamp(min=1e-30).sqrt(), unit * moved)
    anchor = made.weights if state.anchor else ()
    return made.y, report, replace(state, weights=made.weights, momentum=made.momentum, anchor=anchor)


def _side_by_side(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: FastWeights,
    rule: Rule,
    initial: Matrices,
    surprise: bool,
) -> tuple[Tensor | None, Surprise | None, FastWeights]:
    """Whole stretches between two resets as rows of a batch, for they know nothing of each other; then the rest."""
    B, stretch = k.shape[0], rule.reset_every
    n = k.shape[2] // stretch

    def fold(x: Tensor) -> Tensor:  # [B, H, n R, ...] -> [B n, H, R, ...]
        return x[:, :, : n * stretch].unflatten(2, (n, stretch)).transpose(1, 2).flatten(0, 1)

    def unfold(x: Tensor) -> Tensor:
        return x.unflatten(0, (B, n)).transpose(1, 2).flatten(2, 3)

    fresh = FastWeights.start(initial, bool(state.momentum), rule)
    given = iter(fresh.tensors().values())
    start = state.map(lambda x: torch.cat([x[:, None], next(given).to(x)[:, None].expand(-1, n - 1, *x.shape[1:])], 1))
    start = start.map(lambda x: x.flatten(0, 1))
    each = tuple(x.repeat_interleave(n, 0) for x in initial)
    asked = None if q is None else fold(q)
    y, told, after = chunk_memory(
        asked, fold(k), fold(v), gates.map(fold), start, rule, initial=each, surprise=surprise
    )
    state = after.map(lambda x: x.unflatten(0, (B, n))[:, -1])
    rest = slice(n * stretch, None)
    last = None if q is None else q[:, :, rest]
    y_rest, told_rest, state = chunk_memory(
        last,
        k[:, :, rest],
        v[:, :, rest],
        gates.map(lambda x: x[:, :, rest]),
        state,
        rule,
        initial=initial,
        surprise=surprise,
    )
    if y is not None and y_rest is not None:
        y = torch.cat([unfold(y), y_rest], 2)
    if told is not None and told_rest is not None:
        told = Surprise(*(torch.cat([unfold(a), b], 2) for a, b in zip(told, told_rest, strict=True)))
    return y, told, state


def read_memory(q: Tensor, state: FastWeights, rule: Rule) -> Tensor:
    """What the memory answers to q as it stands. q: `[B, H, T, d]`; returns `[B, H, T, d_v]`."""
    anchor = state.anchor or state.weights
    if rule.read == "chunk":
        weights = [answering(rule.retention, w, rule.q) for w in anchor]
    else:
        factors = [size_factor(rule.retention, a, rule.q) for a in anchor]
        now, _ = present_weights(state, rule, momentum_too=False)
        weights = [w if f is None else w * f for w, f in zip(now, factors, strict=True)]
    return rule.structure.forward(lambda i, x: x @ weights[i], q, len(weights))


def _stretch(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    state: FastWeights,
    rule: Rule,
    frame: Frame,
    surprise: bool,
) -> tuple[Tensor | None, Surprise | None, FastWeights, Written]:
    """A chunk, or the part of one that this call holds. The state returned is that of a chunk left open."""
    structure, count, old = rule.structure, len(state.weights), frame.old
    anchor = state.anchor or state.weights
    at = [answering(rule.retention, w, rule.q) for w in anchor]
    factors = [size_factor(rule.retention, a, rule.q) for a in anchor]
    kind = Channel if rule.retention == "channel" else Scalar
    coefficients = kind.multiply_up(gates, state, old, frame.positions, rule, frame.present)
    old_inputs, old_deltas = ([x[:, :, :old] for x in kept] for kept in (state.inputs, state.deltas))

    inputs: list[Tensor] = []  # of each matrix, from the keys
    products: list[Tensor] = []

    def per_step(h: Tensor) -> Tensor | None:
        return 1 / (1 + h.square().sum(-1)) if rule.step_norm else None

    def by_key(i: int, x: Tensor) -> Tensor:
        inputs.append(x)
        last = i == count - 1 and rule.gradient == "exact"
        products.append(_exact_answer(i, x, per_step(x)) if last else x @ at[i])
        return products[-1]

    def _exact_answer(i: int, h: Tensor, unit: Tensor | None) -> Tensor:
        """What the last matrix answers at its present weights, before each token's own write."""
        held = torch.cat([old_inputs[i], h], 2) if old else h
        y = coefficients.carried(i, h, state, before=True)
        n = coefficients.pairs(i, h, held, before=True)
        if old:
            y = y - n[..., :old] @ old_deltas[i]
        factor = factors[i]
        if factor is not None:
            y, n = y * factor, n * factor
        n = n[..., old:] if unit is None else n[..., old:] * unit[..., None, :]
        if rule.bias == "dot":
            return y + n @ v
        # The solver takes the unit diagonal for granted and reads only what lies below it.
        return v + torch.linalg.solve_triangular(n, y - v, upper=False, unitriangular=True)

    answer = structure.forward(by_key, k, count)
    error = bias_gradient(rule.bias, answer, v, rule.p, gates.threshold)
    deltas = structure.deltas(at, products, error)
    unit = per_step(inputs[-1])
    scale = torch.ones_like(gates.step) if unit is None else unit
    scale = scale if gates.context is None else scale * gates.context
    report = None
    if surprise:
        loss = bias_loss(rule.bias, answer, v, rule.p, gates.threshold)
        report = surprise_of(loss, inputs, deltas, gates.step * scale, rule.lower_step)
    deltas = [d * (scale if i == count - 1 else scale * rule.lower_step)[..., None] for i, d in enumerate(deltas)]
    if frame.present is not None:
        there = frame.present[:, None, old:, None]
        inputs, deltas = [x * there for x in inputs], [d * there for d in deltas]
        if report is not None:
            report = Surprise(*(x * there[..., 0] for x in report))
    if old:
        inputs = [torch.cat(pair, 2) for pair in zip(old_inputs, inputs, strict=True)]
        deltas = [torch.cat(pair, 2) for pair in zip(old_deltas, deltas, strict=True)]

    def by_query(i: int, x: Tensor) -> Tensor:
        y = coefficients.carried(i, x, state) - coefficients.pairs(i, x, inputs[i]) @ deltas[i]
        factor = factors[i]
        return y if factor is None else y * factor

    y = None
    if q is not None:
        y = structure.forward(by_query if rule.read == "token" else lambda i, x: x @ at[i], q, count)
    written = Written(inputs, deltas, coefficients)
    return y, report, leave_open(state, written, frame, rule), written
