"""Common words: a long list of words; which of them stand in it most often?

    CommonWordsTask(context_len=30, common=2, frequency=4, rare=1)

    balomi                                                 <- evidence: every place where one of the two stands
    tagude
    rusoke
    balomi                                                 <- evidence
    ...

    What are the 2 most common words in the list above, in alphabetical order? The most common words are balomi, rusoke
                                                                                                         ~~~~~~~~~~~~~~

After RULER's CWE (arXiv 2404.06654): to answer, everything has to be counted. Words are made up of syllables, so that
none is known; those asked for stand `frequency` times each, all others `rare` times at most.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from memory_titan.tasks.checking import UnsolvableError, check_answers, check_length, context
from memory_titan.tasks.ruler import Ruler
from memory_titan.tasks.sample import Sample
from memory_titan.tasks.text_task import Draft, Fact, Question, TextTask

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_OF_A_WORD = 3
_TOGETHER = 100  # rare words whose places are shuffled at a time


@dataclass(frozen=True)
class CommonWordsTask(TextTask):
    """The shape of the samples; see the module's drawing. There is one question."""

    name: ClassVar[str] = "common-words"

    context_len: int = 4096  # tokens, of whatever ruler; see TextTask
    common: int = 10  # words asked for
    frequency: int = 30  # how often each of them stands there
    rare: int = 3  # how often any other word does, at the most
    depth: float | None = None  # where the words asked for stand, from 0, the start, to 1, the end; None: everywhere

    def __post_init__(self) -> None:
        if min(self.context_len, self.common, self.rare) < 1:
            raise ValueError(f"context_len, common and rare must be at least 1; got {self}")
        if self.frequency <= self.rare:
            raise ValueError(f"frequency must be above rare={self.rare}; got {self.frequency}")
        # Half of all words stay free, so that different ones are found quickly.
        most, needed = len(_SYLLABLES) ** _OF_A_WORD // 2, self.common + self.context_len // self.rare
        if needed > most:
            raise ValueError(f"there are {most} words; {self.context_len} tokens may take {needed}; raise rare")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"depth must be from 0 to 1; got {self.depth}")

    def contents(self) -> str:
        return f"{self.common} words {self.frequency} times and a question"

    def draw(self, rng: Random, seed: int, index: int) -> Draft:
        words = self._words(rng)
        asked = [next(words) for _ in range(self.common)]
        places = asked * self.frequency
        rng.shuffle(places)  # words at the same place stand in this order
        facts = [Fact(word, rng.random() if self.depth is None else self.depth) for word in places]
        order = sorted(range(len(facts)), key=lambda number: facts[number].at)
        question = Question(
            f"What are the {self.common} most common words in the list above, in alphabetical order? "
            "The most common words are",
            ", ".join(sorted(asked)),
            tuple((number, 0) for number in order),
        )
        meta = {"hops": 1, "needles": len(facts), "frequency": self.frequency, "rare": self.rare, "filler": "words"}
        return Draft(facts, [question], self._rare(rng, words), meta, cut="")

    def _words(self, rng: Random) -> Iterator[str]:
        """Words, none twice."""
        seen: set[str] = set()
        while True:
            word = "".join(rng.choices(_SYLLABLES, k=_OF_A_WORD))
            if word not in seen:
                seen.add(word)
                yield word

    def _rare(self, rng: Random, words: Iterator[str]) -> Iterator[str]:
        while True:
            lines = [next(words) + "\n" for _ in range(_TOGETHER)] * self.rare
            rng.shuffle(lines)
            yield from lines


_ASKED = r"What are the (\d+) most common words in the list above, in alphabetical order\? The most common words are"


def solve(evidence: Sequence[str], question: str) -> str:
    """Answer a question from the places of its words alone.

    Raises:
        UnsolvableError: a piece is no word, or there are not as many different ones as are asked for.
    """
    asked = re.fullmatch(_ASKED, question)
    if not asked:
        raise UnsolvableError(f"no question about common words: {question!r}")
    if strange := [piece for piece in evidence if not re.fullmatch("[a-z]+", piece)]:
        raise UnsolvableError(f"no word of a list: {strange[0][:60]!r}")
    if len(set(evidence)) != int(asked[1]):
        raise UnsolvableError(f"{asked[1]} words are asked for; the evidence has {len(set(evidence))}")
    return ", ".join(sorted(set(evidence)))


def check(sample: Sample, ruler: Ruler | None = None) -> list[str]:
    """What is wrong with a sample; empty if nothing is: no other word is as common, and the evidence is complete.

    Args:
        sample: of this task.
        ruler: measures length and distances anew; None: they are not looked at.
    """
    problems = list(check_answers(sample, solve))
    if len(sample.answers) != 1:
        problems.append(f"one question is asked of a list; got {len(sample.answers)}")
    answer = sample.answers[0]
    counts = Counter(context(sample).split())
    words = sample.cut(answer.span).strip().split(", ")
    least = min(counts[word] for word in words)
    others = [word for word, count in counts.items() if count >= least and word not in words]
    if others:
        problems.append(f"{others[0]} stands {counts[others[0]]} times, {min(words, key=counts.__getitem__)} {least}")
    shown = Counter(sample.cut(span) for span in answer.evidence)
    if any(shown[word] != counts[word] for word in words) or len(set(answer.evidence)) < len(answer.evidence):
        problems.append("the evidence must be every place of the words asked for, each once")
    return problems + (list(check_length(sample, ruler)) if ruler else [])
