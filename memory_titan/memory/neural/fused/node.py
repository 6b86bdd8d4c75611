"""The neural memory over whole chunks in one autograd node: the function of `chunk.py`, forward and backward by hand.

Notation and equations are those of `chunk.py`. What is gained over leaving the chunk form to autograd:

- No graph: buffers are allocated once and every product writes where its result is wanted.
- What does not depend on the state (products of gates, q k^T of the first layer, norms of k) is made for all chunks at
  once, before the loop.
- For the backward pass it keeps what is dear to make anew (the weights at each chunk's start, pre-activations) and
  makes the rest again; with `checkpoint=m` it keeps every m-th chunk's weights alone and goes forward again from there.
- The step theta' is folded into G's columns and into nothing else: for every use of G a chunk needs one product.

Everything inside is laid out as `[N, n, C, ...]`, n chunks of C tokens and N = B * H heads: a view of what came in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memory_titan.memory.neural.fused.backward import Incoming, backward_chunk
from memory_titan.memory.neural.fused.data import Chunks, Gates, Options, Results, Scratch, Slot, each
from memory_titan.memory.neural.fused.forward import forward_chunk
from memory_titan.memory.neural.fused.gates import SMALL, GateProducts
from memory_titan.memory.neural.fused.threads import head_groups, side_by_side

FLUSH_EVERY = 4  # chunks between two looks for such numbers in the state
SLAB = 16  # chunks prepared at a time where no gradient is wanted, so that memory does not grow with the length


class Fused(NamedTuple):
    """What `fused_chunks` returns.

    y: `[B, H, n C, d_v]`, read after each token's write; None if nothing was asked.
    loss: `[B, H, n C]`, |M(k_t) - v_t|^2 before it.
    gradient: `[B, H, n C]`, the squared norm of the gradient of the loss's half at all weights, steps left out.
    size: `[B, H, n C]`, 1 + |h|^2, h the last layer's input; without a gradient.
    weights, momentum: at the last chunk's end, `[B, H, in, out]` a layer.
    """

    y: Tensor | None
    loss: Tensor
    gradient: Tensor
    size: Tensor
    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]


def can_fuse(*tensors: Tensor | None) -> bool:
    """Whether `fused_chunks` may be called: not under torch.func transforms or forward-mode gradients.

    Its backward pass is not differentiable either (a second backward raises); that cannot be seen from here.
    """
    if torch._C._are_functorch_transforms_active():
        return False
    present = [x for x in tensors if x is not None]
    same = len({(x.dtype, x.device) for x in present}) == 1
    plain = all(not torch._C._functorch.is_functorch_wrapped_tensor(x) for x in present)
    return same and plain and not any(torch.autograd.forward_ad.unpack_dual(x).tangent is not None for x in present)


def fused_chunks(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    log_keep: Tensor,
    log_momentum: Tensor | None,
    weights: Sequence[Tensor],
    momentum: Sequence[Tensor],
    *,
    chunk_size: int,
    exact: bool,
    activation: str = "silu",
    lower_step: float = 0.1,
    step_norm: bool = True,
    checkpoint: int = 0,
) -> Fused:
    """Write `k -> v` and read `q` over n whole chunks, from a chunk's first token on, every token valid.

    Differentiable once in all tensors. Under torch.func transforms (grad, vmap, jvp) and forward-mode gradients it
    does not work: ask `can_fuse` first and take `chunk_memory` instead. All tensors have one dtype.

    Args:
        q: `[B, H, n C, d]` queries, or None to write only.
        k: `[B, H, n C, d]` keys.
        v: `[B, H, n C, d_v]` values.
        step: `[B, H, n C]`, theta.
        log_keep: `[B, H, n C]`, log of a = 1 - alpha, at most 0; below -60 counts as -60.
        log_momentum: `[B, H, n C]`, log of eta, likewise; None: no momentum.
        weights: one a layer, `[B, H, in, out]`, 1 to 4 of them.
        momentum: the same shapes; empty without momentum.
        chunk_size: C, tokens between two anchors.
        exact: the last layer's errors at its present weights (True) or at the chunk's first (False).
        activation: a name in `ACTIVATIONS`, between the memory's layers.
        lower_step: the step of the layers below the last, relative to its own.
        step_norm: divide theta by 1 + |h|^2, h the last layer's input.
        checkpoint: keep the weights of every so many chunks alone for the backward pass; 0: of all, with what the
            chunks computed.

    Returns:
        See `Fused`.
    """
    B, H, T, _ = k.shape
    if T % chunk_size:
        raise ValueError(f"fused_chunks takes whole chunks of {chunk_size} tokens; got {T} tokens")
    N, n, L = B * H, T // chunk_size, len(weights)
    options = Options(L, exact, activation, lower_step, step_norm, checkpoint)
    tokens = [
        None if x is None else x.reshape(N, n, chunk_size, *x.shape[3:])
        for x in (q, k, v, step, log_keep, log_momentum)
    ]
    start = [w.reshape(N, *w.shape[2:]) for w in (*weights, *momentum)]
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*tokens, *start)):
        y, loss, norm, size, *state = _Fused.apply(options, *_prepare(*tokens), *start)
    else:
        y, loss, norm, size, state = _without_gradients(options, tokens, start)
    read = None if q is None else y.view(v.shape)
    last = [x.view(B, H, *x.shape[1:]) for x in state]
    loss, norm, size = (x.view(B, H, T) for x in (loss, norm, size))
    return Fused(read, loss, norm, size, tuple(last[:L]), tuple(last[L:]))


def _prepare(q: Tensor | None, k: Any, v: Any, step: Any, keep: Any, eta: Tensor | None) -> Chunks:
    """All that the state does not enter, for all chunks at once. Arguments `[N, n, C, ...]`."""
    b, G, f, M_end, m_end = GateProducts.apply(keep, eta)
    bq = fq = qk = None
    if q is not None:
        bq, fq = q * b[..., None], None if f is None else q * f[..., None]
        qk = q @ k.mT
    return Chunks(bq, fq, qk, k, -v, step, G, b, f, M_end, m_end)


def _without_gradients(options: Options, tokens: list[Tensor | None], start: list[Tensor]) -> Any:
    """y, loss, norm, size, state."""
    groups = head_groups(start[0].shape[0], start[0].device)
    made = side_by_side(
        lambda heads: _read_on(options, [None if x is None else x[heads] for x in tokens], [x[heads] for x in start]),
        groups,
    )
    return *(_joined(parts) for parts in zip(*(one[:4] for one in made), strict=True)), [
        _joined(parts) for parts in zip(*(one[4] for one in made), strict=True)
    ]


def _joined(parts: Sequence[Any]) -> Any:
    """Groups of heads together again; None stays None."""
    return parts[0] if parts[0] is None or len(parts) == 1 else torch.cat(list(parts))


def _read_on(options: Options, tokens: list[Tensor | None], start: list[Tensor]) -> Any:
    """y, loss, norm, size, state of some heads; a few chunks prepared at a time."""
    k, v, step = (x for x in tokens[1:4] if x is not None)
    state = [x.clone(memory_format=torch.contiguous_format) for x in start]
    y = None if tokens[0] is None else torch.empty_like(v, memory_format=torch.contiguous_format)
    loss, norm, size = (torch.empty_like(step) for _ in range(3))
    room = Scratch()
    slots: list[Slot] = []
    for begin in range(0, k.shape[1], SLAB):
        part = slice(begin, begin + SLAB)
        chunks = _prepare(*(None if x is None else x[:, part] for x in tokens))
        slots = slots or [Slot.allocate(chunks, state, options.depth, keep=False)]
        results = Results.allocate(chunks, options.depth)
        work = _Work(chunks.split(), Gates.of(chunks), results.split(), room)
        _run(options, work, range(len(work.chunks)), slots, state, last=True)
        if y is not None and results.y is not None:
            y[:, part] = results.y
        loss[:, part], norm[:, part] = results.loss()
        size[:, part] = results.size
    return y, loss, norm, size, state


class _Work(NamedTuple):
    """Chunk by chunk: inputs, gates, results."""

    chunks: list[Chunks]
    gates: list[Gates]
    results: list[Results]
    room: Scratch


def _run(options: Options, work: _Work, span: range, slots: list[Slot], state: list[Tensor], last: bool) -> None:
    """The chunks of `span` from `state`, which moves on in place; over the last chunk only if `last`.

    With a slot a chunk, each keeps the state it starts from.
    """
    keep = bool(slots and slots[0].state)
    if keep:
        for x, start in zip(slots[0].state, state, strict=True):
            x.copy_(start)
    for c in span:
        slot, final = slots[c - span.start if keep else 0], c == span[-1]
        here = slot.state if keep else state
        after = state if final or not keep else slots[c + 1 - span.start].state
        arrives = last or not final
        todo = after if arrives else None
        forward_chunk(options, work.chunks[c], work.gates[c], slot, here, todo, work.results[c], work.room)
        if arrives and c % FLUSH_EVERY == FLUSH_EVERY - 1:
            _flush(after)


def _flush(state: Sequence[Tensor]) -> None:
    """Set what has decayed away to 0."""
    for x in state:
        torch.hardshrink(x, SMALL, out=x)


class _Fused(torch.autograd.Function):
    """`(options, *chunks, *state)` -> `(y, loss, norm, size, *state)`, without B and H but N; n and C apart."""

    @staticmethod
    def forward(ctx: Any, options: Options, *tensors: Any) -> Any:
        chunks, start = Chunks(*tensors[: len(Chunks._fields)]), tensors[len(Chunks._fields) :]
        groups = head_groups(chunks.k.shape[0], chunks.k.device)
        made = side_by_side(lambda heads: _forward(options, _some(chunks, heads), [x[heads] for x in start]), groups)
        # All of it as saved tensors: torch.utils.checkpoint and hooks that offload find nothing else.
        kept: list[Tensor] = []
        ctx.groups, ctx.layout = groups, _taken_out((chunks, [record for _, record in made]), kept)
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        results = [_joined(parts) for parts in zip(*(outputs for outputs, _ in made), strict=True)]
        ctx.mark_non_differentiable(results[3])
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Any) -> Any:
        chunks, kept = _put_back(ctx.layout, ctx.saved_tensors)
        records = dict(zip(map(str, ctx.groups), kept, strict=True))
        made = side_by_side(
            lambda heads: _backward(
                records[str(heads)], _some(chunks, heads), [None if g is None else g[heads] for g in given]
            ),
            ctx.groups,
        )
        return None, *(_joined(parts) for parts in zip(*made, strict=True))


class _Record(NamedTuple):
    """What some heads' forward pass leaves for the backward one."""

    options: Options
    starts: list[list[Tensor]]  # the state at every checkpoint; empty if all was kept
    slots: list[Slot] | None
    error: Tensor
    size: Tensor
    shapes: list[torch.Size]


