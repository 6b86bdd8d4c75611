"""Forgetting is a promise: nothing of what was forgotten is left in any file."""

import numpy as np
import pytest

from bag import BagEmbedder
from memory_titan import TitansManager
from memory_titan.embedders import CachedEmbedder
from memory_titan.store.errors import StoreError
from memory_titan.store.terms import pack, term_ids

SECRET = "Xylophia Quarrington lives in Zzyzx and her number is 987123654"


def left(folder, titans_embedder, secret=SECRET):
    """Which traces of the secret the bytes of the folder's files hold."""
    vector = titans_embedder.encode([secret])[0]
    traces = {
        "text": secret.encode(),
        "a word": b"Quarrington",
        "lower case": b"quarrington",
        "vector": vector[:4].tobytes(),
        "terms": pack(term_ids(secret))[:12],
        "metadata": b"secret-tag",
        "id": b"secret-id",
    }
    data = b"".join(file.read_bytes() for file in sorted(folder.iterdir()))
    return {name for name, trace in traces.items() if trace in data}


def filled(path, **options):
    titans = TitansManager(BagEmbedder(), path=path, **options)
    titans.add_documents([f"something else number {n}" for n in range(30)])
    titans.add_documents(SECRET, {"tag": "secret-tag"}, ids=["secret-id"])
    titans.add_documents([f"more of it number {n}" for n in range(300)])
    return titans


def test_nothing_is_left_in_the_files(tmp_path):
    titans = filled(tmp_path / "a.memory")
    titans.consolidate_memories()
    assert len(left(tmp_path, titans.embedder)) >= 6  # the test can see it
    titans.forget("secret-id")
    assert left(tmp_path, titans.embedder) == set()
    titans.close()
    assert left(tmp_path, titans.embedder) == set()


def test_nor_before_it_was_consolidated_nor_when_it_is_replaced(tmp_path):
    titans = filled(tmp_path / "a.memory")
    titans.add_documents("nothing to see", ids=["secret-id"])
    assert left(tmp_path, titans.embedder) == {"id"}
    titans.close()


def test_nor_after_the_memory_itself_let_it_go(tmp_path):
    titans = filled(tmp_path / "a.memory", short_term_size=4, long_term_size=16)
    titans.consolidate_memories()
    if titans.get(["secret-id"]):
        titans.forget("secret-id")
    titans.close()
    assert left(tmp_path, titans.embedder) == set()


def test_nor_in_the_embedders_cache(tmp_path):
    (tmp_path / "cache").mkdir()
    embedder = CachedEmbedder(BagEmbedder(), path=tmp_path / "cache" / "embeddings")
    titans = TitansManager(embedder, path=tmp_path / "a.memory")
    titans.add_documents(SECRET, ids=["secret-id"])
    vector = embedder.encode([SECRET])[0][:4].tobytes()
    assert any(vector in file.read_bytes() for file in (tmp_path / "cache").iterdir())
    titans.forget("secret-id")
    assert not any(vector in file.read_bytes() for file in (tmp_path / "cache").iterdir())
    titans.close()


def test_what_the_memory_lets_go_leaves_the_cache_too(tmp_path):
    embedder = CachedEmbedder(BagEmbedder())
    titans = TitansManager(embedder, short_term_size=4, long_term_size=16)
    texts = [f"Ann: text number {n} of word{n}" for n in range(200)]
    held = {item["content"] for item in titans.get(titans.add_documents(texts))}
    calls = embedder.embedder.calls
    embedder.encode([text.removeprefix("Ann: ") for text in texts if text in held][-4:])
    assert len(held) < 100 and embedder.embedder.calls == calls
    embedder.encode([text.removeprefix("Ann: ") for text in texts if text not in held][:1])
    assert embedder.embedder.calls == calls + 1


def test_a_reader_in_the_way_is_told_of(tmp_path):
    """A reader's open snapshot keeps old pages in use: forget says so, and erase() finishes the work later."""
    titans = filled(tmp_path / "a.memory")
    titans.backend.erase()
    reader = TitansManager(BagEmbedder(), path=tmp_path / "a.memory", read_only=True)
    titans.add_documents("so that there is a log")
    reader.backend._db.execute("BEGIN")
    reader.backend._db.execute("SELECT COUNT(*) FROM items").fetchone()
    titans.backend.erasing = 0.2
    with pytest.raises(StoreError, match="another process is reading"):
        titans.forget("secret-id")
    assert titans.get(["secret-id"]) == []
    reader.backend._db.execute("COMMIT")
    titans.erase()
    assert left(tmp_path, titans.embedder) == set()
    assert reader.query(SECRET, 1)[0]["id"] != "secret-id"
    reader.close()
    titans.close()


def test_the_weights_hold_nothing_of_it(tmp_path):
    """The checkpoint in the file is, to the bit, that of a store that never held the secret."""
    one, two = filled(tmp_path / "a.memory"), TitansManager(BagEmbedder(), path=tmp_path / "b.memory")
    two.add_documents([f"something else number {n}" for n in range(30)])
    two.add_documents([f"more of it number {n}" for n in range(300)])
    for titans in (one, two):
        titans.consolidate_memories()
    assert not np.allclose(one.long_term.neural.weights[0], two.long_term.neural.weights[0], atol=1e-6)
    one.forget("secret-id")
    one.query("anything")
    for x, y in zip(one.long_term.neural.weights, two.long_term.neural.weights, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    one.close()
    two.close()
