"""What reading, recalling and beginning to answer take: medians, each beside what the bare model takes for the like.

Both sides are timed in turn on the same text, so that what else the machine is doing falls on both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from memory_titan.hybrid.engine import CANDIDATES
from memory_titan.hybrid.frozen import FrozenModel
from memory_titan.hybrid.speaking import speak

TURNS, QUESTIONS = 60, 20


def time_engine(frozen: FrozenModel, engine: Any, turns: Sequence[str], questions: Sequence[str]) -> dict[str, Any]:
    """Seconds, medians: of reading a turn, of recalling, to the first token.

    Args:
        engine: with something in it; it reads on.
        turns: not read before.
        questions: about what it holds.

    Returns:
        "reading", "prefill" (the bare model's of the same turn, in its chat format), "reading_ratio" (median of the
        turns' ratios), "recall", of it "address", "lookup" and "evidence", "first" and "first_bare" (from the question
        to the first token of the answer, with memory and without).
    """
    engine.read(turns[0])  # what happens only once has happened
    _prefill(frozen, turns[0])
    pairs = [(_seconds(engine.read, text), _seconds(_prefill, frozen, text)) for text in turns[1:TURNS]]
    found: dict[str, Any] = {
        "turns": len(pairs),
        "reading": statistics.median(reading for reading, _ in pairs),
        "prefill": statistics.median(prefill for _, prefill in pairs),
        "reading_ratio": statistics.median(reading / prefill for reading, prefill in pairs),
    }
    asked = list(questions[:QUESTIONS])
    engine.recall(asked[0])
    rows = [_recall(engine, question) | _first(frozen, engine, question) for question in asked]
    return found | {"questions": len(rows)} | {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _recall(engine: Any, question: str) -> dict[str, float]:
    """Seconds of the whole, and of its parts by themselves; evidence is what is left."""
    whole = _seconds(engine.recall, question)
    started = time.perf_counter()
    address = engine.addresser([engine.encode(question)])[0]
    addressed = time.perf_counter()
    for slot, _ in engine.memory.find(address, CANDIDATES):
        engine.memory.read(slot)
    parts = {"address": addressed - started, "lookup": time.perf_counter() - addressed}
    return {"recall": whole, **parts, "evidence": max(0.0, whole - sum(parts.values()))}


def _first(frozen: FrozenModel, engine: Any, question: str) -> dict[str, float]:
    """Seconds to the first piece of an answer in an empty context."""
    engine.clear_context()
    started = time.perf_counter()
    talking = engine.chat(question, max_tokens=4, learn=False)
    next(talking, None)
    first = time.perf_counter() - started
    talking.close()
    started = time.perf_counter()
    list(speak(frozen, frozen.prompt([{"role": "user", "content": question}]), 1))
    return {"first": first, "first_bare": time.perf_counter() - started}


@torch.no_grad()
def _prefill(frozen: FrozenModel, text: str) -> None:
    """The bare model reads a turn in the middle of a conversation, so that it could answer."""
    opening, closing = frozen.user_turn
    ids = torch.tensor([[*opening, *frozen.encode(text), *closing]], device=frozen.device)
    frozen.model.base_model(input_ids=ids, use_cache=True)


def _seconds(work: Callable[..., object], *given: object) -> float:
    started = time.perf_counter()
    work(*given)
    return time.perf_counter() - started
