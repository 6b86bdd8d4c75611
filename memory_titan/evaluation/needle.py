"""Needles at every depth of texts of every length: what a graft answers, and over how many tokens it remembers.

depth 0    | 1.00  1.00  0.75        each cell: fresh samples of one length, what is asked for standing at one depth
depth 0.5  | 1.00  1.00  1.00
depth 1    | 1.00  1.00  1.00        distance: tokens from the nearest evidence to the answer, whatever the cell
             512   1024  2048
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memory_titan.evaluation.compare import Asked, Share, ask, label, shares
from memory_titan.graft.model import MemoryModel
from memory_titan.tasks.examples import encode
from memory_titan.tasks.ruler import HuggingFace
from memory_titan.tasks.sample import Sample
from memory_titan.tasks.text_task import TextTask
from memory_titan.viz.needle import draw_distance, draw_heat


@dataclass(frozen=True)
class Cell:
    """The samples of one length and depth.

    Attributes:
        length: tokens of a text, answers included; at most 2% less.
        depth: where what is asked for stands, from 0, the start, to 1, the end.
        samples: in the model's tokens.
    """

    length: int
    depth: float
    samples: Iterable[Sample]


@dataclass(frozen=True)
class Answered:
    """A cell, asked.

    Attributes:
        guess: the share that a guess gets right, where the task knows one (see `DependencyTask`).
    """

    length: int
    depth: float
    asked: tuple[Asked, ...]
    guess: float | None = None


def lay_out(
    make: Callable[[int, float], TextTask],
    lengths: Sequence[int],
    depths: Sequence[float],
    samples: int,
    tokenizer: Any,
    name: str,
    seed: int = 0,
) -> list[Cell]:
    """The cells, whose samples are drawn when they are asked for.

    Args:
        make: a task of a length and a depth.
        lengths, depths: of the cells; each once.
        samples: texts a cell. A cell's texts are its own, and the same whatever other cells there are.
        tokenizer: the model's, a fast one; `name` is what samples say they were measured in.
        seed: another one gives other texts.

    Raises:
        ValueError: a length is too short for what has to stand in it, or a value comes twice.
    """
    for what, values in {"lengths": lengths, "depths": depths}.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{what} must be different values, at least one; got {', '.join(map(str, values))}")
    ruler = HuggingFace(tokenizer, name)
    return [
        Cell(length, depth, make(length, depth).samples(samples, seed=seed, ruler=ruler, start=_start(length, depth)))
        for length in lengths
        for depth in depths
    ]


def _start(length: int, depth: float) -> int:
    """The index of a cell's first sample: its own, and even, for tasks whose samples come in pairs."""
    return 2 * zlib.crc32(f"{length} {depth:g}".encode())


def evaluate_needle(
    model: MemoryModel,
    tokenizer: Any,
    cells: Iterable[Cell],
    ways: Sequence[str],
    on_read: Callable[[str, int], None] = lambda what, tokens: None,
) -> Iterator[Answered]:
    """Ask each cell's questions in each way; see `compare.ask`.

    Args:
        on_read: told, after each stretch, which cell and way it was of and how many tokens it had.
    """
    for cell in cells:
        where = f"{cell.length} tokens, depth {cell.depth:g}"
        drawn = list(cell.samples)
        examples = [encode(sample, tokenizer, f"{where}, sample {i}") for i, sample in enumerate(drawn)]
        kept = [example for example in examples if example is not None]
        asked = ask(model, kept, ways, lambda way, tokens: on_read(f"{where}, {way}", tokens))  # noqa: B023
        guesses = [sample.meta["single_fact"] for sample in drawn if "single_fact" in sample.meta]
        guess = sum(guesses) / len(guesses) if guesses else None
        yield Answered(cell.length, cell.depth, tuple(asked), guess)


@dataclass(frozen=True)
class Bin:
    """Answers whose nearest evidence is over `low` and up to `high` tokens away; `mean`: how far on average."""

    low: int
    high: int
    mean: float
    asked: tuple[Asked, ...]


def by_distance(asked: Iterable[Asked], window: int | None) -> list[Bin]:
    """Answers by the tokens to their nearest evidence, in bins from w / 2 to w, from w to 2 w and so on, w the window.

    So no bin holds answers both within the window and past it. Empty bins are left out.
    """
    found: dict[tuple[int, int], list[Asked]] = {}
    for one in asked:
        high, distance = float(window or 1), max(1, one.nearest)
        while high < distance:
            high *= 2
        while high / 2 >= distance:
            high /= 2
        found.setdefault((int(high / 2), int(high)), []).append(one)
    return [
        Bin(*edges, sum(one.nearest for one in found[edges]) / len(found[edges]), tuple(found[edges]))
        for edges in sorted(found)
    ]


def as_report(cells: Sequence[Answered], window: int | None, about: dict[str, Any]) -> dict[str, Any]:
    """All figures, for JSON.

    Args:
        cells: all of them.
        window: see `attention_window`.
        about: what else to say about the run.
    """
    everything = [one for cell in cells for one in cell.asked]
    return {
        **about,
        "window": window,
        "all": _row(everything),
        "cells": [
            {"length": c.length, "depth": c.depth, **({} if c.guess is None else {"guess": c.guess}), **_row(c.asked)}
            for c in cells
        ],
        "distances": [
            {"over": b.low, "to": b.high, "mean": b.mean, **_row(b.asked)} for b in by_distance(everything, window)
        ],
    }


def _row(asked: Sequence[Asked]) -> dict[str, Any]:
    overflowed = {way: sum(way in one.overflowed for one in asked) for way in asked[0].right}
    row: dict[str, Any] = {"answers": len(asked), "ways": {way: asdict(s) for way, s in shares(asked).items()}}
    return row | ({"overflowed": {way: n for way, n in overflowed.items() if n}} if any(overflowed.values()) else {})


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """needle.png and distance.png of what `as_report` returned, with the report beside them, needle.json.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "needle.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    cells, window = {(c["length"], c["depth"]): c for c in report["cells"]}, report["window"]
    lengths, depths = sorted({length for length, _ in cells}), sorted({depth for _, depth in cells})
    ways = [way for way in ("memory", "window", "bare") if way in report["all"]["ways"]]
    maps = {
        label(way, window): [[cells[length, depth]["ways"][way]["exact"] for length in lengths] for depth in depths]
        for way in ways
    }
    counts = [cell["answers"] for cell in report["cells"]]
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    subject = f"{report.get('task', 'needles')}: answers said right to the last token"
    curves = {
        label(way, window): [
            (b["mean"], *(b["ways"][way][name] for name in ("exact", "low", "high"))) for b in report["distances"]
        ]
        for way in report["all"]["ways"]
    }
    return [
        draw_heat(folder / "needle.png", maps, lengths, depths, f"{subject}, {each} a cell"),
        draw_distance(folder / "distance.png", curves, window, f"{subject}, with 95% intervals"),
    ]


def share_of(row: dict[str, Any], way: str) -> Share:
    """A row's share of right answers."""
    return Share(row["ways"][way]["right"], row["ways"][way]["total"])
