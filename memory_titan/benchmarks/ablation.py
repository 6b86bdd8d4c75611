"""What depth, momentum, decay and convolution bring on a small recall task, beside the paper's own ablation.

The same tiny model is trained whole and with one thing taken away, each with three learning rates and three seeds. A
variant's learning rate is the one with the best mean over seeds on held-out sequences; its figures come from others.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from memory_titan.benchmarks.recaller import Recaller, Stack, train
from memory_titan.benchmarks.study import MARK, Record, Records, best, mean, progress, spread, steps_spread, table
from memory_titan.tasks.recall import RecallTask

# What is taken away, as options of `NeuralMemory`.
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "depth 1": {"depth": 1},
    "no momentum": {"algorithm": "descent"},
    "no decay": {"retention": "none"},
    "no convolution": {"conv_size": 0},
}
BASE: dict[str, Any] = {"heads": 1, "depth": 2, "expansion": 2, "chunk_size": 16}
# arXiv 2501.00663, the ablation of its LMM: perplexity, mean accuracy in reasoning, in long context.
PAPER = {
    "full": (27.01, 47.83, 92.68),
    "depth 1": (28.49, 46.97, 85.34),
    "no convolution": (28.73, 45.82, 90.28),
    "no momentum": (28.98, 45.49, 87.12),
    "no decay": (29.04, 45.11, 85.60),
}
TASK = RecallTask(length=48, pairs=4, repeats=2, keys=32, values=16, filler=16)
TESTS = {  # but for the first, each pair stands there once
    "as trained": TASK,
    "256 tokens": RecallTask(length=256, pairs=4, keys=32, values=16, filler=16),
    "1,024 tokens": RecallTask(length=1024, pairs=4, keys=32, values=16, filler=16),
    "8 pairs": RecallTask(length=96, pairs=8, keys=32, values=16, filler=16),
    "16 pairs": RecallTask(length=128, pairs=16, keys=32, values=16, filler=16),
}
RATES = (4e-3, 8e-3, 1.6e-2)
STEPS, ROWS, TEST_ROWS, DIM = 400, 16, 64, 32
HELD_OUT, TEST = 2_000_003, 3_000_017  # seeds of sequences: one to choose the learning rate by, one for the figures


def run(out: Path, seeds: int = 3, quick: bool = False, figure: Path | None = None, quiet: bool = False) -> str:
    """Train what `out` does not hold yet, and report.

    Args:
        out: the JSON file with one record a run; a study that was interrupted goes on where it stopped.
        seeds: how many.
        quick: a few steps of everything, to see that it runs; the figures mean nothing.
        figure: where to draw the picture (extra: plot); None: nowhere.
        quiet: no lines of progress.

    Returns:
        The report, Markdown, made from the file.
    """
    torch.set_flush_denormal(True)
    steps, test_rows = (2, 2) if quick else (STEPS, TEST_ROWS)
    asked = {name: task for name, task in TESTS.items() if not quick or task.length < 100}
    records, say = Records(out, _setup(steps, test_rows, asked)), progress(quiet)
    for seed in range(seeds):
        for variant, options in VARIANTS.items():
            if records.done(variant=variant, seed=seed):
                continue
            stack = Stack(partial(Recaller, TASK.vocabulary, DIM, **BASE | options), [seed] * len(RATES))
            courses = train(stack, TASK, RATES, steps, rows=ROWS)
            held_out = stack.recall(TASK, HELD_OUT, test_rows)
            tests = {name: stack.recall(task, TEST, test_rows) for name, task in asked.items()}
            records.add(
                {"variant": variant, "seed": seed, "rate": rate, "held_out": held_out[i], **courses[i].record(MARK)}
                | {"test": {name: shares[i] for name, shares in tests.items()}}
                for i, rate in enumerate(RATES)
            )
            say(f"{variant}, seed {seed}: held out " + ", ".join(f"{share:.3f}" for share in held_out))
    if figure is not None:
        plot(records, figure)
    return report(records)


def report(records: Records) -> str:
    """The tables, from the records alone."""
    chosen = {variant: best(runs, "rate") for variant, runs in _by_variant(records).items()}
    tests = list(next(iter(chosen.values()))[0]["test"])
    rows = [
        [variant, f"{runs[0]['rate']:g}", steps_spread([run["reached"] for run in runs])]
        + [spread([run["test"][test] for run in runs]) for test in tests]
        + [" / ".join(f"{figure:.2f}" for figure in PAPER[variant])]
        for variant, runs in chosen.items()
    ]
    head = ["", "learning rate", f"steps to {MARK}", *tests, "paper: perplexity / reasoning / long"]
    rates = list(dict.fromkeys(run["rate"] for run in records.runs))
    swept = [
        [variant] + [spread([run["held_out"] for run in runs if run["rate"] == rate]) for rate in rates]
        for variant, runs in _by_variant(records).items()
    ]
    broken = sum(run["broke"] is not None for run in records.runs)
    return (
        f"Accuracy, mean (range) over {len(next(iter(chosen.values())))} seeds:\n\n{table(head, rows)}\n"
        f"Held-out accuracy by learning rate:\n\n{table(['', *(f'{rate:g}' for rate in rates)], swept)}\n"
        f"Runs that were no longer finite: {broken} of {len(records.runs)}.\n"
    )


def plot(records: Records, path: Path) -> None:
    """Held-out accuracy over the steps and accuracy on each test, mean and range (needs the extra `plot`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for place, (variant, every) in enumerate(_by_variant(records).items()):
        runs = best(every, "rate")
        steps = [step for step, _ in runs[0]["curve"]]
        shares = list(zip(*([share for _, share in run["curve"]] for run in runs), strict=True))
        left.plot(steps, [mean(each) for each in shares], label=variant)
        left.fill_between(steps, [min(each) for each in shares], [max(each) for each in shares], alpha=0.15)
        tests = list(runs[0]["test"])
        shares = [tuple(run["test"][test] for run in runs) for test in tests]
        means = [mean(each) for each in shares]
        error = [[m - min(e) for m, e in zip(means, shares, strict=True)],
                 [max(e) - m for m, e in zip(means, shares, strict=True)]]  # fmt: skip
        at = [i + 0.12 * (place - (len(VARIANTS) - 1) / 2) for i in range(len(tests))]
        right.errorbar(at, means, error, fmt="o", markersize=4, capsize=2)
        right.set_xticks(range(len(tests)), tests, fontsize=8)
    left.axhline(MARK, color="grey", linewidth=0.8)
    left.set(xlabel="training steps", ylabel="questions answered right", ylim=(-0.02, 1.04), title="held out")
    right.set(title="tests")
    left.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _by_variant(records: Records) -> dict[str, list[Record]]:
    return {variant: [run for run in records.runs if run["variant"] == variant] for variant in VARIANTS}


def _setup(steps: int, test_rows: int, asked: dict[str, RecallTask]) -> Record:
    return {
        "study": "ablation",
        "task": asdict(TASK),
        "tests": {name: asdict(task) for name, task in asked.items()},
        "model": BASE | {"dim": DIM},
        "training": {"steps": steps, "rows": ROWS, "rates": RATES},
        "test_rows": test_rows,
    }
