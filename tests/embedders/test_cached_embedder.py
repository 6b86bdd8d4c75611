"""The cache of embeddings: once each, none after discard, in memory and in a file."""

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from memory_titan.embedders import BaseEmbedder, CachedEmbedder, CallableEmbedder


class Counting(BaseEmbedder):
    name = "counting"

    def __init__(self):
        self.asked, self.discarded = [], []

    def embed(self, texts):
        self.asked += texts
        return [[len(text) + 1, 1] for text in texts]

    def discard(self, texts):
        self.discarded += texts


def test_each_text_is_embedded_once():
    inner = Counting()
    cached = CachedEmbedder(inner)
    assert cached.name == "counting"
    rows = cached.encode(["a", "bb", "a"])
    np.testing.assert_allclose(rows, inner.encode(["a", "bb", "a"]), atol=1e-6)
    inner.asked.clear()
    cached.encode(["bb", "ccc"])
    cached.encode_query("a")  # the same as the text, for an embedder that knows no queries
    assert inner.asked == ["ccc"]
    rows[:] = 0  # what is given out is a copy
    assert cached.encode(["a"]).any()


def test_queries_are_apart_where_the_embedder_tells_them_apart():
    queries = []

    def ask(text):
        queries.append(text)
        return [0, 1]

    cached = CachedEmbedder(CallableEmbedder(lambda texts: [[1, 0]] * len(texts), query=ask))
    for _ in range(2):
        assert cached.encode(["a"]).tolist() == [[1, 0]] and cached.encode_query("a").tolist() == [0, 1]
    assert queries == ["a"]
    cached.discard(["a"])
    assert len(cached) == 0


def test_the_longest_unused_goes_first():
    inner = Counting()
    cached = CachedEmbedder(inner, size=2)
    cached.encode(["a"])
    cached.encode(["b"])
    cached.encode(["a"])
    cached.encode(["c"])
    assert len(cached) == 2
    inner.asked.clear()
    cached.encode(["a", "c", "b"])
    assert inner.asked == ["b"]
    assert cached.encode(["u", "v", "w"]).shape == (3, 2)  # more at once than it keeps
    with pytest.raises(ValueError, match="at least one"):
        CachedEmbedder(inner, size=0)


def test_many_threads_embed_each_text_once():
    class Slow(Counting):
        def embed(self, texts):
            time.sleep(0.002)  # so that the other threads come for the same texts meanwhile
            return super().embed(texts)

    inner = Slow()
    cached = CachedEmbedder(inner)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: cached.encode([f"t{(k + i) % 20}" for i in range(5)]), range(200)))
    assert sorted(inner.asked) == sorted(f"t{k}" for k in range(20))


def test_discard_waits_for_what_is_being_embedded():
    begun, go_on = threading.Event(), threading.Event()

    def slow(texts):
        begun.set()
        assert go_on.wait(10)
        return [[1]] * len(texts)

    cached = CachedEmbedder(slow)
    with ThreadPoolExecutor(2) as pool:
        pool.submit(cached.encode, ["secret"])
        assert begun.wait(10)
        forgotten = pool.submit(cached.discard, ["secret"])
        go_on.set()
        forgotten.result(10)
    assert len(cached) == 0


def test_a_file_keeps_vectors_and_no_text(tmp_path):
    path = tmp_path / "cache.db"
    first = CachedEmbedder(Counting(), path=path)
    rows = first.encode(["a plain secret", "other"])
    first.close()
    assert first.encode(["other"]).shape == (1, 2)  # from memory still
    inner = Counting()
    second = CachedEmbedder(inner, size=1, path=path)
    assert np.array_equal(second.encode(["a plain secret", "other"]), rows) and not inner.asked
    assert b"secret" not in path.read_bytes()
    vector = rows[0].tobytes()
    assert vector in path.read_bytes()
    second.discard(["a plain secret"])
    assert inner.discarded == ["a plain secret"]
    assert vector not in path.read_bytes()
    second.encode(["a plain secret"])
    assert inner.asked == ["a plain secret"]
    second.close()


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path):
    CachedEmbedder(Counting(), path=tmp_path / "cache.db").close()
    with pytest.raises(ValueError, match=r"holds the vectors of counting, not of .*lambda"):
        CachedEmbedder(lambda texts: texts, path=tmp_path / "cache.db")
    (tmp_path / "notes.txt").write_text("no database at all, " * 100)
    with pytest.raises(ValueError, match="not a database"):
        CachedEmbedder(Counting(), path=tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="cannot be the cache"):
        CachedEmbedder(Counting(), path=tmp_path / "no" / "folder.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE model (x)")
    other.commit()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(ValueError, match="another program's"):
        CachedEmbedder(Counting(), path=tmp_path / "other.db")
    assert (tmp_path / "other.db").read_bytes() == before
    other.close()
