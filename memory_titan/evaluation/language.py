"""Language models on tasks over tokens: share of answers said right by length and depth, with the memory and spoilt.

    cells = niah(model, lengths=[2048, 1 << 20], depths=[0, 0.5, 1], ways=["model", "off"])
    draw(report(cells), folder)                    # the picture people know: length to the right, depth downwards

All take any causal language model of Hugging Face; see `evaluation/reading.py` for how it reads, and
`evaluation/probes.py` for the ways to spoil a memory.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from memory_titan.evaluation.compare import Share
from memory_titan.evaluation.probes import AS_IT_IS, probing
from memory_titan.evaluation.reading import reading_limit, say
from memory_titan.tasks.hop_stream import HopTask
from memory_titan.tasks.mqar import TEST, MQARTask
from memory_titan.tasks.needle_stream import StreamTask
from memory_titan.tasks.stream import Stream, stream_of_batch
from memory_titan.viz.needle import draw_heat

ROWS = 16  # streams read side by side, at most
_TOKENS = 1 << 16  # of them together, at most, unless one alone is longer: two long ones keep a core as busy as many

OnRead = Callable[[str, int], None]  # told which length and way, and how many tokens were read
Draw = Callable[[int, torch.Generator, int], Stream]  # rows, chances, number of the first row


def _nobody(what: str, tokens: int) -> None:
    return


@dataclass(frozen=True)
class Cell:
    """Answers of one way, length and depth.

    Attributes:
        way: "model", as it is, or a probe.
        length: tokens of a stream.
        pairs: in a stream.
        depth: where what was asked for stands; None: anywhere.
        right, total: answers; total is 0 where the model cannot read so much.
        overflowed: of those that are wrong, the ones where the model's logits were no numbers.
        state_bytes: of what the model carries on for one text at its end; 0: it carries nothing on.
    """

    way: str
    length: int
    pairs: int
    depth: float | None
    right: int
    total: int
    overflowed: int = 0
    state_bytes: int = 0

    @property
    def share(self) -> Share:
        """With its interval."""
        return Share(self.right, self.total)


@torch.no_grad()
def ask_streams(
    model: Any,
    draw: Draw,
    length: int,
    pairs: int,
    samples: int,
    ways: Sequence[str] = (AS_IT_IS,),
    depths: Sequence[float] = (),
    seed: int = 0,
    piece: int | None = None,
    on_read: OnRead = _nobody,
) -> Iterator[Cell]:
    """Ask all questions of some streams in some ways; the streams are the same in each.

    Args:
        model: a causal language model of Hugging Face.
        draw: makes so many rows of streams.
        length, pairs: of a stream.
        samples: streams.
        ways: see `probes.probing`.
        depths: one cell a way for each; none: one cell a way for all answers.
        seed: other streams.
        piece: see `reading.speak`.
        on_read: see `OnRead`.

    Yields:
        cells, those of a way together.
    """
    limit = reading_limit(model)
    too_long = limit is not None and length > limit
    side = max(1, min(ROWS, samples, _TOKENS // length if length <= _TOKENS // 2 else 2))
    for way in ways:
        held = 0
        counts = {depth: [0, 0, 0] for depth in (depths or (None,))}
        for first in range(0, 0 if too_long else samples, side):
            rows = min(side, samples - first)
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {length} {pairs} {first}".encode()))
            stream = draw(rows, generator, first)
            with probing(model, way):
                said = say(model, stream, piece, lambda tokens: on_read(f"{length:,} tokens, {way}", tokens))  # noqa: B023
            held = max(held, said.state_bytes)
            for depth, count in counts.items():
                here = said.asked if depth is None else said.asked & (stream.depths - depth).abs().lt(1e-6)
                for i, part in enumerate((said.right, said.asked, ~said.finite)):
                    count[i] += int((here & part).sum())
        for depth, (right, total, overflowed) in counts.items():
            yield Cell(way, length, pairs, depth, right, total, overflowed, held)


def mqar(
    model: Any,
    sizes: Sequence[tuple[int, int]] = TEST,
    samples: int = 64,
    ways: Sequence[str] = (AS_IT_IS,),
    task: MQARTask | None = None,
    seed: int = 0,
    piece: int | None = None,
    on_read: OnRead = _nobody,
) -> list[Cell]:
    """Multi-query associative recall (arXiv 2312.04927).

    Args:
        model: a causal language model of Hugging Face.
        sizes: (length, pairs) of sequences.
        samples: sequences of each size.
        ways: see `probes.probing`.
        task: the vocabulary and all else; None: the paper's, over the model's vocabulary.
        seed, piece, on_read: see `ask_streams`.

    Raises:
        ValueError: a size that cannot be, or tokens that the model does not know.
    """
    task = task or MQARTask(vocabulary=vocabulary_of(model), length=64, pairs=1)
    sized = [replace(task, length=length, pairs=pairs) for length, pairs in sizes]
    _check_vocabulary(model, task.vocabulary)
    found: list[Cell] = []
    for each in sized:

        def draw(rows: int, generator: torch.Generator, first: int, each: MQARTask = each) -> Stream:
            return stream_of_batch(*each.batch(rows, generator))

        found += ask_streams(model, draw, each.length, each.pairs, samples, ways, (), seed, piece, on_read)
    return found


def niah(
    model: Any,
    lengths: Sequence[int],
    depths: Sequence[float] = (),
    pairs: int | None = None,
    samples: int = 8,
    ways: Sequence[str] = (AS_IT_IS,),
    task: StreamTask | None = None,
    seed: int = 0,
    piece: int | None = None,
    on_read: OnRead = _nobody,
) -> list[Cell]:
    """Needles in streams of tokens, read once and asked for at the end.

    A stream's pairs stand at all the depths in turn, so that one reading asks at every depth.

    Args:
        model: a causal language model of Hugging Face.
        lengths: of streams, in tokens.
        depths: where pairs stand; none: anywhere, one cell a length.
        pairs: in a stream; None: the task's.
        samples: streams of each length.
        ways: see `probes.probing`.
        task: vocabulary and filler; None: the default's.
        seed, piece, on_read: see `ask_streams`.

    Raises:
        ValueError: a length that is too short, or tokens that the model does not know.
    """
    return _streams(model, task or StreamTask(), lengths, depths, pairs, samples, ways, seed, piece, on_read)


def hash_hop(
    model: Any,
    lengths: Sequence[int],
    depths: Sequence[float] = (),
    pairs: int | None = None,
    samples: int = 8,
    ways: Sequence[str] = (AS_IT_IS,),
    task: HopTask | None = None,
    seed: int = 0,
    piece: int | None = None,
    on_read: OnRead = _nobody,
) -> list[Cell]:
    """Chains of pairs, the first of each given and the last asked for. Arguments and errors as in `niah`.

    All pairs of a chain stand at its depth.
    """
    return _streams(model, task or HopTask(), lengths, depths, pairs, samples, ways, seed, piece, on_read)


def _streams(
    model: Any,
    task: StreamTask | HopTask,
    lengths: Sequence[int],
    depths: Sequence[float],
    pairs: int | None,
    samples: int,
    ways: Sequence[str],
    seed: int,
    piece: int | None,
    on_read: OnRead,
) -> list[Cell]:
    changes: dict[str, Any] = {"depths": tuple(depths), "pairs": task.pairs if pairs is None else pairs}
    sized = [replace(task, length=length, **changes) for length in lengths]
    _check_vocabulary(model, task.vocabulary)
    return [
        cell
        for each in sized
        for cell in ask_streams(
            model, each.stream, each.length, each.pairs, samples, ways, depths, seed, piece, on_read
        )
    ]


def vocabulary_of(model: Any) -> int:
    """Tokens that a model knows."""
    return int(model.config.get_text_config().vocab_size)


def _check_vocabulary(model: Any, needed: int) -> None:
    if needed > (known := vocabulary_of(model)):
        raise ValueError(
            f"the task has {needed} different tokens and the model knows {known}: give fewer keys, values or filler"
        )


def report(cells: Iterable[Cell], about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All figures, for JSON.

    Args:
        cells: of one evaluation.
        about: what else to say about the run.
    """
    rows = []
    for cell in cells:
        row: dict[str, Any] = dict(vars(cell))
        if cell.total:
            row |= {"share": cell.share.exact, "low": cell.share.low, "high": cell.share.high}
        rows.append(row)
    return {**(about or {}), "cells": rows}


