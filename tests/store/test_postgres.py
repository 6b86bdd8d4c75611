"""The store in PostgreSQL: what the suite of all stores (test_manager.py) does not ask."""

import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bag import BagEmbedder
from memory_titan import TitansManager
from memory_titan.store import long_term
from memory_titan.store.errors import StoreError, StoreFileError, StoreLockedError, StoreReadOnlyError
from memory_titan.store.item import LONG, SHORT, Item
from memory_titan.store.sessions import SessionIndex
from memory_titan.store.terms import term_ids
from memory_titan.store.where import matches
from memory_titan.store.words import WordIndex

psycopg = pytest.importorskip("psycopg")
postgres = pytest.importorskip("memory_titan.store.postgres")
postgres_link = pytest.importorskip("memory_titan.store.postgres_link")
search = postgres.postgres_search

DIM = 16
EVIL = ["'; DROP TABLE memory_titan.items; --", '"', "\\", "%s", "%", "{}", "x$1", "é😀", "a'b\"c;--", "\t\n"]


@pytest.fixture
def backend(postgres_url):
    """Opens backends; without a name, of a new store."""
    made = []

    def open_one(name=None, dim=DIM, **options):
        made.append(postgres.PostgresBackend(postgres_url, name or uuid.uuid4().hex, **options))
        made[-1].open_indexes(dim)
        return made[-1]

    yield open_one
    for one in made:
        one.close()


