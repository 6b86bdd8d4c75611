"""The speed of whole language models: a training step, and single tokens behind contexts of up to a million.

`memory-titan bench model` runs it. Each contender has a process of its own; they take turns (a, b, c, a, ...), and a
ratio is the median of those to the neighbour in time: a shared machine's speed changes within seconds. CPU time of
all threads counts; wall time is in the record.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from memory_titan.benchmarks import model_child
from memory_titan.benchmarks.child import Child, ChildError
from memory_titan.benchmarks.measure import Spread, Times
from memory_titan.models import (
    RecurrentConfig,
    RecurrentForCausalLM,
    TitansConfig,
    TitansForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)
from memory_titan.models.size import parameter_count, width_of_size

ARCHITECTURES = ("lmm", "mac", "mag", "mal")
KINDS = ("training", "decoding")
SIZED = "mag"  # baselines of which there is one have its number of parameters
OnStep = Callable[[str, int], None]  # what is going on, parts done by it


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    segment: int = 128  # and the window
    tokens: int = 1024  # of a training step
    batches: tuple[int, ...] = (1, 4)
    contexts: tuple[int, ...] = (128, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
    farthest: tuple[str, ...] = ("lmm",)  # these read all contexts, the others up to `far`
    far: int = 65_536
    full: int = 262_144  # the longest cache that full attention is given
    peer_contexts: tuple[int, ...] = (128, 1024, 4096)
    calls: int = 128  # single tokens timed together: a segment, two chunks of the memory
    repeats: int = 5  # turns, after one that does not count
    threads: int = 1
    vocab: int = 256
    only: str | None = None  # of KINDS
    peer: bool = False
    peer_python: str = sys.executable  # who has the peer

    def __post_init__(self) -> None:
        if self.only is not None and self.only not in KINDS:
            raise ValueError(f"only must be one of {', '.join(KINDS)}; got {self.only!r}")
        if self.repeats < 1 or self.threads < 1:
            raise ValueError(f"repeats and threads must be at least 1; got {self.repeats} and {self.threads}")
        if list(self.contexts) != sorted(set(self.contexts)) or not self.contexts or self.contexts[0] < 1:
            raise ValueError(f"contexts must grow, from at least 1; got {self.contexts}")


@dataclass(frozen=True)
class Job:
    """What a child has to time."""

    name: str
    model: str  # a class of memory_titan.models, or "peer"
    config: str
    options: dict[str, Any]
    threads: int
    vocab: int
    kind: str = "training"
    batch: int = 1
    tokens: int = 1
    contexts: Sequence[int] = field(default=())
    calls: int = 1
    filled: bool = False  # the context is a state of random keys, not a text that was read


def contenders(settings: Settings) -> dict[str, Job]:
    """All by name, of equal size where they can be. Raises ValueError for sizes that cannot be."""
    base: dict[str, Any] = {
        "vocab_size": settings.vocab,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
    }
    common: dict[str, Any] = {"threads": settings.threads, "vocab": settings.vocab, "tokens": settings.tokens}

    def titans(name: str, architecture: str, **options: Any) -> Job:
        given = {**base, "hidden_size": settings.hidden, "architecture": architecture, **options}
        given |= {"segment": settings.segment, "window": settings.segment}
        TitansConfig(**given)
        return Job(name, "TitansForCausalLM", "TitansConfig", given, **common)

    found = {name: titans(name, name) for name in ARCHITECTURES}
    sizes = {}
    with torch.device("meta"):
        for name, job in found.items():
            sizes[name] = parameter_count(TitansForCausalLM(TitansConfig(**job.options)))

    def baseline(name: str, size: int, model: Any, config: Any, multiple: int, **options: Any) -> Job:
        width = width_of_size(lambda n: model(config(**base, **options, hidden_size=n)), size, multiple)
        given = {**base, **options, "hidden_size": width}
        return Job(name, model.__name__, config.__name__, given, **common)

    attention = TransformerForCausalLM, TransformerConfig, 2 * settings.heads
    for name in ARCHITECTURES:
        at = f"window, as {name}"
        found[at] = baseline(at, sizes[name], *attention, window=settings.segment)
    found["full"] = baseline("full", sizes[SIZED], *attention)
    found["lstm"] = baseline("lstm", sizes[SIZED], RecurrentForCausalLM, RecurrentConfig, 8)
    every_other = list(range(1, settings.layers, 2))
    found["mac, two memories"] = titans("mac, two memories", "mac", memory_layers=every_other)
    one_head = {"memory_layers": every_other, "memory_options": {"heads": 1}}
    found["mac, two memories of one head"] = titans("mac, two memories of one head", "mac", **one_head)
    if settings.peer:
        given = {
            "num_tokens": settings.vocab,
            "dim": settings.hidden,
            "depth": settings.layers,
            "segment_len": settings.segment,
            "neural_memory_layers": [layer + 1 for layer in every_other],
        }
        for name, more in (("peer", {}), ("peer, chunked", {"neural_memory_batch_size": settings.segment})):
            found[name] = Job(name, "peer", "", given | more, **common)
    return found


def run(settings: Settings, on_step: OnStep = lambda label, done: None) -> dict[str, Any]:
    """Measure everything; the record is ready for JSON. A contender that fails is in it with its error."""
    started = time.perf_counter()
    record: dict[str, Any] = {
        "benchmark": "model",
        "settings": asdict(settings) | {"peer_python": None},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": {"cpus": os.cpu_count(), "system": platform.system()},
        "training": [],
        "decoding": None,
    }
    jobs = contenders(settings)
    if settings.only != "decoding":
        for batch in settings.batches:
            each = {name: replace(job, batch=batch) for name, job in jobs.items()}
            record["training"].append({"batch": batch, "contenders": take_turns(each, settings, on_step)})
            on_step(f"training, batch {batch}", 1)
    if settings.only != "training":
        record["decoding"] = take_turns(decoders(jobs, settings), settings, on_step)
        on_step("decoding", 1)
    record["seconds"] = time.perf_counter() - started
    return record


def parts(settings: Settings) -> int:
    """How often `run` says that a part is done."""
    return (settings.only != "decoding") * len(settings.batches) + (settings.only != "training")


def decoders(jobs: dict[str, Job], settings: Settings) -> dict[str, Job]:
    """Those of `contenders` whose tokens are timed one by one, each with its contexts."""
    chosen = {name: jobs[name] for name in (*ARCHITECTURES, f"window, as {SIZED}", "full", "lstm")}
    chosen |= {name: job for name, job in jobs.items() if name == "peer"}
    made = {}
    for name, job in chosen.items():
        limit = settings.contexts[-1] if name in settings.farthest else settings.far
        limit = {"full": settings.full, "peer": settings.peer_contexts[-1]}.get(name, limit)
        given = settings.peer_contexts if name == "peer" else settings.contexts
        places = [length for length in given if length <= limit] or [given[0]]
        calls = settings.calls
        made[name] = replace(job, kind="decoding", contexts=places, calls=calls, filled=name == "full")
    return made


def take_turns(jobs: dict[str, Job], settings: Settings, on_step: OnStep) -> dict[str, dict[str, Any]]:
    """Each job's facts and samples, or its error."""
    told: dict[str, dict[str, Any]] = {name: {"options": job.options, "samples": []} for name, job in jobs.items()}
    start = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        for name, job in jobs.items():
            on_step(f"{job.kind}: {name}, starting", 0)
            python = settings.peer_python if job.model == "peer" else sys.executable
            # -c, as a file's folder would come first in where modules are looked for
            child = stack.enter_context(Child(job, (python, "-c", start, model_child.__file__)))
            try:
                told[name] |= child.facts()
                children[name] = child
            except ChildError as error:
                told[name]["error"] = str(error)
        for turn in range(settings.repeats + 1):
            for name, child in list(children.items()):
                on_step(f"{jobs[name].kind}: {name}, turn {turn}", 0)
                try:
                    sample = child.turn()
                except ChildError as error:
                    told[name]["error"] = str(error)
                    del children[name]
                    continue
                if turn:
                    told[name]["samples"].append(sample)
    return told


