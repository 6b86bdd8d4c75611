"""What `node.py` works on: a run's tensors, whole and chunk by chunk. Notation as in `chunk.py`, N = B * H heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor


class Options(NamedTuple):
    """What `fused_chunks` is asked to do, tensors aside."""

    depth: int
    exact: bool
    activation: str
    lower_step: float
    step_norm: bool
    checkpoint: int

    def step_of(self, layer: int) -> float:
        """The layer's step relative to the last one's."""
        return 1.0 if layer == self.depth - 1 else self.lower_step


class Chunks(NamedTuple):
    """All that the loop over n chunks reads and the state does not enter; C tokens, N heads. Also: gradients at it.

    Without queries bq, fq and qk are None; without momentum fq, f, M_end and m_end are.
    """

    bq: Tensor | None  # [N, n, C, d] b_t q_t
    fq: Tensor | None  # [N, n, C, d] f_t q_t
    qk: Tensor | None  # [N, n, C, C] q_t . k_i
    k: Tensor  # [N, n, C, d]
    minus_v: Tensor  # [N, n, C, d_v]
    theta: Tensor  # [N, n, C]
    G: Tensor  # [N, n, C, C]
    b: Tensor  # [N, n, C]
    f: Tensor | None  # [N, n, C]
    M_end: Tensor | None  # [N, n, C] m_C / m_i
    m_end: Tensor | None  # [N, n]

    def split(self) -> list[Chunks]:
        """Chunk by chunk: the same without n."""
        return [Chunks(*row) for row in zip(*map(each, self), strict=False)]


class Gates(NamedTuple):
    """A chunk's gates in the shapes in which they multiply; those with momentum may be None."""

    b: Tensor  # [N, C, 1]
    b_before: Tensor  # [N, C, 1] a token earlier
    b_end: Tensor  # [N, 1, 1]
    f: Tensor | None
    f_before: Tensor | None
    f_end: Tensor | None
    m_end: Tensor | None  # [N, 1, 1]
    ends: Tensor  # [J, N, C] last rows of G and, with momentum (J = 2), of M

    @classmethod
    def of(cls, chunks: Chunks) -> list[Gates]:
        """Chunk by chunk. Before a chunk's first token b = 1, f = 0."""
        sets: list[Tensor | None] = []
        for x, first in ((chunks.b, 1.0), (chunks.f, 0.0)):
            if x is None:
                sets += [None] * 3
                continue
            before = torch.full_like(x, first)
            before[..., 1:] = x[..., :-1]
            sets += [x[..., None], before[..., None], x[..., -1, None, None]]
        sets.append(None if chunks.m_end is None else chunks.m_end[..., None, None])
        ends = [x for x in (chunks.G[..., -1, :], chunks.M_end) if x is not None]
        return [cls(*row) for row in zip(*map(each, sets), torch.stack(ends).unbind(2), strict=False)]


def each(x: Tensor | None) -> Iterable[Tensor | None]:
    """`[N, n, ...]` chunk by chunk; None without end."""
    return repeat(None) if x is None else x.unbind(1)


class Results(NamedTuple):
    """What the chunks leave besides the state."""

    y: Tensor | None  # [N, n, C, d_v]; None if not wanted
    error: Tensor  # [N, n, C, d_v]
    size: Tensor  # [N, n, C] 1 + |h|^2
    norms: Tensor  # [2 (L - 1), N, n, C] of the lower layers' |x_l|, then their |delta_l|

    @classmethod
    def allocate(cls, chunks: Chunks, depth: int) -> Results:
        """Unset, but for the norms of k."""
        v, theta = chunks.minus_v, chunks.theta
        y, error = (torch.empty_like(v, memory_format=torch.contiguous_format) for _ in range(2))
        norms = theta.new_empty(2 * depth - 2, *theta.shape)
        if depth > 1:
            torch.linalg.vector_norm(chunks.k, dim=-1, out=norms[0])
        return cls(None if chunks.bq is None else y, error, torch.empty_like(theta), norms)

    def split(self) -> list[Results]:
        """Chunk by chunk: the same without n."""
        return [Results(*row) for row in zip(*map(each, self[:3]), self.norms.unbind(2), strict=False)]

    def loss(self) -> tuple[Tensor, Tensor]:
        """|M(k) - v|^2 and the squared gradient norm, the sum of |x_l|^2 |delta_l|^2 over layers; `[N, n, C]`."""
        loss = self.error.square().sum(-1)
        lower = len(self.norms) // 2
        norm = torch.addcmul(-loss, loss, self.size)
        for x, delta in zip(self.norms[:lower], self.norms[lower:], strict=True):
            norm.add_((x * delta).square_())
        return loss, norm


class Scratch:
    """Room for what lives within one chunk, the same for every chunk, handed out in the order in which it is asked for.

    New memory can cost more than what is computed into it: the system gives it out page by page.
    """

    def __init__(self) -> None:
        self._rooms: list[Tensor] = []
        self._next = 0

    def start(self) -> None:
        """A new chunk: all is free again."""
        self._next = 0

    def __call__(self, like: Tensor, times: int = 0) -> Tensor:
        """Unset, contiguous, of the shape, dtype and device of `like`; so many of them in one, if `times` says so."""
        shape = (times, *like.shape) if times else like.shape
        if self._next == len(self._rooms):
            self._rooms.append(like.new_empty(shape))
        elif self._rooms[self._next].shape != shape:
            self._rooms[self._next] = like.new_empty(shape)
        self._next += 1
        return self._rooms[self._next - 1]


@dataclass
class Slot:
    """What one chunk computed: for the backward pass, or room to work in. Lists have an entry a layer."""

    state: list[Tensor]  # weights, then momentum, `[N, in, out]`, at the chunk's start; empty if not kept
    z: list[Tensor]  # [N, C, width] the keys at a hidden layer, before the activation
    u: list[Tensor]  # the queries likewise
    t: list[Tensor]  # [N, C, width] delta_{l+1} W_{l+1}^T, before the activation's slope
    yx: list[Tensor]  # [N, C, C] y_t . x_i of layer l; nothing at 0, where it is qk
    yw: list[Tensor]  # [N, C, out] y W of layer l; nothing at 0
    ys: list[Tensor]  # [N, C, out] y S
    hh: Tensor  # [N, C, C] h_t . h_i
    inverse: Tensor  # [N, C, C] of I + N
    hw: Tensor  # [N, C, d_v] h W of the last layer
    hs: Tensor

    @classmethod
    def allocate(cls, chunks: Chunks, state: Sequence[Tensor], depth: int, keep: bool) -> Slot:
        """Room for one chunk; `state`: weights, then momentum."""
        k = chunks.k
        N, _, C, _ = k.shape

        def room(*shape: int) -> Tensor:
            return k.new_empty(N, C, *shape)

        widths = [w.shape[-1] for w in state[:depth]]
        read, moving = chunks.bq is not None, len(state) > depth
        return cls(
            state=[torch.empty_like(x, memory_format=torch.contiguous_format) for x in state] if keep else [],
            z=[room(width) for width in widths[:-1]],
            u=[room(width) for width in widths[:-1] if read],
            t=[room(width) for width in widths[:-1]],
            yx=[room(C * (layer > 0)) for layer in range(depth) if read],
            yw=[room(widths[layer] * (layer > 0)) for layer in range(depth) if read],
            ys=[room(widths[layer] * (layer > 0)) for layer in range(depth) if read and moving],
            hh=room(C),
            inverse=room(C),
            hw=room(widths[-1]),
            hs=room(widths[-1]),
        )
