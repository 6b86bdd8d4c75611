"""`memory-titan evaluate store`: how much of the evidence a store finds, and how much its rule of keeping keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from memory_titan.cli.common import Refusal, plainly, steps

_PARTS = ["window", "neighbours", "speaker", "length", "lexical", "dense", "names", "recall"]


@click.command("store")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--docs", is_flag=True, help="Docstrings of Python's standard library instead of conversations.")
@click.option(
    "--count", type=click.IntRange(1), help="Conversations drawn, or questions of --docs.  [default: 20; 500]"
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is drawn.")
@click.option("--k", type=click.IntRange(1, 1000), default=10, show_default=True, help="Hits that count.")
@click.option("--architecture", "architectures", multiple=True, type=click.Choice(["mac", "mag", "mal"]),
              help="Of the store; may be repeated.  [default: mac]")  # fmt: skip
@click.option("--without", multiple=True, type=click.Choice(_PARTS), metavar="PART",
              help=f"Also the store without one of {', '.join(_PARTS)}; may be repeated.")  # fmt: skip
@click.option("--keep", "budgets", multiple=True, type=click.FloatRange(0, 1, min_open=True), metavar="SHARE",
              help="Compare rules of what to keep in so much of the bytes, not searches; may be repeated.")  # fmt: skip
@click.option("--rule", "rules", multiple=True, metavar="NAME", help="With --keep: only this rule; may be repeated.")
@click.option("--embedder", default="all-MiniLM-L6-v2", show_default=True, metavar="MODEL",
              help="A sentence-transformers model, or MODEL@URL for an OpenAI-compatible endpoint.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Keep the vectors in this file for the next run.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
@plainly
def evaluate_store(
    files: tuple[Path, ...], docs: bool, count: int | None, seed: int, k: int, architectures: tuple[str, ...],
    without: tuple[str, ...], budgets: tuple[float, ...], rules: tuple[str, ...], embedder: str, cache: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Recall of the turns that answer a question, on FILES of conversations, all of them one set.

    FILES: a conversation a line with its sessions, turns and questions, as `tasks/conversations.py` writes them, or
    LoCoMo's layout. Without any, conversations are drawn. BM25, cosines and both in equal parts stand beside the store.
    """
    from memory_titan.embedders import CachedEmbedder

    if files and (docs or count is not None):
        raise Refusal("FILES are read whole: --docs and --count are for what is drawn")
    if budgets and (architectures or without):
        raise Refusal("--keep compares rules: --architecture and --without are for searches")
    if rules and not budgets:
        raise Refusal("--rule goes with --keep")
    conversations = _conversations(files, docs, count, seed)
    turns = sum(1 for each in conversations for _ in each.turns())
    about = {
        "set": " ".join(file.name for file in files) or ("python docs" if docs else "drawn"),
        "conversations": len(conversations),
        "turns": turns,
        "questions": sum(len(each.questions) for each in conversations),
    }
    if not about["questions"]:
        raise Refusal("there is no question whose evidence is in the conversations")
    from memory_titan.app.embedding import load_embedder

    vectors = CachedEmbedder(load_embedder(embedder), path=cache)
    if budgets:
        found = {f"{share:g}": _keeping(conversations, vectors, share, rules, k, seed) for share in budgets}
        if as_json:
            click.echo(json.dumps({**about, "k": k, "keep": found}, indent=1))
        else:
            for share, rows in found.items():
                _show(f"{_title(about)}; {float(share):.0%} of the bytes", rows)
        return
    rows, categories = _searching(conversations, vectors, architectures or ("mac",), without, k)
    if as_json:
        click.echo(json.dumps({**about, "k": k, "searches": rows, "categories": categories}, indent=1))
        return
    _show(_title(about), rows)
    if categories:
        _show(f"recall@{k} by category", categories)


