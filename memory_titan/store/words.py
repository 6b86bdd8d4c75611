"""BM25 over term ids, in memory, exact at any moment.

    score(d) = sum_t w_t idf(t) tf (k1 + 1) / (tf + k1 (1 - b + b |d| / mean |d|))
    idf(t) = ln(1 + (N - df + 1/2) / (df + 1/2))

(Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with Lucene's idf, which is
never negative.) N, df and the mean length count the items present and no others, whatever was removed. The fraction
is kept as 1 / (1 + k1 (1 - b) x + k1 b / mean |d| y) with x = 1 / tf and y = |d| / tf, so that a posting stays right
when the mean moves.

Postings of the bulk lie sorted by term; those of recent items in a short tail that is read whole. A writer publishes a
new snapshot at each change and never alters one: a reader works on the snapshot it took, without a lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memory_titan.store.postings import NONE, Bulk, Postings, Terms, postings_of
from memory_titan.store.top import Ints, grown, top, where

Floats = NDArray[np.float64]
Wordings = NDArray[np.uint64]
Matching: TypeAlias = "tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]"

_TAIL = 1 << 16  # postings that are read whole
_ASKED = 64  # terms whose postings are kept at hand


@dataclass(frozen=True)
class _Snapshot:
    """What a reader sees. Arrays may have room behind their end, which only later snapshots read."""

    bulk: Bulk
    tail: Postings
    tailed: int  # postings in the tail
    seqs: Ints
    lengths: NDArray[np.int32]
    wordings: Wordings  # of each row's distinct terms
    alive: NDArray[np.bool_]  # replaced, not altered, at a removal
    rows: int
    count: int  # rows alive
    tokens: int  # of rows alive
    asked: dict[int, Matching] = field(default_factory=dict)  # a query asks thrice for a term; not for later snapshots

    def matching(self, term: int) -> Matching:
        """Rows that hold `term`, and their x and y. Dead rows are still among them."""
        if (known := self.asked.get(term)) is not None:
            return known
        if len(self.asked) >= _ASKED:
            self.asked.clear()
        self.asked[term] = found = self._matching(term)
        return found

    def _matching(self, term: int) -> Matching:
        at = self.bulk.slice_of(term)
        rows, x, y = self.bulk.rows[at], self.bulk.x[at], self.bulk.y[at]
        late = np.flatnonzero(self.tail.term[: self.tailed] == np.uint32(term))
        if len(late):
            rows = np.concatenate([rows, self.tail.row[late]])
            x = np.concatenate([x, self.tail.x[late]])
            y = np.concatenate([y, self.tail.y[late]])
        return rows, x, y

    def frequency(self, rows: NDArray[np.int32]) -> int:
        """How many of `rows` are alive."""
        return len(rows) if self.count == self.rows else int(np.count_nonzero(self.alive[rows]))

    def idf(self, df: ArrayLike) -> Floats:
        df = np.asarray(df, np.float64)
        return np.log1p((self.count - df + 0.5) / (df + 0.5))


class WordIndex:
    """BM25 of items given as term ids, one a token.

    Args:
        k1: how slowly repetition of a term stops to count; 0 counts presence only.
        b: how much longer items are held back, 0 to 1.

    Raises:
        ValueError: k1 is negative, or b outside 0 to 1.
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        if not k1 >= 0 or not 0 <= b <= 1:
            raise ValueError(f"k1 must be at least 0 and b within 0 and 1; got k1={k1}, b={b}")
        self.k1, self.b = k1, b
        self._writing = Lock()
        self._now = _Snapshot(
            bulk=Bulk.of(NONE),
            tail=NONE,
            tailed=0,
            seqs=np.empty(0, np.int64),
            lengths=np.empty(0, np.int32),
            wordings=np.empty(0, np.uint64),
            alive=np.empty(0, bool),
            rows=0,
            count=0,
            tokens=0,
        )

    def __len__(self) -> int:
        return self._now.count

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, room to grow included."""
        now = self._now
        return (
            now.bulk.nbytes
            + now.tail.nbytes
            + now.seqs.nbytes
            + now.lengths.nbytes
            + now.wordings.nbytes
            + now.alive.nbytes
        )

    def add(self, seqs: ArrayLike, items: Sequence[Terms]) -> None:
        """Take in items; one may have no terms.

        Args:
            seqs: [n] int64, strictly increasing and above all that were ever added.
            items: n arrays uint32 [tokens], as `term_ids` makes them.

        Raises:
            ValueError: seqs are out of order, or there are not as many as items.
        """
        new = np.asarray(seqs, np.int64).reshape(-1)
        if len(new) != len(items):
            raise ValueError(f"as many seqs as items: got {len(new)} and {len(items)}")
        if not len(new):
            return
        with self._writing:
            now = self._now
            if (np.diff(new) <= 0).any() or (now.rows and new[0] <= now.seqs[now.rows - 1]):
                raise ValueError("seqs must increase strictly, over all that were added before")
            lengths = np.fromiter(map(len, items), np.int32, len(items))
            more = postings_of(np.concatenate(items), lengths, now.rows)
            bulk, tail, tailed = now.bulk, now.tail.grown(now.tailed, more), now.tailed + len(more)
            if tailed > _TAIL:
                bulk, tail, tailed = bulk.merged(tail.take(slice(tailed))), NONE, 0
            self._now = _Snapshot(
                bulk=bulk,
                tail=tail,
                tailed=tailed,
                seqs=grown(now.seqs, now.rows, new),
                lengths=grown(now.lengths, now.rows, lengths),
                wordings=grown(now.wordings, now.rows, _wordings(more, now.rows, len(new))),
                alive=grown(now.alive, now.rows, np.ones(len(new), bool)),
                rows=now.rows + len(new),
                count=now.count + len(new),
                tokens=now.tokens + int(lengths.sum()),
            )

    def remove(self, seqs: ArrayLike) -> None:
        """Forget items; seqs that are not there are passed over. No search that begins after this finds them.

        Their term ids leave memory when a quarter of the rows are dead, or the index is rebuilt.
        """
        with self._writing:
            now = self._now
            rows, there = where(now.seqs[: now.rows], np.asarray(seqs, np.int64).reshape(-1))
            rows = np.unique(rows[there])
            rows = rows[now.alive[rows]]
            if not len(rows):
                return
            alive = now.alive.copy()
            alive[rows] = False
            lost = int(now.lengths[rows].sum())
            now = replace(now, asked={}, alive=alive, count=now.count - len(rows), tokens=now.tokens - lost)
            self._now = _compact(now) if now.count <= 0.75 * now.rows else now

    def reword(self, items: Mapping[int, Terms]) -> None:
        """Words were cut out of items: by seq, the terms that are left. Seqs that are not there are passed over.

        Args:
            items: each with some of the terms that it had.
        """
        with self._writing:
            now = self._now
            seqs = np.array(sorted(items), np.int64)
            rows, there = where(now.seqs[: now.rows], seqs)
            there[there] = now.alive[rows[there]]
            rows, left = rows[there], [items[seq] for seq in seqs[there].tolist()]
            if not len(rows):
                return
            lengths = np.fromiter(map(len, left), np.int32, len(left))
            found = postings_of(np.concatenate(left), lengths, 0)
            told = Postings(found.term, rows[found.row].astype(np.int32), found.x, found.y)
            tail = now.tail.take(slice(now.tailed)).reworded(rows, told)
            all_lengths, wordings = now.lengths.copy(), now.wordings.copy()
            all_lengths[rows], wordings[rows] = lengths, _wordings(found, 0, len(left))
            self._now = replace(
                now,
                asked={},
                bulk=now.bulk.reworded(rows, told),
                tail=tail,
                tailed=len(tail),
                lengths=all_lengths,
                wordings=wordings,
                tokens=now.tokens + int(lengths.sum()) - int(now.lengths[rows].sum()),
            )

    def search(
        self, terms: ArrayLike, k: int, allowed: NDArray[np.int64] | None = None, weights: ArrayLike | None = None
    ) -> tuple[Ints, Floats]:
        """The best items that hold at least one of the terms.

        Args:
            terms: [m] term ids of the query; one that is there twice counts twice.
            k: how many at most.
            allowed: [a] sorted int64: only these seqs are found (N, df and the mean length stay those of all items).
            weights: [m] one factor a term, at least 0; a term of weight 0 finds nothing. All 1 if not given.

        Returns:
            `(seqs [<=k] int64, scores [<=k] float64)`, best first, of equals the newer first.

        Raises:
            ValueError: a weight is negative, or there are not as many as terms.
        """
        now = self._now
        query = _query(terms, weights)
        if k < 1 or not query or not now.count:
            return np.empty(0, np.int64), np.empty(0)
        scores = self._all(now, query)
        seqs = now.seqs[: now.rows]
        if allowed is not None:
            rows, there = where(seqs, np.asarray(allowed, np.int64))
            rows = rows[there]
            best = rows[top(scores[rows], k, above=0.0)]
        else:
            best = top(scores, k, above=0.0)
        return seqs[best], scores[best]

    def scores(self, terms: ArrayLike, seqs: ArrayLike, weights: ArrayLike | None = None) -> Floats:
        """`[n]` the scores of these items; 0 where none of the terms is, or the item is not there."""
        now = self._now
        rows, there = where(now.seqs[: now.rows], np.asarray(seqs, np.int64).reshape(-1))
        query = _query(terms, weights)
        if not query or not now.count:
            return np.zeros(len(rows))
        return np.where(there, self._all(now, query)[rows], 0.0)

    def counts(self, terms: ArrayLike, seqs: ArrayLike) -> NDArray[np.float64]:
        """How often each of `terms` [m] stands in each item: `[m, n]`; 0 for items that are not there."""
        now = self._now
        rows, there = where(now.seqs[: now.rows], np.asarray(seqs, np.int64).reshape(-1))
        asked = np.asarray(terms, np.uint32).reshape(-1)
        counts, narrow = np.zeros((len(asked), len(rows))), rows.astype(np.int32)
        for number, term in enumerate(asked.tolist()):
            holders, x, _ = now.matching(term)  # ascending: the tail's rows come after the bulk's
            if len(holders):
                at = holders.searchsorted(narrow)
                at[at == len(holders)] = 0
                found = np.flatnonzero(holders.take(at) == narrow)
                counts[number, found] = 1.0 / x[at[found]]
        if not there.all():
            counts[:, ~there] = 0.0
        return counts

    def lengths(self, seqs: ArrayLike) -> NDArray[np.float64]:
        """Tokens of each item, `[n]`; 0 for items that are not there."""
        now = self._now
        rows, there = where(now.seqs[: now.rows], np.asarray(seqs, np.int64).reshape(-1))
        if not now.rows:
            return np.zeros(len(rows))
        return np.where(there, now.lengths[rows], 0).astype(np.float64)

    def same_words(self, items: Sequence[Terms]) -> list[Ints]:
        """Of each of `items` as `add` takes them: seqs of those that have the same set of terms, ascending."""
        now = self._now
        if not items or not now.rows:
            return [np.empty(0, np.int64) for _ in items]
        lengths = np.fromiter(map(len, items), np.int32, len(items))
        asked = _wordings(postings_of(np.concatenate(items), lengths, 0), 0, len(items))
        wordings, high = now.wordings[: now.rows], np.uint64(48)
        some = np.zeros(1 << 16, bool)  # by 16 bits first: one pass for all items
        some[asked >> high] = True
        rows = np.flatnonzero(some[wordings >> high] & now.alive[: now.rows])
        there = wordings[rows]
        return [now.seqs[rows[there == wording]] for wording in asked]

    @property
    def mean_length(self) -> float:
        """Tokens of an item, on average."""
        now = self._now
        return now.tokens / now.count if now.count else 0.0

    def df(self, terms: ArrayLike) -> Ints:
        """`[m]` how many items hold each term."""
        now = self._now
        return _frequencies(now, np.asarray(terms, np.uint32).reshape(-1))

    def idf(self, terms: ArrayLike) -> Floats:
        """`[m]` the weight of each term by its rarity."""
        now = self._now
        return now.idf(_frequencies(now, np.asarray(terms, np.uint32).reshape(-1)))

    def _all(self, now: _Snapshot, query: dict[int, float]) -> Floats:
        """`[rows]`: every row's score, 0 for the dead."""
        flat = self.k1 * (1 - self.b)
        slope = self.k1 * self.b * now.count / max(now.tokens, 1)
        found, parts = [], []
        for term, weight in query.items():
            rows, x, y = now.matching(term)
            if not len(rows):
                continue
            part = x * np.float32(flat)
            part += y * np.float32(slope)
            part += 1
            np.divide(np.float32(weight * (self.k1 + 1) * float(now.idf(now.frequency(rows)))), part, out=part)
            found.append(rows)
            parts.append(part)
        if not found:
            return np.zeros(now.rows)
        scores: Floats = np.bincount(np.concatenate(found), np.concatenate(parts), minlength=now.rows).astype(
            np.float64, copy=False
        )
        if now.count < now.rows:
            scores *= now.alive[: now.rows]
        return scores


