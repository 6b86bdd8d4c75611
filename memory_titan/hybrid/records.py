"""What the engine hands out: of a text it read, of what it recalled, of a turn of a conversation, of its memory."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Reading:
    """What reading one text did: a sentence, or several that lean on each other.

    Attributes:
        text: what was read.
        tokens: the text of each token.
        surprise: `[tokens]`, the memory's own error before it wrote: 1 for what is new, 0 for what it knows.
        written: whether it was written.
        worth: 0 to 1, how sure the engine is that it is a statement worth keeping.
        reason: "new" | "correction" where it was written; "known" | "small talk" | "question" where not.
        replaced: texts that a correction erased from the weights.
    """

    text: str
    tokens: list[str]
    surprise: list[float]
    written: bool
    worth: float = 1.0
    reason: str = "new"
    replaced: list[str] = field(default_factory=list)


@dataclass
class Recollection:
    """One text that the weights gave back to a question.

    Attributes:
        text: the soft prompts, decoded to their nearest tokens.
        familiarity: cosine of the question's address and the slot's.
        evidence: nats by which it bears on the question (see `evidence.py`).
        clarity: 0 to 1, how sharply the tokens came out of the weights.
        slot: where it is kept.
    """

    text: str
    familiarity: float
    evidence: float
    clarity: float
    slot: int


@dataclass
class Answer:
    """What `ask` returns.

    Attributes:
        text: the model's answer.
        spoke: whether the memory spoke; if not, this is the bare model's answer, word for word.
        used: the recollections that went into the prompt.
        considered: all that were read and weighed, best first.
    """

    text: str
    spoke: bool
    used: list[Recollection]
    considered: list[Recollection]

    @property
    def familiarity(self) -> float:
        """Of the question: the largest cosine with any address; 0 for an empty memory."""
        return max((each.familiarity for each in self.considered), default=0.0)


@dataclass
class Turn:
    """One turn of a conversation, filled while it happens.

    Attributes:
        message: what the user said.
        readings: what the memory made of it.
        answer: its text is whole once the answer has ended.
        seconds: "reading", "recall", and from the message to the answer's first piece ("first") and its end ("answer").
    """

    message: str
    readings: list[Reading] = field(default_factory=list)
    answer: Answer = field(default_factory=lambda: Answer("", False, [], []))
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Capacity:
    """How full a memory is.

    Attributes:
        held: texts in it.
        slots: texts that it can address; then the one longest untouched goes.
        load: tokens held over features, N/F.
        strength: 1 / (1 + load), what every text held is worth when it is read.
        written, known, evicted, forgotten: texts so far.
        bytes: of its file, the same however much is held.
    """

    held: int
    slots: int
    load: float
    strength: float
    written: int
    known: int
    evicted: int
    forgotten: int
    bytes: int
