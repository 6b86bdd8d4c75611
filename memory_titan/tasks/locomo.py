"""Conversations in the layout of LoCoMo (A. Maharana et al., arXiv 2402.17753), read from a file that the user has.

    [{"sample_id": "conv-1",
      "conversation": {"speaker_a": "Ann", "speaker_b": "Bob",
                       "session_1_date_time": "1:56 pm on 8 May, 2023",
                       "session_1": [{"speaker": "Ann", "dia_id": "D1:1", "text": "Hi!"}, ...], ...},
      "qa": [{"question": "...", "evidence": ["D1:3"], "answer": "...", "category": 2}, ...]}]

Several ids may stand in one string of evidence, and some name no turn. Captions of pictures are left out.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from memory_titan.tasks.conversations import Conversation, Question, Session, Turn, read_conversations

_SESSION = re.compile(r"session_(\d+)")
_ID = re.compile(r"D\s*:?\s*(\d+)\s*:\s*(\d+)", re.IGNORECASE)
_TIMES = ("%I:%M %p on %d %B, %Y", "%I:%M %p on %d %B %Y", "%H:%M on %d %B, %Y")


def read_any(path: str | Path) -> list[Conversation]:
    """Conversations of a file: JSON lines as `read_conversations` reads them, or LoCoMo's list of objects.

    Raises:
        ValueError: it is neither.
    """
    with Path(path).open(encoding="utf-8") as file:
        start = file.read(4096).lstrip()
    return read_locomo(path) if start.startswith("[") else read_conversations(path)


def read_locomo(path: str | Path) -> list[Conversation]:
    """Conversations of a file in LoCoMo's layout.

    Questions none of whose evidence is in the conversation are left out.

    Raises:
        ValueError: it is no JSON, or not of that layout.
    """
    try:
        samples = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(samples, list) or not samples:
            raise TypeError("it is no list of samples")
        return [_conversation(sample, number) for number, sample in enumerate(samples, 1)]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not in LoCoMo's layout, a list of objects with conversation and qa: {error!r}"
        ) from error


def _conversation(sample: dict[str, Any], number: int) -> Conversation:
    talk = sample["conversation"]
    keys = sorted((int(found[1]), key) for key in talk if (found := _SESSION.fullmatch(key)))
    sessions = []
    for session, key in keys:
        turns, seen = [], set[str]()
        for place, turn in enumerate(talk[key] or [], 1):
            name = _name(str(turn.get("dia_id", ""))) or f"D{session}:{place}"
            if name not in seen:
                seen.add(name)
                turns.append(Turn(name, str(turn["speaker"]), str(turn.get("text") or "")))
        sessions.append(Session(key, tuple(turns), _time(talk.get(f"{key}_date_time"))))
    known = {turn.id for session in sessions for turn in session.turns if turn.text.strip()}
    questions = tuple(
        Question(
            str(asked["question"]),
            evidence,
            tuple(str(asked[key]) for key in ("answer",) if asked.get(key) is not None),
            category=None if asked.get("category") is None else str(asked["category"]),
        )
        for asked in sample["qa"]
        if (evidence := _evidence(asked.get("evidence"), known))
    )
    return Conversation(str(sample.get("sample_id", number)), tuple(sessions), questions)


def _evidence(given: Any, known: set[str]) -> tuple[str, ...]:
    """Ids of turns that there are, each once, in order."""
    strings = [given] if isinstance(given, str) else given or []
    named = (f"D{int(a)}:{int(b)}" for string in strings for a, b in _ID.findall(str(string)))
    return tuple(dict.fromkeys(name for name in named if name in known))


def _name(given: str) -> str | None:
    found = _ID.search(given)
    return f"D{int(found[1])}:{int(found[2])}" if found else None


def _time(given: Any) -> str | None:
    """ISO 8601; None for what is no time."""
    for form in _TIMES:
        try:
            return datetime.strptime(str(given).strip(), form).isoformat()
        except ValueError:
            continue
    return None
