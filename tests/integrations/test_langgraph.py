"""TitansStore beside LangGraph's own store in memory: the same operations, the same answers."""

import asyncio
import json
import operator
import threading
from typing import Annotated, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

from memory_titan import LongTermMemoryConfig, TitansManager
from memory_titan.integrations.filters import check_filter, matches_filter
from memory_titan.integrations.langgraph import TitansStore
from test_langchain import Words

NOTES = ("notes", "u1")


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    made = TitansStore.create(Words(), **({"path": tmp_path / "a.memory"} if request.param == "file" else {}))
    yield made
    made.manager.close()


def keys(items):
    return [item.key for item in items]


LABELS = st.sampled_from(["a", "ab", "b", "*", 'a", "b', "a.b", "é\0\ud800", ""])
NAMESPACES = st.lists(LABELS, max_size=3).map(tuple)
KEYS = st.sampled_from(["k", "k#0", "k]", "\0"])
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([1.0, "", "red", "x\0\ud800"])
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner)
)
VALUES = st.fixed_dictionaries(
    {"n": st.integers(-2, 2) | st.sampled_from([0.5, "1"])}, optional={"x": NESTED, "$y": SCALARS}
)
INDEXES = st.none() | st.just(False) | st.lists(st.sampled_from(["$", "n", "x", "x[*]", "x.a"]), max_size=2)
ORDERS = st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte", "$eq", "$ne"]), st.integers(-2, 2), min_size=1)
FILTERS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "n": ORDERS | SCALARS,
        "x": NESTED | st.dictionaries(st.sampled_from(["$eq", "$ne"]), NESTED, min_size=1),
    },
)
CONDITIONS = st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), NAMESPACES)


def ops_of(kind, **fields):
    """Operations with these fields and no others; `st.builds` would think some up."""
    return st.fixed_dictionaries(fields).map(lambda given: kind(**given))


PUTS = ops_of(PutOp, namespace=NAMESPACES, key=KEYS, value=VALUES, index=INDEXES)
OPS = st.one_of(
    PUTS,
    PUTS,
    ops_of(PutOp, namespace=NAMESPACES, key=KEYS, value=st.none()),
    ops_of(GetOp, namespace=NAMESPACES, key=KEYS),
    ops_of(SearchOp, namespace_prefix=NAMESPACES, filter=FILTERS, limit=st.integers(0, 4), offset=st.integers(0, 2)),
    ops_of(SearchOp, namespace_prefix=NAMESPACES, filter=FILTERS, limit=st.just(99)),
    ops_of(
        ListNamespacesOp,
        match_conditions=st.lists(CONDITIONS, max_size=2).map(tuple),
        max_depth=st.none() | st.integers(1, 3),
        limit=st.integers(0, 9),
        offset=st.integers(0, 2),
    ),
)


class Reference:
    """InMemoryStore, but what was put last comes first, and a namespace that holds nothing is none."""

    def __init__(self):
        self.store, self.last, self.puts = InMemoryStore(), {}, 0

    def batch(self, ops):
        for namespace in [namespace for namespace, held in self.store._data.items() if not held]:
            del self.store._data[namespace]
        whole = [op._replace(limit=10**6, offset=0) if isinstance(op, SearchOp) else op for op in ops]
        # a get makes a namespace there, so one by one: reads, then puts
        results = [None if isinstance(op, PutOp) else self.read(op) for op in whole]
        for number, op in enumerate(ops):
            if isinstance(op, SearchOp):
                found = sorted(results[number], key=lambda item: -self.last[item.namespace, item.key])
                results[number] = found[op.offset : op.offset + op.limit]
        puts = [op for op in ops if isinstance(op, PutOp)]
        self.store.batch(puts)
        for op in puts:
            self.puts += 1
            self.last[op.namespace, op.key] = self.puts
        return results

    def read(self, op):
        result = self.store.batch([op])[0]
        for namespace in [namespace for namespace, held in self.store._data.items() if not held]:
            del self.store._data[namespace]
        return result


def plain(result):
    if isinstance(result, list):
        return [plain(one) for one in result]
    return result if result is None or isinstance(result, tuple) else (result.namespace, result.key, result.value)


