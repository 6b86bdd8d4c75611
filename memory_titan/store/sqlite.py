"""A store's truth in one SQLite file (WAL), and the indexes in memory that follow it.

items    text, metadata, times, places        vectors  embedding and hashed words of each
tags     metadata by key and value            gone     what was deleted, for other processes' indexes
log      vectors written to the neural memory since its last checkpoint       blobs    that checkpoint, and others

One process writes (a lock beside the file says so), any number read. A reader's indexes catch up before each search by
the `change` of rows. What was deleted is overwritten with zeros, and the write-ahead log is emptied.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from filelock import FileLock, Timeout

from memory_titan.store.backend import Words
from memory_titan.store.errors import StoreError, StoreFileError, StoreLockedError, StoreReadOnlyError
from memory_titan.store.item import Item, Seqs, Vector
from memory_titan.store.sessions import Places, SessionIndex, speaker_of
from memory_titan.store.terms import pack, unpack
from memory_titan.store.vectors import VectorIndex
from memory_titan.store.where import sqlite_clause, tag_rows
from memory_titan.store.words import WordIndex

APPLICATION, VERSION = 0x4D544954, 1  # "MTIT"
READERS = 8  # connections that wait to be used
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, content TEXT NOT NULL, metadata TEXT NOT NULL,
    created REAL NOT NULL, session TEXT, position INTEGER NOT NULL, speaker TEXT, places INTEGER NOT NULL, surprise REAL, value REAL NOT NULL,
    used INTEGER NOT NULL, change INTEGER NOT NULL);
CREATE INDEX items_change ON items (change);
CREATE INDEX items_created ON items (created);
CREATE INDEX items_short ON items (seq) WHERE places & 1;
CREATE INDEX items_long ON items (value) WHERE places & 2;
CREATE INDEX items_persistent ON items (seq) WHERE places & 4;
CREATE INDEX items_pending ON items (seq) WHERE places & 8;
CREATE TABLE vectors (seq INTEGER PRIMARY KEY, vector BLOB NOT NULL, terms BLOB NOT NULL);
CREATE TABLE tags (key TEXT, kind TEXT, value, seq INTEGER, PRIMARY KEY (key, kind, value, seq)) WITHOUT ROWID;
CREATE INDEX tags_seq ON tags (seq);
CREATE TABLE gone (seq INTEGER PRIMARY KEY, change INTEGER NOT NULL);
CREATE INDEX gone_change ON gone (change);
CREATE TABLE log (position INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE blobs (name TEXT PRIMARY KEY, data BLOB NOT NULL);
INSERT INTO meta VALUES ('change', '0');
INSERT INTO meta VALUES ('gone_from', '0');
"""
COLUMNS = "seq, id, content, metadata, created, session, position, speaker, places, surprise, value, used"