def against(told: dict[str, dict[str, Any]], above: str, below: str) -> Spread | None:
    """How many times the CPU seconds of a step of `below` one of `above` takes."""
    return Spread.of_ratios(*([sample["times"][1] for sample in told[name]["samples"]] for name in (above, below)))


def a_token(told: dict[str, Any], length: int, clock: int = 1) -> Spread | None:
    """Seconds a token behind `length` others."""
    found: list[Times] = [s["times"][str(length)] for s in told["samples"] if str(length) in s["times"]]
    return Spread.of([times[clock] for times in found]) if found else None


def slope(told: dict[str, Any], length: int, first: int) -> Spread | None:
    """How many times a token behind `first` others one behind `length` takes, both of the same turn."""
    pairs = [(s["times"][str(length)][1], s["times"][str(first)][1]) for s in told["samples"]]
    return Spread.of_ratios([a for a, _ in pairs], [b for _, b in pairs])


def quick(settings: Settings) -> Settings:
    """The same, tiny: to see that it runs."""
    return replace(
        settings, hidden=16, layers=2, heads=2, segment=8, tokens=16, batches=(1,), contexts=(8, 32), far=8, full=32,
        farthest=("mag",), peer_contexts=(8,), calls=2, repeats=1, vocab=16,
    )  # fmt: skip
