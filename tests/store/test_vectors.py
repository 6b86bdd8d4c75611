"""Nearest vectors: what comparing all by hand gives, whatever was added and removed, and beside a writer too."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_titan.store import vectors as module
from memory_titan.store.vectors import VectorIndex

DIM = 16


def unit(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Unit vectors in clusters, so that some are near each other."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(12, dim))
    found = centres[random.integers(12, size=count)] + 0.5 * random.normal(size=(count, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def by_hand(held: dict[int, np.ndarray], query: np.ndarray, k: int, allowed=None) -> tuple[list[int], list[float]]:
    cosines = {seq: float((vector * query).sum()) for seq, vector in held.items() if allowed is None or seq in allowed}
    best = sorted(cosines, key=lambda seq: (-cosines[seq], -seq))[:k]
    return best, [cosines[seq] for seq in best]


def agrees(index: VectorIndex, held: dict[int, np.ndarray], query: np.ndarray, k: int, allowed=None) -> None:
    seqs, cosines = index.search(query, k, None if allowed is None else np.array(sorted(allowed), np.int64))
    assert (seqs.dtype, cosines.dtype) == (np.int64, np.float32)
    expected = by_hand(held, query, k, allowed)
    assert seqs.tolist() == expected[0]
    assert cosines.tolist() == pytest.approx(expected[1], abs=1e-6)
    assert index.cosines(query, seqs).tolist() == cosines.tolist()


@pytest.fixture
def coded(monkeypatch):
    """Codes from 800 vectors on, everything else smaller to match."""
    pytest.importorskip("faiss")
    for name, value in {"_WIDE": 32, "_TAIL": 64, "_GATHER": 50}.items():
        monkeypatch.setattr(module, name, value)

    def fill(vectors: np.ndarray) -> VectorIndex:
        index = VectorIndex(vectors.shape[1], coded_from=800)
        index.add(np.arange(len(vectors)), vectors)
        index.wait()
        assert not index.exact
        return index

    return fill


# Few directions, so that many cosines tie.
step = st.one_of(
    st.tuples(st.just("add"), st.lists(st.integers(0, 7), min_size=1, max_size=12)),
    st.tuples(st.just("remove"), st.lists(st.integers(0, 60), max_size=8)),
    st.tuples(st.just("search"), st.integers(0, 7), st.integers(1, 30), st.none() | st.sets(st.integers(0, 80))),
)


@given(st.lists(step, max_size=25), st.integers(1, 3))
@settings(max_examples=150)
def test_any_history(steps, gap):
    table, index, held, last = unit(8), VectorIndex(DIM), {}, 0
    for kind, *rest in steps:
        if kind == "add":
            seqs = [last + gap * (1 + at) for at in range(len(rest[0]))]
            index.add(seqs, table[rest[0]])
            held |= dict(zip(seqs, table[rest[0]], strict=True))
            last = seqs[-1]
        elif kind == "remove":
            index.remove(rest[0])
            held = {seq: vector for seq, vector in held.items() if seq not in rest[0]}
        else:
            agrees(index, held, table[rest[0]], *rest[1:])
        assert len(index) == len(held)


def test_equal_vectors_tie_wherever_they_stand():
    vectors = unit(3000, dim=33)
    vectors[::7] = vectors[0]
    index = VectorIndex(33)
    index.add(np.arange(3000), vectors)
    seqs, cosines = index.search(vectors[0], 200)
    assert seqs.tolist() == list(range(0, 3000, 7))[::-1][:200]
    assert len(set(cosines.tolist())) == 1


def lost(index: VectorIndex, held: dict[int, np.ndarray], query: np.ndarray, k: int, allowed=None) -> int:
    """How many of the best k codes have cost. What is found must be right and in order, and k if there are k."""
    seqs, cosines = index.search(query, k, None if allowed is None else np.array(sorted(allowed), np.int64))
    expected, _ = by_hand(held, query, k, allowed)
    assert len(seqs) == len(expected)
    assert set(seqs.tolist()) <= set(held if allowed is None else held.keys() & allowed)
    assert cosines.tolist() == pytest.approx([float((held[seq] * query).sum()) for seq in seqs.tolist()], abs=1e-6)
    assert list(zip(-cosines, -seqs, strict=True)) == sorted(zip(-cosines, -seqs, strict=True))
    return len(set(expected) - set(seqs.tolist()))


@pytest.mark.parametrize("k", [1, 10, 60])
def test_codes_lose_next_to_nothing(coded, k):
    vectors, queries = unit(3000), unit(12, seed=5)
    index, held, missed = coded(vectors), dict(enumerate(vectors)), 0
    for query in queries:
        missed += lost(index, held, query, k)
        missed += lost(index, held, query, k, allowed=set(range(0, 3000, 3)))
        far = np.argsort(vectors @ query)[:500]  # the codes nearest to the query are all forbidden
        missed += lost(index, held, query, k, allowed=set(far.tolist()))
        assert not lost(index, held, query, k, allowed=set(range(40)))  # so few are compared
        near = np.argsort(vectors @ query)[-70:]
        index.remove(near)
        held = {seq: vector for seq, vector in held.items() if seq not in set(near.tolist())}
        missed += lost(index, held, query, k)
    assert missed <= 0.01 * k * 4 * len(queries)


def test_codes_are_used_and_not_only_checked(coded, monkeypatch):
    vectors = unit(3000)
    index = coded(vectors)
    compared = []
    nearest = module._Snapshot.nearest
    monkeypatch.setattr(
        module._Snapshot,
        "nearest",
        lambda self, rows, query, k: compared.append(rows) or nearest(self, rows, query, k),
    )
    for query in unit(50, seed=3):
        index.search(query, 3)
    assert compared.count(slice(0, 3000)) == len(compared) < 40  # all of them


def test_many_equal_vectors_are_found_newest_first_by_codes_too(coded):
    vectors = unit(3000)
    vectors[100:1700] = vectors[100]
    seqs, _ = coded(vectors).search(vectors[100], 10)
    assert seqs.tolist() == list(range(1699, 1689, -1))
    same = np.repeat(vectors[:1], 1000, axis=0)
    assert coded(same).search(same[0], 5)[0].tolist() == [999, 998, 997, 996, 995]


def test_the_codes_follow(coded):
    vectors, query = unit(5000), unit(1, seed=9)[0]
    index, held, missed = coded(vectors[:1000]), dict(enumerate(vectors[:1000])), 0
    for begin in range(1000, 5000, 50):  # a tail, coded; twice the size, trained anew
        index.add(np.arange(begin, begin + 50), vectors[begin : begin + 50])
        held |= {seq: vectors[seq] for seq in range(begin, begin + 50)}
        missed += lost(index, held, query, 10)
    assert missed <= 8
    index.wait()
    assert len(index._now.codes.seqs) > 4800
    assert index._now.codes.trained >= 2000
    index.remove(np.arange(0, 5000, 2))
    index.remove(np.arange(1, 4500, 2))
    index.wait()
    index.remove([4501])
    index.wait()
    assert index.exact  # too few for codes now
    agrees(index, {seq: vectors[seq] for seq in range(4503, 5000, 2)}, query, 10)


def test_the_same_vectors_give_the_same_codes(coded):
    import faiss

    vectors = unit(2000)
    both = coded(vectors), coded(vectors)
    first, second = (faiss.vector_to_array(index._now.codes.index.pq.centroids) for index in both)
    assert (first == second).all()


def test_a_removed_vector_is_overwritten():
    vectors = unit(20)
    index = VectorIndex(DIM)
    index.add(np.arange(20), vectors)
    array = index._now.vectors
    index.remove([3])
    assert not array[3].any()
    index.remove(np.arange(4, 16))  # now the rest moves to a new array
    assert len(index._now.vectors) == 7
    assert not array[3:16].any()
    assert not index.vectors_of([3])[0].any()
    assert index.cosines(vectors[0], [3, 99]).tolist() == [0, 0]
    assert (index.vectors_of([19, 0]) == vectors[[19, 0]]).all()


@pytest.mark.parametrize("gone", [[7], [8], [7, *range(12, 45)]])  # a hit, none, and many, so that rows move
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("asked", ["search", "cosines"])
def test_a_removal_during_a_search_is_noticed(monkeypatch, gone, before, asked):
    vectors = unit(50)
    vectors[8] = -vectors[7]
    index = VectorIndex(DIM)
    index.add(np.arange(50), vectors)
    compare = module._Snapshot.cosines

    def remove_and_then(self, *args):
        monkeypatch.setattr(module._Snapshot, "cosines", compare)
        if before:
            index.remove(gone)
        found = compare(self, *args)
        index.remove(gone)
        return found

    monkeypatch.setattr(module._Snapshot, "cosines", remove_and_then)
    if asked == "search":
        agrees(index, {seq: vectors[seq] for seq in range(50) if seq not in gone}, vectors[7], 5)
    else:
        assert index.cosines(vectors[7], gone).tolist() == [0] * len(gone)


def test_nothing_in_it():
    index = VectorIndex(DIM)
    query = unit(1)[0]
    assert [len(part) for part in index.search(query, 5)] == [0, 0]
    assert [len(part) for part in index.search(query, 5, np.array([1, 2]))] == [0, 0]
    assert index.vectors_of([1]).shape == (1, DIM)
    index.add([], np.empty((0, DIM), np.float32))
    index.remove([4])
    assert (len(index), index.exact) == (0, True)
    index.add([1], unit(1))
    assert [len(part) for part in index.search(query, 0)] == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.add([5], unit(1)), "increase strictly"),
        (lambda index: index.add([7, 7], unit(2)), "increase strictly"),
        (lambda index: index.add([7], unit(2)), "shape"),
        (lambda index: index.add([7], 2 * unit(1)), "length 1"),
        (lambda index: index.add([7], np.full((1, DIM), np.nan)), "length 1"),
        (lambda index: index.search(np.zeros(DIM + 1), 3), "finite numbers"),
        (lambda index: index.search(np.full(DIM, np.inf), 3), "finite numbers"),
        (lambda _: VectorIndex(0), "at least 1"),
    ],
)
def test_what_cannot_be(call, message):
    index = VectorIndex(DIM)
    index.add([5], unit(1))
    with pytest.raises(ValueError, match=message):
        call(index)
    assert len(index) == 1


def test_without_faiss_every_vector_is_compared(monkeypatch):
    monkeypatch.setattr(module, "_faiss", lambda: None)
    index = VectorIndex(DIM, coded_from=32)
    index.add(np.arange(100), unit(100))
    index.wait()
    assert index.exact
    agrees(index, dict(enumerate(unit(100))), unit(1, seed=4)[0], 10)


@pytest.mark.parametrize("coded_from", [100_000, 800])
def test_readers_beside_a_writer(coded_from):
    vectors, queries = unit(6000), unit(8, seed=2)
    index, gone, failures, done = VectorIndex(DIM, coded_from), set(), [], threading.Event()
    index.add(np.arange(1500), vectors[:1500])

    def read(query: np.ndarray) -> None:
        try:
            while not done.is_set():
                before = set(gone)
                seqs, cosines = index.search(query, 10)
                assert len(seqs) == 10
                assert not before & set(seqs.tolist())
                assert np.allclose(cosines, vectors[seqs] @ query, atol=1e-5)
                assert (np.diff(cosines) <= 0).all()
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read, args=(query,)) for query in queries[:4]]
    for reader in readers:
        reader.start()
    random = np.random.default_rng(0)
    for begin in range(1500, 6000, 30):
        index.add(np.arange(begin, begin + 30), vectors[begin : begin + 30])
        chosen = random.choice(begin + 30, 15, replace=False)
        index.remove(chosen)
        gone.update(chosen.tolist())
    done.set()
    for reader in readers:
        reader.join()
    index.close()
    assert not failures
    agrees(index, {seq: vectors[seq] for seq in range(6000) if seq not in gone}, queries[0], 20)