class _Place(int):
    """Where a tensor stood that was taken out."""


def _taken_out(thing: Any, kept: list[Tensor]) -> Any:
    """The same with a `_Place` for every tensor in lists, named tuples and slots; the tensors are added to `kept`."""
    if isinstance(thing, Tensor):
        kept.append(thing)
        return _Place(len(kept) - 1)
    return _mapped(thing, lambda part: _taken_out(part, kept))


def _put_back(thing: Any, kept: Sequence[Tensor]) -> Any:
    return kept[thing] if isinstance(thing, _Place) else _mapped(thing, lambda part: _put_back(part, kept))


def _mapped(thing: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(thing, Slot):
        return Slot(**{name: function(part) for name, part in vars(thing).items()})
    if isinstance(thing, tuple) and hasattr(thing, "_make") and not isinstance(thing, Options):
        return thing._make(map(function, thing))
    return [function(part) for part in thing] if type(thing) in (list, tuple) else thing


def _some(chunks: Chunks, heads: slice) -> Chunks:
    return Chunks._make(None if x is None else x[heads] for x in chunks)


def _forward(options: Options, chunks: Chunks, start: list[Tensor]) -> tuple[list[Tensor | None], _Record]:
    """y, loss, norm, size and the state of some heads, and what their backward pass needs."""
    n = chunks.k.shape[1]
    results = Results.allocate(chunks, options.depth)
    state = [x.clone(memory_format=torch.contiguous_format) for x in start]
    whole = not 0 < options.checkpoint < n
    slots = [Slot.allocate(chunks, state, options.depth, keep=whole) for _ in range(n if whole else 1)]
    work, starts = _Work(chunks.split(), Gates.of(chunks), results.split(), Scratch()), []
    for span in _spans(n, options.checkpoint):
        if not whole:
            starts.append([x.clone() for x in state])
        _run(options, work, span, slots, state, last=True)
    record = _Record(options, starts, slots if whole else None, results.error, results.size, [x.shape for x in state])
    return [results.y, *results.loss(), results.size, *state], record


def _backward(record: _Record, chunks: Chunks, given: list[Any]) -> list[Any]:
    """The gradients at the chunks and at the state of some heads, from those at what `_forward` returned."""
    g_y, g_loss, g_norm, _, *g_final = given  # of size there is none
    options, slots, error = record.options, record.slots, record.error
    n = chunks.k.shape[1]
    g_state = [chunks.k.new_zeros(shape) for shape in record.shapes]
    for x, g in zip(g_state, g_final, strict=True):
        if g is not None:
            x.copy_(g)
    grads = Chunks._make(None if x is None else torch.empty_like(x) for x in chunks)
    for term in (grads.b, grads.f, grads.m_end):  # sums of several terms; the others are written once
        if term is not None:
            term.zero_()
    g_results = (g_y, None if g_loss is None else 2 * g_loss[..., None] * error, g_norm)
    incoming = [Incoming(*row[:3]) for row in zip(*map(each, g_results), range(n), strict=False)]
    room, g_chunks = Scratch(), grads.split()
    y = None if g_y is None else torch.empty_like(error[:, :1]).expand_as(error)  # made again, and of no use
    norms = error.new_empty(2 * options.depth - 2, *error.shape[:1], 1, error.shape[2])
    results = Results(y, error, record.size, norms.expand(-1, -1, n, -1))
    work = _Work(chunks.split(), Gates.of(chunks), results.split(), room)
    spans = _spans(n, options.checkpoint)
    if slots is None:
        slots = [Slot.allocate(chunks, g_state, options.depth, keep=True) for _ in spans[0]]
    for span in reversed(spans):
        if record.slots is None:
            start = [x.clone() for x in record.starts[span.start // options.checkpoint]]
            _run(options, work, span, slots, start, last=False)
        for c in reversed(span):
            here = work.chunks[c], work.gates[c], slots[c - span.start], work.results[c]
            backward_chunk(options, *here, incoming[c], g_chunks[c], g_state, room)
            if c % FLUSH_EVERY == 0:
                _flush(g_state)
    if g_y is None:
        grads = grads._replace(bq=None, fq=None, qk=None)
    return [*grads, *g_state]


def _spans(n: int, checkpoint: int) -> list[range]:
    """Chunks between two checkpoints; all at once without."""
    return [range(begin, min(n, begin + (checkpoint or n))) for begin in range(0, n, checkpoint or max(n, 1))]
