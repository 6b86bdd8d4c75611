"""Where the inner gradient is taken: exact in the top layer, at the chunk's first token, or truly token by token.

The same tiny model learns to recall pairs that repeat within a chunk, under each rule and a range of bounds of the
step, with three seeds. Asked are: which bounds train at all, how well it recalls, and what becomes of it when it is
read with another chunk than it was trained with. At their best bounds the two rules that chunks make fast are then
trained with other learning rates too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from memory_titan.benchmarks.recaller import Recaller, Stack, train
from memory_titan.benchmarks.study import MARK, Record, Records, best, mean, progress, spread, steps_spread, table
from memory_titan.tasks.recall import RecallTask

CHUNK = 16
# As options of `NeuralMemory`.
RULES: dict[str, dict[str, Any]] = {
    "exact": {"rule": "exact", "chunk_size": CHUNK},
    "anchored": {"rule": "anchored", "chunk_size": CHUNK},
    "token": {"rule": "token", "chunk_size": CHUNK},
}
BASE: dict[str, Any] = {"heads": 1, "depth": 2, "expansion": 2}
# Token by token costs ten times the others. A bound added here is trained at the next call, and nothing else again.
BOUNDS = {
    "exact": (0.0625, 0.125, 0.25, 1.0, 2.0, 4.0, 8.0, 16.0),
    "anchored": (0.0625, 0.125, 0.25, 1.0, 2.0, 4.0, 8.0, 16.0),
    "token": (1.0, 4.0, 8.0, 16.0),
}
CHUNKS = (1, 4, 16, 64, 256)
TASK = RecallTask(length=48, pairs=4, repeats=3, keys=16, values=16, filler=16)
LONGER = RecallTask(length=256, pairs=8, repeats=8, keys=16, values=16, filler=16)
RATE, OTHER_RATES, RATES_SWEPT = 1.2e-2, (6e-3, 2.4e-2), ("exact", "anchored")
STEPS, ROWS, TEST_ROWS, DIM = 300, 16, 64, 32  # of the longer test half the rows
HELD_OUT, TEST = 2_000_003, 3_000_017  # seeds of sequences: one to choose the bound by, one for the figures


def run(out: Path, seeds: int = 3, quick: bool = False, figure: Path | None = None, quiet: bool = False) -> str:
    """Train what `out` does not hold yet, and report.

    Args:
        out: the JSON file with one record a run; a study that was interrupted goes on where it stopped.
        seeds: how many.
        quick: a few steps of a few settings, to see that it runs; the figures mean nothing.
        figure: where to draw the picture (extra: plot); None: nowhere.
        quiet: no lines of progress.

    Returns:
        The report, Markdown, made from the file.
    """
    torch.set_flush_denormal(True)
    steps, test_rows, chunks = (2, 2, (4, 64)) if quick else (STEPS, TEST_ROWS, CHUNKS)
    records, say = Records(out, _setup(steps, test_rows, chunks)), progress(quiet)

    def train_all(rule: str, bound: float, rate: float) -> None:
        new = [s for s in range(seeds) if not records.done(rule=rule, bound=bound, rate=rate, seed=s)]
        if new:
            found = _train(rule, bound, rate, new, steps, test_rows, chunks)
            records.add(found)
            shares = ", ".join(f"{each['held_out']:.3f}" for each in found)
            say(f"{rule}, bound {bound:g}, rate {rate:g}, seeds {new}: held out {shares}")

    for rule in RULES:
        for bound in (1.0,) if quick else BOUNDS[rule]:
            train_all(rule, bound, RATE)
    for rule in () if quick else RATES_SWEPT:
        for rate in OTHER_RATES:
            train_all(rule, _best_bound(records, rule)[0]["bound"], rate)
    if figure is not None:
        plot(records, figure)
    return report(records)


def _train(
    rule: str, bound: float, rate: float, seeds: Sequence[int], steps: int, test_rows: int, chunks: Sequence[int]
) -> list[Record]:
    options = BASE | RULES[rule] | {"max_step": bound}
    stack = Stack(partial(Recaller, TASK.vocabulary, DIM, **options), seeds)
    courses = train(stack, TASK, [rate] * len(seeds), steps, rows=ROWS)
    trained, held_out = stack.recall(TASK, TEST, test_rows), stack.recall(LONGER, HELD_OUT, test_rows // 2)
    by_chunk: dict[str, list[float]] = {}
    for chunk in chunks:
        if rule != "token":
            stack.shape.set_chunk(chunk)
        if rule != "token" or not by_chunk:  # the true gradient knows no chunk: one reading stands for all
            measured = stack.recall(LONGER, TEST, test_rows // 2)
        by_chunk[str(chunk)] = measured
    return [
        {"rule": rule, "bound": bound, "rate": rate, "seed": seed, "trained": trained[i], "held_out": held_out[i]}
        | {"by_chunk": {chunk: shares[i] for chunk, shares in by_chunk.items()}}
        | courses[i].record(MARK)
        for i, seed in enumerate(seeds)
    ]


def _swept(records: Records, rule: str) -> list[Record]:
    """The runs of a rule under the common learning rate, bounds rising."""
    runs = [run for run in records.runs if run["rule"] == rule and run["rate"] == RATE]
    return sorted(runs, key=lambda run: (run["bound"], run["seed"]))


def _best_bound(records: Records, rule: str) -> list[Record]:
    return best(_swept(records, rule), "bound")


def _best(records: Records, rule: str) -> list[Record]:
    """The runs at a rule's best bound and, there, its best learning rate."""
    bound = _best_bound(records, rule)[0]["bound"]
    return best([run for run in records.runs if run["rule"] == rule and run["bound"] == bound], "rate")


