"""How well a frozen model with a memory recalls what it was told in a long chat, beside what else one could do.

    tell      turns of chat, facts strewn among small talk, each turn read as the chat reads it
    ask       context cleared, memory saved and loaded anew; every question in other words than what was told

`memory-titan evaluate hybrid` runs it; docs/evaluate-hybrid.md says what each part asks and how it is counted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from memory_titan.embedders.base import BaseEmbedder
from memory_titan.evaluation.finished import Finished
from memory_titan.evaluation.hybrid_arms import (
    ARMS,
    EMBEDDER,
    Arm,
    Index,
    Said,
    bare_arm,
    context_arm,
    context_length,
    memory_arm,
    oracle_arm,
    positions,
    retrieval_arm,
)  # fmt: skip
from memory_titan.evaluation.hybrid_marking import mark_corrected, overlap, stage, written
from memory_titan.evaluation.hybrid_summary import CURVE
from memory_titan.evaluation.hybrid_talk import (
    Chat,
    Question,
    Talk,
    corrections_chat,
    facts_chat,
    load_talk,
    plain_questions,
    several_chat,
)  # fmt: skip
from memory_titan.evaluation.hybrid_timing import time_engine
from memory_titan.evaluation.recall import MAX_TOKENS, is_right
from memory_titan.hybrid.engine import HybridEngine
from memory_titan.hybrid.frozen import FrozenModel

Record = dict[str, Any]
HELD = (10, 30, 100, 300, 500, 1000)
# What is asked in each part, and of whom.
ARMS_OF = {
    "facts": ARMS,
    "curve": CURVE,
    "corrections": ("memory", "bare", "context", "retrieval"),
    "several": ARMS,
    "unknown": ("memory",),
    "general": ("memory", "bare", "context", "retrieval"),
    "timing": ("memory",),
}
PARTS = tuple(ARMS_OF)
_VERSION = 1  # raised when a job's result comes to mean something else


@dataclass(frozen=True)
class Settings:
    """What is told and asked.

    Attributes:
        split: "dev" (looked at while tuning) or "test" (not).
        seeds: how many draws of the facts and of the order.
        facts, turns: told, and turns in all, in the main chat.
        held: points of the curve over the number of facts told.
        asked: questions a point of the curve, at most.
        answer_turns: answer each turn too, as a chat does; else only read it.
    """

    split: str = "test"
    seeds: int = 2
    facts: int = 100
    turns: int = 300
    held: tuple[int, ...] = HELD
    asked: int = 60
    answer_turns: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.asked < 1 or not 1 <= self.facts <= self.turns:
            raise ValueError(f"seeds and asked must be at least 1, and facts from 1 to turns; got {self}")
        if not self.held or min(self.held) < 1 or len(set(self.held)) < len(self.held):
            raise ValueError(f"held must be different numbers from 1; got {self.held}")


def evaluate_hybrid(
    frozen: FrozenModel,
    settings: Settings,
    folder: Path | None = None,
    parts: Sequence[str] = PARTS,
    arms: Sequence[str] = ARMS,
    make_engine: Callable[[FrozenModel, Path], Any] = HybridEngine,
    embedder: BaseEmbedder | None = None,
    talk: Talk | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Record:
    """Run parts of the evaluation on some arms.

    Args:
        frozen: the model.
        settings: what is told and asked.
        folder: keeps finished jobs (`finished.jsonl`), so that an interrupted run goes on and a later one adds to it.
        parts: of `PARTS`. arms: of `hybrid_arms.ARMS`.
        make_engine: from a model and a path, the file of which may be there.
        embedder: of the arms that retrieve; all-MiniLM-L6-v2 if none is given.
        talk: what there is to tell; the committed data of the split if none is given.
        say: told a line a job.

    Returns:
        "settings", and "jobs" by name: `<seed>/<chat>/<arm>`, what an earlier run left in the folder among them.

    Raises:
        ValueError: no such part or arm, more facts than there are, or the folder holds jobs of other settings.
    """
    for what, given, known in (("part", parts, PARTS), ("arm", arms, ARMS)):
        if unknown := [each for each in given if each not in known]:
            raise ValueError(f"there is no {what} {unknown[0]!r}; there are {', '.join(known)}")
    talk = load_talk(settings.split) if talk is None else talk
    for facts in {settings.facts, *(settings.held if "curve" in parts else ())}:
        facts_chat(talk, 0, facts, _small_talk(settings, facts))  # what cannot be told is refused before the first job
    if any(arm in ("retrieval", "soft") and arm in ARMS_OF[part] for arm in arms for part in parts):
        from memory_titan.embedders.sentence import SentenceTransformerEmbedder

        embedder = SentenceTransformerEmbedder(EMBEDDER) if embedder is None else embedder
        embedder.embed(["Hello."])  # is it there?
    about = {
        "version": _VERSION,
        "split": settings.split,
        "facts": settings.facts,
        "turns": settings.turns,
        "asked": settings.asked,
        "answer_turns": settings.answer_turns,
        "model": {key: frozen.identity[key] for key in ("name", "fingerprint")},
        "data": hashlib.sha256(json.dumps([talk.rows, talk.other], sort_keys=True).encode()).hexdigest()[:16],
    }
    finished = Finished(None if folder is None else folder / "finished.jsonl", about)
    memories = Path(tempfile.mkdtemp()) if folder is None else folder / "memories"
    memories.mkdir(parents=True, exist_ok=True)
    run = _Run(frozen, settings, talk, arms, make_engine, embedder, finished, memories, say)
    for seed in range(settings.seeds):
        run.facts(seed, parts)
        if "corrections" in parts:
            chat = corrections_chat(talk, seed, settings.turns - settings.facts)
            run.ask(seed, chat, ARMS_OF["corrections"], chat.questions)
        if "several" in parts:
            chat = several_chat(talk, seed, settings.turns - settings.facts)
            run.ask(seed, chat, ARMS_OF["several"], chat.questions)
    shutil.rmtree(memories)
    return {"settings": about, "jobs": finished.jobs}


def _small_talk(settings: Settings, facts: int) -> int:
    """Two turns of it a fact, or what the main chat's proportions say; never more than in the main chat."""
    most = settings.turns - settings.facts
    return min(most, round(facts * most / settings.facts))


