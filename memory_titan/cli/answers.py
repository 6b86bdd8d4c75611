"""`memory-titan evaluate answers`: what a graft says, with its memory and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from memory_titan.cli.common import Refusal, both, plainly, steps

if TYPE_CHECKING:
    from torch import Tensor

    from memory_titan.graft.model import MemoryModel

CHECKPOINT_HELP = "A trained graft: a folder with adapter_config.json, or a training's output folder (its best/)."
MODEL = click.option("--model", default="smollm2", show_default=True, metavar="NAME", help="The graft's base model.")
DTYPE = click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True, help="Of the base."
)
PROBES_OPTION = click.option(
    "--probes",
    is_flag=True,
    help="Also with the memory spoilt: writes of flipped sign, stored under queries, nothing written.",
)
_PROSE = 3072  # tokens of a file, where nothing else is said


def checkpoint_folder(checkpoint: str) -> str:
    """The folder of the graft that `checkpoint` means; what is no folder may be a repository.

    Raises:
        ValueError: a folder without a graft in it.
    """
    path = Path(checkpoint)
    for folder in (path, path / "best"):
        if (folder / "adapter_config.json").is_file():
            return str(folder)
    if path.exists():
        raise ValueError(f"{path} is no graft: it has neither adapter_config.json nor best/adapter_config.json")
    return checkpoint


def load_graft(checkpoint: str, model: str, dtype: str) -> tuple[MemoryModel, Any]:
    """The graft on its base model, and the model's tokenizer; options as on the command line."""
    import torch

    from memory_titan.graft.model import MemoryModel
    from memory_titan.hybrid.frozen import load_frozen

    folder = checkpoint_folder(checkpoint)
    frozen = load_frozen(model)
    frozen.model.to(getattr(torch, dtype))
    return MemoryModel.from_pretrained(frozen.model, folder).eval(), frozen.tokenizer


@click.command("answers")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--adapter", "--checkpoint", "checkpoint", required=True, metavar="FOLDER", help=CHECKPOINT_HELP)
@MODEL
@DTYPE
@click.option("--limit", type=click.IntRange(1), help="Use the first so many samples of each file.")
@click.option(
    "--prose",
    type=click.IntRange(2),
    metavar="TOKENS",
    help="Also the perplexity over so many tokens of Python's help.",
)
@click.option(
    *both("prose_path"),
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"That of this UTF-8 text instead; without --prose the first {_PROSE:,} tokens.",
)
@PROBES_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
@plainly
def answers(
    files: tuple[Path, ...],
    checkpoint: str,
    model: str,
    dtype: str,
    limit: int | None,
    prose: int | None,
    prose_path: Path | None,
    probes: bool,
    as_json: bool,
) -> None:
    """Ask the questions of FILES (of `data`): share of answers said right by greedy decoding, to the last token.

    With the memory; without it, attention seeing the graft's window; and without both: the bare model, which sees
    everything. Each answer is decoded after the true answers before it.
    """
    from memory_titan.evaluation.compare import WAYS, ask, attention_window, in_way, label, shares
    from memory_titan.evaluation.probes import PROBES
    from memory_titan.evaluation.prose import perplexity
    from memory_titan.tasks.examples import load_examples

    graft, tokenizer = load_graft(checkpoint, model, dtype)
    text = None if prose is None and prose_path is None else _prose(tokenizer, prose, prose_path)
    ways = [*WAYS, *(PROBES if probes else ())]
    given = {path: load_examples(path, tokenizer, limit=limit) for path in files}
    total = sum(len(example.ids) for examples in given.values() for example in examples)
    found: list[dict[str, Any]] = []
    lost: dict[str, int] = {}
    with steps(total * len(ways)) as advance:
        for path, examples in given.items():
            asked = ask(graft, examples, ways, lambda way, tokens: advance(f"{path.name}, {way}", tokens))  # noqa: B023
            row: dict[str, Any] = {"file": path.name, "answers": len(asked)}
            row["distance"] = sum(min(e.nearest) for e in examples) / len(examples)
            found.append(row | {way: share.exact for way, share in shares(asked).items()})
            for way in (way for one in asked for way in one.overflowed):
                lost[way] = lost.get(way, 0) + 1
    costs: dict[str, float] = {}
    for way in WAYS if text is not None else ():
        assert text is not None
        with in_way(graft, way):
            costs[way] = perplexity(graft, text)
    if as_json:
        click.echo(json.dumps({"answers": found, "perplexity": costs, "overflowed": lost}, indent=2))
        return
    window = attention_window(graft)
    table = Table("file", "answers", "tokens to the nearest evidence", box=box.SIMPLE_HEAD)
    for way in ways:
        table.add_column(label(way, window))
    for row in found:
        table.add_row(row["file"], str(row["answers"]), f"{row['distance']:.0f}", *(f"{row[way]:.2f}" for way in ways))
    if text is not None:
        name = "prose" if prose_path is None else prose_path.name
        table.add_row(f"perplexity, {len(text)} tokens of {name}", "", "", *(f"{cost:.1f}" for cost in costs.values()))
    Console(width=120).print(table)
    tell_overflow(lost, window)


def tell_overflow(lost: dict[str, int], window: int | None) -> None:
    """Say how many answers are wrong because the memory's weights overflowed, by way."""
    from memory_titan.evaluation.compare import label

    for way, count in lost.items():
        click.echo(f"{label(way, window)}: in {count} answers the memory's weights had overflowed; counted as wrong")


def _prose(tokenizer: Any, tokens: int | None, path: Path | None) -> Tensor:
    """`[T]`, int64: what perplexity is measured on."""
    import torch

    from memory_titan.evaluation.prose import python_help
    from memory_titan.hybrid.sentences import read_text

    if path is None:
        assert tokens is not None
        return python_help(tokenizer, tokens)
    tokens = tokens or _PROSE
    # the whole file is checked, and only its start is tokenised: a token is hardly ever longer than 20 characters
    start = "".join(read_text(path))[: 20 * tokens]
    ids = torch.tensor(tokenizer(start, add_special_tokens=False, verbose=False).input_ids[:tokens])
    if len(ids) < 2:
        raise Refusal(f"{path} has {len(ids)} token; perplexity needs 2 at least")
    return ids