def _query(terms: ArrayLike, weights: ArrayLike | None) -> dict[int, float]:
    """The weight of each distinct term, in order of first appearance."""
    ids = np.asarray(terms, np.uint32).reshape(-1).tolist()
    factors = [1.0] * len(ids) if weights is None else np.asarray(weights, np.float64).reshape(-1).tolist()
    if len(ids) != len(factors) or not all(factor >= 0 for factor in factors):
        raise ValueError(f"one weight of at least 0 for each of the {len(ids)} terms; got {factors}")
    query: dict[int, float] = {}
    for term, factor in zip(ids, factors, strict=True):
        query[term] = query.get(term, 0.0) + factor
    return {term: factor for term, factor in query.items() if factor}


def _wordings(postings: Postings, row: int, count: int) -> Wordings:
    """`[count]`: the sum of a hash of each distinct term of the rows from `row` on; sets that differ differ by it."""
    x = postings.term.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)  # splitmix64
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    sums = np.zeros(count, np.uint64)
    np.add.at(sums, postings.row - row, x ^ (x >> np.uint64(31)))
    return sums


def _frequencies(now: _Snapshot, terms: Terms) -> Ints:
    return np.array([now.frequency(now.matching(term)[0]) for term in terms.tolist()], np.int64)


def _compact(now: _Snapshot) -> _Snapshot:
    """The same without the dead rows: in new arrays, as readers may be at work on the old ones."""
    alive = now.alive[: now.rows]
    tail = now.tail.take(slice(now.tailed)).living(alive)
    return replace(
        now,
        asked={},
        bulk=Bulk.of(now.bulk.postings().living(alive)),
        tail=tail,
        tailed=len(tail),
        seqs=now.seqs[: now.rows][alive],
        lengths=now.lengths[: now.rows][alive],
        wordings=now.wordings[: now.rows][alive],
        alive=np.ones(now.count, bool),
        rows=now.count,
    )
