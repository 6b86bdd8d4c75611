"""`memory-titan store`: from files and back, and what is refused."""

import json

import pytest
from click.testing import CliRunner

from memory_titan.cli import main

BAG = ["--embedder", "bag:BagEmbedder"]


def run(*arguments, code=0, input=None):
    result = CliRunner().invoke(main, ["store", *map(str, arguments)], input=input)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def store(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("The key is under the third flower pot.\n\nThe lake house has 14 beds.\n\n" + "word " * 500)
    assert run("add", notes, "--path", tmp_path / "a.memory", *BAG).startswith("5 items added; 5 held")
    return tmp_path / "a.memory"


def test_add_and_query(store, tmp_path):
    lines = tmp_path / "more.jsonl"
    record = {"content": "Ann: the boat is blue", "metadata": {"user": "u1"}, "session": "s", "created": "2026-05-01"}
    lines.write_text(json.dumps(record) + "\n\n")
    run("add", lines, "--metadata", '{"kind": "chat"}', "--path", store, *BAG)
    output = run("query", "what colour is the boat", "--json", "--where", '{"kind": "chat"}', "--path", store, *BAG)
    (hit,) = map(json.loads, output.splitlines())
    assert hit["metadata"] == {"user": "u1", "kind": "chat"} and hit["created"].startswith("2026-05-01")
    assert "third flower pot" in run("query", "where is the key", "--top-k", 1, "--path", store, *BAG).splitlines()[0]
    assert "nothing found" in run("query", "key", "--after", "2990-01-01", "--path", store, *BAG)


def test_forget_asks_first(store):
    everything = ["forget", "--where", '{"source": "notes.txt"}', "--path", store, *BAG]
    assert "Aborted" in run(*everything, input="n\n", code=1)
    assert run(*everything, "--yes") == "5 forgotten\n"
    assert json.loads(run("stats", "--path", store, *BAG))["items"] == 0


def test_export_and_import(store, tmp_path):
    assert "5 items" in run("export", tmp_path / "dump.jsonl", "--path", store, *BAG)
    assert "--force" in run("export", tmp_path / "dump.jsonl", "--path", store, *BAG, code=2)
    assert "5 items" in run("import", tmp_path / "dump.jsonl", "--path", tmp_path / "b.memory", *BAG)
    run("export", tmp_path / "again.jsonl", "--path", tmp_path / "b.memory", *BAG)
    first, second = ((tmp_path / name).read_text().splitlines() for name in ("dump.jsonl", "again.jsonl"))
    for line, again in zip(first, second, strict=True):  # how surprising it is, is found out anew
        assert {**json.loads(line), "surprise": 0} == {**json.loads(again), "surprise": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"content": "a"}\n{"content": 3}\n', "line 2"), ("{\n", "line 1: no JSON"), ('{"content": " "}', "line 1")],
)
def test_a_bad_line_is_named_and_nothing_is_added(tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    assert message in run("add", tmp_path / "bad.jsonl", "--path", tmp_path / "a.memory", *BAG, code=2)
    assert not (tmp_path / "a.memory").exists()


def test_what_cannot_be(store, tmp_path):
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    assert "no UTF-8" in run("add", tmp_path / "image.png", "--path", store, *BAG, code=2)
    assert "no store at" in run("query", "x", "--path", tmp_path / "none", *BAG, code=2)
    assert "--path FILE" in run("query", "x", *BAG, code=2)
    assert "JSON object" in run("query", "x", "--where", "[1]", "--path", store, *BAG, code=2)
    assert "$foo" in run("query", "x", "--where", '{"a": {"$foo": 1}}', "--path", store, *BAG, code=2)
    assert "say what to forget" in run("forget", "--path", store, *BAG, code=2)
