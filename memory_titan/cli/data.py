"""`memory-titan data ...`: samples to train and test on, drawn into JSON lines, and checked."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from memory_titan.cli.common import Refusal, both, plainly, steps

if TYPE_CHECKING:
    from memory_titan.tasks.ruler import Ruler
    from memory_titan.tasks.text_task import TextTask

_SHOWN = 10  # failures that `check` prints


@click.group()
def data() -> None:
    """Draw samples of the tasks that a memory is trained and tested on, and check them.

    One JSON object a line: the text, and of each answer in it the span, the question, the evidence and how many
    tokens back that lies. Sample i of a seed is the same however many are drawn; another --seed draws others.
    """


_TOKENIZER_HELP = "smollm2, a Hugging Face tokenizer by path or name, words or bytes."
_COMMON = [
    click.option(*both("context_len"), type=click.IntRange(1), default=4096, show_default=True, metavar="TOKENS",
                 help="Length of a text, answers included: never more, at most about 2% less."),
    click.option(*both("num_samples"), type=click.IntRange(1), default=1000, show_default=True, help="How many."),
    click.option("--output", required=True, metavar="FILE", help="Where they go; - is the standard output."),
    click.option("--tokenizer", default="words", show_default=True, metavar="NAME",
                 help=f"What a token is: {_TOKENIZER_HELP}"),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another one for each split."),
    click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="Index of the first sample."),
    click.option("--questions", type=click.IntRange(1), default=1, show_default=True, help="Asked at the end."),
    click.option("--depth", type=click.FloatRange(0, 1), metavar="SHARE",
                 help="Where the evidence stands, 0: at the start, 1: at the end.  [default: anywhere]"),
    click.option("--force", is_flag=True, help="Overwrite FILE."),
]  # fmt: skip


def filler_options(*names: str) -> list[Any]:
    """What fills the texts: one of these, or a file."""
    return [
        click.option("--filler", type=click.Choice(names), default="prose", show_default=True,
                     help="prose: made up; topics: Python's help; none: nothing but what is asked about."),
        click.option(*both("filler_file"), type=click.Path(path_type=Path), metavar="TEXT",
                     help="Fill with the paragraphs of this UTF-8 file instead."),
    ]  # fmt: skip


def drawing_options(*more: Any) -> Callable[[Any], Any]:
    """The common options, and more of them in front."""

    def decorate(command: Any) -> Any:
        for option in reversed([*more, *_COMMON]):
            command = option(command)
        return command

    return decorate


_NEEDLES = click.option("--needles", type=click.IntRange(1), help="Facts in the context.  [default: one a question]")


@data.command("hash-hop")
@drawing_options(
    _NEEDLES,
    click.option("--hops", type=click.IntRange(1, 64), default=1, show_default=True, help="Pairs a question follows."),
    click.option("--skip", is_flag=True, help="Answer with the end of the chain at once, not with every hop."),
    click.option(*both("hash_len"), type=click.IntRange(1, 64), default=6, show_default=True, help="Of a hash."),
    click.option("--alphabet", default="0123456789abcdef", show_default=True, help="What hashes are made of."),
    *filler_options("prose", "pairs", "topics", "none"),
)
@plainly
def hash_hop_command(
    needles: int | None, questions: int, filler: str, filler_file: Path | None, **options: Any
) -> None:
    """Pairs of hashes, a1b2c3 -> d4e5f6, somewhere in the text: what comes after a1b2c3, once or --hops times?

    --needles chains stand among the filler, and --questions of them are asked for. With --filler pairs all else are
    pairs, too.
    """
    from memory_titan.tasks.hash_hop import HashHopTask

    chosen = {"needles": needles or questions, "questions": questions, "filler": chosen_filler(filler, filler_file)}
    write_samples(lambda own: HashHopTask(**chosen, **own), options)


@data.command("needle")
@drawing_options(
    _NEEDLES,
    click.option("--digits", type=click.IntRange(1, 12), default=7, show_default=True, help="Of a code."),
    *filler_options("prose", "topics", "none"),
)
@plainly
def needle_command(needles: int | None, questions: int, filler: str, filler_file: Path | None, **options: Any) -> None:
    """A needle in a haystack: "The secret code of Ida Marlow is 5903317." What is the secret code of Ida Marlow?"""
    from memory_titan.tasks.needle import NeedleTask

    chosen = {"needles": needles or questions, "questions": questions, "filler": chosen_filler(filler, filler_file)}
    write_samples(lambda own: NeedleTask(**chosen, **own), options)


@data.command("dependency")
@drawing_options(
    click.option("--hops", type=click.IntRange(2, 4), default=2, show_default=True, help="Facts to join."),
    click.option("--chains", type=click.IntRange(2), default=4, show_default=True, help="Chains of the same form."),
    click.option("--form", type=click.Choice(["reaches", "responsible", "mixed", "chain"]), default="mixed",
                 show_default=True, help="reaches: yes or no; responsible: which team; mixed: either; chain: a name."),
    *filler_options("prose", "topics", "none"),
)  # fmt: skip
@plainly
def dependency_command(filler: str, filler_file: Path | None, **options: Any) -> None:
    """Modules that depend on modules, told in shuffled order: does one reach another, or whose team has to mend it?"""
    from memory_titan.tasks.dependency import DependencyTask

    write_samples(lambda own: DependencyTask(filler=chosen_filler(filler, filler_file), **own), options)


@data.command("code-retrieval")
@drawing_options(
    click.option("--synthetic", is_flag=True, help="Made-up modules instead of real ones."),
    click.option("--source", type=click.Path(path_type=Path), metavar="DIR",
                 help="A tree of Python files.  [default: the running Python's standard library]"),
    click.option("--split", type=click.Choice(["train", "test", "all"]), default="train", show_default=True,
                 help="Which files of the tree, by a hash of their path; a fifth is test."),
    click.option("--kind", default="mixed", show_default=True, metavar="KIND",
                 help="With --synthetic: constant, attribute, returned, default, entry or keyword."),
)  # fmt: skip
@plainly
def code_retrieval_command(synthetic: bool, source: Path | None, split: str, kind: str, **options: Any) -> None:
    """A definition, and far later a line that only the definition can complete.

    Real trees are read whole first: some ten seconds for the standard library.
    """
    from memory_titan.tasks.code_retrieval import CodeRetrievalTask, SourceRetrievalTask

    if synthetic:
        given = click.get_current_context().get_parameter_source
        refused = [name for name in ("source", "split") if given(name) == click.core.ParameterSource.COMMANDLINE]
        if refused:
            raise Refusal(f"--{refused[0]} is for real files; leave it out, or --synthetic")
        write_samples(lambda own: CodeRetrievalTask(kind=kind, **own), options)
        return
    if kind != "mixed":
        raise Refusal("--kind is for --synthetic")
    from memory_titan.tasks.code_source import read_corpus

    write_samples(lambda own: SourceRetrievalTask(read_corpus(source, split), **own), options)


@data.command("check")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--tokenizer", metavar="NAME", help=f"{_TOKENIZER_HELP}  [default: what the samples say, if it is here]")
@plainly
def check_command(path: Path, tokenizer: str | None) -> None:
    """Solve every sample of FILE from its evidence alone, and compare; measure lengths and distances anew.

    The checkers share no code with the generators. Exit code 2 if a line is no sample or a sample is wrong.
    """
    from memory_titan.tasks.checks import check
    from memory_titan.tasks.sample import Sample, SampleError, numbered_lines

    rulers = {tokenizer: _ruler(tokenizer)} if tokenizer else {}
    counts: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    seen: dict[int, int] = {}
    bad = unmeasured = 0
    size = path.stat().st_size
    if not size:
        raise Refusal(f"{path} is empty")
    with steps(size, "checking") as step:
        for number, line in numbered_lines(path):
            try:
                sample = Sample.from_json(line, number, path.name)
                name = tokenizer or sample.unit
                if name not in rulers and name in ("words", "bytes", "smollm2"):
                    rulers[name] = _ruler(name)
                ruler = rulers.get(name)
                problems = [f"{path.name}, line {number}: {problem}" for problem in check(sample, ruler)]
                before = seen.setdefault(hash(sample.text), number)
                if before != number:
                    problems.append(f"{path.name}, line {number}: the same text as line {before}")
                counts[sample.task] += 1
                unmeasured += ruler is None
                answers.update(f"answered {a}" for a in _words(sample) if a in ("yes", "no"))
            except SampleError as error:
                problems = [str(error)]
                counts["no sample"] += 1
            bad += bool(problems)
            if problems and bad <= _SHOWN:
                click.echo("\n".join(problems), err=True)
            step("checking", len(line))
    listed = ", ".join(f"{count} {name}" for name, count in [*counts.items(), *sorted(answers.items())])
    click.echo(f"{path}: {listed}")
    if unmeasured:
        click.echo(f"{unmeasured} lengths were not measured: name their tokenizer with --tokenizer", err=True)
    if bad:
        raise Refusal(f"{bad} of {counts.total()} lines are wrong" + (f"; the first {_SHOWN} above" * (bad > _SHOWN)))
    click.echo("all right")


def _words(sample: Any) -> list[str]:
    return [sample.cut(answer.span).strip() for answer in sample.answers]


def chosen_filler(filler: str, file: Path | None) -> Any:
    """What `filler_options` were given as a task takes it."""
    from memory_titan.tasks.filler import read_passages

    return filler if file is None else read_passages(file)


def _ruler(name: str) -> Ruler:
    """What measures in these tokens; smollm2's tokenizer is converted with its model the first time."""
    from memory_titan.tasks.ruler import BYTES, WORDS, HuggingFace

    if name in ("words", "bytes"):
        return WORDS if name == "words" else BYTES
    from transformers import AutoTokenizer

    from memory_titan.hybrid.frozen import DEFAULT_MODEL, cache_folder, load_frozen

    place = name
    if name == DEFAULT_MODEL:
        folder = cache_folder() / "smollm2-135m-instruct"
        if not (folder / "config.json").exists():
            return HuggingFace(load_frozen(name).tokenizer, name)
        place = str(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refusal(f"cannot load a tokenizer from {name!r}: {reason}") from error
    return HuggingFace(tokenizer, name if name == DEFAULT_MODEL else Path(name).name)


def write_samples(make: Callable[[dict[str, Any]], TextTask], options: dict[str, Any]) -> None:
    """Draw a task's samples into a file.

    Args:
        make: the task, from the options that are its own.
        options: all, the common ones among them.
    """
    output, force, seed = options.pop("output"), options.pop("force"), options.pop("seed")
    number, start, tokenizer = options.pop("num_samples"), options.pop("start"), options.pop("tokenizer")
    path = None if output == "-" else Path(output)
    if path is not None and path.is_dir():
        raise Refusal(f"{path} is a folder")
    if path is not None and path.exists() and not force:
        raise Refusal(f"{path} exists; --force overwrites it")
    task, ruler = make(options), _ruler(tokenizer)
    samples = task.samples(number, seed=seed, ruler=ruler, start=start)
    shortest, longest, answers, done = sys.maxsize, 0, 0, 0
    try:
        with _whole(path) as file, steps(number, "drawing") as step:
            for sample in samples:
                file.write(sample.to_json() + "\n")
                shortest, longest = min(shortest, sample.length), max(longest, sample.length)
                answers, done = answers + len(sample.answers), done + 1
                step("drawing")
    except KeyboardInterrupt:
        left = f"{done} samples were written" if path is None else f"{path} was not {'changed' if force else 'written'}"
        click.echo(f"interrupted after {done} samples; {left}", err=True)
        raise SystemExit(130) from None
    except BrokenPipeError:  # who reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    words = f"{done} samples, {answers} answers, {shortest} to {longest} {ruler.name}"
    click.echo(f"{'standard output' if path is None else path}: {words}", err=path is None)


@contextmanager
def _whole(path: Path | None) -> Iterator[TextIO]:
    """A file that is there when it is whole: written beside its place, then renamed. None: the standard output."""
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("w", encoding="ascii", newline="\n") as file:
            yield file
        unfinished.replace(path)
    finally:
        with suppress(OSError):
            unfinished.unlink()
