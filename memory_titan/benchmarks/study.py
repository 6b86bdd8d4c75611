"""What the training studies share: records that survive an interruption, and how a spread is written.

A study is a list of runs. Each finished run is one record in a JSON file, written at once, and is skipped the next
time; tables and figures are made from the file alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

Record = dict[str, Any]
MARK = 0.9  # the accuracy that counts as having learned


@dataclass
class Records:
    """The finished runs of one study, in a file.

    Attributes:
        path: the JSON file; made with its folder at the first record.
        setup: what all runs have in common. A file made with another setup is refused, so that no table mixes two.
    """

    path: Path
    setup: Record

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        self.setup = json.loads(json.dumps(self.setup))  # as it will read back: tuples are lists
        self.runs: list[Record] = []
        if self.path.exists():
            held = json.loads(self.path.read_text("utf-8"))
            if held.get("setup") != self.setup:
                raise ValueError(f"{self.path} holds another setup of this study; move it away or name another file")
            self.runs = held["runs"]

    def done(self, **named: Any) -> bool:
        """Is there a run with these values already?"""
        return any(all(run[name] == value for name, value in named.items()) for run in self.runs)

    def add(self, runs: Iterable[Record]) -> None:
        """Keep finished runs; the file on disk is always a whole one."""
        self.runs += runs
        lines = ",\n".join(json.dumps(run) for run in self.runs)
        setup = json.dumps(self.setup, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(self.path.name + ".part")
        aside.write_text(f'{{"setup": {setup},\n"runs": [\n{lines}\n]}}\n', "utf-8")
        os.replace(aside, self.path)


def best(runs: Sequence[Record], by: str, score: str = "held_out") -> list[Record]:
    """The runs at that value of `by` whose mean `score` over seeds is highest; of equals, the lowest mean loss."""

    def merit(value: Any) -> tuple[float, float]:
        chosen = [run for run in runs if run[by] == value]
        losses = [math.inf if run["loss"] is None else run["loss"] for run in chosen]
        return mean([run[score] for run in chosen]), -mean(losses)

    winner = max(dict.fromkeys(run[by] for run in runs), key=merit)
    return [run for run in runs if run[by] == winner]


def progress(quiet: bool) -> Callable[[str], None]:
    """Where the lines about finished runs go: standard error, or nowhere."""
    console = Console(stderr=True, quiet=quiet)
    return lambda line: console.print(line, highlight=False, soft_wrap=True)


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and range over seeds: `0.95 (0.91 to 0.98)`."""
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def steps_spread(values: Sequence[int | None]) -> str:
    """Mean and range of the steps that it took; runs that never got there are counted apart."""
    there = [value for value in values if value is not None]
    if not there:
        return f"never ({len(values)} of {len(values)})"
    text = f"{mean(there):.0f} ({min(there)} to {max(there)})"
    missed = len(values) - len(there)
    return f"{text}, never {missed} of {len(values)}" if missed else text


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
