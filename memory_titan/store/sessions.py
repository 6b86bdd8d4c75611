"""Who said what after what: the place of each item in its session, and its speaker, in memory.

    session "monday"   position 0  1  2  ...        what stands next to an item lends it meaning
    session ""         position 0  1  ...           everything that was added without a session: one stream

A session is one speaker's or several people's; a place whose item was deleted stays empty.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_titan.store.item import Seqs
from memory_titan.store.terms import tokenize
from memory_titan.store.top import grown, where

Codes = NDArray[np.int32]
_PREFIX = re.compile(r"\s{0,3}([^\W\d_][\w .'-]{0,40}?)\s?: ")  # "Anna Maria: I am back"


def speaker_of(content: str, metadata: dict[str, Any]) -> str | None:
    """Who said it: metadata's "speaker", or a name before a colon at the start of the text."""
    given = metadata.get("speaker")
    if isinstance(given, str) and given.strip():
        return given
    found = _PREFIX.match(content[:64])
    return found.group(1) if found else None


@dataclass(frozen=True)
class Places:
    """Of n items.

    Attributes:
        session: `[n]`, a number for each session.
        position: `[n]`, in the session.
        speaker: `[n]`, a number for each speaker; -1: unknown.
    """

    session: NDArray[np.int64]
    position: NDArray[np.int64]
    speaker: NDArray[np.int64]


class SessionIndex:
    """Places by seq and seqs by place. Safe for many readers beside one writer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seqs = np.empty(0, np.int64)
        self._codes, self._positions, self._speakers = (np.empty(0, np.int32) for _ in range(3))
        self._rows = 0
        self._sessions: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._by_token: dict[str, set[int]] = {}
        self._order: list[list[int]] = []  # by session: the seq at each position, -1 where there is none

    def next_position(self, session: str | None) -> int:
        """Where the next item of a session will stand."""
        code = self._sessions.get(session or "")
        return 0 if code is None else len(self._order[code])

    def add(
        self,
        seqs: Seqs,
        sessions: Sequence[str | None],
        positions: Sequence[int],
        speakers: Sequence[str | None],
    ) -> None:
        """Items with seqs above all before, in their order."""
        with self._lock:
            codes = np.empty(len(seqs), np.int32)
            named = np.empty(len(seqs), np.int32)
            for n, (seq, session, position, speaker) in enumerate(
                zip(seqs, sessions, positions, speakers, strict=True)
            ):
                codes[n] = self._sessions.setdefault(session or "", len(self._sessions))
                if codes[n] == len(self._order):
                    self._order.append([])
                order = self._order[codes[n]]
                order += [-1] * (position - len(order)) + [int(seq)]
                named[n] = -1 if speaker is None else self._speaker(speaker)
            rows = self._rows
            self._codes, self._speakers = grown(self._codes, rows, codes), grown(self._speakers, rows, named)
            self._positions = grown(self._positions, rows, np.asarray(positions, np.int32))
            self._seqs = grown(self._seqs, rows, seqs)
            self._rows = rows + len(seqs)

    def _speaker(self, name: str) -> int:
        code = self._names.get(name)
        if code is None:
            code = self._names[name] = len(self._names)
            for token in tokenize(name):
                self._by_token.setdefault(token, set()).add(code)
        return code

    def of(self, seqs: Seqs) -> Places:
        """Where items stand; of unknown ones session is -1."""
        with self._lock:
            at, there = where(self._seqs[: self._rows], seqs)
            columns = (self._codes, self._positions, self._speakers)
            found = [
                np.where(there, x[at], -1).astype(np.int64) if self._rows else np.full(len(seqs), -1) for x in columns
            ]
        return Places(*found)

    def at(self, sessions: NDArray[np.int64], positions: NDArray[np.int64]) -> Seqs:
        """The seqs at these places, ascending; places without an item are left out."""
        found = []
        with self._lock:
            for code, position in zip(sessions.tolist(), positions.tolist(), strict=True):
                if 0 <= code < len(self._order) and 0 <= position < len(self._order[code]):
                    found.append(self._order[code][position])
        seqs = np.unique(np.array(found, np.int64))
        return seqs[seqs >= 0]

    def remove(self, seqs: Seqs) -> None:
        """Empty their places."""
        places = self.of(seqs)
        with self._lock:
            for code, position in zip(places.session.tolist(), places.position.tolist(), strict=True):
                if code >= 0:
                    self._order[code][position] = -1

    def named(self, query: str) -> set[int]:
        """The speakers that a query names, by a word of their name."""
        with self._lock:
            return set().union(*(self._by_token.get(token, set()) for token in tokenize(query)))
