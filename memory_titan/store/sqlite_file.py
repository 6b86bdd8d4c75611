"""One SQLite file of a store: opened, locked, written whole or not at all, its deleted bytes overwritten.

One process writes (a lock beside the file says so), any number read. What is deleted is overwritten with zeros, and the
write-ahead log is emptied after it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from memory_titan.store.errors import StoreError, StoreFileError, StoreLockedError, StoreReadOnlyError

APPLICATION, VERSION = 0x4D544954, 1  # "MTIT"
READERS = 8  # connections that wait to be used


class SqliteFile:
    """See the module. Safe for threads.

    Args:
        schema: made in a new file.
        added: made where it is missing, as in files of an earlier day.
        path: the file, made if it is not there; None: in memory only.
        read_only: never write; the file must be there.
        durable: every commit is on the disk before it returns, so that it survives a power cut. Without, what was
            acknowledged survives the process's death, not the machine's.

    Raises:
        StoreLockedError: another process writes to it.
        StoreFileError: no store, damaged, newer, or not to be opened.
    """

    def __init__(
        self,
        schema: str,
        added: Sequence[str],
        path: str | os.PathLike[str] | None,
        read_only: bool = False,
        durable: bool = False,
    ) -> None:
        # One name for a file, whatever links lead to it and whatever folder the process goes to later.
        self.path = None if path is None else Path(os.path.realpath(path))
        self.read_only = read_only
        self.exclusive = not read_only
        self._lock = threading.RLock()
        self._depth = 0  # of nested transactions
        self._owner: int | None = None  # thread that is within one
        self._file_lock: FileLock | None = None
        self._closed = False
        self._process = os.getpid()
        self.erasing = 5.0  # seconds to wait for readers before the log can be emptied
        self._pool: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        if read_only and (self.path is None or not os.path.exists(self.path)):
            raise StoreFileError(f"there is no store to read at {path}")
        if self.path is not None and os.path.exists(self.path) and not os.path.isfile(self.path):
            raise StoreFileError(f"{path} is no file")  # opening a pipe would wait for ever
        try:
            unfinished = False
            if self.path is not None and not read_only:
                self._claim(self.path)
                unfinished = self._log_of(self.path).exists()
            self._db = self._connect(read_only)
            self._prepare(schema, added, durable)
            if unfinished:  # who wrote last died; what it deleted may be in the log still
                self.erase()
        except BaseException as error:
            self._release()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise self._plain(error) from error
            raise

    # -- opening and closing

    def _claim(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise StoreFileError(f"there is no folder {path.parent} to make a store in")
        # not of a thread: another one may close
        self._file_lock = FileLock(f"{path}.lock", timeout=0, thread_local=False)
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
        uri = f"file:{quote(os.fsencode(self.path))}?mode={'ro' if read_only else 'rwc'}"
        if read_only and not self._log_of(self.path).exists() and not os.access(self.path.parent, os.W_OK):
            uri += "&immutable=1"  # nobody can be writing, and SQLite could not make the files that it reads along with
        db = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=10.0)
        db.execute("PRAGMA mmap_size=0")
        return db

    def _prepare(self, schema: str, added: Sequence[str], durable: bool) -> None:
        db = self._db
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        empty = not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        if (empty and self.read_only) or (not empty and application != APPLICATION):
            raise StoreFileError(f"{self.path} is no memory-titan store")
        if version > VERSION:
            raise StoreFileError(
                f"{self.path} is a store of version {version}; this memory-titan knows up to {VERSION}: use a newer one"
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
                for statement in schema.strip().split(";\n"):
                    db.execute(statement.removesuffix(";"))
                db.execute(f"PRAGMA application_id={APPLICATION}")
                db.execute(f"PRAGMA user_version={VERSION}")
        for statement in added:
            db.execute(statement)

    def close(self) -> None:
        """Finish; the file then stands alone, its log emptied."""
        with self._lock:
            self._closed = True
            try:
                self.erase()
            finally:
                while not self._pool.empty():
                    self._pool.get_nowait().close()
                self._db.close()
                self._release()

    def _release(self) -> None:
        if self._file_lock is not None:
            self._file_lock.release()
            self._file_lock = None

    @staticmethod
    def _log_of(path: Path) -> Path:
        return path.with_name(f"{path.name}-wal")

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that opened the file: SQLite's connections are not for it."""
        return self.path is not None and os.getpid() != self._process

    def _check_open(self) -> None:
        if self.forked:
            raise StoreError(f"{self.path} was opened before this process was forked: open it again here")
        if self._closed:
            raise StoreError(f"{self.path or 'the store in memory'} is closed")

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
        self._check_open()
        with self._lock:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            self._beginning()
            self._change: int | None = None
            self._after: list[Callable[[], None]] = []
            committing = finished = False
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._depth, self._owner = 1, threading.get_ident()
                yield
                if self._change is not None:
                    self._db.execute("UPDATE meta SET value = ? WHERE key = 'change'", (str(self._change),))
                committing = True
                self._db.execute("COMMIT")
                for action in self._after:
                    action()
                finished = True
            except BaseException as error:
                if self._db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._plain(error) from error
                raise
            finally:
                self._depth, self._owner = 0, None
                if committing and not finished:  # interrupted, as by Ctrl-C
                    self._fell_behind()

    def _beginning(self) -> None:
        """A transaction is about to begin."""

    def _fell_behind(self) -> None:
        """What was committed may not be, or not wholly, in the indexes."""

    def _next_change(self) -> int:
        if self._change is None:
            self._change = int(self._db.execute("SELECT value FROM meta WHERE key = 'change'").fetchone()[0]) + 1
        return self._change

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read from; within a transaction, and in memory, the writer's own."""
        if self._owner == threading.get_ident() and not self.forked:
            yield self._db
            return
        self._check_open()
        if self.path is None:
            with self._lock:
                self._check_open()
                yield self._db
            return
        db = None
        try:
            try:
                db = self._pool.get_nowait()
            except queue.Empty:
                db = self._connect(read_only=True)
            yield db
        except BaseException as error:
            if db is not None:
                db.close()
            if isinstance(error, sqlite3.Error):
                raise self._plain(error) from error
            raise
        if self._pool.qsize() < READERS and not self._closed:
            self._pool.put(db)
        else:
            db.close()

    def erase(self, at_once: bool = True) -> bool:
        """Empty the write-ahead log, so that nothing deleted is left in a file. False while a reader still needs it."""
        if self.path is None or self.read_only or self.forked:
            return True
        with self._lock:
            try:
                self._db.execute(f"PRAGMA busy_timeout={int(self.erasing * 1000)}")
                busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                self._db.execute("PRAGMA busy_timeout=10000")
            except sqlite3.Error as error:
                raise self._plain(error) from error
            return not busy

    # -- files

    @property
    def file_bytes(self) -> int:
        """Of the file and its write-ahead log."""
        if self.path is None:
            return 0
        files = [self.path, self._log_of(self.path)]
        return sum(file.stat().st_size for file in files if file.exists())

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store, while it is in use, to a new file."""
        if Path(path).exists():
            raise StoreError(f"{path} is there already")
        try:
            copy = sqlite3.connect(path)
        except sqlite3.Error as error:
            raise StoreError(f"{path} cannot be written: {error}") from error
        try:
            with self._reading() as db:
                db.backup(copy)
        finally:
            copy.close()


def sum_of(*texts: str) -> int:
    """A sum that tells whether texts are still as they were written."""
    return zlib.crc32("\0".join(texts).encode("utf-8", "surrogateescape"))
