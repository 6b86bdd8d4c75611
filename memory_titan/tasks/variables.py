"""Variable tracking: a value is given to a variable, and from there to others; which variables hold it?

    VariablesTask(context_len=60, hops=2, chains=2)

    VAR QXTBA = 40213                                      <- evidence
    VAR MHRLE = 77052
    The rain is wet. The sand is dry. The lamp is lit.
    VAR WOKUD = VAR QXTBA                                  <- evidence
    VAR PLEJN = VAR MHRLE
    VAR ZINAC = VAR WOKUD                                  <- evidence

    Which variables hold the value 40213, in the order they were assigned? The variables are QXTBA, WOKUD, ZINAC
                                                                                             ~~~~~~~~~~~~~~~~~~~

After RULER's VT (arXiv 2404.06654). A variable is assigned once, before others are set to it, and stands nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_uppercase
from typing import ClassVar

from memory_titan.tasks import filler as fillers
from memory_titan.tasks.checking import UnsolvableError, check_answers, check_length, context, holds_word, outside
from memory_titan.tasks.ruler import Ruler
from memory_titan.tasks.sample import Sample
from memory_titan.tasks.text_task import Draft, Fact, Question, TextTask

_LETTERS, _DIGITS = 5, 5  # of a variable, of a value


@dataclass(frozen=True)
class VariablesTask(TextTask):
    """The shape of the samples; see the module's drawing."""

    name: ClassVar[str] = "variables"

    context_len: int = 4096  # tokens, of whatever ruler; see TextTask
    hops: int = 4  # variables that are set to another one, in a chain; hops + 1 hold its value
    chains: int = 1  # values
    questions: int = 1  # each about another value
    filler: fillers.Filler = "noise"  # or "prose", "topics", "none", or passages
    depth: float | None = None  # where the chains asked for stand, from 0, the start, to 1, the end; None: anywhere

    def __post_init__(self) -> None:
        if min(self.context_len, self.hops, self.chains, self.questions) < 1:
            raise ValueError(f"context_len, hops, chains and questions must be at least 1; got {self}")
        if self.questions > self.chains:
            raise ValueError(f"{self.questions} questions need as many chains; got chains={self.chains}")
        most = 9 * 10 ** (_DIGITS - 1)
        if self.chains * (self.hops + 1) > most:
            raise ValueError(f"chains * (hops + 1) must be at most {most}; got {self.chains} and {self.hops}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"depth must be from 0 to 1; got {self.depth}")
        fillers.lines(self.filler, Random(0))  # refuses a name that is none

    def contents(self) -> str:
        return f"{self.chains} chain(s) of {self.hops + 1} variables and {self.questions} question(s)"

    def draw(self, rng: Random, seed: int, index: int) -> Draft:
        values = [str(each) for each in rng.sample(range(10 ** (_DIGITS - 1), 10**_DIGITS), self.chains)]
        codes = rng.sample(range(26**_LETTERS), self.chains * (self.hops + 1))
        names = ["".join(ascii_uppercase[code // 26**i % 26] for i in range(_LETTERS)) for code in codes]
        chains = [names[i :: self.chains] for i in range(self.chains)]
        # Links at the same place stand in the order of this list: chains mixed, each in its own order.
        turns = [chain for chain in range(self.chains) for _ in range(self.hops + 1)]
        rng.shuffle(turns)
        places = [
            sorted(rng.random() if self.depth is None or chain >= self.questions else self.depth for _ in names_)
            for chain, names_ in enumerate(chains)
        ]
        facts: list[Fact] = []
        stands: list[list[int]] = [[] for _ in chains]  # of each chain, the facts of its links
        for chain in turns:
            link, names_ = len(stands[chain]), chains[chain]
            told = f"VAR {names_[link]} = " + (f"VAR {names_[link - 1]}" if link else values[chain])
            stands[chain].append(len(facts))
            facts.append(Fact(told, places[chain][link]))
        questions = [
            Question(
                f"Which variables hold the value {values[chain]}, in the order they were assigned? The variables are",
                ", ".join(chains[chain]),
                tuple((fact, 0) for fact in stands[chain]),
            )
            for chain in range(self.questions)
        ]
        lines = fillers.lines(self.filler, rng, {*names, *values})
        named = self.filler if isinstance(self.filler, str) else self.filler.name
        return Draft(facts, questions, lines, {"hops": self.hops, "needles": self.chains, "filler": named})


_ASKED = r"Which variables hold the value (\d+), in the order they were assigned\? The variables are"
_ASSIGNED = r"VAR (\w+) = (VAR )?(\w+)"


def _run(assignments: Sequence[str]) -> dict[str, str]:
    """What every variable holds after these lines, in order of assignment.

    Raises:
        UnsolvableError: a line is none, or takes the value of a variable that has none yet.
    """
    held: dict[str, str] = {}
    for line in assignments:
        found = re.fullmatch(_ASSIGNED, line)
        if not found:
            raise UnsolvableError(f"no assignment: {line[:60]!r}")
        name, copied, source = found.groups()
        if name in held:
            raise UnsolvableError(f"{name} is assigned twice")
        if copied and source not in held:
            raise UnsolvableError(f"the chain breaks at {source}, which holds nothing yet")
        held[name] = held[source] if copied else source
    return held


def solve(evidence: Sequence[str], question: str) -> str:
    """Answer a question from its assignments alone.

    Raises:
        UnsolvableError: a piece is no assignment, the chain breaks, or a piece is about another value.
    """
    asked = re.fullmatch(_ASKED, question)
    if not asked:
        raise UnsolvableError(f"no question about variables: {question!r}")
    held = _run(evidence)
    if strange := [name for name, value in held.items() if value != asked[1]]:
        raise UnsolvableError(f"{strange[0]} does not hold {asked[1]}")
    return ", ".join(held)


def check(sample: Sample, ruler: Ruler | None = None) -> list[str]:
    """What is wrong with a sample; empty if nothing is.

    Args:
        sample: of this task.
        ruler: measures length and distances anew; None: they are not looked at.
    """
    problems = list(check_answers(sample, solve))
    try:
        held = _run([line[0] for line in re.finditer(rf"^{_ASSIGNED}$", context(sample), re.MULTILINE)])
    except UnsolvableError as error:
        return [*problems, f"the whole text: {error}"]
    for number, answer in enumerate(sample.answers):
        asked = re.fullmatch(_ASKED, sample.cut(answer.question))
        text, rest = sample.cut(answer.span).strip(), outside(sample, answer)
        if asked and (right := ", ".join(name for name, value in held.items() if value == asked[1])) != text:
            problems.append(f"answers[{number}]: the whole text says {right!r}, the answer {text!r}")
        for word in [*text.split(", "), *(asked.groups() if asked else ())]:
            if holds_word(rest, word):
                problems.append(f"answers[{number}]: {word} stands elsewhere before the question, too")
    return problems + (list(check_length(sample, ruler)) if ruler else [])
