"""`memory-titan bench ...` and `memory-titan presets`: the memories, listed and measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memory_titan.cli.common import Refusal, plainly, steps


@click.command("presets")
@click.option("--markdown", is_flag=True, help="As Markdown, as it stands in the documentation.")
def presets_command(markdown: bool) -> None:
    """The memories of the papers: NeuralMemory.preset(NAME, dim=...)."""
    from memory_titan.memory.neural.presets import PRESETS, preset_table

    if markdown:
        click.echo(preset_table())
        return
    table = Table("preset", "paper", "rule", "what the paper leaves open, and what was chosen", show_lines=True)
    for name, preset in PRESETS.items():
        table.add_row(name, *(escape(text) for text in (preset.paper, preset.equation, preset.chosen)))
    Console().print(table)


@click.group()
def bench() -> None:
    """Measure speed and memory use, beside the machine's own rate and beside others."""


@bench.command("memory")
@click.option("--against", type=click.Choice(["titans-pytorch"]), help="Measure this beside it (extra: bench).")
@click.option("--dim", multiple=True, type=click.IntRange(1), default=(256, 384), show_default=True, help="Widths.")
@click.option("--heads", multiple=True, type=click.IntRange(1), default=(1, 4), show_default=True, help="Heads.")
@click.option(
    "--tokens", multiple=True, type=click.IntRange(1), default=(4096, 8192), show_default=True, help="Lengths."
)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Turns each, at the least.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of each.")
@click.option("--only", type=click.Choice(["forward", "training", "token", "stream"]), help="This part alone.")
@click.option(
    "--stream-tokens", type=click.IntRange(128), default=1_000_000, show_default=True, help="Length of the stream."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Write every sample here.")
@click.option(
    "--markdown", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the tables here; into their place, in a file that has one.",
)  # fmt: skip
@plainly
def bench_memory_command(
    against: str | None, dim: tuple[int, ...], heads: tuple[int, ...], tokens: tuple[int, ...], repeats: int,
    threads: int, only: str | None, stream_tokens: int, json_path: Path | None, markdown: Path | None,
) -> None:  # fmt: skip
    """Time NeuralMemory: forward, with backward, one token at a time, and a million tokens in one stream.

    Each contender runs in a fresh process and they take turns, so that a busy machine slows all alike; ratios are of
    neighbours in time. --dim, --heads and --tokens may be given several times. With the peer all of it takes about a
    quarter of an hour on two quiet cores, and up to 12 GB; without it half as long. Too little memory costs a
    point, not the run.
    """
    from memory_titan.benchmarks.report import check_place, show, write_document
    from memory_titan.benchmarks.speed import Settings, points, run

    settings = Settings(dim, heads, tokens, repeats, threads, only, against is not None, stream_tokens)
    if json_path is not None and not json_path.parent.is_dir():
        raise Refusal(f"no such folder: {json_path.parent}")
    if markdown is not None:
        check_place(markdown)  # now, not after ten minutes
    with steps(len(points(settings)), "starting") as step:
        record = run(settings, step)
    if json_path is not None:
        json_path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    if markdown is not None:
        write_document(record, markdown)
    show(record, Console())


_OUT = click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", required=True,
    help="Results as JSON; what is in it already is not measured again.",
)  # fmt: skip
_PLOT = click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it here (extra: plot).")
_QUICK = click.option("--quick", is_flag=True, help="Tiny sizes, to see that it runs; the numbers mean nothing.")


def _seeds(default: int) -> Callable[..., Any]:
    return click.option("--seeds", type=click.IntRange(1), default=default, show_default=True, help="Repetitions.")


@bench.command("capacity")
@_OUT
@_PLOT
@_seeds(5)
@_QUICK
@click.option(
    "--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Put the tables into their place in this file."
)
@plainly
def bench_capacity_command(out: Path, plot: Path | None, seeds: int, quick: bool, markdown: Path | None) -> None:
    """How many pairs each memory of the family recalls, untrained, beside slots of the same number of bytes.

    Random and correlated keys, accuracy over pairs / dim; a few minutes.
    """
    from memory_titan.benchmarks import capacity

    with steps(capacity.jobs(None), "starting") as step:
        record = capacity.run(out, plot, seeds, quick, lambda what, done: step(what))
    if markdown is not None:
        capacity.write_document(record, markdown)
    click.echo(capacity.markdown(record))


@bench.command("ablation")
@_OUT
@_PLOT
@_seeds(3)
@_QUICK
@plainly
def bench_ablation_command(out: Path, plot: Path | None, seeds: int, quick: bool) -> None:
    """What depth, momentum, decay and convolution bring on a small recall task; trains, about half an hour."""
    from memory_titan.benchmarks.ablation import run

    click.echo(run(out, seeds, quick, plot))


@bench.command("rules")
@_OUT
@_PLOT
@_seeds(3)
@_QUICK
@plainly
def bench_rules_command(out: Path, plot: Path | None, seeds: int, quick: bool) -> None:
    """The exact gradient beside the anchored one and that of every token: largest step, recall, change of chunk.

    Trains small models; about half an hour.
    """
    from memory_titan.benchmarks.rules import run

    click.echo(run(out, seeds, quick, plot))