@settings(max_examples=60)
@given(st.lists(st.lists(OPS, min_size=1, max_size=4), max_size=12))
def test_it_agrees_with_the_store_in_memory(batches):
    reference = Reference()
    ours = TitansStore.create(Words(), short_term_size=2)
    for ops in batches:
        expected = reference.batch(ops)
        assert plain(ours.batch(ops)) == plain(expected)
    held = sum(map(len, reference.store._data.values()))
    assert len(ours.manager.backend.select({"langgraph": "record"})) == held
    for (item,) in ours.manager.backend.select({"langgraph": "text"}).reshape(-1, 1):
        text = ours.manager.backend.get([item])[0]
        assert ours._records([text.metadata["of"]])[text.metadata["of"]].metadata["texts"] > text.metadata["place"]
    ours.manager.close()


def test_a_value_comes_back_as_it_was_put(store):
    value = {"b": [1, 2.5, None, True, {"c": "é\0\ud800"}], "a": {}}
    store.put(NOTES, "k", value)
    item = store.get(NOTES, "k")
    assert item.value == value and list(item.value) == ["b", "a"]
    assert (item.namespace, item.key) == (NOTES, "k") and store.get(NOTES, "other") is None
    store.put(NOTES, "k", {"new": 1})
    again = store.get(NOTES, "k")
    assert again.value == {"new": 1}
    assert again.created_at == item.created_at == item.updated_at < again.updated_at
    store.delete(NOTES, "k")
    assert store.get(NOTES, "k") is None and len(store.manager) == 0


def test_a_prefix_is_labels_not_characters(store):
    for namespace in (("a",), ("ab",), ("a", "b"), ('a", "b',)):
        store.put(namespace, "k", {"n": len(namespace)})
    assert {item.namespace for item in store.search(("a",))} == {("a",), ("a", "b")}
    assert {item.namespace for item in store.search(("a",), query="n")} == {("a",), ("a", "b")}
    assert store.list_namespaces(prefix=("a",)) == [("a",), ("a", "b")]
    assert store.list_namespaces(suffix=("b",)) == [("a", "b")]
    assert store.list_namespaces(prefix=("*", "b"), max_depth=1) == [("a",)]


def test_a_query_finds_and_filters(store):
    store.put(NOTES, "dog", {"text": "the dog is called Bruno", "kind": "pet"})
    store.put(NOTES, "cat", {"text": "the cat sleeps all day", "kind": "pet"})
    store.put(NOTES, "trip", {"text": "we fly to Lisbon", "kind": "plan"})
    store.put(("notes", "u2"), "dog", {"text": "the dog is called Rex", "kind": "pet"})
    found = store.search(NOTES, query="what is the dog called", limit=2)
    assert found[0].key == "dog" and found[0].namespace == NOTES and found[0].score >= found[1].score
    assert keys(store.search(NOTES, query="dog", filter={"kind": "plan"})) == ["trip"]
    assert {item.namespace[1] for item in store.search(("notes",), query="dog called", limit=2)} == {"u1", "u2"}
    whole = keys(store.search(NOTES, query="dog"))
    assert [keys(store.search(NOTES, query="dog", limit=1, offset=n)) for n in range(4)] == [[k] for k in whole] + [[]]


def test_only_the_fields_are_searched(store):
    store.fields = ["title", "parts[*].text"]
    parts = [{"text": "apples and pears"}, {"text": "cars and trains"}, {"text": "  "}]
    store.put(NOTES, "both", {"title": "a list", "parts": parts, "hidden": "zebra"})
    store.put(NOTES, "fruit", {"title": "fruit", "parts": [{"text": "plums"}]})
    store.put(NOTES, "own", {"title": "zebra", "other": "stripes"}, index=["other"])
    store.put(NOTES, "none", {"title": "zebra zebra"}, index=False)
    for query in ("apples and pears", "cars and trains"):
        assert keys(store.search(NOTES, query=query))[0] == "both"
    scores = {item.key: item.score for item in store.search(NOTES, query="zebra stripes")}
    assert max(scores, key=lambda key: scores[key] or -1) == "own" and scores["none"] is None
    assert set(scores) == {"both", "fruit", "own", "none"}
    store.put(NOTES, "both", {"title": "a list", "parts": parts[:1]})
    assert len(store.manager) == 4 + 2 + 2 + 1
    store.put(NOTES, "fruit", {"title": "cars and trains"}, index=False)
    found = store.search(NOTES, query="cars and trains")
    assert found[-1].key in ("fruit", "none") and {item.key for item in found if item.score is None} == {
        "fruit",
        "none",
    }


