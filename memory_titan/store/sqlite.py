"""A store's truth in one SQLite file (WAL), and the indexes in memory that follow it.

items    text, metadata, times, places        vectors  embedding and hashed words of each
tags     metadata by key and value            gone     what was deleted, for other processes' indexes
log      vectors written to the neural memory since its last checkpoint       blobs    that checkpoint, and others
abridged  how much was cut out of items

A reader's indexes catch up before each search, by the `change` that each row was written with.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import numpy as np

from memory_titan.store import sqlite_abridged, sqlite_upkeep
from memory_titan.store.backend import Standing, Words
from memory_titan.store.errors import StoreError, StoreFileError
from memory_titan.store.indexes import Indexes
from memory_titan.store.item import Item, Seqs, Vector
from memory_titan.store.sessions import Places
from memory_titan.store.sqlite_file import SqliteFile, sum_of
from memory_titan.store.terms import pack, unpack
from memory_titan.store.top import ascending
from memory_titan.store.where import TAGS_SCHEMA, sqlite_clause, sqlite_tags, tag_rows

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, content TEXT NOT NULL, metadata TEXT NOT NULL,
    created REAL NOT NULL, session TEXT, position INTEGER NOT NULL, speaker TEXT, places INTEGER NOT NULL,
    surprise REAL, value REAL NOT NULL, used INTEGER NOT NULL, change INTEGER NOT NULL, sum INTEGER NOT NULL);
CREATE INDEX items_created ON items (created);
CREATE INDEX items_short ON items (seq) WHERE places & 1;
CREATE INDEX items_long ON items (seq) WHERE places & 2;
CREATE INDEX items_persistent ON items (seq) WHERE places & 4;
CREATE INDEX items_pending ON items (seq) WHERE places & 8;
CREATE TABLE vectors (seq INTEGER PRIMARY KEY, vector BLOB NOT NULL, terms BLOB NOT NULL, sum INTEGER NOT NULL);
CREATE TABLE gone (seq INTEGER PRIMARY KEY, change INTEGER NOT NULL);
CREATE INDEX gone_change ON gone (change);
CREATE TABLE log (position INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE blobs (name TEXT PRIMARY KEY, data BLOB NOT NULL, sum INTEGER NOT NULL);
INSERT INTO meta VALUES ('change', '0');
INSERT INTO meta VALUES ('gone_from', '0');
"""
_json, _parse = json.JSONEncoder(ensure_ascii=False).encode, json.JSONDecoder().raw_decode  # made once
_NO_VECTOR, _NO_TERMS = np.empty(0, np.float32), np.empty(0, np.uint32)
COLUMNS = "seq, id, content, metadata, created, session, position, speaker, places, surprise, value, used, sum"