def draw(told: Mapping[str, Any], path: Path) -> Path:
    """The heat map of a report whose cells have depths: a map a way.

    Args:
        told: of `report`.
        path: of the picture, by its ending; its folder is there.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: the cells have no depths.
    """
    cells = {(cell["way"], cell["length"], cell["depth"]): cell for cell in told["cells"]}
    ways, lengths, depths = ([*dict.fromkeys(key[i] for key in cells)] for i in range(3))
    if None in depths:
        raise ValueError("the cells have no depths: there is no map to draw")
    maps = {
        label(way): [[cells[way, length, depth].get("share") for length in lengths] for depth in depths] for way in ways
    }
    counts = {cell["total"] for cell in cells.values() if cell["total"]}
    each = f", {' to '.join(map(str, sorted({min(counts), max(counts)})))} answers a cell" if counts else ""
    return draw_heat(path, maps, lengths, depths, f"{told.get('task', {}).get('name', 'needles')}{each}")


def label(way: str) -> str:
    """A way in words."""
    words = {AS_IT_IS: "model", "off": "nothing written", "flipped": "writes of flipped sign"}
    return {**words, "q_for_k": "stored under queries", "silent": "memory silent"}.get(way, way)


def save(told: Mapping[str, Any], folder: Path) -> list[Path]:
    """The report as report.json and, where its cells have depths, the map as heat.png; the folder is made.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.json"]
    written[0].write_text(json.dumps(plain(told), indent=1) + "\n", "utf-8")
    cells = told.get("cells", [])
    if cells and all(cell["depth"] is not None for cell in cells):
        written.append(draw(told, folder / "heat.png"))
    return written


def plain(value: Any) -> Any:
    """As JSON can hold it: None in place of NaN, lists in place of tuples."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
