"""The way to a PostgreSQL server: what it has to offer, our tables in it, connections, and what it says, said plainly.

Everything is in one schema, `memory_titan`, and every row of a store begins with the store's number:

stores    name, the last seq, sums that a search needs; its row is the lock that writers of a store take
items     text, metadata, times, places, terms as they come          postings  term -> items, for BM25
meta, blobs, log, abridged    as in `sqlite.py`                      vectors_384    embeddings of 384, and so on
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import psycopg as psycopg  # from here to the others, so that its absence is said in one place
    from psycopg import errors
    from psycopg.abc import Buffer
    from psycopg.adapt import Dumper, PyFormat
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import Format
    from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout
except ImportError as missing:
    raise ImportError("a store in PostgreSQL needs psycopg: pip install memory-titan[postgres]") from missing

from memory_titan.store.errors import StoreError, StoreFileError, StoreLockedError, StoreReadOnlyError

VERSION = 1  # of the tables
LOCK = 0x4D544954  # "MTIT": of who changes tables and indexes
CONNECTIONS = 16
PATIENCE = 10  # seconds to wait for a connection
WRITER_PATIENCE = "60s"  # to wait for another writer
PLAIN_DIM = 1900  # vectors to this width fit in a page beside their item's number
TABLES = f"""
CREATE SCHEMA IF NOT EXISTS memory_titan;
CREATE TABLE memory_titan.version (version INT NOT NULL);
INSERT INTO memory_titan.version VALUES ({VERSION});
CREATE TABLE memory_titan.stores (
    store INT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name TEXT COLLATE "C" NOT NULL UNIQUE,
    seq BIGINT NOT NULL DEFAULT 0, items BIGINT NOT NULL DEFAULT 0, tokens BIGINT NOT NULL DEFAULT 0, dim INT);
CREATE FUNCTION memory_titan.stream_of(session TEXT) RETURNS BIGINT LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN hashtextextended(coalesce(session, ''), 0) & 9223372036854775807;
CREATE TABLE memory_titan.items (
    store INT, seq BIGINT, id TEXT COLLATE "C" NOT NULL, content TEXT NOT NULL, metadata JSONB NOT NULL,
    written TEXT NOT NULL, created DOUBLE PRECISION NOT NULL, session TEXT, position BIGINT NOT NULL,
    speaker TEXT, places INT NOT NULL, surprise DOUBLE PRECISION, value DOUBLE PRECISION NOT NULL,
    used BIGINT NOT NULL, terms BYTEA NOT NULL, wording BIGINT NOT NULL,
    stream BIGINT NOT NULL GENERATED ALWAYS AS (memory_titan.stream_of(session)) STORED,
    PRIMARY KEY (store, seq), UNIQUE (store, id));
COMMENT ON COLUMN memory_titan.items.written IS 'metadata as it was given: JSONB writes some numbers in another way';
COMMENT ON COLUMN memory_titan.items.stream IS 'number of the session; its name may be too long to index';
CREATE UNIQUE INDEX items_stream ON memory_titan.items (store, stream, position) INCLUDE (seq);
CREATE INDEX items_wording ON memory_titan.items (store, wording);
CREATE INDEX items_created ON memory_titan.items (store, created);
CREATE INDEX items_metadata ON memory_titan.items USING gin (metadata);
CREATE INDEX items_short ON memory_titan.items (store, seq) WHERE places & 1 <> 0;
CREATE INDEX items_long ON memory_titan.items (store, value, seq) WHERE places & 2 <> 0;
CREATE INDEX items_persistent ON memory_titan.items (store, seq) WHERE places & 4 <> 0;
CREATE INDEX items_pending ON memory_titan.items (store, seq) WHERE places & 8 <> 0;
CREATE TABLE memory_titan.postings (
    store INT, term INT, seq BIGINT, tf INT NOT NULL, length INT NOT NULL,
    PRIMARY KEY (store, term, seq) INCLUDE (tf, length));
