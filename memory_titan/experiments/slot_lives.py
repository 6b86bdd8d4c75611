"""The lives of a bank's slots on a `ForgettingTask`: when they were taken, what they held, and what was dropped for it.

A slot is taken when more than half of it becomes a new key's; its life lasts until it is taken again, or is cut off by
the end of the row (censored). It holds the fact whose value was written there last by more than half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from torch import Tensor

from memory_titan.memory.slots.trace import SlotTrace
from memory_titan.memory.usage import dense
from memory_titan.tasks.forgetting import KINDS, ROLES, Facts
from memory_titan.viz.survival import Survival, kaplan_meier

HALF = 0.5
FADE = 0.99  # of use, a token, as in a bank
POLICIES = ("lru", "age", "usage", "random", "oracle")


@dataclass(frozen=True)
class Life:
    """One life of one slot: tokens, from 0.

    Attributes:
        born: the token that took it.
        died: the token that took it next; None: the row ended before.
        role: of the token that took it, of `ROLES`.
        held: the fact that it held at the end; -1: none.
    """

    born: int
    died: int | None
    role: str
    held: int


@dataclass
class Bank:
    """What one head did in one row.

    Attributes:
        lives: of its slots, ended or not.
        events: (token, fact, fact replaced or None where a slot was taken), in order; fact -1: what is no fact.
        found: of each question of the row whose answer is a value: whether a slot held the value then.
        overwritten_after: tokens between two writes of values into one slot, the first of them being lost.
    """

    lives: list[Life] = field(default_factory=list)
    events: list[tuple[int, int, int | None]] = field(default_factory=list)
    found: dict[int, bool] = field(default_factory=dict)
    overwritten_after: list[int] = field(default_factory=list)


def follow(told: SlotTrace, facts: Facts) -> list[list[Bank]]:
    """Every row's heads, from a trace of the whole row.

    Args:
        told: of one call on whole rows, from empty slots.
        facts: of these rows.

    Returns:
        A list a row, with one `Bank` a head.
    """
    k = told.read_slots.shape[-1]  # the first k writes go to what is known, the others to slots newly taken
    taken = dense(told.write_slots[..., k:], told.write_weights[..., k:], told.slots) > HALF
    written = dense(told.write_slots, told.write_weights, told.slots) > HALF
    rows, _, heads, _ = taken.shape
    banks = [[Bank() for _ in range(heads)] for _ in range(rows)]
    held = [[[-1] * told.slots for _ in range(heads)] for _ in range(rows)]
    since = [[[0] * told.slots for _ in range(heads)] for _ in range(rows)]
    born: list[list[list[tuple[int, str] | None]]] = [[[None] * told.slots for _ in range(heads)] for _ in range(rows)]
    roles, fact, needed = facts.roles.tolist(), facts.fact.tolist(), facts.needed.tolist()
    values = {ROLES.index(kind) for kind in KINDS}
    touched = (taken | written).any(-1).any(-1) | (facts.fact >= 0)
    took, wrote = taken.tolist(), written.tolist()
    for b, t in touched.nonzero().tolist():
        role, which = roles[b][t], fact[b][t]
        for h in range(heads):
            bank, holds = banks[b][h], held[b][h]
            value = which if role in values else -1
            for slot in range(told.slots):
                if took[b][t][h][slot]:
                    if (begun := born[b][h][slot]) is not None:
                        bank.lives.append(Life(begun[0], t, begun[1], holds[slot]))
                    born[b][h][slot], since[b][h][slot] = (t, ROLES[role]), t
                    bank.events.append((t, value, None))
                    holds[slot] = value
                elif wrote[b][t][h][slot] and value >= 0:
                    bank.overwritten_after.append(t - since[b][h][slot])
                    bank.events.append((t, value, holds[slot]))
                    holds[slot], since[b][h][slot] = value, t
            if ROLES[role] == "asked key" and needed[b][which]:  # a token is read after it was written
                bank.found[which] = which in holds
    for b in range(rows):
        for h in range(heads):
            for slot, begun in enumerate(born[b][h]):
                if begun is not None:
                    banks[b][h].lives.append(Life(begun[0], None, begun[1], held[b][h][slot]))
    return banks


def survival(lives: Sequence[Life], length: int, deltas: Sequence[int]) -> list[float]:
    """Kaplan-Meier's estimate of S(delta), the share of lives longer than delta tokens, cut-off lives counted as such.

    Args:
        lives: some.
        length: of the rows, at whose end the others are cut off.
        deltas: where S is wanted, rising.
    """
    return _curve(lives, length).at(deltas).tolist()


def half_life(lives: Sequence[Life], length: int) -> int | None:
    """The first delta with S(delta) at most a half; None: it is not reached within the row, or there are no lives."""
    median = _curve(lives, length).median if lives else None
    return None if median is None else int(median)


def _curve(lives: Sequence[Life], length: int) -> Survival:
    ages = [(length if life.died is None else life.died) - life.born for life in lives]
    return kaplan_meier(ages, [life.died is not None for life in lives])


@dataclass
class Dropped:
    """What a policy dropped: counts over all rows.

    Attributes:
        evictions: slots taken that held something.
        wrong: of these, how many held a value that was still to be asked for.
        facts: of these, how many held a value at all.
        asked, found: questions whose answer is a value; those at which it was held.
    """

    evictions: int = 0
    wrong: int = 0
    facts: int = 0
    asked: int = 0
    found: int = 0

    def shares(self) -> dict[str, float | None]:
        """`wrong` of all evictions, `facts` likewise, `found` of all questions; None: of nothing."""
        return {
            "wrong": self.wrong / self.evictions if self.evictions else None,
            "facts": self.facts / self.evictions if self.evictions else None,
            "found": self.found / self.asked if self.asked else None,
        }


def dropped(banks: Sequence[Bank], facts: Facts) -> Dropped:
    """What the bank itself dropped; one `Bank` a row."""
    total, needed, ends = Dropped(), facts.needed.tolist(), facts.ends.tolist()
    for b, bank in enumerate(banks):
        for life in bank.lives:
            if life.died is not None:
                total.evictions += 1
                total.facts += life.held >= 0
                total.wrong += life.held >= 0 and needed[b][life.held] and life.died <= ends[b][life.held]
        total.asked += len(bank.found)
        total.found += sum(bank.found.values())
    return total


def only_facts(facts: Facts) -> list[list[tuple[int, int, int | None]]]:
    """The events of a bank that writes every value and nothing else, and knows each key again; a list a row."""
    streams = []
    count = int((facts.asked[0] < facts.roles.shape[1]).sum())
    for row in range(len(facts.written)):
        written = facts.written[row].tolist()
        first = {key: fact for fact, key in enumerate(_first_of(facts, row, count), count)}
        events = [(at, fact, first.get(fact)) for fact, at in enumerate(written)]
        streams.append(sorted(events))
    return streams


def _first_of(facts: Facts, row: int, count: int) -> list[int]:
    """Of each first value of an overwritten key, the fact that counts."""
    return [fact for fact in range(count) if int(facts.kind[row, fact]) == KINDS.index("overwritten")]


def replay(
    streams: Sequence[Sequence[tuple[int, int, int | None]]], facts: Facts, slots: int, policy: str, seed: int = 0
) -> Dropped:
    """What would have been dropped if so many slots had been written so, and cleared by another policy.

    Args:
        streams: `Bank.events` a row. A write that replaces a fact does so if that is held; if not, it takes a slot.
        facts: of these rows.
        slots: how many.
        policy: "lru": longest unused, a question for it counting as use; "age": longest ago written; "usage": least
            used, use fading by 0.99 a token; "random"; "oracle": what is never needed again, or else needed last.
        seed: of "random".

    Raises:
        ValueError: there is no such policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}; got {policy!r}")
    rng, total = Random(seed), Dropped()
    needed, ends, asked = facts.needed.tolist(), facts.ends.tolist(), facts.asked.tolist()

    def worth(row: int, fact: float, now: int) -> float:
        which = int(fact)
        wanted = which >= 0 and needed[row][which] and now <= ends[row][which]
        return -ends[row][which] if wanted else -float("inf")

    for b, stream in enumerate(streams):
        questions = [(at, fact, -2) for fact, at in enumerate(asked[b]) if needed[b][fact]]
        table: list[list[float]] = []  # fact, last used, written, usage
        for now, fact, replaced in sorted([*stream, *questions], key=lambda event: event[0]):
            if replaced == -2:
                here = [entry for entry in table if entry[0] == fact]
                total.asked, total.found = total.asked + 1, total.found + bool(here)
                for entry in here:
                    entry[1], entry[3] = now, 1 + entry[3] * FADE ** (now - entry[1])
                continue
            if replaced is not None and (here := [entry for entry in table if entry[0] == replaced]):
                here[0][:] = [fact, now, now, 1 + here[0][3] * FADE ** (now - here[0][1])]
                continue
            if len(table) == slots:
                if policy == "random":
                    out = rng.randrange(slots)
                elif policy == "oracle":  # what is needed late is worth less, and what is of no need nothing
                    out = _least([worth(b, entry[0], now) for entry in table])
                elif policy == "usage":
                    out = _least([entry[3] * FADE ** (now - entry[1]) for entry in table])
                else:
                    out = _least([entry[1 if policy == "lru" else 2] for entry in table])
                gone = table.pop(out)[0]
                total.evictions += 1
                total.facts += gone >= 0
                total.wrong += worth(b, gone, now) > -float("inf")
            table.append([fact, now, now, 1.0])
    return total


