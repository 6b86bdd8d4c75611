"""What a text task gives: one text with answers in it, and where the evidence of each stands. One JSON object a line.

    text      Pale lamps hum. a1f -> 9c2 The mill was quiet. | Follow 1 hop: a1f -> 9c2 | Follow 1 hop: 77b -> ...
                              ^^^^^^^^^^ evidence               ^^^^^^^^^^^^^^^^^^^^     question
                                                                                    ^^^^ answer, with its space

A model is trained on `text`, with the loss on the answers' spans, and asked with `text[:start of the answer]`. All
spans are `[start, end)` in characters. An answer's span begins with the space in front of it (there is always one):
tokenizers put a space to the word that follows, so prompt and answer fall apart into the tokens of the whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

Span = tuple[int, int]


class SampleError(ValueError):
    """A line of a data file that is no sample; the message says which line and what is wrong."""


@dataclass(frozen=True)
class Answer:
    """One question of a text and what it rests on."""

    span: Span  # of the answer, its leading space included
    question: Span  # ends where the answer starts
    evidence: tuple[Span, ...]  # in order of reasoning
    distances: tuple[int, ...]  # tokens from the end of each piece of evidence to the answer

    @property
    def distance(self) -> int:
        """Tokens from the end of the farthest evidence to the answer."""
        return max(self.distances)

    @property
    def nearest(self) -> int:
        """Tokens from the end of the nearest evidence to the answer: a window below it sees none of the evidence."""
        return min(self.distances)


@dataclass(frozen=True)
class Sample:
    """A text, its answers in order, and how it was made."""

    task: str  # "hash-hop", "needle", ...: a name of `checks.CHECKS`
    text: str
    answers: tuple[Answer, ...]
    length: int  # tokens of the whole text, nothing added in front or behind
    unit: str  # what a token is: "words", "bytes" or a tokenizer's name
    seed: int
    index: int
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The text up to the first answer."""
        return self.text[: self.answers[0].span[0]]

    @property
    def answer(self) -> str:
        """The first answer, with the space in front of it."""
        return self.cut(self.answers[0].span)

    def cut(self, span: Span) -> str:
        """What stands in a span."""
        return self.text[span[0] : span[1]]

    def to_json(self) -> str:
        """One line, ASCII only, without its end."""
        answers = [
            {"span": a.span, "question": a.question, "evidence": a.evidence, "distances": a.distances}
            for a in self.answers
        ]
        return json.dumps({**vars(self), "answers": answers}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str, number: int = 1, source: str = "") -> Sample:
        """Read a line and refuse what is no sample.

        Args:
            line: one JSON object.
            number: of the line, from 1, for the message.
            source: the file's name, for the message.

        Raises:
            SampleError: no JSON, fields missing or of another type, NaN, spans outside the text or out of order.
        """
        try:
            return _sample(_json(line))
        except SampleError as error:
            raise SampleError(f"{source}{', ' if source else ''}line {number}: {error}") from None


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a file, one at a time.

    Raises:
        SampleError: a line is no sample, or there is none; it names file and line.
    """
    number = 0
    for number, line in numbered_lines(path):
        yield Sample.from_json(line, number, path.name)
    if not number:
        raise SampleError(f"{path} is empty")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file from 1. Bytes that are no UTF-8 come as U+FFFD in a line that is then no sample of ours."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode()
            except UnicodeDecodeError:
                yield number, "\ufffd" + line.decode(errors="replace")


def _json(line: str) -> dict[str, Any]:
    def constant(name: str) -> NoReturn:
        raise SampleError(f"{name} is no number for a sample")

    if not line.strip():
        raise SampleError("the line is empty")
    if line.startswith("\ufffd"):
        raise SampleError("not UTF-8")
    try:
        fields = json.loads(line, parse_constant=constant)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SampleError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise SampleError(f"a sample is a JSON object; got {_kind(fields)}")
    return fields


def _sample(fields: dict[str, Any]) -> Sample:
    text = _get(fields, "text", str)
    if not text.strip():
        raise SampleError("text is empty")
    task, unit = _get(fields, "task", str), _get(fields, "unit", str)
    length, seed, index = (_count(_get(fields, name, int), name) for name in ("length", "seed", "index"))
    if length < 1:
        raise SampleError("length must be at least 1; got 0")
    listed = _get(fields, "answers", list)
    if not listed:
        raise SampleError("answers is empty")
    answers = tuple(_answer(entry, f"answers[{i}]", text) for i, entry in enumerate(listed))
    for i, (before, after) in enumerate(pairwise(answers)):
        if after.question[0] < before.span[1]:
            raise SampleError(f"answers[{i + 1}].question begins at {after.question[0]}, inside answers[{i}]")
    meta = _get(fields, "meta", dict)
    _finite(meta, "meta")
    return Sample(task, text, answers, length, unit, seed, index, meta)


def _answer(entry: Any, where: str, text: str) -> Answer:
    if not isinstance(entry, dict):
        raise SampleError(f"{where} must be an object; got {_kind(entry)}")
    span = _span(_get(entry, "span", list, where), f"{where}.span", text)
    question = _span(_get(entry, "question", list, where), f"{where}.question", text)
    listed = _get(entry, "evidence", list, where)
    if not listed:
        raise SampleError(f"{where}.evidence is empty")
    evidence = tuple(_span(each, f"{where}.evidence[{i}]", text) for i, each in enumerate(listed))
    distances = _get(entry, "distances", list, where)
    for each in distances:
        _count(each, f"{where}.distances")
    if len(distances) != len(evidence):
        raise SampleError(f"{where} has {len(evidence)} pieces of evidence and {len(distances)} distances")
    if question[1] != span[0]:
        raise SampleError(f"{where}.question ends at {question[1]}, its answer starts at {span[0]}; must be the same")
    late = [each for each in evidence if each[1] > question[0]]
    if late:
        raise SampleError(f"{where}.evidence {list(late[0])} reaches into its question, which begins at {question[0]}")
    if not text[span[0] : span[1]].strip():
        raise SampleError(f"{where}.span {list(span)} holds nothing but space")
    return Answer(span, question, evidence, tuple(distances))


def _get(fields: dict[str, Any], name: str, kind: type, where: str = "") -> Any:
    place = f"{where}.{name}" if where else name
    if name not in fields:
        raise SampleError(f"{place} is missing")
    value = fields[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SampleError(f"{place} must be {_NAMES[kind]}; got {_kind(value)}")
    return value


def _span(value: Any, where: str, text: str) -> Span:
    whole = isinstance(value, list) and len(value) == 2
    if not whole or any(not isinstance(each, int) or isinstance(each, bool) for each in value):
        raise SampleError(f"{where} must be [start, end], whole numbers; got {json.dumps(value)[:60]}")
    start, end = value
    if not 0 <= start < end <= len(text):
        raise SampleError(f"{where} [{start}, {end}] is no span of a text of {len(text)} characters")
    return start, end


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SampleError(f"{where} must be a whole number, at least 0; got {json.dumps(value)[:60]}")
    return value


def _finite(value: Any, where: str) -> None:
    """1e999 is JSON and reads as infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise SampleError(f"{where} holds {value}, which is no finite number")
    nested = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in nested:
        _finite(each, f"{where}.{key}")


_NAMES = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _NAMES.get(type(value), type(value).__name__)
