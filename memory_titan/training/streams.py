"""Documents as parallel streams of tokens, a row of the batch each: what training reads, and what an evaluation reads.

A step of training is a function of its number alone, so that a run goes on from any step, in any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memory_titan.models.language_model import IGNORE
from memory_titan.training.text import Document

_NOTHING = -1  # in a stream: padding


@dataclass(frozen=True)
class Piece:
    """So many tokens of every row.

    Attributes:
        ids: `[B, T]`, int64; 0 at padding.
        labels: `[B, T]`, int64: the token that follows each, beyond the piece's end too; -100 where none does.
        mask: `[B, T]`, bool; None: all are tokens.
        begins: `[B, segments]`, bool: the row's state is fresh at the segment's start.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor | None
    begins: Tensor

    def rows(self, chosen: slice) -> Piece:
        """Some of the rows."""
        return self._map(lambda x: x[chosen])

    def to(self, device: torch.device) -> Piece:
        """On a device; `begins` stays where it is looked at."""
        return replace(self._map(lambda x: x.to(device)), begins=self.begins)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Piece:
        mask = None if self.mask is None else function(self.mask)
        return Piece(function(self.ids), function(self.labels), mask, function(self.begins))

    def segments(self) -> list[Piece]:
        """One after the other, each with one column of `begins`."""
        count = self.begins.shape[1]
        masks = [None] * count if self.mask is None else self.mask.chunk(count, 1)
        parts = zip(self.ids.chunk(count, 1), self.labels.chunk(count, 1), masks, self.begins.split(1, 1), strict=True)
        return [Piece(*part) for part in parts]


class Streams:
    """What training reads, epoch after epoch.

    In an epoch the documents stand one behind the other, in an order of its own, and every row reads its part of them:
    as many tokens as each other row, from wherever that part begins. What is left over, fewer tokens than a step has,
    is not read in that epoch. An epoch begins with fresh states.

    Args:
        documents: with a separator in front of each.
        rows: of the batch.
        length: tokens of a row in a step.
        segment: tokens between two detachments; it divides length.
        carry: whether a row's state goes on from step to step; a number: for so many steps, after which it begins
            afresh, the rows in turn.
        reset: whether it begins afresh with every document. The document is then padded, so that the next one begins
            with a segment (or, where nothing is carried, a step).
        seed: of the orders.

    Raises:
        ValueError: there is less text than one step reads.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        rows: int,
        length: int,
        segment: int,
        carry: bool | int = True,
        reset: bool = True,
        seed: int = 0,
    ) -> None:
        self.documents, self.rows, self.length, self.segment = documents, rows, length, segment
        self.carry, self.seed = carry, seed
        self.unit = (segment if carry else length) if reset else None
        whole = sum(_padded(len(each.tokens), self.unit) for each in documents)
        self.part = whole // rows // length * length
        if not self.part:
            tokens = sum(len(each.tokens) for each in documents)
            raise ValueError(
                f"the text to train on has {tokens} tokens{f' ({whole} with padding)' if whole != tokens else ''}; one "
                f"step reads {rows} rows of {length}: less rows or length, or more text"
            )
        self._made: tuple[int, Tensor, Tensor | None] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every row has read its part."""
        return self.part // self.length

    def piece(self, step: int) -> Piece:
        """What all rows read in a step, from 0."""
        epoch, at = divmod(step, self.steps_per_epoch)
        stream, starts = self._epoch(epoch)
        first = torch.arange(self.rows) * self.part + at * self.length
        found = stream[(first[:, None] + torch.arange(self.length + 1)) % len(stream)].long()
        ids, labels = found[:, :-1], found[:, 1:]
        valid = ids != _NOTHING
        begins = torch.zeros(self.rows, self.length // self.segment, dtype=torch.bool)
        if starts is not None and self.unit == self.segment:
            units = first[:, None] // self.unit + torch.arange(begins.shape[1])
            begins |= starts[units % len(starts)]
        if at == 0 or not self.carry:
            begins[:, 0] = True
        elif self.carry is not True:
            begins[:, 0] |= (step + torch.arange(self.rows)) % self.carry == 0
        labels = labels.masked_fill(~valid | (labels == _NOTHING), IGNORE)
        return Piece(ids.masked_fill(~valid, 0), labels, None if bool(valid.all()) else valid, begins)

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """All tokens in the epoch's order, a ring; and which units begin a document."""
        if self._made is None or self._made[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.documents), generator=generator).tolist()
            tokens = [self.documents[index].tokens for index in order]
            unit, starts = self.unit or 1, None
            if self.unit:
                tokens = [_fill(each, self.unit) for each in tokens]
                starts = torch.zeros(sum(len(each) for each in tokens) // unit, dtype=torch.bool)
                lengths = torch.tensor([0, *(len(each) // unit for each in tokens[:-1])])
                starts[lengths.cumsum(0)] = True
            stream = torch.cat(tokens)
            # Of few documents every epoch would else give a row the same part.
            turn = int(torch.randint(len(stream) // unit, (), generator=generator))
            self._made = epoch, stream.roll(-turn * unit), None if starts is None else starts.roll(-turn)
        return self._made[1], self._made[2]


def _padded(tokens: int, unit: int | None) -> int:
    return tokens if unit is None else -(-tokens // unit) * unit


def _fill(tokens: Tensor, unit: int) -> Tensor:
    """Padded to a multiple; the first of the padding is a separator, for the last token to be followed by one."""
    missing = _padded(len(tokens), unit) - len(tokens)
    end = torch.full((missing,), _NOTHING, dtype=torch.int32)
    end[:1] = tokens[0]
    return torch.cat([tokens.int(), end])


def read_beside(documents: Sequence[Document], rows: int, unit: int) -> Iterator[Piece]:
    """Every document once, several beside each other; each begins with a unit, and only its own tokens are labels.

    Args:
        documents: the longer ones are begun first.
        rows: of every piece.
        unit: tokens of every piece.
    """
    own: list[list[tuple[Tensor, int]]] = [[] for _ in range(rows)]  # a document's tokens, and where in it
    for each in sorted(documents, key=lambda document: -len(document.tokens)):
        least = min(own, key=len)
        least += [(each.tokens, at) for at in range(0, len(each.tokens) - 1, unit)]
    for index in range(max(map(len, own))):
        ids, labels = (torch.full((rows, unit), fill) for fill in (_NOTHING, IGNORE))
        begins = torch.zeros(rows, 1, dtype=torch.bool)
        for row in (row for row in range(rows) if index < len(own[row])):
            tokens, at = own[row][index]
            found = tokens[at : at + unit + 1].long()
            ids[row, : len(found) - 1], labels[row, : len(found) - 1] = found[:-1], found[1:]
            begins[row, 0] = at == 0
        valid = ids != _NOTHING
        yield Piece(ids.masked_fill(~valid, 0), labels, None if bool(valid.all()) else valid, begins)
