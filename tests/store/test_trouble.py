"""What can go wrong with a store's file: a clear error, and nothing lost."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import pytest

from bag import BagEmbedder
from memory_titan import TitansManager
from memory_titan.store.errors import StoreError, StoreFileError, StoreLockedError, StoreReadOnlyError


@pytest.fixture
def path(tmp_path):
    with TitansManager(BagEmbedder(), path=tmp_path / "a.memory") as titans:
        titans.add_documents([f"text number {n}" for n in range(100)])
    return tmp_path / "a.memory"


def opened(path, **options):
    return TitansManager(BagEmbedder(), path=path, **options)


def test_two_writers(path):
    with opened(path) as first:
        with pytest.raises(StoreLockedError, match="read_only=True"):
            opened(path)
        with opened(path, read_only=True) as reader:
            first.add_documents("something quite new")
            assert reader.query("something quite new", 1)[0]["content"] == "something quite new"
            with pytest.raises(StoreReadOnlyError, match="for reading"):
                reader.add_documents("x")
    opened(path).close()


def test_a_reader_follows_deletions_and_what_came_after_the_writer_left(path):
    reader = opened(path, read_only=True)
    for _ in range(2):
        with opened(path) as writer:
            writer.forget(where={})
            writer.add_documents("all that is left", ids=["one"])
        assert [hit["content"] for hit in reader.query("text number", 9)] == ["all that is left"]
    reader.close()


def test_no_store_to_read(tmp_path):
    with pytest.raises(StoreFileError, match="no store to read"):
        opened(tmp_path / "nothing", read_only=True)
    with pytest.raises(StoreFileError, match="no folder"):
        opened(tmp_path / "no" / "folder.memory")
    assert not list(tmp_path.iterdir())


def test_other_files_are_left_alone(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("dear diary " * 1000)
    sqlite3.connect(other).execute("CREATE TABLE t (x)")
    for file in (text, other):
        before = file.read_bytes()
        with pytest.raises(StoreFileError, match=r"no memory-titan store"):
            opened(file)
        assert file.read_bytes() == before


def test_a_newer_version(path):
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreFileError, match="version 99"):
        opened(path)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.9])
def test_a_damaged_file_is_never_silent_nonsense(path, where):
    """Overwritten in the middle: opening, asking or checking says so, or what comes back is whole."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(int(where * size))
        file.write(os.urandom(8192))
    found, whole = "", False
    try:
        with opened(path, read_only=True) as titans:
            found = " ".join(titans.check())
            for hit in titans.query("text number 5", 10):
                assert hit["content"].startswith("text number")
            contents = {item.content for item in titans.backend.get(titans.backend.select())}
            whole = contents == {f"text number {n}" for n in range(100)}  # it may have been a page that is free
    except StoreError as error:
        found += str(error)
    assert found or whole
    assert found or where > 0


def test_damaged_weights_are_made_anew(path):
    db = sqlite3.connect(path)
    data = bytearray(db.execute("SELECT data FROM blobs").fetchone()[0])
    data[len(data) // 2] ^= 1
    with db:
        db.execute("UPDATE blobs SET data = ?", (bytes(data),))
    db.close()
    with opened(path) as titans:
        assert "neural" in titans.check()[0]
        titans.query("text")
        assert titans.long_term.neural.written == titans.stats()["long_term"]["items"]
    with opened(path, read_only=True) as titans:
        assert titans.check() == []


def test_a_truncated_file(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(StoreError, match="damaged"):
        opened(path, read_only=True).query("text")


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_file_that_may_not_be_written(path):
    """As another user: reading works, writing is refused."""
    for each in (path, path.parent):
        each.chmod(0o555 if each.is_dir() else 0o444)
    for parent in list(path.parents)[1:4]:
        if parent.stat().st_uid == os.getuid() and "pytest" in str(parent):
            parent.chmod(0o755)
    code = f"""
import sys; sys.path[:0] = {[str(os.path.dirname(__file__)), *sys.path]!r}
from bag import BagEmbedder
from memory_titan import TitansManager
assert TitansManager(BagEmbedder(), path={str(path)!r}, read_only=True).query("text", 1)
try:
    TitansManager(BagEmbedder(), path={str(path)!r})
except Exception as error:
    print(type(error).__name__)
"""
    command = [sys.executable, "-c", code]
    if os.getuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": "/tmp"})
    path.parent.chmod(0o755)
    if "Permission denied" in done.stderr and "memory_titan" not in done.stderr:
        pytest.skip("another user may not run this Python")
    assert done.stdout.strip() == "StoreReadOnlyError", done.stderr[-2000:]


def test_a_full_disk_keeps_what_was_there(path):
    """SQLite's own limit on the file stands in for the disk's."""
    with opened(path) as titans:
        pages = titans.backend._db.execute("PRAGMA page_count").fetchone()[0]
        titans.backend._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match=r"could not be written.*nothing of this call was kept"):
            titans.add_documents([f"far too much {n} " * 50 for n in range(300)])
        held = len(titans)
        assert titans.query("text number 7", 1) and not titans.get(["far too much"])
    with opened(path) as titans:
        assert len(titans) == held and titans.check() == []
        titans.add_documents("room again")
        assert titans.query("room again", 1)[0]["content"] == "room again"


def test_many_threads_ask_while_one_writes(path):
    failures, stop = [], threading.Event()
    with opened(path, short_term_size=50, long_term_size=150) as titans:

        def ask(number):
            try:
                for n in range(1000):
                    for hit in titans.query(f"text number {(number * 7 + n) % 100}", 3):
                        assert hit["content"].startswith(("text number", "later"))
                    if stop.is_set():
                        return
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for n in range(40):
            ids = titans.add_documents([f"later text number {n} {m}" for m in range(10)])
            titans.forget(ids[:1])
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]


def test_it_can_be_copied_while_it_is_used(path, tmp_path):
    with opened(path) as titans:
        titans.add_documents("in the log still")
        titans.backup(tmp_path / "copy.memory")
        with pytest.raises(StoreError, match="there already"):
            titans.backup(tmp_path / "copy.memory")
    with opened(tmp_path / "copy.memory") as copy:
        assert len(copy) == 101 and copy.query("in the log still", 1)[0]["content"] == "in the log still"
