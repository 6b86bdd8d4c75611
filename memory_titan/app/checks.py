"""What no request may hold: more than a limit, or what a store would keep and could not give back."""

from __future__ import annotations

from datetime import datetime, timezone

TOP_K = 100
NAME = 256  # characters of an id, and of a session's name
TEXT = 100_000  # characters of a document
QUERY = 10_000


def check_string(text: str, what: str, longest: int) -> None:
    """ValueError if it is empty, too long, or no text."""
    if not text.strip():
        raise ValueError(f"{what} is empty")
    if len(text) > longest:
        raise ValueError(f"{what} has {len(text)} characters; at most {longest} are taken")
    if "\0" in text:
        raise ValueError(f"{what} has a NUL character, which databases do not keep")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} has half a surrogate pair; it is no Unicode text") from None


def check_time(when: float | str | None, what: str) -> None:
    """ValueError if it is no time, or one that cannot be written as a date in UTC."""
    try:
        if isinstance(when, str):
            moment = datetime.fromisoformat(when.replace("Z", "+00:00"))
            if moment.tzinfo:
                moment.astimezone(timezone.utc)
        elif when is not None:
            datetime.fromtimestamp(when, timezone.utc)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{what} must be seconds since 1970 or ISO 8601, of the years 1 to 9999") from error


def sentence(text: str) -> str:
    """In one line of a sensible length."""
    return " ".join(text.split())[:500]
