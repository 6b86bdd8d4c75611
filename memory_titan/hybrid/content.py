"""What was said, in fast weights: a matrix memory from (slot, position) to tokens.

Each position of each slot has a sparse random key: K of F features, by a hash. Each token has a random code of signs of
width d, and each place turns the signs its own way, so that the traces of frequent tokens do not add up. Writing is the
neural memory's own delta rule (`memory/neural/chunk.py`, depth 1), reading a matrix product and the nearest code.

Keys that share almost nothing are the capacity: after N writes to F features, what was written stands against noise of
power N/F, and a code of width d is found among V as long as that is under about d / (4 ln V), 6 for d = 256 and
V = 49,152. Every write therefore takes the step 1 / (1 + N/F): with a full step, new content erases the old (its trace
fades as exp(-N/F)); with this one, all that is held keeps the same strength. Measured at F = 16,384, d = 256: 2,048
sentences come back to the letter, against the last few hundred at full step (`docs/log.md`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memory_titan.memory.neural.chunk import chunk_memory
from memory_titan.memory.neural.rule import FastWeights, Gates, Rule

_ACTIVE = 16  # K, features of a key
_HEIGHT = 8.0  # their value: |key|^2 = 1024 makes the rule's 1 / (1 + |h|^2) a full step, to a thousandth
_SHARPNESS = 40.0  # of the choice among tokens, in units of the best match


@dataclass
class Recalled:
    """What was read at one slot.

    Attributes:
        ids: `[T]`, the nearest token at each position.
        soft: `[T, hidden]`, the expected embedding: what goes into the prompt.
        clarity: 0 to 1, how far the best token stands above the second, mean over positions.
    """

    ids: list[int]
    soft: Tensor
    clarity: float


class Content:
    """The fast weights, `[features, width]` float32, and how to write, read and erase them.

    Args:
        features: F.
        width: d, a multiple of 64.
        embeddings: `[V, hidden]`, the frozen model's input embeddings.
    """

    def __init__(self, features: int, width: int, embeddings: Tensor) -> None:
        self.features, self.width = features, width
        self.embeddings = embeddings
        self.weights = torch.zeros(features, width)
        self.codes = _token_codes(embeddings.shape[0], width)

    def write(self, names: list[int], tokens: list[list[int]], step: float) -> None:
        """Write each text under its slot's name. step: 0 to 1."""
        keys = torch.cat([self._keys(name, len(ids)) for name, ids in zip(names, tokens, strict=True)])
        values = self.codes[torch.tensor([token for ids in tokens for token in ids], dtype=torch.long)]
        signs = torch.cat([self._signs(name, len(ids)) for name, ids in zip(names, tokens, strict=True)])
        self._update(keys, signs * values, step)

    def erase(self, names: list[int], lengths: list[int]) -> None:
        """Write silence: W <- W - K^+ K W, after which every key of these slots reads zero.

        Solved, not stepped towards: a step leaves a thousandth of the content, and the nearest code is the same however
        faint it is.
        """
        keys = torch.cat([self._keys(name, length) for name, length in zip(names, lengths, strict=True)]).double()
        rows = keys.any(0).nonzero()[:, 0]
        keys, weights = keys[:, rows], self.weights[rows].double()
        rest = weights - keys.T @ torch.linalg.solve(keys @ keys.T, keys @ weights)
        # What is left of them is rounding, and the nearest code could read even that: round it to what a file holds.
        self.weights = self.weights.index_copy(0, rows, rest.half().float())

    def surprise(self, name: int, tokens: list[int], strength: float) -> Tensor:
        """`[T]`, |M(k) - v|^2 / |v|^2 of the tokens at a slot that holds content of this strength; 0: all known."""
        read = self._read(name, len(tokens)) / max(strength, 1e-6)
        wanted = self.codes[torch.tensor(tokens, dtype=torch.long)]
        return (read - wanted).square().sum(-1).clamp(max=1.0)

    def read(self, name: int, length: int) -> Recalled:
        """Read `length` tokens at a slot."""
        scores = self._read(name, length) @ self.codes.T
        best, ids = scores.topk(2, -1)
        top = best[:, :1].clamp(min=1e-9)
        soft = torch.softmax(_SHARPNESS * scores / top, -1).to(self.embeddings) @ self.embeddings
        clarity = (1 - best[:, 1:] / top).clamp(0, 1).mean()
        return Recalled(ids[:, 0].tolist(), soft, float(clarity))

    def _read(self, name: int, length: int) -> Tensor:
        chosen = self._active(name, length)
        again = (chosen[:, :, None] == chosen[:, None]).tril(-1).any(-1)  # a feature twice in a key counts once
        return self._signs(name, length) * _HEIGHT * (self.weights[chosen] * ~again[..., None]).sum(1)

    def _update(self, keys: Tensor, values: Tensor, step: float) -> None:
        rows = keys.any(0).nonzero()[:, 0]  # the others' keys are zero: nothing is read there, and nothing written
        none = torch.zeros(1, 1, len(keys))
        rule = Rule(chunk_size=len(keys))  # one chunk, whose end forms the weights
        state = FastWeights.start((self.weights[rows][None, None],), False, rule)
        gates = Gates(step=none + step, log_keep=none)
        _, _, state = chunk_memory(None, keys[None, None, :, rows], values[None, None], gates, state, rule)
        self.weights = self.weights.index_copy(0, rows, state.weights[0][0, 0])

    def _active(self, name: int, length: int) -> Tensor:
        """`[length, K]`, int64: the features of each position's key; one may stand there twice."""
        places = np.arange(length * _ACTIVE, dtype=np.uint64) + np.uint64((name << 20) & 0xFFFFFFFFFFFFFFFF)
        return torch.from_numpy((_hash(places) % np.uint64(self.features)).astype(np.int64)).view(length, _ACTIVE)

    def _keys(self, name: int, length: int) -> Tensor:
        """`[length, features]`: K features at each position, each of value `_HEIGHT`."""
        return torch.zeros(length, self.features).scatter_(1, self._active(name, length), _HEIGHT)

    def _signs(self, name: int, length: int) -> Tensor:
        """`[length, width]`, +-1: each place's own, so that a frequent token's traces do not add up to a habit."""
        return _random_signs((1 << 62) + (name << 20), length, self.width)


def _token_codes(vocabulary: int, width: int) -> Tensor:
    """`[vocabulary, width]`, +-1/sqrt(width)."""
    return _random_signs(1 << 63, vocabulary, width) / width**0.5


def _random_signs(start: int, rows: int, width: int) -> Tensor:
    """`[rows, width]`, +-1: the bits of a hash, the same on every machine and in every version."""
    words = _hash(np.arange(rows * (width // 64), dtype=np.uint64) + np.uint64(start))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8)).reshape(rows, width)
    return torch.from_numpy(bits).float() * 2 - 1


def _hash(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea, Flood 2014) of each element."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