def test_a_text_is_embedded_once_and_what_is_not_searched_not_at_all():
    asked = []

    class Counting(Words):
        def embed_documents(self, texts):
            asked.extend(texts)
            return super().embed_documents(texts)

    store = TitansStore.create(Counting())
    asked.clear()
    store.put(NOTES, "a", {"text": "whole"})
    store.put(NOTES, "b", {"text": "one field", "n": 1}, index=["text"])
    store.put(NOTES, "c", {"text": "never"}, index=False)
    assert asked == ['{"text": "whole"}', "one field"]


def test_many_texts_of_few_values_leave_nobody_out(store):
    store.fields = ["parts[*]"]
    store.put(NOTES, "long", {"parts": [f"dog number {n}" for n in range(300)]})
    store.put(NOTES, "short", {"parts": ["cat"]})
    assert keys(store.search(NOTES, query="dog number", limit=2)) == ["long", "short"]
    assert None not in [item.score for item in store.search(NOTES, query="dog number", limit=2)]


def test_texts_of_a_value_replaced_meanwhile_do_not_count(store, monkeypatch):
    store.fields = ["parts[*]"]
    store.put(NOTES, "k", {"parts": ["cat", "dog"]})
    monkeypatch.setattr(store.manager, "forget", lambda _: 0)  # as if the process died there
    store.put(NOTES, "k", {"parts": ["cat"]})
    store.put(NOTES, "other", {"parts": ["my dog"]})
    assert len(store.manager) == 5  # two records, three texts
    assert keys(store.search(NOTES, query="dog")) == ["other", "k"]


def test_nothing_is_lost():
    store = TitansStore.create(Words(), short_term_size=10)
    store.batch([PutOp(NOTES, str(n), {"text": "the same again"}) for n in range(600)])
    report = store.manager.consolidate_memories()
    assert not report.rejected and not report.evicted
    assert len(store.search(NOTES, limit=1000)) == len(store.search(NOTES, query="same", limit=1000)) == 600


def test_it_opens_again(tmp_path):
    store = TitansStore.create(Words(), path=tmp_path / "a.memory")
    store.put(NOTES, "k", {"text": "the dog"})
    before = store.search(NOTES, query="dog")
    store.manager.close()
    again = TitansStore.create(Words(), path=tmp_path / "a.memory")
    assert again.search(NOTES, query="dog") == before
    assert again.get(NOTES, "k").value == {"text": "the dog"}
    again.manager.close()


def test_it_stands_beside_other_items(store):
    store.manager.add_documents(["the dog barks"], {"langgraph": "no"})
    store.put(NOTES, "k", {"text": "a cat"})
    assert keys(store.search((), query="dog")) == ["k"] and store.list_namespaces() == [NOTES]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "surprise_threshold is 0.05"),
        ({"long_term_config": LongTermMemoryConfig(surprise_threshold=0)}, "long_term_size is 2048"),
        ({"long_term_config": LongTermMemoryConfig(surprise_threshold=0, max_bytes=9)}, "max_bytes is 9"),
    ],
)
def test_a_manager_that_forgets_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TitansStore(TitansManager(Words(), **options))


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (PutOp(("a",), "k", {"x": object()}), "the value of 'k' is no JSON object"),
        (PutOp(("a",), "k", {"x": {1: 2}}), "names are strings, not 1"),
        (PutOp(("a", 1), "k", {}), "tuple of strings.*got 1"),
        (SearchOp(("a",), {"x": {"$near": 1}}), r"'\$near' is no operator"),
        (SearchOp(("a",), ["x"]), "a filter is an object"),
        (SearchOp(("a",), limit=-1), "must not be negative"),
        ("get", "not str"),
    ],
)
def test_bad_operations_say_what_is_wrong(store, op, message):
    with pytest.raises(ValueError, match=message):
        store.batch([PutOp(("a",), "other", {}), op])
    assert len(store.manager) == 0