CREATE TABLE memory_titan.meta (store INT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (store, key));
CREATE TABLE memory_titan.blobs (store INT, name TEXT, data BYTEA NOT NULL, PRIMARY KEY (store, name));
CREATE TABLE memory_titan.log (store INT, position BIGINT, vector BYTEA NOT NULL, PRIMARY KEY (store, position));
"""
# Of an earlier day; made where it is missing.
ADDED = """CREATE TABLE IF NOT EXISTS memory_titan.abridged (
    store INT, seq BIGINT, bytes BIGINT NOT NULL, PRIMARY KEY (store, seq))"""
# pgvector may be in any schema.
FIND_VECTOR = """SELECT set_config('search_path', 'memory_titan, ' || quote_ident(nspname), false)
    FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'"""

Connection = psycopg.Connection[Any]


def open_store(url: str, name: str, read_only: bool) -> int:
    """The number of a store, which is made if it is not there, as the tables are; `read_only`: neither is.

    Raises:
        StoreError: no such server, or it is too old, has no pgvector, or keeps text in another encoding than UTF-8.
        StoreFileError: tables of a newer version; with `read_only`, no tables or no such store.
        StoreReadOnlyError: the role may not write.
    """
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=PATIENCE) as db:
            if read_only:
                db.execute("SET default_transaction_read_only = on")
            _check_server(db)
            if _version(db) is None and not read_only:
                with _alone(db):
                    if _version(db) is None:  # nobody was faster
                        db.execute(TABLES)
            if not read_only and _version(db) == VERSION and not _is_there(db, "abridged"):
                with _alone(db):
                    db.execute(ADDED)
            version = _version(db)
            if version is None:
                raise StoreFileError(f"there is no memory-titan store in {place(url)}")
            if version > VERSION:
                raise StoreFileError(
                    f"the stores in {place(url)} are of version {version}; this memory-titan knows up to {VERSION}. "
                    "Use a newer one."
                )
            found = db.execute("SELECT store FROM memory_titan.stores WHERE name = %s", (name,)).fetchone()
            if found is None and read_only:
                raise StoreFileError(f"there is no store {name!r} in {place(url)}")
            if found is None:
                db.execute("INSERT INTO memory_titan.stores (name) VALUES (%s) ON CONFLICT DO NOTHING", (name,))
                found = db.execute("SELECT store FROM memory_titan.stores WHERE name = %s", (name,)).fetchone()
            assert found is not None
            return int(found[0])
    except psycopg.Error as error:
        raise plain(error, url, "nothing was changed") from None


def _check_server(db: Connection) -> None:
    if db.info.server_version < 160000:
        raise StoreError(f"stores need PostgreSQL 16 or newer; this server is {db.info.server_version // 10000}")
    if (encoding := db.execute("SHOW server_encoding").fetchone()) and encoding[0] != "UTF8":
        raise StoreError(f"stores need a database in UTF8; this one is in {encoding[0]}")
    found = db.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    if found is None:
        raise StoreError("the database has no pgvector. Install it on the server and run CREATE EXTENSION vector")
    if [int(part) for part in found[0].split(".")[:2]] < [0, 8]:
        raise StoreError(
            f"stores need pgvector 0.8 or newer; the database has {found[0]}: ALTER EXTENSION vector UPDATE"
        )


def _version(db: Connection) -> int | None:
    if not _is_there(db, "version"):
        return None
    found = db.execute("SELECT max(version) FROM memory_titan.version").fetchone()
    return None if found is None else found[0]


def _is_there(db: Connection, table: str) -> bool:
    found = db.execute("SELECT to_regclass(%s)::text", (f"memory_titan.{table}",)).fetchone()
    return found is not None and found[0] is not None


@contextlib.contextmanager
def _alone(db: Connection) -> Iterator[None]:
    """A transaction that makes tables. It begins with the lock in hand, so it sees who had it before."""
    db.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
    try:
        with db.transaction():
            yield
    finally:
        if not db.closed:
            db.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))


def make_vectors(db: Connection, dim: int) -> None:
    """The table for vectors of one width, if it is not there."""
    table = f"memory_titan.vectors_{int(dim)}"
    if _is_there(db, f"vectors_{int(dim)}"):
        return
    with _alone(db):
        columns = f"store INT, seq BIGINT, embedding vector({int(dim)}) NOT NULL, PRIMARY KEY (store, seq)"
        db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        if dim <= PLAIN_DIM:  # in the row itself, where a scan of all finds them
            db.execute(f"ALTER TABLE {table} ALTER embedding SET STORAGE PLAIN")


