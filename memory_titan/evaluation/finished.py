"""Finished jobs of a long run in a file, so that it goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Finished:
    """A file with a line of settings, and then a line a job.

    Args:
        path: of the file, made if it is not there; None: nothing is kept.
        settings: JSON-able; all that a job's result depends on.

    Raises:
        ValueError: the file holds jobs of other settings.
    """

    def __init__(self, path: Path | None, settings: Record) -> None:
        self.path, self.jobs = path, dict[str, Record]()
        setup = json.loads(json.dumps(settings))
        if path is None:
            return
        if path.exists():
            first, *lines = path.read_text("utf-8").splitlines()
            if json.loads(first) != setup:
                raise ValueError(f"{path} holds runs of other settings; move it away")
            self.jobs = {line["name"]: line["run"] for line in map(json.loads, lines)}
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(setup) + "\n", "utf-8")

    def get(self, name: str, make: Callable[[], Record]) -> Record:
        """The result of the job of this name, done if need be; as it reads back from JSON."""
        if name not in self.jobs:
            self.jobs[name] = json.loads(json.dumps(make()))
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"name": name, "run": self.jobs[name]}) + "\n")
        return self.jobs[name]