def unit(rng, count, dim=DIM):
    x = rng.standard_normal((count, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def item(name, vector, metadata=None, terms=(), content="text", places=SHORT):
    return Item(name, content, metadata or {}, 0.0, None, vector, np.array(terms, np.uint32), places)


def fill(backend, vectors, metadatas=None, terms=None):
    metadatas, terms = metadatas or [{}] * len(vectors), terms or [()] * len(vectors)
    items = [item(f"i{n}", *row) for n, row in enumerate(zip(vectors, metadatas, terms, strict=True))]
    with backend.transaction():
        backend.add(items)
    return np.array([i.seq for i in items])


def by_comparing(vectors, seqs, query, k):
    cosines = vectors @ query
    order = np.lexsort((-seqs, -cosines))[:k]
    return seqs[order], cosines[order]


# -- vectors


def test_the_nearest_with_their_cosines_newer_first(backend):
    store, rng = backend(), np.random.default_rng(0)
    vectors = unit(rng, 300)
    vectors[200:205] = vectors[7]
    seqs = fill(store, vectors)
    for allowed in (None, seqs[::3], seqs[7:8], seqs[:0]):
        rows = np.arange(300) if allowed is None else np.searchsorted(seqs, allowed)
        found, cosines = store.dense(vectors[7], 20, allowed)
        expected, right = by_comparing(vectors[rows], seqs[rows], vectors[7], 20)
        assert found.tolist() == expected.tolist() and cosines.dtype == np.float32
        np.testing.assert_allclose(cosines, right, atol=1e-6)
    assert store.dense(vectors[7], 6)[0].tolist() == [*seqs[204:199:-1], seqs[7]]
    np.testing.assert_array_equal(store.vectors_of(seqs[[3, 1]]), vectors[[3, 1]])
    assert store.vectors_of(np.array([10**6])).tolist() == [[0.0] * DIM]


@pytest.fixture
def indexed(backend, monkeypatch):
    """A store with an index over 2000 vectors, one in a hundred near nothing that is asked for."""
    monkeypatch.setattr(search, "INDEXED_FROM", 1000)
    monkeypatch.setattr(search, "EXACT", 10)
    store, rng = backend(), np.random.default_rng(1)
    vectors = unit(rng, 2000)
    seqs = fill(store, vectors)
    store._builder.join()
    store.refresh()
    assert store._graph
    return store, vectors, seqs


def test_an_index_finds_what_a_filter_lets_through(indexed, monkeypatch):
    store, vectors, seqs = indexed
    query, allowed = vectors[0], seqs[50::100]
    with store._reading() as db:
        found, _ = search.by_graph(db, store._store, query, 20, allowed)
        assert found.tolist() == by_comparing(vectors[50::100], allowed, query, 20)[0].tolist()
        monkeypatch.setattr(search, "ITERATIVE", "off")
        assert len(search.by_graph(db, store._store, query, 20, allowed)[0]) < 20
    assert store.dense(query, 20, allowed)[0].tolist() == found.tolist()  # then all are compared


def test_an_index_is_used_and_gives_what_comparing_gives(indexed):
    store, vectors, seqs = indexed
    with store._reading() as db:
        search.by_graph(db, store._store, vectors[0], 20, None)
        db.execute("SELECT pg_stat_force_next_flush()")
        name = search.graph_name(store._store, DIM)
        scans = db.execute("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s", (name,)).fetchone()
        assert scans[0] > 0
    right = 0
    for query in vectors[:20]:
        found, cosines = store.dense(query, 20)
        expected, _ = by_comparing(vectors, seqs, query, 20)
        right += len(np.intersect1d(found, expected))
        assert found[0] == expected[0] and (np.diff(cosines) <= 0).all()
    assert right >= 0.98 * 400
    with store.transaction():
        store.delete(seqs[:1].tolist())
    assert seqs[0] not in store.dense(vectors[0], 20)[0]


# -- words


def test_words_score_as_in_memory(backend):
    store, rng, index = backend(), np.random.default_rng(2), WordIndex()
    other = backend()  # with words of its own, which do not count
    texts = [(2**32 - 1 - rng.zipf(1.5, rng.integers(0, 30)).clip(1, 50)).astype(np.uint32) for _ in range(200)]
    seqs = fill(store, unit(rng, 200), terms=texts)
    fill(other, unit(rng, 50), terms=texts[:50])
    index.add(seqs, texts)
    for gone in (seqs[:0], seqs[10:60]):
        with store.transaction():
            store.delete(gone.tolist())
        index.remove(gone)
        for allowed in (None, seqs[::2]):
            for _ in range(10):
                query = 2**32 - 1 - rng.integers(1, 52, 4)
                query[3] = query[0]  # twice
                found, scores = store.lexical(query.astype(np.uint32), 500, allowed)
                expected, right = index.search(query, 500, allowed)
                np.testing.assert_allclose(scores, right, rtol=1e-5)
                by_seq = dict(zip(expected.tolist(), right, strict=True))
                np.testing.assert_allclose([by_seq[seq] for seq in found.tolist()], scores, rtol=1e-5)
        query, some = 2**32 - 1 - np.arange(60)[::-1], np.append(seqs[::-3], [10**6, seqs[0]])
        words = store.words_of(query, some)
        np.testing.assert_allclose(words.counts, index.counts(query, some), rtol=1e-6)
        assert words.lengths.tolist() == index.lengths(some).tolist()
        assert words.frequencies.tolist() == index.df(query).tolist()
        assert words.items == len(index) and words.mean_length == index.mean_length
    nothing = store.words_of(query[:0], seqs[:0])
    assert nothing.counts.shape == (0, 0) and store.words_of(query, seqs[:0]).counts.shape == (60, 0)
    assert store.check() == [] and store.lexical(np.zeros(0, np.uint32), 5)[0].tolist() == []


def test_equal_texts_score_equally_newer_first(backend):
    store = backend()
    terms = term_ids("one two three four five six seven")
    seqs = fill(store, unit(np.random.default_rng(0), 40), terms=[np.roll(terms, n) for n in range(40)])
    assert store.lexical(terms, 10)[0].tolist() == seqs[:-11:-1].tolist()


# -- sessions


def test_items_stand_in_their_sessions_as_in_memory(backend):
    store, rng, index = backend(), np.random.default_rng(3), SessionIndex()
    names = [None, "", "monday", "long " * 2000, EVIL[0]]
    batches = [[names[n] for n in rng.integers(0, 5, size)] for size in (1, 40, 1, 30)]
    for sessions in ([batches[0]], batches[1:]):  # the others in one transaction
        with store.transaction():
            for part in sessions:
                items = [item(uuid.uuid4().hex, unit(rng, 1)[0]) for _ in part]
                for one, name in zip(items, part, strict=True):
                    one.session, one.speaker = name, rng.choice(["Ann", "Bob", None])
                expected = {name: index.next_position(name) for name in part}
                store.add(items)
                stand = [(i.session, i.position, i.speaker) for i in items]
                index.add(np.array([i.seq for i in items]), *zip(*stand, strict=True))
                assert all(i.position >= expected[i.session] for i in items)
    seqs = store.select()
    assert [(i.session, i.speaker) for i in store.get(seqs[-30:])] == [(name, s) for name, _, s in stand]
    for gone in (seqs[:0], seqs[20:40]):
        with store.transaction():
            store.delete(gone.tolist())
        index.remove(gone)
        for radius in (0, 1, 3):
            for some in (seqs[:0], seqs[:1], seqs[:20:7], np.array([5, 60, 10**6])):
                assert store.around(some, radius).tolist() == index.around(some, radius).tolist()
    some = np.append(np.setdiff1d(seqs, gone)[::-1], 10**6)
    mine, right = store.places(some), index.of(some)
    assert mine.position.tolist() == right.position.tolist() and mine.session[-1] == -1
    assert len(set(zip(mine.session, right.session, strict=True))) == len(set(mine.session)) == 5
    assert (mine.session[:-1] >= 0).all() and mine.named("what did Bob say").sum() == right.named("bob").sum() > 0
    assert store.places(seqs[:0]).session.tolist() == []


def test_it_answers_as_sqlite_does(postgres_url):
    rng = np.random.default_rng(4)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "kmnprt"]
    speakers = ["Ann", "Bob Hill", "Çelik"]

    def text(size):
        return " ".join(words[n] for n in np.minimum(rng.zipf(1.3, size), len(words)) - 1)

    metadatas = [
        {"user": int(rng.integers(4)), **({"speaker": speakers[n % 3]} if rng.random() < 0.5 else {})}
        for n in range(600)
    ]
    texts = [("Dora: " if rng.random() < 0.2 else "") + text(rng.integers(3, 25)) for _ in range(600)]
    sessions = [[None, "a", "b", "c"][n] for n in rng.integers(0, 4, 600)]
    queries = [f"{text(4)} {name}" for name in ("", "Ann", "hill", "dora", "celik") for _ in range(6)]
    for architecture in ("mac", "mag"):
        options = {"architecture": architecture, "short_term_size": 200}
        stores = [
            TitansManager(BagEmbedder(), **options),
            TitansManager(BagEmbedder(), url=postgres_url, name=uuid.uuid4().hex, **options),
        ]
        for store in stores:
            ids = [f"i{n}" for n in range(600)]
            store.add_documents(texts, metadatas, ids=ids, session=sessions, times=list(range(600)))
            store.forget(ids[350:400])
        assert len(stores[0]) == len(stores[1]) <= 550
        for n, query in enumerate(queries):
            filters = [{}, {"where": {"user": n % 4}}, {"after": 100, "memory_types": ["long_term"]}]
            left, right = (store.query(query, 10, **filters[n % 3]) for store in stores)
            assert [hit["id"] for hit in left] == [hit["id"] for hit in right] and left
            for a, b in zip(left, right, strict=True):
                assert a["score"] == pytest.approx(b["score"], abs=1e-4) and a["source"] == b["source"]
                assert a["why"] == pytest.approx(b["why"], abs=2e-4) and a["duplicates"] == b["duplicates"]
        for store in stores:
            store.close()


def test_a_query_asks_the_server_a_few_times(postgres_url, monkeypatch):
    with TitansManager(BagEmbedder(), url=postgres_url, name=uuid.uuid4().hex) as titans:
        titans.add_documents([f"word{n % 7} name{n}" for n in range(100)])
        asked, execute = [], psycopg.Connection.execute
        monkeypatch.setattr(psycopg.Connection, "execute", lambda *a, **k: asked.append(a[1]) or execute(*a, **k))
        assert titans.query("word3 name24", where={"a": {"$exists": False}})
    assert len(asked[: asked.index("BEGIN")]) <= 12  # the last is close()


# -- one database, many stores

VALUES = st.sampled_from([*EVIL, "a", "b", 1, 1.5, True, None])
CONDITION = st.dictionaries(
    st.sampled_from(["u", "v", *EVIL]),
    VALUES
    | st.fixed_dictionaries({"$ne": VALUES})
    | st.fixed_dictionaries({"$in": st.lists(VALUES, max_size=2)})
    | st.fixed_dictionaries({"$nin": st.lists(VALUES, max_size=2)})
    | st.fixed_dictionaries({"$exists": st.booleans()})
    | st.fixed_dictionaries({"$contains": st.sampled_from(["", "a", *EVIL])}),
    max_size=2,
)
WHERE = st.recursive(
    CONDITION,
    lambda inner: (
        st.fixed_dictionaries({"$not": inner}) | st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=2)})
    ),
    max_leaves=3,
)


