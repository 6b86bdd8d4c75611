"""What text tasks share: facts and questions are drawn, then filler is laid between until the text has its length.

draft     facts: F0 at 0.2, F1 at 0.7      questions: Q, which rests on F1, then F0
text      filler F0 filler filler filler F1 filler | Q answer
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from random import Random
from typing import Any, ClassVar

from memory_titan.tasks.ruler import WORDS, Ruler, distance
from memory_titan.tasks.sample import Answer, Sample, Span

_SHARE = 0.985  # a text this near its length is long enough
_AIM = 0.993  # so that the first try of a long text mostly is, at one tokenisation
_ADDING = 6  # tries to add; what is too much is always taken away
_REDRAWS = 50


@dataclass(frozen=True)
class Fact:
    """Lines that go into the context."""

    text: str  # without the last line's end
    at: float  # its place: what share of the filler stands before it
    marks: tuple[Span, ...] = ()  # the parts that are evidence; none: all of it


@dataclass(frozen=True)
class Question:
    """What is asked at the end, and what it rests on."""

    text: str  # the answer follows after a space
    answer: str
    evidence: tuple[tuple[int, int], ...]  # (fact, mark) in order of reasoning
    after: str = ""  # what follows the answer if another question comes


@dataclass(frozen=True)
class Draft:
    """All of a sample but the filler's amount."""

    facts: Sequence[Fact]
    questions: Sequence[Question]
    filler: Iterator[str]  # lines, each with its end
    meta: dict[str, Any] = field(default_factory=dict)
    cut: str = " "  # the last filler may be cut at these; empty: it may not


class TooShortError(ValueError):
    """The context is too short for what has to stand in it."""

    def __init__(self, needed: int, context_len: int, unit: str, what: str) -> None:
        super().__init__(f"context_len must be at least {needed} {unit} for {what}; got {context_len}")
        self.needed = needed


@dataclass(frozen=True)
class _Layout:
    text: str
    facts: list[int]  # where each starts
    questions: list[int]


class TextTask(ABC):
    """A generator of samples; a task is a frozen dataclass with a `context_len` that draws drafts.

    Sample `index` of a seed depends on the seed, the task's options and the ruler, not on how many are asked for.
    """

    name: ClassVar[str]
    context_len: int  # tokens of the whole text, answers included: never more, and at most 2% less or one line

    @abstractmethod
    def draw(self, rng: Random, seed: int, index: int) -> Draft:
        """Draw facts and questions."""

    @abstractmethod
    def contents(self) -> str:
        """What a sample holds, in words, for the refusal of a context too short for it."""

    def samples(self, number: int, *, seed: int = 0, ruler: Ruler = WORDS, start: int = 0) -> Iterator[Sample]:
        """Samples `start .. start + number - 1`, one at a time.

        Args:
            number: how many.
            seed: another one gives other samples.
            ruler: what tokens are; `context_len` is measured in them.
            start: the first index.

        Raises:
            ValueError: at the call, not at the first sample: `context_len` is too short for what must stand in it.
        """
        needed, rate = self._survey(ruler)
        if needed > self.context_len:
            raise TooShortError(needed, self.context_len, ruler.name, self.contents())
        return (self._sample(seed, index, ruler, rate) for index in range(start, start + number))

    def _survey(self, ruler: Ruler) -> tuple[int, float]:
        """Tokens that some drafts have without filler, at the most; tokens that a character of their filler makes.

        Both are of drafts of their own, so that they are the same for every sample.
        """
        drafts = [self.draw(Random(f"{self.name} survey {i}"), 0, i) for i in range(4)]
        needed = max(len(ruler.starts(_lay(draft, []).text)) for draft in drafts)
        filler = "".join(line for draft in drafts for line in islice(draft.filler, 50))
        return needed, len(ruler.starts(filler)) / len(filler) if filler else 0.0

    def _sample(self, seed: int, index: int, ruler: Ruler, rate: float) -> Sample:
        for turn in range(_REDRAWS):
            draft = self.draw(Random(f"{self.name} {seed} {index} {turn}"), seed, index)
            try:
                layout, starts = _fit(draft, self.context_len, ruler, rate, self.contents())
            except TooShortError:
                # One draft is longer than another; a context just long enough for most gets one that fits.
                if turn == _REDRAWS - 1:
                    raise
                continue
            break
        answers = tuple(_answers(draft, layout, starts))
        meta = {"context_len": self.context_len, **draft.meta}
        meta["depth"] = round(min(start for start, _ in answers[0].evidence) / layout.questions[0], 4)
        return Sample(self.name, layout.text, answers, len(starts), ruler.name, seed, index, meta)


