"""`memory-titan evaluate hybrid`: what a frozen model with a memory recalls of a long chat."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markdown import Markdown

from memory_titan.cli.common import both, plainly
from memory_titan.cli.evaluate_mag import _LENGTHS, _need_matplotlib

_PARTS = ("facts", "curve", "corrections", "several", "unknown", "general", "timing")
_ARMS = ("memory", "bare", "context", "retrieval", "soft", "oracle")


def _names(known: tuple[str, ...]) -> Callable[..., list[str]]:
    """For an option: names with commas between them."""

    def convert(ctx: click.Context, option: click.Parameter, value: str) -> list[str]:
        found = [part.strip() for part in value.split(",") if part.strip()]
        if bad := [name for name in found if name not in known]:
            raise click.BadParameter(f"{bad[0]!r} is none of {', '.join(known)}")
        if not found:
            raise click.BadParameter(f"name at least one of {', '.join(known)}")
        return list(dict.fromkeys(found))

    return convert


@click.command("hybrid")
@click.option("--split", type=click.Choice(["dev", "test"]), default="test", show_default=True,
              help="Whose facts are asked for; dev was looked at while the engine was tuned.")  # fmt: skip
@click.option("--model", default="smollm2", show_default=True, metavar="NAME",
              help="The frozen model: smollm2, or any Hugging Face causal LM, by path or name.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True, help="Draws of the facts.")
@click.option("--facts", type=click.IntRange(1), default=100, show_default=True, help="Told in the main chat.")
@click.option("--turns", type=click.IntRange(1), default=300, show_default=True, help="Of the main chat, in all.")
@click.option("--held", callback=_LENGTHS, default="10,30,100,300,500,1000", show_default=True, metavar="FACTS,...",
              help="Points of the curve.")  # fmt: skip
@click.option("--asked", type=click.IntRange(1), default=60, show_default=True, help="Questions a point, at most.")
@click.option("--parts", callback=_names(_PARTS), default=",".join(_PARTS), show_default=True, metavar="PART,...")
@click.option("--arms", callback=_names(_ARMS), default=",".join(_ARMS), show_default=True, metavar="ARM,...")
@click.option(*both("answer_turns"), is_flag=True,
              help="Answer each turn too, as a chat does: it reads the same, and it takes long.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="For record.json, report.md, curves.png (extra: plot), and finished.jsonl, with which an "
              "interrupted run goes on.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead of the tables.")
@click.option("--quiet", is_flag=True, help="Print nothing but the tables.")
@plainly
def hybrid(
    model: str, held: list[int], parts: list[str], arms: list[str], output: Path | None, as_json: bool, quiet: bool,
    **options: Any,
) -> None:  # fmt: skip
    """100 facts told among 300 turns of chat, asked for in other words with the context cleared.

    \b
    Parts  facts        right answers; where wrong ones went wrong; over turns since
           curve        over the number of facts told
           corrections  the new value, and the old one
           several      answers of more than one part
           unknown      how often it speaks to what was never told
           general      answers that stay as they were
           timing       reading, recall, first words
    Arms   memory; bare: nothing; context: all turns in the prompt; retrieval: the three nearest turns
           in the prompt; soft: the two nearest in the memory's own prompt; oracle: the right one there

    Add to a finished run by naming the same --output with more parts, arms or seeds.
    """
    from memory_titan.evaluation.hybrid import Settings, evaluate_hybrid
    from memory_titan.evaluation.hybrid_report import markdown, report
    from memory_titan.evaluation.hybrid_summary import summarise
    from memory_titan.hybrid.frozen import load_frozen

    settings = Settings(held=tuple(held), **options)
    if output is not None:
        _need_matplotlib()
        output.mkdir(parents=True, exist_ok=True)
    try:
        record = evaluate_hybrid(
            load_frozen(model), settings, output, parts, arms,
            say=lambda line: None if quiet else click.echo(line, err=True),
        )  # fmt: skip
    except KeyboardInterrupt:
        left = "nothing was written" if output is None else "the same command goes on with the job it was at"
        click.echo(f"interrupted; {left}", err=True)
        raise SystemExit(130) from None
    figures = summarise(record)
    if output is not None:
        report(figures, output)
    if as_json:
        click.echo(json.dumps(figures, indent=1))
        return
    console = Console()
    if console.is_terminal:
        console.print(Markdown(markdown(figures)))
    else:
        click.echo(markdown(figures))