def make_pool(url: str, read_only: bool) -> ConnectionPool[Connection]:
    """Connections as the backend needs them."""

    def configure(db: Connection) -> None:
        db.adapters.register_dumper(np.ndarray, ArrayDumper)
        settings = {
            "jit": "off",  # compiling takes longer than any of our queries
            "plan_cache_mode": "force_custom_plan",  # an array of one may be followed by one of a million
            "lock_timeout": WRITER_PATIENCE,
            "default_transaction_read_only": "on" if read_only else "off",
        }
        for key, value in settings.items():
            db.execute("SELECT set_config(%s, %s, false)", (key, value))
        db.execute(FIND_VECTOR)

    return ConnectionPool(
        url,
        kwargs={"autocommit": True, "connect_timeout": PATIENCE},
        min_size=1,
        max_size=CONNECTIONS,
        timeout=PATIENCE,
        configure=configure,
        open=True,
        name="memory-titan",
    )


def place(url: str) -> str:
    """Which database and server a URL names, without user and password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        parts = {}
    host, port = str(parts.get("host") or parts.get("hostaddr") or "the default host"), str(parts.get("port") or "")
    name = str(parts.get("dbname") or "of the user")
    if (
        not parts or "@" in host + name or (port and not port.replace(",", "0").isdigit())
    ):  # pieces of a password, it may be
        raise StoreError(
            "the url cannot be read; it is postgresql://user:password@host/database, and @ : / in a password are "
            "written %40 %3A %2F"
        ) from None
    return f"database {name} at {host}{port and ':' + port}"


def plain(error: Exception, url: str, kept: str = "nothing of this call was kept") -> StoreError:
    """What PostgreSQL or its client says, said plainly and without the password."""
    where, text = place(url), str(error).strip().partition("\n")[0]
    if password := conninfo_to_dict(url).get("password"):
        text = text.replace(str(password), "***")
    if isinstance(error, PoolClosed):
        return StoreError(f"the store in {where} is closed")
    if isinstance(error, (errors.InsufficientPrivilege, errors.ReadOnlySqlTransaction)):
        return StoreReadOnlyError(f"{where} does not let this role: {text}; to read only, open with read_only=True")
    if isinstance(error, (errors.LockNotAvailable, errors.DeadlockDetected)):
        return StoreLockedError(f"the store in {where} is being written by another process: {text}; {kept}")
    if isinstance(error, (errors.UndefinedTable, errors.InvalidSchemaName, errors.UndefinedColumn)):
        return StoreFileError(f"the tables in {where} are not as they were made: {text}")
    if isinstance(error, PoolTimeout) or (isinstance(error, psycopg.OperationalError) and error.sqlstate is None):
        return StoreError(f"no connection to {where}: {text}; {kept}")
    return StoreError(f"{where}: {text}; {kept}")


# dtype -> oid of the array, oid of an element
_KINDS = {"f4": (1021, 700), "f8": (1022, 701), "i4": (1007, 23), "i8": (1016, 20)}


class ArrayDumper(Dumper):
    """NumPy arrays of one dimension, float32, float64, int32 or int64, as PostgreSQL's arrays in binary form."""

    format = Format.BINARY

    def __init__(self, cls: type, context: Any = None, kind: str = "") -> None:
        super().__init__(cls, context)
        self._kind = kind
        if kind:
            self.oid, self._element = _KINDS[kind]

    def get_key(self, obj: NDArray[Any], format: PyFormat) -> Any:
        return (self.cls, obj.dtype.str[1:])

    def upgrade(self, obj: NDArray[Any], format: PyFormat) -> ArrayDumper:
        return ArrayDumper(self.cls, kind=obj.dtype.str[1:])

    def dump(self, obj: NDArray[Any]) -> Buffer:
        if not len(obj):
            return np.array([0, 0, self._element], ">i4").tobytes()
        cells = np.empty(len(obj), np.dtype([("size", ">i4"), ("value", f">{self._kind}")]))
        cells["size"], cells["value"] = obj.dtype.itemsize, obj
        return np.array([1, 0, self._element, len(obj), 1], ">i4").tobytes() + cells.tobytes()
