"""`TitansManager`: three memories over one store, added to, asked, consolidated, and made to forget."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from memory_titan.embedders import BaseEmbedder, as_embedder
from memory_titan.store.architectures import ARCHITECTURES, Memories
from memory_titan.store.backend import Backend, open_backend
from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.errors import EmbedderMismatchError, StoreError
from memory_titan.store.item import PLACES, SHORT, Hit, Item, MemoryType, Report, Seqs, Vector
from memory_titan.store.long_term import LongTermMemory
from memory_titan.store.persistent import PersistentMemory
from memory_titan.store.search import RankingConfig
from memory_titan.store.search import Search
from memory_titan.store.short_term import ShortTermMemory
from memory_titan.store.where import check_metadata, check_where
from memory_titan.store.terms import term_ids

PROBE = "The quick brown fox jumps over the lazy dog."  # its embedding tells one model from another
SAME_MODEL = 0.99  # cosine of the probe's embeddings
BATCH = 256  # texts embedded and written at a time

Documents = str | Sequence[str]
Time = float | str | datetime.datetime


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
        short_term_size, long_term_size, persistent_size: items that each holds.
        vector_dim: width of the embeddings, checked; None: as the embedder gives them.
        long_term_config: how the long-term memory decides.
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
        short_term_size: int = 512,
        long_term_size: int = 2048,
        persistent_size: int = 64,
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
        for label, size in (("short_term_size", short_term_size), ("long_term_size", long_term_size)):
            if size < 1:
                raise ValueError(f"{label} must be at least 1; got {size}")
        if persistent_size < 0:
            raise ValueError(f"persistent_size must not be negative; got {persistent_size}")
        self.embedder = as_embedder(embedder)
        self.architecture = architecture
        self.config = long_term_config or LongTermMemoryConfig()
        self._lock = threading.RLock()  # one writer at a time
        self._closed = False
        self._uses: dict[int, int] = {}  # by seq, since they were last written down
        probe = self.embedder.encode([PROBE])[0]
        if vector_dim is not None and vector_dim != len(probe):
            raise ValueError(f"vector_dim is {vector_dim}, and {self.embedder.name} makes vectors of {len(probe)}")
        self.backend: Backend = open_backend(path, url, name, read_only, durable)
        try:
            self._check_model(probe)
            self.backend.open_indexes(len(probe))
            self.short_term = ShortTermMemory(self.backend, short_term_size)
            self.long_term = LongTermMemory(self.backend, long_term_size, len(probe), self.config)
            self.persistent = PersistentMemory(self.backend, persistent_size)
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
            memory_type: "short_term": the window; what leaves it is then offered to the long-term memory. "long_term":
                offered at once. "all": both. "persistent": held until it is forgotten by name.
            ids: unique names; None: new ones. What has the same id already is replaced.
            times: when each was said: seconds since 1970, ISO 8601 (taken as UTC where it says no zone) or datetime; one
                for all, or one each; None: now.
            session: what they were said in, one for all or one each.
            vectors: `[n, dim]`, their embeddings if they are known, of any length; None: the embedder makes them. An item
                whose vector is zero is found by its words only.
            progress: called with the number of texts written, after each batch of them.

        Returns:
            their ids.

        Raises:
            ValueError: not so many metadata, ids, times, sessions or vectors as texts; what cannot be stored; a full persistent memory.
        """
        texts = [documents] if isinstance(documents, str) else list(documents)
        count = len(texts)
        for number, text in enumerate(texts):
            _check_text(text, number)
        if memory_type != "all" and memory_type not in PLACES:
            raise ValueError(f"memory_type must be all, {', '.join(PLACES)}; got {memory_type!r}")
        metadatas = [{} if m is None else m for m in _each(metadata, count, "metadata", dict)]
        for metadatum in metadatas:
            check_metadata(metadatum)
        names = [uuid.uuid4().hex for _ in texts] if ids is None else [str(name) for name in ids]
        if len(names) != count:
            raise ValueError(f"there are {count} documents and {len(names)} ids")
        if len(set(names)) != count:
            raise ValueError("the same id is given twice")
        now = time.time()
        created = [now if t is None else seconds(t) for t in _each(times, count, "times", (str, int, float, datetime.datetime))]
        sessions = _each(session, count, "session", str)
        known = None if vectors is None else _units(vectors, count, self.backend.dim)
        for start in range(0, count, BATCH):
            part = slice(start, start + BATCH)
            rows = self.embedder.encode(texts[part]) if known is None else known[part]
            self._check_width(rows)
            items = [
                Item(name, text, metadatum, when, where, vector, term_ids(text))
                for name, text, metadatum, when, where, vector in zip(
                    names[part], texts[part], metadatas[part], created[part], sessions[part], rows, strict=True
                )
            ]
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
                self.long_term.consolidate()
        if memory_type != "persistent" and replaced:
            self.backend.erase()

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
        if where:
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
        vector = self._encode_query(query)
        plan = ARCHITECTURES[self.architecture](vector, self._memories())
        hits, seqs = self._search(query, vector, plan, top_k, allowed)
        if not self.backend.read_only:
            with self._lock:
                for seq in seqs:
                    self._uses[seq] = self._uses.get(seq, 0) + 1
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
        if where:
            check_where(where)
        unit = _units([vector], 1, self.backend.dim)[0]
        self.backend.refresh()
        seqs, cosines = self.backend.dense(unit, top_k, self.backend.select(where) if where else None)
        items = {item.seq: item for item in self.backend.get(seqs)}
        ranked = zip(seqs.tolist(), cosines.tolist(), strict=True)
        found = [(items[seq], cosine) for seq, cosine in ranked if seq in items]
        if not self.backend.read_only:
            with self._lock:
                for item, _ in found:
                    self._uses[item.seq] = self._uses.get(item.seq, 0) + 1
        return [
            Hit(
                content=item.content,
                score=cosine,
                source=item.source,
                id=item.id,
                metadata=item.metadata,
                surprise=item.surprise,
                created=iso(item.created),
                session=item.session,
                why={"dense": cosine},
                duplicates=[],
                replaces=[],
                replaced_by=None,
            )
            for item, cosine in found
        ]

    def _memories(self) -> Memories:
        def nearest_short(vector: Vector) -> float:
            _, cosines = self.backend.dense(vector, 1, self.backend.select(places=SHORT))
            return float(cosines[0]) if len(cosines) else 0.0

        return Memories(self.long_term.recall, self.persistent.vectors(), nearest_short, self.config.recall_weight)

    def get(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The items with these ids that are there: content, id, metadata, created, session, source, surprise."""
        found = self.backend.seqs_of(list(ids))
        items = {item.id: item for item in self.backend.get(list(found.values()))}
        return [_record(items[name]) for name in ids if name in items]

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
        if where:
            check_where(where)
        names = [ids] if isinstance(ids, str) else ids
        with self._writing():
            seqs = self.backend.select(where) if where is not None else None
            if names is not None:
                named = np.array(sorted(self.backend.seqs_of(list(names)).values()), np.int64)
                seqs = named if seqs is None else np.intersect1d(named, seqs)
            assert seqs is not None
            if len(seqs):
                self._delete(seqs.tolist())
        if len(seqs):
            self.erase()
        return len(seqs)

    def erase(self) -> None:
        """Overwrite in the file what was deleted; `forget` does it. StoreError while a reader still holds old pages."""
        if not self.backend.erase():
            raise StoreError(
                "what was forgotten is deleted, but another process is reading, and the file's log could not be emptied "
                "yet; call erase() again"
            )

    def _delete(self, seqs: list[int]) -> None:
        items = self.backend.get(seqs)
        self.embedder.discard([item.content for item in items])
        self.long_term.forget(items)
        self.backend.delete(seqs)
        for seq in seqs:
            self._uses.pop(seq, None)

    def _flush_uses(self) -> None:
        if self._uses:
            self.backend.count_use(self._uses)
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
        seqs = self.backend.select()
        with open(path, "w", encoding="utf-8") as file:
            for start in range(0, len(seqs), BATCH):
                for item in self.backend.get(seqs[start : start + BATCH]):
                    file.write(json.dumps(_record(item), ensure_ascii=False) + "\n")
        return len(seqs)

    def import_items(self, records: Iterable[dict[str, Any]], progress: Callable[[int], object] | None = None) -> int:
        """Add items as `export` writes them (content; id, metadata, created, session, memory_type where given); how many.

        Items are embedded anew. Those with the id of one that is held replace it.
        """
        done, batch = 0, list[dict[str, Any]]()
        for record in records:
            if batch and (len(batch) == BATCH or record.get("memory_type") != batch[0].get("memory_type")):
                done += self._import(batch, done, progress)
                batch = []
            batch.append(record)
        return done + (self._import(batch, done, progress) if batch else 0)

    def _import(self, batch: list[dict[str, Any]], done: int, progress: Callable[[int], object] | None) -> int:
        for number, record in enumerate(batch, done + 1):
            if not isinstance(record, dict) or not isinstance(record.get("content"), str):
                raise ValueError(f"item {number} has no text under content")
        self.add_documents(
            [record["content"] for record in batch],
            [record.get("metadata") or {} for record in batch],
            batch[0].get("memory_type") or "all",
            ids=[str(record.get("id") or uuid.uuid4().hex) for record in batch],
            times=[record.get("created") or time.time() for record in batch],
            session=[record.get("session") for record in batch],
        )
        if progress is not None:
            progress(done + len(batch))
        return len(batch)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store to a new file while it is in use."""
        self.backend.backup(path)

    def close(self) -> None:
        """Write down what is still in memory, and let go of the file."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self.backend.read_only:
                with self.backend.transaction():
                    self._flush_uses()
                    self.long_term.checkpoint()
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

    def _check_model(self, probe: np.ndarray[Any, Any]) -> None:
        """The store's vectors were made by this embedder."""
        known = self.backend.meta("embedder")
        if known is None:
            if not self.backend.read_only:
                with self.backend.transaction():
                    self.backend.set_meta("embedder", {"name": self.embedder.name, "probe": probe.tolist()})
            return
        old = np.asarray(known["probe"], np.float32)
        if old.shape != probe.shape or float(old @ probe) < SAME_MODEL:
            same = " (a model of the same name, but not the same)" if known["name"] == self.embedder.name else ""
            raise EmbedderMismatchError(
                f"this store's vectors, {len(old)} wide, were made by {known['name']}; {self.embedder.name} makes others, "
                f"{len(probe)} wide{same}. Open it with the model it was made with, or export it and import it anew."
            )

    def _encode_query(self, query: str) -> Any:
        vector = self.embedder.encode_query(query)
        self._check_width(vector[None])
        return vector

    def _check_width(self, vectors: Any) -> None:
        if vectors.shape[1] != self.backend.dim:
            raise ValueError(f"{self.embedder.name} made vectors {vectors.shape[1]} wide; the store's are {self.backend.dim}")


def seconds(when: Time) -> float:
    """Seconds since 1970 of a time given as such, as ISO 8601 or as datetime; UTC where no zone is given."""
    if isinstance(when, (int, float)) and not isinstance(when, bool):
        if not np.isfinite(when):
            raise ValueError(f"a time must be finite; got {when}")
        return float(when)
    if isinstance(when, str):
        try:
            when = datetime.datetime.fromisoformat(when.replace("Z", "+00:00"))
        except ValueError:
            raise ValueError(f"a time must be seconds since 1970 or ISO 8601; got {when!r}") from None
    if not isinstance(when, datetime.datetime):
        raise ValueError(f"a time must be seconds since 1970, ISO 8601 or a datetime; got {when!r}")
    return (when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)).timestamp()


