"""What a hostile or a clumsy user does: a clear refusal, and every promise kept."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from bag import BagEmbedder
from memory_titan import TitansManager
from memory_titan.embedders import CachedEmbedder
from memory_titan.integrations.keeping import keeping
from memory_titan.store.errors import StoreError, StoreFileError, StoreLockedError
from memory_titan.store.wording import sentences, weighted_terms

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def opened(path=None, **options):
    return TitansManager(BagEmbedder(), path=path, **options)


def traces(folder, word=b"quuxsecret"):
    return {file.name for file in folder.iterdir() if word in file.read_bytes()}


# -- forgetting


@pytest.mark.parametrize("where", [[], "", (), 0, False])
def test_an_empty_filter_of_another_type_does_not_forget_everything(where):
    titans = opened()
    titans.add_documents(["one", "two"])
    for ask in (lambda: titans.forget(where=where), lambda: titans.query("one", where=where)):
        with pytest.raises(ValueError, match="a filter is an object"):
            ask()
    assert titans.forget(ids=[]) == titans.forget(ids=[], where={}) == 0
    assert len(titans) == 2


def test_the_cache_forgets_what_a_speaker_said():
    embedder = CachedEmbedder(BagEmbedder())
    titans = TitansManager(embedder)
    before = len(embedder)
    ids = titans.add_documents(["Bob: my secret", "a plain one"])
    assert len(embedder) == before + 2
    titans.forget(ids)
    assert len(embedder) == before


@pytest.mark.parametrize("kind", ["all", "long_term", "persistent"])
def test_nothing_is_left_of_what_was_replaced(tmp_path, kind):
    titans = opened(tmp_path / "a.memory")
    titans.add_documents("quuxsecret", memory_type=kind, ids=["a"])
    assert traces(tmp_path)
    titans.add_documents("something else", memory_type=kind, ids=["a"])
    assert not traces(tmp_path)
    titans.close()


@posix
def test_killed_between_forgetting_and_erasing(tmp_path):
    """Opening the file again finishes the work."""
    code = f"""
import os, signal, sys; sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}
from bag import BagEmbedder
from memory_titan import TitansManager
titans = TitansManager(BagEmbedder(), path={str(tmp_path / "a.memory")!r})
titans.add_documents(["quuxsecret"], ids=["s"])
titans.backend.erase = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
titans.forget("s")
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert traces(tmp_path)
    with opened(tmp_path / "a.memory") as titans:
        assert not traces(tmp_path) and len(titans) == 0


def test_forgetting_again_finishes_what_a_reader_held_up(tmp_path):
    titans = opened(tmp_path / "a.memory")
    titans.add_documents("quuxsecret", ids=["s"])
    reader = opened(tmp_path / "a.memory", read_only=True)
    reader.backend._db.execute("BEGIN")
    reader.backend._db.execute("SELECT COUNT(*) FROM items").fetchone()
    titans.backend.erasing = 0.1
    with pytest.raises(StoreError, match="another process is reading"):
        titans.forget("s")
    reader.close()
    assert titans.forget("s") == 0
    assert not traces(tmp_path)
    titans.close()


# -- one writer


def test_a_link_is_the_same_file(tmp_path):
    (tmp_path / "link.memory").symlink_to(tmp_path / "a.memory")
    with opened(tmp_path / "a.memory"), pytest.raises(StoreLockedError):
        opened(tmp_path / "link.memory")


def test_another_thread_may_close(tmp_path):
    titans = []
    thread = threading.Thread(target=lambda: titans.append(opened(tmp_path / "a.memory")))
    thread.start()
    thread.join()
    titans[0].close()
    opened(tmp_path / "a.memory").close()


@posix
def test_a_forked_child_neither_writes_nor_closes(tmp_path):
    titans = opened(tmp_path / "a.memory")
    titans.add_documents("hello")
    child = os.fork()
    if not child:
        status = 0
        try:
            for use in (lambda: titans.add_documents("from the child"), lambda: titans.query("hello")):
                try:
                    use()
                    status = 1
                except StoreError as error:
                    status |= 0 if "forked" in str(error) else 2
            titans.close()
        except BaseException:
            status |= 4
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(StoreLockedError):
        opened(tmp_path / "a.memory")
    titans.add_documents("after")
    assert len(titans) == 2 and titans.check() == []
    titans.close()


def test_it_is_closed_even_if_it_cannot_be_written_any_more(tmp_path):
    titans = opened(tmp_path / "a.memory")
    titans.add_documents("hello")
    titans.backend.set_meta = lambda *_: None
    titans.long_term.checkpoint = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        titans.close()
    opened(tmp_path / "a.memory").close()


def test_closed_is_closed(tmp_path):
    for path in (tmp_path / "a.memory", None):
        titans = opened(path)
        titans.add_documents("hello")
        titans.close()
        for use in (lambda t: t.query("hello"), len, lambda t: t.add_documents("x"), lambda t: t.stats()):
            with pytest.raises(StoreError, match="is closed"):
                use(titans)


def test_the_folder_may_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    titans = opened("a.memory")
    monkeypatch.chdir("/")
    titans.add_documents("hello")
    assert titans.query("hello") and not os.path.exists("/a.memory")
    titans.close()


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", "a'b\"", "猫 ü", "a;b&c", os.fsdecode(b"\xff\xfe")])
def test_odd_paths(tmp_path, name):
    with opened(tmp_path / name) as titans:
        titans.add_documents("hello")
        assert titans.query("hello")
    assert (tmp_path / name).exists()


