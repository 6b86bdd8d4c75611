"""What a store's database has to do: keep items, transact, search. Two do: SQLite in one file, and PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memory_titan.store.item import Item, Seqs, Vector
from memory_titan.store.sessions import Places

Standing: TypeAlias = "tuple[int, int, float | None, float]"  # seq, places, surprise, value


@dataclass(frozen=True)
class Words:
    """Of m terms and n items.

    Attributes:
        counts: `[m, n]`, how often each term stands in each item.
        lengths: `[n]`, tokens of each item.
        frequencies: `[m]`, items of the whole store that hold each term.
        items: in the whole store.
        mean_length: tokens of an item of the store, on average.
    """

    counts: NDArray[np.float64]
    lengths: NDArray[np.float64]
    frequencies: NDArray[np.int64]
    items: int
    mean_length: float


class Backend(Protocol):
    """One store. All of it is safe for threads; writing happens within `transaction()`, all or nothing."""

    dim: int | None
    read_only: bool
    exclusive: bool  # nobody else writes while this one is open

    def transaction(self) -> AbstractContextManager[None]:
        """Alone in writing to this store until it ends. Nested ones are part of the outermost."""

    def open_indexes(self, dim: int) -> None:
        """Needed once before searching and adding, when the width of the vectors is known."""

    def refresh(self) -> None:
        """Catch up with what others have written."""

    def close(self) -> None:
        """Let go."""

    def add(self, items: Sequence[Item]) -> None:
        """Insert items; each is given its `seq`, greater than all before."""

    def update(self, rows: Iterable[Standing]) -> None:
        """Set (seq, places, surprise, value)."""

    def count_use(self, uses: dict[int, int], value: float) -> None:
        """Add to the `used` of items, by seq, and set their value."""

    def shorten(self, items: Sequence[Item]) -> None:
        """Set content, terms (some of those before) and `abridged`, by seq: words were cut out. Vectors stay."""

    def delete(self, seqs: Sequence[int]) -> None:
        """Delete items with all that is known of them."""

    def erase(self, at_once: bool = True) -> bool:
        """Overwrite what was deleted, as far as the database is ours to overwrite. False: later, someone is reading.

        Not `at_once`: items were replaced, not forgotten. Where it is dear it may wait until it pays.
        """

    def meta(self, key: str, default: Any = None) -> Any:
        """A JSON value that was kept."""

    def set_meta(self, key: str, value: Any) -> None:
        """Keep one."""

    def blob(self, name: str) -> bytes | None:
        """Bytes that were kept."""

    def set_blob(self, name: str, data: bytes | None) -> None:
        """Keep them; None: no longer."""

    def append_log(self, position: int, vectors: Vector) -> None:
        """Vectors `[n, dim]` written to the neural memory, the first at `position`."""

    def log(self, start: int) -> tuple[list[int], Vector]:
        """Positions from `start` on, ascending, and their vectors."""

    def clear_log(self) -> None:
        """A checkpoint covers the log, or it is void."""

    def places_of(self, seqs: Seqs) -> NDArray[np.int64]:
        """`[n]`, the places bits of items; 0 for what is not there."""

    def standing(self, seqs: Seqs) -> list[Standing]:
        """Of the items that are there, in the order of their seqs, what `update` sets."""

    def get(self, seqs: Sequence[int] | Seqs, full: bool = False) -> list[Item]:
        """The items that are there, in the given order; with `full`, vectors and terms too."""

    def seqs_of(self, ids: Sequence[str]) -> dict[str, int]:
        """id -> seq, of those that are there."""

    def select(
        self,
        where: dict[str, Any] | None = None,
        places: int | None = None,
        after: float | None = None,
        before: float | None = None,
        order: str = "seq",
        limit: int | None = None,
    ) -> Seqs:
        """Seqs that a filter lets through. `order`: "seq" or "-seq"."""

    def count(self, places: int | None = None) -> int:
        """Items in any of `places`."""

    def nbytes(self, places: int) -> int:
        """Bytes of the texts in any of `places`, UTF-8."""

    def dense(self, vector: Vector, k: int, allowed: Seqs | None = None) -> tuple[Seqs, Vector]:
        """The k nearest by cosine, best first."""

    def lexical(self, terms: Any, k: int, allowed: Seqs | None = None) -> tuple[Seqs, Vector]:
        """The k best by BM25 for uint32 terms, best first."""

    def same_words(self, items: Sequence[Item]) -> list[Seqs]:
        """Of each item, seqs of those that have the same words, in whatever order and number, ascending."""

    def words_of(self, terms: Any, seqs: Seqs) -> Words:
        """Counts of uint32 terms in items, and in how many of all items each term stands."""

    def places(self, seqs: Seqs) -> Places:
        """Where items stand in their sessions; session -1 for what is not there."""

    def name_words(self) -> Set[str]:
        """Words of the names of all speakers, lower case."""

    def around(self, seqs: Seqs, radius: int) -> Seqs:
        """These items and those at most `radius` before and after each in its session; ascending."""

    def vectors_of(self, seqs: Seqs) -> Vector:
        """`[n, dim]`."""

    def check(self) -> list[str]:
        """What is wrong; empty: nothing."""

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy to a new file."""

    @property
    def file_bytes(self) -> int:
        """Of the files on disk."""


def open_backend(
    path: str | os.PathLike[str] | None, url: str | None, name: str, read_only: bool, durable: bool
) -> Backend:
    """The backend of a path, a URL, or neither."""
    if url is None:
        from memory_titan.store.sqlite import SqliteBackend

        return SqliteBackend(path, read_only, durable)
    if path is not None:
        raise ValueError("give a path or a url, not both")
    if url.partition(":")[0] not in ("postgresql", "postgres"):
        raise ValueError(f"url must begin with postgresql://; got {url.partition(':')[0]}:...")
    from memory_titan.store.postgres import PostgresBackend

    return PostgresBackend(url, name, read_only)