def iso(created: float) -> str:
    """ISO 8601 in UTC."""
    return datetime.datetime.fromtimestamp(created, datetime.timezone.utc).isoformat()


def _record(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "content": item.content,
        "metadata": item.metadata,
        "created": iso(item.created),
        "session": item.session,
        "source": item.source,
        "memory_type": "persistent" if item.source == "persistent" else "all",
        "surprise": item.surprise,
    }


def _check_text(text: Any, number: int) -> None:
    if not isinstance(text, str):
        raise TypeError(f"document {number} must be a text; got {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"document {number} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"document {number} has a lone surrogate at {text!r:.60}: it is no Unicode text") from None


def _units(given: Any, count: int, dim: int | None) -> Vector:
    """Vectors `[count, dim]` that were given, of length 1 or zero."""
    try:
        rows = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"vectors must be numbers, {count} rows of {dim}") from None
    if rows.shape != (count, dim) and count:
        raise ValueError(f"vectors must be {count} rows of {dim} numbers; got shape {list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise ValueError("vectors must be finite")
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


def _each(given: Any, count: int, name: str, one: type | tuple[type, ...]) -> list[Any]:
    """One for all, or one each."""
    if given is None or isinstance(given, one):
        return [given] * count
    values = list(given)
    if len(values) != count:
        raise ValueError(f"there are {count} documents and {len(values)} {name}")
    return values
