"""One suite for every backend: what a store promises whoever keeps its items."""

import datetime
import json

import numpy as np
import pytest

from bag import BagEmbedder
from memory_titan import LongTermMemoryConfig, TitansManager
from memory_titan.store import opening
from memory_titan.store.errors import EmbedderMismatchError, StoreError

DOGS = ["my dog is called Bruno", "the cat sleeps all day", "we fly to Lisbon in May", "the budget is ninety thousand"]


def contents(hits):
    return [hit["content"] for hit in hits]


@pytest.fixture(params=["memory", "file", "postgres"])
def opened(request, tmp_path):
    """Opens managers of one empty store; in memory every one is a store of its own."""
    where = {"path": tmp_path / "a.memory"} if request.param == "file" else {}
    if request.param == "postgres":
        where = {"url": request.getfixturevalue("postgres_url"), "name": request.node.nodeid}
    made = []

    def open_one(**options):
        made.append(TitansManager(options.pop("embedder", BagEmbedder()), **where, **options))
        return made[-1]

    open_one.kept = request.param != "memory"
    yield open_one
    for manager in made:
        manager.close()


def test_what_was_added_is_found(opened):
    titans = opened()
    ids = titans.add_documents(DOGS, [{"n": n} for n in range(4)])
    hits = titans.query("what is the dog called", top_k=2)
    assert len(ids) == len(set(ids)) == len(titans) == 4
    assert hits[0]["content"] == DOGS[0] and hits[0]["id"] == ids[0] and hits[0]["metadata"] == {"n": 0}
    assert hits[0]["source"] == "short_term" and hits[0]["score"] >= hits[1]["score"] and hits[0]["why"]


def test_an_empty_store_answers_nothing(opened):
    assert opened().query("anything") == []


def test_one_text_is_one_document(opened):
    titans = opened()
    titans.add_documents("only one", {"a": 1})
    assert contents(titans.query("one")) == ["only one"]
    assert titans.add_documents([]) == []


def test_filters_by_metadata_time_and_memory(opened):
    titans = opened()
    titans.add_documents(DOGS, [{"user": "a"}, {"user": "b"}] * 2, times=[0, 10, 20, 30])
    titans.add_documents("dogs may not enter", {"user": "c"}, "persistent", times=40)
    assert set(contents(titans.query("dog", 9, {"user": "b"}))) == {DOGS[1], DOGS[3]}
    assert set(contents(titans.query("dog", 9, after=10, before=30))) == {DOGS[1], DOGS[2]}
    since = datetime.datetime.fromtimestamp(30, datetime.timezone.utc)
    assert set(contents(titans.query("dog", 9, after=since))) == {DOGS[3], "dogs may not enter"}
    assert contents(titans.query("dog", 9, memory_types=["persistent"])) == ["dogs may not enter"]
    assert titans.query("dog", 9, {"user": "a"}, memory_types=["persistent"]) == []


def test_the_same_id_replaces(opened):
    titans = opened()
    titans.add_documents(["the meeting is on Thursday"], ids=["m"])
    titans.consolidate_memories()
    titans.add_documents(["the meeting is on Friday"], ids=["m"])
    assert len(titans) == 1 and contents(titans.query("meeting", 5)) == ["the meeting is on Friday"]


def test_the_window_holds_the_newest_and_the_rest_is_offered(opened):
    titans = opened(short_term_size=2)
    titans.add_documents(DOGS, memory_type="short_term")
    assert titans.stats()["short_term"]["items"] == 2 and titans.stats()["long_term"]["pending"] == 2
    report = titans.consolidate_memories()
    assert len(report.admitted) == 4
    assert [hit["source"] for hit in titans.query("dog Bruno", 1)] == ["long_term"]
    assert [hit["source"] for hit in titans.query("budget thousand", 1)] == ["short_term"]


def test_the_long_term_memory_keeps_its_size_and_bytes(opened):
    texts = [f"w{n}a w{n}b w{n}c w{n}d" for n in range(200)]
    titans = opened(short_term_size=1, long_term_size=50)
    titans.add_documents(texts)
    titans.consolidate_memories()
    stats = titans.stats()["long_term"]
    assert stats["items"] == 50 and stats["evicted"] == stats["admitted"] - 50 and len(titans) <= 51