class _Run:
    """What the parts share: chats told once, arms made when somebody asks."""

    def __init__(
        self,
        frozen: FrozenModel,
        settings: Settings,
        talk: Talk,
        arms: Sequence[str],
        make_engine: Callable[[FrozenModel, Path], Any],
        embedder: BaseEmbedder | None,
        finished: Finished,
        memories: Path,
        say: Callable[[str], None],
    ) -> None:
        self.frozen, self.settings, self.talk, self.arms, self.make_engine = frozen, settings, talk, arms, make_engine
        self.embedder, self.finished, self.memories, self.say = embedder, finished, memories, say
        self.open: tuple[Path, Any] | None = None  # the last engine, and its file

    def facts(self, seed: int, parts: Sequence[str]) -> None:
        """The main chat and the curve's others, what was never told, and general knowledge."""
        settings, main = self.settings, self.settings.facts
        held = {main, *(settings.held if "curve" in parts else ())}
        for facts in sorted(held):
            chat = facts_chat(self.talk, seed, facts, _small_talk(settings, facts))
            asking = [part for part in ("facts", "curve") if part in parts and (facts == main or part == "curve")]
            arms = [arm for arm in ARMS if any(arm in ARMS_OF[part] for part in asking)]
            self.ask(seed, chat, arms, chat.questions[: None if facts == main else settings.asked])
            if facts in (main, len(self.talk.of("fact"))):  # where what was never told has most that is like it
                for part in ("unknown", "general"):
                    if part in parts:
                        of_part = ARMS_OF[part] if facts == main else ("memory",)
                        self.ask(seed, chat, of_part, plain_questions(self.talk, part), f"{part} {facts}")
            if "timing" in parts and facts == main and "memory" in self.arms:
                self.finished.get(f"{seed}/timing/memory", partial(self._time, seed, chat))

    def ask(
        self, seed: int, chat: Chat, arms: Sequence[str], questions: Sequence[Question], label: str = ""
    ) -> None:  # fmt: skip
        """A job an arm: the questions, answered and marked."""
        label = label or chat.name
        for arm in (arm for arm in arms if arm in self.arms or (arm == "bare" and label.startswith("general"))):
            # "Unchanged" is said of the bare model's answers, so to general questions it always gives them.
            # What was told does not matter to it; which facts are asked for does.
            once = arm == "bare" and not label.startswith("facts")
            name = f"-/{label.split()[0]}/bare" if once else f"{seed}/{label}/{arm}"
            self.finished.get(name, partial(self._answers, seed, chat, arm, questions, label))

    def _answers(self, seed: int, chat: Chat, name: str, questions: Sequence[Question], label: str) -> Record:
        if name == "context":
            length, room = context_length(self.frozen, chat.texts, questions), positions(self.frozen)
            if room is not None and length > room:
                self.say(f"seed {seed}, {label}, context: {length} positions, the model has {room}")
                return {"answers": None, "tokens": length, "positions": room}
        record: Record = {}
        arm = self._arm(seed, chat, name, record)
        read = self.read(seed, chat)["turns"] if name == "memory" and any(each.turns for each in questions) else None
        started = time.perf_counter()
        rows = [_row(question, arm(question), rank, chat, read, name) for rank, question in enumerate(questions)]
        seconds = time.perf_counter() - started
        self.say(f"seed {seed}, {label}, {name}: {_counted(rows)} ({seconds:.0f} s)")
        return {**record, "seconds": round(seconds, 3), "answers": rows}

    def _arm(self, seed: int, chat: Chat, name: str, record: Record) -> Arm:
        if name == "memory":
            return memory_arm(self.engine(seed, chat))
        if name == "bare":
            return bare_arm(self.frozen)
        if name == "oracle":
            return oracle_arm(self.frozen)
        if name == "context":
            return context_arm(self.frozen, chat.texts)
        assert self.embedder is not None
        index = Index(self.embedder, chat.texts, self.read(seed, chat)["bytes"])
        record.update(bytes=index.bytes, left_out=index.left_out)
        return retrieval_arm(self.frozen, index, name == "soft")

    def read(self, seed: int, chat: Chat) -> Record:
        """What the memory did with each turn: its readings, and what corrections erased; and the file's bytes."""
        return self.finished.get(f"{seed}/{chat.name}/read", lambda: self._read(seed, chat))

    def engine(self, seed: int, chat: Chat) -> Any:
        """A new one, that has loaded what was told."""
        self.read(seed, chat)
        path = self._path(seed, chat)
        if not path.exists():  # told by an earlier run, whose files are gone
            self._read(seed, chat)
        if self.open is None or self.open[0] != path:
            self.open = path, self.make_engine(self.frozen, path)
        return self.open[1]

    def _path(self, seed: int, chat: Chat) -> Path:
        return self.memories / f"{seed} {chat.name}.mem".replace(" ", "-")

    def _read(self, seed: int, chat: Chat) -> Record:
        path, self.open = self._path(seed, chat), None
        path.unlink(missing_ok=True)
        engine, started, turns = self.make_engine(self.frozen, path), time.perf_counter(), []
        for turn in chat.turns:
            readings = [
                {"text": each.text, "written": each.written, "reason": each.reason, "replaced": each.replaced}
                for each in _tell(engine, turn.text, self.settings.answer_turns)
            ]
            turns.append({"kind": turn.kind, "name": turn.name, "about": turn.about, "readings": readings})
        seconds = time.perf_counter() - started
        engine.clear_context()
        engine.save()
        self.say(f"seed {seed}, {chat.name}: {len(turns)} turns told ({seconds:.0f} s)")
        return {"turns": turns, "bytes": path.stat().st_size, "seconds": round(seconds, 3)}

    def _time(self, seed: int, chat: Chat) -> Record:
        told = set(chat.texts)
        other = several_chat(self.talk, seed, self.settings.turns - self.settings.facts).texts
        fresh = [text for text in other if text not in told]
        record = time_engine(self.frozen, self.engine(seed, chat), fresh, [each.text for each in chat.questions])
        self.open = None  # it has read on
        return {**record, "bytes": self.read(seed, chat)["bytes"]}


