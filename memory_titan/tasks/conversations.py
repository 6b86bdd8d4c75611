"""Conversations of two people over months, and questions whose evidence is a turn or two of them.

    session s0, 2023-02-11     s0-4  Nora: How is the flat hunt going?
                               s0-5  Igor: We got the keys on Friday, so Leeds it is, boxes everywhere.   <- stale
    session s3, 2023-04-02     s3-1  Nora: The train got stuck outside York for two hours.
    session s7, 2023-06-20     s7-2  Igor: Big change, we packed everything up again and ended up in York.   <- evidence

    question   Which city does Igor live in?                   evidence s7-2, stale s0-5      York
               Where did Igor live before the last move?       evidence s0-5                  Leeds

Questions use other words than the turns that answer them; both people speak of the same subjects, some facts are
replaced later, and the same words stand in turns that are beside the point. What is said comes from
`data/conversations.txt`. The file form, one conversation a line, holds human conversations just as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

from memory_titan.tasks.words import FIRST_NAMES

_START = datetime(2023, 1, 9, 18, 30)


@dataclass(frozen=True)
class Turn:
    """What one person says before another does."""

    id: str  # its own within the conversation
    speaker: str
    text: str
    time: str | None = None  # ISO 8601; None: its session's, or not known


@dataclass(frozen=True)
class Session:
    """Turns that follow each other without a pause."""

    id: str
    turns: tuple[Turn, ...]
    time: str | None = None  # ISO 8601, when it began; None: not known


@dataclass(frozen=True)
class Question:
    """What is asked about a conversation."""

    question: str
    evidence: tuple[str, ...]  # ids of the turns that answer it
    answers: tuple[str, ...] = ()  # any of them is right
    stale: tuple[str, ...] = ()  # ids of turns that once answered it, until the evidence said otherwise
    category: str | None = None  # kind of question, where a set has kinds


@dataclass(frozen=True)
class Conversation:
    """Sessions, oldest first, and questions asked after the last."""

    id: str
    sessions: tuple[Session, ...]
    questions: tuple[Question, ...]

    def turns(self) -> Iterator[Turn]:
        """All turns, oldest first."""
        return (turn for session in self.sessions for turn in session.turns)

    def to_json(self) -> str:
        """One line of JSON; times, stale turns and categories only where there are any."""
        sessions = [
            {"id": each.id, "turns": [_kept(vars(turn)) for turn in each.turns], **_kept({"time": each.time})}
            for each in self.sessions
        ]
        questions = [
            {"question": each.question, "evidence": list(each.evidence), "answers": list(each.answers)}
            | ({"stale": list(each.stale)} if each.stale else {})
            | _kept({"category": each.category})
            for each in self.questions
        ]
        return json.dumps({"id": self.id, "sessions": sessions, "questions": questions}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Conversation:
        """Read what `to_json` writes.

        Raises:
            ValueError: it is no JSON, a field is missing or of another type, or a question names no turn.
        """
        try:
            data = json.loads(line)
            sessions = tuple(
                Session(_text(s["id"]), tuple(_turn(t) for t in s["turns"]), _optional(s.get("time")))
                for s in data["sessions"]
            )
            questions = tuple(
                Question(
                    _text(q["question"]),
                    evidence=_texts(q.get("evidence", [])),
                    answers=_texts(q.get("answers", [])),
                    stale=_texts(q.get("stale", [])),
                    category=_optional(q.get("category")),
                )
                for q in data["questions"]
            )
            conversation = cls(_text(data["id"]), sessions, questions)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"a conversation is one line of JSON with id, sessions and questions; got {line[:60]!r}: {error!r}"
            ) from error
        ids = [turn.id for turn in conversation.turns()]
        if len(set(ids)) < len(ids):
            raise ValueError(f"conversation {conversation.id!r}: ids of turns must be different")
        for question in questions:
            unknown = {*question.evidence, *question.stale} - set(ids)
            if unknown or not question.evidence:
                raise ValueError(
                    f"conversation {conversation.id!r}: evidence of {question.question!r} must be ids of turns, at "
                    f"least one; got {[*question.evidence, *question.stale]}"
                )
        return conversation


def read_conversations(path: str | Path) -> list[Conversation]:
    """Conversations of a file of JSON lines.

    Raises:
        ValueError: a line is no conversation; the message names it.
    """
    found = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                found.append(Conversation.from_json(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return found


def write_conversations(path: str | Path, conversations: Iterable[Conversation]) -> None:
    """Write conversations, one a line."""
    Path(path).write_text("".join(each.to_json() + "\n" for each in conversations), "utf-8")


@dataclass(frozen=True)
class ConversationTask:
    """The shape of the conversations; see the module's drawing."""

    sessions: int = 16
    blocks: int = 8  # things spoken of in a session: facts, what is beside the point, small talk
    subjects: int = 12  # of which each of the two says something; at most those of the data
    updates: float = 0.5  # share of facts that another replaces later

    def __post_init__(self) -> None:
        most = len(_subjects())
        if self.sessions < 2 or self.blocks < 1 or not 1 <= self.subjects <= most or not 0 <= self.updates <= 1:
            raise ValueError(
                f"sessions must be at least 2, blocks at least 1, subjects from 1 to {most}, updates from 0 to 1; "
                f"got {self}"
            )

    def draw(self, seed: int, index: int = 0) -> Conversation:
        """One conversation; the same for the same seed and index."""
        return _Drawing(self, Random(f"{seed} {index}")).conversation(f"{seed}-{index}")


