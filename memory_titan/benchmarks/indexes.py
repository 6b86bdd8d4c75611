"""How fast the store's two indexes are, and what the index of vectors loses against comparing all.

Latencies are wall time of single calls from one thread; rates are by CPU time of all threads, which other work on the
machine changes less. `measure_vectors` wants real embeddings: made-up ones lie otherwise, and tell little of these.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from memory_titan.benchmarks.measure import timed
from memory_titan.store.terms import term_ids
from memory_titan.store.vectors import VectorIndex
from memory_titan.store.words import WordIndex

Figures = dict[str, float]  # what is measured, its unit in the name

_SINGLE = 4096  # items added one by one: a tail is filled and coded twice
_SEED = 0


def measure_vectors(vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int = 10) -> Figures:
    """Of `vectors` [n, dim] and `queries` [m, dim], unit rows."""
    count = len(vectors)
    index = VectorIndex(vectors.shape[1])

    def load() -> None:
        index.add(np.arange(count), vectors)
        index.wait()

    wall, cpu = timed(load)
    figures = {"vectors": float(count), "exact": float(index.exact), "megabytes": index.nbytes / 1e6}
    figures |= {"load s": wall, "loaded per CPU s": count / cpu}
    figures |= _latency("query", (partial(index.search, q, k) for q in queries))
    figures |= _latency("compare all", (partial(_compare_all, vectors, q, k) for q in queries))
    cosines = queries @ vectors.T
    figures[f"recall@{k}"] = _recall(index, queries, cosines, k, None)
    random = np.random.default_rng(_SEED)
    for share in (2, 50):
        allowed = np.sort(random.choice(count, count * share // 100, replace=False))
        name = f"{share}% allowed"
        figures |= _latency(f"query, {name}", (partial(index.search, q, k, allowed) for q in queries))
        figures[f"recall@{k}, {name}"] = _recall(index, queries, cosines, k, allowed)
    singles = vectors[np.arange(_SINGLE) % count]
    figures |= _adding(lambda at: index.add([count + at], singles[at : at + 1]))
    index.close()
    return figures


def measure_words(texts: Sequence[str], k: int = 10, queries: int = 500) -> Figures:
    """Of these texts; a query is five to eight terms of one of them, or the terms that most texts have."""
    figures: Figures = {"items": float(len(texts))}
    figures["tokenised per CPU s, cold"] = len(texts) / timed(lambda: [term_ids(text) for text in texts])[1]
    figures["tokenised per CPU s, warm"] = len(texts) / timed(lambda: [term_ids(text) for text in texts])[1]
    items = [term_ids(text) for text in texts]
    index = WordIndex()
    wall, cpu = timed(lambda: index.add(np.arange(len(items)), items))
    figures |= {"terms an item": float(np.mean([len(item) for item in items])), "megabytes": index.nbytes / 1e6}
    figures |= {"load s": wall, "loaded per CPU s": len(items) / cpu}
    random = np.random.default_rng(_SEED)
    chosen = [items[at] for at in random.choice(len(items), queries)]
    asked = [random.permutation(item)[: random.integers(5, 9)] for item in chosen]
    figures |= _latency("query", (partial(index.search, q, k) for q in asked))
    half = np.arange(0, len(items), 2)
    figures |= _latency("query, 50% allowed", (partial(index.search, q, k, half) for q in asked))
    terms = np.unique(np.concatenate(items))
    common = terms[np.argsort(-index.df(terms), kind="stable")[:8]]
    figures["most common term, share of items"] = float(index.df(common[:1])[0]) / len(items)
    figures |= _latency("query, 8 most common terms", (partial(index.search, common, k) for _ in range(queries)))
    return figures | _adding(lambda at: index.add([len(items) + at], [items[at % len(items)]]))


def _compare_all(vectors: NDArray[np.float32], query: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    return np.argpartition(vectors @ query, -k)


def _latency(name: str, calls: Iterable[Callable[[], object]]) -> Figures:
    times = []
    for call in calls:
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    low, median, high = np.quantile(times, [0, 0.5, 0.95])
    return {f"{name} ms p50": float(median), f"{name} ms p95": float(high), f"{name} ms least": float(low)}


def _adding(add: Callable[[int], object]) -> Figures:
    calls = [partial(add, at) for at in range(_SINGLE)]
    begin = time.process_time()
    latency = _latency("add one", calls)
    return latency | {"add one CPU us mean": 1e6 * (time.process_time() - begin) / _SINGLE}


def _recall(
    index: VectorIndex,
    queries: NDArray[np.float32],
    cosines: NDArray[np.float32],
    k: int,
    allowed: NDArray[np.int64] | None,
) -> float:
    """The share of hits not worse than the k-th of all allowed, within rounding."""
    good = 0
    for query, row in zip(queries, cosines, strict=True):
        seqs, _ = index.search(query, k, allowed)
        among = row if allowed is None else row[allowed]
        good += int((row[seqs] >= np.partition(among, -k)[-k] - 1e-6).sum())
    return good / (k * len(queries))
