"""The chat in the terminal: what each command does and says."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fake_engine import FakeEngine
from memory_titan.app.chat_people import People
from memory_titan.app.chat_terminal import plain, talk

FACT, QUESTION = "The code of the boat shed is 5082.", "What code opens the boat shed?"


@pytest.fixture
def chat(tmp_path, monkeypatch):
    def chat(*lines):
        given = iter(lines)

        def read(self, prompt=""):
            try:
                return next(given)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(Console, "input", read)
        people, console = People(FakeEngine(), file=tmp_path / "notes.mem"), Console(file=io.StringIO(), width=100)
        try:
            talk(people.person(""), console, "A stand-in")
        finally:
            people.close()
        return console.file.getvalue()

    return chat


def test_told_cleared_asked_forgotten(chat):
    said = chat(
        FACT, "/clear", QUESTION, "/forget boat shed", "n", "/forget boat shed", "y", QUESTION, "/undo", QUESTION
    )
    assert "written, surprise" in said and "not written: question" in said
    assert f"from memory: “{FACT}”, 32 nats" in said
    assert "erase this?" not in said and said.count("Erased from the weights") == 1
    assert "the memory was silent" in said and f"Taken back: forgot: {FACT}" in said
    assert said.count("from memory") == 2


def test_what_was_told_is_there_next_time(chat):
    chat(FACT, "/bye", "never read")
    said = chat(QUESTION, "/memory", "/why")
    assert "holds 1 text." in said and said.count(f"“{FACT}”") == 2
    assert "1 of 8 texts held" in said and "it speaks from some 11" in said


def test_without_memory(chat):
    said = chat(FACT, "/off", QUESTION, "The vet is Okonkwo.", "/why", "/on", QUESTION)
    assert said.count("from memory") == 1 and "memory off" in said


def test_bad_input_is_one_line_and_the_talk_goes_on(chat, tmp_path):
    file = tmp_path / "bad.txt"
    file.write_bytes(b"\xff\xfe")
    said = chat(
        "",
        "  ",
        "/forget",
        "/read",
        f"/read {file}",
        f"/read {tmp_path / 'none'}",
        "x" * 5000,
        "/nothing",
        "fail now",
        FACT,
    )
    for sentence in (
        "nothing was said",
        "not a text file",
        "No such file",
        "may have 4,000",
        "told to fail",
        "written",
    ):
        assert sentence in said


def test_a_file_is_read_and_saved(chat, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text(f"{FACT} " + " ".join(f"Row {number} is full." for number in range(9)))
    said = chat(f"/read {file}", "/save")
    assert "10 texts read, 10 written" in said and "2 texts longest unused had to go" in said and "Saved" in said


def test_nothing_steers_the_terminal():
    assert plain("a\x1b[2Jb\x07\u202e") == "a�[2Jb��" and plain("żółć 🦜\n") == "żółć 🦜\n"
