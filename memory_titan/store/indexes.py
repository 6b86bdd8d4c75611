"""The three indexes in memory of a store: vectors by cosine, words by BM25, places in sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_titan.store.backend import Words
from memory_titan.store.item import Seqs, Vector
from memory_titan.store.sessions import Places, SessionIndex
from memory_titan.store.vectors import VectorIndex
from memory_titan.store.words import WordIndex


class Indexes:
    """Made from the database and following it. For many readers beside one writer.

    Args:
        dim: of the vectors.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.vectors, self.words, self.sessions = VectorIndex(dim), WordIndex(), SessionIndex()
        self.newest = -1  # the greatest seq that was added

    def add(self, seqs: list[int], vectors: Vector, terms: list[Any], stand: Sequence[tuple[Any, ...]]) -> None:
        """New items, seqs above all before; `stand`: session, position, speaker of each."""
        numbers = np.array(seqs, np.int64)
        self.sessions.add(numbers, *zip(*stand, strict=True))
        self.words.add(numbers, terms)
        self.vectors.add(numbers, vectors)
        self.newest = seqs[-1]

    def remove(self, seqs: Seqs) -> None:
        """They are found no more."""
        self.vectors.remove(seqs)
        self.words.remove(seqs)
        self.sessions.remove(seqs)

    def words_of(self, terms: NDArray[np.uint32], seqs: Seqs) -> Words:
        """Counts of terms in items, and in how many of all items each term stands."""
        index = self.words
        return Words(index.counts(terms, seqs), index.lengths(seqs), index.df(terms), len(index), index.mean_length)

    def places(self, seqs: Seqs) -> Places:
        """Where items stand in their sessions; session -1 for what is not there."""
        return self.sessions.of(seqs)

    def close(self) -> None:
        """Stop what works in the background."""
        self.vectors.close()
