"""Words of a query: any string is safe, stems are the index's own, names are found and hidden."""

import sqlite3
from collections import Counter

import pytest

from memory_titan.store.lexical import (
    SCHEMA,
    VOCABULARY,
    Stemmer,
    match,
    postings,
    query_words,
    speakers_named,
    without_names,
)

TEXTS = [
    ("Susan moved to a café.", "Carol Willick"),
    ("I keep moving, moving!", "Bob"),
    ("AND OR NOT NEAR", "Bob"),
    ("co-workers, said Carol", "Ann"),
]


@pytest.fixture
def db():
    connection = sqlite3.connect(":memory:")
    connection.execute(SCHEMA.format(table="items"))
    connection.execute(VOCABULARY.format(table="items"))
    connection.executemany("INSERT INTO items(rowid, text, speaker) VALUES (?, ?, ?)", [
        (10 + place, *each) for place, each in enumerate(TEXTS)
    ])  # fmt: skip
    return connection


def matched(db, query):
    expression = match(query_words(query))
    found = (
        db.execute("SELECT rowid FROM items WHERE items MATCH ? ORDER BY rowid", (expression,)) if expression else []
    )
    return [row for (row,) in found]


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("Did she move to the cafe?", [10, 11]),
        ("CAFÉ", [10]),
        ("cafe\u0301", [10]),  # a letter and its accent apart
        ("near", [12]),  # an operator's name is a word
        ("co-worker's", [13]),
        ("carol", [10, 13]),  # her name, and a turn that holds it
        ('" OR items MATCH "', []),
        ("text:susan -carol ^bob {x}: (susan*", [10, 11, 12, 13]),
        ("susan\0bob", [10, 11, 12]),
        ("\ud800 susan", [10]),  # half a surrogate pair, which UTF-8 cannot hold
        ("", []),
        ("?! \u200b \U0001f642", []),
        ("日本語", []),
        ("x " * 5000 + "susan", [10]),
    ],
)
def test_any_string_is_a_query(db, query, rows):
    assert matched(db, query) == rows
    stems = Stemmer()(query_words(query))
    assert sorted({int(row) for items, _ in postings(db, "items", stems) for row in items}) == rows


def test_thousands_of_different_words_are_a_query(db):
    assert matched(db, " ".join(f"w{n}" for n in range(3000)) + " susan") == [10]


def test_stop_words_go_unless_there_is_nothing_else():
    assert query_words("What did Susan's sister do, what?") == ["susan", "sister"]
    assert query_words("Who is it?") == ["who", "is", "it"]


def test_stems_are_the_index_s(db):
    stems = Stemmer()
    assert stems(["moving", "café", "moved"]) == ["move", "cafe"]
    assert stems([]) == []
    (items, counts), (none, _) = postings(db, "items", [*stems(["moves"]), "absent"])
    assert dict(zip(items.tolist(), counts.tolist(), strict=True)) == Counter({10: 1, 11: 2})
    assert len(none) == 0


def test_speakers_are_named_by_any_word_of_their_name():
    speakers = ["Carol Willick", "Bob", "Will B"]
    assert speakers_named("what did carol say?", speakers) == {"Carol Willick"}
    assert speakers_named("Bobby said he will b", speakers) == set()  # no part of a word, function word or initial


def test_names_are_hidden_from_the_vector():
    speakers = ["Carol Willick", "Bob"]
    assert without_names("Did Carol Willick's dog bite bob?", speakers) == "Did someone's dog bite someone?"
    assert without_names("Where is Bobby?", speakers) == "Where is Bobby?"
    assert without_names("Where is C++ (a*b)?", ["C++", "(a*"]) == "Where is C++ (a*b)?"
    assert without_names("Anything", []) == "Anything"