def _conversations(files: tuple[Path, ...], docs: bool, count: int | None, seed: int) -> list[Any]:
    from memory_titan.tasks.conversations import ConversationTask
    from memory_titan.tasks.locomo import read_any
    from memory_titan.tasks.python_docs import python_docs

    if files:
        return [conversation for file in files for conversation in read_any(file)]
    if docs:
        return [python_docs(seed, count or 500)]
    return [ConversationTask().draw(seed, index) for index in range(count or 20)]


def _searching(
    conversations: list[Any], embedder: Any, architectures: tuple[str, ...], without: tuple[str, ...], k: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row a search; and a row a category of questions, if there are any."""
    from memory_titan.evaluation.conversations import compare_searches, methods

    prepared = methods(embedder, list(dict.fromkeys(architectures)), list(dict.fromkeys(without)))
    with steps(len(prepared) * len(conversations), "searching") as step:
        results = compare_searches(conversations, prepared, k, on_step=step)
    rows: list[dict[str, Any]] = []
    for name, result in results.items():
        row: dict[str, Any] = {"search": name, **result.summary()}
        if name != "store":
            less = result.difference(results["store"])
            row |= {"less_store": less["difference"], "less_low": less["low"], "less_high": less["high"]}
        rows.append(row)
    by = {name: result.by_category() for name, result in results.items()}
    categories = [
        {"category": category, "questions": figures["questions"]}
        | {name: by[name][category][f"recall@{k}"] for name in results}
        for category, figures in by["store"].items()
    ]
    return rows, categories


def _keeping(
    conversations: list[Any], embedder: Any, share: float, rules: tuple[str, ...], k: int, seed: int
) -> list[dict[str, Any]]:
    from memory_titan.evaluation.conversations import interval
    from memory_titan.evaluation.keeping import RULES, SURPRISE, evaluate_keeping

    if unknown := [name for name in rules if name not in RULES]:
        raise Refusal(f"rules are {', '.join(RULES)}; got {unknown[0]}")
    chosen = {name: RULES[name] for name in rules or RULES}
    with steps(len(chosen) * len(conversations), "keeping") as step:
        results = evaluate_keeping(conversations, embedder, chosen, budget=share, k=k, seed=seed, on_step=step)
    ours = next((each for each in results if each.rule == SURPRISE), None)
    rows: list[dict[str, Any]] = []
    for each in results:
        row: dict[str, Any] = {"rule": each.rule, f"recall@{k}": each.recall, "low": each.low, "high": each.high}
        row |= {"evidence_kept": each.kept, "strict": each.strict, "strict_low": each.strict_low}
        row |= {"strict_high": each.strict_high, "strictly_kept": each.strict_kept, "items_kept": each.items}
        if ours is not None and each is not ours:
            less = each.recalls - ours.recalls
            low, high = interval(less)
            row |= {"less_surprise": float(less.mean()), "less_low": low, "less_high": high}
            less = each.stricts - ours.stricts
            low, high = interval(less)
            row |= {"less_strict": float(less.mean()), "less_strict_low": low, "less_strict_high": high}
        rows.append(row)
    return rows


def _title(about: dict[str, Any]) -> str:
    return f"{about['set']}: {about['conversations']} conversations, {about['turns']} turns"


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    """Intervals stand behind what they are of."""
    shown = [_texts(row) for row in rows]
    names = list(dict.fromkeys(name for row in shown for name in row))
    table = Table(*(name.replace("_", " ") for name in names), title=title, box=None)
    for row in shown:
        table.add_row(*(row.get(name, "") for name in names))
    Console().print(table, highlight=False)


def _texts(row: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in row.items():
        last = next(reversed(found), "")
        sign = "+" if (last if name.endswith("low") else name).startswith("less") else ""
        if isinstance(value, str):
            found[name] = value
        elif name.endswith("low"):
            found[last] += f" [{value:{sign}.3f} {row[name.replace('low', 'high')]:{sign}.3f}]"
        elif not name.endswith("high"):
            found[name] = f"{value:.0f}" if name == "questions" else f"{value:{sign}.3f}"
    return found
