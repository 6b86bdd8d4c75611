"""The writes of the long-term memory's weights in NumPy: `NeuralMemory.memorize` for the one rule that the store has.

One head, an MLP with SiLU, the exact gradient in the last matrix, momentum, and gates that are the same at every token.
So how much of token i is in the weights and in the momentum at token t depends on t - i alone, and is looked up:

    W_n = a^n W_0 + f_n S_0 - sum_i g_{n-1-i} x_i^T d_i          g_r = theta sum_{j<=r} a^(r-j) eta^j
    S_n = eta^n S_0 - sum_i h_{n-1-i} x_i^T d_i                  h_r = theta eta^r,  f_n = sum_{1<=j<=n} a^(n-j) eta^j

for every matrix, x_i being its input at token i and d_i its delta; `memory/neural/chunk.py` has the derivation. The
numbers are `NeuralMemory`'s up to rounding, in a third to half of its time; so is the state that is kept in files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryState
from memory_titan.store.item import Vector

Matrices = tuple[Vector, ...]
TINY = np.float32(1e-23)  # added and taken away again: what is under 1e-30 is 0 then, and no denormal number


class Rule:
    """What does not change: the gates, multiplied up for `n` tokens, and what the memory's configuration says.

    Args:
        memory: of one head, without projections, whose gates do not depend on what it reads.
    """

    def __init__(self, memory: NeuralMemory) -> None:
        config = memory.config
        self.dim, self.depth, self.chunk, self.lower = config.dim, config.depth, config.chunk_size, config.lower_step
        with torch.no_grad():
            gates = memory.gating(torch.zeros(1, 1, config.dim), torch.float64)
            start = memory.initial_state(1)
        assert gates.log_momentum is not None
        keep, eta = math.exp(float(gates.log_keep)), math.exp(float(gates.log_momentum))
        theta, n = float(gates.step), np.arange(self.chunk + 1)
        a, m = keep**n, eta**n
        self.kept, self.momentum = a.astype(np.float32), m.astype(np.float32)  # [chunk + 1], after n tokens
        self.pushed = np.array([a[:t] @ m[t:0:-1] for t in n], np.float32)
        self.muon = theta / self.chunk * np.concatenate([[0.0], np.cumsum(a[:-1])])  # of no use, but in the state
        # [chunk], of a token r tokens ago
        self.in_weights = np.array([theta * (a[: r + 1] @ m[r::-1]) for r in n[:-1]], np.float32)
        self.in_momentum = (theta * m[:-1]).astype(np.float32)
        ago = n[:-1, None] - 1 - n[:-1]
        self.before = np.where(ago >= 0, self.in_weights[ago], np.float32(0))  # [t, i], before t's own write
        self.start = start
        self.merged = bool(start.anchor)  # the state holds present weights in place of an open chunk's tokens


@dataclass(frozen=True)
class FastWeights:
    """What was written. Never altered, but for rows of the buffers behind its `tokens`: those are later ones'.

    Attributes:
        rule: see there.
        weights, momentum: `[in, out]` a matrix, as they stood before the buffered tokens.
        anchor: the weights at the open chunk's start.
        inputs, deltas: `[chunk, in]` and `[chunk, out]` a matrix, of the buffered tokens; deltas times what of the step
            depends on the token.
        tokens: in the buffers.
        place: tokens of the open chunk.
        written: tokens in all.
    """

    rule: Rule
    weights: Matrices
    momentum: Matrices
    anchor: Matrices
    inputs: Matrices
    deltas: Matrices
    tokens: int
    place: int
    written: int

    @classmethod
    def of(cls, rule: Rule, state: NeuralMemoryState) -> FastWeights:
        """From the state of a `NeuralMemory` of one batch row."""
        weights, momentum, anchor, inputs, deltas = (
            tuple(np.array(x[0, 0].numpy(), np.float32) for x in part)
            for part in (state.weights, state.momentum, state.anchor, state.inputs, state.deltas)
        )
        place, buffers = int(state.position[0]), _buffers(rule)
        if not rule.merged:
            for kept, buffer in zip((*inputs, *deltas), (*buffers[0], *buffers[1]), strict=True):
                buffer[:place] = kept[:place]
        tokens = 0 if rule.merged else place
        return cls(rule, weights, momentum, anchor or weights, *buffers, tokens, place, int(state.tokens[0]))

    def state(self) -> NeuralMemoryState:
        """As `NeuralMemory` has it."""
        rule = self.rule
        now = self.folded() if rule.merged else self
        n, start = now.tokens, rule.start
        coefficients = np.zeros((start.coefficients.shape[2], 2), np.float32)
        if n:
            coefficients[:n] = np.stack([rule.in_weights[:n][::-1], rule.in_momentum[:n][::-1]], -1)
        scale = [rule.kept[n], rule.pushed[n], rule.momentum[n], rule.muon[now.place]]
        kept = [[] if rule.merged else [_cut(x, n) for x in part] for part in (now.inputs, now.deltas)]
        return replace(
            start,
            weights=_tensors(now.weights),
            momentum=_tensors(now.momentum),
            anchor=_tensors(now.anchor) if rule.merged else (),
            inputs=_tensors(kept[0]),
            deltas=_tensors(kept[1]),
            coefficients=torch.from_numpy(coefficients)[None, None],
            scale=torch.tensor(scale, dtype=torch.float32)[None, None],
            position=torch.tensor([now.place]),
            tokens=torch.tensor([now.written]),
        )

    @cached_property
    def present(self) -> Matrices:
        """`[in, out]` a matrix, as they stand after the last token."""
        return tuple(self._weight(i) for i in range(self.rule.depth)) if self.tokens else self.weights

    def write(self, vectors: Vector) -> tuple[FastWeights, Vector]:
        """Read `[n, dim]`, finite.

        Returns:
            what is written then, and `[n]`, float32: `|M(x) - x|^2` of each before its own write.

        Raises:
            FloatingPointError: the numbers became too large.
        """
        now, errors, begin = self, np.empty(len(vectors), np.float32), 0
        while begin < len(vectors):
            part = slice(begin, begin + self.rule.chunk - now.place)
            now, errors[part] = now._stretch(vectors[part])
            if now.place == self.rule.chunk:
                now = now._closed()
            begin = part.stop
        return now, errors

    def _stretch(self, v: Vector) -> tuple[FastWeights, Vector]:
        """`[c, dim]`, of the open chunk."""
        rule, old, last = self.rule, self.tokens, self.rule.depth - 1
        new, end = slice(old, old + len(v)), old + len(v)
        lengths = np.sqrt(np.einsum("ij,ij->i", v, v))[:, None]
        x, slopes = v / np.where(lengths > 1e-12, lengths, np.float32(1)), []
        for i in range(last):
            self.inputs[i][new] = x
            z = x @ self.anchor[i]
            sigmoid = 1 / (1 + np.exp(-z))
            x = z * sigmoid
            slopes.append(sigmoid * (1 + z - x))
        self.inputs[last][new] = x

        # what the last matrix answers before each token's own write: a triangular system
        n = (x @ self.inputs[last][:end].T) * rule.before[new, :end]
        answer = rule.kept[new, None] * (x @ self.weights[last])
        if old or self.written:
            answer += rule.pushed[new, None] * (x @ self.momentum[last])
        if old:
            answer -= n[:, :old] @ self.deltas[last][:old]
        unit = 1 / (1 + np.einsum("ij,ij->i", x, x))
        system = torch.from_numpy(n[:, old:] * unit)  # read below its diagonal only, which counts as 1
        inverse = torch.linalg.solve_triangular(system, torch.eye(len(v)), upper=False, unitriangular=True)
        error = inverse.numpy() @ (answer - v)
        losses = np.einsum("ij,ij->i", error, error)
        if not np.isfinite(losses).all():
            raise FloatingPointError("the values are too large: the memory's weights would not be finite")

        np.multiply(error, unit[:, None], out=self.deltas[last][new])
        below, delta = np.float32(rule.lower) * unit[:, None], error
        for i in range(last - 1, -1, -1):
            delta = (delta @ self.anchor[i + 1].T) * slopes[i]
            np.multiply(delta, below, out=self.deltas[i][new])
        return replace(self, tokens=end, place=self.place + len(v), written=self.written + len(v)), losses

    def folded(self) -> FastWeights:
        """The same, with the buffered tokens in the weights and the momentum."""
        if not self.tokens:
            return self
        momentum = tuple(self._momentum(i) for i in range(self.rule.depth))
        inputs, deltas = _buffers(self.rule)
        return replace(self, weights=self.present, momentum=momentum, inputs=inputs, deltas=deltas, tokens=0)

    def _closed(self) -> FastWeights:
        """At the chunk's end the anchor moves up."""
        now = self.folded()
        for x in (*now.weights, *now.momentum):  # nobody else has them yet
            x += TINY
            x -= TINY
        return replace(now, anchor=now.weights, place=0)

    def _weight(self, i: int) -> Vector:
        n, rule = self.tokens, self.rule
        now = self.inputs[i][:n].T @ (self.deltas[i][:n] * -rule.in_weights[:n][::-1, None])
        now += rule.kept[n] * self.weights[i]
        now += rule.pushed[n] * self.momentum[i]
        return now

    def _momentum(self, i: int) -> Vector:
        n, rule = self.tokens, self.rule
        now = self.inputs[i][:n].T @ (self.deltas[i][:n] * -rule.in_momentum[:n][::-1, None])
        now += rule.momentum[n] * self.momentum[i]
        return now


def _buffers(rule: Rule) -> tuple[Matrices, Matrices]:
    """Of inputs and of deltas."""
    weights = rule.start.weights
    inputs = tuple(np.empty((rule.chunk, w.shape[2]), np.float32) for w in weights)
    return inputs, tuple(np.empty((rule.chunk, w.shape[3]), np.float32) for w in weights)


def _cut(buffer: Vector, tokens: int) -> Vector:
    """As the state keeps it: a row less, and zeros behind the tokens."""
    kept = buffer[:-1].copy()
    kept[tokens:] = 0
    return kept


def _tensors(matrices: Matrices | list[Vector]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(x)[None, None] for x in matrices)
