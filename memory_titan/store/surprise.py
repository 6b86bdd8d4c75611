"""Surprise: what an item says that is not said by what is held already, for the room it takes.

    value = (sum over its terms of weight * idf) * sqrt(novelty) / (bytes + OVERHEAD * mean bytes)

idf = ln((held + 1) / (holders + 1/2)) is counted over what the long-term memory holds, so that a term which has become
common makes less of every item that has it; the weights are `wording.py`'s. Novelty is the neural memory's error when
the item came, |M(x) - x|^2. Per byte, since a budget is in bytes: over all, long items hold no more of what is asked
later than short ones of the same size together. The overhead is what an item costs beside its text: a place among the
results.

Where sentences go one by one, each has a value made in the same way of its own terms and bytes and the novelty of its
item. What is counted are sentences; the mean is that of items, so short sentences are dearer.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memory_titan.store.item import Vector
from memory_titan.store.neural import NeuralRecall
from memory_titan.store.wording import weighted_terms

OVERHEAD = 0.5  # of the mean item
TWIN = 0.99  # cosine from which an item of the same words says what is held already


@dataclass(frozen=True)
class Impression:
    """What the value of an item, or of a sentence of one, is made of.

    Attributes:
        terms: hashes of its distinct terms.
        weights: `[terms]`, float64.
        size: bytes of the text, UTF-8.
        novelty: 0 to 1.
    """

    terms: list[int]
    weights: NDArray[np.float64]
    size: int
    novelty: float


def impression(text: str, novelty: float) -> Impression:
    """Of a text and the neural memory's error on it."""
    terms = weighted_terms(text)
    weights = np.fromiter(terms.values(), np.float64, len(terms))
    return Impression([zlib.crc32(term.encode()) for term in terms], weights, len(text.encode()), novelty)


def together(parts: Sequence[Impression], size: int) -> Impression:
    """Of the item of `size` bytes whose sentences these are, at least one."""
    if len(parts) == 1:
        return parts[0] if parts[0].size == size else replace(parts[0], size=size)
    terms: dict[int, float] = {}
    for part in parts:
        for term, weight in zip(part.terms, part.weights.tolist(), strict=True):
            terms[term] = max(weight, terms.get(term, 0.0))
    return Impression(list(terms), np.fromiter(terms.values(), np.float64, len(terms)), size, parts[0].novelty)


def novelties(vectors: Vector, neural: NeuralRecall, twins: Sequence[bool]) -> Vector:
    """`[n]`, 0 to 1: how badly the weights know each of `[n, dim]`, `|M(x) - x|^2`; 0 for twins of what is held.

    Args:
        vectors: of the items.
        neural: the weights.
        twins: which of them are.
    """
    errors = np.square(neural.recall(vectors) - vectors).sum(-1) if neural.written else np.ones(len(vectors))
    return np.where(np.asarray(twins), 0.0, np.clip(errors, 0.0, 1.0)).astype(np.float32)


class Known:
    """In how many of the items held, or of their sentences, each term stands."""

    def __init__(self) -> None:
        self.items = 0
        self._holders: dict[int, int] = {}

    def add(self, item: Impression, by: int = 1) -> None:
        """It is held from now on; `by=-1`: no longer."""
        self.items += by
        for term in item.terms:
            count = self._holders.get(term, 0) + by
            if count:
                self._holders[term] = count
            else:
                del self._holders[term]

    def values(self, items: Sequence[Impression], mean_size: float) -> NDArray[np.float64]:
        """`[n]`: what each is worth by what is held now, a byte; not negative."""
        lengths = np.array([len(item.terms) for item in items], np.int64)
        holders = np.fromiter(
            (self._holders.get(t, 0) for item in items for t in item.terms), np.float64, lengths.sum()
        )
        idf = np.maximum(np.log((self.items + 1) / (holders + 0.5)), 0.0)
        weighted = np.concatenate([np.zeros(0), *(item.weights for item in items)]) * idf
        ends = np.concatenate([[0.0], np.cumsum(weighted)])[np.concatenate([[0], np.cumsum(lengths)])]
        sizes = np.array([item.size for item in items], np.float64)
        novelty = np.sqrt(np.array([item.novelty for item in items], np.float64))
        return np.asarray(np.diff(ends) * novelty / (sizes + OVERHEAD * mean_size))
