"""`memory-titan chat`: a frozen model that remembers what it is told; in the browser, or in the terminal."""

from __future__ import annotations

import errno
import os
import sys
import webbrowser
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from memory_titan.cli.common import Refusal, both, plainly, refuse

_PAGE = {"host": "--host", "port": "--port", "no_browser": "--no-browser", "memories": "--memories"}
_GRAFT = {"dtype": "--dtype", "session": "--session", "raw": "--raw"}
_NO_GRAFT = {"memory": "--memory", "terminal": "--terminal"} | _PAGE


@click.command("chat")
@click.option("--memory", type=click.Path(path_type=Path, dir_okay=False), help="One person's memory file.")
@click.option(
    "--memories", type=click.Path(path_type=Path, file_okay=False),
    help="A folder with a memory for each browser.  [default: in your data folder]",
)  # fmt: skip
@click.option("--terminal", is_flag=True, help="Here instead of in the browser.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the page listens.")
@click.option("--port", type=click.IntRange(0, 65535), default=8760, show_default=True, help="0: a free one.")
@click.option(*both("no_browser"), is_flag=True, help="Only say where the page is.")
@click.option("--model", default="smollm2", show_default=True, metavar="NAME", help="The frozen model.")
@click.option(*both("max_new_tokens"), type=click.IntRange(1), default=200, show_default=True, help="Longest answer.")
@click.option("--adapter", type=click.Path(path_type=Path), help="Folder of a trained graft, to talk to that instead.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", help="With --adapter.")
@click.option("--session", type=click.Path(path_type=Path), help="With --adapter: go on with it; saved at the end.")
@click.option("--raw", is_flag=True, help="With --adapter: continue what is typed, without the model's chat format.")
@click.pass_context
@plainly
def chat(
    context: click.Context, memory: Path | None, memories: Path | None, terminal: bool, host: str, port: int,
    no_browser: bool, model: str, max_new_tokens: int, adapter: Path | None, dtype: str, session: Path | None,
    raw: bool,
) -> None:  # fmt: skip
    """Talk to a frozen model that keeps what you tell it in a memory beside it, after its context is cleared.

    The page opens in your browser (extra: chat) and shows what the memory does. --terminal needs no browser. Memories
    are saved when you say so and when the program ends.

    With --adapter: a grafted model in the terminal. Attention sees the graft's window; what lies further back, its
    memory alone knows. /new forgets everything; /save FILE and /load FILE keep a session; /off and /on switch the
    memory; /bye ends.
    """
    if adapter is not None:
        _only(context, _NO_GRAFT, "without --adapter")
        from memory_titan.cli.chat_adapter import talk_to_graft

        talk_to_graft(adapter, model, dtype, session, max_new_tokens, raw)
        return
    _only(context, _GRAFT, "with --adapter")
    if terminal:
        _only(context, _PAGE, "without --terminal")
        _talk(memory, model, max_new_tokens)
        return
    if memory is not None and memories is not None:
        raise Refusal("--memory is one person's, --memories is for many: give one of them")
    _serve(memory, memories, host, port, no_browser, model, max_new_tokens)


def _serve(
    memory: Path | None, memories: Path | None, host: str, port: int, no_browser: bool, model: str, max_tokens: int
) -> None:
    try:
        from memory_titan.app.chat_app import create_app
        from memory_titan.app.service_run import run_service
    except ImportError as error:
        refuse(error)
    from memory_titan.app.chat_door import is_loopback
    from memory_titan.app.chat_people import People

    local = is_loopback(host)
    if not local and memory is not None:
        raise Refusal(f"--memory is one person's, and others can reach {host}: give --memories DIR, a memory for each")
    if not local:
        click.echo(
            f"warning: whoever can reach {host} can use this page, each with a memory of their own. There is no "
            "password, and what is said travels unencrypted.",
            err=True,
        )
    engine = _engine(model)
    folder = None if memory is not None else _folder(engine, memories)
    people = People(engine, folder, memory, max_tokens)

    def tell(url: str) -> None:
        click.echo(f"chatting at {url} (Ctrl-C ends it); memories: {folder or memory}")
        if not no_browser and _has_screen():
            webbrowser.open(url)

    try:
        run_service(create_app(people, _name(engine), local), host, port, tell, ws="auto")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise Refusal(f"port {port} is taken; give another with --port, or 0 for a free one") from error
    finally:
        people.close()


def _talk(memory: Path | None, model: str, max_tokens: int) -> None:
    from rich.console import Console

    from memory_titan.app.chat_people import People
    from memory_titan.app.chat_terminal import talk

    engine = _engine(model)
    people = People(engine, file=memory or _folder(engine, None) / "terminal.mem", max_tokens=max_tokens)
    try:
        talk(people.person(""), Console(), _name(engine))
    finally:
        people.close()


def _engine(model: str) -> Any:
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        console.print("loading the model", style="dim")
    from memory_titan.hybrid.engine import HybridEngine

    return HybridEngine.from_pretrained(model)


def _folder(engine: Any, given: Path | None) -> Path:
    """A folder for each model: a memory belongs to the one that made it."""
    from memory_titan.app.chat_people import data_folder

    identity = engine.frozen.identity
    return (given or data_folder()) / f"{identity['name']}-{identity['fingerprint']}"


def _name(engine: Any) -> str:
    count = sum(parameter.numel() for parameter in engine.frozen.model.parameters())
    return f"{engine.frozen.identity['name']}, {count / 1e6:.0f} million parameters"


def _has_screen() -> bool:
    """Without one, Python would open a browser in this terminal."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _only(context: click.Context, options: dict[str, str], when: str) -> None:
    """Refuse options that would say nothing here."""
    for name, shown in options.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise Refusal(f"{shown} goes {when}")
