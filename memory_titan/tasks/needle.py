"""A needle in a haystack, in plain words: who has which secret code; the question repeats the sentence up to the code.

    NeedleTask(context_len=60, needles=2)

    The innkeeper was tired, and the fog stayed under the chestnut trees.
    The secret code of Ida Marlow is 5903317.              <- evidence
    On the way home a tailor missed the hen house.
    The secret code of Boris Thorne is 8120466.

    What is the secret code of Ida Marlow? The secret code of Ida Marlow is 5903317
                                                                            ~~~~~~~ answer

A code stands once in the text, a name too, before the question. The filler is prose, Python's help topics, noise (one
line again and again), none, passages of a file, or other needles (`filler="needles"`: then everything has to be
remembered). Names and codes may be UUIDs, and a name may have several codes, each told in a sentence of its own:

    NeedleTask(context_len=60, codes_each=2)

    A secret code of Ida Marlow is 5903317.                <- evidence
    On the way home a tailor missed the hen house.
    A secret code of Ida Marlow is 8120466.                <- evidence

    What are the 2 secret codes of Ida Marlow, in the order told? The secret codes of Ida Marlow are 5903317, 8120466
                                                                                                     ~~~~~~~~~~~~~~~~
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar
from uuid import UUID

from memory_titan.tasks import filler as fillers
from memory_titan.tasks.checking import UnsolvableError, check_answers, check_length, context, holds_word, outside
from memory_titan.tasks.ruler import Ruler
from memory_titan.tasks.sample import Sample
from memory_titan.tasks.text_task import Draft, Fact, Question, TextTask
from memory_titan.tasks.words import FIRST_NAMES, LAST_NAMES

_KEYS, _CODES = ("names", "uuids"), ("numbers", "uuids")
_TOGETHER = 64  # names of filler whose sentences are shuffled at a time
_LINE = 8  # a needle has so many tokens at the least


@dataclass(frozen=True)
class NeedleTask(TextTask):
    """The shape of the samples; see the module's drawing."""

    name: ClassVar[str] = "needle"

    context_len: int = 4096  # tokens, of whatever ruler; see TextTask
    needles: int = 1  # names whose codes are told
    questions: int = 1  # each about another name
    digits: int = 7  # of a code
    filler: fillers.Filler = "prose"  # or "topics", "noise", "needles", "none", or passages
    depth: float | None = None  # where the needles asked for stand, from 0, the start, to 1, the end; None: anywhere
    keys: str = "names"  # or "uuids"
    codes: str = "numbers"  # or "uuids"
    codes_each: int = 1  # of a name, asked for together

    def __post_init__(self) -> None:
        if min(self.context_len, self.needles, self.questions, self.digits, self.codes_each) < 1:
            raise ValueError(f"context_len, needles, questions, digits and codes_each must be at least 1; got {self}")
        if self.questions > self.needles:
            raise ValueError(f"{self.questions} questions need as many needles; got needles={self.needles}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"depth must be from 0 to 1; got {self.depth}")
        if self.keys not in _KEYS or self.codes not in _CODES:
            raise ValueError(
                f"keys must be one of {', '.join(_KEYS)}, and codes one of {', '.join(_CODES)}; "
                f"got {self.keys!r} and {self.codes!r}"
            )
        # With filler needles half of all there are stay free, so that different ones are found quickly.
        needed = 2 * (self.needles + self.context_len // _LINE) if self._crowded else self.needles
        firsts = len(FIRST_NAMES) ** (2 if self._crowded else 1)
        most = min(
            firsts * len(LAST_NAMES) if self.keys == "names" else needed,
            9 * 10 ** (self.digits - 1) // self.codes_each if self.codes == "numbers" else needed,
        )
        if needed > most:
            which = f"{self.context_len} tokens of filler needles" if self._crowded else str(self.needles)
            raise ValueError(f"there are names and codes of {self.digits} digits for {most} needles; got {which}")
        if not self._crowded:
            fillers.lines(self.filler, Random(0))  # refuses a name that is none

    @property
    def _crowded(self) -> bool:
        return self.filler == "needles"

    def contents(self) -> str:
        return f"{self.needles} needle{'s' * (self.needles > 1)} and {self.questions} question(s)"

    def draw(self, rng: Random, seed: int, index: int) -> Draft:
        keys, codes = self._keys(rng), self._codes(rng)
        needles = [(next(keys), [next(codes) for _ in range(self.codes_each)]) for _ in range(self.needles)]
        facts: list[Fact] = []
        questions = []
        for number, (name, told) in enumerate(needles):
            asked = number < self.questions
            fixed = self.depth if asked else None
            places = sorted(rng.random() if fixed is None else fixed for _ in told)  # told in the order asked for
            evidence = tuple((len(facts) + i, 0) for i in range(len(told)))
            facts += [Fact(self._sentence(name, code), at) for code, at in zip(told, places, strict=True)]
            if asked:
                words = f"What is the secret code of {name}? The secret code of {name} is"
                if self.codes_each > 1:
                    words = (
                        f"What are the {self.codes_each} secret codes of {name}, in the order told? "
                        f"The secret codes of {name} are"
                    )
                questions.append(Question(words, ", ".join(told), evidence))
        if self._crowded:
            lines = self._others(rng, keys, codes)
        else:
            spoken = {code for _, told in needles for code in told} | {w for name, _ in needles for w in name.split()}
            lines = fillers.lines(self.filler, rng, spoken)
        named = self.filler if isinstance(self.filler, str) else self.filler.name
        meta = {"hops": 1, "needles": self.needles, "filler": named}
        return Draft(facts, questions, lines, meta, cut="" if self._crowded else " ")

    def _sentence(self, name: str, code: str) -> str:
        return f"{'The' if self.codes_each == 1 else 'A'} secret code of {name} is {code}."

    def _keys(self, rng: Random) -> Iterator[str]:
        """Names, none twice; with a second first name where many are needed."""
        if self.keys == "uuids":
            return _different(lambda: _uuid(rng))
        if self._crowded:
            lists = FIRST_NAMES, FIRST_NAMES, LAST_NAMES
            return _different(lambda: " ".join(map(rng.choice, lists)))
        last = len(LAST_NAMES)
        drawn = rng.sample(range(len(FIRST_NAMES) * last), self.needles)
        return iter([f"{FIRST_NAMES[each // last]} {LAST_NAMES[each % last]}" for each in drawn])

    def _codes(self, rng: Random) -> Iterator[str]:
        """Codes, none twice."""
        if self.codes == "uuids":
            return _different(lambda: _uuid(rng))
        numbers = range(10 ** (self.digits - 1), 10**self.digits)
        if self._crowded:
            return _different(lambda: str(rng.choice(numbers)))
        return map(str, rng.sample(numbers, self.needles * self.codes_each))

    def _others(self, rng: Random, keys: Iterator[str], codes: Iterator[str]) -> Iterator[str]:
        """Needles like those asked for: which is one nobody can tell before the question."""
        while True:
            names = [next(keys) for _ in range(_TOGETHER)]
            lines = [self._sentence(name, next(codes)) + "\n" for name in names for _ in range(self.codes_each)]
            rng.shuffle(lines)
            yield from lines


def _different(draw: Callable[[], str]) -> Iterator[str]:
    """What is drawn, nothing twice."""
    seen: set[str] = set()
    while True:
        drawn = draw()
        if drawn not in seen:
            seen.add(drawn)
            yield drawn


def _uuid(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


_ASKED = (
    r"What is the secret code of (?P<one>.+)\? The secret code of (?P=one) is|"
    r"What are the (?P<number>\d+) secret codes of (?P<many>.+), in the order told\? The secret codes of (?P=many) are"
)
_TOLD = r"(The|A) secret code of (.+?) is ([\w-]+)\."


def solve(evidence: Sequence[str], question: str) -> str:
    """Answer a question from its sentences alone.

    Raises:
        UnsolvableError: the evidence is another sentence, another one's, or not as many as are asked for.
    """
    asked = re.fullmatch(_ASKED, question)
    if not asked:
        raise UnsolvableError(f"no needle question: {question!r}")
    wanted = int(asked["number"] or 1)
    if len(evidence) != wanted:
        raise UnsolvableError(f"the question asks for {wanted} codes; the evidence has {len(evidence)} pieces")
    codes = []
    for piece in evidence:
        told = re.fullmatch(_TOLD, piece)
        if not told or (told[1] == "A") != (asked["one"] is None):
            raise UnsolvableError(f"no sentence about a secret code: {piece[:60]!r}")
        if told[2] != (asked["one"] or asked["many"]):
            raise UnsolvableError(
                f"the evidence is about {told[2]}, the question about {asked['one'] or asked['many']}"
            )
        codes.append(told[3])
    return ", ".join(codes)


def check(sample: Sample, ruler: Ruler | None = None) -> list[str]:
    """What is wrong with a sample; empty if nothing is.

    Args:
        sample: of this task.
        ruler: measures length and distances anew; None: they are not looked at.
    """
    problems = list(check_answers(sample, solve))
    names = Counter(name for _, name, _ in re.findall(_TOLD, context(sample)))
    for number, answer in enumerate(sample.answers):
        asked = re.fullmatch(_ASKED, sample.cut(answer.question))
        if asked and names[asked["one"] or asked["many"]] != int(asked["number"] or 1):
            name, wanted = asked["one"] or asked["many"], asked["number"] or "one"
            problems.append(f"answers[{number}]: {names[name]} sentences tell a code of {name}, must be {wanted}")
        if list(answer.evidence) != sorted(answer.evidence):
            problems.append(f"answers[{number}]: the evidence is not in the order told")
        rest = outside(sample, answer)
        for code in sample.cut(answer.span).strip().split(", "):
            if holds_word(rest, code):
                problems.append(f"answers[{number}]: {code} stands elsewhere before the question, too")
    return problems + (list(check_length(sample, ruler)) if ruler else [])
