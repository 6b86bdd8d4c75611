"""`memory-titan bench store`: the store beside chromadb and FAISS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from memory_titan.cli.common import Refusal, both, plainly, steps


def _list(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


@click.command("store")
@click.option("--sizes", default="1000,10000,100000", show_default=True, callback=_list, help="Items in the store.")
@click.option("--against", default="", callback=_list, metavar="NAMES", help="Peers: chromadb,faiss.")
@click.option(*both("peer_python"), default=sys.executable, metavar="FILE", help="The Python that has chromadb.")
@click.option(
    "--vectors", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="Embeddings, a .npy file of one a row; without it they are made up.",
)  # fmt: skip
@click.option("--dim", type=click.IntRange(2), default=384, show_default=True, help="Width of made-up vectors.")
@click.option(*both("long_term_size"), type=click.IntRange(1), help="Items that ours may hold.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON, every sample in it.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the record here as JSON.")
@plainly
def bench_store_command(
    sizes: tuple[str, ...], against: tuple[str, ...], peer_python: str, vectors: Path | None, dim: int,
    long_term_size: int | None, as_json: bool, output: Path | None,
) -> None:  # fmt: skip
    """Time the store: inserts in bulk and one by one, queries, filters, opening; bytes, and what searching misses.

    Peers are measured in the same run, each in a process of its own with one thread, in turns. chromadb comes with the
    extra bench-store, or lives in another environment: --peer_python.
    """
    from memory_titan.benchmarks.store import Settings, run
    from memory_titan.benchmarks.store_report import markdown

    if unknown := [size for size in sizes if not size.isdecimal()]:
        raise Refusal(f"sizes must be whole numbers; got {unknown[0]!r}")
    settings = Settings(tuple(map(int, sizes)), against, dim, vectors, peer_python, long_term_size)
    if output is not None and not output.parent.is_dir():
        raise Refusal(f"no such folder: {output.parent}")
    with steps(len(settings.sizes), "starting") as step:
        record = run(settings, step)
    text = json.dumps(record, indent=1) + "\n"
    if output is not None:
        output.write_text(text, "utf-8")
    click.echo(text if as_json else markdown(record), nl=False)