def test_a_budget_of_bytes(opened):
    titans = opened(short_term_size=1, long_term_config=LongTermMemoryConfig(max_bytes=500))
    titans.add_documents([f"w{n}a w{n}b w{n}c w{n}d" for n in range(100)])
    titans.consolidate_memories()
    assert 400 < titans.stats()["long_term"]["bytes"] <= 500


def test_what_is_known_is_not_admitted(opened):
    titans = opened(short_term_size=1, long_term_config=LongTermMemoryConfig(surprise_threshold=0.3, forget_rate=0))
    titans.add_documents(["the same again"] * 64)
    titans.add_documents(["the same again"] * 64)
    stats = titans.stats()["long_term"]
    assert stats["offered"] == 128 and stats["admitted"] == 1


def test_the_persistent_memory_is_never_pushed_out(opened):
    titans = opened(short_term_size=1, long_term_size=1, persistent_size=1)
    titans.add_documents("always true", memory_type="persistent")
    titans.add_documents(DOGS)
    titans.consolidate_memories()
    assert contents(titans.query("always true", 1)) == ["always true"]
    with pytest.raises(ValueError, match="1 of 1"):
        titans.add_documents("one more", memory_type="persistent")


def test_forget_by_id_and_by_filter(opened):
    titans = opened()
    ids = titans.add_documents(DOGS, [{"user": "a"}, {"user": "b"}] * 2)
    titans.consolidate_memories()
    assert titans.forget(ids[0]) == 1 and titans.forget([ids[0], "unknown"]) == 0
    assert titans.forget(ids, {"user": "b"}) == 2
    assert contents(titans.query("dog", 9)) == [DOGS[2]]
    assert titans.forget(where={}) == 1 and len(titans) == 0
    with pytest.raises(ValueError, match="say what to forget"):
        titans.forget()


def test_the_weights_forget_too(opened):
    """After forgetting, the weights are those of a store that never held it."""
    titans = opened(embedder=BagEmbedder())
    ids = titans.add_documents(DOGS)
    titans.consolidate_memories()
    vector = titans.embedder.encode([DOGS[0]])[0]
    knew = titans.long_term.recall(vector) @ vector
    titans.forget(ids[0])
    without = TitansManager(BagEmbedder())
    without.add_documents(DOGS[1:])
    without.consolidate_memories()
    np.testing.assert_allclose(titans.long_term.recall(vector), without.long_term.recall(vector), atol=1e-6)
    assert titans.long_term.recall(vector) @ vector < 0.5 * knew


def test_it_opens_as_it_was_closed(opened):
    if not opened.kept:
        pytest.skip("in memory")
    titans = opened()
    ids = titans.add_documents(DOGS, [{"n": [n, None]} for n in range(4)], times="2026-05-04T10:00:00", session="s")
    titans.consolidate_memories()
    titans.add_documents(["not consolidated yet"])
    hits, vector = titans.query("dog"), titans.embedder.encode(["dog"])[0]
    recalled, stats = titans.long_term.recall(vector), titans.stats()
    titans.close()
    again = opened()
    assert [h["id"] for h in again.query("dog")] == [h["id"] for h in hits]
    np.testing.assert_allclose(again.long_term.recall(vector), recalled, atol=1e-6)
    assert again.get(ids) == [{**again.get([name])[0]} for name in ids]
    assert again.get(ids[:1])[0]["created"] == "2026-05-04T10:00:00+00:00" and again.get(ids[:1])[0]["session"] == "s"
    assert {**again.stats(), "file_bytes": 0} == {**stats, "file_bytes": 0}


def test_sizes_and_configuration_are_kept(opened):
    """Who opens a large store without saying how large must not make it forget."""
    if not opened.kept:
        pytest.skip("in memory")
    config = LongTermMemoryConfig(forget_rate=0.3, max_bytes=777)
    opened(short_term_size=3, long_term_size=4000, long_term_config=config).close()
    again = opened(persistent_size=9)
    assert (again.short_term.size, again.long_term.size, again.persistent.size) == (3, 4000, 9)
    assert again.config == config


def test_another_model_is_refused(opened):
    if not opened.kept:
        pytest.skip("in memory")
    opened().close()
    with pytest.raises(EmbedderMismatchError, match=r"bag-64-0.*bag-64-1"):
        opened(embedder=BagEmbedder(salt=1))
    with pytest.raises(EmbedderMismatchError, match=r"64 wide.*32 wide"):
        opened(embedder=BagEmbedder(dim=32))


