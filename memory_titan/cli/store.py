"""`memory-titan store`: a memory for applications, from a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from memory_titan.cli.common import Refusal, both, plainly, steps

PARAGRAPH = 1000  # characters of a plain text file at most in one item


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the store is, and what embeds."""
    options = [
        click.option(
            "--path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The store's file."
        ),
        click.option(
            "--url", metavar="URL", help="Or a PostgreSQL database: postgresql://user:password@host/database."
        ),
        click.option("--name", default="default", show_default=True, help="Of the store within the database."),
        click.option(
            "--embedder",
            default="all-MiniLM-L6-v2",
            show_default=True,
            metavar="MODEL",
            help="A sentence-transformers model, MODEL@URL of an OpenAI-compatible endpoint, or module:name.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def open_store(
    path: Path | None, url: str | None, name: str, embedder: str, must_exist: bool = True, **options: Any
) -> Any:
    """The manager of a store; one that is only asked must be there."""
    from memory_titan.app.embedding import load_embedder
    from memory_titan.store.manager import TitansManager

    if (path is None) == (url is None):
        raise Refusal("say where the store is: --path FILE, or --url postgresql://...")
    if path is not None and must_exist and not path.exists():
        raise Refusal(f"there is no store at {path}")
    return TitansManager(load_embedder(embedder), path=path, url=url, name=name, **options)


@click.group()
def store() -> None:
    """A memory for applications: add texts, ask, forget.

    \b
    memory-titan store add notes.txt --path agent.memory
    memory-titan store query "Where is the key?" --path agent.memory
    memory-titan store forget --where '{"source": "notes.txt"}' --path agent.memory
    """


@store.command("add")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@store_options
@click.option(*both("memory_type"), type=click.Choice(["all", "short_term", "long_term", "persistent"]), default="all",
              show_default=True, help="Where the texts go.")  # fmt: skip
@click.option("--metadata", metavar="JSON", help='For every item, beside its own: \'{"user": "u1"}\'.')
@click.option(
    *both("long_term_size"), type=click.IntRange(min=1), help="Items the long-term memory holds.  [a new file: 100000]"
)
@click.option("--lines", is_flag=True, help="Plain text: an item a line, not a paragraph.")
@plainly
def add(files: tuple[Path, ...], metadata: str | None, long_term_size: int | None, lines: bool, memory_type: str,
        **where: Any) -> None:  # fmt: skip
    """Add FILES: JSON lines (.jsonl: {"content": ..., "metadata": ..., "session": ..., "created": ...}) or plain text.

    A plain text is cut into paragraphs of at most 1,000 characters; its name is kept as metadata "source".
    """
    extra = _object(metadata, "--metadata")
    counts = {file: sum(1 for _ in _records(file, lines, extra)) for file in files}  # all is checked before it is added
    size = _size(long_term_size, where)
    with (
        open_store(**where, must_exist=False, long_term_size=size) as titans,
        steps(sum(counts.values()), "adding") as step,
    ):
        for file in files:
            done = 0

            def progress(now: int, file: Path = file) -> None:
                nonlocal done
                step(file.name, now - done)
                done = now

            records = ({**record, "memory_type": memory_type} for record in _records(file, lines, extra))
            try:
                titans.import_items(records, progress)
            except KeyboardInterrupt:
                click.echo(f"interrupted; {done} items of {file} were added", err=True)
                raise SystemExit(130) from None
        report = titans.consolidate_memories()
        stats = titans.stats()
    click.echo(
        f"{sum(counts.values())} items added; {stats['items']} held, {stats['long_term']['items']} in the long-term "
        f"memory, {len(report.rejected)} not taken into it"
    )


def _size(given: int | None, where: dict[str, Any]) -> int | None:
    """Of the long-term memory: as given; 100,000 for a new file; else as the store has it."""
    new = where["path"] is not None and not where["path"].exists()
    return given if given is not None or not new else 100_000


def _records(file: Path, lines: bool, extra: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The items of a file. ValueError names the line."""
    if file.suffix in (".jsonl", ".ndjson"):
        with open(file, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{file}, line {number}: no JSON ({error})") from None
                if (
                    not isinstance(record, dict)
                    or not isinstance(record.get("content"), str)
                    or not record["content"].strip()
                ):
                    raise ValueError(f"{file}, line {number}: expected an object with a text under content")
                if not isinstance(record.get("metadata") or {}, dict):
                    raise ValueError(f"{file}, line {number}: metadata must be an object")
                yield {**record, "metadata": {**(record.get("metadata") or {}), **extra}}
        return
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start})") from None
    for piece in text.splitlines() if lines else _paragraphs(text):
        if piece.strip():
            yield {"content": piece.strip(), "metadata": {"source": file.name, **extra}, "session": file.name}


def _paragraphs(text: str) -> Iterator[str]:
    """Pieces between empty lines; long ones cut at a space."""
    for paragraph in text.split("\n\n"):
        words = paragraph.strip()
        while len(words) > PARAGRAPH:
            cut = words.rfind(" ", PARAGRAPH // 2, PARAGRAPH)
            cut = PARAGRAPH if cut < 0 else cut
            yield words[:cut]
            words = words[cut:].strip()
        yield words


@store.command("query")
@click.argument("query")
@store_options
@click.option(*both("top_k"), type=click.IntRange(1, 1000), default=5, show_default=True, help="Hits at most.")
@click.option("--where", "filter_", metavar="JSON", help='Filter on metadata: \'{"user": "u1", "age": {"$gt": 3}}\'.')
@click.option("--architecture", type=click.Choice(["mac", "mag", "mal"]), default="mac", show_default=True)
@click.option("--after", metavar="TIME", help="Said at or after: ISO 8601.")
@click.option("--before", metavar="TIME", help="Said before.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead.")
@plainly
def query(query: str, top_k: int, filter_: str | None, architecture: str, after: str | None, before: str | None,
          as_json: bool, **where: Any) -> None:  # fmt: skip
    """Ask for what answers QUERY best."""
    filter_object = _object(filter_, "--where")
    with open_store(**where, architecture=architecture, read_only=True) as titans:
        hits = titans.query(query, top_k, filter_object or None, after=after, before=before)
    for hit in hits:
        if as_json:
            click.echo(json.dumps(hit, ensure_ascii=False))
        else:
            why = ", ".join(f"{name} {value:.2f}" for name, value in hit["why"].items() if value)
            less = f", {hit['abridged']} bytes less than it had" if hit["abridged"] else ""
            click.echo(
                f"{hit['score']:.2f}  {hit['content']}\n"
                f"      {hit['source']}, {hit['created'][:19]}, {hit['id']}{less}: {why}"
            )
    if not hits and not as_json:
        click.echo("nothing found", err=True)


@store.command("forget")
@click.argument("ids", nargs=-1)
@store_options
@click.option("--where", "filter_", metavar="JSON", help="All that this filter lets through; {} is everything.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@plainly
def forget(ids: tuple[str, ...], filter_: str | None, yes: bool, **where: Any) -> None:
    """Forget items by IDS or by a filter, for good: gone from the file and from the weights too."""
    if not ids and filter_ is None:
        raise Refusal("say what to forget: ids, or --where (--where '{}' is everything)")
    chosen = None if filter_ is None else _object(filter_, "--where")
    with open_store(**where) as titans:
        if not yes:
            count = len(titans.backend.select(chosen)) if chosen is not None else len(titans.get(ids))
            click.confirm(f"forget {count} of {len(titans)} items for good?", abort=True)
        count = titans.forget(list(ids) or None, chosen)
    click.echo(f"{count} forgotten")


@store.command("stats")
@store_options
@plainly
def stats(**where: Any) -> None:
    """How full each memory is, and what the long-term memory has done, as JSON."""
    with open_store(**where, read_only=True) as titans:
        problems = titans.check()
        click.echo(json.dumps({**titans.stats(), "problems": problems}, indent=2))
    if problems:
        raise SystemExit(1)


@store.command("export")
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@store_options
@click.option("--force", is_flag=True, help="Overwrite.")
@plainly
def export(output: Path, force: bool, **where: Any) -> None:
    """Write every item to OUTPUT, a file of JSON lines that `store import` and `store add` read."""
    if output.exists() and not force:
        raise Refusal(f"{output} exists; --force overwrites it")
    with open_store(**where, read_only=True) as titans:
        click.echo(f"{titans.export(output)} items written to {output}")


@store.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@store_options
@click.option(
    *both("long_term_size"), type=click.IntRange(min=1), help="Items the long-term memory holds.  [a new file: 100000]"
)
@plainly
def import_command(file: Path, long_term_size: int | None, **where: Any) -> None:
    """Add the items of an export again, with their ids, times and places; those that are there are replaced."""
    total = sum(1 for _ in _records(file, False, {}))
    with (
        open_store(**where, must_exist=False, long_term_size=_size(long_term_size, where)) as titans,
        steps(total, "importing") as step,
    ):
        done = 0

        def progress(now: int) -> None:
            nonlocal done
            step("importing", now - done)
            done = now

        click.echo(f"{titans.import_items(_records(file, False, {}), progress)} items imported")


def _object(text: str | None, option: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Refusal(f"{option} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refusal(f'{option} must be a JSON object, such as \'{{"user": "u1"}}\'; got {text}')
    return value
