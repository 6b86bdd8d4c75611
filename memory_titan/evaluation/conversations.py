"""Evidence recall: of the turns that answer a question, how many stand among the first k that a search returns.

    conversation --prepare--> search --question, k--> turn ids      recall at k, reciprocal rank
    bm25        FTS5's own order, text and speaker
    dense       cosines of vectors
    fusion      both, scaled to 0..1 within the conversation, in equal parts
    ranking     `store.ranking`

A search sees one conversation at a time. `runs/conversations.py` prints these side by side.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
from memory_titan.store.ranking import Candidates, RankingConfig, idf, rank
from memory_titan.tasks.conversations import Conversation, Question

Floats = NDArray[np.float64]
Embed = Callable[[Sequence[str]], NDArray[np.floating]]  # n texts -> [n, dims], rows of length 1
Search = Callable[[str, int], Sequence[str]]  # (question, k) -> ids of turns, best first
Prepare = Callable[[Conversation], Search]

_DEEP = 1000  # turns that a search returns for the reciprocal rank


@dataclass
class RecallAtK:
    """What came of each question, in order."""

    k: int
    recall: list[float] = field(default_factory=list)  # share of the evidence among the first k
    first: list[float] = field(default_factory=list)  # 1 / rank of the best evidence; 0: not found
    current: list[bool] = field(default_factory=list)  # of questions with stale turns: evidence stands before them all

    def summary(self, draws: int = 1000) -> dict[str, float]:
        """Means over questions; the recall with its 95% interval, by bootstrap over questions.

        Raises:
            ValueError: no question was asked.
        """
        if not self.recall:
            raise ValueError("there are no questions to average over")
        recall = np.array(self.recall)
        rows = np.random.default_rng(0).integers(0, len(recall), (draws, len(recall)))
        low, high = np.percentile(recall[rows].mean(1), [2.5, 97.5])
        result = {
            "questions": float(len(recall)),
            f"recall@{self.k}": float(recall.mean()),
            "low": float(low),
            "high": float(high),
            "mrr": float(np.mean(self.first)),
        }
        return result | ({"current_first": float(np.mean(self.current))} if self.current else {})


def evaluate_search(conversations: Iterable[Conversation], prepare: Prepare, k: int = 10) -> RecallAtK:
    """Ask all questions of all conversations.

    Args:
        conversations: each is searched on its own.
        prepare: makes the search of a conversation.
        k: turns that count.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    result = RecallAtK(k)
    for conversation in conversations:
        _ask_all(result, conversation, prepare(conversation))
    return result


def _ask_all(result: RecallAtK, conversation: Conversation, search: Search) -> None:
    for question in conversation.questions:
        _judge(result, question, list(search(question.question, max(result.k, _DEEP))))


def _judge(result: RecallAtK, question: Question, found: list[str]) -> None:
    evidence = set(question.evidence)
    result.recall.append(len(evidence.intersection(found[: result.k])) / len(evidence))
    ranks = {turn: place for place, turn in enumerate(found, 1)}
    best = min((ranks[turn] for turn in evidence if turn in ranks), default=0)
    result.first.append(1 / best if best else 0.0)
    if question.stale:
        result.current.append(0 < best <= min(ranks.get(turn, len(found) + 1) for turn in question.stale))


