"""`memory-titan evaluate needle` and `evaluate code`: what a graft answers over length, depth and distance."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from memory_titan.cli.answers import CHECKPOINT_HELP, DTYPE, MODEL, PROBES_OPTION, load_graft, tell_overflow
from memory_titan.cli.common import Refusal, both, plainly, steps

if TYPE_CHECKING:
    from memory_titan.tasks.text_task import TextTask

_CHECKPOINT = click.option("--checkpoint", required=True, metavar="FOLDER", help=CHECKPOINT_HELP)
_SEED = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another one: other texts.")
_BARE = click.option("--bare", is_flag=True, help="Also the bare model, which sees everything; slow on long texts.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")


def _numbers(kind: type[int] | type[float], low: float, high: float) -> Callable[..., Any]:
    """For an option: its text, numbers with commas between them, each once, as a list."""

    def convert(ctx: click.Context, option: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        try:
            found = [kind(part) for part in value.split(",")]
        except ValueError:
            like = "512,1024" if kind is int else "0,0.5,1"
            raise click.BadParameter(f"{value!r} is no list of numbers such as {like}") from None
        if bad := [number for number in found if not low <= number <= high]:
            limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise click.BadParameter(f"{bad[0]} is not {limits}")
        if len(set(found)) < len(found):
            raise click.BadParameter(f"{value!r} has a number twice")
        return found

    return convert


_LENGTHS, _DEPTHS = _numbers(int, 1, math.inf), _numbers(float, 0, 1)


@click.command("needle")
@_CHECKPOINT
@click.option(
    *both("context_lengths"),
    callback=_LENGTHS,
    default="512,1024,2048,4096",
    show_default=True,
    metavar="TOKENS,...",
    help="Lengths of the texts, in the model's tokens.",
)
@click.option(
    "--depths",
    callback=_DEPTHS,
    default="0,0.25,0.5,0.75,1",
    show_default=True,
    metavar="SHARES",
    help="Where what is asked for stands, 0: at the start, 1: at the end.",
)
@click.option("--samples", type=click.IntRange(1), default=4, show_default=True, help="Texts of each length and depth.")
@click.option(
    "--task",
    type=click.Choice(["hash-hop", "needle", "dependency"]),
    default="hash-hop",
    show_default=True,
    help="What stands in the texts; as of `data`, which explains the options below.",
)
@click.option("--questions", type=click.IntRange(1), help="Asked at the end of each text.")
@click.option("--needles", type=click.IntRange(1), help="hash-hop, needle: facts in a text.  [default: one a question]")
@click.option("--hops", type=click.IntRange(1), help="hash-hop, dependency: facts to join.")
@click.option("--skip", is_flag=True, default=None, help="hash-hop: answer with the end of the chain at once.")
@click.option(*both("hash_len"), type=click.IntRange(1, 64), help="hash-hop: characters of a hash.")
@click.option("--alphabet", help="hash-hop: what hashes are made of.")
@click.option("--digits", type=click.IntRange(1, 12), help="needle: of a code.")
@click.option("--chains", type=click.IntRange(2), help="dependency: chains of the same form.")
@click.option(
    "--form", type=click.Choice(["reaches", "responsible", "mixed", "chain"]), help="dependency: what is asked."
)
@click.option("--filler", type=click.Choice(["prose", "pairs", "topics", "none"]), help="Between the facts.")
@click.option(
    *both("filler_file"),
    type=click.Path(path_type=Path),
    metavar="TEXT",
    help="Fill with the paragraphs of this UTF-8 file instead.",
)
@_BARE
@PROBES_OPTION
@MODEL
@DTYPE
@_SEED
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="For needle.png, distance.png and needle.json (extra: plot).",
)
@_JSON
@plainly
def needle(
    checkpoint: str, context_lengths: list[int], depths: list[float], samples: int, task: str, bare: bool,
    probes: bool, model: str, dtype: str, seed: int, output: Path | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Facts at every depth of texts of every length: what the graft answers with its memory and without.

    An answer is right if greedy decoding says it to its last token. Printed by length and depth, and by the distance
    to the evidence, each share with its 95% interval (Wilson). Texts are made while it runs and read in segments, so
    that with an attention window the memory this takes does not grow with them.
    """
    from memory_titan.evaluation.compare import attention_window
    from memory_titan.evaluation.needle import as_report, draw, evaluate_needle, lay_out
    from memory_titan.evaluation.probes import PROBES

    make = _task(task, options)
    make(max(context_lengths), depths[0])  # options that cannot be are refused before the model is loaded
    if output is not None:
        _need_matplotlib()
    graft, tokenizer = load_graft(checkpoint, model, dtype)
    ways = ["memory", "window", *(["bare"] if bare else []), *(PROBES if probes else ())]
    cells = lay_out(make, context_lengths, depths, samples, tokenizer, Path(model).name, seed)
    total = sum(context_lengths) * len(depths) * samples * len(ways)
    with steps(total) as advance:
        found = list(evaluate_needle(graft, tokenizer, cells, ways, advance))
    chosen = {name: str(value) for name, value in options.items() if value is not None}
    about = {"checkpoint": checkpoint, "task": task, "options": chosen, "samples": samples, "seed": seed}
    about |= {"model": model, "dtype": dtype}
    report = as_report(found, attention_window(graft), about)
    pictures = [] if output is None else draw(report, output)
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    _print_needle(report, ways)
    for picture in pictures:
        click.echo(str(picture))


