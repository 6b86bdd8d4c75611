"""What no request may hold: more than a limit, or what a store would keep and could not give back."""

from __future__ import annotations

from memory_titan.store.documents import check_text, seconds

TOP_K = 100
NAME = 256  # characters of an id, and of a session's name
TEXT = 100_000  # characters of a document
QUERY = 10_000


def check_string(text: str, what: str, longest: int) -> None:
    """ValueError if it is empty, too long, or no text that a store keeps."""
    if len(text) > longest:
        raise ValueError(f"{what} has {len(text)} characters; at most {longest} are taken")
    check_text(text, what)


def check_time(when: float | str | None, what: str) -> None:
    """ValueError if it is no time, or one that cannot be written as a date in UTC."""
    try:
        if when is not None:
            seconds(when)
    except ValueError as error:
        raise ValueError(f"{what} must be seconds since 1970 or ISO 8601, of the years 1 to 9999") from error


def sentence(text: str) -> str:
    """In one line of a sensible length."""
    return " ".join(text.split())[:500]
