"""The store's speed beside chromadb's and FAISS's: inserts, queries, opening, bytes, and what a search misses.

`memory-titan bench store` runs it. Each contender has a process of its own with one thread, and they take turns, so
that a busy machine slows all alike: ratios are of neighbours in time. The same texts and vectors go to each in the
same order; vectors are given, so that no embedding is timed.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memory_titan.benchmarks import store_child
from memory_titan.benchmarks.child import Child, ChildError
from memory_titan.benchmarks.measure import Spread
from memory_titan.benchmarks.store_data import FILTERS, PAGES, QUERIES, SINGLE, USERS, write_data

PEERS = {"chromadb": ("chromadb",), "faiss": ("faiss-hnsw", "faiss-flat")}  # as asked for: contenders
OURS, FILTERING = ("ours",), ("ours", "chromadb")
ROUNDS = 5  # turns of each contender in every measurement
CLOCKS = ((0, "wall"), (1, "cpu"))
QUERY_KINDS = ("query", "dense", *FILTERS)

OnStep = Callable[[str, int], None]


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    sizes: tuple[int, ...] = (1000, 10_000, 100_000)
    against: tuple[str, ...] = ()  # of PEERS
    dim: int = 384
    vectors: Path | None = None  # a .npy file of embeddings; None: made up
    peer_python: str = sys.executable  # who has chromadb
    long_term_size: int | None = None  # None: room for everything

    def __post_init__(self) -> None:
        if unknown := [name for name in self.against if name not in PEERS]:
            raise ValueError(f"against must be of {', '.join(PEERS)}; got {unknown[0]!r}")
        if not self.sizes or min(self.sizes) < 100:
            raise ValueError(f"sizes must be at least 100; got {', '.join(map(str, self.sizes)) or 'none'}")

    @property
    def contenders(self) -> tuple[str, ...]:
        """Ours first."""
        return "ours", *(name for peer in self.against for name in PEERS[peer])


@dataclass(frozen=True)
class StoreJob:
    """What a child has to open."""

    contender: str
    data: str
    path: str
    dim: int
    long_term_size: int
    users: int = USERS
    pages: int = PAGES
    threads: int = 1


def run(settings: Settings, on_step: OnStep = lambda label, done: None) -> dict[str, Any]:
    """Measure everything; the record is ready for JSON. A contender that fails is in it with its error."""
    started = time.perf_counter()
    sizes = [measure(size, settings, on_step) for size in settings.sizes]
    return {
        "benchmark": "store",
        "settings": asdict(settings) | {"vectors": settings.vectors and settings.vectors.name, "peer_python": None},
        "machine": {"cpus": os.cpu_count(), "system": platform.system(), "python": platform.python_version()},
        "seconds": time.perf_counter() - started,
        "sizes": sizes,
    }


def measure(size: int, settings: Settings, on_step: OnStep = lambda label, done: None) -> dict[str, Any]:
    """All samples of one size, and their summary."""
    samples: dict[str, dict[str, Any]] = {name: {} for name in settings.contenders}
    with tempfile.TemporaryDirectory(prefix="bench-store-") as temporary:
        data = Path(temporary)
        write_data(data, size, settings.dim, settings.vectors)
        dim = np.load(data / "queries.npy", mmap_mode="r").shape[1]
        jobs = {}
        for name in samples:
            (data / name).mkdir()
            room = settings.long_term_size or size + 2 * SINGLE
            jobs[name] = StoreJob(name, temporary, str(data / name), dim, room)

        with _children(jobs, samples, settings) as turn:
            for at in range(ROUNDS):
                on_step(f"{size} items: bulk insert, turn {at + 1}", 0)
                turn("bulk", do="add", begin=size * at // ROUNDS, end=size * (at + 1) // ROUNDS)
            for at in range(ROUNDS):
                on_step(f"{size} items: single insert, turn {at + 1}", 0)
                part = size + SINGLE * at // ROUNDS, size + SINGLE * (at + 1) // ROUNDS
                turn("single", do="add", begin=part[0], end=part[1], single=True)
            turn("warm", do="query", begin=0, end=10)
            for at in range(ROUNDS):
                part = QUERIES * at // ROUNDS, QUERIES * (at + 1) // ROUNDS
                on_step(f"{size} items: queries, turn {at + 1}", 0)
                turn("query", do="query", begin=part[0], end=part[1])
                turn("dense", do="query", begin=part[0], end=part[1], dense=True)
                for label, where in FILTERS.items():
                    turn(label, FILTERING, do="query", begin=part[0], end=part[0] + 15, where=where)
            turn("close", do="close")
        for at in range(ROUNDS):  # cold: a new process each time
            on_step(f"{size} items: opening, turn {at + 1}", 0)
            with _children(jobs, samples, settings, "opened") as turn:
                turn("first", do="query", begin=at, end=at + 1)
                if at == ROUNDS - 1:
                    turn("after", do="query", begin=10, end=60)
                    turn("resident", do="resident")
                    turn("reopen", OURS, do="reopen", durable=True)
                    turn("durable", OURS, do="add", begin=size, end=size + SINGLE // 3, single=True)
        truth = _exact(data, size)
    on_step(f"{size} items", 1)
    return {"size": size, "samples": samples, "summary": summarize(samples, truth)}


@contextmanager
def _children(
    jobs: dict[str, StoreJob], samples: dict[str, dict[str, Any]], settings: Settings, opened: str | None = None
) -> Iterator[Callable[..., None]]:
    """A process for each contender that has not failed; what is yielded lets each do something in turn."""
    with ExitStack() as stack:
        children: dict[str, Child] = {}

        def attempt(name: str, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            try:
                return action()
            except ChildError as error:
                samples[name]["error"] = str(error)
                children.pop(name, None)
                return {}

        for name, job in jobs.items():
            if "error" in samples[name]:
                continue
            python = settings.peer_python if name == "chromadb" else sys.executable
            start = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
            # -c, as a file's folder would come first in where modules are looked for
            child = children[name] = stack.enter_context(Child(job, (python, "-c", start, store_child.__file__)))
            facts = attempt(name, child.facts)
            samples[name]["version"] = facts.get("version")
            if opened is not None and facts:
                samples[name].setdefault(opened, []).append(facts["opened"])
                samples[name].setdefault("imported", []).append(facts["imported"])

        def turn(label: str, only: tuple[str, ...] = tuple(jobs), **order: Any) -> None:
            for name, child in list(children.items()):
                if name in only:
                    answer = attempt(name, lambda child=child: child.turn(**order))  # type: ignore[misc]
                    if answer:
                        samples[name].setdefault(label, []).append(answer)

        yield turn


def summarize(samples: dict[str, dict[str, Any]], truth: list[list[str]]) -> dict[str, dict[str, Any]]:
    """Figures of each contender; beside times, how many times ours a contender took (median of turns, CPU and wall)."""
    result: dict[str, dict[str, Any]] = {}
    for name, sample in samples.items():
        figures: dict[str, Any] = {"version": sample.get("version"), "error": sample.get("error")}
        for label in ("bulk", "single", "durable", *QUERY_KINDS):
            if label in sample:
                ours = samples["ours"].get(label, [])
                figures[label] = {
                    **_latency(sample[label]),
                    "x ours, CPU": _ratio([s["cpu"] for s in sample[label]], [s["cpu"] for s in ours]),
                    "x ours, wall": _ratio([sum(s["walls"]) for s in sample[label]], [sum(s["walls"]) for s in ours]),
                }
        if "bulk" in sample:
            figures["bulk"]["items"] = sum(len(s["walls"]) for s in sample["bulk"])
        if "dense" in sample:
            found = [hits for s in sample["dense"] for hits in s["found"]]
            shared = [len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=False)]
            figures["recall"] = float(np.mean(shared))
        if "close" in sample:
            figures["bytes"] = sample["close"][0]["bytes"]
        if len(sample.get("first", [])) == ROUNDS:
            answered = [o[0] + f["walls"][0] for o, f in zip(sample["opened"], sample["first"], strict=True)]
            cpu = [o[1] + f["cpu"] for o, f in zip(sample["opened"], sample["first"], strict=True)]
            figures["open"] = {"wall": Spread.of(answered).median, "cpu": Spread.of(cpu).median}
        if "imported" in sample:
            figures["import"] = {clock: Spread.of([s[n] for s in sample["imported"]]).median for n, clock in CLOCKS}
        if "resident" in sample:
            figures["resident"] = sample["resident"][0]["resident"]
        result[name] = figures
    return result


def _latency(turns: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds: percentiles of wall time over all calls, and CPU a call (median of turns); totals in seconds."""
    walls = 1e3 * np.array([wall for turn in turns for wall in turn["walls"]])
    cpu = [1e3 * turn["cpu"] / len(turn["walls"]) for turn in turns]
    return {
        "p50": float(np.percentile(walls, 50)),
        "p99": float(np.percentile(walls, 99)),
        "cpu": Spread.of(cpu).median,
        "wall s": float(walls.sum() / 1e3),
        "cpu s": float(sum(turn["cpu"] for turn in turns)),
    }


def _ratio(above: list[float], below: list[float]) -> float | None:
    spread = Spread.of_ratios(above, below)
    return None if spread is None else spread.median


def _exact(data: Path, size: int) -> list[list[str]]:
    """Ids of the nearest by comparing all that was there at the queries."""
    vectors, queries = np.load(data / "vectors.npy", mmap_mode="r")[: size + SINGLE], np.load(data / "queries.npy")
    cosines = queries @ np.asarray(vectors).T
    return [[str(n) for n in row] for row in np.argsort(-cosines, axis=1)[:, : store_child.TOP]]
