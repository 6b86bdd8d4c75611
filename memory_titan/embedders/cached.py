"""A cache in front of an embedder, in memory and, if wanted, in a file."""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256
from os import PathLike, fspath
from typing import Any

import numpy as np

from memory_titan.embedders.base import BaseEmbedder, Rows, as_embedder

APPLICATION = 0x4D54454D  # "MTEM", in the header of the file
SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
CREATE TABLE IF NOT EXISTS model (name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS vectors (hash BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;
"""


class CachedEmbedder(BaseEmbedder):
    """Embeds a text once and keeps its vector. Any number of threads may use it; one at a time embeds.

    Texts are kept as SHA-256 hashes only. Who holds the cache can still tell whether a text he knows or guesses is in
    it: `discard` takes it out.

    Args:
        embedder: whatever `as_embedder` takes.
        size: how many vectors to keep in memory; the longest unused go first.
        path: an SQLite file to keep all vectors in, for the next process too. It does not shrink by itself. A vector
            that is discarded is overwritten there. ValueError if the file is another model's or no cache.
    """

    def __init__(self, embedder: Any, size: int = 100_000, path: str | PathLike[str] | None = None) -> None:
        if size < 1:
            raise ValueError(f"a cache keeps at least one vector, not {size}")
        self.embedder = as_embedder(embedder)
        self.name = self.embedder.name
        self.size = size
        self._vectors: OrderedDict[bytes, Rows] = OrderedDict()
        self._lock = threading.Lock()  # for the vectors and the file
        self._embedding = threading.Lock()  # for the embedder; taken first
        # a query shares its vector with the same text unless the embedder treats queries differently
        ask = getattr(self.embedder.embed_query, "__func__", None)
        self._queries_differ = ask is not BaseEmbedder.embed_query
        self._file = _opened(fspath(path), self.name) if path is not None else None

    def __len__(self) -> int:
        """How many vectors are in memory."""
        return len(self._vectors)

    def embed(self, texts: list[str]) -> Rows:
        """float32 [texts, dim] of unit length; only texts that are not in the cache are embedded, each once."""
        found = self._get({_hash(text): text for text in texts}, self.embedder.encode)
        return np.stack([found[_hash(text)] for text in texts])

    def embed_query(self, text: str) -> Rows:
        """float32 [dim] of unit length, from the cache if it is there."""
        if not self._queries_differ:
            return self.embed([text])[0]
        found = self._get({_hash(text, "query"): text}, lambda texts: self.embedder.encode_query(texts[0])[None])
        return next(iter(found.values()))

    def discard(self, texts: Sequence[str]) -> None:
        """Forget these texts, as queries too, in memory, in the file and in the embedder behind."""
        keys = [_hash(text, kind) for text in texts for kind in ("", "query")]
        with self._embedding, self._lock:  # after whatever is being embedded, which may be these
            for key in keys:
                self._vectors.pop(key, None)
            if self._file:
                with self._file:
                    self._file.executemany("DELETE FROM vectors WHERE hash = ?", [(key,) for key in keys])
            self.embedder.discard(texts)

    def close(self) -> None:
        """Close the file, if there is one; the cache goes on in memory."""
        with self._lock:
            if self._file:
                self._file.close()
            self._file = None

    def _get(self, texts: dict[bytes, str], encode: Callable[[list[str]], Rows]) -> dict[bytes, Rows]:
        found = self._look(list(texts))
        if len(found) == len(texts):
            return found
        with self._embedding:
            found |= self._look([key for key in texts if key not in found])  # another thread may have been here
            missing = [key for key in texts if key not in found]
            if missing:
                rows = encode([texts[key] for key in missing])
                fresh = {key: row.copy() for key, row in zip(missing, rows, strict=True)}  # not the whole batch for one
                with self._lock:
                    self._keep(fresh)
                    if self._file:
                        with self._file:
                            stored = [(key, row.astype("<f4").tobytes()) for key, row in fresh.items()]
                            self._file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", stored)
                found |= fresh
        return found

    def _look(self, keys: list[bytes]) -> dict[bytes, Rows]:
        with self._lock:
            found = {key: self._vectors[key] for key in keys if key in self._vectors}
            stored = {}
            for key in keys if self._file else ():
                if key not in found and (row := self._file.execute(ONE, (key,)).fetchone()):  # type: ignore[union-attr]
                    stored[key] = np.frombuffer(row[0], "<f4").astype(np.float32)
            self._keep(found | stored)
            return found | stored

    def _keep(self, vectors: dict[bytes, Rows]) -> None:
        """Put these at the end of the queue, as the last used."""
        for key, vector in vectors.items():
            self._vectors[key] = vector
            self._vectors.move_to_end(key)
        while len(self._vectors) > self.size:
            self._vectors.popitem(last=False)


ONE = "SELECT vector FROM vectors WHERE hash = ?"


def _hash(text: str, kind: str = "") -> bytes:
    # half of a surrogate pair is no valid text, but that is for the embedder to say
    return sha256(f"{kind}\0{text}".encode("utf-8", "surrogatepass")).digest()


def _opened(path: str, name: str) -> sqlite3.Connection:
    file = None
    try:
        file = sqlite3.connect(path, timeout=30, check_same_thread=False)
        file.execute("PRAGMA secure_delete = ON")
        (application,) = file.execute("PRAGMA application_id").fetchone()
        (tables,) = file.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != APPLICATION:
            raise ValueError("it is another program's database")
        with file:
            if not tables:
                file.executescript(SCHEMA)
            file.execute("INSERT INTO model SELECT ? WHERE NOT EXISTS (SELECT 1 FROM model)", (name,))
        (held,) = file.execute("SELECT name FROM model").fetchone()
        if held != name:
            raise ValueError(f"it holds the vectors of {held}, not of {name}; each model has a file of its own")
    except (ValueError, sqlite3.Error) as error:
        if file:
            file.close()
        raise ValueError(f"{path} cannot be the cache: {error}") from error
    return file
