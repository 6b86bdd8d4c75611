"""`memory-titan train lm`: a language model around a memory, trained on text files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from memory_titan.cli.common import Refusal, plainly, steps

_SHOWN_EVERY = 10  # steps, where there is no bar


@click.command("lm")
@click.option(
    "--config", required=True, type=click.Path(path_type=Path), metavar="FILE", help="YAML; docs/train-lm.md."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="For checkpoints and the model.  [default: the file's]",
)
@click.option("--resume", is_flag=True, help="Go on exactly where DIR/latest stands.")
@click.option("--steps", "number", type=click.IntRange(1), metavar="N", help="Of the optimizer.  [default: the file's]")
@click.option("--quiet", is_flag=True, help="Show no steps.")
@plainly
def lm(config: Path, output: Path | None, resume: bool, number: int | None, quiet: bool) -> None:
    """Train a language model around a memory on text files.

    Writes DIR/latest (every save_every steps, and when it is interrupted), DIR/final and DIR/log.jsonl. --resume goes
    on to the same losses, bit for bit. With several processes: accelerate launch -m memory_titan train lm ...
    """
    try:
        from accelerate import PartialState

        from memory_titan.training.lm import LATEST, LOG, train
        from memory_titan.training.lm_config import load_config, make_model
    except ImportError as error:
        raise Refusal(f"training needs more ({error.name} is missing): pip install 'memory-titan[train]'") from None
    from transformers.utils import logging

    from memory_titan.models.size import parameter_count
    from memory_titan.training.checkpoint import CheckpointError, find_checkpoint
    from memory_titan.training.log import summary_writer
    from memory_titan.training.loop import TrainingError
    from memory_titan.training.text import read_text

    logging.disable_progress_bar()  # of every file saved
    settings = load_config(config)
    if number is not None:
        settings = replace(settings, steps=number)
    if output is None and settings.output is None:
        raise Refusal(f"{config} names no output, and neither does --output")
    folder = Path(str(settings.output)) if output is None else output
    if settings.log_dir is not None:
        summary_writer()  # is it there? before anything takes time
    try:
        find_checkpoint(folder / LATEST)
    except CheckpointError:
        if resume:
            raise
    else:
        if not resume:
            raise Refusal(f"{folder} holds a run already; --resume goes on with it")
    corpus = read_text(settings.data)
    model = make_model(settings.model, corpus, settings.seed)
    told = (
        f"{len(corpus.train)} files to train on, {_tokens(corpus.train):,} tokens; {len(corpus.held_out)} held out, "
        f"{_tokens(corpus.held_out):,} tokens; {parameter_count(model):,} parameters"
        + (f"; {corpus.skipped} files were no text" if corpus.skipped else "")
    )
    try:
        with _reporting(told, settings.steps, settings.log_dir, quiet) as report:
            progress = train(model, corpus, settings, folder, resume=resume, report=report)
    except TrainingError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:  # the second one, or before the first step
        kept = (folder / LATEST).exists()
        click.echo(f"interrupted; {f'{folder} goes on with --resume' if kept else 'no checkpoint yet'}", err=True)
        raise SystemExit(130) from None
    first = PartialState().is_main_process
    if not progress["finished"]:
        if first:
            click.echo(f"interrupted after {progress['step']} steps; {folder} goes on with --resume", err=True)
        raise SystemExit(130)
    found = progress["evaluation"]
    scored = f"; {found['bits_per_byte']:.3f} bits per byte" if found else ""
    if first:
        click.echo(f"{progress['step']} steps, {progress['seconds']:.0f} s{scored}: {folder / 'final'}, {folder / LOG}")


def _tokens(documents: list[Any]) -> int:
    return sum(len(each.tokens) for each in documents)


@contextmanager
def _reporting(told: str, total: int, log_dir: str | None, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Shows and logs records. Nothing before the first one: only then is it known which process this is."""
    with ExitStack() as stack:
        opened: dict[str, Any] = {"step": 0}

        def report(record: dict[str, Any]) -> None:
            if "advance" not in opened:
                click.echo(told, err=True)
                opened["advance"] = None if quiet else stack.enter_context(steps(total, "training"))
                if log_dir is not None:
                    from memory_titan.training.log import ScalarLog

                    opened["log"] = stack.enter_context(ScalarLog(Path(log_dir), record["step"] - 1))
            if "log" in opened:
                opened["log"].write(record["step"], dict(_scalars(record)))
            if not quiet:
                _show(record, total)
                opened["advance"](
                    f"loss {record['loss']:.3f}" if "loss" in record else "evaluated", record["step"] - opened["step"]
                )
            opened["step"] = record["step"]

        yield report


def _scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    part = "evaluation" if "bits_per_byte" in record else "train"
    for name, value in record.items():
        if name != "step":
            yield name if "/" in name else f"{part}/{name}", value


def _show(record: dict[str, Any], total: int) -> None:
    """A line for an evaluation and, where there is no bar, one for some of the steps."""
    if "bits_per_byte" in record:
        line = f"step {record['step']}: {record['bits_per_byte']:.4f} bits per byte of the held-out files"
    elif not sys.stderr.isatty() and (record["step"] % _SHOWN_EVERY == 0 or record["step"] == total):
        line = f"step {record['step']}/{total}: loss {record['loss']:.4f}, {record['seconds']:.0f} s"
    else:
        return
    click.echo(line, file=sys.stderr)  # above the bar, which has put itself in stderr's place
