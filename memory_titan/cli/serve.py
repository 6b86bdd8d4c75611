"""`memory-titan serve` and `memory-titan mcp`: a store for programs, over HTTP and for language models' clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from memory_titan.cli.common import Refusal, both, plainly, refuse

_EMBEDDER = click.option(
    "--embedder", default="all-MiniLM-L6-v2", show_default=True, metavar="NAME",
    help="A sentence-transformers model; MODEL@URL, an OpenAI-compatible endpoint; or module:name in Python.",
)  # fmt: skip
_URL = click.option("--url", envvar="MEMORY_TITAN_URL", metavar="URL", help="postgresql://..., instead of files.")
_STORE = (
    click.option("--architecture", type=click.Choice(["mac", "mag", "mal"]), default="mac", show_default=True,
                 help="How a query combines the memories."),
    click.option(*both("short_term_size"), type=click.IntRange(1), help="Items.  [default: as before]"),
    click.option(*both("long_term_size"), type=click.IntRange(1), help="Items.  [default: as before]"),
    click.option(*both("persistent_size"), type=click.IntRange(0), help="Items.  [default: as before]"),
    click.option("--durable", is_flag=True, help="Acknowledged writes survive a power cut too."),
)  # fmt: skip


def _store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_STORE):
        command = option(command)
    return command


@click.command("serve")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Holds one file for each tenant.")
@_URL
@click.option(
    "--key", "given", multiple=True, envvar="MEMORY_TITAN_KEYS", metavar="TENANT=KEY", help="May be repeated."
)
@click.option(
    "--keys", "file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help='JSON: {"tenant": "key", "other": ["key", "key"]}.',
)  # fmt: skip
@click.option(*both("no_auth"), is_flag=True, help="No keys; loopback only, one tenant: default.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option(*both("metrics_key"), envvar="MEMORY_TITAN_METRICS_KEY", help="Opens /metrics.  [default: see docs]")
@click.option(*both("open_stores"), type=click.IntRange(1), default=32, show_default=True, help="That stay open.")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Requests at work at once.")
@click.option("--queue", type=click.IntRange(0), default=64, show_default=True, help="Requests that may wait.")
@click.option(*both("max_body"), type=click.IntRange(1), default=1_000_000, show_default=True, help="Bytes.")
@_EMBEDDER
@_store_options
@plainly
def serve(
    folder: Path | None, url: str | None, given: tuple[str, ...], file: Path | None, no_auth: bool, host: str,
    port: int,
    metrics_key: str | None, open_stores: int, workers: int, queue: int, max_body: int, embedder: str, **store: Any,
) -> None:  # fmt: skip
    """Serve memories over HTTP, one for each tenant. Who asks shows a key, and the key says which tenant it is.

    Needs the extra serve. SIGTERM and Ctrl-C end it once the requests at work are answered.
    """
    try:
        from memory_titan.app.service import ServiceSettings, create_app
        from memory_titan.app.service_run import run_service
        from memory_titan.app.tenants import Keys
    except ImportError as error:
        refuse(error)
    from memory_titan.app.embedding import load_embedder

    keys, metrics_keys = Keys(), None
    _read_keys(keys, given, file)
    if metrics_key is not None:
        metrics_keys = Keys()
        metrics_keys.add("metrics", metrics_key)
    settings = ServiceSettings(
        folder, url, keys, no_auth, host, metrics_keys, open_stores, workers, queue, max_body, store=_chosen(store)
    )
    app = create_app(settings, embedder=load_embedder(embedder))
    run_service(app, host, port, lambda address: click.echo(f"serving at {address}"))


@click.command("mcp")
@click.option("--path", type=click.Path(path_type=Path, dir_okay=False), help="The store's file, made if not there.")
@_URL
@click.option("--name", default="default", show_default=True, help="Of the store, with --url.")
@_EMBEDDER
@_store_options
@plainly
def mcp(path: Path | None, url: str | None, name: str, embedder: str, **store: Any) -> None:
    """Give a language model's client a memory, by the Model Context Protocol over stdin and stdout.

    Needs the extra mcp. The client starts this command; docs/serve.md shows how.
    """
    if (path is None) == (url is None):
        raise Refusal("give --path FILE or --url postgresql://..., one of them")
    try:
        from memory_titan.app.mcp_server import run_stdio
    except ImportError as error:
        refuse(error)
    run_stdio(embedder, path=path, url=url, name=name, **_chosen(store))


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    """Sizes that were not given stay as the store has them."""
    return {name: value for name, value in options.items() if value is not None}


def _read_keys(keys: Any, given: tuple[str, ...], file: Path | None) -> None:
    """Add all keys. What is refused is never shown: it may be a key."""
    for pair in given:
        tenant, equals, key = pair.partition("=")
        if not equals:
            raise Refusal("--key takes TENANT=KEY")
        keys.add(tenant, key)
    if file is None:
        return
    try:
        tenants = json.loads(file.read_text("utf-8"))
    except ValueError:
        raise Refusal(f"{file} is no JSON") from None
    if not isinstance(tenants, dict):
        raise Refusal(f'{file} must hold an object: {{"tenant": "key"}}')
    for tenant, held in tenants.items():
        for key in held if isinstance(held, list) else [held]:
            keys.add(tenant, key)