@pytest.fixture(scope="module")
def neighbours(postgres_url):
    """Two stores alike but for one field, and what is in the first."""
    metadatas = [{"u": value, key: "a"} for value in ["a", "b", 1, None, *EVIL] for key in ("v", EVIL[0])]
    vectors, stores = unit(np.random.default_rng(0), len(metadatas)), []
    for which in ("first", "second'; --"):
        stores.append(postgres.PostgresBackend(postgres_url, which))
        stores[-1].open_indexes(DIM)
        fill(stores[-1], vectors, [{**m, "store": which} for m in metadatas], [term_ids("dog")] * len(metadatas))
    yield *stores, vectors
    for store in stores:
        store.close()


@settings(max_examples=60)
@given(where=WHERE, places=st.sampled_from([None, SHORT, LONG, SHORT | LONG]))
def test_no_filter_reaches_another_store(neighbours, where, places):
    first, _, vectors = neighbours
    everything = first.get(first.select())
    allowed = first.select(where, places)
    assert {i.metadata["store"] for i in everything} == {"first"} and len(everything) == len(vectors)
    held = [i.seq for i in everything if matches(where, i.metadata) and (places is None or i.places & places)]
    assert allowed.tolist() == held
    for seqs, _ in (first.dense(vectors[0], 99, allowed), first.lexical(term_ids("dog"), 99, allowed)):
        assert sorted(seqs.tolist()) == held


