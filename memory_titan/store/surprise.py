"""Interim."""

from __future__ import annotations

import numpy as np

from memory_titan.store.backend import Backend
from memory_titan.store.item import Item, Vector
from memory_titan.store.neural import NeuralRecall
from memory_titan.store.ranking import idf


def surprises(vectors: Vector, neural: NeuralRecall) -> Vector:
    """`[n]`, 0 to 1: how badly the weights know each of `[n, dim]`, `|M(x) - x|^2`."""
    return (
        np.clip(np.square(neural.recall(vectors) - vectors).sum(-1), 0.0, 1.0)
        if neural.written
        else np.ones(len(vectors), np.float32)
    )


def values(items: list[Item], surprise: Vector, backend: Backend) -> Vector:
    """IDF mass."""
    out = []
    for item in items:
        words = backend.words_of(np.unique(item.terms), np.array([item.seq]))
        out.append(idf(words.items, words.frequencies).sum())
    return np.array(out, np.float32)
