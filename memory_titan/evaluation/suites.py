"""A suite of tasks at several lengths: what a grafted model says right with its memory, and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from memory_titan.evaluation.answers import evaluate
from memory_titan.graft.model import MemoryModel
from memory_titan.tasks.examples import Example, encode
from memory_titan.tasks.filler import Filler
from memory_titan.tasks.ruler import HuggingFace
from memory_titan.tasks.suites import SUITES, suite_task


def evaluate_suite(
    model: MemoryModel,
    tokenizer: Any,
    suite: str,
    tasks: Sequence[str] = (),
    lengths: Sequence[int] = (512, 1024),
    number: int = 20,
    *,
    filler: Filler = "prose",
    depth: float | None = None,
    seed: int = 0,
    batch_size: int = 8,
    report: Callable[[str], None] = lambda label: None,
) -> list[dict[str, Any]]:
    """Share of answers said right by greedy decoding, each after the true answers before it; see `answers.evaluate`.

    Args:
        model: a graft, with its memory on.
        tokenizer: its fast tokenizer.
        suite: of `tasks.suites.SUITES`.
        tasks: names in the suite; none: all.
        lengths: tokens of a text, the first token not counted.
        number: samples of each task at each length.
        filler, depth: see `tasks.suites.suite_task`.
        seed: of the samples. Each length has others.
        batch_size: texts at a time.
        report: called after each of `count_steps` steps with what was done.

    Returns:
        one dict a task and length: task, length, answers (how many), nearest (tokens back to the nearest evidence, mean
        over answers), and the shares memory, window (the attention's window alone) and bare (the model without the
        graft, which sees everything).

    Raises:
        ValueError: no such task, a length is too short for it, or an answer ends within a token.
    """
    ruler = HuggingFace(tokenizer, "tokens")
    drawn = []
    for name in tasks or SUITES[suite]:
        for length in lengths:
            task = suite_task(suite, name, length, filler=filler, depth=depth)
            try:
                drawn.append((name, length, task.samples(number, seed=seed, ruler=ruler)))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    rows = []
    for name, length, samples in drawn:
        examples = [encode(sample, tokenizer, f"{name}, sample {sample.index}") for sample in samples]
        kept = [example for example in examples if example is not None]
        row: dict[str, Any] = {"task": name, "length": length} | _distances(kept)
        row["memory"] = evaluate(model, kept, batch_size)["exact"]
        report(f"{name}, {length} tokens")
        with model.disable_memory(keep_window=True):
            row["window"] = evaluate(model, kept, batch_size)["exact"]
        report(f"{name}, {length} tokens")
        with model.disable_memory():
            row["bare"] = evaluate(model, kept, batch_size)["exact"]
        report(f"{name}, {length} tokens")
        rows.append(row)
    return rows


def count_steps(suite: str, tasks: Sequence[str], lengths: Sequence[int]) -> int:
    """How often `evaluate_suite` reports."""
    return 3 * len(tasks or SUITES[suite]) * len(lengths)


def _distances(examples: Sequence[Example]) -> dict[str, Any]:
    nearest = [distance for example in examples for distance in example.nearest]
    return {"answers": len(nearest), "nearest": sum(nearest) / len(nearest)}
