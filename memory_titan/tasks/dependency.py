"""Dependency tracing: who depends on whom, told in shuffled order; is one reached from another, or who has to mend it?

    DependencyTask(context_len=90, hops=2, chains=2, form="reaches")

    Module warm_kiln depends on module pale_oven.              <- evidence of both, first hop
    The mill was quiet.
    Module calm_dial depends on module keen_loom.
    Module pale_oven depends on module deft_gear.              <- second hop
    Module keen_loom depends on module mild_mast.

    Does module warm_kiln depend, directly or through others, on module deft_gear? Answer: yes
    Does module warm_kiln depend, directly or through others, on module mild_mast? Answer: no

    form="responsible": the last hop of each chain is a team      hops=2

    Module pale_oven is maintained by team Heron.
    Module warm_kiln depends on module pale_oven.

    Module warm_kiln fails because of the last module it depends on. Which team is responsible? Answer: Heron

    form="chain": the name at the end of the chain, each name a plain word, and so one token to most tokenizers

    Module river depends on stone.
    Module stone depends on lamp.

    Through one other, module river depends on lamp

Every chain has the same form, so that no single fact tells the answer. A "no" is asked in one of two ways that look
like a "yes": the target is the end of another chain, or it is the end of the chain as it was before one link in its
middle was replaced: then the way from the start breaks off, and the target still has somebody that depends on it. With
one fact alone, whichever it is, a guess is right half the time, or for a team once in `chains`: `meta["single_fact"]`.
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
from memory_titan.tasks.words import ADJECTIVES, PLAIN, TEAMS, THINGS

FORMS = ("reaches", "responsible", "mixed", "chain")
_OTHERS = ("one other", "two others", "three others")


@dataclass(frozen=True)
class DependencyTask(TextTask):
    """The shape of the samples; see the module's drawing."""

    name: ClassVar[str] = "dependency"

    context_len: int = 4096  # tokens, of whatever ruler; see TextTask
    hops: int = 2  # facts to join, 2 to 4
    chains: int = 4  # of `hops` facts each
    questions: int = 1  # each about another chain
    form: str = "mixed"  # "reaches": yes or no; "responsible": a team; "mixed": one of them a sample; "chain": a name
    filler: fillers.Filler = "prose"  # or "topics", "none", or passages
    depth: float | None = None  # where the facts asked for stand, from 0, the start, to 1, the end; None: anywhere

    def __post_init__(self) -> None:
        if not 2 <= self.hops <= 4:
            raise ValueError(f"hops must be from 2 to 4; got {self.hops}")
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}; got {self.form!r}")
        if not 2 <= self.chains <= len(TEAMS):
            raise ValueError(f"chains must be from 2 to {len(TEAMS)}; got {self.chains}")
        if self.form == "chain" and self.chains * (self.hops + 1) > len(PLAIN) // 2:
            raise ValueError(f"at most {len(PLAIN) // 2} names; {self.chains} chains of {self.hops} hops have more")
        if not 1 <= self.questions <= self.chains:
            raise ValueError(f"questions must be from 1 to the number of chains, {self.chains}; got {self.questions}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"depth must be from 0 to 1; got {self.depth}")
        fillers.lines(self.filler, Random(0))  # refuses a name that is none

    def contents(self) -> str:
        return f"{self.chains} chains of {self.hops} facts and {self.questions} question(s)"

    def draw(self, rng: Random, seed: int, index: int) -> Draft:
        if self.form == "chain":
            return self._draw_chains(rng)
        teams = self.form == "responsible" or (self.form == "mixed" and rng.random() < 0.5)
        drawn = rng.sample(range(len(ADJECTIVES) * len(THINGS)), self.chains * (self.hops + 2))
        modules = [f"{ADJECTIVES[each // len(THINGS)]}_{THINGS[each % len(THINGS)]}" for each in drawn]
        spare = modules[: self.chains]
        chains = [modules[self.chains + i :: self.chains] for i in range(self.chains)]
        if teams:
            for chain, team in zip(chains, rng.sample(TEAMS, self.chains), strict=True):
                chain[-1] = team
        # Samples 2k and 2k + 1 answer their first question differently: halves are exact, and no order is learned.
        yes = [Random(f"{seed} {index // 2} {q}").random() < 0.5 for q in range(self.questions)]
        yes[0] ^= bool(index % 2)
        links = {(c, hop): (chain[hop], chain[hop + 1]) for c, chain in enumerate(chains) for hop in range(self.hops)}
        # Broken chains: any chain may be one but those whose question needs it whole.
        broken: dict[int, int] = {}
        if not teams:
            for number in range(self.chains):
                needed = number < self.questions and yes[number]
                if not needed and rng.random() < 0.5:
                    cut = rng.randint(1, self.hops - 1)
                    broken[number] = cut
                    links[number, cut] = (spare[number], chains[number][cut + 1])
        order = list(links)
        rng.shuffle(order)  # facts at the same place stand in this order
        place = {link: number for number, link in enumerate(order)}
        facts = []
        for link in order:
            asked = link[0] < self.questions
            at = self.depth if asked and self.depth is not None else rng.random()
            maintained = teams and link[1] == self.hops - 1
            words = "is maintained by team" if maintained else "depends on module"
            facts.append(Fact(f"Module {links[link][0]} {words} {links[link][1]}.", at))
        questions = []
        # A target asked for twice would tell that at least one answer is no.
        targets = {n for n in range(self.questions) if yes[n] or n in broken}
        for number in range(self.questions):
            hops = broken.get(number, self.hops)  # as far as the way goes
            evidence = tuple((place[number, hop], 0) for hop in range(hops))
            start, end = chains[number][0], chains[number][-1]
            if teams:
                text = f"Module {start} fails because of the last module it depends on. Which team is responsible?"
                answer = end
            else:
                if not yes[number] and number not in broken:
                    others = [c for c in range(self.chains) if c != number]
                    other = rng.choice([c for c in others if c not in targets] or others)
                    targets.add(other)
                    end = chains[other][-1]
                text = f"Does module {start} depend, directly or through others, on module {end}?"
                answer = "yes" if yes[number] else "no"
            questions.append(Question(f"{text} Answer:", answer, evidence))
        lines = fillers.lines(self.filler, rng, {name for link in links.values() for name in link})
        meta = {
            "hops": self.hops, "needles": self.chains, "kind": "responsible" if teams else "reaches",
            "single_fact": 1 / self.chains if teams else 0.5,
            "filler": self.filler if isinstance(self.filler, str) else self.filler.name,
        }  # fmt: skip
        return Draft(facts, questions, lines, meta)

    def _draw_chains(self, rng: Random) -> Draft:
        names = rng.sample(PLAIN, self.chains * (self.hops + 1))
        chains = [names[i :: self.chains] for i in range(self.chains)]
        order = [(chain, hop) for chain in range(self.chains) for hop in range(self.hops)]
        rng.shuffle(order)
        place = {link: number for number, link in enumerate(order)}
        facts = []
        for chain, hop in order:
            at = self.depth if chain < self.questions and self.depth is not None else rng.random()
            facts.append(Fact(f"Module {chains[chain][hop]} depends on {chains[chain][hop + 1]}.", at))
        questions = [
            Question(
                f"Through {_OTHERS[self.hops - 2]}, module {chains[number][0]} depends on",
                chains[number][-1],
                tuple((place[number, hop], 0) for hop in range(self.hops)),
            )
            for number in range(self.questions)
        ]
        named = self.filler if isinstance(self.filler, str) else self.filler.name
        meta = {"hops": self.hops, "needles": self.chains, "kind": "chain", "filler": named}
        meta["single_fact"] = 1 / self.chains
        return Draft(facts, questions, fillers.lines(self.filler, rng, set(names)), meta)


_LINK = r"Module (\w+) depends on (\w+)\."
_CHAIN = rf"Through (?:{'|'.join(_OTHERS)}), module (\w+) depends on"
_DEPENDS = r"Module (\w+) depends on module (\w+)\."
_MAINTAINED = r"Module (\w+) is maintained by team (\w+)\."
_REACHES = r"Does module (\w+) depend, directly or through others, on module (\w+)\? Answer:"
_RESPONSIBLE = r"Module (\w+) fails because of the last module it depends on\. Which team is responsible\? Answer:"


def solve(evidence: Sequence[str], question: str) -> str:
    """Answer a question from its facts alone, taking what they do not say as not so.

    Raises:
        UnsolvableError: a piece is no fact, the way does not begin at the start, or leads to no team.
    """
    on, by = {}, {}
    if asked := re.fullmatch(_CHAIN, question):
        links = [re.fullmatch(_LINK, piece) for piece in evidence]
        follows = {link[1]: link[2] for link in links if link}
        name, used = asked[1], 0
        while name in follows and used <= len(evidence):
            name, used = follows[name], used + 1
        others = question.split(",")[0].removeprefix("Through ")
        if not used == len(links) == len(follows) == _OTHERS.index(others) + 2:
            raise UnsolvableError(f"{used} of {len(links)} facts are on the way from {asked[1]} through {others}")
        return name
    for piece in evidence:
        depends, maintained = re.fullmatch(_DEPENDS, piece), re.fullmatch(_MAINTAINED, piece)
        if depends and depends[1] not in on:
            on[depends[1]] = depends[2]
        elif maintained and maintained[1] not in by:
            by[maintained[1]] = maintained[2]
        else:
            raise UnsolvableError(f"no fact, or a second one about the same module: {piece[:60]!r}")
    reaches, responsible = re.fullmatch(_REACHES, question), re.fullmatch(_RESPONSIBLE, question)
    asked = reaches or responsible
    if not asked:
        raise UnsolvableError(f"no dependency question: {question!r}")
    way = [asked[1]]
    while way[-1] in on and len(way) <= len(evidence):
        way.append(on[way[-1]])
    used = len(way) - 1 + (way[-1] in by)
    if used != len(evidence):
        raise UnsolvableError(f"the chain breaks at {way[-1]}: {used} of {len(evidence)} facts are on the way")
    if reaches:
        return "yes" if reaches[2] in way else "no"
    if way[-1] not in by:
        raise UnsolvableError(f"nobody maintains {way[-1]}")
    return by[way[-1]]


def check(sample: Sample, ruler: Ruler | None = None) -> list[str]:
    """What is wrong with a sample; empty if nothing is.

    The whole text has to agree with the evidence: what a "no" denies stands nowhere else, and no module has two facts.

    Args:
        sample: of this task.
        ruler: measures length and distances anew; None: they are not looked at.
    """
    problems = list(check_answers(sample, solve))
    told = re.findall(_DEPENDS, context(sample))
    on, by = dict(told), dict(re.findall(_MAINTAINED, context(sample)))
    if len(on) < len(told):
        problems.append("a module depends on two others")
    links = re.findall(_LINK, context(sample))
    if len(dict(links)) < len(links):
        problems.append("a module depends on two others")
    for number, answer in enumerate(sample.answers):
        question, text = sample.cut(answer.question), sample.cut(answer.span).strip()
        if re.fullmatch(_CHAIN, question) and holds_word(outside(sample, answer), text):
            problems.append(f"answers[{number}]: {text} stands elsewhere before the question, too")
        asked = re.fullmatch(_REACHES, question) or re.fullmatch(_RESPONSIBLE, question)
        if not asked:
            continue
        way = [asked[1]]
        while way[-1] in on and len(way) <= len(on):
            way.append(on[way[-1]])
        if len(asked.groups()) == 2:
            if ("yes" if asked[2] in way else "no") != text:
                problems.append(f"answers[{number}]: the whole text does not say {text!r}")
            needed = way.index(asked[2]) if asked[2] in way else len(way) - 1
            if asked[2] not in on.values():
                problems.append(f"answers[{number}]: nothing depends on {asked[2]}, which gives the answer away")
        else:
            needed = len(way)
            if by.get(way[-1]) != text:
                problems.append(f"answers[{number}]: the whole text says {by.get(way[-1])!r}, the answer {text!r}")
            if holds_word(outside(sample, answer), text):
                problems.append(f"answers[{number}]: {text} stands elsewhere before the question, too")
        if len(answer.evidence) != needed:
            problems.append(f"answers[{number}]: the way takes {needed} facts; the evidence has {len(answer.evidence)}")
    return problems + (list(check_length(sample, ruler)) if ruler else [])