def _task(name: str, options: dict[str, Any]) -> Callable[[int, float], TextTask]:
    """A maker of the task, with those of the options that were given.

    Raises:
        Refusal: one of them is not the task's.
    """
    from memory_titan.tasks.dependency import DependencyTask
    from memory_titan.tasks.filler import read_passages
    from memory_titan.tasks.hash_hop import HashHopTask
    from memory_titan.tasks.needle import NeedleTask

    kind: Any = {"hash-hop": HashHopTask, "needle": NeedleTask, "dependency": DependencyTask}[name]
    chosen = {option: value for option, value in options.items() if value is not None}
    if file := chosen.pop("filler_file", None):
        chosen["filler"] = read_passages(file)
    known = {field.name for field in fields(kind)}
    if foreign := sorted(set(chosen) - known):
        raise Refusal(f"--{foreign[0]} is not for --task {name}")
    if "needles" in known:
        chosen.setdefault("needles", chosen.get("questions", 1))
    return lambda length, depth: kind(context_len=length, depth=depth, **chosen)


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Refusal("--output draws pictures, which needs more: pip install 'memory-titan[plot]'") from None


def _print_needle(report: dict[str, Any], ways: list[str]) -> None:
    from memory_titan.evaluation.compare import label
    from memory_titan.evaluation.needle import share_of

    window = report["window"]
    guesses = any("guess" in cell for cell in report["cells"])
    by_cell = Table("tokens", "depth", "answers", *(["a guess"] if guesses else []), box=box.SIMPLE_HEAD)
    by_distance = Table("tokens back to the nearest evidence", "answers", box=box.SIMPLE_HEAD)
    for way in ways:
        for table in (by_cell, by_distance):
            table.add_column(label(way, window), min_width=17, max_width=17)  # as wide as a share
    for cell in report["cells"]:
        guess = [f"{cell['guess']:.2f}"] if guesses else []
        shown = [str(share_of(cell, way)) for way in ways]
        by_cell.add_row(f"{cell['length']:,}", f"{cell['depth']:g}", str(cell["answers"]), *guess, *shown)
    for one in report["distances"]:
        shown = [str(share_of(one, way)) for way in ways]
        by_distance.add_row(f"{one['over'] + 1:,} to {one['to']:,}", str(one["answers"]), *shown)
    shown = [str(share_of(report["all"], way)) for way in ways]
    by_distance.add_row("all", str(report["all"]["answers"]), *shown)
    console = Console(width=60 + 21 * len(ways))
    console.print(by_cell, by_distance)
    tell_overflow(report["all"].get("overflowed", {}), window)


