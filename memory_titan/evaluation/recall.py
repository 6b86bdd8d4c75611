"""Facts read once, asked for later in other words, out of the memory's weights alone.

    read      302 ordinary sentences with the facts strewn among them, one by one; save; load into a new memory
    ask       each fact's question, with an empty context            right: the answer holds an accepted span
    general   questions that no fact bears on                        unchanged: word for word the bare model's answer
    unknown   questions about things like the facts, in none of them silent: the memory does not speak

The `dev` facts were looked at while the memory was built; the `test` facts were written apart, by somebody else, and
were not looked at. `memory-titan evaluate recall --split test` runs it.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from memory_titan.hybrid.answer import answer_bare
from memory_titan.hybrid.engine import HybridEngine
from memory_titan.hybrid.frozen import FrozenModel

MAX_TOKENS = 40


@dataclass
class RecallItem:
    """A fact, the question asked for it, and the spans that count as right."""

    fact: str
    question: str
    answer: list[str]
    form: str = ""


@dataclass
class RecallData:
    """What is read and asked."""

    items: list[RecallItem]
    general: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    ordinary: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What came of one fact: the answer, and if it was wrong, at which step it failed."""

    item: RecallItem
    answer: str
    right: bool
    failure: str  # "" | address | evidence | threshold | reading
    recalled: str
    evidence: float
    without: str | None = None  # the bare model's answer; None: not asked
    right_without: bool = False


@dataclass
class RecallReport:
    """All outcomes, and the seconds that reading and asking took."""

    outcomes: list[Outcome]
    general: list[tuple[str, str, str]]  # question, bare answer, answer with memory
    unknown: list[tuple[str, bool, str]]  # question, whether the memory spoke, answer
    sentences: int
    seconds_reading: float
    seconds_asking: float

    @property
    def right(self) -> int:
        return sum(outcome.right for outcome in self.outcomes)

    @property
    def right_without(self) -> int | None:
        """None if the facts were not asked without memory."""
        if any(outcome.without is None for outcome in self.outcomes):
            return None
        return sum(outcome.right_without for outcome in self.outcomes)

    @property
    def changed(self) -> int:
        return sum(bare != answer for _, bare, answer in self.general)

    def summary(self) -> dict[str, Any]:
        """The figures, for JSON."""
        failures = [outcome.failure for outcome in self.outcomes if outcome.failure]
        return {
            "facts": len(self.outcomes),
            "right": self.right,
            "right_without_memory": self.right_without,
            "failed_at": {name: failures.count(name) for name in sorted(set(failures))},
            "general": len(self.general),
            "general_changed": self.changed,
            "unknown": len(self.unknown),
            "unknown_spoken_to": sum(spoke for _, spoke, _ in self.unknown),
            "sentences_read": self.sentences,
            "sentences_per_second": round(self.sentences / max(self.seconds_reading, 1e-9), 1),
            "seconds_per_question": round(self.seconds_asking / max(1, len(self.outcomes)), 2),
        }


def is_right(answer: str, accepted: list[str]) -> bool:
    """Whether an accepted span stands in the answer, as whole words, in any case."""
    return any(re.search(rf"(?<!\w){re.escape(span.lower())}(?!\w)", answer.lower()) for span in accepted)


def load_recall_data(split: str) -> RecallData:
    """The committed data: "dev" or "test"."""
    rows = _rows(f"recall_{split}.jsonl")
    items = [RecallItem(row["fact"], row["question"], row["answer"], row["form"]) for row in rows]
    general = [row["question"] for row in _rows(f"general_{split}.jsonl")]
    unknown = [row["question"] for row in _rows(f"unknown_{split}.jsonl")]
    ordinary = resources.files("memory_titan.hybrid").joinpath("data", "ordinary.txt").read_text("utf-8").splitlines()
    return RecallData(items, general, unknown, [line for line in ordinary if line.strip()])


def evaluate_recall(
    frozen: FrozenModel,
    data: RecallData,
    bare: bool = True,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda label: None,
) -> RecallReport:
    """Run the evaluation on one frozen model.

    Args:
        frozen: the model.
        data: what to read and ask.
        bare: also ask without memory, to know what could be guessed.
        seed: of the order in which things are read.
        on_step: called after each sentence or question, with a word on what was done (a progress bar).
    """
    texts = [item.fact for item in data.items] + data.ordinary
    random.Random(seed).shuffle(texts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recall.mem"
        engine = HybridEngine(frozen, path)
        started, count = time.perf_counter(), 0
        for _ in engine.read_stream(texts, everything=True):
            count += 1
            on_step("reading")
        seconds_reading = time.perf_counter() - started
        engine.save()
        engine = HybridEngine(frozen, path)

    started, outcomes = time.perf_counter(), []
    for item in data.items:
        outcomes.append(_ask(engine, item))
        on_step("asking")
    seconds_asking = time.perf_counter() - started
    if bare:
        for outcome in outcomes:
            outcome.without = engine.ask(outcome.item.question, use_memory=False, max_tokens=MAX_TOKENS).text
            outcome.right_without = is_right(outcome.without, outcome.item.answer)
            on_step("asking without memory")

    general = []
    for question in data.general:
        general.append(
            (question, answer_bare(frozen, question, MAX_TOKENS), engine.ask(question, max_tokens=MAX_TOKENS).text)
        )
        on_step("general questions")
    unknown = []
    for question in data.unknown:
        said = engine.ask(question, max_tokens=MAX_TOKENS)
        unknown.append((question, said.spoke, said.text))
        on_step("unknown things")
    return RecallReport(outcomes, general, unknown, count, seconds_reading, seconds_asking)


def _ask(engine: HybridEngine, item: RecallItem) -> Outcome:
    said = engine.ask(item.question, max_tokens=MAX_TOKENS)
    right = is_right(said.text, item.answer)
    best = said.considered[0] if said.considered else None
    failure = ""
    if not right:
        if not any(is_right(each.text, item.answer) for each in said.considered):
            failure = "address"
        elif not said.spoke:
            failure = "threshold"
        elif not any(is_right(each.text, item.answer) for each in said.used):
            failure = "evidence"
        else:
            failure = "reading"
    return Outcome(item, said.text, right, failure, best.text if best else "", best.evidence if best else 0.0)


def _rows(name: str) -> list[dict[str, Any]]:
    text = resources.files("memory_titan.evaluation").joinpath("data", name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]
