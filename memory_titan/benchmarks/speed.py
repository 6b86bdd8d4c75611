"""The speed of `NeuralMemory`, beside the machine's own rate and, if asked, titans-pytorch.

`memory-titan bench memory` runs it. At every point each contender gets a fresh process, and they take turns (ours,
peer, ours, peer ...): a shared machine's speed changes within seconds, so times are compared with their neighbours'
only, and what is reported is the median of these ratios. This process never imports the peer.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from memory_titan import __version__
from memory_titan.benchmarks.child import Child, ChildError, Job
from memory_titan.benchmarks.measure import Spread
from memory_titan.benchmarks.ours import CHECKPOINT, can_recompute
from memory_titan.benchmarks.work import CHUNK, DEPTH, EXPANSION, flops_per_token

KINDS = ("forward", "training", "token", "stream")
BASES = ("ours-exact", "ours-anchored")  # the others' times are given as multiples of these

_EXTRA_SECONDS, _EXTRA_TIMES = 4.0, 4  # a short point takes more turns: this long, but no more than so many times
_PREFIX = 16_384  # tokens read before single tokens are timed (and a sixteenth of it, for comparison)

OnStep = Callable[[str, int], None]  # what is going on, points done by it


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    dims: tuple[int, ...] = (256, 384)
    heads: tuple[int, ...] = (1, 4)
    tokens: tuple[int, ...] = (4096, 8192)
    repeats: int = 3  # turns of each contender at a point, at the least
    threads: int = 2
    only: str | None = None  # one of KINDS
    peer: bool = False
    stream_tokens: int = 1_000_000

    def __post_init__(self) -> None:
        for dim in self.dims:
            if any(dim % heads for heads in self.heads):
                raise ValueError(f"every dim must be a multiple of every number of heads; {dim} is not ({self.heads})")
        if self.only is not None and self.only not in KINDS:
            raise ValueError(f"only must be one of {', '.join(KINDS)}; got {self.only!r}")


@dataclass(frozen=True)
class Point:
    """One place at which all contenders are measured."""

    kind: str  # one of KINDS, or recompute
    dim: int
    heads: int
    tokens: int
    contenders: tuple[str, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.kind}, dim {self.dim}, heads {self.heads}, {self.tokens} tokens"


def points(settings: Settings) -> list[Point]:
    """All points, in the order in which they are measured."""
    four = ("ours-exact", "peer-chunked", "ours-anchored", "peer-default") if settings.peer else BASES
    found = [
        Point(kind, dim, heads, tokens, ("products", *four))
        for kind in ("forward", "training")
        for dim in settings.dims
        for heads in settings.heads
        for tokens in settings.tokens
    ]
    small = min(settings.dims)
    if can_recompute():
        three = ("ours-exact", "ours-recompute", "ours-pieces")
        found += [Point("recompute", small, heads, max(settings.tokens), three) for heads in settings.heads]
    found += [Point("token", small, heads, _PREFIX, four) for heads in settings.heads]
    for heads, dtype in [(max(settings.heads), "bfloat16"), *((heads, "float32") for heads in settings.heads)]:
        found.append(Point("stream", small, heads, settings.stream_tokens, ("ours-exact",), dtype))
    shown = {settings.only, "recompute"} if settings.only == "training" else {settings.only}
    return [point for point in found if settings.only is None or point.kind in shown]


def run(settings: Settings, on_step: OnStep = lambda label, done: None) -> dict[str, Any]:
    """Measure everything; the record is ready for JSON. A contender that fails is in it with its error."""
    versions = {name: version(name) for name in ("torch", "numpy")}
    versions |= {"python": platform.python_version(), "memory-titan": __version__}
    if settings.peer:
        try:
            with Child(Job("peer-chunked", "probe", 64, 1, 0, settings.threads)) as child:
                versions["titans-pytorch"] = child.facts()["version"]
        except ChildError as error:
            raise ValueError(str(error)) from None
    started = time.perf_counter()
    measured = [measure(point, settings, on_step) for point in points(settings)]
    return {
        "benchmark": "memory",
        "command": _command(settings),
        "settings": asdict(settings)
        | {"depth": DEPTH, "expansion": EXPANSION, "chunk_size": CHUNK, "checkpoint": CHECKPOINT, "batch": 1},
        "versions": versions,
        "machine": {"cpu": _cpu_name(), "cpus": os.cpu_count(), "system": platform.system()},
        "seconds": time.perf_counter() - started,
        "points": measured,
    }


def measure(point: Point, settings: Settings, on_step: OnStep = lambda label, done: None) -> dict[str, Any]:
    """All samples of one point, and their summary."""
    results: dict[str, dict[str, Any]] = {name: {"samples": [], "error": None} for name in point.contenders}
    kind = "training" if point.kind == "recompute" else point.kind
    with ExitStack() as stack:
        children: dict[str, Child] = {}

        def attempt(name: str, action: Callable[[], Any]) -> Any:
            try:
                return action()
            except ChildError as error:
                results[name]["error"] = str(error)
                children.pop(name, None)
                return None

        on_step(f"{point}: starting", 0)
        for name in point.contenders:  # all start at once, and no turn is taken before the last one is ready
            job = Job(name, kind, point.dim, point.heads, point.tokens, settings.threads, point.dtype)
            child = attempt(name, lambda job=job: stack.enter_context(Child(job)))  # type: ignore[misc]
            if child is not None:
                children[name] = child
        for name, child in list(children.items()):

            def progress(done: int) -> None:
                on_step(f"{point}, {point.dtype}: {done} read", 0)

            results[name]["facts"] = attempt(name, lambda child=child: child.facts(progress))  # type: ignore[misc]
        started, rounds = time.perf_counter(), 0
        while children and (
            rounds < settings.repeats
            or (time.perf_counter() - started < _EXTRA_SECONDS and rounds < _EXTRA_TIMES * settings.repeats)
        ):
            rounds += 1
            for name, child in list(children.items()):
                on_step(f"{point}: {name}, turn {rounds}", 0)
                sample = attempt(name, child.turn)
                if sample is not None:
                    results[name]["samples"].append(sample)
    on_step(str(point), 1)
    record = asdict(point) | {"results": results}
    return record | {"summary": summarize(record)}


def summarize(record: dict[str, Any]) -> dict[str, Any]:
    """Medians with their range of one point: times, times against ours, share of the machine's rate, flatness."""
    results = {name: result for name, result in record["results"].items() if result["samples"]}
    rates = [results["products"]["facts"]["flops"] / wall for wall in _times(results, "products", "products", "wall")]
    summary: dict[str, Any] = {}
    for name, result in results.items():
        parts = list(result["samples"][0]["times"])
        each: dict[str, Any] = {"parts": {}, "peak": result["samples"][0].get("peak")}
        for part in parts:
            each["parts"][part] = {
                clock: asdict(Spread.of(_times(results, name, part, clock))) for clock in ("wall", "cpu")
            }
            for base in BASES:
                each["parts"][part][base] = {
                    clock: _ratio(_times(results, name, part, clock), _times(results, base, part, clock))
                    for clock in ("wall", "cpu")
                }
        if len(parts) == 2 and record["kind"] in ("token", "stream"):
            early, late = parts
            each["late over early"] = {
                clock: _ratio(_times(results, name, late, clock), _times(results, name, early, clock))
                for clock in ("wall", "cpu")
            }
        if name in BASES and rates:
            flops = point_flops(record, exact=name == "ours-exact")
            each["share"] = {
                part: _ratio([flops / wall for wall in _times(results, name, part, "wall")], rates) for part in parts
            }
        if name == "products":
            each["rate"] = asdict(Spread.of(rates))
        summary[name] = each
    return summary


