"""`TitansManager`: three memories over one store, added to, asked, consolidated, and made to forget."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from memory_titan.embedders import BaseEmbedder, as_embedder
from memory_titan.store.architectures import ARCHITECTURES, Memories
from memory_titan.store.backend import Backend, open_backend
from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.documents import (
    Time,
    batches,
    columns,
    embedded_texts,
    export_items,
    names_of,
    record,
    seconds,
    unit_rows,
)
from memory_titan.store.errors import StoreError
from memory_titan.store.item import PLACES, SHORT, Hit, Item, MemoryType, Report, Seqs, Vector
from memory_titan.store.long_term import LongTermMemory
from memory_titan.store.names import lower_words, said, speaker_of, without_names
from memory_titan.store.opening import PROBE, SIZES, check_model, check_rules, kept_settings
from memory_titan.store.persistent import PersistentMemory
from memory_titan.store.ranking import RankingConfig
from memory_titan.store.search import Search
from memory_titan.store.short_term import ShortTermMemory
from memory_titan.store.terms import term_ids
from memory_titan.store.where import check_where

BATCH = 256  # texts embedded and written at a time

Documents = str | Sequence[str]


class TitansManager:
    """A memory for applications.

        titans = TitansManager(embedder=SentenceTransformerEmbedder("all-MiniLM-L6-v2"), path="agent.memory")
        ids = titans.add_documents(["My sister's dog is called Bruno."], metadata=[{"user": "u1"}])
        hits = titans.query("What is the name of the dog?", top_k=5, where={"user": "u1"})
        titans.forget(where={"user": "u1"})

    What is added enters the short-term memory, a window over the newest items, and is offered to the long-term memory,
    whose surprise decides whether it is admitted and, once that memory is full, what has to go. The persistent memory
    holds what the application says must always be held. Safe for threads; one process may write to a store, any number
    may read it.

    Args:
        embedder: what makes vectors of texts; see `memory_titan.embedders.as_embedder` for what else it may be.
        architecture: "mac", "mag" or "mal", how a query combines the memories; see `architectures.py`.
        short_term_size, long_term_size, persistent_size: items that each holds; None: as the store was last opened for
            writing, and 512, 2048 and 64 for a new one.
        vector_dim: width of the embeddings, checked; None: as the embedder gives them.
        long_term_config: how the long-term memory decides; None: as the store was last opened.
        path: a file, made if it is not there; None: in memory only.
        url: "postgresql://...", instead of a path.
        name: of the store, where one database holds several (PostgreSQL). One never sees another's items.
        read_only: only ask.
        durable: an acknowledged write survives a power cut too, at the price of a disk flush a call.
        ranking: weights of the search.

    Raises:
        StoreLockedError: another process writes to the file.
        StoreFileError: the file is no store, is damaged, or of a newer version.
        EmbedderMismatchError: its vectors were made by another model.
    """

    def __init__(
        self,
        embedder: BaseEmbedder | Any,
        architecture: str = "mac",
        short_term_size: int | None = None,
        long_term_size: int | None = None,
        persistent_size: int | None = None,
        vector_dim: int | None = None,
        long_term_config: LongTermMemoryConfig | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        name: str = "default",
        read_only: bool = False,
        durable: bool = False,
        ranking: RankingConfig | None = None,
    ) -> None:
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}; got {architecture!r}")
        given = dict(zip(SIZES, (short_term_size, long_term_size, persistent_size), strict=True))
        for label, size in given.items():
            if size is not None and size < (label != "persistent_size"):
                raise ValueError(f"{label} must be at least {int(label != 'persistent_size')}; got {size}")
        self.embedder = as_embedder(embedder)
        self.architecture = architecture
        self._lock = threading.RLock()  # one writer at a time
        self._closed = False
        self._process = os.getpid()
        self._unerased = False  # something was deleted that is in the file still
        self._uses: dict[int, int] = {}  # by seq, since they were last written down
        probe = self.embedder.encode([PROBE])[0]
        if vector_dim is not None and vector_dim != len(probe):
            raise ValueError(f"vector_dim is {vector_dim}, and {self.embedder.name} makes vectors of {len(probe)}")
        self.backend: Backend = open_backend(path, url, name, read_only, durable)
        try:
            check_model(self.backend, self.embedder, probe)
            check_rules(self.backend)
            sizes, self.config = kept_settings(self.backend, given, long_term_config)
            self.backend.open_indexes(len(probe))
            self.short_term = ShortTermMemory(self.backend, sizes["short_term_size"], self._discard)
            self.long_term = LongTermMemory(
                self.backend, sizes["long_term_size"], len(probe), self.config, self._discard
            )
            self.persistent = PersistentMemory(self.backend, sizes["persistent_size"])
            self._search = Search(self.backend, ranking or RankingConfig())
        except BaseException:
            self.backend.close()
            raise

    # -- adding

    def add_documents(
        self,
        documents: Documents,
        metadata: Sequence[dict[str, Any] | None] | dict[str, Any] | None = None,
        memory_type: MemoryType = "all",
        *,
        ids: Sequence[str] | None = None,
        times: Sequence[Time] | Time | None = None,
        session: str | Sequence[str | None] | None = None,
        vectors: Any = None,
        progress: Callable[[int], object] | None = None,
    ) -> list[str]:
        """Add texts. When this returns they are held, and survive the death of the process.

        Args:
            documents: one or more texts, not empty.
            metadata: a JSON object for each, or one for all.
            memory_type: "short_term": the window, and what leaves it is offered to the long-term memory. "long_term":
                offered at once. "all": both. "persistent": held until it is forgotten by name.
            ids: unique names; None: new ones. What has the same id already is replaced.
            times: when each was said, one for all or one each: seconds since 1970, ISO 8601 (UTC where no zone is
                given) or datetime; None: now.
            session: what they were said in, one for all or one each; None: metadata's "session", or the store's stream.
                Items that follow each other in a session lend each other meaning: give texts that have nothing to do
                with each other sessions of their own.
            vectors: `[n, dim]`, their embeddings if they are known, of any length; None: the embedder makes them. An
                item whose vector is zero is found by its words only.
            progress: called with the number of texts written, after each batch of them.

        Returns:
            their ids.

        Texts are embedded and written 256 at a time, each time all or nothing: if a call with more of them fails or is
        interrupted, what `progress` was told of is held.

        Raises:
            ValueError: not as many metadata, ids, times, sessions or vectors as texts; what cannot be stored; no room
                where it goes.
        """
        if memory_type != "all" and memory_type not in PLACES:
            raise ValueError(f"memory_type must be all, {', '.join(PLACES)}; got {memory_type!r}")
        texts, metadatas, names, created, sessions = columns(documents, metadata, ids, times, session)
        count = len(texts)
        known = None if vectors is None else unit_rows(vectors, count, self.backend.dim)
        for start in range(0, count, BATCH):
            part = slice(start, start + BATCH)
            common = lower_words(texts[part])
            speakers = [speaker_of(*pair, common) for pair in zip(texts[part], metadatas[part], strict=True)]
            words = [said(*pair) for pair in zip(texts[part], speakers, strict=True)]
            rows = self.embedder.encode(words) if known is None else known[part]
            self._check_width(rows)
            # a speaker's name is among the words that an item is found by, and not in what is embedded
            terms = [term_ids(f"{who or ''} {what}") for who, what in zip(speakers, words, strict=True)]
            each = names[part], texts[part], metadatas[part], created[part], sessions[part], rows, terms
            items = [Item(*row) for row in zip(*each, strict=True)]
            for item, speaker in zip(items, speakers, strict=True):
                item.speaker = speaker
            self._write(items, memory_type)
            if progress is not None:
                progress(min(start + BATCH, count))
        return names

    def _write(self, items: list[Item], memory_type: MemoryType) -> None:
        with self._writing():
            replaced = self.backend.seqs_of([item.id for item in items])
            if replaced:
                self._delete(list(replaced.values()))
            if memory_type == "persistent":
                self.persistent.add(items)
            else:
                self.short_term.add(items, offered=memory_type != "short_term", window=memory_type != "long_term")
            self.backend.add(items)
            self.short_term.overflow()
            self._flush_uses()
            if self.long_term.due:
                inside = len(items) <= self.short_term.size  # none has left the window again
                self.long_term.consolidate(items if inside else ())
        if replaced:
            self._unerased = not self.backend.erase(at_once=False)

    # -- asking

    def query(
        self,
        query: str,
        top_k: int = 5,
        where: dict[str, Any] | None = None,
        *,
        memory_types: Sequence[str] | None = None,
        after: Time | None = None,
        before: Time | None = None,
    ) -> list[Hit]:
        """The items that answer a query best, the best first.

        Args:
            query: a question or any text.
            top_k: how many at most.
            where: which items, by their metadata; see `where.py`: `{"user": "u1", "age": {"$gt": 3}}`.
            memory_types: of "short_term", "long_term" and "persistent", those that may answer; None: all.
            after, before: by the time they were said; after is in, before is out.

        Returns:
            `Hit`s; see there.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a text; got {type(query).__name__}")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1; got {top_k}")
        if where is not None:
            check_where(where)
        places = None
        if memory_types is not None:
            if unknown := [kind for kind in memory_types if kind not in PLACES]:
                raise ValueError(f"memory_types are of {', '.join(PLACES)}; got {unknown[0]!r}")
            places = sum({PLACES[kind] for kind in memory_types})
        self.backend.refresh()
        allowed: Seqs | None = None
        if where or places is not None or after is not None or before is not None:
            low, high = (None if t is None else seconds(t) for t in (after, before))
            allowed = self.backend.select(where, places, low, high)
        vector = self.embedder.encode_query(without_names(query, self.backend.name_words()))
        self._check_width(vector[None])
        plan = ARCHITECTURES[self.architecture](vector, self._memories())
        hits, seqs = self._search(query, plan, top_k, allowed)
        self._found(seqs)
        return hits

    def query_vector(self, vector: Any, top_k: int = 5, where: dict[str, Any] | None = None) -> list[Hit]:
        """The items whose embeddings are nearest to one, the nearest first: no words, no recall, nothing merged.

        Args:
            vector: `[dim]`, of any length.
            top_k: how many at most.
            where: which items, by their metadata.

        Returns:
            `Hit`s, their score the cosine, -1 to 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1; got {top_k}")
        if where is not None:
            check_where(where)
        self.backend.refresh()
        allowed = self.backend.select(where) if where else None
        hits, seqs = self._search.nearest(unit_rows([vector], 1, self.backend.dim)[0], top_k, allowed)
        self._found(seqs)
        return hits

    def _found(self, seqs: list[int]) -> None:
        """A query found these: they are of use."""
        if not self.backend.read_only:
            with self._lock:
                for seq in seqs:
                    self._uses[seq] = self._uses.get(seq, 0) + 1

    def _memories(self) -> Memories:
        def nearest_short(vector: Vector) -> float:
            _, cosines = self.backend.dense(vector, 1, self.backend.select(places=SHORT))
            return float(cosines[0]) if len(cosines) else 0.0

        return Memories(self.long_term.recall, self.persistent.vectors(), nearest_short, self.config.recall_weight)

    def get(self, ids: Sequence[str] | str) -> list[dict[str, Any]]:
        """The items with these ids that are there: content, id, metadata, created, session, source, surprise."""
        names = names_of(ids)
        found = self.backend.seqs_of(names)
        items = {item.id: item for item in self.backend.get(list(found.values()))}
        return [record(items[name]) for name in names if name in items]

    def __len__(self) -> int:
        return self.backend.count()

    # -- keeping and forgetting

    def consolidate_memories(self) -> Report:
        """Let the long-term memory decide on all that was not offered to it yet, the short-term window included."""
        with self._writing():
            self.short_term.offer_all()
            self._flush_uses()
            return self.long_term.consolidate()

    def forget(self, ids: Sequence[str] | str | None = None, where: dict[str, Any] | None = None) -> int:
        """Forget for good: gone from the store, its file, the indexes, the embedder's cache and the neural weights.

        The weights are made anew from what is still held, so traces of what the memory itself had evicted go with them.

        Args:
            ids: of the items; unknown ones are passed over.
            where: or all that a filter on metadata lets through; with `ids`, those among them.

        Returns:
            how many were forgotten.

        Raises:
            ValueError: neither is given. `forget(where={})` forgets everything.
            StoreError: readers kept the old file's pages in use; the items are forgotten, and `erase` has to be called
                again to overwrite what is left of them in the file.
        """
        if ids is None and where is None:
            raise ValueError("say what to forget: ids, or where (where={} is everything)")
        if where is not None:
            check_where(where)
        names = None if ids is None else names_of(ids)
        with self._writing():
            seqs = self.backend.select(where) if where is not None else None
            if names is not None:
                named = np.array(sorted(self.backend.seqs_of(names).values()), np.int64)
                seqs = named if seqs is None else np.intersect1d(named, seqs)
            assert seqs is not None
            if len(seqs):
                self._delete(seqs.tolist())
                self._unerased = True
        if self._unerased:  # by an earlier call that did not come to its end, perhaps
            self.erase()
        return len(seqs)

    def erase(self) -> None:
        """Overwrite in the file what was deleted; `forget` does it. StoreError while a reader still holds old pages."""
        if not self.backend.erase():
            raise StoreError(
                "what was forgotten is deleted, but another process is reading, and the file's log could not be "
                "emptied; call erase() again"
            )
        self._unerased = False

    def _delete(self, seqs: list[int]) -> None:
        items = self.backend.get(seqs)
        self._discard(items)
        self.long_term.forget(items)
        self.backend.delete(seqs)
        for seq in seqs:
            self._uses.pop(seq, None)

    def _discard(self, items: list[Item]) -> None:
        self.embedder.discard(embedded_texts(items))

    def _flush_uses(self) -> None:
        if self._uses:
            self.long_term.used(self._uses)
            self._uses = {}

    # -- looking

    def stats(self) -> dict[str, Any]:
        """How full each memory is, what it weighs, what the long-term memory has done, as JSON."""
        self.backend.refresh()
        return {
            "items": len(self),
            "architecture": self.architecture,
            "embedder": self.embedder.name,
            "vector_dim": self.backend.dim,
            "short_term": {**self.short_term.stats()},
            "long_term": {**self.long_term.stats()},
            "persistent": {**self.persistent.stats()},
            "file_bytes": self.backend.file_bytes,
        }

    def check(self) -> list[str]:
        """What is wrong with the store's file; empty: nothing."""
        return self.backend.check()

    def export(self, path: str | os.PathLike[str]) -> int:
        """Write every item to a file of JSON lines, as `import_items` reads them; how many."""
        return export_items(self.backend, path)

    def import_items(self, records: Iterable[dict[str, Any]], progress: Callable[[int], object] | None = None) -> int:
        """Add items as `export` writes them: content; id, metadata, created, session, memory_type if given. How many.

        They are embedded anew. Those with the id of one that is held replace it. `progress` is told how many are done.
        """
        done = 0
        for batch in batches(records, BATCH):
            self.add_documents(**batch)
            done += len(batch["documents"])
            if progress is not None:
                progress(done)
        return done

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store to a new file while it is in use."""
        self.backend.backup(path)

    def close(self) -> None:
        """Write down what is still in memory, and let go of the file."""
        with self._lock:
            if self._closed or os.getpid() != self._process:  # a fork's child has nothing of its own to close
                return
            self._closed = True
            try:
                if not self.backend.read_only:
                    with self.backend.transaction():
                        self._flush_uses()
                        self.long_term.checkpoint()
            finally:
                self.backend.close()

    def __enter__(self) -> TitansManager:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction. If it fails, the weights are read from the database again: they may be ahead of it."""
        with self._lock:
            try:
                with self.backend.transaction():
                    yield
            except BaseException:
                self.long_term.lost_track()
                raise

    # -- the model

    def _check_width(self, vectors: Any) -> None:
        if vectors.shape[1] != self.backend.dim:
            raise ValueError(
                f"{self.embedder.name} made vectors {vectors.shape[1]} wide; the store's are {self.backend.dim}"
            )
