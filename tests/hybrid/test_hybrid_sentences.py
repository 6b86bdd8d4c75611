"""A text comes out as its sentences, whatever its line breaks, its encoding's accidents and the pieces it came in."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_titan.hybrid.sentences import TextError, read_text, sentences

CASES = {
    "abbreviations": (
        "Dr. Smith met Mr. Jones at 5 p.m. on Friday. They spoke of St. John's, e.g. of its roof. It leaks.",
        [
            "Dr. Smith met Mr. Jones at 5 p.m. on Friday.",
            "They spoke of St. John's, e.g. of its roof.",
            "It leaks.",
        ],
    ),
    "initials": ("J. R. R. Tolkien wrote it. The U.S. is big.", ["J. R. R. Tolkien wrote it.", "The U.S. is big."]),
    "numbers": (
        "It costs 3.50 euros. The address is 10.0.0.1. See www.example.com for version 2.1 of it.",
        ["It costs 3.50 euros.", "The address is 10.0.0.1.", "See www.example.com for version 2.1 of it."],
    ),
    "hard-wrapped": (
        "The quick brown fox that lives behind the old mill jumped over\n"
        "the lazy dog and then went home to see Mary Smith, who was at\n"
        "home too. It\nwas late.\n",
        [
            "The quick brown fox that lives behind the old mill jumped over the lazy dog and then went home "
            "to see Mary Smith, who was at home too.",
            "It was late.",
        ],
    ),
    "hard-wrapped before a name": (
        "The quick brown fox that lives behind the old mill went to see\nMary Smith at her house.",
        ["The quick brown fox that lives behind the old mill went to see Mary Smith at her house."],
    ),
    "list": (
        "Shopping:\n- two eggs\n- a loaf of bread. The brown one.\n* milk\n2) butter",
        ["Shopping:", "- two eggs", "- a loaf of bread.", "The brown one.", "* milk", "2) butter"],
    ),
    "table": ("| name | code |\n| shed | 4471 |", ["| name | code |", "| shed | 4471 |"]),
    "heading": ("# The shed\nIts code is 4471.", ["# The shed", "Its code is 4471."]),
    "notes": (
        "Code of the shed: 4471\nKey behind the door\nCall Anna on Monday\n",
        ["Code of the shed: 4471", "Key behind the door", "Call Anna on Monday"],
    ),
    "quotes": (
        '"Where is it?" she asked. He said: "Go home. Now." Then he left.',
        ['"Where is it?" she asked.', 'He said: "Go home. Now."', "Then he left."],
    ),
    "curly quotes": (
        "“Where is it?” she asked. “Go home. Now!” Then he left.",
        ["“Where is it?” she asked.", "“Go home. Now!”", "Then he left."],
    ),
    "crlf": (
        "One is here.\r\nTwo is\r\nthere.\r\n\r\nThree\r\nFour\r\n",
        ["One is here.", "Two is there.", "Three", "Four"],
    ),
    "blank lines": ("the one\n\n \n\nthe other", ["the one", "the other"]),
    "white space": ("  one   two\t of\u00a0three.  Then   four. ", ["one two of three.", "Then four."]),
    "no words": ("... !!!\n---\n***\n  \n", []),
    "nothing": ("", []),
}


def sentences_of(path, size: int = 1 << 16) -> list[str]:
    return list(sentences(read_text(path, size)))


def file_of(tmp_path, data: bytes):
    path = tmp_path / "notes.txt"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES.keys())
def test_cut(text, expected):
    assert list(sentences(text)) == expected


def test_the_number_of_an_item_stays_with_it():
    assert list(sentences("1. Ring the bell.\n2. Wait.")) == ["1. Ring the bell.", "2. Wait."]


def test_a_long_text_without_line_breaks():
    text = "The cat of Dr. Smith sat on the mat. " * 20_000  # 740,000 characters
    assert set(sentences(text)) <= {
        "The cat of Dr. Smith sat on the mat.",
        *halves("The cat of Dr. Smith sat on the mat."),
    }
    assert "".join(sentences(text)).replace(" ", "") == text.replace(" ", "")


def halves(sentence: str) -> set[str]:
    """What is left of a sentence on either side of a cut between words."""
    words = sentence.split()
    return {" ".join(part) for cut in range(1, len(words)) for part in (words[:cut], words[cut:])}


@pytest.mark.parametrize("pieces", [1, 1000])
def test_a_paragraph_of_any_length_is_held_in_parts(pieces):
    line = "and so it goes on and on from one line to the very next\n"
    text = line * 5000  # one sentence of 280,000 characters
    size = len(text) // pieces
    found = list(sentences(text[at : at + size] for at in range(0, len(text), size)))
    assert " ".join(found).split() == text.split()
    assert max(map(len, found)) < 45_000


def test_streamed_text_is_not_gathered():
    seen = 0

    def long():
        nonlocal seen
        while seen < 10_000:
            seen += 1
            yield f"This is sentence {seen}. "

    stream = sentences(long())
    first = [next(stream) for _ in range(3)]
    assert first == [f"This is sentence {n}." for n in (1, 2, 3)]
    assert seen < 2500


@given(st.data())
def test_odd_pieces_give_what_one_piece_gives(data):
    lines = st.lists(st.sampled_from([text for text, _ in CASES.values()]), max_size=6).map("\n".join)
    strange = st.text(alphabet="aB .!?\n\r\t-*1,;é—“”🙂\u2028", max_size=80)
    text = data.draw(lines | strange)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert list(sentences(pieces)) == list(sentences(text))


@pytest.mark.parametrize("text", ["The quick cat sat on the mats. " * 2500 + "\nThe end.", "x" * 30_000 + "\nThe end."])
def test_odd_pieces_of_a_very_long_line(text):
    assert list(sentences(text[at : at + 777] for at in range(0, len(text), 777))) == list(sentences(text))


@given(st.text(max_size=200))
def test_no_word_is_lost(text):
    found = list(sentences(text))
    assert all(sentence == " ".join(sentence.split()) and re.search(r"\w", sentence) for sentence in found)
    assert re.findall(r"\w", "".join(found)) == re.findall(r"\w", text)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1 << 16])
def test_a_character_split_over_two_reads(tmp_path, size):
    text = "Zoë löst 3 Fragen für 5 €. Das 🙂 gehört İpek. 日本語のテキスト。\r\nEnde."
    path = file_of(tmp_path, text.encode())
    assert "".join(read_text(path, size)) == text
    assert sentences_of(path, size) == list(sentences(text))


@pytest.mark.parametrize("size", [1, 2, 4, 1 << 16])
def test_a_byte_order_mark_is_no_text(tmp_path, size):
    path = file_of(tmp_path, b"\xef\xbb\xbfHello there.")
    assert sentences_of(path, size) == ["Hello there."]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(
            "Zoë is here.".encode("latin-1"), r"notes\.txt is not UTF-8 text \(near byte [23]\)", id="latin-1"
        ),
        pytest.param("Hello.".encode("utf-16"), r"notes\.txt is not UTF-8 text \(near byte 0\)", id="utf-16"),
        pytest.param(b"Hello \xe2\x82", r"notes\.txt is not UTF-8 text", id="ends-in-a-character"),
        pytest.param(b"Hello\x00there", r"notes\.txt is not text: it holds zero bytes", id="zero-bytes"),
        pytest.param(b"", r"notes\.txt is empty", id="empty"),
        pytest.param(b" \r\n\t\n", r"notes\.txt is empty", id="white"),
        pytest.param(b"\xef\xbb\xbf", r"notes\.txt is empty", id="mark-alone"),
    ],
)
@pytest.mark.parametrize("size", [3, 1 << 16])
def test_what_is_no_text_is_refused_by_name(tmp_path, data, message, size):
    with pytest.raises(TextError, match=message):
        sentences_of(file_of(tmp_path, data), size)


def test_the_place_of_a_bad_byte(tmp_path):
    path = file_of(tmp_path, b"x" * 100_000 + b"\xff" + b"y" * 100_000)
    with pytest.raises(TextError, match="near byte 100000"):
        sentences_of(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(TextError, match=r"no such file: .*gone\.txt"):
        sentences_of(tmp_path / "gone.txt")
    with pytest.raises(TextError, match="is a folder"):
        sentences_of(tmp_path)
