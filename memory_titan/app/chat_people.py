"""Everybody in the chat: who a browser is, where their memory is kept, and who is held in RAM."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from memory_titan.app.chat_line import Line
from memory_titan.app.chat_person import Person

if TYPE_CHECKING:
    from memory_titan.hybrid.engine import HybridEngine

logger = logging.getLogger(__name__)

_TOKEN = re.compile(r"[\w-]{43}", re.ASCII)  # 32 random bytes


class FullError(RuntimeError):
    """All places are taken by people whose page is open."""


def data_folder() -> Path:
    """Where memories are kept: `$XDG_DATA_HOME/memory-titan/chat` or `~/.local/share/memory-titan/chat`."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "memory-titan" / "chat"


def new_token() -> str:
    """Who a browser is: nobody can guess it."""
    return secrets.token_urlsafe(32)


class People:
    """One frozen model, many people, each with a memory file of their own; or one person with a file of any name.

    A memory is saved when its owner says so, when it has to leave RAM, and by `close`. Only a crash loses what was not
    saved. Who told the memory nothing leaves no file.

    Args:
        engine: of the frozen model; everybody gets a fork of it.
        folder: where memories are kept, made if it is not there. A person's file is named by a hash, so that the
            folder's listing opens nobody's memory.
        file: one memory for everybody instead.
        max_tokens: of an answer.
        places: people held in RAM. Who was away longest goes first, never one whose page is open.

    Raises:
        ValueError: another program uses the folder or file.
        MemoryFileError: `file` cannot be used.
    """

    def __init__(
        self, engine: HybridEngine, folder: Path | None = None, file: Path | None = None, max_tokens: int = 200,
        places: int = 12,
    ) -> None:  # fmt: skip
        if (folder is None) == (file is None):
            raise ValueError("give a folder or a file, one of them")
        self.engine, self.folder, self.file, self.places = engine, folder, file, places
        self.line, self.max_tokens = Line(), max_tokens
        self._held: OrderedDict[str, Person] = OrderedDict()  # the longest away first
        place = folder if folder is not None else file
        assert place is not None
        (place if folder is not None else place.parent).mkdir(parents=True, exist_ok=True)
        # Not the thread's own, as is usual: a server ends in another thread than it began.
        self._lock = FileLock(place / ".lock" if folder is not None else f"{place}.lock", thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{place} is in use by another memory-titan chat") from None
        try:
            if file is not None:
                self._held[""] = Person(engine.fork(memory=file), file, self.line, self.max_tokens)
        except BaseException:
            self._lock.release()
            raise

    def __len__(self) -> int:
        return len(self._held)

    def known(self, token: str | None) -> bool:
        """Whether this can be somebody's token."""
        return token is not None and _TOKEN.fullmatch(token) is not None

    def person(self, token: str | None) -> Person:
        """Who has this token: from RAM, from their file, or new.

        Raises:
            ValueError: it is nobody's.
            FullError: there is no place for one more.
        """
        if self.file is not None:
            return self._held[""]
        if token is None or not self.known(token):
            raise ValueError("this browser does not say who it is: allow cookies here and reload the page")
        if token not in self._held:
            self._make_place()
            self._held[token] = self._open(self.file_of(token))
        self._held.move_to_end(token)
        return self._held[token]

    def file_of(self, token: str) -> Path:
        """Where a person's memory is kept."""
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(token.encode()).hexdigest()[:40]}.mem"

    def close(self) -> None:
        """End all answers, save what is not saved yet, and let go of the folder. A second call does nothing."""
        if not self._lock.is_locked:
            return
        for person in self._held.values():
            person.stop()
        for person in self._held.values():
            person.wait()
            self._save(person)
        self.line.close()
        self._lock.release()

    def _open(self, file: Path) -> Person:
        if not file.exists():
            return Person(self.engine.fork(), file, self.line, self.max_tokens)
        try:
            return Person(self.engine.fork(memory=file), file, self.line, self.max_tokens)
        except ValueError as error:  # it may still be worth something to who can mend it
            aside = file.with_name(f"{file.stem}-damaged-{time.time_ns()}.mem")
            file.rename(aside)
            logger.warning("a memory could not be loaded and is kept as %s: %s", aside.name, error)
            person = Person(self.engine.fork(), file, self.line, self.max_tokens)
            person.set_aside = aside.name
            return person

    def _make_place(self) -> None:
        while len(self._held) >= self.places:
            away = [token for token, each in self._held.items() if not each.pages and not each.busy]
            for token in away:
                if self._save(self._held[token]):
                    del self._held[token]
                    break
            else:
                raise FullError(f"all {self.places} places are taken")

    def _save(self, person: Person) -> bool:
        """Whether nothing of it is left to save."""
        try:
            if person.unsaved:
                person.save_now()
        except OSError:
            logger.exception("a memory could not be saved")
            return False
        return True
