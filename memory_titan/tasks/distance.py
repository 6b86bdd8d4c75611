"""Recall over one distance: every question stands exactly so many tokens after the pair that it asks for.

    DistanceTask(distance=10, pairs=2)     k: a key, v: its value, . : filler, - : no label

    x:   k1 v1 k2 v2  .  .  .  .  .  .  k1 v1 k2 v2
    y:   -  -  -  -   -  -  -  -  -  -  v1 -  v2 -
         |<---- distance ------------->|

The tokens are those of `RecallTask`, whose questions stand at any distance: what was trained on it can be asked here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memory_titan.tasks.recall import NO_LABEL


@dataclass(frozen=True)
class DistanceTask:
    """The shape of the sequences; see the module's drawing."""

    distance: int = 64  # tokens from a key in its pair to the same key as a question
    pairs: int = 4  # different keys in a sequence
    keys: int = 32  # different key tokens
    values: int = 32  # different value tokens; a guess is right once in so many
    filler: int = 64  # different filler tokens

    def __post_init__(self) -> None:
        if min(self.pairs, self.keys, self.values) < 1:
            raise ValueError(f"pairs, keys and values must be at least 1; got {self}")
        if self.pairs > self.keys:
            raise ValueError(f"a sequence of {self.pairs} pairs needs as many keys; got keys={self.keys}")
        if self.distance < 2 * self.pairs:
            raise ValueError(f"distance must be at least {2 * self.pairs} for {self.pairs} pairs; got {self.distance}")
        if self.filler < 1 and self.distance > 2 * self.pairs:
            raise ValueError("there is room between pairs and questions: filler must be at least 1; got 0")

    @property
    def length(self) -> int:
        """Tokens in a sequence, questions and answers included."""
        return self.distance + 2 * self.pairs

    def batch(self, rows: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw sequences.

        Args:
            rows: how many.
            generator: where the chances come from; None: torch's own.

        Returns:
            `(x, y)`, both `[rows, length]`, int64: tokens, and at each question the value asked for, else `NO_LABEL`.
        """
        low = self.keys + self.values
        x = torch.randint(low, low + max(1, self.filler), (rows, self.length), generator=generator)
        y = torch.full((rows, self.length), NO_LABEL)
        keys = torch.rand(rows, self.keys, generator=generator).argsort(1)[:, : self.pairs]
        values = torch.randint(self.keys, low, (rows, self.pairs), generator=generator)
        pairs = torch.stack([keys, values], 2).flatten(1)
        x[:, : 2 * self.pairs] = pairs
        x[:, self.distance :] = pairs
        y[:, self.distance :: 2] = values
        return x, y
