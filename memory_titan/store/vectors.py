"""Unit vectors in memory and the nearest to a query, by cosine.

Up to some size, and where FAISS is not installed, every vector is compared. Above it FAISS scans short codes of all of
them (product quantisation, two dimensions to four bits, "fast scan": Andre, Kermarrec and Le Scouarnec, "Quicker ADC",
2019), and the best of these are compared again by the vectors themselves. The codes are scanned whole, not in the cells
of an inverted file: a tenth of a gigabyte of vectors has ten megabytes of codes, which takes a fraction of a
millisecond, and a scan of everything can tell when it may have missed something. If a vector left out could be among
the best k, were its code somewhat more wrong than the worst one seen, more are looked at, and in the end all of them.
So filters, removals and a thousand equal vectors cost time, not hits. The cosines returned are exact in any case.

A writer publishes a new snapshot at each change; a reader works on the one it took, without a lock. Only a removal
reaches into a snapshot (the vector becomes zeros at once), and a reader who lost a hit by that begins again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock, Thread
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memory_titan.store.top import Ints, grown, top, where

Vectors = NDArray[np.float32]

_CODED_FROM = 10_000  # fewer vectors are compared one by one: about a millisecond at 384 dimensions
_TAIL = 2048  # vectors compared one by one beside the codes, before they are coded too
_GATHER = 4096  # so few allowed vectors are taken out and compared at once
_BLOCK = 8192  # rows worked on at a time, where a copy is made
_CENTROIDS = 16  # four bits, in two dimensions
_TRAINED_ON = 4096  # vectors; so few centroids need no more
_WIDE = 128  # codes that are asked for at least
# How many times as wrong as the worst code seen one unseen may be. At 1, made-up vectors without any order (normal, 64
# dimensions) lose one hit in 200; at 1.25, one in 3000; sentence embeddings none at either.
_DOUBT = 1.25


@dataclass(frozen=True)
class _Codes:
    """FAISS's codes of the vectors up to some seq. Never altered: more codes go into a clone."""

    index: Any  # faiss.IndexPQFastScan
    seqs: Ints  # of each code; some may be removed by now
    trained: int  # vectors there were at training


@dataclass(frozen=True)
class _Snapshot:
    """What a reader sees. Arrays may have room behind their end, which only later snapshots read."""

    vectors: Vectors
    seqs: Ints
    alive: NDArray[np.bool_]  # replaced, not altered, at a removal
    rows: int
    count: int  # rows alive
    removals: int
    codes: _Codes | None

    def row_of(self, seqs: ArrayLike) -> tuple[Ints, NDArray[np.bool_]]:
        """The row of each seq, and whether it is there."""
        rows, there = where(self.seqs[: self.rows], np.asarray(seqs, np.int64).reshape(-1))
        if len(rows) and self.rows:
            there &= self.alive[rows]
        return rows, there

    def after(self, codes: _Codes) -> int:
        """The first row that has no code."""
        return int(np.searchsorted(self.seqs[: self.rows], codes.seqs[-1], side="right"))

    def cosines(self, rows: Ints, query: Vectors) -> Vectors:
        """Of these rows, each by itself: equal vectors get equal cosines, in whatever company."""
        found = np.empty(len(rows), np.float32)
        for begin in range(0, len(rows), _BLOCK):
            at = rows[begin : begin + _BLOCK]
            found[begin : begin + _BLOCK] = np.einsum("ij,j->i", self.vectors.take(at, 0), query)
        return found

    def nearest(self, rows: Ints | slice, query: Vectors, k: int) -> Ints:
        """At most k of `rows` (ascending, all alive if given as numbers), by comparing all; best first."""
        if isinstance(rows, slice):
            rough = self.vectors[rows] @ query
            rough[~self.alive[rows]] = -np.inf
        elif len(rows) > self.rows // 8:
            rough = (self.vectors[: self.rows] @ query)[rows]
        else:
            rough = np.concatenate(
                [self.vectors[rows[begin : begin + _BLOCK]] @ query for begin in range(0, len(rows), _BLOCK)]
                or [np.empty(0, np.float32)]
            )
        best = top(rough, k, above=-np.inf)
        if not len(best):
            return best
        # The product rounds a row by its place among the others: what may tie by that is compared once more.
        slack = 2 * len(query) * np.finfo(np.float32).eps
        close = np.flatnonzero(rough >= rough[best[-1]] - slack)
        close = close + rows.start if isinstance(rows, slice) else rows[close]
        return close[top(self.cosines(close, query), k)]