def learned(run: Record) -> bool:
    """Did a run stay finite and end at the mark, on sequences as it was trained with?"""
    return run["broke"] is None and run["trained"] >= MARK


def report(records: Records) -> str:
    """The tables, from the records alone."""
    rules = [rule for rule in RULES if _swept(records, rule)]
    bounds = sorted({run["bound"] for run in records.runs})

    def cell(rule: str, bound: float) -> str:
        runs = [run for run in _swept(records, rule) if run["bound"] == bound]
        if not runs:
            return "-"
        broken = sum(run["broke"] is not None for run in runs)
        text = f"{sum(map(learned, runs))} of {len(runs)}: {spread([run['trained'] for run in runs])}"
        return f"{text}; {broken} not finite" if broken else text

    stability = [[f"{bound:g}", *(cell(rule, bound) for rule in rules)] for bound in bounds]
    chosen = {rule: _best(records, rule) for rule in rules}
    # Beside each rule's best bound, the anchored rule at the bound that is its default.
    default = [run for run in _swept(records, "anchored") if run["bound"] == 1 / CHUNK]
    if default:
        chosen["anchored, default bound"] = default
    chunks = list(chosen[rules[0]][0]["by_chunk"])
    quality = [
        [name, f"{runs[0]['bound']:g}", f"{runs[0]['rate']:g}", steps_spread([run["reached"] for run in runs])]
        + [spread([run["trained"] for run in runs])]
        + [spread([run["by_chunk"][chunk] for run in runs]) for chunk in chunks]
        for name, runs in chosen.items()
    ]
    return (
        f"Runs that learned (finite, {MARK} at the end) and their accuracy, by the bound of the step:\n\n"
        f"{table(['bound', *rules], stability)}\n"
        "Accuracy at each rule's best bound and learning rate, as trained and on longer sequences by chunk:\n\n"
        f"{table(['', 'bound', 'learning rate', f'steps to {MARK}', 'as trained', *chunks], quality)}"
    )


def plot(records: Records, path: Path) -> None:
    """Accuracy over the bound of the step, and over the chunk it is read with (needs the extra `plot`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for rule, marker in zip(RULES, "os^", strict=True):
        swept, chosen = _swept(records, rule), _best(records, rule)
        bounds = list(dict.fromkeys(run["bound"] for run in swept))
        shares = [[run["trained"] for run in swept if run["bound"] == bound] for bound in bounds]
        _line(left, bounds, shares, marker, rule)
        chunks = list(chosen[0]["by_chunk"])
        shares = [[run["by_chunk"][chunk] for run in chosen] for chunk in chunks]
        _line(right, list(map(int, chunks)), shares, marker, f"{rule}, bound {chosen[0]['bound']:g}")
    right.axvline(CHUNK, color="grey", linewidth=0.8)
    right.text(CHUNK, 0.02, " trained with", color="grey", fontsize=8)
    left.set(xlabel="largest step", ylabel="questions answered right", ylim=(-0.02, 1.04), title="as trained")
    right.set(
        xlabel="chunk it is read with",
        title=f"{LONGER.length} tokens, {LONGER.pairs} pairs, each {LONGER.repeats} times",
    )
    for side, ticks in ((left, sorted({run["bound"] for run in records.runs})), (right, CHUNKS)):
        side.set_xscale("log", base=2)
        side.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
        side.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(axes: Any, at: Sequence[float], shares: Sequence[Sequence[float]], marker: str, label: str) -> None:
    axes.plot(at, [mean(each) for each in shares], marker + "-", markersize=4, label=label)
    axes.fill_between(at, [min(each) for each in shares], [max(each) for each in shares], alpha=0.15)


def _setup(steps: int, test_rows: int, chunks: Sequence[int]) -> Record:
    return {
        "study": "rules",
        "task": asdict(TASK),
        "longer": asdict(LONGER),
        "model": BASE | {"dim": DIM, "chunk_size": CHUNK},
        "training": {"steps": steps, "rows": ROWS, "rate": RATE, "other_rates": OTHER_RATES},
        "test_rows": test_rows,
        "chunks": chunks,
    }