class SqliteBackend(SqliteFile):
    """See the module, and `SqliteFile` for the arguments."""

    def __init__(self, path: str | os.PathLike[str] | None, read_only: bool = False, durable: bool = False) -> None:
        self._indexes: Indexes | None = None  # from open_indexes on
        self._seen, self._data_version = -1, -1  # the change that the indexes stand at
        self._added: dict[str | None, int] = {}  # items by session, of this transaction: not in the index yet
        self.dim: int | None = None
        self._abridges = not read_only  # the table is there
        super().__init__(SCHEMA + TAGS_SCHEMA, sqlite_abridged.ADDED, path, read_only, durable)

    def _beginning(self) -> None:
        self._added = {}
        if self._seen < 0 and self._indexes is not None:
            self.refresh()

    def _fell_behind(self) -> None:
        self._seen = -1  # they are built anew before they are next needed

    def close(self) -> None:
        """Finish; the file then stands alone, its log emptied."""
        with self._lock:
            if self._closed or self.forked:
                return
            try:
                if not self.read_only:
                    with self.transaction():  # a reader that still stands before this builds its indexes anew
                        self._db.execute("DELETE FROM gone")
                        now = self._db.execute("SELECT value FROM meta WHERE key = 'change'").fetchone()
                        self._db.execute("UPDATE meta SET value = ? WHERE key = 'gone_from'", now)
                if self._indexes is not None:
                    self._indexes.close()
            finally:
                super().close()

    # -- writing, within a transaction

    def add(self, items: Sequence[Item]) -> None:
        """Insert items; each is given its `seq`."""
        change, db = self._next_change(), self._db
        last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
        ends: dict[str | None, int] = {}
        for seq, item in enumerate(items, 1 + (last[0] if last else 0)):
            item.seq = seq
            if item.session not in ends:
                ends[item.session] = self.indexes.sessions.next_position(item.session) + self._added.get(
                    item.session, 0
                )
            item.position = ends[item.session]
            ends[item.session] += 1
            self._added[item.session] = self._added.get(item.session, 0) + 1
        db.executemany(
            f"INSERT INTO items ({COLUMNS}, change) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    i.seq,
                    i.id,
                    i.content,
                    written,
                    i.created,
                    i.session,
                    i.position,
                    i.speaker,
                    i.places,
                    i.surprise,
                    i.value,
                    i.used,
                    sum_of(i.id, i.content, written),
                    change,
                )
                for i in items
                for written in [_json(i.metadata) if i.metadata else "{}"]
            ),
        )
        db.executemany(
            "INSERT INTO vectors VALUES (?, ?, ?, ?)",
            (
                (i.seq, vector, terms, zlib.crc32(vector + terms))
                for i in items
                for vector, terms in [(i.vector.tobytes(), pack(i.terms))]
            ),
        )
        tags = [(key, kind, value, i.seq) for i in items if i.metadata for key, kind, value in tag_rows(i.metadata)]
        if tags:
            db.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?, ?, ?)", tags)
        seqs, vectors = [i.seq for i in items], np.stack([i.vector for i in items])
        stand = [(i.session, i.position, i.speaker) for i in items]
        self._after.append(lambda: self.indexes.add(seqs, vectors, [i.terms for i in items], stand))

    def update(self, rows: Iterable[Standing]) -> None:
        """Set (seq, places, surprise, value)."""
        change = self._next_change()
        self._db.executemany(
            "UPDATE items SET places = ?2, surprise = ?3, value = ?4, change = ?5 WHERE seq = ?1",
            ((seq, places, surprise, value, change) for seq, places, surprise, value in rows),
        )

    def count_use(self, uses: dict[int, int], value: float) -> None:
        """Add to the `used` of items, by seq, and set their value."""
        rows = ((n, value, seq) for seq, n in uses.items())
        self._db.executemany("UPDATE items SET used = used + ?, value = ? WHERE seq = ?", rows)

    def shorten(self, items: Sequence[Item]) -> None:
        """Set content, terms (some of those before) and `abridged`, by seq: words were cut out. Vectors stay."""
        sqlite_abridged.write(self._db, items, self._next_change())
        left = {i.seq: i.terms for i in items}
        self._after.append(lambda: self.indexes.words.reword(left))

    def delete(self, seqs: Sequence[int]) -> None:
        """Delete items with all that is known of them."""
        change, rows = self._next_change(), [(int(seq),) for seq in seqs]
        for table in ("items", "vectors", "tags", "abridged"):
            self._db.executemany(f"DELETE FROM {table} WHERE seq = ?", rows)
        self._db.executemany("INSERT OR REPLACE INTO gone VALUES (?, ?)", ((seq[0], change) for seq in rows))
        gone = np.sort(np.asarray([row[0] for row in rows], np.int64))
        self._after.append(lambda: self.indexes.remove(gone))

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a JSON value."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def set_blob(self, name: str, data: bytes | None) -> None:
        """Keep bytes; None: no longer."""
        self._db.execute("DELETE FROM blobs WHERE name = ?", (name,))
        if data is not None:
            self._db.execute("INSERT INTO blobs VALUES (?, ?, ?)", (name, data, zlib.crc32(data)))

    def append_log(self, position: int, vectors: Vector) -> None:
        """Vectors written to the neural memory, the first at `position`."""
        rows = ((position + n, vector.tobytes()) for n, vector in enumerate(vectors))
        self._db.executemany("INSERT OR REPLACE INTO log VALUES (?, ?)", rows)

    def clear_log(self) -> None:
        """Forget the log: a checkpoint covers it, or it is void."""
        self._db.execute("DELETE FROM log")

    # -- reading

    def meta(self, key: str, default: Any = None) -> Any:
        """A JSON value that was kept."""
        with self._reading() as db:
            row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def blob(self, name: str) -> bytes | None:
        """Bytes that were kept, if they are as they were written."""
        with self._reading() as db:
            row = db.execute("SELECT data, sum FROM blobs WHERE name = ?", (name,)).fetchone()
        return None if row is None or zlib.crc32(row[0]) != row[1] else bytes(row[0])

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
                    found[row[0]] = self._item(row)
                if self._abridges:
                    for seq, cut in db.execute(f"SELECT seq, bytes FROM abridged WHERE seq IN ({marks})", part):
                        if seq in found:
                            found[seq].abridged = cut
                if full:
                    for seq, vector, terms, _ in db.execute(f"SELECT * FROM vectors WHERE seq IN ({marks})", part):
                        found[seq].vector, found[seq].terms = np.frombuffer(vector, np.float32), unpack(terms)
        return [found[seq] for seq in wanted if seq in found]

    def places_of(self, seqs: Seqs) -> Seqs:
        """`[n]`, the places bits of items; 0 for what is not there."""
        found: dict[int, int] = {}
        with self._reading() as db:
            for part in _parts(seqs.tolist()):
                marks = ",".join("?" * len(part))
                found.update(db.execute(f"SELECT seq, places FROM items WHERE seq IN ({marks})", part).fetchall())
        return np.array([found.get(seq, 0) for seq in seqs.tolist()], np.int64)

    def standing(self, seqs: Seqs) -> list[Standing]:
        """Of the items that are there, in the order of their seqs, what `update` sets."""
        found: list[Standing] = []
        with self._reading() as db:
            for part in _parts(sorted(seqs.tolist())):
                marks = ",".join("?" * len(part))
                sql = f"SELECT seq, places, surprise, value FROM items WHERE seq IN ({marks}) ORDER BY seq"
                found += db.execute(sql, part).fetchall()
        return found

    def _item(self, row: tuple[Any, ...]) -> Item:
        if sum_of(*row[1:4]) != row[-1]:
            raise StoreFileError(f"{self.path} is damaged: item {row[1]!r:.60} is not as it was written")
        return _item(row)

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
            order: "seq" or "-seq".
            limit: the first ones only.
        """
        tags = sqlite_tags(where) if where else None
        if tags and places is None and after is None and before is None and order == "seq" and limit is None:
            return ascending(self._numbers(*tags))
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
        by = {"seq": "seq", "-seq": "seq DESC"}[order]
        sql += "" if limit is None else f" ORDER BY {by} LIMIT {int(limit)}"
        found = np.sort(self._numbers(sql, values))
        return found if order == "seq" else found[::-1]

    def _numbers(self, sql: str, values: Sequence[Any]) -> Seqs:
        """What a query for seqs finds, in any order."""
        with self._reading() as db:  # as one text: a third of the time of a row each
            found = db.execute(f"SELECT group_concat(seq) FROM ({sql})", values).fetchone()[0]
        return np.fromstring(found, np.int64, sep=",") if found else np.empty(0, np.int64)

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
        self._indexes = Indexes(dim)
        self.refresh()

    def refresh(self) -> None:
        """Catch up with what another process has written."""
        if self._seen >= 0 and not self.read_only:
            return  # the only writer
        self._check_open()
        with self._lock:
            self._check_open()
            version = self._db.execute("PRAGMA data_version").fetchone()[0]
            if self._seen >= 0 and version == self._data_version:
                return
            try:
                self._db.execute("BEGIN")
                told = dict(
                    self._db.execute("SELECT key, value FROM meta WHERE key IN ('change', 'gone_from')").fetchall()
                )
                if self._seen < int(told["gone_from"]):  # too long ago to tell what is gone
                    self.indexes.close()
                    self._indexes = Indexes(self.indexes.dim)
                gone = self._db.execute("SELECT seq FROM gone WHERE change > ? ORDER BY seq", (self._seen,)).fetchall()
                self._abridges = sqlite_abridged.is_there(self._db)
                since = self._seen, self.indexes.newest
                less = sqlite_abridged.terms_since(self._db, *since) if self._abridges else {}
                sql = """SELECT seq, vector, terms, vectors.sum, session, position, speaker
                         FROM vectors JOIN items USING (seq) WHERE seq > ? ORDER BY seq"""
                new = self._db.execute(sql, (self.indexes.newest,)).fetchall()
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise self._plain(error) from error
            self._seen = -1  # until all of it is done
            if gone and self.indexes.newest >= 0:
                self.indexes.remove(np.array([row[0] for row in gone], np.int64))
            self.indexes.words.reword(less)
            for part in _parts(new, 8192):
                if any(zlib.crc32(vector + terms) != told for _, vector, terms, told, *_ in part):
                    raise StoreFileError(f"{self.path} is damaged: vectors are not as they were written")
                vectors = _matrix([row[1] for row in part], self.dim)
                self.indexes.add(
                    [row[0] for row in part], vectors, [unpack(row[2]) for row in part], [row[4:] for row in part]
                )
            self._seen, self._data_version = int(told["change"]), version

    @property
    def indexes(self) -> Indexes:
        """What is searched in."""
        if self._indexes is None:
            raise StoreError("the store's indexes were not opened")
        return self._indexes

    def dense(self, vector: Vector, k: int, allowed: Seqs | None = None) -> tuple[Seqs, Vector]:
        """The k nearest by cosine, best first."""
        return self.indexes.vectors.search(vector, k, allowed)

    def lexical(self, terms: Any, k: int, allowed: Seqs | None = None) -> tuple[Seqs, Vector]:
        """The k best by BM25 for uint32 terms, best first."""
        seqs, scores = self.indexes.words.search(terms, k, allowed)
        return seqs, np.asarray(scores, np.float32)

    def vectors_of(self, seqs: Seqs) -> Vector:
        """`[n, dim]`."""
        return self.indexes.vectors.vectors_of(seqs)

    def same_words(self, items: Sequence[Item]) -> list[Seqs]:
        """Of each item, seqs of those that have the same words."""
        return self.indexes.words.same_words([item.terms for item in items])

    def words_of(self, terms: Any, seqs: Seqs) -> Words:
        """Counts of uint32 terms in items, and in how many of all items each term stands."""
        return self.indexes.words_of(terms, seqs)

    def places(self, seqs: Seqs) -> Places:
        """Where items stand in their sessions; session -1 for what is not there."""
        return self.indexes.places(seqs)

    def name_words(self) -> Set[str]:
        """Words of the names of all speakers, lower case."""
        return self.indexes.sessions.name_words

    def around(self, seqs: Seqs, radius: int) -> Seqs:
        """These items and those at most `radius` before and after each in its session; ascending."""
        return self.indexes.sessions.around(seqs, radius)

    # -- files

    def check(self) -> list[str]:
        """What is wrong: with the file by SQLite's own examination, and with what is in it. Empty: nothing."""
        with self._reading() as db:
            return sqlite_upkeep.check(db)


def _item(row: tuple[Any, ...]) -> Item:
    seq, name, content, metadata, created, session, position, speaker, places, surprise, value, used, _ = row
    return Item(
        id=name,
        content=content,
        metadata={} if metadata == "{}" else _parse(metadata)[0],
        created=created,
        session=session,
        vector=_NO_VECTOR,
        terms=_NO_TERMS,
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
