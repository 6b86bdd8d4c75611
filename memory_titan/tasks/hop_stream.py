"""Hash hop over tokens: pairs of symbols in shuffled order make chains; given the first of one, name the last.

    HopTask(length=18, pairs=4, hops=2)     a -> b -> c and d -> e -> f; . : filler, - : no label

    x:       .  b  c  .  d  e  .  .  a  b  .  e  f  . | a  c  d  f
    labels:  -  -  -  -  -  -  -  -  -  -  -  -  -  - | c  -  f  -

After Magic's HashHop, with a token a hash; `tasks/hash_hop.py` writes it as text. No symbol stands in two chains of a
row. With one hop it is recall whose values are of the same kind as its keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memory_titan.tasks.stream import Stream, StreamFiller, draw_depths, lay_stream


@dataclass(frozen=True)
class HopTask:
    """The shape of the streams; see the module's drawing."""

    length: int = 256  # tokens, questions and answers included
    pairs: int = 8  # in a row, of all chains together; a multiple of hops
    hops: int = 2  # pairs of a chain
    depths: tuple[float, ...] = ()  # where chains stand, each in its turn, from 0, the start, to 1; none: anywhere
    symbols: int = 64  # different tokens that a hash can be, 0 .. symbols-1
    filler: int = 64  # different filler tokens, the next ones; with text 256
    text: str = ""  # filler in place of random tokens: "docs", "topics" or a file; see StreamFiller
    split: str = "all"  # of the text: "train", "test", "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(self.depths))  # JSON gives a list
        if min(self.length, self.pairs, self.hops) < 1:
            raise ValueError(f"length, pairs and hops must be at least 1; got {self}")
        if self.pairs % self.hops:
            raise ValueError(f"pairs must be a multiple of hops={self.hops}; got {self.pairs}")
        if self.length < (needed := 2 * (self.pairs + self.questions)):
            raise ValueError(f"{self.pairs} pairs need a length of at least {needed}; got {self.length}")
        if self.symbols < (needed := self.pairs + self.questions):
            raise ValueError(f"{self.pairs} pairs in chains of {self.hops} need symbols={needed}; got {self.symbols}")
        if bad := [depth for depth in self.depths if not 0 <= depth <= 1]:
            raise ValueError(f"depths must be from 0 to 1; got {bad[0]}")
        self._filler  # noqa: B018 - refuses what it cannot be

    @property
    def questions(self) -> int:
        """Chains, each asked for once."""
        return self.pairs // self.hops

    @property
    def vocabulary(self) -> int:
        """Different tokens."""
        return self.symbols + self.filler

    @property
    def _filler(self) -> StreamFiller:
        return StreamFiller(self.symbols, self.filler, self.text, self.split)

    def batch(self, rows: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Whole streams side by side, to train on.

        Returns:
            `(x, y)`, both `[rows, length]`, int64: tokens, and at each question the symbol asked for, else `NO_LABEL`.
        """
        piece = next(self.stream(rows, generator).pieces(self.length))
        return piece.ids, piece.labels

    def stream(self, rows: int, generator: torch.Generator | None = None, first: int = 0) -> Stream:
        """Draw chains and places; filler is drawn while the pieces are made. An answer's depth is its first pair's.

        Args:
            rows: how many.
            generator: where the chances come from; None: torch's own.
            first: number of the first row: over rows 0, 1, ... chains take their turns at the depths evenly.
        """
        needed = self.pairs + self.questions
        drawn = torch.rand(rows, self.symbols, generator=generator).argsort(1)[:, :needed]
        chains = drawn.view(rows, self.questions, self.hops + 1)
        links = torch.stack([chains[..., :-1], chains[..., 1:]], -1).flatten(1, 2)  # [rows, pairs, 2], chain by chain
        if self.depths:  # a chain's pairs at one depth
            turns = draw_depths(rows, self.questions, self.depths, first, generator)
            turns = turns.gather(1, torch.rand(turns.shape, generator=generator).argsort(1))
            of_link = turns[..., None].expand(-1, -1, self.hops)
        else:
            of_link = torch.rand(rows, self.questions, self.hops, generator=generator)
        # In the order of their depths; those of one depth in any.
        order = torch.rand(rows, self.pairs, generator=generator).argsort(1)
        depths, at = of_link.flatten(1).gather(1, order).sort(1)
        order = order.gather(1, at)
        seed = int(torch.randint(1 << 62, (), generator=generator))
        pairs = links.gather(1, order[..., None].expand(-1, -1, 2))
        pieces = lay_stream(self.length, pairs, depths, chains[..., 0], chains[..., -1], self._filler, seed)
        return Stream(self.length, of_link.amin(2), pieces)
