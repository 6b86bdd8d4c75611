"""Evidence recall: of the turns that answer a question, how many stand among the first k that a search returns.

    conversation --prepare--> search --question, k--> turn ids      recall at k, reciprocal rank
    bm25        BM25 over speaker and text
    dense       cosines with the question as it stands
    fusion      both, scaled to 0..1 within the conversation, in equal parts
    store       a `TitansManager` that was told every turn, asked by `query`

A search sees one conversation at a time. `memory-titan evaluate store` prints these side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_titan.embedders import BaseEmbedder
from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.manager import TitansManager
from memory_titan.store.ranking import RankingConfig
from memory_titan.store.terms import term_ids
from memory_titan.store.words import WordIndex
from memory_titan.tasks.conversations import Conversation, Question, Turn

Floats = NDArray[np.float64]
Search = Callable[[str, int], Sequence[str]]  # (question, k) -> ids of turns, best first
Prepare = Callable[[Conversation], Search]

DEEP = 100  # turns that the reciprocal rank looks at
DRAWS = 1000  # of the bootstrap
ROOM = 100_000  # items of the long-term memory: more than any conversation has
WITHOUT: dict[str, RankingConfig] = {
    "lexical": RankingConfig(lexical=0),
    "dense": RankingConfig(dense=0),
    "window": RankingConfig(window=0),
    "neighbours": RankingConfig(neighbours=()),
    "speaker": RankingConfig(speaker=0),
    "length": RankingConfig(length=0),
}
NAMES = "names"  # not hidden from the question's vector
RECALL = "recall"  # by the neural memory, into the question's vector
PARTS = (*WITHOUT, NAMES, RECALL)


@dataclass
class RecallAtK:
    """What came of each question, in order."""

    k: int
    recall: list[float] = field(default_factory=list)  # share of the evidence among the first k
    first: list[float] = field(default_factory=list)  # 1 / rank of the best evidence; 0: not among the first `DEEP`
    current: list[bool] = field(default_factory=list)  # of questions with stale turns: evidence stands before them all
    category: list[str | None] = field(default_factory=list)  # of the question

    def summary(self, draws: int = DRAWS) -> dict[str, float]:
        """Means over questions; the recall with its 95% interval, by bootstrap over questions.

        Raises:
            ValueError: no question was asked.
        """
        recall = np.array(self.recall)
        low, high = interval(recall, draws)
        result = {
            "questions": float(len(recall)),
            f"recall@{self.k}": float(recall.mean()),
            "low": low,
            "high": high,
            "mrr": float(np.mean(self.first)),
        }
        return result | ({"current_first": float(np.mean(self.current))} if self.current else {})

    def by_category(self) -> dict[str, dict[str, float]]:
        """Number of questions and mean recall of each category, where questions have any."""
        groups: dict[str, list[float]] = {}
        for name, recall in zip(self.category, self.recall, strict=True):
            if name is not None:
                groups.setdefault(name, []).append(recall)
        return {
            name: {"questions": float(len(groups[name])), f"recall@{self.k}": float(np.mean(groups[name]))}
            for name in sorted(groups)
        }

    def difference(self, other: RecallAtK, draws: int = DRAWS) -> dict[str, float]:
        """This recall less another's on the same questions: mean, and its 95% interval by bootstrap over questions.

        Raises:
            ValueError: not as many questions, or none.
        """
        if len(self.recall) != len(other.recall):
            raise ValueError(f"the same questions are compared; got {len(self.recall)} and {len(other.recall)}")
        each = np.array(self.recall) - np.array(other.recall)
        low, high = interval(each, draws)
        return {"difference": float(each.mean()), "low": low, "high": high}


def interval(values: Floats, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The middle 95% of the mean of values drawn again with replacement.

    Raises:
        ValueError: there are none.
    """
    if not len(values):
        raise ValueError("there are no questions to average over")
    rows = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[rows].mean(1), [2.5, 97.5])
    return float(low), float(high)


