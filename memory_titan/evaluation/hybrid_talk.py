"""The conversations that `evaluate hybrid` tells a memory, and what it asks afterwards.

Two files of the same make, `dev` (looked at while the engine was tuned) and `test` (written apart, not looked at). Each
holds two persons' lives: 500 facts with a question in other words, 80 facts that are corrected later, 30 questions with
two or three facts to their answer, 360 turns of small talk, 50 questions about things never told and 50 of general
knowledge.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

SPLITS = ("dev", "test")
Spans = tuple[str, ...]  # any of them counts as right
SOON, LATE = 2, 20  # turns after which a fact is corrected


@dataclass(frozen=True)
class Turn:
    """What the user types once.

    Attributes:
        kind: fact | told | correction | small talk; `told` is corrected later, or one part of several.
        name: of the row it is from: split and line.
        about: of small talk, its sort.
    """

    text: str
    kind: str
    name: str
    about: str = ""


@dataclass(frozen=True)
class Question:
    """What is asked with the context cleared.

    Attributes:
        name: of its row.
        parts: accepted spans, of each part of the answer; none: there is no right answer.
        told: the texts that answer it.
        old: spans of a value that was corrected.
        form: of the correction.
        turns: where in the chat it was told, as indices.
    """

    name: str
    text: str
    parts: tuple[Spans, ...] = ()
    told: tuple[str, ...] = ()
    old: Spans = ()
    form: str = ""
    turns: tuple[int, ...] = ()


@dataclass(frozen=True)
class Chat:
    """Turns in order, and the questions afterwards."""

    name: str
    turns: list[Turn]
    questions: list[Question] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [turn.text for turn in self.turns]


@dataclass(frozen=True)
class Talk:
    """The rows of a split, by kind, each with its "name"; `other`: of the other split, to fill up with."""

    rows: dict[str, list[dict[str, Any]]]
    other: dict[str, list[dict[str, Any]]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The split's own rows."""
        return self.rows.get(kind, [])

    def with_other(self, kind: str, draw: random.Random) -> list[dict[str, Any]]:
        """Both splits' rows in a random order, the split's own first."""
        own, other = list(self.of(kind)), list(self.other.get(kind, []))
        draw.shuffle(own)
        draw.shuffle(other)
        return own + other


def load_talk(split: str) -> Talk:
    """The committed data.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {' or '.join(SPLITS)}; got {split!r}")
    return Talk(_rows(split), _rows(next(each for each in SPLITS if each != split)))


def _rows(split: str) -> dict[str, list[dict[str, Any]]]:
    place = {"dev": "memory_titan.hybrid", "test": "memory_titan.evaluation"}[split]
    text = resources.files(place).joinpath("data", f"talk_{split}.jsonl").read_text("utf-8")
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(text.splitlines()):
        row = {"name": f"{split} {number}", **json.loads(line)}
        rows.setdefault(row["kind"], []).append(row)
    return rows


def facts_chat(talk: Talk, seed: int, facts: int, small_talk: int) -> Chat:
    """Facts strewn among small talk. Another number of facts has the same ones first, and the same small talk.

    Only the split's own facts are asked for; beyond them the other split's are told too.

    Raises:
        ValueError: there are not so many facts, or not so much small talk.
    """
    draw = random.Random(f"facts {seed}")
    rows, chat = talk.with_other("fact", draw), talk.with_other("small talk", draw)
    for what, wanted, there in (("facts", facts, rows), ("turns of small talk", small_talk, chat)):
        if not 0 <= wanted <= len(there):
            raise ValueError(f"there are {len(there)} {what}; got {wanted}")
    own = {row["name"] for row in talk.of("fact")}
    told = [Turn(row["told"], "fact", row["name"]) for row in rows[:facts]]
    turns = told + _small(chat[:small_talk])
    random.Random(f"order {seed} {facts}").shuffle(turns)
    places = {turn.name: place for place, turn in enumerate(turns)}
    questions = [
        Question(
            row["name"], row["question"], (tuple(row["answer"]),), (row["told"],), turns=(places[row["name"]],)
        )
        for row in rows[:facts]
        if row["name"] in own
    ]  # fmt: skip
    return Chat(f"facts {facts}", turns, questions)


def corrections_chat(talk: Talk, seed: int, small_talk: int) -> Chat:
    """All facts that are corrected: told, and corrected 2 to 20 turns later; what only makes sense at once, at once."""
    draw = random.Random(f"corrections {seed}")
    chat, rows = talk.with_other("small talk", draw)[:small_talk], talk.of("correction")
    blocks = [[turn] for turn in _small(chat)]
    later: list[Turn] = []
    for row in rows:
        told, corrected = Turn(row["told"], "told", row["name"]), Turn(row["correction"], "correction", row["name"])
        at_once = row["form"] == "elliptical"
        blocks.append([told, corrected] if at_once else [told])
        later += [] if at_once else [corrected]
    draw.shuffle(blocks)
    draw.shuffle(later)
    for turn in later:
        place = next(at for at, block in enumerate(blocks) if block[0].kind == "told" and block[0].name == turn.name)
        blocks.insert(min(len(blocks), place + draw.randint(SOON, LATE)), [turn])
    turns = [turn for block in blocks for turn in block]
    questions = [
        Question(
            row["name"],
            row["question"],
            (tuple(row["answer"]),),
            (row["told"], row["correction"]),
            tuple(row["old"]),
            row["form"],
            tuple(place for place, turn in enumerate(turns) if turn.name == row["name"]),
        )
        for row in rows
    ]
    return Chat("corrections", turns, questions)


def several_chat(talk: Talk, seed: int, small_talk: int) -> Chat:
    """Questions whose answer has several parts, told at different times."""
    draw = random.Random(f"several {seed}")
    chat, rows = talk.with_other("small talk", draw)[:small_talk], talk.of("several")
    turns = _small(chat) + [Turn(text, "told", row["name"]) for row in rows for text in row["told"]]
    draw.shuffle(turns)
    questions = [
        Question(
            row["name"],
            row["question"],
            tuple(map(tuple, row["answers"])),
            tuple(row["told"]),
            turns=tuple(place for place, turn in enumerate(turns) if turn.name == row["name"]),
        )
        for row in rows
    ]
    return Chat("several", turns, questions)


def plain_questions(talk: Talk, kind: str) -> list[Question]:
    """Those of kind "unknown" or "general"."""
    return [Question(row["name"], row["question"]) for row in talk.of(kind)]


def _small(rows: Sequence[dict[str, Any]]) -> list[Turn]:
    return [Turn(row["told"], "small talk", row["name"], row["about"]) for row in rows]
