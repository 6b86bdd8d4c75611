"""From what an application gives to items, and back: texts, times, files."""

from __future__ import annotations

import datetime
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from memory_titan.store.backend import Backend
from memory_titan.store.item import Item, Vector
from memory_titan.store.names import said
from memory_titan.store.where import check_metadata

Time = float | str | datetime.datetime
FIRST, LAST = -62135596800.0, 253402300800.0  # seconds from 1970 to the years 1 and 10000


def seconds(when: Time) -> float:
    """Seconds since 1970 of a time given as such, as ISO 8601 or as datetime; UTC where no zone is given.

    Raises:
        ValueError: it is none of these, or not in the years 1 to 9999.
    """
    if isinstance(when, str):
        try:
            when = datetime.datetime.fromisoformat(when.replace("Z", "+00:00"))
        except ValueError:
            raise ValueError(f"a time must be seconds since 1970 or ISO 8601; got {when!r:.60}") from None
    if isinstance(when, datetime.datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)).timestamp()
    if not isinstance(when, (int, float)) or isinstance(when, bool):
        raise ValueError(f"a time must be seconds since 1970, ISO 8601 or a datetime; got {when!r:.60}")
    if not FIRST <= when < LAST:  # NaN neither
        raise ValueError(f"a time must lie in the years 1 to 9999; got {_shown(when)} seconds")
    return float(when)


def _shown(seconds: float) -> str:
    """A number for a message; an integer may have too many digits to be written."""
    return f"{seconds:g}" if isinstance(seconds, float) or abs(seconds) < 2**63 else "far too many"


def iso(created: float) -> str:
    """ISO 8601 in UTC."""
    return datetime.datetime.fromtimestamp(created, datetime.timezone.utc).isoformat()


def record(item: Item) -> dict[str, Any]:
    """An item as JSON, as it is exported."""
    return {
        "id": item.id,
        "content": item.content,
        "metadata": item.metadata,
        "created": iso(item.created),
        "session": item.session,
        "source": item.source,
        "memory_type": "persistent" if item.source == "persistent" else "all",
        "surprise": item.surprise,
        "abridged": item.abridged,
    }


def check_text(text: Any, what: str, blank: bool = False) -> None:
    """Refuse what is no text, blank (unless allowed), or cannot be stored: a NUL character, a lone surrogate."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a text; got {type(text).__name__}")
    if not blank and not text.strip():
        raise ValueError(f"{what} is empty")
    if "\0" in text:
        raise ValueError(f"{what} has a NUL character: {text!r:.60}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} has a lone surrogate: it is no Unicode text ({text!r:.60})") from None


def columns(
    documents: str | Sequence[str],
    metadata: Sequence[dict[str, Any] | None] | dict[str, Any] | None,
    ids: Sequence[str] | None,
    times: Sequence[Time] | Time | None,
    session: str | Sequence[str | None] | None,
) -> tuple[list[str], list[dict[str, Any]], list[str], list[float], list[str | None]]:
    """The arguments of `TitansManager.add_documents`, checked: texts, metadata, ids, times and sessions of each."""
    texts = [documents] if isinstance(documents, str) else list(documents)
    count = len(texts)
    for number, text in enumerate(texts):
        check_text(text, f"document {number}")
    metadatas = [{} if m is None else m for m in each(metadata, count, "metadata", dict)]
    for metadatum in metadatas:
        check_metadata(metadatum)
    names = [uuid.uuid4().hex for _ in texts] if ids is None else names_of(ids)
    if len(names) != count:
        raise ValueError(f"there are {count} documents and {len(names)} ids")
    if len(set(names)) != count:
        raise ValueError("the same id is given twice")
    now = time.time()
    given = each(times, count, "times", (str, int, float, datetime.datetime))
    created = [now if when is None else seconds(when) for when in given]
    sessions = each(session, count, "session", str)
    if session is None:
        sessions = [m["session"] if isinstance(m.get("session"), str) else None for m in metadatas]
    for label in {one for one in sessions if one is not None}:
        check_text(label, "a session", blank=True)
    return texts, metadatas, names, created, sessions


def names_of(ids: Sequence[str] | str) -> list[str]:
    """Ids as they are kept: one alone, or several; a number is its digits."""
    names = [ids] if isinstance(ids, str) else [str(name) for name in ids]
    for name in names:
        check_text(name, "an id", blank=True)
    return names


def each(given: Any, count: int, name: str, one: type | tuple[type, ...]) -> list[Any]:
    """One for all, or one each."""
    if given is None or isinstance(given, one):
        return [given] * count
    values = list(given)
    if len(values) != count:
        raise ValueError(f"there are {count} documents and {len(values)} {name}")
    return values


def export_items(backend: Backend, path: str | os.PathLike[str], size: int = 256) -> int:
    """Write every item to a file of JSON lines; how many."""
    own = getattr(backend, "path", None)
    if own is not None and os.path.exists(path) and os.path.samefile(own, path):
        raise ValueError(f"{os.fspath(path)} is the store itself: export to another file")
    seqs = backend.select()
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, len(seqs), size):
            for item in backend.get(seqs[start : start + size]):
                file.write(json.dumps(record(item), ensure_ascii=False) + "\n")
    return len(seqs)


def batches(records: Iterable[dict[str, Any]], size: int) -> Iterator[dict[str, Any]]:
    """Arguments of `add_documents`, at most `size` records at a time. ValueError numbers what is no record."""
    batch: list[dict[str, Any]] = []
    for number, given in enumerate(records, 1):
        if not isinstance(given, dict) or not isinstance(given.get("content"), str):
            raise ValueError(f"item {number} has no text under content")
        if batch and (len(batch) == size or given.get("memory_type") != batch[0].get("memory_type")):
            yield _arguments(batch)
            batch = []
        batch.append(given)
    if batch:
        yield _arguments(batch)


def _arguments(batch: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "documents": [given["content"] for given in batch],
        "metadata": [given.get("metadata") or {} for given in batch],
        "memory_type": batch[0].get("memory_type") or "all",
        "ids": [str(given.get("id") or uuid.uuid4().hex) for given in batch],
        "times": [time.time() if given.get("created") is None else given["created"] for given in batch],
        "session": [given.get("session") for given in batch],
    }


def unit_rows(given: Any, count: int, dim: int | None) -> Vector:
    """Vectors `[count, dim]` that were given, of length 1 or zero."""
    try:
        rows = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"vectors must be numbers, {count} rows of {dim}") from None
    if rows.shape != (count, dim) and count:
        raise ValueError(f"vectors must be {count} rows of {dim} numbers; got shape {list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise ValueError("vectors must be finite")
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


def embedded_texts(items: Sequence[Item]) -> list[str]:
    """What may have been embedded for items, which an embedder shall not remember when they are deleted."""
    # usually without the speaker's name before it; texts that came with their vectors as they are
    return list({text for item in items for text in (item.content, said(item.content, item.speaker))})