@posix
def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        for read_only in (False, True):
            with pytest.raises(StoreFileError, match="is no file"):
                opened(tmp_path / name, read_only=read_only)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_an_export_does_not_overwrite_the_store(tmp_path):
    with opened(tmp_path / "a.memory") as titans:
        titans.add_documents("hello")
        with pytest.raises(ValueError, match="the store itself"):
            titans.export(tmp_path / "a.memory")
        with pytest.raises(StoreError, match="cannot be written"):
            titans.backup(tmp_path / "no" / "copy")
        assert len(titans) == 1 and titans.check() == []


# -- interrupted


def test_interrupted_after_the_commit(tmp_path):
    """The indexes then follow the database before they are next used."""
    with opened(tmp_path / "a.memory") as titans:
        titans.add_documents("the first one")

        def interrupt(*_):
            raise KeyboardInterrupt

        titans.backend.indexes.words.add = interrupt
        with pytest.raises(KeyboardInterrupt):
            titans.add_documents("a second thing", ids=["second"])
        assert titans.query("second thing", 1)[0]["id"] == "second"
        titans.backend.indexes.words.add = interrupt
        with pytest.raises(KeyboardInterrupt):
            titans.add_documents("the third")
        titans.add_documents("a fourth")
        assert len(titans) == len(titans.backend.indexes.vectors) == len(titans.backend.indexes.words) == 4


def test_what_was_embedded_before_an_error_is_held():
    embedder, told = BagEmbedder(), []
    titans = TitansManager(embedder)
    titans.add_documents("one more")
    embed, embedder.calls = embedder.embed, 0
    embedder.embed = lambda texts: embed(texts) if embedder.calls < 1 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        titans.add_documents([f"text {n}" for n in range(600)], progress=told.append)
    assert told == [256] and len(titans) == 257


def test_a_failing_writer_and_readers_do_not_wait_for_each_other():
    """In memory, where reading takes the writer's lock: both locks are taken in one order."""
    titans = opened(short_term_size=5, long_term_size=40)
    titans.add_documents([f"text {n}" for n in range(100)])
    end = time.monotonic() + 1.5

    def write():
        titans.long_term._evict = lambda report: 1 / 0
        while time.monotonic() < end:
            with pytest.raises(ZeroDivisionError):
                titans.add_documents([f"more {n}" for n in range(70)])

    def read():
        while time.monotonic() < end:
            titans.query("text 3", 2)
            titans.stats()

    threads = [threading.Thread(target=work, daemon=True) for work in (write, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


# -- odd and large arguments


def test_ids_of_other_types():
    titans = opened()
    assert titans.add_documents("hello", ids="abc") == ["abc"]
    assert titans.add_documents("hello", ids=[7]) == ["7"]
    assert [found["id"] for found in titans.get("abc") + titans.get([7])] == ["abc", "7"]
    assert titans.get([10**50, None]) == [] and titans.forget([10**50]) == 0
    for use in (titans.get, titans.forget):
        with pytest.raises(ValueError, match="surrogate"):
            use(["\ud800"])
    with pytest.raises(ValueError, match="years 1 to 9999"):
        titans.add_documents("x", times=10**400)


@pytest.mark.parametrize("query", ["", " ", "the of a", "?!", "😀", "مرحبا", "a\0b", "\ud800 hello", "hello " * 20000])
def test_odd_queries(query):
    titans = opened()
    titans.add_documents(["hello there", "猫が好きです", "مرحبا بالعالم"])
    assert len(titans.query(query, 10**6)) <= 3
    assert titans.query(query, memory_types=[]) == titans.query(query, after=5, before=1) == []


def test_a_thousand_equal_hits():
    """Each hit was compared with every other pair, for minutes."""
    titans = opened(**keeping())
    titans.add_documents(["the same"] * 1500)
    titans.add_documents([f"nearly {n}" for n in range(1000)], vectors=np.ones((1000, 64)))
    hits = titans.query("the same", 1000)
    assert len(hits[0]["duplicates"]) == 1499 and len(hits) >= 900


def test_a_query_of_very_many_words_asks_for_the_rarest():
    titans = opened()
    titans.add_documents([*[f"common w{n}" for n in range(1200)], "quite unique"])
    query = " ".join(["common", "quite", "unique", *(f"w{n}" for n in range(1100)), *(f"x{n}" for n in range(5000))])
    terms = []
    lexical = titans.backend.lexical
    titans.backend.lexical = lambda asked, *rest: (terms.append(len(asked)), lexical(asked, *rest))[1]
    vector = np.zeros(64, np.float32)
    titans.embedder.embed_query = lambda text: vector + 1
    assert titans.query(query, 5)
    assert terms == [1024]


def test_titles_without_end_are_read_once():
    text = "Mr. " * 25_000
    assert len(sentences(text)) == 1 and weighted_terms(text)
    assert sentences("I saw Prof. Li. He left.") == ["I saw Prof. Li. ", "He left."]


def test_a_file_whose_metadata_is_no_object(tmp_path):
    from click.testing import CliRunner

    from memory_titan.cli import main

    (tmp_path / "bad.jsonl").write_text('{"content": "x", "metadata": "abc"}\n')
    command = ["store", "add", str(tmp_path / "bad.jsonl"), "--path", str(tmp_path / "a.memory")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2 and "line 1: metadata must be an object" in done.output
