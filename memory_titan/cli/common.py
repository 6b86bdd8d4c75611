"""What all commands share: refusing in one line, showing progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Refusal(click.ClickException):
    """Bad input: one clear line, exit code 2."""

    exit_code = 2


def both(name: str) -> tuple[str, str]:
    """An option's name with _ and with -: --context_len, --context-len."""
    return f"--{name}", f"--{name.replace('_', '-')}"


def refuse(error: Exception) -> NoReturn:
    """Say in one line what was wrong with what was given."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    raise Refusal(message) from error


def plainly(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what can go wrong with what was given into one line and exit code 2."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was written", err=True)
            raise SystemExit(130) from None
        except (ValueError, OSError) as error:  # MemoryFileError, ModelError and TextError are ValueErrors
            refuse(error)

    return run


@contextmanager
def steps(total: int, first: str = "reading") -> Iterator[Callable[..., None]]:
    """A progress bar of `total` steps; call what it yields with a label after each."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(first, total=total)
        yield lambda label, done=1: progress.update(task, advance=done, description=label)
