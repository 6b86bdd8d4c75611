"""`memory-titan evaluate ruler`, `babilong` and `lm-eval`: a trained graft on whole suites of tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from memory_titan.cli.common import Refusal, both, plainly, steps

_GRAFT = [
    click.option("--checkpoint", required=True, type=click.Path(path_type=Path), metavar="DIR",
                 help="Folder of a trained graft."),
    click.option("--model", default="smollm2", show_default=True, metavar="NAME", help="Its base model."),
    click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True),
    click.option(*both("batch_size"), type=click.IntRange(1), default=8, show_default=True, help="Texts at a time."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead."),
]  # fmt: skip
_SUITE = [
    click.option("--tasks", default="", metavar="NAMES", help="Of the suite, with commas between.  [default: all]"),
    click.option(*both("context_lengths"), default="512,1024", show_default=True, metavar="TOKENS",
                 help="Lengths of a text in the model's tokens, with commas between."),
    click.option("--samples", type=click.IntRange(1), default=20, show_default=True, help="Of a task at a length."),
    click.option("--filler", type=click.Choice(["prose", "topics"]), default="prose", show_default=True,
                 help="prose: made up; topics: Python's help."),
    click.option("--depth", type=click.FloatRange(0, 1), metavar="SHARE",
                 help="Where the evidence stands, 0: at the start, 1: at the end.  [default: anywhere]"),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the samples."),
]  # fmt: skip

_HARNESS = [
    click.option("--tasks", required=True, metavar="TASKS",
                 help="YAML files (of `data lm-eval`, say) or names that lm-eval knows, with commas between."),
    click.option("--limit", type=click.IntRange(1), help="Use the first so many documents of each task."),
    click.option(*both("num_fewshot"), type=click.IntRange(0), help="Examples first.  [default: as the task says]"),
    click.option(*both("max_length"), type=click.IntRange(2), metavar="TOKENS",
                 help="Cut texts to so many, from the start.  [default: with a window none, else the model's]"),
    click.option("--chat", is_flag=True, help="Ask in the tokenizer's chat form."),
    click.option("--compare", is_flag=True,
                 help="Also without the memory: the graft's window alone, and the bare model."),
]  # fmt: skip


def _options(*options: Any) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command("ruler")
@_options(*_SUITE, *_GRAFT)
@plainly
def ruler(**options: Any) -> None:
    """RULER's tasks, drawn anew: share of answers said right by greedy decoding, to the last token.

    With the memory; without it, attention seeing the graft's window; and without both: the bare model, which sees
    everything. The wording is our own; shares are not to be compared with those published.
    """
    _suite("ruler", **options)


@click.command("babilong")
@_options(*_SUITE, *_GRAFT)
@plainly
def babilong(**options: Any) -> None:
    """BABILong's first three tasks, drawn anew in a world of our own: qa1, qa2, qa3.

    Share of answers said right by greedy decoding: with the memory; without it, attention seeing the graft's window;
    and without both: the bare model, which sees everything.
    """
    _suite("babilong", **options)


def _suite(
    suite: str,
    tasks: str,
    context_lengths: str,
    samples: int,
    filler: str,
    depth: float | None,
    seed: int,
    batch_size: int,
    as_json: bool,
    **graft: Any,
) -> None:
    from memory_titan.evaluation.suites import count_steps, evaluate_suite
    from memory_titan.tasks.suites import suite_task

    names, lengths = _listed(tasks), [_whole(each) for each in _listed(context_lengths)]
    if not lengths:
        raise Refusal("--context_lengths names none")
    for name in names:
        suite_task(suite, name, max(lengths))  # before the model is loaded
    model, tokenizer = _load(**graft)
    with steps(count_steps(suite, names, lengths)) as advance:
        rows = evaluate_suite(
            model, tokenizer, suite, names, lengths, samples,
            filler=filler, depth=depth, seed=seed, batch_size=batch_size, report=advance,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"suite": suite, "window": model.graft_config.window, "rows": rows}, indent=2))
        return
    heads = "with memory", f"window of {model.graft_config.window} alone", "bare, sees everything"
    table = Table("task", "tokens", "answers", "tokens to the nearest evidence", *heads, box=box.SIMPLE_HEAD)
    for row in rows:
        shares = [f"{row[name]:.2f}" for name in ("memory", "window", "bare")]
        table.add_row(row["task"], str(row["length"]), str(row["answers"]), f"{row['nearest']:.0f}", *shares)
    Console(width=120).print(table)


@click.command("lm-eval")
@_options(*_HARNESS, *_GRAFT)
@plainly
def lm_eval(
    tasks: str,
    limit: int | None,
    num_fewshot: int | None,
    max_length: int | None,
    chat: bool,
    compare: bool,
    batch_size: int,
    as_json: bool,
    **graft: Any,
) -> None:
    """Tasks of lm-evaluation-harness, by its own code (extra: lm-eval). The data of its named tasks is downloaded."""
    try:
        from memory_titan.evaluation.lm_eval import MemoryLM, run
    except ImportError as error:
        raise Refusal(f"this needs lm-evaluation-harness ({error}): pip install 'memory-titan[lm-eval]'") from None

    model, tokenizer = _load(**graft)
    lm = MemoryLM(model, tokenizer, batch_size, max_length)
    ask = partial(run, lm, _listed(tasks), limit=limit, num_fewshot=num_fewshot, apply_chat_template=chat)
    found = {"memory": ask()}
    if compare:
        with model.disable_memory(keep_window=True):
            found["window"] = ask()
        with model.disable_memory():
            found["bare"] = ask()
    if as_json:
        kept = ("results", "n-samples", "versions")
        click.echo(json.dumps({way: {key: out.get(key) for key in kept} for way, out in found.items()}, indent=2))
        return
    heads = {"memory": "with memory", "window": f"window of {model.graft_config.window} alone", "bare": "bare"}
    table = Table("task", "documents", "metric", *(heads[way] for way in found), box=box.SIMPLE_HEAD)
    for task, metrics in found["memory"]["results"].items():
        documents = found["memory"]["n-samples"].get(task, {}).get("effective", "")
        for metric in metrics:
            values = [out["results"][task][metric] for out in found.values()]
            if all(isinstance(value, float | int) for value in values) and "," in metric:
                table.add_row(task, str(documents), metric, *(f"{value:.4f}" for value in values))
    Console(width=120).print(table)


def _load(checkpoint: Path, model: str, dtype: str) -> tuple[Any, Any]:
    """The graft and its tokenizer."""
    import torch

    from memory_titan.graft.model import MemoryModel
    from memory_titan.hybrid.frozen import load_frozen

    frozen = load_frozen(model)
    frozen.model.to(getattr(torch, dtype))
    return MemoryModel.from_pretrained(frozen.model, str(checkpoint)), frozen.tokenizer


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise Refusal(f"--context_lengths must be whole numbers with commas between; got {text!r}")
    return int(text)