class VectorIndex:
    """The nearest of many unit vectors.

    Args:
        dim: of a vector.
        coded_from: from so many vectors on FAISS is used, if it is installed and `dim` is even; built by a thread, and
            until it is ready every vector is compared.

    Raises:
        ValueError: `dim` is not positive, or `coded_from` under 32.
    """

    def __init__(self, dim: int, coded_from: int = _CODED_FROM) -> None:
        if dim < 1 or coded_from < 2 * _CENTROIDS:
            raise ValueError(f"dim must be at least 1 and coded_from {2 * _CENTROIDS}; got {dim} and {coded_from}")
        self.dim = dim
        self._coded_from = coded_from
        self._faiss: Any = _faiss() if dim % 2 == 0 else None
        self._writing = Lock()
        self._builder: Thread | None = None
        self._closed = False
        self._now = _Snapshot(
            vectors=np.empty((0, dim), np.float32),
            seqs=np.empty(0, np.int64),
            alive=np.empty(0, bool),
            rows=0,
            count=0,
            removals=0,
            codes=None,
        )

    def __len__(self) -> int:
        return self._now.count

    @property
    def exact(self) -> bool:
        """Whether every vector is compared at the moment."""
        return self._now.codes is None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, room to grow included, and of the codes."""
        now = self._now
        codes = 0 if now.codes is None else now.codes.seqs.nbytes + len(now.codes.seqs) * self.dim // 4
        return now.vectors.nbytes + now.seqs.nbytes + now.alive.nbytes + codes

    def add(self, seqs: ArrayLike, vectors: ArrayLike) -> None:
        """Take in vectors.

        Args:
            seqs: [n] int64, strictly increasing and above all that were ever added.
            vectors: [n, dim] float32, of length 1, or zero for what is like nothing.

        Raises:
            ValueError: seqs are out of order, shapes do not fit, or a vector is not of length 1 (within 1%).
        """
        new = np.asarray(seqs, np.int64).reshape(-1)
        more = np.asarray(vectors, np.float32)
        if more.shape != (len(new), self.dim):
            raise ValueError(f"{len(new)} seqs need vectors of shape {(len(new), self.dim)}; got {more.shape}")
        if not len(new):
            return
        lengths = np.sqrt(np.einsum("ij,ij->i", more, more))
        if not ((np.abs(lengths - 1) < 0.01) | (lengths == 0)).all():
            raise ValueError(
                f"vectors must be of length 1; got lengths from {lengths.min():.3g} to {lengths.max():.3g}"
            )
        with self._writing:
            now = self._now
            if (np.diff(new) <= 0).any() or (now.rows and new[0] <= now.seqs[now.rows - 1]):
                raise ValueError("seqs must increase strictly, over all that were added before")
            self._now = replace(
                now,
                vectors=grown(now.vectors, now.rows, more),
                seqs=grown(now.seqs, now.rows, new),
                alive=grown(now.alive, now.rows, np.ones(len(new), bool)),
                rows=now.rows + len(new),
                count=now.count + len(new),
            )
            self._follow()

    def remove(self, seqs: ArrayLike) -> None:
        """Forget vectors; seqs that are not there are passed over. No search that ends after this returned finds them.

        A vector is overwritten with zeros at once. Its code (dim / 4 bytes) leaves memory when the codes are next made.
        """
        with self._writing:
            now = self._now
            rows, there = now.row_of(seqs)
            rows = np.unique(rows[there])
            if not len(rows):
                return
            alive = now.alive.copy()
            alive[rows] = False
            after = replace(now, alive=alive, count=now.count - len(rows), removals=now.removals + 1)
            self._now = _compact(after) if after.count <= 0.75 * after.rows else after
            now.vectors[rows] = 0  # after publishing: who read these must be able to tell
            self._follow()

    def search(self, query: ArrayLike, k: int, allowed: NDArray[np.int64] | None = None) -> tuple[Ints, Vectors]:
        """The vectors nearest to `query`.

        Args:
            query: [dim] float32, of length 1.
            k: how many at most.
            allowed: [a] sorted int64: only these seqs are found.

        Returns:
            `(seqs [<=k] int64, cosines [<=k] float32)`, best first, of equals the newer first.

        Raises:
            ValueError: the query is not of shape [dim], or not finite.
        """
        q = self._query(query)
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)

        def find(now: _Snapshot) -> tuple[Ints, Vectors]:
            best = self._nearest(now, q, k, allowed)
            return now.seqs[best], now.cosines(best, q)

        for _ in range(3):
            now = self._now
            seqs, cosines = find(now)
            # A removal may have reached into this snapshot. If it took none of the hits, they are still the best: what
            # else it took counts no more, and the rest was compared as it is.
            later = self._now
            if later.removals == now.removals or later.row_of(seqs)[1].all():
                return seqs, cosines
        with self._writing:
            return find(self._now)

    def vectors_of(self, seqs: ArrayLike) -> Vectors:
        """`[n, dim]`, a copy; zeros for a seq that is not there."""
        now = self._now
        rows, there = now.row_of(seqs)
        if not now.rows:
            return np.zeros((len(rows), self.dim), np.float32)
        found: Vectors = now.vectors.take(rows, 0)
        if not there.all():
            found[~there] = 0
        if (later := self._now) is not now:
            found[~later.row_of(seqs)[1]] = 0  # removed meanwhile, so perhaps half overwritten
        return found

    def cosines(self, query: ArrayLike, seqs: ArrayLike) -> Vectors:
        """`[n]` of these seqs, the same numbers as `search` gives; 0 for one that is not there."""
        q = self._query(query)
        now = self._now
        rows, there = now.row_of(seqs)
        found = np.zeros(len(rows), np.float32)
        found[there] = now.cosines(rows[there], q)
        found[~self._now.row_of(seqs)[1]] = 0
        return found

    def wait(self, timeout: float | None = None) -> None:
        """Until no codes are being built, or so many seconds."""
        builder = self._builder
        if builder is not None:
            builder.join(timeout)

    def close(self) -> None:
        """Build no more codes, and wait for the thread that does. The index can still be read."""
        self._closed = True
        self.wait()

    def _query(self, query: ArrayLike) -> Vectors:
        q = np.asarray(query, np.float32)
        if q.shape != (self.dim,) or not np.isfinite(q).all():
            raise ValueError(f"a query must be {self.dim} finite numbers; got shape {q.shape}")
        return q

    def _nearest(self, now: _Snapshot, query: Vectors, k: int, allowed: NDArray[np.int64] | None) -> Ints:
        """Rows, best first."""
        rows, may, wide = None, now.alive, max(_WIDE, 8 * k)
        if allowed is not None:
            rows, there = now.row_of(allowed)
            rows = rows[there]
            if now.codes is None or len(rows) <= _GATHER:
                return now.nearest(rows, query, k)
            may = np.zeros(now.rows, bool)
            may[rows] = True
            wide = wide * now.rows // len(rows)
        if now.codes is not None:
            begin = now.after(now.codes)
            tail = np.flatnonzero(may[begin : now.rows]) + begin
            if len(tail) > 2 * k:
                tail = np.sort(now.nearest(slice(begin, now.rows) if rows is None else tail, query, k))
            best = _by_codes(now, now.codes, query, k, wide, may, tail)
            if best is not None:
                return best
        return now.nearest(slice(0, now.rows) if rows is None else rows, query, k)

    def _follow(self) -> None:
        """Let the codes follow the vectors. Called under the lock."""
        now, codes = self._now, self._now.codes
        if self._faiss is None or self._closed or self._builder is not None:
            return
        if codes is None:
            due = now.count >= self._coded_from
        else:
            begin = now.after(codes)
            dead = len(codes.seqs) - int(np.count_nonzero(now.alive[:begin]))
            due = now.count >= 2 * codes.trained or dead > len(codes.seqs) // 4
            if not due and now.rows - begin > _TAIL:
                self._now = replace(now, codes=self._with_tail(now, codes))
        if due:
            self._builder = Thread(target=self._build, args=(now,), name="memory-titan codes")
            self._builder.start()

    def _with_tail(self, now: _Snapshot, codes: _Codes) -> _Codes:
        """Codes of all vectors, given those of the first ones."""
        index = self._faiss.clone_index(codes.index)
        begin = now.after(codes)
        rows = begin + np.flatnonzero(now.alive[begin : now.rows])
        if len(rows):
            index.add(now.vectors[rows])
        return replace(codes, index=index, seqs=np.concatenate([codes.seqs, now.seqs[rows]]))

    def _build(self, now: _Snapshot) -> None:
        """Make the codes anew; the thread's work. A vector removed meanwhile leaves a code that finds nothing."""
        try:
            rows = np.flatnonzero(now.alive[: now.rows])
            codes = None
            if len(rows) >= self._coded_from // 2:
                index = self._faiss.IndexPQFastScan(self.dim, self.dim // 2, 4, self._faiss.METRIC_INNER_PRODUCT)
                index.pq.cp.niter = 10
                index.pq.cp.min_points_per_centroid = 1  # no warnings on standard error
                sample = np.linspace(0, len(rows) - 1, min(len(rows), _TRAINED_ON)).astype(np.int64)
                index.train(now.vectors[rows[sample]])
                for begin in range(0, len(rows), _BLOCK):
                    if self._closed:
                        return
                    index.add(now.vectors[rows[begin : begin + _BLOCK]])
                codes = _Codes(index, now.seqs[rows], len(rows))
            while True:
                with self._writing:
                    now = self._now
                    if codes is None or now.rows - now.after(codes) <= _TAIL or self._closed:
                        self._now = replace(now, codes=codes)
                        return
                codes = self._with_tail(now, codes)  # what came while the codes were made
        finally:
            self._builder = None


def _by_codes(
    now: _Snapshot, codes: _Codes, query: Vectors, k: int, wide: int, may: NDArray[np.bool_], tail: Ints
) -> Ints | None:
    """The best k of the coded rows that `may` be found and the rows `tail`; None where that is in doubt."""
    few = len(codes.seqs) // 8  # beyond that, comparing all is as fast
    wide = min(3 * wide // 2, few) if wide <= few else wide  # more codes cost next to nothing, their vectors do
    of_tail = now.cosines(tail, query)
    while wide <= few:
        rough, places = codes.index.search(query[None], wide)
        if places[0, -1] < 0:  # codes too much alike for FAISS to fill the list
            return None
        coded, there = now.row_of(codes.seqs[places[0]])
        there &= may[coded]
        coded, told, last = coded[there], rough[0][there], rough[0, -1]
        found = np.concatenate([of_tail, np.empty(len(coded), np.float32)])
        seen, worst, upto = 0, np.float32(0), max(_WIDE, 4 * k)
        while seen < len(coded):  # a part at a time, until nothing unseen can be better
            part = slice(seen, min(upto, len(coded)))
            cosines = now.cosines(coded[part], query)
            worst = max(worst, np.abs(cosines - told[part]).max())
            found[len(tail) + seen : len(tail) + part.stop] = cosines
            seen, upto = part.stop, part.stop * 4 // 3
            held = found[: len(tail) + seen]
            if len(held) >= k and seen >= _WIDE // 4:
                bound = told[seen] if seen < len(coded) else last
                least = np.partition(held, len(held) - k)[len(held) - k]
                if least > bound + _DOUBT * worst:
                    best = np.flatnonzero(held >= least)
                    rows = np.concatenate([tail, coded[:seen]])[best]
                    return rows[np.lexsort((-rows, -held[best]))][:k]
        wide *= 4
    return None


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def _compact(now: _Snapshot) -> _Snapshot:
    """The same without the dead rows: in new arrays, as readers may be at work on the old ones."""
    alive = now.alive[: now.rows]
    return replace(
        now,
        vectors=now.vectors[: now.rows][alive],
        seqs=now.seqs[: now.rows][alive],
        alive=np.ones(now.count, bool),
        rows=now.count,
    )
