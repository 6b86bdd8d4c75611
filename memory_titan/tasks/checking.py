"""What all checkers of text tasks check: the answer follows from the evidence, and lengths and distances are right.

A checker shares no code with a generator: it reads the text as a stranger would, with regular expressions or `ast`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from memory_titan.tasks.ruler import Ruler
from memory_titan.tasks.sample import Answer, Sample

Solve = Callable[[Sequence[str], str], str]  # (evidence, question) -> answer


class UnsolvableError(ValueError):
    """No answer follows from this evidence, or the question is none of the task's."""


def check_length(sample: Sample, ruler: Ruler) -> Iterator[str]:
    """What is wrong with a sample's length and distances, measured anew; nothing if all is right."""
    if sample.unit != ruler.name:
        yield f"measured in {sample.unit!r}, not in {ruler.name!r}"
        return
    starts = ruler.starts(sample.text)
    if len(starts) != sample.length:
        yield f"length is {len(starts)} {ruler.name}, not {sample.length}"
    for number, answer in enumerate(sample.answers):
        for (_, end), claimed in zip(answer.evidence, answer.distances, strict=True):
            # Counted one by one, not as the generator does.
            real = sum(end <= start < answer.span[0] for start in starts)
            if real != claimed:
                yield f"answers[{number}]: evidence lies {real} {ruler.name} back, not {claimed}"


def check_answers(sample: Sample, solve: Solve) -> Iterator[str]:
    """What is wrong with a sample's answers, each solved from its evidence alone."""
    limit = sample.meta.get("context_len")
    if isinstance(limit, int) and sample.length > limit:
        yield f"length {sample.length} exceeds context_len {limit}"
    for number, answer in enumerate(sample.answers):
        text = sample.cut(answer.span)
        if not re.fullmatch(r" \S(.*\S)?", text):
            yield f"answers[{number}] must be one space and the answer; got {text!r}"
        try:
            right = solve([sample.cut(span) for span in answer.evidence], sample.cut(answer.question))
        except UnsolvableError as error:
            yield f"answers[{number}]: {error}"
            continue
        if right != text.strip():
            yield f"answers[{number}]: the evidence says {right!r}, the answer {text.strip()!r}"


def context(sample: Sample) -> str:
    """The text before the first question."""
    return sample.text[: sample.answers[0].question[0]]


def outside(sample: Sample, answer: Answer) -> str:
    """What stands before a question, its evidence cut out."""
    parts, at = [], 0
    for start, end in sorted(answer.evidence):
        parts.append(sample.text[at:start])
        at = max(at, end)
    return "\0".join([*parts, sample.text[at : answer.question[0]]])


def holds_word(text: str, word: str) -> bool:
    """Whether `word` stands in `text`, not as a part of a longer one."""
    return word in text and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None