def point_flops(record: dict[str, Any], exact: bool) -> int:
    """FLOPs by the formula at a point; a backward pass counts as two forward ones."""
    width = record["dim"] // record["heads"]
    each = flops_per_token(width, EXPANSION * width, exact=exact)
    return each * record["heads"] * record["tokens"] * (1 if record["kind"] == "forward" else 3)


def _times(results: dict[str, Any], name: str, part: str, clock: str) -> list[float]:
    samples = results[name]["samples"] if name in results else []
    return [sample["times"][part][clock == "cpu"] for sample in samples if part in sample["times"]]


def _ratio(above: list[float], below: list[float]) -> dict[str, float] | None:
    spread = Spread.of_ratios(above, below)
    return None if spread is None else asdict(spread)


def _command(settings: Settings) -> str:
    """The command that measures this again."""
    words, default = ["memory-titan bench memory"], Settings()
    words += ["--against titans-pytorch"] if settings.peer else []
    for option, name in (("dim", "dims"), ("heads", "heads"), ("tokens", "tokens")):
        if getattr(settings, name) != getattr(default, name):
            words += [f"--{option} {value}" for value in getattr(settings, name)]
    for name in ("repeats", "threads", "only", "stream_tokens"):
        if getattr(settings, name) != getattr(default, name):
            words.append(f"--{name.replace('_', '-')} {getattr(settings, name)}")
    return " ".join(words)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