@dataclass(frozen=True)
class _Said:
    """A turn to come, and the fact it states, if any."""

    speaker: str
    text: str
    fact: tuple[str, str, int] | None = None  # speaker, subject, which of its values


class _Drawing:
    def __init__(self, task: ConversationTask, rng: Random) -> None:
        self.task, self.rng = task, rng
        self.people = rng.sample(FIRST_NAMES, 2)
        self.bags: dict[tuple[str, str], list[str]] = {}

    def conversation(self, name: str) -> Conversation:
        values, told = self._facts()
        time, sessions, places = _START, [], dict[tuple[str, str, int], str]()
        for number in range(self.task.sessions):
            time += timedelta(days=self.rng.randint(3, 16), minutes=self.rng.randint(-300, 200))
            turns: list[Turn] = []
            for said in self._session([each for each in told if told[each] == number], values):
                turns.append(Turn(f"s{number}-{len(turns)}", said.speaker, said.text))
                if said.fact:
                    places[said.fact] = turns[-1].id
            sessions.append(Session(f"s{number}", tuple(turns), time.isoformat(timespec="minutes")))
        texts = {turn.id: turn.text for session in sessions for turn in session.turns}
        return Conversation(name, tuple(sessions), tuple(self._questions(values, places, texts)))

    def _facts(self) -> tuple[dict[tuple[str, str], list[str]], dict[tuple[str, str, int], int]]:
        """Values that a person's subject takes, one after the other; and the session in which each is said."""
        subjects, last = self.rng.sample(sorted(_subjects()), self.task.subjects), self.task.sessions - 1
        values: dict[tuple[str, str], list[str]] = {}
        told: dict[tuple[str, str, int], int] = {}
        for subject in subjects:
            drawn = self.rng.sample(_subjects()[subject]["value"], 4)  # the two people's values differ
            for person, two in zip(self.people, (drawn[:2], drawn[2:]), strict=True):
                times = sorted(self.rng.sample(range(last + 1), 2))
                count = 2 if self.rng.random() < self.task.updates else 1
                values[person, subject] = two[:count]
                told |= {(person, subject, which): times[which] for which in range(count)}
        return values, told

    def _session(
        self, facts: Sequence[tuple[str, str, int]], values: dict[tuple[str, str], list[str]]
    ) -> Iterator[_Said]:
        first, second = self.rng.sample(self.people, 2)
        yield _Said(first, self._talk("hello", second))
        yield _Said(second, self._talk("reply", first))
        blocks = [self._fact(fact, values) for fact in facts]
        while len(blocks) < self.task.blocks:
            blocks.append(self._beside())
        self.rng.shuffle(blocks)
        for block in blocks:
            yield from block
        yield _Said(first, self._talk("bye", second))

    def _fact(self, fact: tuple[str, str, int], values: dict[tuple[str, str], list[str]]) -> list[_Said]:
        person, subject, which = fact
        other = self._other(person)
        value, old = values[person, subject][which], values[person, subject][which - 1]
        text = self._line(subject, "update" if which else "tell").format(v=value, old=old)
        if self.rng.random() < 0.5:
            pad = self._talk("pad", other)
            text = f"{pad} {text}" if self.rng.random() < 0.5 else f"{text} {pad}"
        said = [_Said(person, text, fact)]
        if self.rng.random() < 0.6:
            said.insert(0, _Said(other, self._line(subject, "prompt")))
        return [*said, _Said(other, self._talk("react", person))]

    def _beside(self) -> list[_Said]:
        speaker = self.rng.choice(self.people)
        other = self._other(speaker)
        if self.rng.random() < 0.5:
            subject = self.rng.choice(sorted(_subjects()))
            value = self.rng.choice(_subjects()[subject]["value"])
            text = self._line(subject, "decoy").format(v=value)
            text = text[0].upper() + text[1:]
        else:
            text = self._talk("chat", other)
        if self.rng.random() < 0.5:
            text += " " + self._talk("chat", other)
        return [_Said(speaker, text), _Said(other, self._talk("answer", speaker))]

    def _questions(
        self,
        values: dict[tuple[str, str], list[str]],
        places: dict[tuple[str, str, int], str],
        texts: dict[str, str],
    ) -> Iterator[Question]:
        for (person, subject), taken in values.items():
            at = [places[person, subject, which] for which in range(len(taken))]
            ask = self._line(subject, "ask").format(n=person)
            yield Question(ask, (at[-1],), (taken[-1],), tuple(at[:-1]))
            if len(at) > 1:
                # the turn that replaces a value may name it
                named = tuple(place for place in at if _holds(texts[place], taken[0]))
                yield Question(self._line(subject, "before").format(n=person), named, (taken[0],))

    def _other(self, person: str) -> str:
        return self.people[1 - self.people.index(person)]

    def _talk(self, kind: str, name: str) -> str:
        return self._line("talk", kind).format(n=name)

    def _line(self, subject: str, kind: str) -> str:
        """A sentence; each comes once before any comes again."""
        bag = self.bags.setdefault((subject, kind), [])
        if not bag:
            bag += _data()[subject][kind]
            self.rng.shuffle(bag)
        return bag.pop()


