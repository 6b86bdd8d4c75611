"""The tasks over tokens by name, and as the settings that a model's configuration keeps of what it was trained on.

model.config.task = settings(StreamTask(length=2048))     # {"name": "niah", "length": 2048, ...}, in config.json
task = from_settings(model.config.task, length=1 << 20)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from memory_titan.tasks.hop_stream import HopTask
from memory_titan.tasks.mqar import MQARTask
from memory_titan.tasks.needle_stream import StreamTask

TokenTask = MQARTask | StreamTask | HopTask
TOKEN_TASKS: dict[str, type[MQARTask] | type[StreamTask] | type[HopTask]] = {
    "mqar": MQARTask,
    "niah": StreamTask,
    "hashhop": HopTask,
}


def settings(task: TokenTask) -> dict[str, Any]:
    """All fields of a task and its name, for JSON."""
    name = next(name for name, kind in TOKEN_TASKS.items() if type(task) is kind)
    found = asdict(task)
    return {"name": name, **{key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}}


def from_settings(given: Mapping[str, Any], **changes: Any) -> TokenTask:
    """A task of the settings, some of them changed.

    Raises:
        ValueError: no such task, no such field, or a task that cannot be.
    """
    name = given.get("name")
    if name not in TOKEN_TASKS:
        raise ValueError(f"a task's name must be one of {', '.join(TOKEN_TASKS)}; got {name!r}")
    kind = TOKEN_TASKS[str(name)]
    chosen = {**{key: value for key, value in given.items() if key != "name"}, **changes}
    known = {field.name for field in fields(kind)}
    if foreign := sorted(set(chosen) - known):
        raise ValueError(f"task {name} has no {foreign[0]}; it has {', '.join(sorted(known))}")
    return kind(**chosen)
