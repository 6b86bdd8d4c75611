"""`memory-titan experiment`: what slots are good for, measured."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import click

from memory_titan.cli.common import Refusal, plainly

EXPERIMENTS = {
    "longdep": "Tokens that appeared far outside the window: accuracy over distance.",
    "needles": "Pairs among up to ten million tokens of filler, after training on two thousand.",
    "text": "Bits per byte of real text, at one, four and sixteen times the length of training.",
    "continual": "Tasks one after another: what is left of the first when the last is learned.",
    "forgetting": "Facts that expire, are overwritten, or stay: does what is dropped deserve it?",
    "mqar": "Pairs first, then every key again: Titans' architectures, attention and an LSTM of one size.",
}


@click.group()
def experiment() -> None:
    """Train and test MemNet and its baselines; a report with figures.

    \b
    memory-titan experiment longdep --output out
    memory-titan experiment continual --output out --config runs/experiments/continual.yaml --seeds 1
    """


def _command(name: str, told: str) -> click.Command:
    @click.command(name, help=told)
    @click.option(
        "--output",
        required=True,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where record.json, report.md and the figures go.",
    )
    @click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Settings, a YAML file; runs/experiments/{name}.yaml names all.  [default: the documented run]",
    )
    @click.option("--seeds", type=click.IntRange(1), metavar="N", help="Seeds of everything.  [default: 3]")
    @click.option("--quiet", is_flag=True, help="Print nothing but the report.")
    @plainly
    def command(output: Path, config: Path | None, seeds: int | None, quiet: bool) -> None:
        run = importlib.import_module(f"memory_titan.experiments.{name}")
        write = importlib.import_module(f"memory_titan.experiments.{name}_report")
        from memory_titan.training.settings import load_settings

        settings: Any = run.Settings() if config is None else load_settings(run.Settings, config)
        if seeds is not None:
            settings = dataclasses.replace(
                settings, seeds=seeds if isinstance(settings.seeds, int) else tuple(range(seeds))
            )
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refusal(f"cannot make the folder {output}: {error.strerror}") from error
        record = run.run(settings, (lambda line: None) if quiet else (lambda line: click.echo(line, err=True)))
        (output / "record.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")  # whatever the figures do
        write.report(record, output)
        click.echo((output / "report.md").read_text("utf-8"))

    return command


for _name, _told in EXPERIMENTS.items():
    experiment.add_command(_command(_name, _told))
