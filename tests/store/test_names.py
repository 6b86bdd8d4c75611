"""Speakers: found before a colon, found and hidden in questions."""

import pytest

from memory_titan.store.names import lower_words, name_words, names_in, said, speaker_of, without_names


@pytest.mark.parametrize(
    ("content", "metadata", "speaker", "rest"),
    [
        ("Anna Maria: I am back", {}, "Anna Maria", "I am back"),
        ("Anna: hello", {"speaker": "Bea"}, "Bea", "Anna: hello"),
        ("hello", {"speaker": "Bea"}, "Bea", "hello"),
        ("hello", {"speaker": 3}, None, "hello"),
        ("at 10:30 we left", {}, None, "at 10:30 we left"),
        ("http://x.y", {}, None, "http://x.y"),
        ("O'Neill: so", {}, "O'Neill", "so"),
        ("Zoë:", {}, None, "Zoë:"),
    ],
)
def test_who_said_what(content, metadata, speaker, rest):
    assert speaker_of(content, metadata) == speaker
    assert said(content, speaker) == rest


def test_a_label_is_no_name():
    texts = ["Returns: a tuple", "what returns nothing", "Ann: hi", "User: hi", "the user left"]
    common = lower_words(texts)
    assert [speaker_of(text, {}, common) for text in texts] == [None, None, "Ann", "User", None]
    assert speaker_of("Note: this", {}) == "Note"  # nothing tells


def test_names_are_found_and_hidden():
    known = name_words("Carol Willick") | name_words("Will B.") | name_words("Bob")
    assert known == {"carol", "willick", "bob"}  # no initial, no function word
    assert names_in("What did CAROL say to Bobby?", known) == {"carol"}
    assert without_names("Did Carol Willick's dog bite bob?", known) == "Did someone's dog bite someone?"
    assert without_names("Where is Bobby?", known) == "Where is Bobby?"
    assert without_names("Anything", set()) == "Anything"