def test_no_call_reaches_another_store(backend):
    vectors = unit(np.random.default_rng(0), 3)
    one, two = backend(), backend()
    mine, theirs = fill(one, vectors, terms=[term_ids("dog")] * 3), fill(two, vectors[:2], terms=[term_ids("dog")] * 2)
    assert mine[0] == theirs[0] == 1  # every store counts its own
    with one.transaction():
        one.set_meta("m", 1)
        one.set_blob("b", b"1")
        one.append_log(0, vectors)
        one.update([(int(mine[0]), LONG, 0.5, 2.0)])
        one.count_use({int(mine[0]): 3}, 1.0)
        one.delete(mine[1:].tolist())
    assert (two.meta("m"), two.blob("b"), two.log(0)[0]) == (None, None, [])
    assert [(i.places, i.surprise, i.used) for i in two.get(theirs)] == [(SHORT, None, 0)] * 2
    assert (
        two.count() == two.count(SHORT) == 2
        and len(two.dense(vectors[0], 9)[0]) == len(two.lexical(term_ids("dog"), 9)[0]) == 2
    )
    assert one.seqs_of(["i0", "i1"]) == {"i0": 1} and two.check() == one.check() == []
    assert (two.vectors_of(theirs) == vectors[:2]).all() and one.file_bytes < two.file_bytes
    with two.transaction():
        two.clear_log()
        two.set_blob("b", None)
    assert len(one.log(0)[0]) == 3 and one.blob("b") == b"1"