def test_words_indexed_by_other_rules_are_told(opened, monkeypatch):
    if not opened.kept:
        pytest.skip("in memory")
    opened().close()
    opened().close()  # without a word: warnings are errors here
    monkeypatch.setattr(opening, "rules", lambda: "others-1")
    with pytest.warns(UserWarning, match=r"indexed by other rules .*others-1"):
        opened()


def test_a_newer_statement_stands_before_the_one_it_replaces(opened):
    titans = opened()
    said = {"speaker": "Ann"}
    (old,) = titans.add_documents(["the next meeting of the board is on Thursday"], [said], times=1)
    (new,) = titans.add_documents(["the next meeting of the board is on Friday now"], [said], times=2)
    titans.add_documents(DOGS, times=3)
    first, second = titans.query("when does the board have its next meeting", 2)
    assert (first["id"], second["id"]) == (new, old)
    assert first["replaces"] == [old] and second["replaced_by"] == new and first["replaced_by"] is None
    assert titans.query("when does the board have its next meeting", 1)[0]["id"] == new


def test_what_says_the_same_is_one_hit(opened):
    titans = opened()
    ids = titans.add_documents(["The dog is called Bruno!", "the dog is called bruno", "the dog is called Rex"])
    hits = titans.query("what is the dog called", 5)
    assert {frozenset([hit["id"], *hit["duplicates"]]) for hit in hits} == {frozenset(ids[:2]), frozenset(ids[2:])}


def test_export_and_import(opened, tmp_path):
    titans = opened()
    ids = titans.add_documents(DOGS, [{"n": n} for n in range(4)], times=[1, 2, 3, 4.5])
    titans.add_documents("always", memory_type="persistent")
    assert titans.export(tmp_path / "dump.jsonl") == 5
    other = TitansManager(BagEmbedder())
    with open(tmp_path / "dump.jsonl") as file:
        assert other.import_items(map(json.loads, file)) == 5
    assert other.get(ids) == titans.get(ids)
    assert other.stats()["persistent"]["items"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"documents": ["a"], "metadata": [{}, {}]}, "1 documents and 2 metadata"),
        ({"documents": ["a", "b"], "ids": ["x", "x"]}, "the same id"),
        ({"documents": ["a", " "]}, "document 1 is empty"),
        ({"documents": ["a\ud800"]}, "lone surrogate"),
        ({"documents": ["a"], "memory_type": "medium"}, "memory_type"),
        ({"documents": ["a"], "metadata": [{"x": float("nan")}]}, "x"),
        ({"documents": ["a"], "times": "yesterday"}, "ISO 8601"),
    ],
)
def test_bad_documents_say_what_is_wrong(call, message):
    titans = TitansManager(BagEmbedder())
    with pytest.raises(ValueError, match=message):
        titans.add_documents(**call)
    assert len(titans) == 0


def test_an_error_on_the_way_leaves_nothing(opened):
    titans = opened()
    titans.add_documents(DOGS)
    before = titans.long_term.recall(titans.embedder.encode(["dog"])[0])

    def half():
        with titans._writing():
            titans.add_documents(["half done"] * 70)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert len(titans) == 4 and "half done" not in contents(titans.query("half done", 9))
    np.testing.assert_allclose(titans.long_term.recall(titans.embedder.encode(["dog"])[0]), before, atol=1e-6)


def test_a_closed_store_says_so(opened):
    titans = opened()
    titans.close()
    with pytest.raises(StoreError, match="closed"):
        titans.add_documents("x")


@pytest.mark.parametrize("architecture", ["mac", "mag", "mal"])
def test_architectures_find_what_is_there(opened, architecture):
    titans = opened(architecture=architecture, short_term_size=2)
    titans.add_documents("rule: be polite", memory_type="persistent")
    titans.add_documents(DOGS)
    titans.consolidate_memories()
    for text in DOGS:
        assert contents(titans.query(text, 1)) == [text]


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="mac, mag, mal"):
        TitansManager(BagEmbedder(), architecture="mix")
    with pytest.raises(ValueError, match="vector_dim is 3"):
        TitansManager(BagEmbedder(), vector_dim=3)
