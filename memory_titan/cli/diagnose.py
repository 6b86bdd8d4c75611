"""`memory-titan diagnose`: what a trained graft does, and what is wrong with it."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memory_titan.cli.common import Refusal, both, plainly, steps


@click.command("diagnose")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--checkpoint", "named", type=click.Path(path_type=Path), metavar="FOLDER", help="CHECKPOINT by name.")
@click.option("--model", default="smollm2", show_default=True, metavar="NAME", help="Its base model.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the base model, as in training.",
)
@click.option(
    *both("data_path"),
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Samples of `data` to watch it on.  [default: hash hops, made here]",
)
@click.option("--samples", type=click.IntRange(1), default=8, show_default=True, help="How many of them.")
@click.option(
    "--prose",
    type=click.IntRange(2),
    default=1024,
    show_default=True,
    metavar="TOKENS",
    help="Of Python's help, where there is nothing to recall.",
)
@click.option(
    "--length",
    type=click.IntRange(64),
    default=2048,
    show_default=True,
    metavar="TOKENS",
    help="Of the stream that its memories are filled with.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write figures and index.html here (extra: plot).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
@plainly
def diagnose(
    checkpoint: Path | None, named: Path | None, model: str, dtype: str, data_path: Path | None, samples: int,
    prose: int, length: int, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Watch what a trained graft does: gates, writing, queries and keys, how its memories fill up; and warn.

    CHECKPOINT is the folder of an adapter, or a training run's with best/ or latest/ in it.
    """
    if (checkpoint is None) == (named is None):
        raise Refusal("name one checkpoint: memory-titan diagnose FOLDER")
    if output is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise Refusal("figures need matplotlib: pip install 'memory-titan[plot]'")
        if output.exists() and not output.is_dir():
            raise Refusal(f"{output} is a file; --output wants a folder")
    given = checkpoint or named
    assert given is not None
    folder, history = _find(given)

    import torch

    from memory_titan.evaluation.diagnosis import diagnose as run
    from memory_titan.evaluation.diagnosis import hash_hop_samples, position_limit, steps_of, summary
    from memory_titan.evaluation.red_flags import red_flags
    from memory_titan.graft.model import MemoryModel
    from memory_titan.hybrid.frozen import load_frozen
    from memory_titan.tasks.sample import read_samples

    chosen = None if data_path is None else list(islice(read_samples(data_path), samples))
    frozen = load_frozen(model)
    frozen.model.to(getattr(torch, dtype))
    graft = MemoryModel.from_pretrained(frozen.model, str(folder))
    if chosen is None:
        chosen = hash_hop_samples(frozen.tokenizer, samples, graft.graft_config.window, position_limit(graft))
    with steps(steps_of(chosen), "samples") as advance:
        found = run(graft, frozen.tokenizer, chosen, prose=prose, length=length, history=history, on_step=advance)
    flags = [asdict(flag) for flag in red_flags(found)]
    columns, rows = summary(found)
    read = ", ".join(f"{count:,} of {kind}" for kind, count in found.tokens.items())
    source = data_path.name if data_path else "hash hops made here"
    lead = (
        f"{model} in {dtype}, {len(chosen)} samples of {source}: tokens "
        f"read {read}. Then a stream of {found.length:,} tokens with {found.needles} needles."
    )
    if output is not None:
        from memory_titan.viz.diagnosis import write_diagnosis

        title = f"What the graft in {'/'.join(folder.resolve().parts[-2:])} does"
        files = write_diagnosis(output, title, lead, found.to_dict(), flags, columns, rows)
        click.echo(f"{files[0]} and {len(files) - 1} figures", err=True)
    if as_json:
        told = {name: value for name, value in found.to_dict().items() if name != "reading"}
        click.echo(json.dumps({"checkpoint": str(folder), **told, "red_flags": _finite(flags)}, indent=1))
        return
    _show(Console(width=120), lead, columns, rows, flags, bool(history))


def _finite(flags: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON has no infinity."""
    return [{**flag, "value": flag["value"] if abs(flag["value"]) < float("inf") else None} for flag in flags]


def _show(
    console: Console, lead: str, columns: list[str], rows: list[list[str]], flags: list[dict[str, Any]], trained: bool
) -> None:
    console.print(escape(lead), highlight=False)
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for flag in flags:
        layers = ", ".join(map(str, flag["layers"]))
        where = f" (layer{'s' * (len(flag['layers']) > 1)} {layers})" if layers else ""
        console.print(f"[red]▲ {escape(flag['name'])}[/]{where}: {escape(flag['says'])}", highlight=False)
        console.print(f"  {escape(flag['advice'])}", highlight=False)
    if not flags:
        console.print("no red flags")
    if not trained:
        console.print("no record of training was found beside it", highlight=False)


def _find(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the adapter (of a run, the best one before the latest), and the longest history there is of it.

    Raises:
        Refusal: there is none, or a progress.json is damaged.
    """
    from memory_titan.graft.adapter import CONFIG
    from memory_titan.training.checkpoint import PROGRESS

    if not folder.is_dir():
        raise Refusal(f"no such folder: {folder}")
    places = [place for place in (folder, folder / "best", folder / "latest") if (place / CONFIG).is_file()]
    if not places:
        raise Refusal(f"{folder} holds no checkpoint: neither it nor best/ or latest/ in it has an {CONFIG}")
    history: list[dict[str, Any]] = []
    for path in (place / PROGRESS for place in places if (place / PROGRESS).is_file()):
        try:
            records = json.loads(path.read_text("utf-8"))["history"]
            told = [{"step": int(one["step"]), "loss": float(one["loss"])} for one in records if "loss" in one]
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(f"{path} is damaged: {error}") from error
        history = max(history, told, key=len)
    return places[0], history