def test_any_text_comes_back_as_it_went(postgres_url):
    for name in EVIL:
        with TitansManager(BagEmbedder(), url=postgres_url, name=f"evil {name}") as titans:
            metadata = {name: [name, {name: 1e16}], "x": -0.0, "y": 1.0, "z": 1e308, "n": 2**63 - 1}
            titans.add_documents(f"a dog {name}", metadata, ids=[name], session=name)
            (held,) = titans.get([name])
            assert held["content"] == f"a dog {name}" and held["session"] == name
            assert repr(held["metadata"]) == repr(metadata)
            assert [hit["id"] for hit in titans.query(name + " dog", where={name: {"$exists": True}})] == [name]
            assert titans.forget(name) == 1 and titans.check() == []
    with TitansManager(BagEmbedder(), url=postgres_url, name="nul") as titans:
        with pytest.raises(ValueError, match="NUL"):
            titans.add_documents(["fine", "not\0fine"])
        with pytest.raises(StoreError, match="2000 bytes"):
            titans.add_documents("fine", ids=["i" * 2001])
        assert len(titans) == 0 and titans.get(["unknown"]) == []


# -- many writers

WRITER = """
import sys
from bag import BagEmbedder
from memory_titan import TitansManager
with TitansManager(BagEmbedder(), url=sys.argv[1], name=sys.argv[2], short_term_size=20) as titans:
    for n in range(0, 120, 10):
        ids = [f"{sys.argv[3]}-{n + i}" for i in range(10)]
        titans.add_documents([f"{name} word{n}" for name in ids], ids=ids)
"""


def weights(manager):
    manager.long_term.recall(np.eye(64, dtype=np.float32)[0])  # catches up
    return [manager.long_term.neural.written, *manager.long_term.neural.weights]


