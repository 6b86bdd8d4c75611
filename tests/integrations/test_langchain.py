"""LangChain's own suite for vector stores, whole, and what it does not ask."""

import builtins
import importlib
import re
import sys
import threading
import zlib

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from memory_titan import TitansManager
from memory_titan.integrations.keeping import EVERYTHING, losing
from memory_titan.integrations.langchain import TitansVectorStore

TEXTS = ["my dog is called Bruno", "the cat sleeps all day", "we fly to Lisbon in May", "the budget is ninety thousand"]


class Words(Embeddings):
    """The sum of a fixed random vector for every word; a query's words count double, to tell the two apart."""

    def embed_documents(self, texts):
        return [self.embed(text) for text in texts]

    def embed_query(self, text):
        return [2 * x for x in self.embed(text)]

    def embed(self, text):
        rows = [np.random.default_rng(zlib.crc32(w.encode())).standard_normal(32) for w in re.findall(r"\w+", text)]
        return sum(rows, np.zeros(32)).tolist()


def texts(documents):
    return [document.page_content for document in documents]


class TestTitansVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture(params=["memory", "file"])
    def vectorstore(self, request, tmp_path):
        where = {"path": tmp_path / "a.memory"} if request.param == "file" else {}
        store = TitansVectorStore.create(self.get_embeddings(), **where)
        yield store
        store.manager.close()


@pytest.fixture
def store():
    made = TitansVectorStore.from_texts(
        TEXTS, Words(), [{"n": n, "odd": bool(n % 2)} for n in range(4)], ids=list("abcd")
    )
    yield made
    made.manager.close()


def test_searches_filter_and_score(store):
    assert texts(store.similarity_search("the cat", k=1)) == [TEXTS[1]]
    assert {d.id for d in store.similarity_search("the cat", k=4, filter={"odd": True})} == {"b", "d"}
    assert texts(store.similarity_search("dog", k=2, filter={"n": {"$gte": 3}})) == [TEXTS[3]]
    scored = store.similarity_search_with_score("dog Bruno", k=4)
    assert scored[0][0] == Document(id="a", page_content=TEXTS[0], metadata={"n": 0, "odd": False})
    assert [score for _, score in scored] == sorted((score for _, score in scored), reverse=True)
    relevant = store.similarity_search_with_relevance_scores("dog Bruno", k=4, score_threshold=scored[0][1])
    assert [d.id for d, _ in relevant] == [d.id for d, _ in scored[:1]]
    with pytest.raises(ValueError, match="a filter is an object"):
        store.similarity_search("dog", filter=lambda document: True)


def test_a_search_by_vector_is_exact(store):
    query = np.random.default_rng(0).standard_normal(32)
    found = store.similarity_search_with_score_by_vector(query.tolist(), k=3, filter={"n": {"$lt": 3}})
    vectors = np.array(Words().embed_documents(TEXTS[:3]))
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    assert texts(d for d, _ in found) == [TEXTS[n] for n in np.argsort(-cosines)]
    np.testing.assert_allclose([score for _, score in found], np.sort(cosines)[::-1], atol=1e-6)
    assert store.similarity_search_by_vector(query.tolist(), k=3, filter={"n": {"$lt": 3}}) == [d for d, _ in found]
    with pytest.raises(ValueError, match="1 rows of 32 numbers"):
        store.similarity_search_by_vector([1.0, 2.0])


def test_maximal_marginal_relevance_avoids_twins(store):
    store.add_texts(["my dog is called Bruno too"], ids=["twin"])
    query = "my dog is called Bruno"
    assert [d.id for d in store.similarity_search_by_vector(Words().embed_query(query), k=2)] == ["a", "twin"]
    assert [d.id for d in store.max_marginal_relevance_search(query, k=2, lambda_mult=1.0)] == ["a", "twin"]
    diverse = store.max_marginal_relevance_search(query, k=2, lambda_mult=0.3)
    assert diverse[0].id == "a" and diverse[1].id != "twin"
    by_vector = store.max_marginal_relevance_search_by_vector(Words().embed_query(query), k=2, lambda_mult=0.3)
    assert by_vector == diverse
    assert store.max_marginal_relevance_search(query, filter={"n": 9}) == []
    retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "lambda_mult": 0.3})
    assert retriever.invoke(query) == diverse


