"""`memory-titan evaluate answers`: what a graft says, with its memory and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from memory_titan.cli.common import plainly, steps


@click.command("answers")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--adapter", required=True, type=click.Path(path_type=Path), help="Folder of a trained graft.")
@click.option("--model", default="smollm2", show_default=True, metavar="NAME", help="Its base model.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Use the first so many samples of each file.")
@click.option(
    "--prose",
    type=click.IntRange(2),
    metavar="TOKENS",
    help="Also the perplexity over so many tokens of Python's help.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
@plainly
def answers(
    files: tuple[Path, ...], adapter: Path, model: str, dtype: str, limit: int | None, prose: int | None, as_json: bool
) -> None:
    """Ask the questions of FILES (of `data`): share of answers said right by greedy decoding, to the last token.

    With the memory; without it, attention seeing the graft's window; and without both: the bare model, which sees
    everything. Each answer is decoded after the true answers before it.
    """
    import torch

    from memory_titan.evaluation.answers import evaluate
    from memory_titan.evaluation.prose import perplexity, python_help
    from memory_titan.graft.model import MemoryModel
    from memory_titan.hybrid.frozen import load_frozen
    from memory_titan.tasks.examples import load_examples

    frozen = load_frozen(model)
    frozen.model.to(getattr(torch, dtype))
    graft = MemoryModel.from_pretrained(frozen.model, str(adapter))
    found: list[dict[str, Any]] = []
    with steps(3 * len(files)) as advance:
        for path in files:
            examples = load_examples(path, frozen.tokenizer, limit=limit)
            row: dict[str, Any] = {"file": path.name, "answers": sum(len(e.answers) for e in examples)}
            row["distance"] = sum(min(e.nearest) for e in examples) / len(examples)
            row["memory"] = evaluate(graft, examples)["exact"]
            advance(path.name)
            with graft.disable_memory(keep_window=True):
                row["window"] = evaluate(graft, examples)["exact"]
            advance(path.name)
            with graft.disable_memory():
                row["bare"] = evaluate(graft, examples)["exact"]
            advance(path.name)
            found.append(row)
    costs: dict[str, float] = {}
    if prose is not None:
        ids = python_help(frozen.tokenizer, prose)
        costs["memory"] = perplexity(graft, ids)
        with graft.disable_memory(keep_window=True):
            costs["window"] = perplexity(graft, ids)
        with graft.disable_memory():
            costs["bare"] = perplexity(graft, ids)
    if as_json:
        click.echo(json.dumps({"answers": found, "perplexity": costs}, indent=2))
        return
    window = graft.graft_config.window
    table = Table("file", "answers", "tokens to the nearest evidence", "with memory", f"window of {window} alone",
                  "bare, sees everything", box=box.SIMPLE_HEAD)  # fmt: skip
    for row in found:
        shares = [f"{row[name]:.2f}" for name in ("memory", "window", "bare")]
        table.add_row(row["file"], str(row["answers"]), f"{row['distance']:.0f}", *shares)
    if costs:
        table.add_row(f"perplexity, {prose} tokens of prose", "", "", *(f"{cost:.1f}" for cost in costs.values()))
    Console(width=120).print(table)
