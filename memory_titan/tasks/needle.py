"""A needle in a haystack, in plain words: who has which secret code; the question repeats the sentence up to the code.

    NeedleTask(context_len=60, needles=2)

    The innkeeper was tired, and the fog stayed under the chestnut trees.
    The secret code of Ida Marlow is 5903317.              <- evidence
    On the way home a tailor missed the hen house.
    The secret code of Boris Thorne is 8120466.

    What is the secret code of Ida Marlow? The secret code of Ida Marlow is 5903317
                                                                            ~~~~~~~ answer

A code stands once in the text, a name too, before the question. The filler is prose, Python's help topics, none, or
passages of a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from memory_titan.tasks import filler as fillers
from memory_titan.tasks.checking import UnsolvableError, check_answers, check_length, context, holds_word, outside
from memory_titan.tasks.ruler import Ruler
from memory_titan.tasks.sample import Sample
from memory_titan.tasks.text_task import Draft, Fact, Question, TextTask
from memory_titan.tasks.words import FIRST_NAMES, LAST_NAMES


@dataclass(frozen=True)
class NeedleTask(TextTask):
    """The shape of the samples; see the module's drawing."""

    name: ClassVar[str] = "needle"

    context_len: int = 4096  # tokens, of whatever ruler; see TextTask
    needles: int = 1  # sentences that tell a code
    questions: int = 1  # each about another name
    digits: int = 7  # of a code
    filler: fillers.Filler = "prose"  # or "topics", "none", or passages
    depth: float | None = None  # where the needles asked for stand, from 0, the start, to 1, the end; None: anywhere

    def __post_init__(self) -> None:
        if min(self.context_len, self.needles, self.questions, self.digits) < 1:
            raise ValueError(f"context_len, needles, questions and digits must be at least 1; got {self}")
        if self.questions > self.needles:
            raise ValueError(f"{self.questions} questions need as many needles; got needles={self.needles}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"depth must be from 0 to 1; got {self.depth}")
        most = min(len(FIRST_NAMES) * len(LAST_NAMES), 9 * 10 ** (self.digits - 1))
        if self.needles > most:
            raise ValueError(
                f"there are names and codes of {self.digits} digits for {most} needles; got {self.needles}"
            )
        fillers.lines(self.filler, Random(0))  # refuses a name that is none

    def contents(self) -> str:
        return f"{self.needles} needle{'s' * (self.needles > 1)} and {self.questions} question(s)"

    def draw(self, rng: Random, seed: int, index: int) -> Draft:
        last = len(LAST_NAMES)
        drawn = rng.sample(range(len(FIRST_NAMES) * last), self.needles)
        names = [f"{FIRST_NAMES[each // last]} {LAST_NAMES[each % last]}" for each in drawn]
        codes = [str(code) for code in rng.sample(range(10 ** (self.digits - 1), 10**self.digits), self.needles)]
        facts, questions = [], []
        for number, (name, code) in enumerate(zip(names, codes, strict=True)):
            asked = number < self.questions
            at = self.depth if asked and self.depth is not None else rng.random()
            facts.append(Fact(f"The secret code of {name} is {code}.", at))
            if asked:
                words = f"What is the secret code of {name}? The secret code of {name} is"
                questions.append(Question(words, code, ((number, 0),)))
        lines = fillers.lines(self.filler, rng, {*codes, *(word for name in names for word in name.split())})
        named = self.filler if isinstance(self.filler, str) else self.filler.name
        return Draft(facts, questions, lines, {"hops": 1, "needles": self.needles, "filler": named})


def solve(evidence: Sequence[str], question: str) -> str:
    """Answer a question from its sentence alone.

    Raises:
        UnsolvableError: the evidence is another sentence, or another one's.
    """
    asked = re.fullmatch(r"What is the secret code of (.+)\? The secret code of (.+) is", question)
    if not asked or asked[1] != asked[2]:
        raise UnsolvableError(f"no needle question: {question!r}")
    if len(evidence) != 1:
        raise UnsolvableError(f"a needle is one piece of evidence; got {len(evidence)}")
    told = re.fullmatch(r"The secret code of (.+) is (\d+)\.", evidence[0])
    if not told:
        raise UnsolvableError(f"no sentence about a secret code: {evidence[0][:60]!r}")
    if told[1] != asked[1]:
        raise UnsolvableError(f"the evidence is about {told[1]}, the question about {asked[1]}")
    return told[2]


def check(sample: Sample, ruler: Ruler | None = None) -> list[str]:
    """What is wrong with a sample; empty if nothing is.

    Args:
        sample: of this task.
        ruler: measures length and distances anew; None: they are not looked at.
    """
    problems = list(check_answers(sample, solve))
    names = re.findall(r"The secret code of (.+?) is ", context(sample))
    for number, answer in enumerate(sample.answers):
        name = sample.cut(answer.question).split(" code of ")[-1].removesuffix(" is")
        if names.count(name) != 1:
            problems.append(f"answers[{number}]: {names.count(name)} sentences tell the code of {name}, must be one")
        code = sample.cut(answer.span).strip()
        if holds_word(outside(sample, answer), code):
            problems.append(f"answers[{number}]: {code} stands elsewhere before the question, too")
    return problems + (list(check_length(sample, ruler)) if ruler else [])
