"""Associative recall among filler: pairs to remember at random places of a stream, then the questions.

    RecallTask(length=20, pairs=3, repeats=2)     k: a key, v: its value, . : filler, - : no label

    x:   .  k2 v2 k1 v1  .  k2 v2 k3 v3  k1 v1 k3 v3 | k3 v3 k1 v1 k2 v2
    y:   -  -  -  -  -   -  -  -  -  -   -  -  -  -  | v3 -  v1 -  v2 -

Every pair stands `repeats` times in the stream, always with the same value, so that a chunk of a memory's update may
see one key more than once. Then each key comes again, in another order, and asks for its value in its own place; the
value follows it, as in any text. Keys are tokens `0 .. keys-1`, values the next ones, filler the rest. The pairs of a
row are drawn anew, so that only what was read in the row itself can answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_LABEL = -100  # what torch's cross entropy ignores


@dataclass(frozen=True)
class RecallTask:
    """The shape of the sequences; see the module's drawing."""

    length: int = 64  # tokens in a sequence, questions and answers included
    pairs: int = 4  # different keys in a sequence
    repeats: int = 1  # times that each pair stands in the stream before the questions
    keys: int = 32  # different key tokens
    values: int = 32  # different value tokens; a guess is right once in so many
    filler: int = 64  # different filler tokens

    def __post_init__(self) -> None:
        if min(self.length, self.pairs, self.repeats, self.keys, self.values) < 1:
            raise ValueError(f"length, pairs, repeats, keys and values must be at least 1; got {self}")
        if self.pairs > self.keys:
            raise ValueError(f"a sequence of {self.pairs} pairs needs as many keys; got keys={self.keys}")
        if self.body < 2 * self.writes:
            raise ValueError(
                f"length must be at least {2 * (self.writes + self.pairs)} for {self.pairs} pairs, each written "
                f"{self.repeats} times and asked for once; got {self.length}"
            )
        if self.filler < 1 and self.body > 2 * self.writes:
            raise ValueError("there is room between the pairs: filler must be at least 1; got 0")

    @property
    def vocabulary(self) -> int:
        """Different tokens."""
        return self.keys + self.values + self.filler

    @property
    def writes(self) -> int:
        """Pairs standing in the stream, repetitions counted."""
        return self.pairs * self.repeats

    @property
    def body(self) -> int:
        """Tokens before the questions."""
        return self.length - 2 * self.pairs

    def batch(self, rows: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw sequences.

        Args:
            rows: how many.
            generator: where the chances come from; None: torch's own.

        Returns:
            `(x, y)`, both `[rows, length]`, int64: tokens, and at each question the value asked for, else `NO_LABEL`.
        """

        def order(count: int) -> Tensor:
            """`[rows, count]`, a permutation a row."""
            return torch.rand(rows, count, generator=generator).argsort(1)

        low, high = self.keys + self.values, self.vocabulary
        x = torch.randint(low, max(high, low + 1), (rows, self.length), generator=generator)
        y = torch.full((rows, self.length), NO_LABEL)
        keys = order(self.keys)[:, : self.pairs]
        values = torch.randint(self.keys, low, (rows, self.pairs), generator=generator)

        # Places for pairs two tokens wide that do not overlap: choose as if they were one token wide, then spread.
        at = order(self.body - self.writes)[:, : self.writes].sort(1).values + torch.arange(self.writes)
        which = order(self.writes) % self.pairs
        x.scatter_(1, at, keys.gather(1, which))
        x.scatter_(1, at + 1, values.gather(1, which))

        asked = order(self.pairs)
        x[:, self.body :: 2] = keys.gather(1, asked)
        x[:, self.body + 1 :: 2] = values.gather(1, asked)
        y[:, self.body :: 2] = values.gather(1, asked)
        return x, y


def accuracy(answers: Tensor, y: Tensor) -> Tensor:
    """Share of the questions answered right.

    Args:
        answers: `[..., rows, length]`, a token a place; only places with a label count.
        y: the same shape, labels as `RecallTask.batch` gives them.

    Returns:
        `[...]`, float32: one share for each leading index (one model each, say).
    """
    asked = y != NO_LABEL
    return ((answers == y) & asked).sum((-1, -2)) / asked.sum((-1, -2))
