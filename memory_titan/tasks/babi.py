"""A small world told in single sentences among filler: people go about, take things along and put them down.

    BabiTask(context_len=90, supports=2)

    Otto went to the pantry.
    The innkeeper was tired, and the fog stayed under the chestnut trees.
    Nadia walked to the garage.
    Otto picked up the hammer.                             <- evidence
    On the way home a tailor missed the hen house.
    Otto moved to the hallway.                             <- evidence
    Nadia grabbed the ladle.

    Where is the hammer? The hammer is in the hallway
                                              ~~~~~~~

    supports=1    Where is Otto? Otto is in the                          his last move
    supports=2    Where is the hammer? The hammer is in the              who had it last, and where that one went
    supports=3    Where was the hammer before the hallway? It was in the besides, where that one came from

The first three tasks of bAbI (arXiv 1502.05698) in the manner of BABILong (arXiv 2406.10149), with a world and wording
of our own. Filler names nobody and nothing of this world. Earlier sentences mislead: the person was elsewhere, the
thing was elsewhere, or it was elsewhere still before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from memory_titan.tasks import filler as fillers
from memory_titan.tasks.checking import UnsolvableError, check_answers, check_length, context
from memory_titan.tasks.ruler import Ruler
from memory_titan.tasks.sample import Sample
from memory_titan.tasks.text_task import Draft, Fact, Question, TextTask
from memory_titan.tasks.words import FIRST_NAMES

# No word of these stands in the made-up prose.
PLACES = ("hallway", "pantry", "garage", "bathroom", "bedroom", "office", "greenhouse", "workshop", "laundry", "stable")
THINGS = ("hammer", "ladle", "lantern", "compass", "football", "telescope", "violin", "thermos", "stapler", "trophy")
_MOVES = ("went to", "moved to", "walked to", "hurried to", "headed for")
_TAKES = ("took", "picked up", "grabbed")
_DROPS = ("put down", "dropped", "left")
_TRIES = 1000


@dataclass
class _World:
    """What has happened so far; events are numbered as their sentences are."""

    place: dict[str, str] = field(default_factory=dict)  # of a person
    moves: dict[str, list[int]] = field(default_factory=dict)  # of a person
    carries: dict[str, str] = field(default_factory=dict)  # person: thing
    lies: dict[str, str] = field(default_factory=dict)  # thing nobody carries: place
    # Of a thing: where it has been, one entry a place, with the events that tell it and the place before it.
    been: dict[str, list[tuple[str, tuple[int, ...]]]] = field(default_factory=dict)
    last: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of a thing, the two events that tell where it is
    taken: dict[str, int] = field(default_factory=dict)  # of a carried thing
    told: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BabiTask(TextTask):
    """The shape of the samples; see the module's drawing."""

    name: ClassVar[str] = "babi"

    context_len: int = 4096  # tokens, of whatever ruler; see TextTask
    supports: int = 1  # sentences an answer rests on: 1, 2 or 3
    events: int = 24  # sentences that tell of the world
    people: int = 4
    places: int = 6
    things: int = 3
    questions: int = 1  # each about another person or thing
    filler: fillers.Filler = "prose"  # or "topics", "noise", "none", or passages
    depth: float | None = None  # where all that happens stands, from 0, the start, to 1, the end; None: everywhere

    def __post_init__(self) -> None:
        if self.supports not in (1, 2, 3):
            raise ValueError(f"supports must be 1, 2 or 3; got {self.supports}")
        for name, least, most in (
            ("people", 1, len(FIRST_NAMES)), ("places", 3, len(PLACES)), ("things", 1, len(THINGS)),
            ("questions", 1, self.people if self.supports == 1 else self.things),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}; got {getattr(self, name)}")
        needed = 4 * self.people + (0, 4, 8)[self.supports - 1] * self.questions
        if self.events < needed or self.context_len < 1:
            raise ValueError(
                f"events must be at least {needed} for {self.people} people and {self.questions} question(s) of "
                f"{self.supports} support(s), and context_len at least 1; got {self.events} and {self.context_len}"
            )
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"depth must be from 0 to 1; got {self.depth}")
        fillers.lines(self.filler, Random(0))  # refuses a name that is none

    def contents(self) -> str:
        return f"{self.events} events and {self.questions} question(s)"

    def draw(self, rng: Random, seed: int, index: int) -> Draft:
        people = rng.sample(FIRST_NAMES, self.people)
        places, things = rng.sample(PLACES, self.places), rng.sample(THINGS, self.things)
        for _ in range(_TRIES):
            world = self._live(rng, people, places, things)
            asked = self._questions(rng, world)
            if len(asked) >= self.questions:
                break
        else:
            raise ValueError(f"{self.events} events gave no {self.questions} questions in {_TRIES} tries; raise events")
        ats = sorted(rng.random() if self.depth is None else self.depth for _ in world.told)
        facts = [Fact(told, at) for told, at in zip(world.told, ats, strict=True)]
        lines = fillers.lines(self.filler, rng, {*people, *PLACES, *THINGS})
        named = self.filler if isinstance(self.filler, str) else self.filler.name
        meta = {"hops": self.supports, "needles": self.events, "kind": f"qa{self.supports}", "filler": named}
        return Draft(facts, asked[: self.questions], lines, meta)

    def _live(self, rng: Random, people: list[str], places: list[str], things: list[str]) -> _World:
        world = _World()
        for person in people:
            _move(world, rng, person, rng.choice(places))
        while len(world.told) < self.events:
            person = rng.choice(people)
            here, has = world.place[person], world.carries.get(person)
            free = [t for t in things if t not in world.carries.values() and world.lies.get(t, here) == here]
            turn = rng.random()
            if has is None and free and turn < 0.5:
                _take(world, rng, person, rng.choice(free))
            elif has is not None and turn < 0.25:
                _drop(world, rng, person, has)
            else:
                _move(world, rng, person, rng.choice([place for place in places if place != here]))
        return world

    def _questions(self, rng: Random, world: _World) -> list[Question]:
        """All that may be asked, in random order."""
        found = []
        if self.supports == 1:
            for person, moves in world.moves.items():
                if len(moves) > 1:  # they were elsewhere before
                    found.append(
                        Question(f"Where is {person}? {person} is in the", world.place[person], ((moves[-1], 0),))
                    )
        for thing, been in world.been.items() if self.supports > 1 else ():
            names = [place for place, _ in been]
            if self.supports == 2 and len(been) > 1:
                evidence = tuple((event, 0) for event in world.last[thing])
                found.append(Question(f"Where is the {thing}? The {thing} is in the", names[-1], evidence))
            # A place it came to once has one place before it; what was before that misleads.
            once = [i for i in range(2, len(been)) if names.count(names[i]) == 1] if self.supports == 3 else []
            if once:
                asked = rng.choice(once)
                evidence = tuple((event, 0) for event in been[asked][1])
                words = f"Where was the {thing} before the {names[asked]}? It was in the"
                found.append(Question(words, names[asked - 1], evidence))
        rng.shuffle(found)
        return found