def _least(values: list[float]) -> int:
    return values.index(min(values))


def read_entropy(told: SlotTrace) -> Tensor:
    """`[B, T]`: of each read, in nats, mean over heads."""
    weights = told.read_weights
    return -(weights * (weights + 1e-9).log()).sum(-1).mean(-1)


def by_role(values: Tensor, facts: Facts) -> dict[str, float]:
    """The mean of `[B, T]` by the role of the token."""
    return {
        role: float(values[facts.roles == index].mean())
        for index, role in enumerate(ROLES)
        if bool((facts.roles == index).any())
    }


def pooled(banks: Sequence[Sequence[Bank]]) -> list[Bank]:
    """All heads of all rows, one after another."""
    return [bank for row in banks for bank in row]


def heads_apart(banks: Sequence[Sequence[Bank]]) -> list[list[Bank]]:
    """By head, then by row."""
    return [list(rows) for rows in zip(*banks, strict=True)]


def found_anywhere(banks: Sequence[Sequence[Bank]]) -> float | None:
    """The share of the questions whose value was held by any head; None: there were none."""
    hits = [any(bank.found[fact] for bank in row) for row in banks for fact in row[0].found]
    return sum(hits) / len(hits) if hits else None


def merged(parts: Sequence[Dropped]) -> Dropped:
    """Their sum."""
    names = ("evictions", "wrong", "facts", "asked", "found")
    return Dropped(*(sum(getattr(part, name) for part in parts) for name in names))
