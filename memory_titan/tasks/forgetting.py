"""What may be forgotten, and what not: facts that expire, facts that are overwritten, facts that stay, among filler.

    ForgettingTask(length=36, expiring=1, overwritten=1, staying=1, lifetime=8)      . : filler, - : no label

    x:   S k1 v4  .  E k7 v2  .  O k3 v9  ?  k7 v2  .  .  O k3 v5  .  .  ?  k3 v5  .  .  ?  k1 v4  .  ...
    y:   -  -  -  -  -  -  -  -  -  -  -  -  v2  -  -  -  -  -  -  -  -  -  v5  -  -  -  -  v4  -  -

A fact is three tokens: what kind it is, its key, its value. Keys tell nothing of the kind. A question is a mark and a
key; what is to be said stands as the label of the key, and follows in the stream, as in any text. Each key is asked for
once:

- **expiring** (E): half of them within `lifetime` tokens after the value; the others later, and then the right answer
  is the token "gone".
- **overwritten** (O): the key comes a second time, with another value; asked after that, and the newest counts.
- **staying** (S): asked at any distance.

Everything is drawn in the row itself, so only what was read there can answer. A fact is of use until it was asked for,
or until it expires, or until it is overwritten: `Facts.needed` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memory_titan.tasks.recall import NO_LABEL

KINDS = ("expiring", "overwritten", "staying")
MARKS = 5  # tokens 0, 1, 2: the kinds; 3: a question; 4: "gone"
ASK, GONE = 3, 4
ROLES = ("filler", "mark", "key", "question", "asked key", "answer", *KINDS)  # those of KINDS: the values of facts


@dataclass(frozen=True)
class Facts:
    """What stands in a batch; F facts a row, a fact that is overwritten counts twice. int64 but for what is said.

    Attributes:
        kind: `[rows, F]`, index into `KINDS`.
        written: `[rows, F]`, where its value stands.
        asked: `[rows, F]`, where its key is asked for; the length of the row for the first value of an overwritten one.
        ends: `[rows, F]`, the last token at which it is of use: the question, if its answer is the value; for what
            is asked for too late its expiry; for what is overwritten the token before the new value.
        answer: `[rows, F]`, the token to be said; `NO_LABEL` where it is not asked for.
        roles: `[rows, length]`, of each token, index into `ROLES`.
        fact: `[rows, length]`, which fact's value or question (at the asked key) stands there; -1: none.
    """

    kind: Tensor
    written: Tensor
    asked: Tensor
    ends: Tensor
    answer: Tensor
    roles: Tensor
    fact: Tensor

    @property
    def needed(self) -> Tensor:
        """`[rows, F]`, bool: a question comes whose answer is this value."""
        return (self.answer != NO_LABEL) & (self.answer != GONE)


@dataclass(frozen=True)
class ForgettingTask:
    """The shape of the sequences; see the module's drawing."""

    length: int = 128  # tokens in a sequence, questions and answers included
    expiring: int = 6  # facts
    overwritten: int = 4  # keys, each with two values
    staying: int = 4  # facts
    lifetime: int = 24  # tokens from an expiring fact's value to the last question that it answers
    keys: int = 20  # different key tokens
    values: int = 16  # different value tokens
    filler: int = 16  # different filler tokens

    def __post_init__(self) -> None:
        if min(self.expiring, self.overwritten, self.staying) < 0 or self.asked < 1:
            raise ValueError(f"facts must be at least 0 of each kind and 1 in all; got {self}")
        if min(self.lifetime, self.keys, self.filler) < 1 or self.values < 2:
            raise ValueError(f"lifetime, keys and filler must be at least 1, values at least 2; got {self}")
        if self.asked > self.keys:
            raise ValueError(f"{self.asked} facts need as many keys; got keys={self.keys}")
        if self.length < 3 * (self.writes + self.asked):
            raise ValueError(f"length must be at least {3 * (self.writes + self.asked)} for these; got {self.length}")
        if self.expiring and self.length <= 2 * self.lifetime:
            raise ValueError(f"length must be more than twice lifetime={self.lifetime}; got {self.length}")

    @property
    def vocabulary(self) -> int:
        """Different tokens: marks, keys, values, filler, in this order."""
        return MARKS + self.keys + self.values + self.filler

    @property
    def asked(self) -> int:
        """Questions in a sequence."""
        return self.expiring + self.overwritten + self.staying

    @property
    def writes(self) -> int:
        """Values written in a sequence."""
        return self.asked + self.overwritten

    def batch(self, rows: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Facts]:
        """Draw sequences.

        Args:
            rows: how many.
            generator: where the chances come from; None: torch's own.

        Returns:
            `(x, y, facts)`, x and y `[rows, length]`, int64: tokens, and at each key asked for what is to be said,
            else `NO_LABEL`.
        """

        def rand(*size: int) -> Tensor:
            return torch.rand(rows, *size, generator=generator)

        E, O, n, F, L = self.expiring, self.overwritten, self.asked, self.writes, self.length
        when, until = self._times(rand)
        # Facts in the order: expiring, overwritten (the value that counts), staying, overwritten (the first value).
        keys = rand(self.keys).argsort(1)[:, :n] + MARKS
        first = MARKS + self.keys
        values = torch.randint(first, first + self.values, (rows, F), generator=generator)
        if O:  # another value than the first
            other = torch.randint(1, self.values, (rows, O), generator=generator)
            values[:, n:] = (values[:, E : E + O] - first + other) % self.values + first
        kind = torch.tensor([0] * E + [1] * O + [2] * self.staying + [1] * O).expand(rows, F)
        of = torch.cat([torch.arange(n), torch.arange(E, E + O)])  # whose key a fact has

        # Events of three tokens and of one, in the order of their times; places follow from their widths.
        times = torch.cat([when, until, rand(L - 3 * (F + n))], 1)
        width = torch.ones(times.shape[1], dtype=torch.long)
        width[: F + n] = 3
        order = times.argsort(1)
        widths = width[order]
        place = torch.empty_like(order).scatter_(1, order, widths.cumsum(1) - widths)
        written, asked = place[:, :F] + 2, place[:, F : F + n] + 1

        late = (kind[:, :n] == 0) & (asked - written[:, :n] > self.lifetime)
        answer = torch.where(late, GONE, values[:, :n])
        low = MARKS + self.keys + self.values
        x = torch.randint(low, self.vocabulary, (rows, L), generator=generator)
        y = torch.full((rows, L), NO_LABEL)
        roles, fact = torch.zeros_like(x), torch.full_like(x, -1)
        x.scatter_(1, written - 2, kind).scatter_(1, written - 1, keys[:, of]).scatter_(1, written, values)
        x.scatter_(1, asked - 1, ASK).scatter_(1, asked, keys).scatter_(1, asked + 1, answer)
        y.scatter_(1, asked, answer)
        for at, role in ((written - 2, 1), (written - 1, 2), (asked - 1, 3), (asked, 4), (asked + 1, 5)):
            roles.scatter_(1, at, role)
        roles.scatter_(1, written, kind + len(ROLES) - len(KINDS))
        fact.scatter_(1, written, torch.arange(F).expand(rows, F)).scatter_(1, asked, torch.arange(n).expand(rows, n))
        ends = torch.cat([torch.where(late, written[:, :n] + self.lifetime, asked), written[:, E : E + O] - 1], 1)
        nothing = torch.full((rows, O), NO_LABEL)
        facts = Facts(
            kind,
            written,
            torch.cat([asked, torch.full_like(nothing, L)], 1),
            ends,
            torch.cat([answer, nothing], 1),
            roles,
            fact,
        )
        return x, y, facts

    def _times(self, rand: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """When facts are written, `[rows, F]`, and asked for, `[rows, n]`, from 0 to 1."""
        E, O = self.expiring, self.overwritten
        life = self.lifetime / self.length
        start, fraction, in_time = rand(E), rand(E), rand(E) < 0.5
        start = start * (1 - 1.5 * life)
        # margins on both sides of the expiry: places are not exactly times
        soon = start + 0.8 * life * fraction
        late = start + 1.3 * life + (1 - start - 1.3 * life).clamp(min=0) * fraction
        three = rand(O, 3).sort(-1).values
        two = rand(self.staying, 2).sort(-1).values
        when = torch.cat([start, three[..., 1], two[..., 0], three[..., 0]], 1)
        return when, torch.cat([torch.where(in_time, soon, late), three[..., 2], two[..., 1]], 1)

    def solve(self, x: Tensor) -> Tensor:
        """The labels of tokens `[rows, length]`, by reading them in order with a dictionary.

        Raises:
            ValueError: a question about what no fact has said.
        """
        y = torch.full_like(x, NO_LABEL)
        for row, tokens in enumerate(x.tolist()):
            known: dict[int, tuple[int, int, int]] = {}
            for place, token in enumerate(tokens[:-2]):
                if token < ASK:
                    known[tokens[place + 1]] = (token, tokens[place + 2], place + 2)
                elif token == ASK:
                    if tokens[place + 1] not in known:
                        raise ValueError(f"row {row}, token {place}: no fact has said what is asked for")
                    kind, value, written = known[tokens[place + 1]]
                    late = kind == 0 and place + 1 - written > self.lifetime
                    y[row, place + 1] = GONE if late else value
        return y