class SqliteBackend:
    """See the module. Safe for threads.

    Args:
        path: the file, made if it is not there; None: in memory only.
        read_only: never write; the file must be there.
        durable: every commit is on the disk before it returns, so that it survives a power cut. Without, an acknowledged
            write survives the process's death, not the machine's.

    Raises:
        StoreLockedError: another process writes to it.
        StoreFileError: no store, damaged, newer, or not to be opened.
    """

    def __init__(self, path: str | os.PathLike[str] | None, read_only: bool = False, durable: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.read_only = read_only
        self.exclusive = not read_only
        self._lock = threading.RLock()
        self._depth = 0  # of nested transactions
        self._owner: int | None = None  # thread that is within one
        self._file_lock: FileLock | None = None
        self.erasing = 5.0  # seconds to wait for readers before the log can be emptied
        self._pool: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        if read_only and (self.path is None or not self.path.exists()):
            raise StoreFileError(f"there is no store to read at {path}")
        try:
            if self.path is not None and not read_only:
                self._claim(self.path)
            self._db = self._connect(read_only)
            self._prepare(durable)
        except BaseException as error:
            self._release()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise self._plain(error) from error
            raise
        self._vectors: VectorIndex | None = None  # from open_indexes on
        self._words = WordIndex()
        self._sessions = SessionIndex()
        self._seen, self._data_version = -1, None
        self._newest = -1  # seq in the indexes
        self.dim: int | None = None

    # -- opening and closing

    def _claim(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise StoreFileError(f"there is no folder {path.parent} to make a store in")
        self._file_lock = FileLock(f"{path}.lock", timeout=0)
        try:
            self._file_lock.acquire()
        except Timeout:
            self._file_lock = None
            raise StoreLockedError(
                f"{path} is being written by another process or manager; open it with read_only=True to read"
            ) from None
        except PermissionError as error:
            raise StoreReadOnlyError(f"{path} may not be written ({error}); open it with read_only=True") from error

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        if self.path is None:
            return sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        uri = f"file:{quote(str(self.path.absolute()))}?mode={'ro' if read_only else 'rwc'}"
        db = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=10.0)
        db.execute("PRAGMA mmap_size=0")
        return db

    def _prepare(self, durable: bool) -> None:
        db = self._db
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        empty = not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        if (empty and self.read_only) or (not empty and application != APPLICATION):
            raise StoreFileError(f"{self.path} is no memory-titan store")
        if version > VERSION:
            raise StoreFileError(
                f"{self.path} is a store of version {version}; this memory-titan knows up to {VERSION}. Use a newer one."
            )
        if self.read_only:
            return
        if empty:
            db.execute("PRAGMA page_size=8192")
        if self.path is not None:
            db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        db.execute("PRAGMA secure_delete=ON")
        if empty:
            with self.transaction():
                for statement in SCHEMA.strip().split(";\n"):
                    db.execute(statement.removesuffix(";"))
                db.execute(f"PRAGMA application_id={APPLICATION}")
                db.execute(f"PRAGMA user_version={VERSION}")

    def close(self) -> None:
        """Finish; the file then stands alone, its log emptied."""
        with self._lock:
            if not self.read_only:
                with self.transaction():  # what has no reader to tell any more
                    self._db.execute("DELETE FROM gone")
                    self._db.execute(
                        "UPDATE meta SET value = (SELECT value FROM meta WHERE key = 'change') WHERE key = 'gone_from'"
                    )
            self.erase()
            while not self._pool.empty():
                self._pool.get_nowait().close()
            self._db.close()
            self._release()

    def _release(self) -> None:
        if self._file_lock is not None:
            self._file_lock.release()
            self._file_lock = None

    def _plain(self, error: Exception) -> StoreError:
        """What SQLite says, said plainly."""
        text, where = str(error), self.path or "the store in memory"
        if "readonly" in text or "read-only" in text:
            return StoreReadOnlyError(f"{where} may not be written: {text}")
        if "full" in text or "disk I/O" in text:
            return StoreError(f"{where} could not be written ({text}); nothing of this call was kept")
        if "locked" in text or "busy" in text:
            return StoreLockedError(f"{where} is busy: {text}")
        if "closed" in text:
            return StoreError(f"{where} is closed")
        return StoreFileError(f"{where} is damaged or no memory-titan store: {text}")

    # -- transactions

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; nested ones are part of the outermost. The indexes follow once it is committed."""
        if self.read_only:
            raise StoreReadOnlyError(f"{self.path} was opened for reading")
        with self._lock:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise self._plain(error) from error
            self._depth, self._owner = 1, threading.get_ident()
            self._change: int | None = None
            self._after: list[Callable[[], None]] = []
            self._added: dict[str | None, int] = {}  # items by session, not in the index yet
            try:
                yield
                if self._change is not None:
                    self._db.execute("UPDATE meta SET value = ? WHERE key = 'change'", (str(self._change),))
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._plain(error) from error
                raise
            finally:
                self._depth, self._owner = 0, None
            for action in self._after:
                action()
            if self._change is not None:
                self._seen = self._change

    def _next_change(self) -> int:
        if self._change is None:
            self._change = int(self._db.execute("SELECT value FROM meta WHERE key = 'change'").fetchone()[0]) + 1
        return self._change

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read from; within a transaction, and in memory, the writer's own."""
        if self.path is None or self._owner == threading.get_ident():
            with self._lock:
                yield self._db
            return
        try:
            db = self._pool.get_nowait()
        except queue.Empty:
            db = self._connect(read_only=True)
        try:
            yield db
        except sqlite3.Error as error:
            db.close()
            raise self._plain(error) from error
        if self._pool.qsize() < READERS:
            self._pool.put(db)
        else:
            db.close()

    # -- writing, within a transaction

    def add(self, items: Sequence[Item]) -> None:
        """Insert items; each is given its `seq`."""
        change, db = self._next_change(), self._db
        last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
        ends: dict[str | None, int] = {}
        for seq, item in enumerate(items, 1 + (last[0] if last else 0)):
            item.seq, item.speaker = seq, speaker_of(item.content, item.metadata)
            if item.session not in ends:
                ends[item.session] = self._sessions.next_position(item.session) + self._added.get(item.session, 0)
            item.position = ends[item.session]
            ends[item.session] += 1
            self._added[item.session] = self._added.get(item.session, 0) + 1
        db.executemany(
            f"INSERT INTO items ({COLUMNS}, change) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    i.seq,
                    i.id,
                    i.content,
                    json.dumps(i.metadata, ensure_ascii=False),
                    i.created,
                    i.session,
                    i.position,
                    i.speaker,
                    i.places,
                    i.surprise,
                    i.value,
                    i.used,
                    change,
                )
                for i in items
            ),
        )
        db.executemany(
            "INSERT INTO vectors VALUES (?, ?, ?)", ((i.seq, i.vector.tobytes(), pack(i.terms)) for i in items)
        )
        tags = [(key, kind, value, i.seq) for i in items if i.metadata for key, kind, value in tag_rows(i.metadata)]
        if tags:
            db.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?, ?, ?)", tags)
        seqs, vectors = [i.seq for i in items], np.stack([i.vector for i in items])
        stand = [(i.session, i.position, i.speaker) for i in items]
        self._after.append(lambda: self._follow(seqs, vectors, [i.terms for i in items], stand))

    def update(self, rows: Iterable[tuple[int, int, float | None, float]]) -> None:
        """Set (seq, places, surprise, value)."""
        change = self._next_change()
        self._db.executemany(
            "UPDATE items SET places = ?2, surprise = ?3, value = ?4, change = ?5 WHERE seq = ?1",
            ((seq, places, surprise, value, change) for seq, places, surprise, value in rows),
        )

    def count_use(self, uses: dict[int, int]) -> None:
        """Add to `used`."""
        self._db.executemany("UPDATE items SET used = used + ? WHERE seq = ?", ((n, seq) for seq, n in uses.items()))

    def delete(self, seqs: Sequence[int]) -> None:
        """Delete items with all that is known of them."""
        change, rows = self._next_change(), [(int(seq),) for seq in seqs]
        for table in ("items", "vectors", "tags"):
            self._db.executemany(f"DELETE FROM {table} WHERE seq = ?", rows)
        self._db.executemany("INSERT OR REPLACE INTO gone VALUES (?, ?)", ((seq[0], change) for seq in rows))
        gone = np.sort(np.asarray([row[0] for row in rows], np.int64))
        self._after.append(lambda: self._unindex(gone))

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a JSON value."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def set_blob(self, name: str, data: bytes | None) -> None:
        """Keep bytes; None: no longer."""
        self._db.execute("DELETE FROM blobs WHERE name = ?", (name,))
        if data is not None:
            self._db.execute("INSERT INTO blobs VALUES (?, ?)", (name, data))

    def append_log(self, position: int, vectors: Vector) -> None:
        """Vectors written to the neural memory, the first at `position`."""
        rows = ((position + n, vector.tobytes()) for n, vector in enumerate(vectors))
        self._db.executemany("INSERT OR REPLACE INTO log VALUES (?, ?)", rows)

    def clear_log(self) -> None:
        """Forget the log: a checkpoint covers it, or it is void."""
        self._db.execute("DELETE FROM log")

    def erase(self) -> bool:
        """Empty the write-ahead log, so that nothing deleted is left in a file. False while a reader still needs it."""
        if self.path is None or self.read_only:
            return True
        with self._lock:
            try:
                self._db.execute(f"PRAGMA busy_timeout={int(self.erasing * 1000)}")
                busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                self._db.execute("PRAGMA busy_timeout=10000")
            except sqlite3.Error as error:
                raise self._plain(error) from error
            return not busy

    # -- reading

    def meta(self, key: str, default: Any = None) -> Any:
        """A JSON value that was kept."""
        with self._reading() as db:
            row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def blob(self, name: str) -> bytes | None:
        """Bytes that were kept."""
        with self._reading() as db:
            row = db.execute("SELECT data FROM blobs WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def log(self, start: int) -> tuple[list[int], Vector]:
        """Positions from `start` on, and their vectors `[n, dim]`."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT position, vector FROM log WHERE position >= ? ORDER BY position", (start,)
            ).fetchall()
        return [row[0] for row in rows], _matrix([row[1] for row in rows], self.dim)

    def get(self, seqs: Sequence[int] | Seqs, full: bool = False) -> list[Item]:
        """The items that are (still) there, in the given order; with `full`, vectors and terms too."""
        wanted = [int(seq) for seq in seqs]
        found: dict[int, Item] = {}
        with self._reading() as db:
            for part in _parts(wanted):
                marks = ",".join("?" * len(part))
                for row in db.execute(f"SELECT {COLUMNS} FROM items WHERE seq IN ({marks})", part):
                    found[row[0]] = _item(row)
                if full:
                    for seq, vector, terms in db.execute(f"SELECT * FROM vectors WHERE seq IN ({marks})", part):
                        found[seq].vector, found[seq].terms = np.frombuffer(vector, np.float32), unpack(terms)
        return [found[seq] for seq in wanted if seq in found]

    def seqs_of(self, ids: Sequence[str]) -> dict[str, int]:
        """id -> seq, of those that are there."""
        found: dict[str, int] = {}
        with self._reading() as db:
            for part in _parts(list(ids)):
                marks = ",".join("?" * len(part))
                found.update(db.execute(f"SELECT id, seq FROM items WHERE id IN ({marks})", part).fetchall())
        return found

    def select(
        self,
        where: dict[str, Any] | None = None,
        places: int | None = None,
        after: float | None = None,
        before: float | None = None,
        order: str = "seq",
        limit: int | None = None,
    ) -> Seqs:
        """Seqs of the items that a filter lets through.

        Args:
            where: on metadata, see `where.py`.
            places: bits, any of them.
            after, before: on `created`, seconds; after is in, before is out.
            order: "seq", "-seq", or "value", the least first.
            limit: the first ones only.
        """
        clauses: list[str] = []
        values: list[Any] = []
        if places is not None:
            clauses.append(f"places & {int(places)}")  # written out: that is how an index of these items is found
        if after is not None:
            clauses.append("created >= ?")
            values.append(after)
        if before is not None:
            clauses.append("created < ?")
            values.append(before)
        if where:
            sql, parameters = sqlite_clause(where)
            clauses.append(f"({sql})")
            values += parameters
        sql = "SELECT seq FROM items" + (" WHERE " + " AND ".join(clauses) if clauses else "")
        by = {"seq": "seq", "-seq": "seq DESC", "value": "value, seq"}[order]
        sql += f" ORDER BY {by}" + ("" if limit is None else f" LIMIT {int(limit)}")
        with self._reading() as db:
            return np.fromiter((row[0] for row in db.execute(sql, values)), np.int64)

    def count(self, places: int | None = None) -> int:
        """Items held in any of `places`."""
        condition = "" if places is None else f" WHERE places & {int(places)}"
        with self._reading() as db:
            return int(db.execute(f"SELECT COUNT(*) FROM items{condition}").fetchone()[0])

    def nbytes(self, places: int) -> int:
        """Bytes of the texts held in any of `places`, UTF-8."""
        with self._reading() as db:
            sql = f"SELECT COALESCE(SUM(LENGTH(CAST(content AS BLOB))), 0) FROM items WHERE places & {int(places)}"
            return int(db.execute(sql).fetchone()[0])

    # -- searching

    def open_indexes(self, dim: int) -> None:
        """Build the indexes; needed once before searching and adding."""
        self.dim = dim
        self._vectors = VectorIndex(dim)
        self.refresh()

    def refresh(self) -> None:
        """Catch up with what another process has written."""
        assert self._vectors is not None
        if self._seen >= 0 and not self.read_only:
            return  # the only writer
        with self._lock:
            version = self._db.execute("PRAGMA data_version").fetchone()[0]
            if self._seen >= 0 and version == self._data_version:
                return
            try:
                self._db.execute("BEGIN")
                told = dict(
                    self._db.execute("SELECT key, value FROM meta WHERE key IN ('change', 'gone_from')").fetchall()
                )
                if self._seen < int(told["gone_from"]):  # too long ago to tell what is gone
                    self._vectors, self._words, self._newest = VectorIndex(self._vectors.dim), WordIndex(), -1
                    self._sessions = SessionIndex()
                gone = self._db.execute("SELECT seq FROM gone WHERE change > ? ORDER BY seq", (self._seen,)).fetchall()
                sql = """SELECT seq, vector, terms, session, position, speaker FROM vectors JOIN items USING (seq)
                         WHERE seq > ? ORDER BY seq"""
                new = self._db.execute(sql, (self._newest,)).fetchall()
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise self._plain(error) from error
            if gone and self._newest >= 0:
                self._unindex(np.array([row[0] for row in gone], np.int64))
            for part in _parts(new, 8192):
                vectors = _matrix([row[1] for row in part], self.dim)
                self._follow(
                    [row[0] for row in part], vectors, [unpack(row[2]) for row in part], [row[3:] for row in part]
                )
            self._seen, self._data_version = int(told["change"]), version

    def _follow(self, seqs: list[int], vectors: Vector, terms: list[Any], stand: list[tuple[Any, ...]]) -> None:
        """New items into the indexes; `stand`: session, position, speaker."""
        assert self._vectors is not None
        numbers = np.array(seqs, np.int64)
        self._sessions.add(numbers, *zip(*stand, strict=True))
        self._words.add(numbers, terms)
        self._vectors.add(numbers, vectors)
        self._newest = seqs[-1]

    def _unindex(self, seqs: Seqs) -> None:
        assert self._vectors is not None
        self._vectors.remove(seqs)
        self._words.remove(seqs)
        self._sessions.remove(seqs)

    def dense(self, vector: Vector, k: int, allowed: Seqs | None = None) -> tuple[Seqs, Vector]:
        """The k nearest by cosine, best first."""
        assert self._vectors is not None
        return self._vectors.search(vector, k, allowed)

    def lexical(self, terms: Any, k: int, allowed: Seqs | None = None) -> tuple[Seqs, Vector]:
        """The k best by BM25 for uint32 terms, best first."""
        return self._words.search(terms, k, allowed)

    def words_of(self, terms: Any, seqs: Seqs) -> Words:
        """Counts of uint32 terms in items, and in how many of all items each term stands."""
        index = self._words
        counts, lengths = index.counts(terms, seqs), index.lengths(seqs)
        return Words(counts, lengths, index.df(terms), len(index), index.mean_length)

    def places(self, seqs: Seqs) -> Places:
        """Where items stand in their sessions; session -1 for what is not there."""
        return self._sessions.of(seqs)

    def seqs_at(self, sessions: Any, positions: Any) -> Seqs:
        """The items at these places, ascending; empty places are left out."""
        return self._sessions.at(sessions, positions)

    def named(self, query: str) -> set[int]:
        """The speakers that a query names."""
        return self._sessions.named(query)

    def vectors_of(self, seqs: Seqs) -> Vector:
        """`[n, dim]`."""
        assert self._vectors is not None
        return self._vectors.vectors_of(seqs)

    # -- files

    @property
    def file_bytes(self) -> int:
        """Of the file and its write-ahead log."""
        if self.path is None:
            return 0
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def check(self) -> list[str]:
        """What is wrong with the file, by SQLite's own examination; empty: nothing."""
        with self._reading() as db:
            rows = [row[0] for row in db.execute("PRAGMA integrity_check")]
            loose = db.execute(
                "SELECT COUNT(*) FROM items LEFT JOIN vectors USING (seq) WHERE vector IS NULL"
            ).fetchone()
        problems = [row for row in rows if row != "ok"]
        return problems + ([f"{loose[0]} items without a vector"] if loose[0] else [])

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store, while it is in use, to a new file."""
        if Path(path).exists():
            raise StoreError(f"{path} is there already")
        copy = sqlite3.connect(path)
        try:
            with self._reading() as db:
                db.backup(copy)
        finally:
            copy.close()


def _item(row: tuple[Any, ...]) -> Item:
    seq, name, content, metadata, created, session, position, speaker, places, surprise, value, used = row
    return Item(
        id=name,
        content=content,
        metadata=json.loads(metadata),
        created=created,
        session=session,
        vector=np.zeros(0, np.float32),
        terms=np.zeros(0, np.uint32),
        places=places,
        seq=seq,
        position=position,
        speaker=speaker,
        surprise=surprise,
        value=value,
        used=used,
    )


def _matrix(blobs: list[bytes], dim: int | None) -> Vector:
    return np.frombuffer(b"".join(blobs), np.float32).reshape(len(blobs), dim or 0)


def _parts(values: list[Any], size: int = 500) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
