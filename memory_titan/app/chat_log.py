"""What happens in a chat, one entry after the other: what the page and the terminal show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the engine brings torch
    from memory_titan.hybrid.records import Answer, Turn


def counted(count: int, what: str) -> str:
    """A number and its noun: "1 text", "2,048 texts"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclass
class Entry:
    """Something that happened in the conversation, in the order it happened.

    Attributes:
        state: "waiting" in line, "working", "done", "stopped" or "failed".
        error: what was wrong, if it failed.
    """

    state: str = field(default="waiting", kw_only=True)
    error: str = field(default="", kw_only=True)

    @property
    def live(self) -> bool:
        """Whether it still changes."""
        return self.state in ("waiting", "working")


@dataclass
class Said(Entry):
    """A message and its answer; `let_go` texts were dropped from a full memory to make room."""

    message: str
    memory: bool
    text: str = ""
    turn: Turn | None = None
    let_go: int = 0


@dataclass
class Compared(Entry):
    """One question, asked with the memory and without, each with an empty context."""

    question: str
    remembered: Answer | None = None
    bare: Answer | None = None


@dataclass
class FileRead(Entry):
    """A text file that the memory reads: `done` of `total` characters so far."""

    name: str
    total: int
    done: int = 0
    texts: int = 0
    written: int = 0
    replaced: int = 0  # older texts that were taken for corrected
    let_go: int = 0


@dataclass
class Note(Entry):
    """Something done to the context or the memory. `kind`: "cleared", "forgot", "undone", "saved", "loaded"."""

    kind: str
    text: str = ""
    items: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = "done"

    @property
    def sentence(self) -> str:
        """What was done, in words."""
        items = " ".join(f"“{each}”" for each in self.items)
        if self.kind == "cleared":
            return "context cleared: the model sees nothing above this line"
        if self.kind == "forgot":
            return f"Erased from the weights: {items}" if items else "Nothing was erased."
        if self.kind == "undone":
            return f"Taken back: {'; '.join(self.items)}." if items else "There is nothing left to take back."
        if self.kind == "saved":
            return "Saved: a restart will find all of it."
        return f"Loaded {self.text}. The conversation stays, the memory is another; undo brings the one before it back."
