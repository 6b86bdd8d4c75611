"""The line before the one model: first come, first served, on one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Line:
    """Runs work one piece at a time, in the order it came; everybody can see how many are before them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting: list[Future[Any]] = []  # the first is at work, or about to be
        self._lock = threading.Lock()

    def put(self, work: Callable[[], T]) -> Future[T]:
        """Join the line. What the work returns or raises is the future's; `cancel` leaves the line while it waits."""
        with self._lock:
            future = self._pool.submit(work)
            self._waiting.append(future)
        future.add_done_callback(self._leave)
        return future

    def before(self, future: Future[Any]) -> int:
        """How many come before this one; 0 when it is at work or done."""
        with self._lock:
            return self._waiting.index(future) if future in self._waiting else 0

    def close(self) -> None:
        """Let what is at work finish, send away who waits, and take no more."""
        self._pool.shutdown(cancel_futures=True)

    def _leave(self, future: Future[Any]) -> None:
        with self._lock:
            self._waiting.remove(future)
