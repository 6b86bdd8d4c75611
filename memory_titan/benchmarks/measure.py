"""The instruments of a benchmark: two clocks, the resident high-water mark, medians of ratios."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Times = tuple[float, float]  # wall seconds, CPU seconds of all threads of the process

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def timed(call: Callable[[], Any]) -> Times:
    """Run `call` once between both clocks. Garbage of earlier calls is collected before, not within."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def resident() -> int | None:
    """Bytes this process holds in memory now; where the system cannot tell, the most it ever held."""
    now = _status("VmRSS")
    return high_water() if now is None else now


def high_water() -> int | None:
    """The most bytes this process held in memory; None where the system has no such figure."""
    mark = _status("VmHWM")
    if mark is not None:
        return mark
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, the others kilobytes


def release() -> None:
    """Give the memory that is free back to the system, where its allocator can (glibc's): it keeps it otherwise."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def stay_within(share: float) -> None:
    """Let an allocation fail that would take this process over a share of the memory now available (Linux).

    Without it a machine comes to a standstill, with all that runs there, before the system ends anything.
    """
    try:
        import resource

        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        limit = int(share * available)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    except (ImportError, OSError, StopIteration, ValueError):
        return


class HighWater:
    """How far memory rises from now on.

    Linux lets a process put its high-water mark back to what it holds (a 5 into clear_refs). Elsewhere the mark stays
    where it is, and only what rises above it is seen: too little, never too much.
    """

    def __init__(self) -> None:
        gc.collect()
        try:
            _CLEAR.write_text("5")
            self._start = resident()
        except OSError:
            self._start = high_water()

    def growth(self) -> int | None:
        """Bytes by which the mark lies above the start."""
        mark = high_water()
        return None if mark is None or self._start is None else max(0, mark - self._start)


@dataclass(frozen=True)
class Spread:
    """A median and the range around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratios(cls, above: Sequence[float], below: Sequence[float]) -> Spread | None:
        """Of above/below, pair by pair; None without a pair.

        The pairs are neighbours in time: what slows the machine for a while slows both, and their ratio stays.
        """
        ratios = [a / b for a, b in zip(above, below, strict=False) if b > 0]
        return cls.of(ratios) if ratios else None


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
