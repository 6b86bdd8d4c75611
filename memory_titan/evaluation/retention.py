"""How long early sentences last, over the amount read afterwards.

The facts of a split are read first, a long text after them. At marks on the way: how many of the facts still come back
out of the weights to the letter, how many are still among the first eight that their question finds, and (for some of
them) how many are answered. Beside it what a sentence costs and how large the file is, which should both stay flat.
`memory-titan evaluate retention` runs it; its text is, unless named, the help topics that come with Python.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from memory_titan.evaluation.recall import MAX_TOKENS, RecallItem, is_right
from memory_titan.hybrid.engine import CANDIDATES, HybridEngine
from memory_titan.hybrid.frozen import FrozenModel
from memory_titan.hybrid.sentences import sentences

MARKS = (0, 250, 500, 1000, 1500, 1900, 2100, 3000, 5000)


@dataclass
class Mark:
    """What held after `read` further sentences."""

    read: int
    to_the_letter: float
    found: float
    answered: float | None  # None: nobody asked
    load: float
    milliseconds_per_sentence: float
    file_bytes: int


def python_topics() -> Iterable[str]:
    """The help topics of the Python that runs this: some hundred thousand characters of technical English."""
    from pydoc_data.topics import topics

    return (f"{topics[name]}\n\n" for name in sorted(topics))


def evaluate_retention(
    frozen: FrozenModel,
    items: list[RecallItem],
    text: Iterable[str],
    marks: Iterable[int] = MARKS,
    asked: int = 20,
    on_mark: Callable[[Mark], None] = lambda mark: None,
) -> list[Mark]:
    """Read the facts, then the text; measure at each mark that the text reaches."""
    engine = HybridEngine(frozen)
    list(engine.read_stream([item.fact for item in items], everything=True))
    wanted = [(engine.encode(item.fact), engine.addresser([engine.encode(item.question)])[0]) for item in items]
    stream, done, results = sentences(text), 0, []
    for mark in sorted(marks):
        started, before = time.perf_counter(), done
        done += sum(1 for _ in engine.read_stream(islice(stream, max(0, mark - done)), everything=True))
        if done < mark and done == before:
            break
        pace = 1000 * (time.perf_counter() - started) / max(1, done - before)
        held = {tuple(engine.memory.read(slot).ids) for slot in engine.memory.used.tolist()}
        letter = sum(tuple(ids) in held for ids, _ in wanted) / len(items)
        found = 0
        for ids, address in wanted:
            near = engine.memory.find(address, CANDIDATES)
            found += any(engine.memory.read(slot).ids == ids for slot, _ in near)
        right = 0
        touched = engine.memory.touched.clone()  # being asked for must not keep a fact alive here
        for item in items[:asked]:
            right += is_right(engine.ask(item.question, max_tokens=MAX_TOKENS).text, item.answer)
        engine.memory.touched.copy_(touched)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "retention.mem"
            engine.save(path)
            size = path.stat().st_size
        result = Mark(
            done,
            letter,
            found / len(items),
            right / len(items[:asked]) if asked else None,
            engine.memory.load,
            pace,
            size,
        )
        results.append(result)
        on_mark(result)
    return results


def as_rows(marks: list[Mark]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(mark) for mark in marks]


def plot_retention(marks: list[Mark], path: Path, slots: int) -> None:
    """Draw the curves (needs the extra `plot`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=[2, 1])
    read = [mark.read for mark in marks]
    upper.plot(read, [mark.to_the_letter for mark in marks], "o-", label="comes back to the letter")
    upper.plot(read, [mark.found for mark in marks], "s--", label="found by its question (first eight)")
    if all(mark.answered is not None for mark in marks):
        upper.plot(read, [mark.answered for mark in marks], "^:", label="answered right")
    upper.axvline(slots, color="grey", linewidth=0.8)
    upper.text(slots, 1.03, " slots full", color="grey", fontsize=8)
    upper.set(ylim=(-0.03, 1.1), ylabel="share of the first facts")
    upper.legend(loc="lower left", fontsize=8)
    lower.plot(read[1:], [mark.milliseconds_per_sentence for mark in marks[1:]], "o-")
    lower.set(xlabel="sentences read afterwards", ylabel="ms a sentence", ylim=(0, None))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
