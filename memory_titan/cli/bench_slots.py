"""`memory-titan bench slots`: MemNet beside a transformer of equal size and a DNC, and its banks as they grow."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from memory_titan.cli.common import Refusal, both, plainly, steps


@click.command("slots")
@click.option("--against", type=click.Choice(["dnc"]), help="Measure this beside it (extra: bench-slots).")
@click.option(*both("peer_python"), default=sys.executable, metavar="FILE", help="The Python that has dnc.")
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Turns of each model.")
@click.option("--quick", is_flag=True, help="Tiny sizes, one turn: to see that it runs.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON, every sample in it.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the record here as JSON.")
@plainly
def bench_slots_command(
    against: str | None, peer_python: str, repeats: int, quick: bool, as_json: bool, output: Path | None
) -> None:
    """Time MemNet's training step and its slots: a transformer of equal size, a DNC, growing slots and lengths.

    All are measured in the same run, in turns, with one thread each; several minutes. The DNC has a process of its
    own, and may live in another environment.
    """
    from memory_titan.benchmarks import slots

    settings = slots.Settings(against=() if against is None else (against,), repeats=repeats, peer_python=peer_python)
    if quick:
        settings = slots.quick(settings)
    if output is not None and not output.parent.is_dir():
        raise Refusal(f"no such folder: {output.parent}")
    with steps(len(settings.sizes) + len(settings.banks), "starting") as step:
        record = slots.run(settings, step)
    text = json.dumps(record, indent=1) + "\n"
    if output is not None:
        output.write_text(text, "utf-8")
    click.echo(text if as_json else slots.markdown(record), nl=False)