class IndexedConversation:
    """A conversation's index and vectors, made once for all searches below.

    Args:
        conversation: what is searched.
        embed: makes vectors; None: only `bm25`, and `ranking` without vectors.
        stemmer: shared among conversations.
    """

    def __init__(self, conversation: Conversation, embed: Embed | None, stemmer: Stemmer) -> None:
        self.embed, self.stemmer = embed, stemmer
        turns = list(conversation.turns())
        self.ids = [turn.id for turn in turns]
        self.speakers = [turn.speaker for turn in turns]
        self.session = np.repeat(np.arange(len(conversation.sessions)), [len(s.turns) for s in conversation.sessions])
        self.position = np.concatenate([np.arange(0), *(np.arange(len(s.turns)) for s in conversation.sessions)])
        self.words = np.array([len(turn.text.split()) for turn in turns], dtype=np.float64)
        self.vectors = None if embed is None else np.asarray(embed([turn.text for turn in turns]), np.float64)
        self._asked: dict[str, Floats] = {}
        self.db = sqlite3.connect(":memory:")
        for statement in (SCHEMA, VOCABULARY):
            self.db.execute(statement.format(table="turns"))
        rows = [(row, turn.text, turn.speaker) for row, turn in enumerate(turns)]
        self.db.executemany("INSERT INTO turns(rowid, text, speaker) VALUES (?, ?, ?)", rows)

    def bm25(self, question: str) -> Floats:
        """`[n]`, FTS5's bm25 with its sign turned; 0 where no word stands."""
        scores, expression = np.zeros(len(self.ids)), match(query_words(question))
        if expression:
            for row, score in self.db.execute(
                "SELECT rowid, bm25(turns) FROM turns WHERE turns MATCH ?", (expression,)
            ):
                scores[row] = -score
        return scores

    def dense(self, question: str) -> Floats:
        """`[n]`, cosines with the question as it stands."""
        if self.embed is None or self.vectors is None:
            raise ValueError("a dense search needs vectors; give embed")
        if question not in self._asked:
            self._asked[question] = np.asarray(self.vectors @ np.asarray(self.embed([question]), np.float64)[0])
        return self._asked[question]

    def fusion(self, question: str) -> Floats:
        """`[n]`, both in equal parts."""
        return _unit(self.bm25(question)) + _unit(self.dense(question))

    def ranking(self, question: str, config: RankingConfig | None = None) -> Floats:
        """`[n]`, by `store.ranking`."""
        n, speakers = len(self.ids), set(self.speakers)
        found = postings(self.db, "turns", self.stemmer(query_words(question)))
        counts = np.zeros((len(found), n))
        for row, (items, times) in zip(counts, found, strict=True):
            row[items] = times
        named = speakers_named(question, speakers)
        candidates = Candidates(
            session=self.session,
            position=self.position,
            words=self.words,
            counts=counts,
            idf=idf(n, [len(items) for items, _ in found]),
            mean_words=float(self.words.mean()),
            dense=None if self.embed is None else self.dense(without_names(question, speakers)),
            named=np.array([speaker in named for speaker in self.speakers]),
        )
        return rank(candidates, config).scores


METHODS: dict[str, Callable[[IndexedConversation, str], Floats]] = {
    "bm25": IndexedConversation.bm25,
    "dense": IndexedConversation.dense,
    "fusion": IndexedConversation.fusion,
    "ranking": IndexedConversation.ranking,
}


def compare_searches(
    conversations: Iterable[Conversation], embed: Embed | None = None, k: int = 10, config: RankingConfig | None = None
) -> dict[str, RecallAtK]:
    """All of `METHODS` side by side, each conversation indexed once.

    Args:
        conversations: each is searched on its own.
        embed: makes vectors; None: the methods that need none.
        k: turns that count.
        config: of the ranking.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    methods = {**METHODS, "ranking": lambda indexed, question: indexed.ranking(question, config)}
    if embed is None:
        methods = {name: methods[name] for name in ("bm25", "ranking")}
    results, stemmer = {name: RecallAtK(k) for name in methods}, Stemmer()
    for conversation in conversations:
        indexed = IndexedConversation(conversation, embed, stemmer)
        for name, method in methods.items():
            _ask_all(results[name], conversation, _search(indexed, method))
    return results


def _search(indexed: IndexedConversation, method: Callable[[IndexedConversation, str], Floats]) -> Search:
    def search(question: str, k: int) -> list[str]:
        order = np.argsort(-method(indexed, question), kind="stable")[:k]
        return [indexed.ids[row] for row in order]

    return search


def _unit(x: Floats) -> Floats:
    spread = float(np.ptp(x)) if len(x) else 0.0
    return (x - x.min()) / spread if spread > 0 else np.zeros_like(x)
