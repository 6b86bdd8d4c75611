"""`memory-titan evaluate mqar`, `niah`, `hashhop` and `lm`: any causal language model, with its memory and spoilt."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from memory_titan.cli.common import Refusal, both, plainly, steps
from memory_titan.cli.evaluate_mag import _DEPTHS, _LENGTHS, _need_matplotlib

if TYPE_CHECKING:
    from memory_titan.evaluation.language import Cell

Option = Callable[[Any], Any]


def _depths(ctx: click.Context, option: click.Parameter, value: str) -> list[float]:
    """As numbers; "any": none."""
    found: list[float] = [] if value == "any" else _DEPTHS(ctx, option, value)
    return found


_MODEL: list[Option] = [click.argument("model")]
_COMMON: list[Option] = [
    click.option("--probes/--no-probes", default=True, show_default=True,
                 help="Also with the memory spoilt, where there is one: nothing written, writes of flipped sign, "
                 "stored under queries. Each takes the time again."),
    click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True),
    click.option("--piece", type=click.IntRange(1), metavar="TOKENS",
                 help="Of a text, read at a time by a model with a state.  [default: by the number of texts]"),
    click.option("--output", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
                 help="For report.json, and heat.png where there are depths (extra: plot)."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead."),
]  # fmt: skip
_SAMPLED: list[Option] = [
    click.option("--samples", type=click.IntRange(1), default=8, show_default=True, help="Texts of each length."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another one: other texts."),
]
_STREAMS: list[Option] = [
    click.option("--lengths", callback=_LENGTHS, metavar="TOKENS,...",
                 help="Of the texts.  [default: 1, 4 and 16 times the length trained at; else 512,2048]"),
    click.option("--depths", callback=_depths, default="0,0.25,0.5,0.75,1", show_default=True, metavar="SHARES",
                 help="Where what is asked for stands, 0: at the start, 1: right before the questions; any: anywhere "
                 "(tokens)."),
    click.option("--form", type=click.Choice(["tokens", "text"]),
                 help="Tokens of no meaning, or sentences.  [default: what the model was trained on; else text]"),
    click.option("--pairs", type=click.IntRange(1), help="Facts in a text."),
    click.option("--filler", type=click.IntRange(1), help="tokens: different filler tokens."),
    click.option("--text", metavar="NAME", help="tokens: filler is the bytes of docs, topics (of Python) or a file."),
    click.option("--split", type=click.Choice(["all", "train", "test"]), help="tokens: of that text's paragraphs."),
]  # fmt: skip


def _options(*groups: Sequence[Option]) -> Option:
    def decorate(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


@click.command("mqar")
@_options(_MODEL)
@click.option("--lengths", callback=_LENGTHS, metavar="TOKENS,...", help="Of the sequences; with --pairs.")
@click.option("--pairs", callback=_LENGTHS, metavar="PAIRS,...", help="In a sequence: at every length that holds them.")
@click.option("--vocabulary", type=click.IntRange(4), help="Different tokens.  [default: as trained; else all]")
@click.option("--power", type=float, help="Of the law of the gaps; 1: any gap alike.  [default: as trained; else 0.01]")
@click.option("--noise", type=click.Choice(["random", "none"]), help="Between the questions.")
@click.option("--samples", type=click.IntRange(1), default=64, show_default=True, help="Sequences of each size.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another one: other sequences.")
@_options(_COMMON)
@plainly
def mqar(
    model: str, lengths: list[int] | None, pairs: list[int] | None, samples: int, seed: int, probes: bool, dtype: str,
    piece: int | None, output: Path | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Multi-query associative recall (arXiv 2312.04927) by MODEL, a folder or a name of Hugging Face.

    Pairs first, then every key among other tokens, each asking for its value. Without --lengths and --pairs: the sizes
    of the paper, 64 tokens and 4 pairs to 1,024 and 256, as far as the vocabulary holds the pairs.
    """
    from memory_titan.evaluation import language
    from memory_titan.tasks.mqar import TEST, MQARTask

    if (lengths is None) != (pairs is None):
        raise Refusal("--lengths and --pairs go together")
    whole = None if lengths is None else [(n, m) for n in lengths for m in pairs or [] if n >= 4 * m]
    if whole == []:
        raise Refusal("no length holds that many pairs: it takes 4 tokens a pair")
    lm, _ = _load(model, dtype)
    chosen = {"length": 64, "pairs": 1, **_trained(lm, "mqar"), **_given(options)}
    chosen.setdefault("vocabulary", language.vocabulary_of(lm))
    task = MQARTask(**{**chosen, "length": 64, "pairs": 1})
    sizes = whole or [size for size in TEST if size[1] <= task.keys]
    ways = _ways(lm, probes)
    run = _Run(model, lm, ways, samples=samples, seed=seed)
    with steps(sum(length for length, _ in sizes) * samples * len(ways)) as advance:
        cells = language.mqar(lm, sizes, samples, ways, task, seed, piece, run.counting(advance))
    run.tell(cells, {"name": "mqar", **vars(task)}, output, as_json)