def _tell(engine: Any, text: str, answer: bool) -> Sequence[Any]:
    if not answer:
        readings: Sequence[Any] = engine.read(text)
        return readings
    for _ in engine.chat(text, max_tokens=MAX_TOKENS):
        pass
    readings = engine.turn.readings
    return readings


def _row(
    question: Question, said: Said, rank: int, chat: Chat, read: Sequence[Record] | None, arm: str
) -> Record:  # fmt: skip
    right = sum(is_right(said.text, list(spans)) for spans in question.parts)
    row: Record = {"name": question.name, "rank": rank, "question": question.text, "answer": said.text}
    row |= {"spoke": said.spoke, "recalled": said.found[:1]}
    if not question.parts:
        return row
    row |= {"right": right == len(question.parts), "said": right, "parts": len(question.parts)}
    if question.old:
        row |= {"form": question.form, "value": mark_corrected(said.text, question.parts[0], question.old)}
    if not row["right"] and arm != "bare":
        row["stage"] = stage(question, said.found, said.used, said.spoke, read)
    if read is not None:
        row["written"] = all(written(read, question.turns, spans) for spans in question.parts)
    row["overlap"] = overlap(question.text, " ".join(question.told))
    row["since"] = len(chat.turns) - 1 - max(question.turns)
    return row


def _counted(rows: Sequence[Record]) -> str:
    if any("right" in row for row in rows):
        return f"{sum(row['right'] for row in rows)} of {len(rows)} right"
    return f"spoke to {sum(row['spoke'] for row in rows)} of {len(rows)}"