def same(left, right):
    assert left[0] == right[0]
    for a, b in zip(left[1:], right[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_processes_and_threads_write_at_once(postgres_url, monkeypatch):
    monkeypatch.setattr(long_term, "CHECKPOINT", 64)  # so that one process's checkpoint overtakes another's log
    folder, name = Path(__file__).parents[1], uuid.uuid4().hex
    paths = os.pathsep.join([str(folder), str(folder.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    other = subprocess.Popen([sys.executable, "-c", WRITER, postgres_url, name, "process"], env=environment)
    titans = TitansManager(BagEmbedder(), url=postgres_url, name=name, short_term_size=20)
    twin = TitansManager(BagEmbedder(), url=postgres_url, name=name, short_term_size=20)
    failed = []

    def write(manager, who):
        try:
            for n in range(0, 60, 5):
                ids = [f"{who}-{n + i}" for i in range(5)]
                manager.add_documents([f"{name} word{n}" for name in ids], ids=ids)
                assert [hit["id"] for hit in manager.query(f"{ids[0]} word{n}", 1, {})]
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(m, f"w{n}")) for n, m in enumerate([titans, titans, twin])]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert other.wait(60) == 0 and not failed
    acknowledged = {f"w{w}-{n}" for w in range(3) for n in range(60)} | {f"process-{n}" for n in range(120)}
    assert {i.id for i in titans.backend.get(titans.backend.select())} == acknowledged
    titans.consolidate_memories()
    assert titans.backend.check() == [] and titans.stats()["long_term"]["admitted"] == 300 == weights(titans)[0]
    # The log says what was written in which order; who reads it from the start has the same weights.
    with TitansManager(BagEmbedder(), url=postgres_url, name=name) as fresh:
        same(weights(titans), weights(fresh))
        same(weights(twin), weights(fresh))
        twin.forget("w0-0")
        same(weights(titans), weights(twin))
        assert weights(fresh)[0] == 299
    titans.close()
    twin.close()


def test_who_lags_behind_a_checkpoint_catches_up_before_writing(postgres_url, monkeypatch):
    monkeypatch.setattr(long_term, "CHECKPOINT", 64)
    name = uuid.uuid4().hex
    one, two = (TitansManager(BagEmbedder(), url=postgres_url, name=name) for _ in range(2))
    one.add_documents([f"a{n} b{n}" for n in range(64)])
    assert one.backend.log(0)[0] == []  # covered
    two.add_documents([f"c{n} d{n}" for n in range(64)])
    alone = TitansManager(BagEmbedder())
    alone.add_documents([f"a{n} b{n}" for n in range(64)])
    alone.add_documents([f"c{n} d{n}" for n in range(64)])
    same(weights(one), weights(alone))
    same(weights(two), weights(alone))
    one.close()
    two.close()


def test_a_writer_waits_for_another_and_readers_for_nobody(backend, monkeypatch):
    name = uuid.uuid4().hex
    one, vectors = backend(name), unit(np.random.default_rng(0), 2)
    monkeypatch.setattr(postgres_link, "WRITER_PATIENCE", "100ms")
    two = backend(name)
    with one.transaction():
        one.add([item("a", vectors[0])])
        with pytest.raises(StoreLockedError, match="another process"), two.transaction():
            pass
        assert two.count() == 0 and len(two.dense(vectors[0], 1)[0]) == 0
        assert one.count() == 1 and one.exclusive
    assert two.count() == 1 and not one.exclusive
    with two.transaction():
        two.add([item("b", vectors[1])])
    assert two.select().tolist() == [1, 2]


# -- what goes wrong


def test_an_error_that_was_swallowed_does_not_commit_half(backend):
    store, vectors = backend(), unit(np.random.default_rng(0), 2)

    def swallow():
        with store.transaction():
            store.add([item("a", vectors[0])])
            with pytest.raises(psycopg.errors.UniqueViolation):
                store.add([item("a", vectors[1])])

    with pytest.raises(StoreError, match="nothing of it was kept"):
        swallow()
    assert store.count() == 0
    fill(store, vectors)
    assert store.count() == 2 and store.check() == []


def test_a_lost_connection_loses_one_call_whole(backend, postgres_url):
    store, vectors = backend(), unit(np.random.default_rng(0), 2)

    def lose():
        with psycopg.connect(postgres_url, autocommit=True) as admin, store.transaction():
            store.add([item("a", vectors[0])])
            admin.execute("SELECT pg_terminate_backend(%s)", (store._db.info.backend_pid,))
            store.add([item("b", vectors[1])])

    with pytest.raises(StoreError, match="nothing of this call was kept"):
        lose()
    assert store.count() == 0
    fill(store, vectors)
    assert store.count() == 2


def test_a_password_is_never_shown():
    for url, said in {
        "postgresql://me:s3cret@127.0.0.1:1/db": "127.0.0.1:1",
        "postgresql://me:s3cret@nowhere.invalid/db": "nowhere.invalid",
        "postgresql://me:x@s3cret@host/db": "%40",
        "postgresql://me:12/s3cret@host/db": "",
        "postgresql://me:s3/cret@host/db": "%2F",
        "postgresql://me:s3?cret@host/db": "",
    }.items():
        with pytest.raises(StoreError) as caught:
            postgres.PostgresBackend(url, "x")
        assert said in str(caught.value)
        assert not {"s3", "cret"} & set(str(caught.value).replace("@", " ").replace("/", " ").split()), caught.value
        assert "s3cret" not in str(caught.value) and caught.value.__suppress_context__


@pytest.fixture
def database(postgres_url):
    """Makes a database of its own in the same server."""
    made = []
    with psycopg.connect(postgres_url, autocommit=True) as admin:

        def make(pgvector=True):
            made.append(f"d{uuid.uuid4().hex}")
            admin.execute(f"CREATE DATABASE {made[-1]}")
            url = postgres_url.replace("/postgres?", f"/{made[-1]}?")
            with psycopg.connect(url, autocommit=True) as db:
                if pgvector:  # wherever the administrator has put it
                    db.execute("CREATE SCHEMA elsewhere")
                    db.execute("CREATE EXTENSION vector SCHEMA elsewhere")
            return url

        yield make
        for name in made:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_that_cannot_hold_stores_says_why(database):
    with pytest.raises(StoreError, match="CREATE EXTENSION vector"):
        postgres.PostgresBackend(database(pgvector=False), "x")
    url = database()
    with pytest.raises(StoreFileError, match="no memory-titan store"):
        postgres.PostgresBackend(url, "x", read_only=True)
    postgres.PostgresBackend(url, "x").close()
    with pytest.raises(StoreFileError, match="no store 'y'"):
        postgres.PostgresBackend(url, "y", read_only=True)
    with pytest.raises(ValueError, match="1 to 200 characters"):
        postgres.PostgresBackend(url, "y" * 201)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE memory_titan.version SET version = 99")
    with pytest.raises(StoreFileError, match="version 99"):
        postgres.PostgresBackend(url, "x")


def test_two_may_be_first(database):
    url, opened, failed = database(), [], []

    def open_one(n):
        try:
            opened.append(TitansManager(BagEmbedder(), url=url, name=f"s{n % 2}"))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=open_one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(opened) == 6
    opened[0].add_documents("the dog")
    assert sum(len(each) for each in opened) == 3
    for each in opened:
        each.close()


def test_who_may_only_read_does_not_write(database):
    url = database()
    with TitansManager(BagEmbedder(), url=url) as titans:
        titans.add_documents(["the dog is called Bruno"])
        titans.consolidate_memories()
        reader = TitansManager(BagEmbedder(), url=url, read_only=True)
        assert reader.query("dog", 1)[0]["content"] == "the dog is called Bruno"
        titans.add_documents(["the cat is called Mia"])
        assert reader.query("cat", 1)[0]["content"] == "the cat is called Mia"
        with pytest.raises(StoreReadOnlyError, match="opened for reading"):
            reader.add_documents("x")
        with reader.backend._reading() as db, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            db.execute("DELETE FROM items")
        with pytest.raises(StoreError, match=r"pg_dump.*export"):
            reader.backup("x")
        reader.close()
    with psycopg.connect(url, autocommit=True) as db:
        role = f"r{uuid.uuid4().hex}"
        db.execute(f"CREATE ROLE {role} LOGIN")
        db.execute(f"GRANT USAGE ON SCHEMA memory_titan, elsewhere TO {role}")
        db.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA memory_titan TO {role}")
    limited = url.replace("postgres:@", f"{role}@")
    with TitansManager(BagEmbedder(), url=limited, read_only=True) as reader:
        assert len(reader.query("dog")) == 2
    with pytest.raises(StoreReadOnlyError, match="read_only=True"):
        TitansManager(BagEmbedder(), url=limited)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"DROP OWNED BY {role}")
        db.execute(f"DROP ROLE {role}")


def test_check_finds_what_is_missing(backend):
    store, vectors = backend(), unit(np.random.default_rng(0), 3)
    seqs = fill(store, vectors, terms=[term_ids("my dog barks")] * 3)
    assert store.check() == []
    with store.transaction():
        store._db.execute("DELETE FROM vectors_16 WHERE store = %s AND seq = %s", (store._store, int(seqs[0])))
        store._db.execute("DELETE FROM postings WHERE store = %s AND seq = %s", (store._store, int(seqs[1])))
        store._db.execute("DELETE FROM items WHERE store = %s AND seq = %s", (store._store, int(seqs[2])))
    found = " ".join(store.check())
    assert "1 items without a vector" in found and "1 vectors without an item" in found and "sums" in found
    assert "words without an item" in found and "1 items with other words" in found


def test_what_is_forgotten_is_vacuumed_what_is_replaced_when_it_is_much(database, monkeypatch):
    url, texts = database(), [f"text {n}" for n in range(40)]

    def vacuums():
        with psycopg.connect(url) as db:
            return db.execute(
                "SELECT vacuum_count FROM pg_stat_all_tables WHERE relid = 'memory_titan.postings'::regclass"
            ).fetchone()[0]

    with TitansManager(BagEmbedder(), url=url) as titans:
        for _ in range(2):
            titans.add_documents(texts, ids=texts)
        assert vacuums() == 0
        assert titans.forget(texts[:1]) == 1 and vacuums() == 1
        monkeypatch.setattr(postgres.postgres_upkeep, "DEAD", 10)
        titans.add_documents(texts, ids=texts)
        with titans.backend._reading() as db:  # the writer's own connection: what it counted reaches the server
            db.execute("SELECT pg_stat_force_next_flush()")
        titans.add_documents(texts[:1], ids=texts[:1])
        assert vacuums() == 2
