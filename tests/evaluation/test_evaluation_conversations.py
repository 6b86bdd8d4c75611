"""Evidence recall counts what it says; the searches side by side find what they should."""

import numpy as np
import pytest

from memory_titan.evaluation.conversations import compare_searches, evaluate_search
from memory_titan.store.ranking import RankingConfig
from memory_titan.tasks.conversations import Conversation, ConversationTask, Question, Session, Turn

TEXTS = ["Where do you live now?", "In York, by the river.", "I slept badly.", "Leeds was loud.", "Hi Ann!"]
TURNS = tuple(Turn(f"t{n}", ("Bob", "Ann")[n % 2], text) for n, text in enumerate(TEXTS))
QUESTIONS = (
    Question("Where does Ann live?", ("t1",), stale=("t3",)),
    Question("Who is by the river in Leeds?", ("t1", "t3")),
)
SMALL = Conversation("c", (Session("s", TURNS),), QUESTIONS)


def embed(texts):
    """Letters counted."""
    vectors = np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)


def fixed(*ids):
    return lambda conversation: lambda question, k: ids[:k]


def test_recall_is_a_share_of_the_evidence():
    result = evaluate_search([SMALL], fixed("t0", "t3", "t1"), k=2)
    assert result.recall == [0.0, 0.5]
    assert result.first == [1 / 3, 1 / 2]
    assert result.current == [False]
    assert evaluate_search([SMALL], fixed("t1", "t3"), k=2).current == [True]
    assert evaluate_search([SMALL], fixed("t0"), k=2).current == [False]  # not found at all
    summary = evaluate_search([SMALL], fixed("t1"), k=1).summary()
    assert summary["recall@1"] == 0.75 and summary["low"] <= 0.75 <= summary["high"] and summary["mrr"] == 1


def test_searches_side_by_side():
    results = compare_searches([SMALL], embed, k=2)
    assert list(results) == ["bm25", "dense", "fusion", "ranking"]
    assert results["ranking"].recall[0] == 1  # the answer beside the words, by who is asked about
    assert results["bm25"].recall[1] == 1
    assert all(len(each.recall) == 2 for each in results.values())


def test_without_vectors_and_with_weights():
    results = compare_searches([SMALL], k=1, config=RankingConfig(lexical=0, window=0, speaker=0, length=1))
    assert list(results) == ["bm25", "ranking"]
    drawn = [ConversationTask(sessions=4).draw(0, index) for index in range(3)]
    found = {name: each.summary()["recall@10"] for name, each in compare_searches(drawn).items()}
    assert 0 < found["bm25"] < found["ranking"] < 1


def test_what_cannot_be():
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        evaluate_search([SMALL], fixed(), k=0)
    with pytest.raises(ValueError, match="no questions"):
        evaluate_search([], fixed()).summary()
