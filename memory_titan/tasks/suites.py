"""RULER's and BABILong's tasks under the names they have there, made of the tasks here; all measured in your tokens.

    niah_single_1     a code among noise            niah_multikey_1   among 3 others      vt   variables, 4 hops
    niah_single_2     among prose                   niah_multikey_2   among others only   cwe  10 common words
    niah_single_3     a UUID among prose            niah_multikey_3   the same of UUIDs
    niah_multivalue   4 codes of one name           niah_multiquery   4 names, one after the other
    qa1, qa2, qa3     one, two, three supporting facts

RULER: arXiv 2404.06654; its fwe, and its qa_1 and qa_2, which need other people's texts, are not here. BABILong: arXiv
2406.10149. The wording is our own, and answers are in one fixed order, so shares are not to be compared with theirs.
"""

from __future__ import annotations

from dataclasses import replace

from memory_titan.tasks.babi import BabiTask
from memory_titan.tasks.common_words import CommonWordsTask
from memory_titan.tasks.filler import Filler
from memory_titan.tasks.needle import NeedleTask
from memory_titan.tasks.text_task import TextTask
from memory_titan.tasks.variables import VariablesTask

SuiteTask = NeedleTask | VariablesTask | CommonWordsTask | BabiTask

RULER: dict[str, SuiteTask] = {
    "niah_single_1": NeedleTask(filler="noise"),
    "niah_single_2": NeedleTask(),
    "niah_single_3": NeedleTask(codes="uuids"),
    "niah_multikey_1": NeedleTask(needles=4),
    "niah_multikey_2": NeedleTask(filler="needles"),
    "niah_multikey_3": NeedleTask(filler="needles", keys="uuids", codes="uuids"),
    "niah_multivalue": NeedleTask(codes_each=4),
    "niah_multiquery": NeedleTask(needles=4, questions=4),
    "vt": VariablesTask(),
    "cwe": CommonWordsTask(),
}
BABILONG: dict[str, SuiteTask] = {f"qa{n}": BabiTask(supports=n) for n in (1, 2, 3)}
SUITES = {"ruler": RULER, "babilong": BABILONG}

_CWE_FROM = 4096  # tokens from which the words of cwe stand there as often as in RULER


def suite_task(
    suite: str,
    name: str,
    context_len: int,
    *,
    filler: Filler = "prose",
    depth: float | None = None,
    questions: int = 1,
) -> TextTask:
    """One task of a suite at one length.

    Args:
        suite: of `SUITES`.
        name: of a task in it.
        context_len: tokens, of whatever ruler. Below 4,096 the words of cwe stand there less often, in proportion, and
            the others once.
        filler: takes the place of the prose; noise and filler needles stay.
        depth: where the evidence stands, from 0, the start, to 1, the end; None: anywhere.
        questions: at the least; there are as many names, values or events more.

    Raises:
        ValueError: no such suite or task, or options that cannot be.
    """
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}; got {suite!r}")
    if name not in SUITES[suite]:
        raise ValueError(f"a task of {suite} must be one of {', '.join(SUITES[suite])}; got {name!r}")
    task = replace(SUITES[suite][name], context_len=context_len, depth=depth)
    if isinstance(task, CommonWordsTask):
        if questions > 1:
            raise ValueError(f"{name} has one question; got questions={questions}")
        if context_len >= _CWE_FROM:
            return task
        return replace(task, frequency=max(3, task.frequency * context_len // _CWE_FROM), rare=1)
    task = replace(task, filler=filler) if task.filler == "prose" else task
    if isinstance(task, NeedleTask):
        return replace(task, needles=max(task.needles, questions), questions=max(task.questions, questions))
    if isinstance(task, VariablesTask):
        return replace(task, chains=max(task.chains, questions), questions=questions)
    return replace(
        task, events=task.events + 8 * (questions - 1), things=max(task.things, questions), questions=questions
    )
