"""Which items hold a term, and how often: postings, and the bulk of them sorted by term."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_titan.store.top import Ints, grown

Terms = NDArray[np.uint32]


@dataclass(frozen=True)
class Postings:
    """One row an entry, four arrays of one length. With tf the term's count in the item and |d| the item's length:"""

    term: Terms
    row: NDArray[np.int32]  # of the item
    x: NDArray[np.float32]  # 1 / tf
    y: NDArray[np.float32]  # |d| / tf

    def __len__(self) -> int:
        return len(self.term)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.term.nbytes + self.row.nbytes + self.x.nbytes + self.y.nbytes

    def take(self, which: slice | NDArray[np.bool_] | Ints) -> Postings:
        """Some of them."""
        return Postings(self.term[which], self.row[which], self.x[which], self.y[which])

    def grown(self, used: int, more: Postings) -> Postings:
        """With `more` behind the first `used`; in place where there is room."""
        return Postings(
            grown(self.term, used, more.term),
            grown(self.row, used, more.row),
            grown(self.x, used, more.x),
            grown(self.y, used, more.y),
        )

    def living(self, alive: NDArray[np.bool_]) -> Postings:
        """Those of rows alive, with rows numbered anew."""
        kept = self.take(alive[self.row])
        renumbered = np.cumsum(alive, dtype=np.int32) - np.int32(1)
        return Postings(kept.term, renumbered[kept.row], kept.x, kept.y)

    def reworded(self, rows: Ints, told: Postings) -> Postings:
        """With what is `told` of these rows, by term and row: some of what they held."""
        at = np.flatnonzero(np.isin(self.row, rows))
        gone, x, y = _told(self.term[at], at, self.row, self.x, self.y, told)
        return Postings(np.delete(self.term, gone), np.delete(self.row, gone), x, y)


NONE = Postings(np.empty(0, np.uint32), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.float32))


def postings_of(tokens: Terms, lengths: NDArray[np.int32], row: int) -> Postings:
    """Postings of the items that follow each other in `tokens`, the first in row `row`; sorted by term, then row."""
    rows = np.repeat(np.arange(row, row + len(lengths), dtype=np.uint64), lengths)
    keys = np.sort((tokens.astype(np.uint64) << np.uint64(32)) | rows)
    first = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))  # where a key differs from the one before it
    tf = np.diff(first, append=len(keys)).astype(np.float32)
    keys = keys[first]
    at = keys.astype(np.uint32).astype(np.int32)  # the low half
    return Postings(
        (keys >> np.uint64(32)).astype(np.uint32), at, np.float32(1) / tf, np.float32(lengths[at - row]) / tf
    )


def _told(
    terms: Terms, at: Ints, rows: NDArray[np.int32], x: NDArray[np.float32], y: NDArray[np.float32], told: Postings
) -> tuple[Ints, NDArray[np.float32], NDArray[np.float32]]:
    """Of postings whose terms `at` some places are looked up: places that are not told of; x and y without them."""
    keys, known = (
        term.astype(np.uint64) << np.uint64(32) | row.astype(np.uint64)
        for term, row in ((terms, rows[at]), (told.term, told.row))
    )
    place = np.searchsorted(known, keys)
    there = np.append(known, ~known[-1:])[place] == keys if len(known) else np.zeros(len(keys), bool)
    x, y = x.copy(), y.copy()
    x[at[there]], y[at[there]] = told.x[place[there]], told.y[place[there]]
    gone = at[~there]
    return gone, np.delete(x, gone), np.delete(y, gone)


@dataclass(frozen=True)
class Bulk:
    """Postings sorted by term, then row: those of `terms[i]` are at `starts[i] : starts[i + 1]`."""

    terms: Terms
    starts: Ints
    rows: NDArray[np.int32]
    x: NDArray[np.float32]
    y: NDArray[np.float32]

    @classmethod
    def of(cls, postings: Postings) -> Bulk:
        """From postings so sorted."""
        terms, counts = np.unique(postings.term, return_counts=True)
        return cls(terms, np.concatenate([[0], np.cumsum(counts)]), postings.row, postings.x, postings.y)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.terms.nbytes + self.starts.nbytes + self.rows.nbytes + self.x.nbytes + self.y.nbytes

    def postings(self) -> Postings:
        """All of them."""
        return Postings(np.repeat(self.terms, np.diff(self.starts)), self.rows, self.x, self.y)

    def slice_of(self, term: int) -> slice:
        """Where those of `term` are."""
        place = int(np.searchsorted(self.terms, np.uint32(term)))
        if place == len(self.terms) or self.terms[place] != term:
            return slice(0, 0)
        return slice(int(self.starts[place]), int(self.starts[place + 1]))

    def reworded(self, rows: Ints, told: Postings) -> Bulk:
        """As of `Postings`."""
        at = np.flatnonzero(np.isin(self.rows, rows))
        # the last of the terms that begin there or before: those without postings begin where the next one does
        terms = self.terms[np.searchsorted(self.starts[:-1], at, side="right") - 1]
        gone, x, y = _told(terms, at, self.rows, self.x, self.y, told)
        return Bulk(self.terms, self.starts - np.searchsorted(gone, self.starts), np.delete(self.rows, gone), x, y)

    def merged(self, late: Postings) -> Bulk:
        """With postings of later rows, which ascend within each term."""
        late = late.take(np.argsort(late.term, kind="stable"))
        if not len(self.rows):
            return Bulk.of(late)
        # the end of the term's own postings, or where they would be
        at = self.starts[np.searchsorted(self.terms, late.term, side="right")]
        terms, counts = np.unique(late.term, return_counts=True)
        union = np.union1d(self.terms, terms)
        sizes = np.zeros(len(union), np.int64)
        sizes[np.searchsorted(union, self.terms)] = np.diff(self.starts)
        sizes[np.searchsorted(union, terms)] += counts
        starts = np.concatenate([[0], np.cumsum(sizes)])
        rows, x, y = (
            np.insert(self.rows, at, late.row),
            np.insert(self.x, at, late.x),
            np.insert(self.y, at, late.y),
        )
        return Bulk(union, starts, rows, x, y)
