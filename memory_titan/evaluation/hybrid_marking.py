"""What an answer is worth, and where a wrong one went wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from memory_titan.evaluation.hybrid_talk import Question, Spans
from memory_titan.evaluation.recall import is_right

STAGES = ("not written", "erased", "not found", "silent", "wrong recollection used", "misread")
VALUES = ("new", "old", "both", "neither")
OVERLAPS = ("a content word", "a name only", "nothing")
_WORD = re.compile(r"[^\W_]+")


def mark_corrected(answer: str, new: Sequence[str], old: Sequence[str]) -> str:
    """One of `VALUES`: which values stand in an answer, as whole words, in any case.

    A value that is part of the other one, as "Elm Road" is of "9 Elm Road", does not count where the other stands.
    """
    news, olds = _places(answer, new), _places(answer, old)
    has_new = any(not any(_inside(place, other) and place != other for other in olds) for place in news)
    has_old = any(not any(_inside(place, other) for other in news) for place in olds)
    return {(True, False): "new", (False, True): "old", (True, True): "both"}.get((has_new, has_old), "neither")


def overlap(question: str, told: str) -> str:
    """What a question shares with the text that answers it, word stems compared, function words left out.

    A name is a word that stands with a capital letter in both, in one of them not at the start.
    """
    from memory_titan.store.terms import STOP_WORDS, tokenize

    shared = (set(tokenize(question)) & set(tokenize(told))) - STOP_WORDS
    if not shared:
        return "nothing"
    (asked, asked_inside), (said, said_inside) = _capitals(question), _capitals(told)
    names = {term for word in asked & said & (asked_inside | said_inside) for term in tokenize(word)}
    return "a name only" if shared <= names else "a content word"


def stage(
    question: Question, found: Sequence[str], used: Sequence[str], spoke: bool, read: Sequence[dict[str, Any]] | None
) -> str:
    """At which step a wrong answer failed; the first of `STAGES` that applies.

    Args:
        found: all that was considered. used: what went into the prompt. spoke: whether anything did.
        read: what the memory did with each turn of the chat (`Told.read`); None: nothing was read.
    """
    if read is not None:
        if not all(written(read, question.turns, spans) for spans in question.parts):
            return "not written"
        if any(_erased(read, question.turns, spans) for spans in question.parts):
            return "erased"
    if not _all_in(question.parts, found):
        return "not found"
    if not spoke:
        return "silent"
    return "misread" if _all_in(question.parts, used) else "wrong recollection used"


def written(read: Sequence[dict[str, Any]], turns: Iterable[int], spans: Spans) -> bool:
    """Whether what some turns say of an answer was written, or known already.

    Where no reading holds the answer (it was cut in two), any that was written counts.
    """
    readings = [each for turn in turns for each in read[turn]["readings"]]
    holding = [each for each in readings if is_right(each["text"], list(spans))] or readings
    return any(each["written"] or each["reason"] == "known" for each in holding)


def erasures(read: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """The texts that corrections took out of the memory, and at which turn."""
    return [(at, text) for at, turn in enumerate(read) for each in turn["readings"] for text in each["replaced"]]


def holder(read: Sequence[dict[str, Any]], text: str, before: int) -> int | None:
    """The last turn up to `before` whose reading is this text; None: there is none."""
    plain = _plain(text)
    turns = range(min(before, len(read) - 1), -1, -1)
    return next((at for at in turns if any(_plain(each["text"]) == plain for each in read[at]["readings"])), None)


def _erased(read: Sequence[dict[str, Any]], turns: Iterable[int], spans: Spans) -> bool:
    """Whether every text that holds the answer was taken out again later, for one that does not hold it."""
    held = [
        (turn, _plain(each["text"]))
        for turn in turns
        for each in read[turn]["readings"]
        if is_right(each["text"], list(spans))
    ]
    gone = [
        (turn, _plain(text))
        for turn, after in enumerate(read)
        for each in after["readings"]
        if not is_right(each["text"], list(spans))
        for text in each["replaced"]
    ]
    return bool(held) and all(any(at > turn and out == text for at, out in gone) for turn, text in held)


def _all_in(parts: Iterable[Spans], texts: Sequence[str]) -> bool:
    return all(any(is_right(text, list(spans)) for text in texts) for spans in parts)


def _places(answer: str, spans: Sequence[str]) -> list[tuple[int, int]]:
    low = answer.lower()
    return [
        found.span() for span in spans for found in re.finditer(rf"(?<!\w){re.escape(span.lower())}(?!\w)", low)
    ]  # fmt: skip


def _inside(place: tuple[int, int], other: tuple[int, int]) -> bool:
    return other[0] <= place[0] and place[1] <= other[1]


def _capitals(text: str) -> tuple[set[str], set[str]]:
    """Words with a capital letter, in lower case: all, and those inside a sentence."""
    words = [(found.start(), found[0].lower()) for found in _WORD.finditer(text) if found[0][0].isupper()]
    inside = {word for at, word in words if not re.search(r"(?:^|[.!?])\W*$", text[:at])}
    return {word for _, word in words}, inside


def _plain(text: str) -> str:
    return " ".join(text.split())