@click.command("niah")
@_options(_MODEL, _STREAMS)
@click.option("--keys", type=click.IntRange(1), help="tokens: different keys.")
@click.option("--values", type=click.IntRange(1), help="tokens: different values.")
@_options(_SAMPLED, _COMMON)
@plainly
def niah(
    model: str, lengths: list[int] | None, depths: list[float], form: str | None, pairs: int | None, samples: int,
    seed: int, probes: bool, dtype: str, piece: int | None, output: Path | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Needles at every depth of texts of any length, read by MODEL, a folder or a name of Hugging Face.

    A model with a state reads piece by piece, and the text is made as it is read: ten million tokens take time, not
    room. As tokens one text has its pairs at all depths in turn; as text each depth has texts of its own.
    """
    from memory_titan.evaluation import language
    from memory_titan.tasks.needle import NeedleTask
    from memory_titan.tasks.needle_stream import StreamTask

    many = pairs or 1
    _streams(
        "niah", language.niah, StreamTask,
        lambda length, depth: NeedleTask(context_len=length, depth=depth, needles=many, questions=many),
        model, lengths, depths, form, pairs, samples, seed, probes, dtype, piece, output, as_json, options, (),
    )  # fmt: skip


@click.command("hashhop")
@_options(_MODEL, _STREAMS)
@click.option("--hops", type=click.IntRange(1), help="Pairs of a chain.")
@click.option("--symbols", type=click.IntRange(2), help="tokens: different hashes.")
@_options(_SAMPLED, _COMMON)
@plainly
def hashhop(
    model: str, lengths: list[int] | None, depths: list[float], form: str | None, pairs: int | None, samples: int,
    seed: int, probes: bool, dtype: str, piece: int | None, output: Path | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Chains of pairs: given the first hash of one, MODEL (a folder, or a name of Hugging Face) is to name the last.

    After Magic's HashHop. Read as by `evaluate niah`; --pairs counts the pairs of all chains.
    """
    from memory_titan.evaluation import language
    from memory_titan.tasks.hash_hop import HashHopTask
    from memory_titan.tasks.hop_stream import HopTask

    hops = options["hops"] or 1
    if pairs is not None and pairs % hops and form == "text":
        raise Refusal(f"--pairs must be a multiple of --hops {hops}; got {pairs}")
    many = max(1, (pairs or hops) // hops)

    def make(length: int, depth: float) -> HashHopTask:
        return HashHopTask(context_len=length, depth=depth, needles=many, questions=many, hops=hops, skip=True)

    _streams(
        "hashhop", language.hash_hop, HopTask, make,
        model, lengths, depths, form, pairs, samples, seed, probes, dtype, piece, output, as_json, options, ("hops",),
    )  # fmt: skip


def _streams(
    name: str, ask: Callable[..., list[Cell]], kind: type[Any], make: Callable[[int, float], Any], model: str,
    lengths: list[int] | None, depths: list[float], form: str | None, pairs: int | None, samples: int, seed: int,
    probes: bool, dtype: str, piece: int | None, output: Path | None, as_json: bool, options: dict[str, Any],
    of_text: tuple[str, ...],
) -> None:  # fmt: skip
    from memory_titan.evaluation.language_text import ask_texts

    if output is not None:
        _need_matplotlib()
    lm, tokenizer = _load(model, dtype)
    trained, given = _trained(lm, name), _given(options)
    if form is None:
        form = "tokens" if trained or tokenizer is None else "text"
    if form == "text" and tokenizer is None:
        raise Refusal(f"{model} has no tokenizer, and its vocabulary is not that of bytes: --form tokens")
    if form == "text" and not depths:
        raise Refusal("--depths any is for --form tokens")
    lengths = lengths or _lengths(lm, [512, 2048])
    ways = _ways(lm, probes)
    run = _Run(model, lm, ways, samples=samples, seed=seed, form=form)
    if form == "text":
        if foreign := sorted(set(given) - set(of_text)):
            raise Refusal(f"--{foreign[0]} is for --form tokens")
        with steps(sum(lengths) * len(depths) * samples * len(ways)) as advance:
            counted = run.counting(advance)
            cells = ask_texts(lm, tokenizer, make, lengths, depths, samples, ways, seed, piece, counted)
        task = {"name": name, "form": "text", **given, **({"pairs": pairs} if pairs else {})}
    else:
        chosen = {**trained, **given, **({"pairs": pairs} if pairs else {})}
        if chosen.get("text"):
            chosen["filler"] = 256
        chosen.pop("depths", None)
        shape = kind(**{**chosen, "length": max(lengths)})
        with steps(sum(lengths) * samples * len(ways)) as advance:
            cells = ask(lm, lengths, depths, None, samples, ways, shape, seed, piece, run.counting(advance))
        task = {"name": name, **vars(shape)}
    run.tell(cells, task, output, as_json)


@click.command("lm")
@_options(_MODEL)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--lengths", callback=_LENGTHS, metavar="TOKENS,...",
              help="After so many the model begins anew.  [default: 1, 4 and 16 times the length trained at; else "
              "512,2048]")  # fmt: skip
@click.option(*both("max_bytes"), type=click.IntRange(2), help="Of each file, read at most so many bytes.")
@_options(_COMMON)
@plainly
def lm(
    model: str, files: tuple[Path, ...], lengths: list[int] | None, max_bytes: int | None, probes: bool, dtype: str,
    piece: int | None, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Bits per byte of text FILES that MODEL (a folder, or a name of Hugging Face) was not trained on.

    At every length the same tokens are predicted; with a longer one more of them have more before them. Printed is also
    what they cost by the number of tokens before them, in the lengths' own steps.
    """
    from memory_titan.evaluation.language import label, plain
    from memory_titan.evaluation.language_text import bits_per_byte, front_token, read_text

    contents = [path.read_bytes() for path in files]
    network, tokenizer = _load(model, dtype)
    if tokenizer is None:
        raise Refusal(f"{model} has no tokenizer, and its vocabulary is not that of bytes: it cannot read text")
    front, texts = front_token(network, tokenizer), []
    for path, content in zip(files, contents, strict=True):
        try:
            texts.append(read_text(content[:max_bytes], tokenizer, front))
        except ValueError as error:
            raise Refusal(f"{path}: {error}") from None
    lengths = lengths or _lengths(network, [512, 2048])
    ways = _ways(network, probes)
    run = _Run(model, network, ways)
    with steps(sum(len(text.ids) for text in texts) * len(lengths) * len(ways)) as advance:
        found = bits_per_byte(network, texts, lengths, ways, piece, run.counting(advance))
    told = run.report({"name": "lm", "files": [path.name for path in files]})
    told = plain({**told, "bits": [vars(one) for one in found]})
    written = _write(told, output)
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    by_way = {(one.way, one.context): one for one in found}
    heads = [label(way) for way in ways]
    whole = Table("begins anew after", "bytes", *heads, box=box.SIMPLE_HEAD, title="bits per byte")
    places = Table("begins anew after", "tokens before", "bytes", *heads, box=box.SIMPLE_HEAD)
    for length in sorted(lengths):
        row = [by_way[way, length] for way in ways]
        shown = ["-" if math.isnan(one.bits_per_byte) else f"{one.bits_per_byte:.4f}" for one in row]
        whole.add_row(f"{length:,}", f"{row[0].bytes:,}", *shown)
        for number, (low, high, _, size) in enumerate(row[0].places):
            shown = [f"{one.places[number][2]:.4f}" for one in row]
            places.add_row(f"{length:,}", f"{low:,} to {high - 1:,}", f"{size:,}", *shown)
    Console(width=60 + 24 * len(ways)).print(whole, places)
    run.close(written)


class _Run:
    """What is told about a run beside its figures: who was asked, and how fast it read."""

    def __init__(self, name: str, model: Any, ways: Sequence[str], **about: Any) -> None:
        self.model, self.ways, self.tokens = model, ways, 0
        self.begun, self.worked = time.perf_counter(), time.process_time()
        self.about = {"model": name, **about}

    def counting(self, advance: Callable[..., None]) -> Callable[[str, int], None]:
        """Moves the bar, and counts."""

        def on_read(what: str, tokens: int) -> None:
            self.tokens += tokens
            advance(what, tokens)

        return on_read

    def report(self, task: dict[str, Any]) -> dict[str, Any]:
        """What stands in front of the figures."""
        from memory_titan.evaluation.reading import is_streamed
        from memory_titan.models import parameter_count

        self.seconds, self.cpu = time.perf_counter() - self.begun, time.process_time() - self.worked
        return {
            **self.about,
            "architecture": type(self.model).__name__,
            "parameters": parameter_count(self.model),
            "streamed": is_streamed(self.model),
            "ways": list(self.ways),
            "task": {key: list(value) if isinstance(value, tuple) else value for key, value in task.items()},
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu, 3),
        }

    def tell(self, cells: list[Cell], task: dict[str, Any], output: Path | None, as_json: bool) -> None:
        """The shares: as a table, or JSON; report and map into the folder."""
        from memory_titan.evaluation import language

        for unsized in ("length", "depths"):
            task.pop(unsized, None)
        told = language.report(cells, self.report(task))
        written = _write(told, output)
        if as_json:
            click.echo(json.dumps(told, indent=1))
            return
        found = {(cell.way, cell.length, cell.pairs, cell.depth): cell for cell in cells}
        deep = any(cell.depth is not None for cell in cells)
        heads = ["tokens", "pairs", *(["depth"] if deep else []), "answers"]
        table = Table(*heads, box=box.SIMPLE_HEAD)
        for way in self.ways:
            table.add_column(language.label(way), min_width=17)
        for length, pairs, depth in dict.fromkeys(key[1:] for key in found):
            row = [found[way, length, pairs, depth] for way in self.ways]
            place = [] if not deep else [f"{depth:g}"]
            table.add_row(f"{length:,}", str(pairs), *place, str(row[0].total), *(str(cell.share) for cell in row))
        Console(width=60 + 24 * len(self.ways)).print(table)
        if any(not cell.total for cell in cells):
            click.echo("-: more tokens than this model reads at once, or nothing stood there")
        for way in self.ways:
            if lost := sum(cell.overflowed for cell in cells if cell.way == way):
                click.echo(f"{language.label(way)}: in {lost} answers the logits were no numbers; counted as wrong")
        self.close(written)

    def close(self, written: Sequence[Path]) -> None:
        """How fast it was, and what was written."""
        pace = self.tokens / self.seconds
        click.echo(f"{self.tokens:,} tokens in {self.seconds:.1f} s ({self.cpu:.1f} of CPU), {pace:,.0f} a second")
        for path in written:
            click.echo(str(path))


def _write(told: dict[str, Any], output: Path | None) -> list[Path]:
    from memory_titan.evaluation.language import save

    return [] if output is None else save(told, output)


def _load(name: str, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers.utils import logging

    from memory_titan.evaluation.language_files import load_language_model

    logging.disable_progress_bar()
    torch.set_flush_denormal(True)  # states that decay become denormal, and slow
    return load_language_model(name, dtype)


def _ways(model: Any, probes: bool) -> list[str]:
    from memory_titan.evaluation.probes import AS_IT_IS, probes_of

    return [AS_IT_IS, *(probes_of(model) if probes else ())]


def _trained(model: Any, name: str) -> dict[str, Any]:
    """The settings of the task that the model was trained on, if it is this one; without its shape."""
    task = getattr(model.config, "task", None)
    if not isinstance(task, dict) or task.get("name") != name:
        return {}
    found = {key: value for key, value in task.items() if key != "name"}
    return {**found, "split": "test"} if found.get("split") == "train" else found  # what it has not seen


def _lengths(model: Any, otherwise: list[int]) -> list[int]:
    """1, 4 and 16 times the length that the model was trained at."""
    task = getattr(model.config, "task", None)
    length = task.get("length") if isinstance(task, dict) else None
    return [length, 4 * length, 16 * length] if isinstance(length, int) else otherwise


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
