"""Code retrieval: a definition in one file, and far later a line that only the definition can complete.

    CodeRetrievalTask(context_len=400)                     made-up modules; see code_modules.py

    # file: yard/keen_loom.py                              filler: other modules of the same form
    KEEN_LOOM_BUDGET = 31877
    ...
    # file: plant/amber_lantern.py
    def open_amber_lantern(path, retries=48213):           <- evidence
        return [path] + [retries] if path else []
    ...
    # file: tests/test_amber_lantern.py
    import inspect

    from plant.amber_lantern import open_amber_lantern

    def test_amber_lantern(readings):
        assert inspect.signature(open_amber_lantern).parameters["retries"].default == 48213
                                                                                      ~~~~~ answer
    SourceRetrievalTask(read_corpus(), context_len=4000)   a real tree; see code_uses.py

    # file: bisect.py, lines 1 to 40                       <- evidence: which file
    def insort_right(a, x, lo=0, hi=None, *, key=None):    <- evidence
    ...
    # file: statistics.py                                  the use, from another file or far off in the same
    from bisect import insort_right

    insort_right(points, middle, 1, 9, key=None            ...

In made-up modules an answer stands nowhere but in its evidence. In real ones it may: other files have numbers and
names of their own; there the evidence alone decides which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from memory_titan.tasks import code_modules
from memory_titan.tasks.checking import check_answers, check_length, holds_word, outside
from memory_titan.tasks.code_modules import Stock
from memory_titan.tasks.code_solve import solve
from memory_titan.tasks.code_source import Corpus
from memory_titan.tasks.code_uses import FAR, Item
from memory_titan.tasks.ruler import Ruler
from memory_titan.tasks.sample import Sample, Span
from memory_titan.tasks.text_task import Draft, Fact, Question, TextTask

__all__ = ["CodeRetrievalTask", "SourceRetrievalTask", "check", "solve"]

_MARGIN = FAR // 2 - 10  # lines around a definition at the most: its use in the same file stays out
_PIECE = 40  # lines of filler under one header


@dataclass(frozen=True)
class CodeRetrievalTask(TextTask):
    """Made-up modules; see the module's drawing."""

    name: ClassVar[str] = "code-retrieval"

    context_len: int = 4096  # tokens, of whatever ruler; see TextTask
    questions: int = 1  # each about another module
    kind: str = "mixed"  # one of code_modules.KINDS, or "mixed": any, for each question anew
    depth: float | None = None  # where the modules asked for stand, from 0, the start, to 1, the end; None: anywhere

    def __post_init__(self) -> None:
        _refuse(self.context_len, self.questions, self.depth)
        if self.kind not in (*code_modules.KINDS, "mixed"):
            raise ValueError(f"kind must be one of {', '.join(code_modules.KINDS)}, mixed; got {self.kind!r}")

    def contents(self) -> str:
        return f"{self.questions} module{'s' * (self.questions > 1)} with the question{'s' * (self.questions > 1)}"

    def draw(self, rng: Random, seed: int, index: int) -> Draft:
        stock, facts, questions, kinds = Stock(rng), [], [], []
        for number in range(self.questions):
            kinds.append(rng.choice(code_modules.KINDS) if self.kind == "mixed" else self.kind)
            at = rng.random() if self.depth is None else self.depth
            fact, question = code_modules.asked(kinds[-1], at, number, stock)
            facts.append(fact)
            questions.append(question)
        meta = {"hops": 1, "needles": self.questions, "kind": kinds[0], "kinds": kinds, "source": "synthetic"}
        return Draft(facts, questions, code_modules.modules(stock), meta, cut="\n")