@click.command("code")
@_CHECKPOINT
@click.option(
    *both("data_path"),
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Samples of `data code-retrieval`.  [default: drawn from the standard library's test files]",
)
@click.option("--synthetic", is_flag=True, help="Draw from made-up modules instead.")
@click.option(
    *both("context_lengths"),
    callback=_LENGTHS,
    metavar="TOKENS,...",
    help="Lengths of the texts that are drawn, in the model's tokens.  [default: 1024,2048]",
)
@click.option("--samples", type=click.IntRange(1), help="Texts of each length.  [default: 16; of a file all]")
@click.option("--questions", type=click.IntRange(1), help="Asked in each text that is drawn.  [default: 1]")
@_BARE
@MODEL
@DTYPE
@_SEED
@_JSON
@plainly
def code(
    checkpoint: str, data_path: Path | None, synthetic: bool, context_lengths: list[int] | None, samples: int | None,
    questions: int | None, bare: bool, model: str, dtype: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Lines of code that only a definition far back can complete: exact match, and edit similarity of what is written.

    Exact: greedy decoding says the answer to its last token. Similarity: 1 - Levenshtein distance / length of the
    longer, between the answer and what greedy generation writes, cut to the answer's tokens and lines; its mean.
    Answers of whose evidence attention sees nothing any more (past the window) are counted apart.
    """
    from memory_titan.evaluation.code import by_reach, evaluate_code, summary
    from memory_titan.evaluation.compare import attention_window

    if data_path is not None:
        for name, value in {"synthetic": synthetic, "context_lengths": context_lengths, "questions": questions}.items():
            if value:
                raise Refusal(f"--{name} is for texts that are drawn; leave it out, or --data_path")
    draw = None if data_path is not None else _code_task(synthetic, questions or 1)
    graft, tokenizer = load_graft(checkpoint, model, dtype)
    if draw is None:
        assert data_path is not None
        texts = {data_path.name: _read(data_path, tokenizer, samples)}
    else:
        lengths = context_lengths or [1024, 2048]
        texts = {f"{n:,} tokens": _drawn(draw, n, tokenizer, Path(model).name, samples or 16, seed) for n in lengths}
    ways, window = ["memory", "window", *(["bare"] if bare else [])], attention_window(graft)
    rows: list[dict[str, Any]] = []
    with steps(len(ways) * sum(len(example.ids) for group in texts.values() for example in group)) as advance:
        for name, group in texts.items():
            told = evaluate_code(graft, group, tokenizer, ways, lambda way, n: advance(f"{name}, {way}", n))  # noqa: B023
            for reach, some in {**by_reach(told, window), "all": told}.items():
                found = {way: summary(some, way) for way in ways}
                row = {"texts": name, "evidence": reach, "answers": len(some), "ways": found}
                rows.append(row | ({"said": [asdict(one) for one in told]} if reach == "all" else {}))
    if as_json:
        about = {"checkpoint": checkpoint, "model": model, "dtype": dtype, "seed": seed, "window": window}
        click.echo(json.dumps({**about, "rows": rows}, indent=1))
        return
    _print_code(rows, ways, window)


def _print_code(rows: list[dict[str, Any]], ways: list[str], window: int | None) -> None:
    from memory_titan.evaluation.compare import Share, label

    table = Table("texts", "evidence", "answers", box=box.SIMPLE_HEAD)
    for way in ways:
        table.add_column(f"{label(way, window)}: exact", min_width=17, max_width=17)
        table.add_column("similarity")
    words = {"within": "everything is seen" if window is None else f"within {window}", "past": f"past {window}"}
    for row in rows:
        shown = [
            text
            for found in (row["ways"][way] for way in ways)
            for text in (str(Share(found["right"], found["total"])), f"{found['similarity']:.2f}")
        ]
        table.add_row(row["texts"], words.get(row["evidence"], "all"), str(row["answers"]), *shown)
    Console(width=130).print(table)
    every = [row for row in rows if row["evidence"] == "all"]
    if disagreed := sum(row["ways"][way]["disagreed"] for row in every for way in ways):
        click.echo(f"in {disagreed} answers generation and exact match disagree, by rounding")


def _code_task(synthetic: bool, questions: int) -> Callable[[int], TextTask]:
    from memory_titan.tasks.code_retrieval import CodeRetrievalTask, SourceRetrievalTask

    if synthetic:
        return lambda length: CodeRetrievalTask(context_len=length, questions=questions)
    from memory_titan.tasks.code_source import read_corpus

    corpus = read_corpus(None, "test")
    return lambda length: SourceRetrievalTask(corpus, context_len=length, questions=questions)


def _drawn(
    make: Callable[[int], TextTask], length: int, tokenizer: Any, name: str, samples: int, seed: int
) -> list[Any]:
    from memory_titan.tasks.examples import encode
    from memory_titan.tasks.ruler import HuggingFace

    drawn = make(length).samples(samples, seed=seed, ruler=HuggingFace(tokenizer, name), start=length << 32)
    return [encode(sample, tokenizer, f"{length} tokens, sample {i}") for i, sample in enumerate(drawn)]


def _read(path: Path, tokenizer: Any, limit: int | None) -> list[Any]:
    from memory_titan.tasks.examples import load_examples

    return load_examples(path, tokenizer, limit=limit)