def _move(world: _World, rng: Random, person: str, place: str) -> None:
    event, moves = len(world.told), world.moves.setdefault(person, [])
    if (thing := world.carries.get(person)) is not None:
        taken = world.taken[thing]
        world.been[thing].append((place, tuple(sorted((taken, moves[-1], event)))))
        world.last[thing] = (taken, event)
    world.place[person] = place
    moves.append(event)
    world.told.append(f"{person} {rng.choice(_MOVES)} the {place}.")


def _take(world: _World, rng: Random, person: str, thing: str) -> None:
    event = len(world.told)
    world.carries[person], world.taken[thing] = thing, event
    world.lies.pop(thing, None)
    world.been.setdefault(thing, [(world.place[person], ())])
    world.last[thing] = (world.moves[person][-1], event)
    world.told.append(f"{person} {rng.choice(_TAKES)} the {thing}.")


def _drop(world: _World, rng: Random, person: str, thing: str) -> None:
    event = len(world.told)
    del world.carries[person]
    world.lies[thing] = world.place[person]
    world.last[thing] = (world.moves[person][-1], event)
    world.told.append(f"{person} {rng.choice(_DROPS)} the {thing}.")


_EVENT = (
    r"(?P<who>\w+) (?:(?P<goes>(?:went|moved|walked|hurried) to|headed for)|(?P<takes>took|picked up|grabbed)|"
    r"put down|dropped|left) the (?P<what>\w+)\."
)
_ASKED = (
    r"Where is (?P<who>[A-Z]\w+)\? (?P=who) is in the|Where is the (?P<what>\w+)\? The (?P=what) is in the|"
    r"Where was the (?P<which>\w+) before the (?P<to>\w+)\? It was in the"
)


