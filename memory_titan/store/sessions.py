"""Who said what after what: the place of each item in its session, and its speaker, in memory.

    session "monday"   position 0  1  2  ...        what stands next to an item lends it meaning
    session ""         position 0  1  ...           everything that was added without a session: one stream

The place of a deleted item stays empty.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_titan.store.item import Seqs
from memory_titan.store.names import all_words, name_words
from memory_titan.store.top import ascending, grown, where

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Places:
    """Of n items.

    Attributes:
        session: `[n]`, a number for each session.
        position: `[n]`, in the session.
        speaker: `[n]`, places in `names`; -1: unknown.
        names: of the speakers.
        words: of all names, lower case; None: look at each.
    """

    session: NDArray[np.int64]
    position: NDArray[np.int64]
    speaker: NDArray[np.int64]
    names: Sequence[str]
    words: Set[str] | None = None

    def named(self, query: str) -> NDArray[np.bool_]:
        """`[n]`: whether a query names the item's speaker, by a word of the name."""
        words = all_words(query)
        if self.words is not None and words.isdisjoint(self.words):
            return np.zeros(len(self.speaker), bool)
        codes = [code for code in ascending(self.speaker).tolist() if code >= 0]
        return np.isin(self.speaker, [code for code in codes if not words.isdisjoint(name_words(self.names[code]))])


class SessionIndex:
    """Places and neighbours by seq. Safe for many readers beside one writer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seqs = np.empty(0, np.int64)
        self._codes, self._positions, self._speakers, self._before, self._after = (
            np.empty(0, np.int32) for _ in range(5)
        )
        self._alive = np.empty(0, bool)
        self._rows = 0
        self._sessions: dict[str, int] = {}
        self._last: list[int] = []  # by session: the row of its last item
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self.name_words: set[str] = set()  # of all speakers that there ever were

    def next_position(self, session: str | None) -> int:
        """Where the next item of a session will stand."""
        code = self._sessions.get(session or "")
        return 0 if code is None else int(self._positions[self._last[code]]) + 1

    def add(
        self,
        seqs: Seqs,
        sessions: Sequence[str | None],
        positions: Sequence[int],
        speakers: Sequence[str | None],
    ) -> None:
        """Items with seqs above all before, in their order."""
        with self._lock:
            rows, count = self._rows, len(seqs)
            codes, named, before = (np.empty(count, np.int32) for _ in range(3))
            after = np.full(count, -1, np.int32)
            for n, (session, speaker) in enumerate(zip(sessions, speakers, strict=True)):
                code = self._sessions.setdefault(session or "", len(self._sessions))
                if code == len(self._last):
                    self._last.append(-1)
                last = self._last[code]
                codes[n], before[n] = code, last
                named[n] = -1 if speaker is None else self._speaker(speaker)
                if last >= rows:
                    after[last - rows] = rows + n
                elif last >= 0:
                    self._after[last] = rows + n
                self._last[code] = rows + n
            self._codes, self._speakers = grown(self._codes, rows, codes), grown(self._speakers, rows, named)
            self._before, self._after = grown(self._before, rows, before), grown(self._after, rows, after)
            self._positions = grown(self._positions, rows, np.asarray(positions, np.int32))
            self._alive = grown(self._alive, rows, np.ones(count, bool))
            self._seqs = grown(self._seqs, rows, seqs)
            self._rows = rows + count

    def remove(self, seqs: Seqs) -> None:
        """They are nobody's neighbours any more; their places stay empty."""
        with self._lock:
            at, there = where(self._seqs[: self._rows], seqs)
            self._alive[at[there]] = False

    def _speaker(self, name: str) -> int:
        code = self._numbers.get(name)
        if code is None:
            code = self._numbers[name] = len(self._names)
            self._names.append(name)
            self.name_words.update(name_words(name))
        return code

    def of(self, seqs: Seqs) -> Places:
        """Where items stand; of unknown ones session is -1."""
        with self._lock:
            at, there = where(self._seqs[: self._rows], seqs)
            if not self._rows:
                nowhere = np.full(len(seqs), -1)
                return Places(nowhere, nowhere, nowhere, ())
            columns = (self._codes, self._positions, self._speakers)
            session, position, speaker = (column.take(at).astype(np.int64) for column in columns)
            if not there.all():
                session[~there] = position[~there] = speaker[~there] = -1
            return Places(session, position, speaker, self._names, self.name_words)

    def around(self, seqs: Seqs, radius: int) -> Seqs:
        """These items and those at most `radius` before and after each in its session; ascending."""
        with self._lock:
            at, there = where(self._seqs[: self._rows], seqs)
            backward: NDArray[Any] = at[there]
            forward: NDArray[Any] = backward
            found = [backward]
            for _ in range(radius):
                backward, forward = self._before[backward], self._after[forward]
                backward, forward = backward[backward >= 0], forward[forward >= 0]
                found += [backward, forward]
            rows = ascending(np.concatenate(found))
            return self._seqs[rows[self._alive[rows]]]