def evaluate_search(conversations: Iterable[Conversation], prepare: Prepare, k: int = 10) -> RecallAtK:
    """Ask all questions of all conversations, each twice: for the first k, and for the first `DEEP`.

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
        search = prepare(conversation)
        for question in conversation.questions:
            # a search may look at more candidates when more is wanted; recall is of what whoever asks for k gets
            first = search(question.question, k)
            deep = first if k >= DEEP else search(question.question, DEEP)
            _judge(result, question, first, deep)
    return result


def _judge(result: RecallAtK, question: Question, first: Sequence[str], deep: Sequence[str]) -> None:
    evidence = set(question.evidence)
    result.recall.append(len(evidence.intersection(first[: result.k])) / len(evidence))
    ranks = {turn: place for place, turn in enumerate(deep[: max(result.k, DEEP)], 1)}
    best = min((ranks[turn] for turn in evidence if turn in ranks), default=0)
    result.first.append(1 / best if best else 0.0)
    result.category.append(question.category)
    if question.stale:
        result.current.append(0 < best <= min(ranks.get(turn, len(ranks) + 1) for turn in question.stale))


def spoken(conversation: Conversation) -> list[tuple[str, str | None, Turn]]:
    """Session, time and turn of each turn that says something, oldest first."""
    return [
        (session.id, turn.time or session.time, turn)
        for session in conversation.sessions
        for turn in session.turns
        if turn.text.strip()
    ]


def remember(turns: Sequence[tuple[str, str | None, Turn]], embedder: BaseEmbedder, **options: Any) -> TitansManager:
    """A store in memory that was told these turns, as an application would: text, speaker, session, time.

    Args:
        turns: as `spoken` gives them.
        embedder: of the store.
        options: of `TitansManager`; by default a long-term memory that nothing leaves for want of room.
    """
    manager = TitansManager(embedder, **{"long_term_size": ROOM, **options})
    add_turns(manager, turns)
    return manager


def add_turns(manager: TitansManager, turns: Sequence[tuple[str, str | None, Turn]]) -> None:
    """Tell a store these turns."""
    manager.add_documents(
        [turn.text for _, _, turn in turns],
        [{"speaker": turn.speaker} if turn.speaker else {} for _, _, turn in turns],
        ids=[turn.id for _, _, turn in turns],
        times=[time for _, time, _ in turns],  # type: ignore[misc]  # None: now
        session=[session for session, _, _ in turns],
    )


def methods(
    embedder: BaseEmbedder, architectures: Sequence[str] = ("mac",), without: Sequence[str] = ()
) -> dict[str, Prepare]:
    """What `compare_searches` compares, by name: the three plain searches, the store, the store without its parts.

    Args:
        embedder: a `CachedEmbedder` saves time: every method embeds all turns.
        architectures: of the store; one method each.
        without: of `PARTS`; one method each, on the first architecture.

    Raises:
        ValueError: an architecture or a part that there is not.
    """
    if not architectures or (unknown := sorted(set(without) - set(PARTS))):
        raise ValueError(
            f"parts to leave out are {', '.join(PARTS)}; got {unknown}"
            if architectures
            else "name one architecture at least"
        )
    found: dict[str, Prepare] = {
        name: lambda conversation, score=score: _Plain(conversation, embedder).search(score)  # type: ignore[misc]
        for name, score in (("bm25", _Plain.bm25), ("dense", _Plain.dense), ("fusion", _Plain.fusion))
    }
    first = architectures[0]
    for architecture in architectures:
        found["store" if architecture == first else f"store, {architecture}"] = _store(embedder, architecture)
    for part in without:
        found[f"store without {part}"] = _store(embedder, first, part)
    return found


def compare_searches(
    conversations: Iterable[Conversation],
    prepared: Mapping[str, Prepare],
    k: int = 10,
    on_step: Callable[[str], object] = lambda name: None,
) -> dict[str, RecallAtK]:
    """Several searches side by side.

    Args:
        conversations: each is searched on its own.
        prepared: by name, as `methods` makes them.
        k: turns that count.
        on_step: called with a method's name after each conversation.
    """
    given, results = list(conversations), {}
    for name, prepare in prepared.items():

        def told(conversation: Conversation, name: str = name, prepare: Prepare = prepare) -> Search:
            search = prepare(conversation)
            on_step(name)
            return search

        results[name] = evaluate_search(given, told, k)
    return results


def _store(embedder: BaseEmbedder, architecture: str, without: str | None = None) -> Prepare:
    config = LongTermMemoryConfig(recall_weight=0.0) if without == RECALL else LongTermMemoryConfig()
    options = {"architecture": architecture, "ranking": WITHOUT.get(without or ""), "long_term_config": config}

    def prepare(conversation: Conversation) -> Search:
        asked = _AsAsked(embedder) if without == NAMES else embedder
        manager = remember(spoken(conversation), asked, **options)

        def search(question: str, k: int) -> list[str]:
            if isinstance(asked, _AsAsked):
                asked.question = question
            return [hit["id"] for hit in manager.query(question, k)]

        return search

    return prepare


class _AsAsked(BaseEmbedder):
    """Embeds the question as it was asked, whatever the store made of it."""

    def __init__(self, embedder: BaseEmbedder) -> None:
        self.embedder, self.question = embedder, ""
        self.name = embedder.name

    def embed(self, texts: list[str]) -> Any:
        return self.embedder.encode(texts)

    def embed_query(self, text: str) -> Any:
        return self.embedder.encode_query(self.question or text)


class _Plain:
    """A conversation's words and vectors."""

    def __init__(self, conversation: Conversation, embedder: BaseEmbedder) -> None:
        self.embedder = embedder
        self.turns = [turn for _, _, turn in spoken(conversation)]
        self.words, self.rows = WordIndex(), np.arange(len(self.turns))
        self.words.add(self.rows, [term_ids(f"{turn.speaker} {turn.text}") for turn in self.turns])
        self.vectors = embedder.encode([turn.text for turn in self.turns])

    def bm25(self, question: str) -> Floats:
        """`[n]`; 0 where no word stands."""
        return self.words.scores(np.unique(term_ids(question)), self.rows)

    def dense(self, question: str) -> Floats:
        """`[n]`, cosines."""
        return np.asarray(self.vectors @ self.embedder.encode_query(question), np.float64)

    def fusion(self, question: str) -> Floats:
        """`[n]`, both in equal parts."""
        return _unit(self.bm25(question)) + _unit(self.dense(question))

    def search(self, score: Callable[[_Plain, str], Floats]) -> Search:
        def search(question: str, k: int) -> list[str]:
            return [self.turns[row].id for row in np.argsort(-score(self, question), kind="stable")[:k]]

        return search


def _unit(x: Floats) -> Floats:
    spread = float(np.ptp(x)) if len(x) else 0.0
    return (x - x.min()) / spread if spread > 0 else np.zeros_like(x)