async def test_the_async_twins_say_the_same(store):
    vector = Words().embed_query("dog")
    assert await store.asimilarity_search_with_score("dog") == store.similarity_search_with_score("dog")
    assert await store.asimilarity_search_by_vector(vector) == store.similarity_search_by_vector(vector)
    assert await store.amax_marginal_relevance_search("dog") == store.max_marginal_relevance_search("dog")
    assert await store.as_retriever(search_kwargs={"k": 1}).ainvoke("a dog") == store.similarity_search("a dog", 1)
    other = await TitansVectorStore.afrom_texts(["x"], Words(), ids=["i"], path=None)
    assert texts(await other.aget_by_ids(["i"])) == ["x"]


def test_nothing_is_lost():
    """Ten times what the short-term memory holds, all the same to the neural memory, and all is there."""
    store = TitansVectorStore.create(Words(), short_term_size=30)
    ids = store.add_texts(["the same again"] * 300, [{"n": n} for n in range(300)])
    report = store.manager.consolidate_memories()
    assert not report.rejected and not report.evicted
    assert [d.metadata["n"] for d in store.get_by_ids(ids)] == list(range(300))
    assert len(store.similarity_search("the same again", k=300)) == 300
    assert losing(store.manager) is None


def test_a_manager_of_default_options_may_lose():
    assert "surprise_threshold is 0.05" in losing(TitansManager(Words()))
    assert "long_term_size is 7" in losing(TitansVectorStore.create(Words(), long_term_size=7).manager)
    assert TitansVectorStore(TitansManager(Words())).manager.long_term.size < EVERYTHING


def test_merged_hits_are_documents_of_their_own(store, monkeypatch):
    hits = store.manager.query("cat", 4)
    merged = [{**hits[0], "duplicates": [hits[2]["id"], "gone"]}, hits[1]]
    monkeypatch.setattr(store.manager, "query", lambda *_: merged)
    assert [d.id for d in store.similarity_search("cat", 4)] == [hits[place]["id"] for place in (0, 2, 1)]
    assert [d.id for d in store.similarity_search("cat", 2)] == [hits[0]["id"], hits[2]["id"]]


def test_delete_by_filter_and_everything(store):
    assert store.delete(where={"odd": True}) and {d.id for d in store.similarity_search("x")} == {"a", "c"}
    assert store.delete([]) and len(store.manager) == 2
    assert store.delete() and len(store.manager) == 0


def test_it_opens_again(tmp_path):
    store = TitansVectorStore.from_texts(TEXTS, Words(), ids=list("abcd"), path=tmp_path / "a.memory")
    before = store.similarity_search("cat")
    store.manager.close()
    again = TitansVectorStore.create(Words(), path=tmp_path / "a.memory")
    assert again.similarity_search("cat") == before
    again.manager.close()


def test_langchains_indexing_works(store):
    records = InMemoryRecordManager("test")
    records.create_schema()
    documents = [Document(page_content=text, metadata={"source": "s"}) for text in ("one", "two")]
    assert index(documents, records, store, cleanup="full", key_encoder="sha256")["num_added"] == 2
    report = index(documents[:1], records, store, cleanup="full", key_encoder="sha256")
    assert (report["num_skipped"], report["num_deleted"]) == (1, 1)
    assert texts(store.similarity_search("one", filter={"source": "s"})) == ["one"]


def test_the_embeddings_are_langchains(store):
    assert isinstance(store.embeddings, Words)
    ours = TitansVectorStore(store.manager).embeddings
    np.testing.assert_allclose(np.linalg.norm(ours.embed_documents(TEXTS), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(ours.embed_query("dog"), ours.embed_documents(["dog"])[0], atol=1e-6)


def test_many_threads_may_use_it(store):
    errors = []

    def work(worker):
        try:
            for n in range(10):
                store.add_texts([f"worker {worker} says {n}"], [{"worker": worker}], ids=[f"{worker}-{n}"])
                assert store.similarity_search("says", k=1, filter={"worker": worker})
                store.delete([f"{worker}-{n - 1}"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(store.manager) == 4 + 4


@pytest.mark.parametrize(("module", "package"), [("langchain", "langchain_core"), ("langgraph", "langgraph")])
def test_a_missing_package_names_its_extra(module, package, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **options)

    monkeypatch.delitem(sys.modules, f"memory_titan.integrations.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"pip install 'memory-titan\[{module}\]'"):
        importlib.import_module(f"memory_titan.integrations.{module}")