def _answers(draft: Draft, layout: _Layout, starts: Sequence[int]) -> Iterator[Answer]:
    for question, begin in zip(draft.questions, layout.questions, strict=True):
        end = begin + len(question.text)
        span = end, end + 1 + len(question.answer)
        evidence = []
        for number, mark in question.evidence:
            fact = draft.facts[number]
            low, high = fact.marks[mark] if fact.marks else (0, len(fact.text))
            evidence.append((layout.facts[number] + low, layout.facts[number] + high))
        distances = tuple(distance(starts, high, span[0]) for _, high in evidence)
        yield Answer(span, (begin, end), tuple(evidence), distances)


def _lay(draft: Draft, filler: Sequence[str]) -> _Layout:
    """Lay the facts between the filler's lines, each at its share of their characters, and the questions behind."""
    total = sum(map(len, filler))
    parts: list[str] = []
    facts, questions = [0] * len(draft.facts), []
    line = passed = at = 0
    for number in sorted(range(len(draft.facts)), key=lambda i: draft.facts[i].at):
        fact = draft.facts[number]
        # A line goes before the fact if its middle lies before the fact's place.
        while line < len(filler) and passed + len(filler[line]) / 2 <= fact.at * total:
            parts.append(filler[line])
            passed, at, line = passed + len(filler[line]), at + len(filler[line]), line + 1
        facts[number] = at
        parts += fact.text, "\n"
        at += len(fact.text) + 1
    parts += filler[line:]
    at += total - passed
    after = ""
    for question in draft.questions:
        parts += after, "\n", question.text, " ", question.answer
        questions.append(at + len(after) + 1)
        at += len(after) + 2 + len(question.text) + len(question.answer)
        after = question.after
    return _Layout("".join(parts), facts, questions)


def _fit(draft: Draft, context_len: int, ruler: Ruler, rate: float, what: str) -> tuple[_Layout, Sequence[int]]:
    """Lay out with as much filler as `context_len` holds; the length is that of the whole, tokenised.

    Returns:
        the layout and where its tokens start.
    """
    needed = len(ruler.starts(_lay(draft, []).text))
    if needed > context_len:
        raise TooShortError(needed, context_len, ruler.name, what)
    # About as much as is wanted, counted by characters, at no tokenisation.
    filler: list[str] = []
    room = (context_len - needed) * _AIM
    for line in draft.filler:
        room -= len(line) * rate
        if room < 0:
            break
        filler.append(line)
    for turn in count():
        layout = _lay(draft, filler)
        starts = ruler.starts(layout.text)
        room = context_len - len(starts)
        if room < 0:
            while room < 0 and filler:
                room += max(1, len(ruler.starts(filler.pop())))
        elif len(starts) >= _SHARE * context_len or turn >= _ADDING or not _add(filler, draft, int(room), ruler):
            return layout, starts
    raise AssertionError("unreachable: filler that is over is taken away until there is none")


def _add(filler: list[str], draft: Draft, room: int, ruler: Ruler) -> bool:
    """Add lines of at most `room` tokens together, the last one cut to fit if it may be; False: nothing fits."""
    before = len(filler)
    for line in islice(draft.filler, 2 * room):
        tokens = len(ruler.starts(line))
        last = tokens > room
        if last and draft.cut:
            pieces = line.rstrip("\n").split(draft.cut)
            kept = min(len(pieces), int(len(pieces) * room / tokens) + 1)
            while kept and tokens > room:
                line = draft.cut.join(pieces[:kept]) + "\n"
                tokens, kept = len(ruler.starts(line)), kept - 1
        if tokens <= room:
            filler.append(line)
            room -= tokens
        if last:
            break
    return len(filler) > before
