"""`memory-titan bench model`: whole language models, trained and decoding, beside baselines of equal size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from memory_titan.cli.common import Refusal, both, plainly, steps


@click.command("model")
@click.option("--against", type=click.Choice(["titans-pytorch"]), help="Measure its MAC beside ours (extra: bench).")
@click.option(*both("peer_python"), default=sys.executable, metavar="FILE", help="The Python that has titans-pytorch.")
@click.option("--only", type=click.Choice(["training", "decoding"]), help="This part alone.")
@click.option("--batch", multiple=True, type=click.IntRange(1), default=(1, 4), show_default=True, help="Rows a step.")
@click.option(
    "--context", multiple=True, type=click.IntRange(1), metavar="TOKENS",
    help="Read so much before single tokens.  [default: 128 to 1048576]",
)  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Turns of each model.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each.")
@click.option("--quick", is_flag=True, help="Tiny sizes, one turn: to see that it runs.")
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path), metavar="FILE", help="Draw decoding here (extra: plot)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON, every sample in it.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the record here as JSON.")
@plainly
def bench_model_command(
    against: str | None, peer_python: str, only: str | None, batch: tuple[int, ...], context: tuple[int, ...],
    repeats: int, threads: int, quick: bool, picture: Path | None, as_json: bool, output: Path | None,
) -> None:  # fmt: skip
    """Time LMM, MAC, MAG and MAL: a training step, and single tokens behind up to a million others.

    Beside them transformers and an LSTM with as many parameters. Each has a process of its own, and they take turns.
    LMM alone reads a million tokens, the others 65,536. About twenty minutes on a quiet core, and 10 GB. --batch and
    --context may be given several times.
    """
    from memory_titan.benchmarks import model, model_report

    settings = model.Settings(
        peer=against is not None, peer_python=peer_python, only=only, batches=batch, repeats=repeats, threads=threads,
        contexts=tuple(sorted(set(context))) or model.Settings.contexts,
    )  # fmt: skip
    if quick:
        settings = model.quick(settings)
    for file in (output, picture):
        if file is not None and not file.parent.is_dir():
            raise Refusal(f"no such folder: {file.parent}")
    if picture is not None and only == "training":
        raise Refusal("--plot draws decoding, and --only training leaves it out")
    with steps(model.parts(settings), "starting") as step:
        record = model.run(settings, step)
    text = json.dumps(record, indent=1) + "\n"
    if output is not None:
        output.write_text(text, "utf-8")
    if picture is not None:
        try:
            model_report.plot(record, picture)
        except ImportError as error:
            raise Refusal(str(error)) from error
    click.echo(text if as_json else model_report.markdown(record), nl=False)
