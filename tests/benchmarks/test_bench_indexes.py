"""The benchmark of the store's indexes runs, and its recall can tell."""

from __future__ import annotations

import numpy as np
import pytest

from memory_titan.benchmarks import indexes


def test_both_indexes_are_measured(monkeypatch):
    monkeypatch.setattr(indexes, "_SINGLE", 20)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    figures = indexes.measure_vectors(vectors, vectors[:10], k=3)
    assert (figures["vectors"], figures["recall@3"], figures["recall@3, 50% allowed"]) == (300, 1, 1)
    figures = indexes.measure_words([f"word{at % 7} and item {at} of many" for at in range(300)], queries=10)
    assert figures["terms an item"] == 4
    assert figures["most common term, share of items"] == 1
    assert all(value >= 0 for value in figures.values())


def test_a_lost_hit_shows(monkeypatch):
    vectors = np.eye(8, dtype=np.float32)
    index = indexes.VectorIndex(8)
    index.add(np.arange(8), vectors)
    monkeypatch.setattr(index, "search", lambda query, k, allowed: (np.array([3]), None))
    assert indexes._recall(index, vectors[:4], vectors[:4] @ vectors.T, 1, None) == pytest.approx(1 / 4)
