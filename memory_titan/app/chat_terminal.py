"""The chat in the terminal: the same person as the page's, with commands for buttons."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memory_titan.app.chat_log import FileRead, Note, Said, counted
from memory_titan.app.chat_person import TEXT_FILE, Person

if TYPE_CHECKING:
    from memory_titan.hybrid.records import Reading, Recollection, Turn

_HELP = (
    "/clear the context, /forget WORDS, /undo, /save, /read FILE, /memory: what is held, /why: surprise and "
    "recollections of the last turn, /on and /off: the memory, /bye"
)
_LISTED = 40  # recollections that /memory shows
_LOOK = 0.05  # seconds between two looks at an answer


def talk(person: Person, console: Console, model: str) -> None:
    """Read lines and answer them until /bye or the input's end.

    Args:
        person: whose conversation it is; who calls saves their memory afterwards (`People.close`).
        console: where to.
        model: the frozen model's name.
    """
    _Talk(person, console).run(model)


class _Talk:
    def __init__(self, person: Person, console: Console) -> None:
        self.person, self.console, self.memory = person, console, True
        self.commands: dict[str, Callable[[str], None]] = {
            "/clear": self.clear, "/forget": self.forget, "/undo": self.undo, "/save": self.save, "/read": self.read,
            "/memory": self.show, "/why": self.why, "/on": self.switch, "/off": self.switch,
        }  # fmt: skip

    def run(self, model: str) -> None:
        held = self.person.capacity.held
        self.say(
            f"{model}, frozen. What you tell it goes into the memory beside it, which holds {counted(held, 'text')}."
        )
        self.say(_HELP, "dim")
        while True:
            try:
                line = self.console.input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                return
            command, _, words = line.partition(" ")
            if command == "/bye":
                return
            try:
                if command in self.commands:
                    self.switched = command
                    self.commands[command](words.strip())
                elif line.startswith("/"):
                    self.say(_HELP, "dim")
                elif line:
                    self.turn(line)
            except (ValueError, OSError) as error:
                self.say(str(error), "red")

    def turn(self, message: str) -> None:
        """One message and its answer, as it comes. Ctrl-C ends the answer."""
        self.person.say(message, self.memory)
        entry = self.person.log[-1]
        assert isinstance(entry, Said)
        shown, sourced = 0, False
        while True:
            live = entry.live
            try:
                self.person.follow()
                if not sourced and (entry.text or not live):
                    sourced = True
                    self.told(entry)
                self.console.print(plain(entry.text[shown:]), end="", markup=False, highlight=False, soft_wrap=True)
                shown = len(entry.text)
                if not live:
                    break
                time.sleep(_LOOK)
            except KeyboardInterrupt:
                self.person.stop()
        self.person.wait()
        self.console.print()
        if entry.error:
            self.say(entry.error, "red")
        elif entry.state == "stopped":
            self.say("(stopped)", "dim")
        self.let_go(entry.let_go)

    def told(self, entry: Said) -> None:
        """What the memory did with the message, before the answer."""
        turn = entry.turn
        if turn is None or not entry.memory:
            self.say("memory off", "dim")
            return
        for reading in turn.readings:
            self.console.print(heat(reading), soft_wrap=True)
        for each in turn.answer.used:
            self.say(f"from memory: “{each.text}”, {each.evidence:.0f} nats", "cyan")
        if "recall" not in turn.seconds:
            self.say("no question: the memory was not asked", "dim")
        elif not turn.answer.used:
            self.say("the memory was silent", "dim")

    def clear(self, _: str) -> None:
        self.person.clear()
        self.say("context cleared: the model sees nothing of what was said", "cyan")

    def forget(self, words: str) -> None:
        found = self.person.find(words).result()
        count = len(found.recollections)
        if not count:
            self.say(f"it holds nothing about “{words}”")
            return
        for each in found.recollections:
            self.say(f"“{each.text}”")
        if self.console.input(f"erase {'this' if count == 1 else f'these {count}'}? y/n ").strip() == "y":
            self.done(self.person.forget(found))

    def undo(self, _: str) -> None:
        self.done(self.person.undo())

    def save(self, _: str) -> None:
        self.done(self.person.save())

    def read(self, name: str) -> None:
        if not name:
            raise ValueError("/read FILE")
        file = Path(name).expanduser()
        with file.open("rb") as opened:
            self.person.read(file.name, opened.read(TEXT_FILE + 1))
        entry = self.person.log[-1]
        assert isinstance(entry, FileRead)
        with self.console.status(f"reading {plain(file.name)}; Ctrl-C stops"):
            while entry.live:
                try:
                    time.sleep(_LOOK)
                except KeyboardInterrupt:
                    self.person.stop()
        self.say(entry.error or f"{counted(entry.texts, 'text')} read, {entry.written:,} written")
        self.let_go(entry.let_go)

    def show(self, _: str) -> None:
        capacity, held = self.person.capacity, self.person.held().result().recollections
        for each in held[:_LISTED]:
            self.say(f"“{each.text}”")
        if capacity.held > _LISTED:
            self.say(f"and {capacity.held - _LISTED:,} more", "dim")
        self.say(
            f"{capacity.held:,} of {capacity.slots:,} texts held, strength {capacity.strength:.0%}; "
            f"{counted(self.person.unsaved, 'change')} not saved; "
            f"the file has {capacity.bytes / 1e6:.1f} MB whatever it holds",
            "dim",
        )

    def why(self, _: str) -> None:
        turn = self.person.turn
        if turn is None:
            self.say("nothing was said yet, or the memory was off")
            return
        for reading in turn.readings:
            self.console.print(heat(reading), soft_wrap=True)
        self.console.print(weighed(turn))
        self.say(f"evidence in nats; it speaks from some {self.person.engine.threshold:g}. * was used", "dim")

    def switch(self, _: str) -> None:
        self.memory = self.switched == "/on"
        self.say(f"memory {'on' if self.memory else 'off: nothing is recalled, nothing is written'}")

    def done(self, future: Future[Any]) -> None:
        future.result()
        note = self.person.log[-1]
        assert isinstance(note, Note)
        self.say(note.sentence)

    def let_go(self, count: int) -> None:
        if count:
            self.say(f"the memory was full: {counted(count, 'text')} longest unused had to go", "yellow")

    def say(self, sentence: str, style: str = "") -> None:
        self.console.print(Text(plain(sentence), style=style), soft_wrap=True)


def heat(reading: Reading) -> Text:
    """A text with its words coloured by surprise, and what became of it."""
    shown = Text()
    for token, value in zip(reading.tokens, reading.surprise, strict=True):
        shown.append(plain(token), style="yellow underline" if value >= 0.67 else "yellow" if value >= 0.33 else "dim")
    mean = sum(reading.surprise) / max(1, len(reading.surprise))
    did = "written" if reading.written else f"not written: {reading.reason}"
    instead = "".join(f", in place of “{plain(each)}”" for each in reading.replaced)
    return shown.append(f"  {did}{instead}, surprise {mean:.2f}", style="dim")


def weighed(turn: Turn) -> Table:
    """The recollections that were weighed for a turn."""
    table = Table("", "recalled", "evidence", "familiarity", "clarity", box=None)
    for each in turn.answer.considered:
        table.add_row(*_row(each, each in turn.answer.used))
    return table


def _row(each: Recollection, used: bool) -> list[str | Text]:
    figures = [f"{each.evidence:.1f}", f"{each.familiarity:.2f}", f"{each.clarity:.2f}"]
    return ["*" if used else "", Text(plain(each.text)), *figures]


def plain(text: str) -> str:
    """Without what would steer the terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "�" for letter in text)
