"""A stand-in for `HybridEngine`: its interface without a model. It keeps sentences as text and goes by shared words."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

SMALL_TALK = {"hello", "hi", "thanks", "thank", "haha"}
COMMON = set(re.findall("[a-z]+", "the a an is are of to in on at my me i you what which who when where how do does"))


@dataclass
class Reading:
    text: str
    tokens: list[str]
    surprise: list[float]
    written: bool
    worth: float
    reason: str
    replaced: list[str]


@dataclass
class Recollection:
    text: str
    familiarity: float
    evidence: float
    clarity: float
    slot: int


@dataclass
class Answer:
    text: str
    spoke: bool
    used: list[Recollection]
    considered: list[Recollection]


@dataclass
class Turn:
    message: str
    readings: list[Reading]
    answer: Answer
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Capacity:
    held: int
    slots: int
    load: float
    strength: float
    written: int
    known: int
    evicted: int
    forgotten: int
    bytes: int


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - COMMON


class FakeEngine:
    threshold = 11.0

    def __init__(self, memory=None, slots=8, pause=0.0):
        self.slots, self.pause, self.path = slots, pause, None if memory is None else Path(memory)
        self.context, self.turn = [], None
        self.texts: dict[int, str] = {}
        self.counts = {"written": 0, "known": 0, "evicted": 0, "forgotten": 0, "next": 0}
        self.steps: list[tuple[dict, dict, str]] = []
        if self.path is not None and self.path.exists():
            try:
                held = json.loads(self.path.read_bytes().rstrip(b" "))
                self.texts = {int(slot): text for slot, text in held["texts"].items()}
                self.counts = held["counts"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"not a memory file: {self.path}") from error

    def fork(self, memory=None):
        return FakeEngine(memory, self.slots, self.pause)

    def _step(self, what):
        self.steps.append((dict(self.texts), dict(self.counts), what))

    def _read(self, text):
        readings = []
        for sentence in re.findall(r"[^.!?\n]+[.!?]?", text):
            sentence = sentence.strip()
            if not sentence:
                continue
            tokens = re.findall(r"\s*\S+", sentence)
            reason, replaced = "new", []
            if sentence in self.texts.values():
                reason = "known"
                self.counts["known"] += 1
            elif sentence.endswith("?"):
                reason = "question"
            elif words(sentence) & SMALL_TALK or not words(sentence):
                reason = "small talk"
            elif sentence.lower().startswith("no, "):
                reason = "correction"
                slot = max(self.texts, default=None)
                if slot is not None:
                    replaced = [self.texts.pop(slot)]
            written = reason in ("new", "correction")
            if written:
                if len(self.texts) >= self.slots:
                    del self.texts[min(self.texts)]
                    self.counts["evicted"] += 1
                self.texts[self.counts["next"]] = sentence
                self.counts["next"] += 1
                self.counts["written"] += 1
            surprise = [0.04 if reason == "known" else 0.6 + 0.4 * ((7 * i) % 5) / 4 for i in range(len(tokens))]
            readings.append(Reading(sentence, tokens, surprise, written, 0.9 if written else 0.1, reason, replaced))
        return readings

    def read_stream(self, stream):
        before, count = (dict(self.texts), dict(self.counts)), 0
        try:
            for sentence in stream:
                time.sleep(self.pause / 10)
                count += 1
                yield from self._read(sentence)
        finally:
            self.steps.append((*before, f"wrote {count} texts in all"))

    def recall(self, question):
        asked = words(question)
        found = []
        for slot, text in self.texts.items():
            shared = len(asked & words(text))
            found.append(Recollection(text, min(1.0, 0.1 + 0.3 * shared), 10.5 * shared + 0.3, 0.97, slot))
        return sorted(found, key=lambda each: -each.evidence)[:8]

    def find(self, words):
        return [each for each in self.recall(words) if each.evidence >= self.threshold / 2]

    def _answer(self, question, use_memory):
        considered = self.recall(question) if use_memory else []
        used = [each for each in considered if each.evidence >= self.threshold][:2]
        text = " ".join(each.text for each in used) or f"I cannot know that: {question}"
        return Answer(text, bool(used), used, considered)

    def ask(self, question, use_memory=True, max_tokens=64):
        time.sleep(self.pause)
        return self._answer(question, use_memory)

    def chat(self, message, max_tokens=200, use_memory=True, learn=True):
        if not message.strip():
            raise ValueError("the message is empty")
        if "fail now" in message:
            raise ValueError("the fake was told to fail")
        if learn:
            self._step(f"wrote: {message}")
        asked = "?" in message
        answer = self._answer(message, use_memory and asked)
        turn = self.turn = Turn(message, self._read(message) if learn else [], Answer("", False, [], []))
        if learn and not any(each.written for each in turn.readings):
            self.steps.pop()
        turn.seconds["reading"] = 0.01
        time.sleep(self.pause)
        turn.answer = answer
        full, turn.answer.text = turn.answer.text, ""
        if use_memory and asked:
            turn.seconds["recall"] = 0.01
        if any(each.written for each in turn.readings):
            full = "Noted."
        if "slowly" in message:
            full = " ".join(["slowly"] * 200)
        self.context.append({"role": "user", "content": message})
        said = ""
        try:
            for piece in re.findall(r"\s*\S+", full):
                said += piece
                yield piece
                time.sleep(0.03 if "slowly" in message else self.pause / 10)
        finally:
            turn.answer.text = said
            turn.seconds["answer"] = 0.1
            self.context.append({"role": "assistant", "content": said})

    def clear_context(self):
        self.context = []

    def forget(self, what):
        found = self.find(what) if isinstance(what, str) else list(what)
        if found:
            self._step("; ".join(f"forgot: {each.text}" for each in found))
        for each in found:
            self.texts.pop(each.slot, None)
            self.counts["forgotten"] += 1
        return found

    def undo(self):
        if not self.steps:
            return []
        self.texts, self.counts, what = self.steps.pop()
        return [what]

    def held(self, most=100):
        newest = sorted(self.texts.items(), reverse=True)[:most]
        return [Recollection(text, 0.0, 0.0, 0.97, slot) for slot, text in newest]

    @property
    def capacity(self):
        load = sum(len(text) for text in self.texts.values()) / 16384
        counts = {name: self.counts[name] for name in ("written", "known", "evicted", "forgotten")}
        return Capacity(len(self.texts), self.slots, load, 1 / (1 + load), **counts, bytes=20_000)

    def save(self, path=None):
        data = json.dumps({"texts": self.texts, "counts": self.counts}).encode()
        target = Path(path or self.path)
        target.with_suffix(".part").write_bytes(data.ljust(20_000))
        target.with_suffix(".part").replace(target)
