"""`memory-titan data ruler`, `data babilong`: a suite's tasks as samples; `data lm-eval`: samples as harness tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memory_titan.cli.common import plainly
from memory_titan.cli.data import chosen_filler, drawing_options, filler_options, write_samples


def _task(example: str) -> Any:
    return click.option("--task", required=True, metavar="NAME", help=f"One of the suite's, such as {example}.")


@click.command("ruler")
@drawing_options(_task("niah_single_1, niah_multikey_2, vt or cwe"), *filler_options("prose", "topics"))
@plainly
def ruler_data(**options: Any) -> None:
    """RULER's tasks: needles (niah_...), variables (vt), common words (cwe).

    The filler is for the tasks that RULER fills with essays; the others have noise, other needles, or words.
    """
    _draw("ruler", **options)


@click.command("babilong")
@drawing_options(_task("qa1, qa2 or qa3"), *filler_options("prose", "topics"))
@plainly
def babilong_data(**options: Any) -> None:
    """BABILong's first tasks: people and things in a small world, told in single sentences among filler.

    qa1 takes one of them to answer ("Where is Otto?"), qa2 two ("Where is the hammer?"), qa3 three.
    """
    _draw("babilong", **options)


def _draw(suite: str, task: str, filler: str, filler_file: Path | None, **options: Any) -> None:
    from memory_titan.tasks.suites import suite_task

    chosen = chosen_filler(filler, filler_file)
    write_samples(lambda own: suite_task(suite, task, own.pop("context_len"), filler=chosen, **own), options)


@click.command("lm-eval")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Where they go.")
@click.option("--name", default="", help="Of the task.  [default: FILE's name]")
@click.option("--force", is_flag=True, help="Overwrite.")
@plainly
def lm_eval_data(path: Path, output: Path, name: str, force: bool) -> None:
    """Make tasks of lm-evaluation-harness of the samples in FILE: documents and two YAML files.

    NAME.yaml scores the true answers (acc: said by greedy decoding, to the last token), NAME_generate.yaml lets answers
    be written (exact_match). `memory-titan evaluate lm-eval --tasks` takes them, and so does lm_eval itself.
    """
    from memory_titan.evaluation.lm_eval_tasks import write_task

    files, documents = write_task(path, output, name, force)
    click.echo(f"{documents} documents: {', '.join(map(str, files))}")