@dataclass(frozen=True, eq=False)
class SourceRetrievalTask(TextTask):
    """Definitions and uses of a real tree; see the module's drawing."""

    name: ClassVar[str] = "code-retrieval"

    corpus: Corpus
    context_len: int = 4096  # tokens, of whatever ruler; see TextTask
    questions: int = 1  # each about another definition
    depth: float | None = (
        None  # where the definitions asked for stand, from 0, the start, to 1, the end; None: anywhere
    )

    def __post_init__(self) -> None:
        _refuse(self.context_len, self.questions, self.depth)

    def contents(self) -> str:
        return f"{self.questions} definition{'s' * (self.questions > 1)} with the question{'s' * (self.questions > 1)}"

    def draw(self, rng: Random, seed: int, index: int) -> Draft:
        corpus, items = self.corpus, self._items(rng)
        # A line of code is about ten tokens: the definitions' files may take a quarter of the context.
        margin = max(2, min(_MARGIN, self.context_len // (80 * self.questions)))
        facts, questions = [], []
        for number, item in enumerate(items):
            fact = self._excerpt(item, margin, rng.random() if self.depth is None else self.depth)
            facts.append(fact)
            evidence = tuple((number, mark) for mark in range(len(fact.marks)))
            questions.append(Question(item.question, item.answer, evidence, "\n\n"))
        left_out = {item.definition for item in items} | {item.use for item in items}
        meta = {
            "hops": 1, "needles": self.questions, "kind": items[0].kind, "kinds": [item.kind for item in items],
            "source": corpus.name, "split": corpus.split,
            "definitions": [f"{corpus.files[item.definition].path}:{item.lines[-1][0]}" for item in items],
        }  # fmt: skip
        return Draft(facts, questions, self._pieces(rng, left_out), meta, cut="\n")

    def _items(self, rng: Random) -> list[Item]:
        """Items of different files, so that no excerpt of a definition shows another item's use."""
        found: list[Item] = []
        files: set[int] = set()
        for _ in range(1000 * self.questions):
            item = rng.choice(self.corpus.items)
            if files.isdisjoint({item.definition, item.use}):
                found.append(item)
                files |= {item.definition, item.use}
            if len(found) == self.questions:
                return found
        raise ValueError(f"{self.corpus.name} has too few files for {self.questions} questions about different ones")

    def _excerpt(self, item: Item, margin: int, at: float) -> Fact:
        """The definition's lines and some around them, under their file's header; header and definition are marked."""
        file = self.corpus.files[item.definition]
        first = max(1, item.lines[-1][0] - margin)
        last = min(len(file.lines), item.lines[-1][1] + margin)
        parts: list[str] = []
        marks: list[Span] = []
        at_character = 0

        def add(start: int, end: int) -> None:
            nonlocal at_character
            text = "\n".join([f"# file: {file.path}, lines {start} to {end}", *file.lines[start - 1 : end]])
            if not marks:
                marks.append((at_character, at_character + text.index("\n")))
            for low, high in item.lines:
                if start <= low and high <= end:
                    before = (
                        at_character + text.index("\n") + 1 + sum(len(x) + 1 for x in file.lines[start - 1 : low - 1])
                    )
                    marks.append((before, before + len("\n".join(file.lines[low - 1 : high]))))
            parts.append(text)
            at_character += len(text) + 1

        if item.lines[0][0] < first:  # a long way from the class to its method or attribute
            add(*item.lines[0])
        add(first, last)
        return Fact("\n".join(parts) + "\n", at, tuple(marks))

    def _pieces(self, rng: Random, left_out: set[int]) -> Iterator[str]:
        """The other files in random order, a piece after the other, over and over."""
        order = [number for number in range(len(self.corpus.files)) if number not in left_out]
        while order:
            rng.shuffle(order)
            for number in order:
                file = self.corpus.files[number]
                for start in range(0, len(file.lines), _PIECE):
                    piece = file.lines[start : start + _PIECE]
                    if any(map(str.strip, piece)):
                        header = f"# file: {file.path}, lines {start + 1} to {start + len(piece)}"
                        yield "\n".join([header, *piece, "", ""])
            if all(not any(map(str.strip, self.corpus.files[number].lines)) for number in order):
                return


def _refuse(context_len: int, questions: int, depth: float | None) -> None:
    if min(context_len, questions) < 1:
        raise ValueError(f"context_len and questions must be at least 1; got {context_len} and {questions}")
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"depth must be from 0 to 1; got {depth}")


def check(sample: Sample, ruler: Ruler | None = None) -> list[str]:
    """What is wrong with a sample; empty if nothing is.

    Args:
        sample: of this task.
        ruler: measures length and distances anew; None: they are not looked at.
    """
    problems = list(check_answers(sample, solve))
    for number, answer in enumerate(sample.answers):
        text = sample.cut(answer.span).strip()
        for start, end in answer.evidence:
            if sample.text[max(0, start - 1) : start] not in ("", "\n") or sample.text[end] != "\n":
                problems.append(f"answers[{number}]: evidence [{start}, {end}] is not whole lines")
        if sample.meta.get("source") == "synthetic":
            if holds_word(outside(sample, answer), text):
                problems.append(f"answers[{number}]: {text} stands elsewhere before the question, too")
        else:
            header = sample.cut(answer.evidence[0])
            if not re.fullmatch(r"# file: .+, lines \d+ to \d+", header):
                problems.append(
                    f"answers[{number}]: the first piece of evidence must be a file's header; got {header!r}"
                )
    return problems + (list(check_length(sample, ruler)) if ruler else [])
