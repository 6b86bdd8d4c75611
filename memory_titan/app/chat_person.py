"""One person in the chat: a conversation, a memory, and what happened to both. Knows nothing of pages.

Everything that needs the model joins the line and returns at once; who shows it looks at `log`, `version` and
`capacity`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memory_titan.app.chat_line import Line
from memory_titan.app.chat_log import Compared, Entry, FileRead, Note, Said
from memory_titan.hybrid.sentences import sentences

if TYPE_CHECKING:  # the engine brings torch
    from memory_titan.hybrid.engine import HybridEngine
    from memory_titan.hybrid.records import Capacity, Recollection, Turn

logger = logging.getLogger(__name__)
T = TypeVar("T")

MESSAGE = 4_000  # characters
TEXT_FILE = 200_000  # bytes: about as many sentences as a memory of the usual size can address
MEMORY_FILE = 64_000_000  # bytes
_KEPT = 300  # entries of a conversation that a reload shows again
_PIECE = 400  # characters of a file between two looks at the stop sign
_TEXTS = 16  # of a file that are read before others have their turn


@dataclass
class Found:
    """Recollections, and how often the memory had changed when they were found: a slot may later hold another text."""

    recollections: list[Recollection]
    changes: int


class BusyError(ValueError):
    """This person's last wish is still being worked on."""


