"""What the training loops share: the learning rate over a run, stopping when asked to, and what goes wrong."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

Report = Callable[[dict[str, Any]], None]


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says at which step and on what."""


def rate_at(step: int, steps: int, warmup: float, lowest: float = 0.1) -> float:
    """The learning rate of a step (from 0) of `steps`, over the highest one: a rise, then a cosine.

    Args:
        step, steps: see above.
        warmup: share of all steps in which it rises.
        lowest: what it falls to.
    """
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return lowest + (1 - lowest) / 2 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Stop:
    """Whether SIGINT or SIGTERM has come; a context manager. The second of them acts as it would without this.

    with Stop() as stop:
        while not stop.asked: ...
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # only there can one listen
            self._before = {one: signal.signal(one, self._heard) for one in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before = {}
