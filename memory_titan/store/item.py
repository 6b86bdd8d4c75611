"""What a store holds, and what a query gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Seqs = NDArray[np.int64]

SHORT, LONG, PERSISTENT, PENDING = 1, 2, 4, 8  # places; PENDING: to be offered to the long-term memory
HELD = SHORT | LONG | PERSISTENT | PENDING

Source = Literal["short_term", "long_term", "persistent"]
MemoryType = Literal["all", "short_term", "long_term", "persistent"]
PLACES: dict[str, int] = {"short_term": SHORT, "long_term": LONG, "persistent": PERSISTENT}


@dataclass
class Item:
    """One text with what the store knows of it.

    Attributes:
        id: unique in its store.
        content: the text.
        metadata: a JSON object.
        created: seconds since 1970, when it was said.
        session: what it was said in; neighbours in a session lend each other meaning.
        position: in the session, given by the store.
        speaker: who said it, if known.
        vector: `[dim]`, float32, of length 1.
        terms: uint32, one a word of the content, hashed.
        places: bits, where it is held: SHORT, LONG, PERSISTENT, PENDING.
        seq: order of arrival, given by the store.
        surprise: 0 (known) to 1 (new) when the long-term memory was offered it; None: not yet.
        value: how many items had been offered when it was, or when a query last found it: it fades from then on.
        used: how often a query found it.
        abridged: bytes that were cut out of its content to make room; 0: it is whole. The vector is the whole's.
    """

    id: str
    content: str
    metadata: dict[str, Any]
    created: float
    session: str | None
    vector: Vector
    terms: NDArray[np.uint32]
    places: int = 0
    seq: int = -1
    position: int = 0
    speaker: str | None = None
    surprise: float | None = None
    value: float = 0.0
    used: int = 0
    abridged: int = 0

    @property
    def source(self) -> Source:
        """The memory that a hit is reported from: the surest one that holds it."""
        if self.places & PERSISTENT:
            return "persistent"
        return "short_term" if self.places & (SHORT | PENDING) else "long_term"

    @property
    def nbytes(self) -> int:
        """Of the content, UTF-8."""
        return len(self.content.encode())


class Hit(TypedDict):
    """One answer to a query.

    Keys:
        content, id, metadata: of the item.
        score: 0 to 1, comparable within one query; hits come in this order.
        source: "short_term", "long_term" or "persistent".
        surprise: see `Item`.
        created: ISO 8601, UTC.
        why: what the score is made of, by name.
        duplicates: ids of items that say the same and were merged into this hit.
        replaces: ids of older statements about the same thing.
        replaced_by: the newer statement about the same thing, or None.
        abridged: bytes of the content that the memory let go; "… " marks what is missing between two sentences.
    """

    content: str
    score: float
    source: Source
    id: str
    metadata: dict[str, Any]
    surprise: float | None
    created: str
    session: str | None
    why: dict[str, float]
    duplicates: list[str]
    replaces: list[str]
    replaced_by: str | None
    abridged: int


@dataclass
class Report:
    """What became of items that were offered to the long-term memory.

    Attributes:
        admitted, rejected, evicted: ids. What was rejected or evicted is no longer held anywhere unless the short-term
            memory still has it.
        abridged: ids of items that were shortened.
    """

    admitted: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    evicted: list[str] = field(default_factory=list)
    abridged: list[str] = field(default_factory=list)