class Person:
    """A person's engine and conversation.

    Args:
        engine: of this person alone (`HybridEngine.fork`).
        file: where their memory is saved.
        line: before the model that all engines share.
        max_tokens: of an answer.
    """

    def __init__(self, engine: HybridEngine, file: Path, line: Line, max_tokens: int = 200) -> None:
        self.engine, self.file, self.max_tokens = engine, file, max_tokens
        self.log: list[Entry] = []
        self.dropped = 0  # entries that the log no longer holds
        self.version = 0  # grows with every change of the memory or the log
        self.changes = 0  # grows with every change of the memory alone
        self.unsaved = 0  # changes of the memory since it was last saved
        self.saved: float | None = file.stat().st_mtime if file.exists() else None  # seconds since 1970
        self.pages = 0  # that show this person now
        self.history: list[Capacity] = [engine.capacity]
        self.set_aside = ""  # name of a damaged file that this memory could not be loaded from
        self._line = line
        self._job: Future[Any] | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._following: tuple[Said, Turn | None] | None = None  # what is being answered, and the turn before it
        self._before_load: tuple[HybridEngine, str] | None = None

    @property
    def capacity(self) -> Capacity:
        """Of the memory, as the last change left it."""
        return self.history[-1]

    @property
    def turn(self) -> Turn | None:
        """The last one for which the memory was on."""
        turns = (each.turn for each in reversed(self.log) if isinstance(each, Said) and each.memory and each.turn)
        return next(turns, None)

    @property
    def asked(self) -> Turn | None:
        """The last one for which something was recalled."""
        turns = (each.turn for each in reversed(self.log) if isinstance(each, Said) and each.turn)
        return next((turn for turn in turns if turn.answer.considered), None)

    @property
    def busy(self) -> bool:
        """Whether something is in line or at work."""
        return self._job is not None and not self._job.done()

    @property
    def before(self) -> int:
        """How many others come before what this person waits for."""
        return 0 if self._job is None else self._line.before(self._job)

    def say(self, message: str, memory: bool = True) -> None:
        """Say something; the answer comes into the log piece by piece. Without memory, nothing is recalled or written.

        Raises:
            ValueError: nothing is said, or too much.
            BusyError: something is being worked on.
        """
        entry = Said(checked(message), memory)

        def answer() -> Iterator[None]:
            previous, evicted = self.engine.turn, self.engine.capacity.evicted
            stream: Any = self.engine.chat(entry.message, self.max_tokens, use_memory=memory, learn=memory)
            self._following = entry, previous
            try:
                for piece in stream:
                    entry.text += piece
                    if self._stop.is_set():
                        break
            finally:
                stream.close()
                self.follow()
                self._following = None
                entry.let_go = self.engine.capacity.evicted - evicted
                self._changed(sum(each.written for each in entry.turn.readings) if entry.turn else 0)
            yield from ()  # one step

        self._enter(entry, answer)

    def follow(self) -> None:
        """Let the entry that is being answered show what the engine has found out so far."""
        if self._following is not None:
            entry, previous = self._following
            if self.engine.turn is not previous:
                entry.turn = self.engine.turn

    def compare(self, question: str) -> None:
        """Ask with the memory and without, each with an empty context. Changes nothing. Raises as `say`."""
        entry = Compared(checked(question))

        def ask() -> Iterator[None]:
            entry.remembered = self.engine.ask(entry.question, max_tokens=self.max_tokens)
            yield
            if not self._stop.is_set():
                entry.bare = self.engine.ask(entry.question, use_memory=False, max_tokens=self.max_tokens)

        self._enter(entry, ask)

    def read(self, name: str, data: bytes) -> None:
        """Read a text file into the memory, a few sentences at a time between others' turns; one step to `undo`.

        Raises:
            ValueError: too large, not UTF-8, or empty.
            BusyError: something is being worked on.
        """
        text = as_text(name, data)
        entry = FileRead(name, len(text))

        def pieces() -> Iterator[str]:
            for start in range(0, len(text), _PIECE):
                if self._stop.is_set():
                    return
                yield text[start : start + _PIECE]
                entry.done = min(len(text), start + _PIECE)

        def read() -> Iterator[None]:
            evicted = self.engine.capacity.evicted
            try:
                for reading in self.engine.read_stream(sentences(pieces())):
                    entry.texts, entry.written = entry.texts + 1, entry.written + reading.written
                    entry.replaced += len(reading.replaced)
                    if entry.texts % _TEXTS == 0:
                        yield
            finally:
                entry.let_go = self.engine.capacity.evicted - evicted
                self._changed(entry.written)

        self._enter(entry, read)

    def clear(self) -> None:
        """Clear the context; the memory stays. BusyError while an answer is being written."""
        self._refuse_if_busy()
        self.engine.clear_context()
        self._add(Note("cleared"))

    def find(self, words: str) -> Future[Found]:
        """What is held about some words. ValueError as `say`."""
        words = checked(words)
        return self._line.put(lambda: Found(self.engine.find(words), self.changes))

    def held(self) -> Future[Found]:
        """The newest of what is held, read out of the weights, newest first."""
        return self._line.put(lambda: Found(self.engine.held(), self.changes))

    def forget(self, found: Found) -> Future[None]:
        """Erase what was found from the weights. BusyError while something is being worked on.

        Its future raises ValueError if the memory has changed since; then nothing is erased.
        """

        def forget() -> None:
            if found.changes != self.changes:
                raise ValueError("the memory has changed meanwhile; look again")
            gone = self.engine.forget(found.recollections)
            self._changed(len(gone))
            self._add(Note("forgot", items=[each.text for each in gone]))

        return self._put(forget)

    def undo(self) -> Future[None]:
        """Take back the memory's last change. BusyError while something is being worked on."""

        def undo() -> None:
            taken = self.engine.undo()
            if not taken and self._before_load is not None:
                engine, name = self._before_load
                engine.context = self.engine.context
                self.engine, self._before_load = engine, None
                taken = [f"the loading of {name}"]
            self._changed(bool(taken))
            self._add(Note("undone", items=taken))

        return self._put(undo)

    def save(self) -> Future[None]:
        """Write the memory to its file, whole or not at all. BusyError while something is being worked on."""

        def save() -> None:
            self.save_now()
            self._add(Note("saved", text=self.file.name))

        return self._put(save)

    def save_now(self) -> None:
        """`save`, without the line: for when nothing is at work. OSError if it cannot be written."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.engine.save(self.file)
        self.unsaved, self.saved = 0, time.time()

    def load(self, name: str, data: bytes) -> Future[None]:
        """Go on with another memory file, and the same conversation. `undo` brings the memory before it back.

        Its future raises MemoryFileError, a ValueError, for what is no memory of this model; then nothing has changed.
        """

        def load() -> None:
            with _temporary(data) as path:
                try:
                    engine = self.engine.fork(memory=path)
                except ValueError as error:
                    raise ValueError(str(error).replace(str(path), name)) from error
            engine.path = self.file
            engine.context = self.engine.context
            self._before_load, self.engine = (self.engine, name), engine
            self._changed(1)
            self._add(Note("loaded", text=name))

        return self._put(load)

    def export(self) -> Future[bytes]:
        """The bytes of a memory file as it would be saved now."""

        def export() -> bytes:
            with _temporary(b"") as path:
                self.engine.save(path)
                return path.read_bytes()

        return self._line.put(export)

    def stop(self) -> None:
        """Leave the line, or end the answer where it is; what was said and learned so far stays."""
        self._stop.set()
        job, last = self._job, self.log[-1] if self.log else None
        if job is not None and last is not None and last.state == "waiting" and job.cancel():
            last.state = "stopped"
            self.version += 1

    def wait(self, seconds: float | None = None) -> None:
        """Until nothing is in line or at work for this person, or for so many seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        while self.busy and (end is None or time.monotonic() < end):
            assert self._job is not None
            wait([self._job], None if end is None else max(0.0, end - time.monotonic()))

    def _enter(self, entry: Entry, work: Callable[[], Iterator[None]]) -> None:
        """Join the line with work of one or more steps; after each `yield` it goes to the end of the line."""
        steps = work()

        def run() -> None:
            entry.state = "working"
            try:
                next(steps)
                with self._lock:  # in which `_put` keeps the step before this one
                    self._job = self._line.put(run)
            except StopIteration:
                entry.state = "stopped" if self._stop.is_set() else "done"
            except Exception as error:
                entry.state, entry.error = "failed", " ".join(str(error).split()) or type(error).__name__
                if not isinstance(error, ValueError):
                    logger.exception("unexpected, in the chat")
            finally:
                self.version += 1

        self._refuse_if_busy()
        self._add(entry)
        self._put(run)

    def _put(self, work: Callable[[], T]) -> Future[T]:
        self._refuse_if_busy()
        self._stop.clear()
        with self._lock:
            self._job = job = self._line.put(work)
        return job

    def _refuse_if_busy(self) -> None:
        if self.busy:
            raise BusyError("one thing at a time: wait for the answer, or stop it")

    def _add(self, entry: Entry) -> None:
        self.log.append(entry)
        surplus = len(self.log) - _KEPT
        if surplus > 0:
            del self.log[:surplus]
            self.dropped += surplus
        self.version += 1

    def _changed(self, count: int) -> None:
        self.unsaved += count
        self.changes += bool(count)
        self.history.append(self.engine.capacity)
        del self.history[:-_KEPT]
        self.version += 1


def checked(message: str) -> str:
    """A message without the space around it. ValueError if nothing is left, or too much."""
    message = message.encode("utf-8", "replace").decode().strip()  # half a surrogate pair is no text
    if not message:
        raise ValueError("nothing was said")
    if len(message) > MESSAGE:
        raise ValueError(too_long(len(message)))
    return message


def too_long(length: int) -> str:
    """Why a message of so many characters is refused, and what to do instead."""
    return (
        f"a message may have {MESSAGE:,} characters, this one has {length:,}; "
        "put it into a text file and let the memory read that"
    )


def as_text(name: str, data: bytes) -> str:
    """The text of an uploaded file. ValueError if it is too large, not UTF-8, or empty."""
    if len(data) > TEXT_FILE:
        raise ValueError(f"{name} has {len(data):,} bytes; the memory reads files up to {TEXT_FILE:,}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not a text file in UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{name} is not a text file: it has zero bytes")
    if not text.strip():
        raise ValueError(f"{name} is empty")
    return text


@contextlib.contextmanager
def _temporary(data: bytes) -> Iterator[Path]:
    """A file with these bytes, gone afterwards."""
    handle, name = tempfile.mkstemp(suffix=".mem")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
