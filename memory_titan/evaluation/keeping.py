"""What a store should keep: rules compared by how much evidence a search finds in what they kept.

    results = evaluate_keeping(conversations, embedder, budget=0.25, k=10)

Every rule reads the same turns in order, may hold a share of the bytes of all texts, and lets the turn of least value
go whenever it holds more. It sees no question. What is held at the end is searched by the store's own search, the same
for all rules: a `TitansManager` that was told every turn, admitted each, and then forgot what the rule does not hold. A
question's recall is the share of its evidence among the first k; `kept` is the share that is held at all.

With `abridge` the store may hold a turn in part. Then the search has the words of that part and the vector of the
whole, as the store itself; the turn counts as evidence held, and in the strict figures only if it still says what it is
evidence for: every answer of the question that stood in the whole stands in the part; where none did, half its bytes
are left.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_titan.embedders import BaseEmbedder
from memory_titan.evaluation.conversations import ROOM, add_turns, interval, remember, spoken
from memory_titan.store.abridging import abridge
from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.item import LONG
from memory_titan.store.manager import TitansManager
from memory_titan.store.wording import weighted_terms
from memory_titan.tasks.conversations import Conversation, Turn

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PIECE = 64  # turns that come between two decisions of the store


@dataclass
class Stream:
    """Turns in order.

    Attributes:
        turns: session, time and turn of each, n of them, none without words.
        vectors: `[n, dim]`, float32, unit embeddings of their texts.
    """

    turns: Sequence[tuple[str, str | None, Turn]]
    vectors: NDArray[np.float32]
    sizes: Ints = field(init=False)  # [n], bytes of each text

    def __post_init__(self) -> None:
        if len(self.turns) != len(self.vectors):
            raise ValueError(f"{len(self.turns)} turns, but {len(self.vectors)} vectors")
        self.sizes = np.array([len(turn.text.encode()) for _, _, turn in self.turns], np.int64)

    def limit(self, budget: float) -> int:
        """Bytes that a share of all is."""
        return max(int(budget * self.sizes.sum()), 1)


@dataclass
class Seen:
    """What a rule may know of a stream so far: what is held, and sums over what came.

    Attributes:
        vectors: `[n, dim]`; a rule looks at those of turns held.
        sizes: `[n]`, bytes of each text.
        terms: distinct terms of each text.
        counts: in how many turns so far each term came.
        items: how many came.
        novelty: `[n]`, of each turn so far 1 - its largest cosine with a turn held when it came.
        luck: `[n]`, a number drawn for each turn.
    """

    vectors: NDArray[np.float32]
    sizes: Ints
    terms: list[list[str]]
    luck: Floats
    counts: Counter[str] = field(default_factory=Counter)
    items: int = 0
    novelty: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.novelty = np.ones(len(self.sizes))

    def read(self, item: int, held: Sequence[int]) -> None:
        """The next turn came."""
        self.items += 1
        self.counts.update(self.terms[item])
        if held:
            self.novelty[item] = 1 - float((self.vectors[list(held)] @ self.vectors[item]).max())


# The values of the turns held, `[held]`; the least goes, of equals the oldest.
Rule = Callable[[Seen, Ints], Floats]


def newest(seen: Seen, held: Ints) -> Floats:
    """First in, first out; also what "least recently used" is while nobody asks."""
    return held.astype(np.float64)


def random(seen: Seen, held: Ints) -> Floats:
    """Any, each as likely to be held at the end as any other."""
    return seen.luck[held]


def longest(seen: Seen, held: Ints) -> Floats:
    """The most bytes."""
    return seen.sizes[held].astype(np.float64)


def novel(seen: Seen, held: Ints) -> Floats:
    """1 - the largest cosine with what was held when it came."""
    return seen.novelty[held]


def spread(seen: Seen, held: Ints) -> Floats:
    """k-center: of the nearest pair the older goes, so that what is held lies far apart."""
    cosines = seen.vectors[held] @ seen.vectors[held].T
    np.fill_diagonal(cosines, -1.0)
    return -cosines.max(1).astype(np.float64)


def idf_mass(seen: Seen, held: Ints) -> Floats:
    """The sum of the idf of its distinct terms, by the stream so far."""
    terms = [seen.terms[item] for item in held]
    counts = np.array([seen.counts[term] for each in terms for term in each], np.float64)
    sums = np.concatenate([[0.0], np.cumsum(np.log((seen.items + 1) / (counts + 0.5)))])
    return np.diff(sums[np.concatenate([[0], np.cumsum([len(each) for each in terms])]).astype(np.int64)])


def idf_novel(seen: Seen, held: Ints) -> Floats:
    """The two together."""
    return idf_mass(seen, held) * seen.novelty[held]


def idf_a_byte(seen: Seen, held: Ints) -> Floats:
    """The mass for the room it takes."""
    return idf_mass(seen, held) / np.maximum(seen.sizes[held], 1)


SURPRISE = "surprise"  # the store itself, with a budget
ABRIDGED = "surprise, abridged"  # the same, letting single sentences go
ALL = "everything"  # no budget
RULES: dict[str, Rule | None] = {
    "newest": newest,
    "random": random,
    "longest": longest,
    "spread": spread,
    "novel": novel,
    "idf_mass": idf_mass,
    "idf_novel": idf_novel,
    "idf_a_byte": idf_a_byte,
    SURPRISE: None,
    ABRIDGED: None,
    ALL: None,
}
_APART = re.compile(r" (?=n't)")  # of a tokenizer, as in answers that were marked in tokens
_WORD = re.compile(r"\w+|…")  # a gap is as good as a word between


@dataclass(frozen=True)
class KeepingResult:
    """Of one rule over all conversations.

    Attributes:
        rule: its name.
        recall: mean over questions of the share of evidence found among the first k.
        low, high: the middle 95% of that mean over questions drawn again.
        kept: mean over questions of the share of evidence held.
        items: share of all turns held.
        recalls: `[questions]`, of each; of a rule that draws, the mean over its draws.
        strict, strict_low, strict_high, strict_kept, stricts: the same, of evidence that still says what it is for.
    """

    rule: str
    recall: float
    low: float
    high: float
    kept: float
    items: float
    recalls: Floats = field(repr=False)
    strict: float
    strict_low: float
    strict_high: float
    strict_kept: float
    stricts: Floats = field(repr=False)


def evaluate_keeping(
    conversations: Sequence[Conversation],
    embedder: BaseEmbedder,
    rules: Mapping[str, Rule | None] = RULES,
    *,
    budget: float = 0.25,
    k: int = 10,
    seed: int = 0,
    draws: int = 5,
    on_step: Callable[[str], object] = lambda name: None,
) -> list[KeepingResult]:
    """Every rule over every conversation.

    Args:
        conversations: with one question at least, over all; each is a stream of its own.
        embedder: of the store; a `CachedEmbedder` saves time.
        rules: by name; None for the names `SURPRISE`, `ABRIDGED` and `ALL`.
        budget: bytes that may be held, as a share of all, over 0 and at most 1.
        k: how far down the results a question looks.
        seed: of the rule that draws.
        draws: how often it draws.
        on_step: called with a rule's name when it is done with a conversation.

    Raises:
        ValueError: no questions, a budget, k or draws out of range, or a rule that is None and not known.
    """
    if not 0 < budget <= 1 or k < 1 or draws < 1:
        raise ValueError(f"budget must be over 0 and at most 1, k and draws at least 1; got {budget}, {k} and {draws}")
    if not any(conversation.questions for conversation in conversations):
        raise ValueError("there is no question in any conversation")
    if unknown := [name for name, rule in rules.items() if rule is None and name not in (SURPRISE, ABRIDGED, ALL)]:
        raise ValueError(f"no rule is given for {', '.join(unknown)}")
    rows: dict[str, list[Floats]] = {name: [] for name in rules}
    items = dict.fromkeys(rules, 0.0)
    total = 0
    for conversation in conversations:
        turns = spoken(conversation)
        stream = Stream(turns, embedder.encode([turn.text for _, _, turn in turns]))
        total += len(turns)
        for name, rule in rules.items():
            times = draws if rule is random else 1
            outcomes = []
            for each in range(times):
                held = keep(stream, name, rule, budget, embedder, seed + each)
                items[name] += len(held) / times
                outcomes.append(_ask(conversation, stream, held, embedder, k))
            rows[name].append(np.mean(outcomes, axis=0))
            on_step(name)
    results = []
    for name, found in rows.items():
        recalls, kept, stricts, strictly_kept = np.concatenate(found, axis=1)
        ends, strict_ends = interval(recalls), interval(stricts)
        means = (float(each.mean()) for each in (recalls, kept, stricts, strictly_kept))
        recall, share, strict, strict_share = means
        results.append(
            KeepingResult(
                name, recall, *ends, share, items[name] / total, recalls, strict, *strict_ends, strict_share, stricts
            )
        )
    return results


def keep(
    stream: Stream, name: str, rule: Rule | None, budget: float, embedder: BaseEmbedder, seed: int = 0
) -> dict[int, str]:
    """What a rule holds at the stream's end: turns, ascending, and their texts. Arguments as in `evaluate_keeping`."""
    texts = [turn.text for _, _, turn in stream.turns]
    if name == ALL:
        return dict(enumerate(texts))
    limit = stream.limit(budget)
    if rule is None:
        return _by_surprise(stream, limit, embedder, abridge=name == ABRIDGED)
    terms = [list(weighted_terms(text)) for text in texts]
    luck = np.random.default_rng(seed).random(len(terms))
    seen = Seen(stream.vectors, stream.sizes, terms, luck)
    held: list[int] = []
    size = 0
    for item in range(len(terms)):
        seen.read(item, held)
        held.append(item)
        size += int(stream.sizes[item])
        while size > limit:
            size -= int(stream.sizes[held.pop(int(np.argmin(rule(seen, np.array(held)))))])
    return {item: texts[item] for item in held}


