"""`TitansVectorStore`: a `TitansManager` as a LangChain vector store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from memory_titan.embedders import BaseEmbedder
from memory_titan.integrations.keeping import keeping
from memory_titan.store.documents import Time
from memory_titan.store.item import MemoryType, Vector
from memory_titan.store.manager import TitansManager

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ImportError as error:
    raise ImportError(f"this needs LangChain ({error}): pip install 'memory-titan[langchain]'") from error

Where = dict[str, Any]
Scored = list[tuple[Document, float]]


class TitansVectorStore(VectorStore):
    """A LangChain vector store over a `TitansManager`.

        store = TitansVectorStore.create(embeddings, path="agent.memory")
        store.add_texts(["My sister's dog is called Bruno."], [{"user": "u1"}])
        store.similarity_search("What is the name of the dog?", k=3, filter={"user": "u1"})

    Searches by text are the manager's: by words as well as vectors, in the light of what its neural memory recalls.
    Those by vector, and maximal marginal relevance, compare embeddings only. `filter` is a manager's `where`
    (`memory_titan/store/where.py`). Each method has its asynchronous twin, which runs in a thread.

    A document is kept as it is: its text is not empty, its metadata a JSON object.

    Args:
        manager: what holds the documents. One of default options forgets: it does not admit what hardly surprises it,
            and evicts the least when it is full. `create` makes one that does not.
    """

    def __init__(self, manager: TitansManager) -> None:
        self.manager = manager
        self._embeddings: Embeddings = _Embeddings(manager.embedder)

    @classmethod
    def create(cls, embedding: Embeddings | BaseEmbedder | Any, **options: Any) -> TitansVectorStore:
        """A store over a new manager, or one opened by its `path` or `url`, which keeps all that is added.

        Args:
            embedding: LangChain's embeddings, or what else `as_embedder` takes.
            options: of `TitansManager`. `long_term_size` and `long_term_config` are by default such that nothing is
                rejected or evicted; only `delete` removes.
        """
        store = cls(TitansManager(embedding, **keeping(**options)))
        if isinstance(embedding, Embeddings):
            store._embeddings = embedding
        return store

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> TitansVectorStore:
        """`create`, and add texts."""
        store = cls.create(embedding, **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @property
    def embeddings(self) -> Embeddings:
        """What embeds, as LangChain sees it."""
        return self._embeddings

    # -- adding and removing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        memory_type: MemoryType = "all",
        times: Sequence[Time] | Time | None = None,
        session: str | Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, or replace those of the same ids; `add_documents` comes here too.

        Args:
            texts: not empty.
            metadatas: a JSON object for each.
            ids: one each; None: a new one.
            memory_type, times, session: see `TitansManager.add_documents`.
            kwargs: what LangChain passes to any store; passed over.

        Returns:
            their ids.

        Raises:
            ValueError: see `TitansManager.add_documents`.
        """
        given = list(texts)
        names = None if not ids else [uuid.uuid4().hex if name is None else name for name in ids]
        return self.manager.add_documents(
            given, metadatas or None, memory_type, ids=names, times=times, session=session
        )

    def delete(self, ids: Sequence[str] | None = None, *, where: Where | None = None, **kwargs: Any) -> bool:
        """Forget documents for good, see `TitansManager.forget`: those with these ids, or all that a filter lets pass.

        With neither, everything the manager holds, as LangChain has it. Unknown ids are passed over. Always True.
        """
        self.manager.forget(None if ids is None else list(ids), {} if ids is None and where is None else where)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids that are there, in this order."""
        return [_document(record) for record in self.manager.get(ids)]

    # -- searching by text

    def similarity_search(self, query: str, k: int = 4, filter: Where | None = None, **kwargs: Any) -> list[Document]:
        """The k documents that answer a query best, the best first."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Where | None = None, **kwargs: Any
    ) -> Scored:
        """The same with the manager's scores, 0 to 1, higher is better; comparable within one query.

        Documents that the manager merges into one hit, as they say the same, follow one another with the hit's score.
        """
        hits = self.manager.query(query, k, filter)
        merged = self.manager.get([name for hit in hits for name in hit["duplicates"]])
        twins = {record["id"]: record for record in merged}
        found: Scored = []
        for hit in hits:
            alike: list[Mapping[str, Any]] = [hit, *(twins[name] for name in hit["duplicates"] if name in twins)]
            found += [(_document(record), hit["score"]) for record in alike]
        return found[:k]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """The scores are between 0 and 1 already, but for what rounding adds and cosines below zero."""
        return lambda score: min(1.0, max(0.0, score))

    # -- searching by vector

    def similarity_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Where | None = None, **kwargs: Any
    ) -> list[Document]:
        """The k documents nearest to an embedding `[dim]`, the nearest first."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter)]

    def similarity_search_with_score_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Where | None = None, **kwargs: Any
    ) -> Scored:
        """The same with their cosines, -1 to 1."""
        return [(_document(hit), hit["score"]) for hit in self.manager.query_vector(embedding, k, filter)]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """k of the `fetch_k` documents nearest to a query's embedding, near to it and far from each other.

        `lambda_mult`: 1 minds only the one, 0 only the other (Carbonell and Goldstein, "The Use of MMR", 1998).
        """
        vector = self.manager.embedder.encode_query(query)
        return self._marginal(vector, k, fetch_k, lambda_mult, filter)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """The same for an embedding `[dim]`."""
        return self._marginal(np.asarray(embedding, np.float32), k, fetch_k, lambda_mult, filter)

    def _marginal(
        self, vector: Vector, k: int, fetch_k: int, lambda_mult: float, filter: Where | None
    ) -> list[Document]:
        if k < 1:
            raise ValueError(f"k must be at least 1; got {k}")
        near = self.manager.query_vector(vector, max(k, fetch_k), filter)
        backend = self.manager.backend
        seqs = backend.seqs_of([hit["id"] for hit in near])
        items = {item.id: item for item in backend.get(list(seqs.values()), full=True)}
        hits = [hit for hit in near if hit["id"] in items]  # without what was deleted meanwhile
        if not hits:
            return []
        vectors = [items[hit["id"]].vector.tolist() for hit in hits]
        chosen = maximal_marginal_relevance(vector, vectors, lambda_mult, k)
        return [_document(hits[place]) for place in chosen]


class _Embeddings(Embeddings):
    """An embedder of ours, for LangChain."""

    def __init__(self, embedder: BaseEmbedder) -> None:
        self.embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(x) for x in row] for row in self.embedder.encode(texts)]

    def embed_query(self, text: str) -> list[float]:
        return [float(x) for x in self.embedder.encode_query(text)]


def _document(record: Mapping[str, Any]) -> Document:
    return Document(id=record["id"], page_content=record["content"], metadata=record["metadata"])
