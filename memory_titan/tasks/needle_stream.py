"""Needles in a stream of tokens: pairs at chosen depths of filler of any length, asked for at the end.

    StreamTask(length=24, pairs=2, depths=(0.0, 0.5))    k: a key, v: its value, . : filler, - : no label

    x:       k1 v1  .  .  .  .  .  .  .  k2 v2  .  .  .  .  .  .  .  .  . | k2 v2 k1 v1
    labels:  -  -   -  -  -  -  -  -  -  -  -   -  -  -  -  -  -  -  -  - | v2 -  v1 -
             depth 0                     depth 0.5                          questions

The tokens are those of `RecallTask`: keys `0 .. keys-1`, values the next ones, filler the rest. What was trained on one
can be asked by the other. With `text` the filler is real prose, a token a byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memory_titan.tasks.stream import Stream, StreamFiller, draw_depths, lay_stream


@dataclass(frozen=True)
class StreamTask:
    """The shape of the streams; see the module's drawing."""

    length: int = 2048  # tokens, questions and answers included
    pairs: int = 8  # different keys in a row, each written once and asked for once
    depths: tuple[float, ...] = ()  # where pairs stand, each in its turn, from 0, the start, to 1; none: anywhere
    keys: int = 32  # different key tokens
    values: int = 32  # different value tokens; a guess is right once in so many
    filler: int = 64  # different filler tokens; with text 256
    text: str = ""  # filler in place of random tokens: "docs", "topics" or a file; see StreamFiller
    split: str = "all"  # of the text: "train", "test", "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(self.depths))  # JSON gives a list
        if min(self.length, self.pairs, self.keys, self.values) < 1:
            raise ValueError(f"length, pairs, keys and values must be at least 1; got {self}")
        if self.pairs > self.keys:
            raise ValueError(f"{self.pairs} pairs need as many keys; got keys={self.keys}")
        if self.length < 4 * self.pairs:
            raise ValueError(f"{self.pairs} pairs need a length of at least {4 * self.pairs}; got {self.length}")
        if bad := [depth for depth in self.depths if not 0 <= depth <= 1]:
            raise ValueError(f"depths must be from 0 to 1; got {bad[0]}")
        self._filler  # noqa: B018 - refuses what it cannot be

    @property
    def vocabulary(self) -> int:
        """Different tokens."""
        return self.keys + self.values + self.filler

    @property
    def _filler(self) -> StreamFiller:
        return StreamFiller(self.keys + self.values, self.filler, self.text, self.split)

    def batch(self, rows: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Whole streams side by side, to train on.

        Returns:
            `(x, y)`, both `[rows, length]`, int64: tokens, and at each question the value asked for, else `NO_LABEL`.
        """
        piece = next(self.stream(rows, generator).pieces(self.length))
        return piece.ids, piece.labels

    def stream(self, rows: int, generator: torch.Generator | None = None, first: int = 0) -> Stream:
        """Draw keys, values and places; filler is drawn while the pieces are made.

        Args:
            rows: how many.
            generator: where the chances come from; None: torch's own.
            first: number of the first row: over rows 0, 1, ... pairs take their turns at the depths evenly.
        """
        keys = torch.rand(rows, self.keys, generator=generator).argsort(1)[:, : self.pairs]
        values = torch.randint(self.keys, self.keys + self.values, (rows, self.pairs), generator=generator)
        asked = torch.rand(rows, self.pairs, generator=generator).argsort(1)  # the pair of each question
        depths = draw_depths(rows, self.pairs, self.depths, first, generator)
        seed = int(torch.randint(1 << 62, (), generator=generator))
        pieces = lay_stream(
            self.length,
            torch.stack([keys, values], 2),
            depths,
            keys.gather(1, asked),
            values.gather(1, asked),
            self._filler,
            seed,
        )
        return Stream(self.length, depths.gather(1, asked), pieces)