def _by_surprise(stream: Stream, limit: int, embedder: BaseEmbedder, abridge: bool) -> dict[int, str]:
    """What is in the long-term memory of a store that was told the stream in pieces."""
    config = LongTermMemoryConfig(max_bytes=limit, abridge=abridge)
    with TitansManager(_Keeping(embedder), short_term_size=1, long_term_size=ROOM, long_term_config=config) as manager:
        for start in range(0, len(stream.turns), PIECE):
            add_turns(manager, stream.turns[start : start + PIECE])
            manager.consolidate_memories()
        held = {item.id: item.content for item in manager.backend.get(manager.backend.select(places=LONG))}
    return {n: held[turn.id] for n, (_, _, turn) in enumerate(stream.turns) if turn.id in held}


def _ask(conversation: Conversation, stream: Stream, held: Mapping[int, str], embedder: BaseEmbedder, k: int) -> Floats:
    """`[4, questions]`: the shares of evidence among the first k and held at all, and both strictly."""
    texts = {stream.turns[item][2].id: text for item, text in held.items()}
    whole = {turn.id: turn.text for _, _, turn in stream.turns}
    config = LongTermMemoryConfig(surprise_threshold=0.0)  # all is admitted
    with remember(stream.turns, _Keeping(embedder), long_term_config=config) as manager:
        if gone := [name for name in whole if name not in texts]:
            manager.forget(gone)
        _abridge(manager, {name: text for name, text in texts.items() if text != whole[name]})
        shares = []
        for question in conversation.questions:
            found = {hit["id"] for hit in manager.query(question.question, k)}
            wanted = [name for name in set(question.evidence) if name in texts]
            strictly = [name for name in wanted if still_says(question.answers, whole[name], texts[name])]
            counts = len(found.intersection(wanted)), len(wanted), len(found.intersection(strictly)), len(strictly)
            shares.append(np.array(counts) / len(set(question.evidence)))
    return np.array(shares).reshape(-1, 4).T


def _abridge(manager: TitansManager, texts: Mapping[str, str]) -> None:
    """Let a store hold only these parts of items, by id."""
    items = manager.backend.get(list(manager.backend.seqs_of(list(texts)).values()))
    for item in items:
        abridge(item, texts[item.id])
    with manager.backend.transaction():
        manager.backend.shorten(items)


def still_says(answers: Sequence[str], whole: str, left: str) -> bool:
    """Whether what is left of a turn holds every answer that the whole held; if it held none, half its bytes."""
    held = [answer for answer in map(_words, answers) if answer in _words(whole)]
    if held:
        return all(answer in _words(left) for answer in held)
    return 2 * len(left.encode()) >= len(whole.encode())


def _words(text: str) -> str:
    """Of a text, in lower case, each between two spaces."""
    return " ".join(["", *_WORD.findall(_APART.sub("", text.lower())), ""])


class _Keeping(BaseEmbedder):
    """An embedder whose cache outlives what a store forgets."""

    def __init__(self, embedder: BaseEmbedder) -> None:
        self.embedder, self.name = embedder, embedder.name

    def embed(self, texts: list[str]) -> Any:
        return self.embedder.encode(texts)

    def embed_query(self, text: str) -> Any:
        return self.embedder.encode_query(text)
