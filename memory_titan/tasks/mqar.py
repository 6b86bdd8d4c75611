"""Multi-query associative recall: pairs first, then every key again among other tokens (Zoology, arXiv 2312.04927).

    MQARTask(length=16, pairs=2)        k: a key, v: its value, . : any token, - : no label

    x:   k1 v1 k2 v2 k2  .  .  .  .  .  k1  .  .  .  .  .
    y:   -  -  -  -  v2  -  -  -  -  -  v1  -  -  -  -  -

A label stands in its question's own place: there the value is to be said. It does not follow in x. How far behind the
pairs a question stands follows a power law, as repetitions do in text: most come soon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from memory_titan.tasks.recall import NO_LABEL

Noise = Literal["random", "none"]

# (length, pairs) of the experiments around the paper, of training and of testing.
TRAIN = ((64, 4), (128, 8), (256, 16), (256, 32), (256, 64))
TEST = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))


@dataclass(frozen=True)
class MQARTask:
    """The shape of the sequences; see the module's drawing."""

    length: int = 64  # tokens in a sequence
    pairs: int = 4  # different keys in a sequence, each asked for once
    vocabulary: int = 8192  # different tokens: 0, then keys up to the half, then values
    power: float = 0.01  # a of the power law p(gap) ~ gap^(a - 1), gaps in steps of two tokens; 1: any gap alike
    noise: Noise = "random"  # between the questions: any token of the vocabulary, or always token 0

    def __post_init__(self) -> None:
        if min(self.length, self.pairs) < 1:
            raise ValueError(f"length and pairs must be at least 1; got {self}")
        if self.length < 4 * self.pairs:
            raise ValueError(f"{self.pairs} pairs need a length of at least {4 * self.pairs}; got {self.length}")
        if not self.power > 0:
            raise ValueError(f"power must be above 0; got {self.power}")
        if self.noise not in get_args(Noise):
            raise ValueError(f"noise must be one of {', '.join(get_args(Noise))}; got {self.noise!r}")
        if self.keys < self.pairs:
            raise ValueError(
                f"{self.pairs} pairs need a vocabulary of at least {2 * self.pairs + 2}; got {self.vocabulary}"
            )

    @property
    def keys(self) -> int:
        """Different keys, tokens `1 .. keys`; those above are values."""
        return self.vocabulary // 2 - 1

    def batch(self, rows: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw sequences.

        Args:
            rows: how many.
            generator: where the chances come from; None: torch's own.

        Returns:
            `(x, y)`, both `[rows, length]`, int64: tokens, and at each question the value asked for, else `NO_LABEL`.
        """
        half, context = self.keys + 1, 2 * self.pairs

        def choose(low: int, high: int) -> Tensor:
            """`[rows, pairs]`, different numbers in a row."""
            return low + torch.rand(rows, high - low, generator=generator).argsort(1)[:, : self.pairs]

        keys, values = choose(1, half), choose(half, self.vocabulary)
        gaps = torch.arange(1, (self.length - context) // 2 + 1, dtype=torch.float64) ** (self.power - 1)
        at = context + 2 * gaps.expand(rows, -1).multinomial(self.pairs, generator=generator)
        x = torch.zeros(rows, self.length, dtype=torch.long)
        if self.noise == "random":
            x = torch.randint(self.vocabulary, x.shape, generator=generator)
        x[:, 0:context:2], x[:, 1:context:2] = keys, values
        y = torch.full_like(x, NO_LABEL)
        return x.scatter_(1, at, keys), y.scatter_(1, at, values)
