"""Interim."""

from __future__ import annotations

import numpy as np

from memory_titan.store.backend import Backend
from memory_titan.store.item import Item, Vector
from memory_titan.store.neural import NeuralRecall


def surprises(vectors: Vector, neural: NeuralRecall) -> Vector:
    """`[n]`, 0 to 1: how badly the weights know each of `[n, dim]`, `|M(x) - x|^2`."""
    return (
        np.clip(np.square(neural.recall(vectors) - vectors).sum(-1), 0.0, 1.0)
        if neural.written
        else np.ones(len(vectors), np.float32)
    )


def values(items: list[Item], surprise: Vector, backend: Backend) -> Vector:
    """IDF mass."""
    return np.array([sum(backend.idf(np.unique(item.terms))) for item in items], np.float32)