VALUE = {
    "n": 2,
    "s": "1.5",
    "list": [1, {"a": 2, "b": 3}],
    "object": {"a": {"b": 1, "c": 2}},
    "none": None,
    "yes": True,
}


@pytest.mark.parametrize(
    "wanted",
    [
        {"n": 2, "none": None},
        {"n": 2.0, "missing": None},
        {"yes": 1},
        {"list": [1]},
        {"list": [1, {"a": 2}]},
        {"list": ({"$gt": 0}, {"a": {"$ne": 3}})},
        {"object": {"a": {"b": 1}}},
        {"object": {"a": {"b": 2}}},
        {"object": {"a": {"b": {"$lte": 1}}}},
        {"n": {"$gt": 1, "$lt": 2}},
        {"n": {"$gte": "2", "$eq": 2}},
        {"s": {"$gt": 1}},
        {"object": {"$ne": {}}},
        {"missing": {"$ne": 1}},
        {"missing": {}},
        {"object": {}},
    ],
)
def test_filters_mean_what_they_mean_in_memory(wanted):
    other = InMemoryStore()
    other.put(NOTES, "k", VALUE)
    check_filter(wanted)
    assert matches_filter(VALUE, wanted) == bool(other.search(NOTES, filter=wanted))


def test_of_two_puts_to_one_key_the_last_counts(store):
    store.batch([PutOp(NOTES, "a", {"n": 1}), PutOp(NOTES, "b", {"n": 2}), PutOp(NOTES, "a", {"n": 3})])
    assert [(item.key, item.value["n"]) for item in store.search(NOTES)] == [("a", 3), ("b", 2)]


def test_what_is_no_number_has_no_order(store):
    for key, value in {"one": 1, "text": "x", "none": None, "list": [1]}.items():
        store.put(NOTES, key, {"n": value})
    assert keys(store.search(NOTES, filter={"n": {"$gt": 0}})) == ["one"]


def test_langgraphs_own_rules_hold(store):
    with pytest.raises(NotImplementedError, match="TTL"):
        store.put(NOTES, "k", {}, ttl=5)
    with pytest.raises(NotImplementedError, match="ttl=None"):
        store.batch([PutOp(NOTES, "k", {}, ttl=5)])
    with pytest.raises(InvalidNamespaceError):
        store.put(("a.b",), "k", {})


async def test_the_async_twins(store):
    await asyncio.gather(*(store.aput(NOTES, str(n), {"text": f"note {n}"}) for n in range(5)))
    assert (await store.aget(NOTES, "3")).value == {"text": "note 3"}
    assert len(await store.asearch(NOTES, query="note")) == 5
    await store.adelete(NOTES, "3")
    assert await store.aget(NOTES, "3") is None and await store.alist_namespaces() == [NOTES]


def test_many_threads_may_use_it(store):
    errors = []

    def work(worker):
        try:
            for n in range(10):
                store.put(("w", str(worker)), "k", {"n": n, "parts": ["dog"] * (n % 3)}, index=["parts[*]"])
                assert store.get(("w", str(worker)), "k").value["n"] == n
                store.search(("w",), query="dog")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(store.manager) == 4  # 9 % 3 texts: none


class State(TypedDict):
    said: str
    heard: Annotated[list, operator.add]


def test_a_graph_remembers_in_it(tmp_path):
    """Two runs of a graph, in two openings of the file: the second knows what was said in the first."""

    def remember(state: State, *, store: BaseStore):
        found = store.search(NOTES, query=state["said"], limit=1)
        store.put(NOTES, str(len(store.search(NOTES, limit=99))), {"text": state["said"]})
        return {"heard": [json.dumps(item.value["text"]) for item in found]}

    def run(said):
        store = TitansStore.create(Words(), path=tmp_path / "graph.memory", fields=["text"])
        graph = StateGraph(State)
        graph.add_node("remember", remember)
        graph.add_edge(START, "remember")
        graph.add_edge("remember", END)
        heard = graph.compile(store=store).invoke({"said": said, "heard": []})["heard"]
        store.manager.close()
        return heard

    assert run("the dog is called Bruno") == []
    assert run("we fly to Lisbon") == ['"the dog is called Bruno"']
    assert run("what is the dog called") == ['"the dog is called Bruno"']
