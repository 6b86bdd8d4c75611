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
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from memory_titan.store import postgres_search, postgres_upkeep
from memory_titan.store.errors import StoreError, StoreFileError, StoreReadOnlyError
from memory_titan.store.item import Item, Seqs, Vector
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
from memory_titan.store.postings import postings_of
from memory_titan.store.terms import pack, unpack

NAME_CHARACTERS = 200
ID_BYTES = 2000  # PostgreSQL indexes no longer ones
COLUMNS = "seq, id, content, written, created, session, places, surprise, value, used"


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
        for item in items:
            if "\0" in item.id or "\0" in item.content or "\0" in (item.session or ""):
                raise StoreError(
                    f"PostgreSQL keeps no NUL character; there is one in item {item.id!r:.60} ({item.content!r:.60})"
                )
            if len(item.id.encode()) > ID_BYTES:
                raise StoreError(f"an id has at most {ID_BYTES} bytes; got {item.id!r:.60}...")
        if not items:
            return
        lengths = np.array([len(item.terms) for item in items], np.int32)
        last, self._items = self._db.execute(
            "UPDATE stores SET seq = seq + %s, items = items + %s, tokens = tokens + %s WHERE store = %s "
            "RETURNING seq, items",
            (len(items), len(items), int(lengths.sum()), self._store),
        ).fetchone() or (0, 0)
        first = last - len(items) + 1
        for seq, item in enumerate(items, first):
            item.seq = seq
        documents = [json.dumps(item.metadata, ensure_ascii=False) for item in items]
        with self._db.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO items (store, {COLUMNS}, metadata, terms) VALUES "
                "(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s)",
                [
                    (
                        *(self._store, i.seq, i.id, i.content, document, i.created, i.session, i.places),
                        *(i.surprise, i.value, i.used, document, pack(i.terms)),
                    )
                    for i, document in zip(items, documents, strict=True)
                ],
            )
            cursor.executemany(
                f"INSERT INTO vectors_{self._dim} VALUES (%s, %s, %s::vector)",
                [(self._store, item.seq, np.asarray(item.vector, np.float32)) for item in items],
            )
        found = postings_of(np.concatenate([item.terms for item in items]), lengths, 0)
        self._db.execute(
            "INSERT INTO postings SELECT %s, * FROM unnest(%s::int[], %s::bigint[], %s::int[], %s::int[])",
            (
                self._store,
                found.term.view(np.int32),
                found.row.astype(np.int64) + first,
                np.rint(1 / found.x).astype(np.int32),
                lengths[found.row],
            ),
        )

    @property
    def _dim(self) -> int:
        assert self.dim is not None, "open_indexes comes first"
        return int(self.dim)

    def update(self, rows: Iterable[tuple[int, int, float | None, float]]) -> None:
        """Set (seq, places, surprise, value)."""
        if columns := list(zip(*rows, strict=True)):
            self._db.execute(
                "UPDATE items SET places = new.places, surprise = new.surprise, value = new.value FROM "
                "unnest(%s::bigint[], %s::int[], %s::float8[], %s::float8[]) AS new (seq, places, surprise, value) "
                "WHERE items.store = %s AND items.seq = new.seq",
                (*map(list, columns), self._store),
            )

    def count_use(self, uses: dict[int, int]) -> None:
        """Add to `used`."""
        self._db.execute(
            "UPDATE items SET used = used + new.n FROM unnest(%s::bigint[], %s::bigint[]) AS new (seq, n) "
            "WHERE items.store = %s AND items.seq = new.seq",
            (list(uses), list(uses.values()), self._store),
        )

    def delete(self, seqs: Sequence[int]) -> None:
        """Delete items with all that is known of them."""
        gone = np.asarray(seqs, np.int64).reshape(-1)
        rows = self._rows("DELETE FROM items WHERE store = %s AND seq = ANY (%s) RETURNING seq, terms", gone)
        self._db.execute(f"DELETE FROM vectors_{self._dim} WHERE store = %s AND seq = ANY (%s)", (self._store, gone))
        if not rows:
            return
        terms = [unpack(row[1]) for row in rows]
        lengths = np.array([len(each) for each in terms], np.int32)
        found = postings_of(np.concatenate(terms), lengths, 0)
        self._db.execute(
            "DELETE FROM postings USING unnest(%s::int[], %s::bigint[]) AS gone (term, seq) WHERE postings.store = %s "
            "AND postings.term = gone.term AND postings.seq = gone.seq",
            (found.term.view(np.int32), np.array([row[0] for row in rows], np.int64)[found.row], self._store),
        )
        self._db.execute(
            "UPDATE stores SET items = items - %s, tokens = tokens - %s WHERE store = %s",
            (len(rows), int(lengths.sum()), self._store),
        )

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

    def erase(self, wait: float = 0.0) -> bool:
        """VACUUM our tables, so that the server clears deleted rows away; see the module for what that leaves."""
        if not self.read_only:
            with self._connection() as db:
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

    def get(self, seqs: Sequence[int] | Seqs, full: bool = False) -> list[Item]:
        """The items that are (still) there, in the given order; with `full`, vectors and terms too."""
        wanted = np.asarray(seqs, np.int64).reshape(-1)
        found = {
            row[0]: _item(row)
            for row in self._rows(f"SELECT {COLUMNS}, terms FROM items WHERE store = %s AND seq = ANY (%s)", wanted)
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
        self.refresh()

    def refresh(self) -> None:
        """See how large the store is by now."""
        self._items = self.count()
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

    def idf(self, terms: Any) -> Vector:
        """Of uint32 terms, over all items: how rare each is."""
        with self._reading() as db:
            return postgres_search.idf(db, self._store, terms)

    def vectors_of(self, seqs: Seqs) -> Vector:
        """`[n, dim]`; zeros for what is not there."""
        wanted = np.asarray(seqs, np.int64).reshape(-1)
        sql = f"SELECT seq, vector_send(embedding) FROM vectors_{self._dim} WHERE store = %s AND seq = ANY (%s)"
        # four bytes of header, then big-endian floats
        found = {seq: np.frombuffer(data, ">f4", offset=4) for seq, data in self._rows(sql, wanted)}
        vectors = np.zeros((len(wanted), self._dim), np.float32)
        for row, seq in enumerate(wanted.tolist()):
            if seq in found:
                vectors[row] = found[seq]
        return vectors

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


def _item(row: tuple[Any, ...]) -> Item:
    seq, name, content, written, created, session, places, surprise, value, used, terms = row
    nothing = np.zeros(0, np.float32)
    return Item(
        name, content, json.loads(written), created, session, nothing, unpack(terms), places, seq, surprise, value, used
    )