def _after(events: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Live through events, knowing nothing before them.

    Returns:
        where people are; where things have been, in order, as far as it is known.

    Raises:
        UnsolvableError: a piece tells of no event.
    """
    at: dict[str, str] = {}
    holder: dict[str, str] = {}
    trail: dict[str, list[str]] = {}
    for piece in events:
        found = re.fullmatch(_EVENT, piece)
        if not found:
            raise UnsolvableError(f"no event: {piece[:60]!r}")
        who, what = found["who"], found["what"]
        if found["goes"]:
            at[who] = what
            touched = [thing for thing, by in holder.items() if by == who]
        elif found["takes"]:
            holder[what] = who
            touched = [what]
        else:
            holder.pop(what, None)
            touched = [what]
        for thing in touched:
            ways = trail.setdefault(thing, [])
            if who in at and ways[-1:] != [at[who]]:
                ways.append(at[who])
    return at, trail


def _answer(events: Sequence[str], asked: re.Match[str]) -> str:
    at, trail = _after(events)
    if asked["who"]:
        if asked["who"] not in at:
            raise UnsolvableError(f"nothing tells where {asked['who']} is")
        return at[asked["who"]]
    ways = trail.get(asked["what"] or asked["which"], [])
    if asked["what"]:
        if not ways:
            raise UnsolvableError(f"nothing tells where the {asked['what']} is")
        return ways[-1]
    if ways.count(asked["to"]) != 1 or ways[0] == asked["to"]:
        raise UnsolvableError(f"nothing tells where the {asked['which']} was before the {asked['to']}")
    return ways[ways.index(asked["to"]) - 1]


def solve(evidence: Sequence[str], question: str) -> str:
    """Answer a question by living through its evidence alone.

    Raises:
        UnsolvableError: a piece tells of no event, the answer does not follow, or there are more than are needed.
    """
    asked = re.fullmatch(_ASKED, question)
    if not asked:
        raise UnsolvableError(f"no question about this world: {question!r}")
    needed = 1 if asked["who"] else 2 if asked["what"] else 3
    answer = _answer(evidence, asked)
    if len(evidence) != needed:
        raise UnsolvableError(f"the answer takes {needed} events; the evidence has {len(evidence)}")
    return answer


def check(sample: Sample, ruler: Ruler | None = None) -> list[str]:
    """What is wrong with a sample; empty if nothing is.

    All events of the text have to lead to the same answer, and no other line may speak of this world.

    Args:
        sample: of this task.
        ruler: measures length and distances anew; None: they are not looked at.
    """
    problems = list(check_answers(sample, solve))
    lines = context(sample).splitlines()
    events = [line for line in lines if re.fullmatch(_EVENT, line)]
    world = {word for line in events for word in (line.split()[0], line.split()[-1].rstrip("."))}
    for line in lines:
        if line not in events and (said := world.intersection(re.findall(r"\w+", line))):
            problems.append(f"the filler speaks of {min(said)}: {line[:60]!r}")
    for number, answer in enumerate(sample.answers):
        asked, text = re.fullmatch(_ASKED, sample.cut(answer.question)), sample.cut(answer.span).strip()
        if list(answer.evidence) != sorted(answer.evidence):
            problems.append(f"answers[{number}]: the evidence is not in the order of the text")
        try:
            if asked and (right := _answer(events, asked)) != text:
                problems.append(f"answers[{number}]: the whole text says {right!r}, the answer {text!r}")
        except UnsolvableError as error:
            problems.append(f"answers[{number}]: the whole text: {error}")
    return problems + (list(check_length(sample, ruler)) if ruler else [])
