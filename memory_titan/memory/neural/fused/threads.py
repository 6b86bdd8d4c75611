"""Heads side by side: on a CPU a chunk's products are too small to be shared out well, and whole heads are not.

Heads know nothing of each other, so each thread takes some of them through all chunks, one thread to a product. Against
two threads in every product that is about twice as fast at four heads (`docs/speed.md`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch

Result = TypeVar("Result")

_pool: ThreadPoolExecutor | None = None
_workers = 0


def head_groups(heads: int, device: torch.device) -> list[slice]:
    """`heads` shared out over the threads that torch may use; a single group off the CPU."""
    groups = min(heads, torch.get_num_threads()) if device.type == "cpu" else 1
    bounds = [heads * group // max(groups, 1) for group in range(groups + 1)]
    return [slice(begin, end) for begin, end in pairwise(bounds)] or [slice(0, heads)]


def side_by_side(function: Callable[[slice], Result], groups: list[slice]) -> list[Result]:
    """`function` of every group, without gradients; in as many threads as there are groups."""
    if len(groups) == 1:
        return [function(groups[0])]
    inference = torch.is_inference_mode_enabled()

    def run(group: slice) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return function(group)

    return list(_threads(len(groups)).map(run, groups))


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Within, this thread does its operations alone: those of a single token are too small to be shared out.

    On two threads a token took 2.2 ms where one takes 0.65 (four heads, width 256).
    """
    before = torch.get_num_threads() if wanted else 1
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _threads(count: int) -> ThreadPoolExecutor:
    global _pool, _workers
    if _pool is None or _workers < count:
        _pool, _workers = ThreadPoolExecutor(count, "memory-titan", initializer=_alone), count
    return _pool


def _alone() -> None:
    """A worker is one thread, and does not dwell on denormal numbers: what is so small is flushed here anyway."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _pool, _workers
    _pool, _workers = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
