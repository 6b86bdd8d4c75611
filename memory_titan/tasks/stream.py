"""Streams of tokens of any length, made piece by piece as they are read: ten million tokens take no room.

    stream = task.stream(rows=2, generator=generator)
    for piece in stream.pieces(1024):
        piece.ids, piece.labels, piece.answers           # [2, 1024] each, the last piece shorter

What stands in one by intent is pairs of tokens at some depths, and questions at the end; filler is the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from memory_titan.tasks.examples import Example, collate, stretches
from memory_titan.tasks.recall import NO_LABEL

TEXTS = ("docs", "topics")
SPLITS = ("all", "train", "test")
_BLOCK = 4096  # tokens of filler drawn at a time; part of what a seed means


@dataclass(frozen=True)
class Piece:
    """Some tokens of a stream, and what is to be said at them.

    Attributes:
        ids: `[B, n]`, int64.
        labels: `[B, n]`, int64, the token to be said in a place, where an answer is; else `NO_LABEL`.
        answers: `[B, n]`, int64, the row's answer which that label belongs to, from 0; -1 where there is no label.
    """

    ids: Tensor
    labels: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Stream:
    """Rows of tokens side by side, not yet made.

    Attributes:
        length: tokens of a row, padding counted.
        depths: `[B, answers]`, float32, where what an answer rests on stands, from 0, the start of what comes before
            the questions, to 1, its end; NaN: unknown.
        pieces: of so many tokens, made as they are asked for. The same tokens, however they are cut.
    """

    length: int
    depths: Tensor
    pieces: Callable[[int], Iterator[Piece]]

    @property
    def rows(self) -> int:
        """B."""
        return len(self.depths)


def stream_of_batch(x: Tensor, y: Tensor) -> Stream:
    """A batch of a token task as a stream: every label is an answer of its own, of unknown depth.

    Args:
        x: `[B, T]`, tokens.
        y: `[B, T]`, labels in the places where they are to be said.
    """
    asked = y != NO_LABEL
    answers = torch.where(asked, asked.cumsum(1) - 1, -1)

    def pieces(size: int) -> Iterator[Piece]:
        for begin in range(0, x.shape[1], size):
            part = slice(begin, begin + size)
            yield Piece(x[:, part], y[:, part], answers[:, part])

    return Stream(x.shape[1], torch.full((len(x), int(asked.sum(1).max())), torch.nan), pieces)


def stream_of_examples(examples: Sequence[Example], depths: Sequence[float]) -> Stream:
    """Texts as a stream, padded on the right: an answer is all the tokens it has.

    Args:
        examples: the texts.
        depths: of the evidence, one a text.
    """
    batch = collate(examples)
    told = torch.full((len(examples), max(len(example.answers) for example in examples)), torch.nan)
    told[:] = torch.tensor(depths)[:, None]

    def pieces(size: int) -> Iterator[Piece]:
        for part in stretches(batch, size):
            yield Piece(part.ids, part.follows.masked_fill(part.said == 0, NO_LABEL), part.said - 1)

    return Stream(batch.ids.shape[1], told, pieces)


def shifted(labels: Tensor) -> Tensor:
    """Labels for a model that shifts them itself (`shift_labels=True`, and every other Hugging Face model).

    Such a model compares what it says at a token with the label of the next one, so that each label goes one to the
    right; those in the last column go out.

    Args:
        labels: `[B, T]`, in the places where they are to be said.
    """
    return torch.cat([torch.full_like(labels[:, :1], NO_LABEL), labels[:, :-1]], 1)


@dataclass(frozen=True)
class StreamFiller:
    """Tokens that mean nothing: random ones `base .. base + count - 1`, or the bytes of a text, `base + byte`.

    Args:
        base: the first token.
        count: different tokens; 256 with a text.
        text: "docs", docstrings of Python's library; "topics", its help; a file's path; "": none, random tokens.
        split: of the text's paragraphs: "train", all but every fourth; "test", those; "all".
    """

    base: int
    count: int
    text: str = ""
    split: str = "all"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"filler must be at least 1; got {self.count}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {self.split!r}")
        if self.text and self.count != 256:
            raise ValueError(f"text is read in bytes: filler must be 256; got {self.count}")

    def blocks(self, rows: int, block: int, seed: int) -> Iterator[Tensor]:
        """`[rows, block]`, int64, without end. A text is read on from a random byte of it, round and round."""
        generator = torch.Generator().manual_seed(seed)
        if not self.text:
            while True:
                yield torch.randint(self.base, self.base + self.count, (rows, block), generator=generator)
        text = text_bytes(self.text, self.split)
        at = torch.randint(len(text), (rows, 1), generator=generator)
        while True:
            yield self.base + text[(at + torch.arange(block)) % len(text)].long()
            at = (at + block) % len(text)


def draw_depths(
    rows: int, pairs: int, depths: Sequence[float], first: int, generator: torch.Generator | None
) -> Tensor:
    """`[rows, pairs]`, ascending in a row: each of `depths` in its turn, row `first` on; without any, at random."""
    if not depths:
        return torch.rand(rows, pairs, generator=generator).sort(1).values
    turn = torch.arange(first, first + rows)[:, None] * pairs + torch.arange(pairs)
    return torch.tensor(depths, dtype=torch.float32)[turn % len(depths)].sort(1).values


def lay_stream(
    length: int, pairs: Tensor, depths: Tensor, questions: Tensor, said: Tensor, filler: StreamFiller, seed: int
) -> Callable[[int], Iterator[Piece]]:
    """Pairs among filler, then the questions, each followed by its answer.

    Args:
        length: tokens of a row.
        pairs: `[rows, n, 2]`, in the order in which they stand.
        depths: `[rows, n]`, ascending. Several may stand at one: they then stand side by side.
        questions, said: `[rows, m]`, a token and what is to be said at it, which is also the token after it.
        filler: the rest.
        seed: of the filler.

    Returns:
        `Stream.pieces`.
    """
    rows, number = depths.shape
    body = length - 2 * questions.shape[1]
    # Pairs of no width at first, several in one place if need be; then each moves those behind it.
    at = (depths.double() * (body - 2 * number)).round().long() + 2 * torch.arange(number)
    ends = body + 2 * torch.arange(questions.shape[1]).expand(rows, -1)
    places = torch.cat([at, at + 1, ends, ends + 1], 1)
    tokens = torch.cat([pairs[..., 0], pairs[..., 1], questions, said], 1)

    def pieces(size: int) -> Iterator[Piece]:
        block = min(_BLOCK, length)
        blocks = filler.blocks(rows, block, seed)
        held = next(blocks)
        for begin in range(0, length, size):
            end = min(begin + size, length)
            if (missing := end - begin - held.shape[1]) > 0:
                held = torch.cat([held, *(next(blocks) for _ in range(-(-missing // block)))], 1)
            ids, held = held[:, : end - begin].clone(), held[:, end - begin :]
            row, column = torch.nonzero((places >= begin) & (places < end), as_tuple=True)
            ids[row, places[row, column] - begin] = tokens[row, column]
            labels, answers = torch.full_like(ids, NO_LABEL), torch.full_like(ids, -1)
            row, column = torch.nonzero((ends >= begin) & (ends < end), as_tuple=True)
            where = row, ends[row, column] - begin
            labels[where], answers[where] = said[row, column], column
            yield Piece(ids, labels, answers)

    return pieces


@cache
def text_bytes(name: str, split: str = "all") -> Tensor:
    """`[bytes]`, uint8: a text's paragraphs, or a share of them; see `StreamFiller`.

    Raises:
        ValueError: there is no such text, or nothing in that share of it.
    """
    if name == "docs":
        from memory_titan.tasks.python_docs import python_docs

        sessions = python_docs(questions=1).sessions
        paragraphs = [turn.text for session in sessions for turn in session.turns]
    elif name == "topics":
        from memory_titan.tasks.filler import python_topics

        paragraphs = list(python_topics().paragraphs)
    elif Path(name).is_file():
        from memory_titan.tasks.filler import read_passages

        paragraphs = list(read_passages(Path(name)).paragraphs)
    else:
        raise ValueError(f"text must be {' or '.join(TEXTS)}, or a file; there is no {name!r}")
    kept = [p for number, p in enumerate(paragraphs) if split == "all" or (number % 4 == 3) == (split == "test")]
    joined = bytearray("\n\n".join(kept).encode())
    if not joined:
        raise ValueError(f"{name} has nothing for split {split!r}")
    return torch.frombuffer(joined, dtype=torch.uint8)
