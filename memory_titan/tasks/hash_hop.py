"""Hash hop: pairs of random hashes in shuffled order; given a hash, name the next ones, or jump to the last.

    HashHopTask(context_len=40, needles=2, hops=2)                   skip=True

    Two fishermen mended the piano at dusk.                          ...
    81d0f2 -> c94ba1                                                 ...
    5be30a -> 4f7d19              the second hop of the question     5be30a -> 4f7d19
    The mill pond looked crooked.                                    ...
    e20c75 -> 5be30a              the first                          e20c75 -> 5be30a
    c94ba1 -> 7720ee              another chain                      ...

    Follow 2 hops: e20c75 -> 5be30a -> 4f7d19                        Skip 2 hops: e20c75 -> 4f7d19
                            ~~~~~~~~~~~~~~~~~ answer                                      ~~~~~~

After Magic's HashHop. Nothing but the pairs can tell the answer, and no hash stands in any other pair of the text. The
filler is prose, other pairs (`filler="pairs"`: then everything has to be remembered) or none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import ClassVar

from memory_titan.tasks import filler as fillers
from memory_titan.tasks.checking import UnsolvableError, check_answers, check_length, context, holds_word, outside
from memory_titan.tasks.ruler import Ruler
from memory_titan.tasks.sample import Sample
from memory_titan.tasks.text_task import Draft, Fact, Question, TextTask

_TOGETHER = 256  # pairs of filler that are shuffled at a time


@dataclass(frozen=True)
class HashHopTask(TextTask):
    """The shape of the samples; see the module's drawing."""

    name: ClassVar[str] = "hash-hop"

    context_len: int = 4096  # tokens, of whatever ruler; see TextTask
    needles: int = 1  # chains among the filler, of `hops` pairs each
    hops: int = 1  # pairs that a question goes through
    skip: bool = False  # the answer is the end of the chain alone, not every hash on the way
    questions: int = 1  # each about another chain
    hash_len: int = 6  # characters of a hash
    alphabet: str = "0123456789abcdef"  # letters and digits
    filler: fillers.Filler = "prose"  # or "pairs", "topics", "none", or passages
    depth: float | None = None  # where the pairs asked for stand, from 0, the start, to 1, the end; None: anywhere

    def __post_init__(self) -> None:
        if min(self.context_len, self.needles, self.hops, self.questions, self.hash_len) < 1:
            raise ValueError(f"context_len, needles, hops, questions and hash_len must be at least 1; got {self}")
        if self.questions > self.needles:
            raise ValueError(f"{self.questions} questions need as many needles; got needles={self.needles}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"depth must be from 0 to 1; got {self.depth}")
        letters = re.sub(r"[0-9]", "", self.alphabet)
        if not re.fullmatch("[0-9a-zA-Z]+", self.alphabet) or len(set(self.alphabet)) < len(self.alphabet):
            raise ValueError(f"alphabet must be different ASCII letters and digits; got {self.alphabet!r}")
        if letters == self.alphabet:
            raise ValueError(f"alphabet must hold a digit, which no word of the filler has; got {self.alphabet!r}")
        # Filler of pairs has a hash in every token or two at the most.
        needed = self.needles * (self.hops + 1) + (self.context_len if self.filler == "pairs" else 0)
        possible = len(self.alphabet) ** self.hash_len - len(letters) ** self.hash_len
        if possible < 2 * needed:
            raise ValueError(
                f"hash_len {self.hash_len} with {len(self.alphabet)} characters makes {possible} hashes, too few to "
                f"draw {needed} different ones; lengthen hash_len or alphabet"
            )
        if self.filler != "pairs":
            fillers.lines(self.filler, Random(0))  # refuses a name that is none

    def contents(self) -> str:
        pairs, questions = self.needles * self.hops, self.questions
        return f"{pairs} pair{'s' * (pairs > 1)} and {questions} question{'s' * (questions > 1)}"

    def draw(self, rng: Random, seed: int, index: int) -> Draft:
        hashes = self._hashes(rng)
        chains = [[next(hashes) for _ in range(self.hops + 1)] for _ in range(self.needles)]
        links = [(chain, hop) for chain in range(self.needles) for hop in range(self.hops)]
        rng.shuffle(links)  # pairs at the same place stand in this order
        facts = []
        for chain, hop in links:
            asked = chain < self.questions
            at = self.depth if asked and self.depth is not None else rng.random()
            facts.append(Fact(f"{chains[chain][hop]} -> {chains[chain][hop + 1]}", at))
        place = {link: number for number, link in enumerate(links)}
        verb, hops = "Skip" if self.skip else "Follow", f"{self.hops} hop{'s' * (self.hops > 1)}"
        questions = [
            Question(
                f"{verb} {hops}: {chain[0]} ->",
                chain[-1] if self.skip else " -> ".join(chain[1:]),
                tuple((place[number, hop], 0) for hop in range(self.hops)),
            )
            for number, chain in enumerate(chains[: self.questions])
        ]
        if self.filler == "pairs":
            lines = self._pairs(rng, hashes)
        else:
            lines = fillers.lines(self.filler, rng, {each for chain in chains for each in chain})
        named = self.filler if isinstance(self.filler, str) else self.filler.name
        meta = {"hops": self.hops, "needles": self.needles, "skip": self.skip, "filler": named}
        return Draft(facts, questions, lines, meta, cut="" if self.filler == "pairs" else " ")

    def _hashes(self, rng: Random) -> Iterator[str]:
        """Hashes with a digit in them, none twice."""
        seen: set[str] = set()
        while True:
            drawn = "".join(rng.choices(self.alphabet, k=self.hash_len))
            if drawn not in seen and not drawn.isalpha():
                seen.add(drawn)
                yield drawn

    def _pairs(self, rng: Random, hashes: Iterator[str]) -> Iterator[str]:
        """Chains as long as those asked for, shuffled: which is a needle nobody can tell before the question."""
        while True:
            lines = []
            for _ in range(-(-_TOGETHER // self.hops)):
                chain = [next(hashes) for _ in range(self.hops + 1)]
                lines += [f"{a} -> {b}\n" for a, b in pairwise(chain)]
            rng.shuffle(lines)
            yield from lines


def solve(evidence: Sequence[str], question: str) -> str:
    """Answer a question from its pairs alone.

    Raises:
        UnsolvableError: a piece is no pair, a hash has two followers, or the chain breaks.
    """
    asked = re.fullmatch(r"(Follow|Skip) (\d+) hops?: (\w+) ->", question)
    if not asked:
        raise UnsolvableError(f"no hash-hop question: {question!r}")
    follows: dict[str, str] = {}
    for piece in evidence:
        pair = re.fullmatch(r"(\w+) -> (\w+)", piece)
        if not pair:
            raise UnsolvableError(f"no pair of hashes: {piece[:60]!r}")
        if pair[1] in follows:
            raise UnsolvableError(f"{pair[1]} has two followers")
        follows[pair[1]] = pair[2]
    way = [asked[3]]
    for _ in range(int(asked[2])):
        if way[-1] not in follows:
            raise UnsolvableError(f"the chain breaks at {way[-1]}")
        way.append(follows[way[-1]])
    return way[-1] if asked[1] == "Skip" else " -> ".join(way[1:])


def check(sample: Sample, ruler: Ruler | None = None) -> list[str]:
    """What is wrong with a sample; empty if nothing is.

    Args:
        sample: of this task.
        ruler: measures length and distances anew; None: they are not looked at.
    """
    problems = list(check_answers(sample, solve))
    firsts = re.findall(r"^(\w+) -> \w+$", context(sample), re.MULTILINE)
    for number, answer in enumerate(sample.answers):
        pieces = [sample.cut(span) for span in answer.evidence]
        rest = outside(sample, answer)
        for piece in pieces:
            start, _, end = piece.partition(" -> ")
            if firsts.count(start) != 1:
                problems.append(f"answers[{number}]: {firsts.count(start)} lines start with {start}, must be one")
            if holds_word(rest, end):
                problems.append(f"answers[{number}]: {end} stands elsewhere before the question, too")
        asked = re.match(r"\w+ (\d+) ", sample.cut(answer.question))
        if asked and int(asked[1]) != len(pieces):
            problems.append(f"answers[{number}]: {len(pieces)} pieces of evidence for {asked[1]} hops")
    return problems + (list(check_length(sample, ruler)) if ruler else [])