def check(conversation: Conversation) -> list[str]:
    """What is wrong with a drawn conversation, read as a stranger would; empty if nothing is.

    Two people; times ascend; an answer stands in each turn of its evidence, all said by the person asked about, and not
    in the question; stale turns are that person's too, older than the evidence, and do not hold the answer.
    """
    problems = []
    turns = {turn.id: (place, turn) for place, turn in enumerate(conversation.turns())}
    speakers = {turn.speaker for _, turn in turns.values()}
    if len(speakers) != 2:
        problems.append(f"speakers must be two; got {sorted(speakers)}")
    times = [session.time or "" for session in conversation.sessions]
    if times != sorted(set(times)):
        problems.append("times of sessions must ascend")
    for number, question in enumerate(conversation.questions):
        where = f"questions[{number}]"
        asked = [name for name in speakers if _holds(question.question, name)]
        for place, turn in (turns[each] for each in question.evidence):
            if [turn.speaker] != asked:
                problems.append(f"{where} is about {asked}, but {turn.speaker} says {turn.id}")
            if not any(_holds(turn.text, answer) for answer in question.answers):
                problems.append(f"{where}: no answer stands in {turn.id}")
            for other, old in (turns[each] for each in question.stale):
                if old.speaker != turn.speaker or other >= place:
                    problems.append(f"{where}: {old.id} is not an older turn of {turn.speaker}")
                if any(_holds(old.text, answer) for answer in question.answers):
                    problems.append(f"{where}: the answer stands in {old.id}, which is stale")
        if any(_holds(question.question, answer) for answer in question.answers):
            problems.append(f"{where} holds its answer")
    return problems


def _holds(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


@cache
def _data() -> dict[str, dict[str, tuple[str, ...]]]:
    text = files("memory_titan.tasks").joinpath("data", "conversations.txt").read_text("utf-8")
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            subject = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            kind, _, rest = line.partition(": ")
            subject[kind] = tuple(entry.strip() for entry in rest.split(" | "))
    return found


@cache
def _subjects() -> dict[str, dict[str, tuple[str, ...]]]:
    return {name: kinds for name, kinds in _data().items() if name != "talk"}


def _kept(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _turn(data: dict[str, Any]) -> Turn:
    return Turn(_text(data["id"]), _text(data["speaker"]), _text(data["text"]), _optional(data.get("time")))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _optional(value: Any) -> str | None:
    return None if value is None else _text(value)


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is no list")
    return tuple(map(_text, values))
