"""A store's truth in PostgreSQL with pgvector: many stores in one database, many processes at one store.

Every statement is bound to its store, whatever the filter says. Who writes takes the store's lock for the time of one
transaction, so items arrive in one order; readers wait for nobody. Words and vectors are searched by the database.

What is deleted leaves the tables and the neural weights at once, and `erase` has the server's VACUUM clear away dead
rows and their entries in the indexes. Their bytes may stay in the server's files until the room is used again. Its
write-ahead log, its backups and its replicas keep what they have for as long as whoever runs the server lets them.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import numpy as np

from memory_titan.store import postgres_items, postgres_search, postgres_upkeep
from memory_titan.store.backend import Standing, Words
from memory_titan.store.errors import StoreError, StoreFileError, StoreReadOnlyError
from memory_titan.store.item import Item, Seqs, Vector
from memory_titan.store.names import name_words
from memory_titan.store.postgres_link import (
    PATIENCE,
    Connection,
    make_pool,
    make_vectors,
    open_store,
    place,
    plain,
    psycopg,
)
from memory_titan.store.sessions import Places

NAME_CHARACTERS = 200


class PostgresBackend:
    """See the module. Safe for threads and processes.

    Args:
        url: "postgresql://user:password@host/database".
        name: of the store in that database, 1 to 200 characters.
        read_only: never write; the store must be there.

    Raises:
        ImportError: psycopg is missing.
        StoreError: no connection, no pgvector, or too old a server.
        StoreFileError: tables of a newer version; no such store to read.
        StoreReadOnlyError: the role may not write.
    """

    def __init__(self, url: str, name: str, read_only: bool = False) -> None:
        if not 1 <= len(name) <= NAME_CHARACTERS or "\0" in name:
            raise ValueError(
                f"a store's name has 1 to {NAME_CHARACTERS} characters, no NUL among them; got {name!r:.60}"
            )
        self._url, self.name, self.read_only = url, name, read_only
        self._where = f"store {name!r} in {place(url)}"
        self.exclusive = False  # but within a transaction nobody else writes
        self.dim: int | None = None
        self._lock = threading.RLock()
        self._depth = 0  # of nested transactions
        self._owner: int | None = None  # thread that is within one
        self._writer: Connection | None = None  # its connection
        self._items = 0  # when last looked
        self._names, self._named = frozenset[str](), -1  # words of speakers' names, up to this seq
        self._graph = False  # an index of the vectors is there
        self._builder: threading.Thread | None = None  # of one
        self._store = open_store(url, name, read_only)
        self._pool = make_pool(url, read_only)

    def close(self) -> None:
        """Let go of the connections; an index that is being made is finished first."""
        if self._builder is not None:
            self._builder.join()
        self._pool.close(timeout=PATIENCE)

    # -- transactions

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        """One of the pool's; errors of the database are said plainly."""
        db = None
        try:
            db = self._pool.getconn()
            yield db
        except psycopg.Error as error:
            if db is not None and db.closed:
                self._pool.check()  # the others may be lost too
            raise plain(error, self._url) from error
        finally:
            if db is not None:
                self._pool.putconn(db)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, alone in this store; nested ones are part of the outermost."""
        if self.read_only:
            raise StoreReadOnlyError(f"{self._where} was opened for reading")
        with self._lock:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            with self._connection() as db:
                db.execute("BEGIN")
                try:
                    if not db.execute("SELECT 1 FROM stores WHERE store = %s FOR UPDATE", (self._store,)).fetchone():
                        raise StoreFileError(f"{self._where} is no longer there")
                    self._depth, self._owner, self._writer = 1, threading.get_ident(), db
                    self.exclusive = True
                    yield
                    self._commit(db)
                except BaseException:
                    if not db.closed:
                        with contextlib.suppress(psycopg.Error):
                            db.execute("ROLLBACK")
                    raise
                finally:
                    self.exclusive = False
                    self._depth, self._owner, self._writer = 0, None, None
        self._index_if_due()

    def _commit(self, db: Connection) -> None:
        if db.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
            # Someone went on after an error; the database would roll back and call that a commit.
            raise StoreError(f"{self._where}: a statement of this call failed; nothing of it was kept")
        try:
            db.execute("COMMIT")
        except psycopg.OperationalError as error:
            if db.closed:
                raise plain(
                    error, self._url, "whether this call was kept is not known: look before adding anew"
                ) from error
            raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A connection to read from; within a transaction the writer's own."""
        if self._writer is not None and self._owner == threading.get_ident():
            yield self._writer
            return
        with self._connection() as db:
            yield db

    @property
    def _db(self) -> Connection:
        """To write to."""
        if self._writer is None or self._owner != threading.get_ident():
            raise StoreError("writing happens within a transaction")
        return self._writer

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query gives, its first parameter being the store."""
        with self._reading() as db:
            return db.execute(sql, (self._store, *values), binary=True).fetchall()

    # -- writing, within a transaction

    def add(self, items: Sequence[Item]) -> None:
        """Insert items; each is given its `seq`. StoreError for what PostgreSQL cannot keep."""
        if items:
            self._items = postgres_items.insert(self._db, self._store, items, self._dim)

    @property
    def _dim(self) -> int:
        assert self.dim is not None, "open_indexes comes first"
        return int(self.dim)

    def update(self, rows: Iterable[Standing]) -> None:
        """Set (seq, places, surprise, value)."""
        if columns := list(zip(*rows, strict=True)):
            self._db.execute(
                "UPDATE items SET places = new.places, surprise = new.surprise, value = new.value FROM "
                "unnest(%s::bigint[], %s::int[], %s::float8[], %s::float8[]) AS new (seq, places, surprise, value) "
                "WHERE items.store = %s AND items.seq = new.seq",
                (*map(list, columns), self._store),
            )

    def count_use(self, uses: dict[int, int], value: float) -> None:
        """Add to the `used` of items, by seq, and set their value."""
        self._db.execute(
            "UPDATE items SET used = used + new.n, value = %s FROM unnest(%s::bigint[], %s::bigint[]) AS new (seq, n) "
            "WHERE items.store = %s AND items.seq = new.seq",
            (value, list(uses), list(uses.values()), self._store),
        )

    def shorten(self, items: Sequence[Item]) -> None:
        """Set content, terms (some of those before) and `abridged`, by seq: words were cut out. Vectors stay."""
        if items:
            postgres_items.shorten(self._db, self._store, items)

    def delete(self, seqs: Sequence[int]) -> None:
        """Delete items with all that is known of them."""
        postgres_items.delete(self._db, self._store, seqs, self._dim)

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a JSON value."""
        self._db.execute(
            "INSERT INTO meta VALUES (%s, %s, %s) ON CONFLICT (store, key) DO UPDATE SET value = EXCLUDED.value",
            (self._store, key, json.dumps(value)),
        )

    def set_blob(self, name: str, data: bytes | None) -> None:
        """Keep bytes; None: no longer."""
        self._db.execute("DELETE FROM blobs WHERE store = %s AND name = %s", (self._store, name))
        if data is not None:
            self._db.execute("INSERT INTO blobs VALUES (%s, %s, %s)", (self._store, name, data))

    def append_log(self, position: int, vectors: Vector) -> None:
        """Vectors written to the neural memory, the first at `position`."""
        with self._db.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO log VALUES (%s, %s, %s) "
                "ON CONFLICT (store, position) DO UPDATE SET vector = EXCLUDED.vector",
                [(self._store, position + n, vector.astype("<f4").tobytes()) for n, vector in enumerate(vectors)],
            )

    def clear_log(self) -> None:
        """Forget the log: a checkpoint covers it, or it is void."""
        self._db.execute("DELETE FROM log WHERE store = %s", (self._store,))

    def erase(self, at_once: bool = True) -> bool:
        """VACUUM our tables, so that the server clears deleted rows away; see the module for what that leaves.

        Not `at_once`: only when so many are dead that a search feels them.
        """
        if not self.read_only:
            with self._connection() as db:
                if at_once or postgres_upkeep.much_is_dead(db):
                    db.execute(postgres_upkeep.vacuum(self._dim))
        return True

    # -- reading

    def meta(self, key: str, default: Any = None) -> Any:
        """A JSON value that was kept."""
        rows = self._rows("SELECT value FROM meta WHERE store = %s AND key = %s", key)
        return json.loads(rows[0][0]) if rows else default

    def blob(self, name: str) -> bytes | None:
        """Bytes that were kept."""
        rows = self._rows("SELECT data FROM blobs WHERE store = %s AND name = %s", name)
        return bytes(rows[0][0]) if rows else None

    def log(self, start: int) -> tuple[list[int], Vector]:
        """Positions from `start` on, and their vectors `[n, dim]`."""
        rows = self._rows(
            "SELECT position, vector FROM log WHERE store = %s AND position >= %s ORDER BY position", start
        )
        vectors = np.frombuffer(b"".join(row[1] for row in rows), "<f4").astype(np.float32)
        return [row[0] for row in rows], vectors.reshape(len(rows), self.dim or 0)

    def places_of(self, seqs: Seqs) -> Seqs:
        """`[n]`, the places bits of items; 0 for what is not there."""
        found = dict(self._rows("SELECT seq, places FROM items WHERE store = %s AND seq = ANY (%s)", seqs))
        return np.array([found.get(seq, 0) for seq in seqs.tolist()], np.int64)

    def standing(self, seqs: Seqs) -> list[Standing]:
        """Of the items that are there, in the order of their seqs, what `update` sets."""
        sql = "SELECT seq, places, surprise, value FROM items WHERE store = %s AND seq = ANY (%s) ORDER BY seq"
        return list(self._rows(sql, seqs))

    def get(self, seqs: Sequence[int] | Seqs, full: bool = False) -> list[Item]:
        """The items that are (still) there, in the given order; with `full`, vectors and terms too."""
        wanted = np.asarray(seqs, np.int64).reshape(-1)
        found = {
            row[0]: postgres_items.item_of(row)
            for row in self._rows(
                f"SELECT {postgres_items.COLUMNS}, terms, bytes FROM items LEFT JOIN abridged USING (store, seq) "
                "WHERE store = %s AND seq = ANY (%s)",
                wanted,
            )
        }
        items = [found[seq] for seq in wanted.tolist() if seq in found]
        if full:
            for item, vector in zip(items, self.vectors_of(np.array([i.seq for i in items], np.int64)), strict=True):
                item.vector = vector
        return items

    def seqs_of(self, ids: Sequence[str]) -> dict[str, int]:
        """id -> seq, of those that are there."""
        possible = [name for name in ids if "\0" not in name]
        return {
            row[0]: row[1]
            for row in self._rows("SELECT id, seq FROM items WHERE store = %s AND id = ANY (%s)", possible)
        }

    def select(
        self,
        where: dict[str, Any] | None = None,
        places: int | None = None,
        after: float | None = None,
        before: float | None = None,
        order: str = "seq",
        limit: int | None = None,
    ) -> Seqs:
        """Seqs of the items that a filter lets through; see `Backend`."""
        sql, values = postgres_search.selection(where, places, after, before, order, limit)
        return np.array([row[0] for row in self._rows(sql, *values)], np.int64)

    def count(self, places: int | None = None) -> int:
        """Items held in any of `places`."""
        if places is None:
            return int(self._rows("SELECT items FROM stores WHERE store = %s")[0][0])
        return int(self._rows(f"SELECT count(*) FROM items WHERE store = %s AND places & {int(places)} <> 0")[0][0])

    def nbytes(self, places: int) -> int:
        """Bytes of the texts held in any of `places`, UTF-8."""
        sql = "SELECT coalesce(sum(octet_length(content)), 0)::bigint FROM items WHERE store = %s AND places & "
        return int(self._rows(f"{sql}{int(places)} <> 0")[0][0])

    # -- searching

    def open_indexes(self, dim: int) -> None:
        """Make the table for vectors of this width; needed once before searching and adding."""
        self.dim = dim
        if not self.read_only:
            with self._connection() as db:
                make_vectors(db, dim)
                db.execute(
                    "UPDATE stores SET dim = %s WHERE store = %s AND dim IS DISTINCT FROM %s", (dim, self._store, dim)
                )
        self._items = self.count()
        self.refresh()

    def refresh(self) -> None:
        """Nothing is kept here that others' writing outdates, but whether a large store has its graph by now.

        How large it is, every search learns on its way.
        """
        if not self._graph and self._items >= postgres_search.INDEXED_FROM:
            with self._reading() as db:
                self._graph = postgres_search.has_graph(db, self._store, self._dim)

    def _index_if_due(self) -> None:
        """Once a process, whatever comes of it."""
        large = self._items >= postgres_search.INDEXED_FROM
        if large and not self._graph and self._builder is None and self._dim <= postgres_search.INDEXED_DIM:
            arguments = self._url, self._store, self._dim
            self._builder = threading.Thread(
                target=postgres_search.make_graph, args=arguments, name="memory-titan index"
            )
            self._builder.start()

    def dense(self, vector: Vector, k: int, allowed: Seqs | None = None) -> tuple[Seqs, Vector]:
        """The k nearest by cosine, best first, of equals the newer first. Never fewer than there are."""
        query = np.asarray(vector, np.float32)
        among = self._items if allowed is None else len(allowed)
        with self._reading() as db:
            if self._graph and among > postgres_search.EXACT:
                found = postgres_search.by_graph(db, self._store, query, k, allowed)
                if len(found[0]) == k:
                    return found
            return postgres_search.exact(db, self._store, query, k, allowed)

    def lexical(self, terms: Any, k: int, allowed: Seqs | None = None) -> tuple[Seqs, Vector]:
        """The k best by BM25 for uint32 terms, best first, of equals the newer first."""
        with self._reading() as db:
            return postgres_search.lexical(db, self._store, terms, k, allowed)

    def words_of(self, terms: Any, seqs: Seqs) -> Words:
        """Counts of uint32 terms in items, and in how many of all items each term stands."""
        with self._reading() as db:
            words = postgres_search.words_of(db, self._store, terms, seqs)
        self._items = words.items
        return words

    def places(self, seqs: Seqs) -> Places:
        """Where items stand in their sessions; session -1 for what is not there."""
        with self._reading() as db:
            return postgres_search.places(db, self._store, seqs)

    def around(self, seqs: Seqs, radius: int) -> Seqs:
        """These items and those at most `radius` places before and after each in its session; ascending."""
        with self._reading() as db:
            return postgres_search.around(db, self._store, seqs, radius)

    def same_words(self, items: Sequence[Item]) -> list[Seqs]:
        """Of each item, seqs of those that have the same words, in whatever order and number, ascending."""
        asked = [postgres_items.wording(item.terms) for item in items]
        found: dict[int, list[int]] = {}
        sql = "SELECT wording, seq FROM items WHERE store = %s AND wording = ANY (%s) ORDER BY seq"
        for wording, seq in self._rows(sql, np.array(asked, np.int64)):
            found.setdefault(wording, []).append(seq)
        return [np.array(found.get(wording, []), np.int64) for wording in asked]

    def name_words(self) -> Set[str]:
        """Words of the names of all speakers, lower case; what was added since is looked up."""
        sql = "SELECT speaker, max(seq) FROM items WHERE store = %s AND seq > %s GROUP BY speaker"
        for speaker, seq in self._rows(sql, self._named):
            self._names |= name_words(speaker or "")
            self._named = max(self._named, seq)
        return self._names

    def vectors_of(self, seqs: Seqs) -> Vector:
        """`[n, dim]`; zeros for what is not there."""
        wanted = np.asarray(seqs, np.int64).reshape(-1)
        sql = f"SELECT seq, vector_send(embedding) FROM vectors_{self._dim} WHERE store = %s AND seq = ANY (%s)"
        found = self._rows(sql, wanted)
        # four bytes of header, then big-endian floats; a row of zeros for what is not there
        table = np.zeros((len(found) + 1, 1 + self._dim), np.float32)
        table[1:] = np.frombuffer(b"".join(row[1] for row in found), ">f4").reshape(len(found), 1 + self._dim)
        rows = {row[0]: place for place, row in enumerate(found, 1)}
        return table[[rows.get(seq, 0) for seq in wanted.tolist()], 1:]

    # -- files

    @property
    def file_bytes(self) -> int:
        """Of our tables and their indexes on the server's disk, this store's share by items: an estimate."""
        return postgres_upkeep.share(self._rows, self._dim)

    def check(self) -> list[str]:
        """What does not fit together in the store's tables; empty: nothing."""
        return postgres_upkeep.check(self._rows, self._dim)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Not here: StoreError says what does it."""
        raise StoreError(
            f"{self._where} is backed up by the server's own means (pg_dump --schema=memory_titan), or written to a "
            "file by export()"
        )
