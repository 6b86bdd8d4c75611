"""The speed of MemNet's slots: beside a transformer of equal size, beside a DNC, and as slots and tokens grow.

`memory-titan bench slots` runs it. Contenders take turns (MemNet, window, DNC, MemNet, ...), and a ratio is the median
of those to the neighbour in time: a shared machine's speed changes within seconds. CPU time of all threads counts, of a
whole training step: forward, backward, AdamW.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from memory_titan.benchmarks import slots_child, slots_size
from memory_titan.benchmarks.child import Child, ChildError
from memory_titan.benchmarks.measure import HighWater, Spread, Times, release, timed
from memory_titan.memory.slots.layer import MultiHeadMemoryBank
from memory_titan.models import MemNet, MemNetConfig, TransformerConfig, TransformerForCausalLM
from memory_titan.models.size import parameter_count, width_of_size

PEERS = ("dnc",)
OnStep = Callable[[str, int], None]  # what is going on, parts done by it


@dataclass(frozen=True)
class Size:
    """A model, and what it reads in a training step. `slots` are those of a head; one layer has a memory."""

    hidden: int
    layers: int
    heads: int
    window: int
    slots: int
    batch: int
    tokens: int
    vocab: int = 256
    chunk_size: int = 32
    threads: int = 1

    def __str__(self) -> str:
        return f"hidden {self.hidden}, {self.layers} layers, {self.slots} slots, batch {self.batch} x {self.tokens}"

    def models(self) -> tuple[MemNet, TransformerForCausalLM]:
        """MemNet, and the transformer with the same window and as many parameters, as nearly as its width can.

        Raises ValueError for sizes that cannot be.
        """
        torch.manual_seed(0)
        given: dict[str, Any] = {
            "vocab_size": self.vocab,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "window": self.window,
            "tie_word_embeddings": False,
        }
        bank = {"heads": self.heads, "slots": self.slots, "top_k": 4, "chunk_size": self.chunk_size}
        ours = MemNet(MemNetConfig(hidden_size=self.hidden, bank=bank, **given))

        def window(width: int) -> TransformerForCausalLM:
            return TransformerForCausalLM(TransformerConfig(hidden_size=width, **given))

        return ours, window(width_of_size(window, parameter_count(ours), 2 * self.heads))


SIZES = (
    Size(64, 2, 2, window=16, slots=32, batch=32, tokens=48, chunk_size=16),
    Size(128, 2, 4, window=64, slots=64, batch=16, tokens=256),
    Size(256, 4, 4, window=64, slots=128, batch=8, tokens=512),
)


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    sizes: tuple[Size, ...] = SIZES
    against: tuple[str, ...] = ()  # of PEERS
    repeats: int = 7  # turns, after one that does not count
    peer_python: str = sys.executable  # who has the peer
    banks: tuple[slots_size.Settings, ...] = (
        slots_size.Settings(
            bank="slots", slots=(32, 64, 128, 256, 512, 1024), tokens=(128, 256, 512, 1024, 2048, 4096), repeats=5
        ),
        slots_size.Settings(repeats=5),
    )

    def __post_init__(self) -> None:
        if unknown := [name for name in self.against if name not in PEERS]:
            raise ValueError(f"against must be of {', '.join(PEERS)}; got {unknown[0]!r}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1; got {self.repeats}")


def run(settings: Settings, on_step: OnStep = lambda label, done: None) -> dict[str, Any]:
    """Measure everything; the record is ready for JSON. A peer that fails is in it with its error."""
    started = time.perf_counter()
    before = torch.get_num_threads()
    torch.set_flush_denormal(True)
    try:
        models = [measure(size, settings, on_step) for size in settings.sizes]
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
    banks = []
    for bank in settings.banks:
        banks.append(slots_size.run(bank, lambda label, name=bank.bank: on_step(f"{name}: {label}", 0)))  # type: ignore[misc]
        on_step(bank.bank, 1)
    return {
        "benchmark": "slots",
        "settings": asdict(settings) | {"peer_python": None},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": {"cpus": os.cpu_count(), "system": platform.system()},
        "models": models,
        "banks": banks,
        "refusal": refusal(),
        "seconds": time.perf_counter() - started,
    }


def measure(size: Size, settings: Settings, on_step: OnStep = lambda label, done: None) -> dict[str, Any]:
    """Every contender's training steps at one size."""
    torch.set_num_threads(size.threads)
    samples: dict[str, list[Times]] = {name: [] for name in ("memnet", "window", *settings.against)}
    facts: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        turns: dict[str, Callable[[], Times]] = {}
        for name, model in zip(samples, size.models(), strict=False):
            step = training_step(model, size)
            turns[name] = lambda step=step: timed(step)  # type: ignore[misc]
            facts[name] = {"parameters": parameter_count(model), "hidden": model.config.hidden_size, "peak": peak(step)}
            if isinstance(model, MemNet):
                facts[name]["state bytes a row"] = state_bytes(model)
        for name in settings.against:
            start = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
            # -c, as a file's folder would come first in where modules are looked for
            child = stack.enter_context(Child(size, (settings.peer_python, "-c", start, slots_child.__file__)))
            turns[name] = lambda child=child: tuple(child.turn()["times"])  # type: ignore[misc]
            try:
                facts[name] = child.facts()
            except ChildError as error:
                facts[name] = {"error": str(error)}
                del turns[name]
        for turn in range(settings.repeats + 1):
            for name in list(turns):
                on_step(f"{size}: {name}, turn {turn}", 0)
                try:
                    sample = turns[name]()
                except ChildError as error:
                    facts[name]["error"] = str(error)
                    del turns[name]
                    continue
                if turn:
                    samples[name].append(sample)
    on_step(str(size), 1)
    return asdict(size) | {"contenders": {name: facts[name] | summary(name, samples) for name in samples}}


def summary(name: str, samples: dict[str, list[Times]]) -> dict[str, Any]:
    """Seconds a step, and how many times its own time MemNet took and was taken by it; {} without a sample."""
    if not samples[name]:
        return {}
    wall, cpu = ([sample[clock] for sample in samples[name]] for clock in (0, 1))
    ours = [cpu for _, cpu in samples["memnet"]]
    ratios = {"memnet over it": Spread.of_ratios(ours, cpu), "over memnet": Spread.of_ratios(cpu, ours)}
    return {
        "cpu": asdict(Spread.of(cpu)),
        "wall": asdict(Spread.of(wall)),
        **{label: asdict(ratio) for label, ratio in ratios.items() if ratio is not None},
        "samples": samples[name],
    }


def training_step(model: nn.Module, size: Size) -> Callable[[], None]:
    """Forward, backward and AdamW on the same random tokens each time."""
    ids = torch.randint(size.vocab, (size.batch, size.tokens))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    return step


def peak(step: Callable[[], None]) -> int | None:
    """Bytes by which memory rises in a step, the optimizer's own made before."""
    step()
    gc.collect()
    release()
    water = HighWater()
    step()
    return water.growth()


def state_bytes(model: MemNet) -> int:
    """Of one row's memories, whatever the length read."""
    return sum(
        tensor.numel() * tensor.element_size()
        for memory in model.memories
        for tensor in memory.initial_state(1).tensors().values()
    )


def refusal() -> str:
    """What a bank says to a batch whose state it may not make, before it makes any of it."""
    bank = MultiHeadMemoryBank(256, slots=1024)
    try:
        bank.initial_state(4096)
    except ValueError as error:
        return str(error)
    raise AssertionError("4,096 rows of 4 x 1,024 slots were not refused")


def quick(settings: Settings) -> Settings:
    """The same, small: to see that it runs."""
    size = Size(16, 1, 2, window=4, slots=8, batch=2, tokens=12, vocab=16, chunk_size=4)
    few = {"tokens": (4, 8), "step_tokens": 8, "stream_tokens": 2, "prefix": 4, "repeats": 1}
    bank = slots_size.Settings(bank="slots", slots=(8, 16), dim=16, heads=2, **few)  # type: ignore[arg-type]
    banks = (bank, replace(bank, bank="sparse", slots=(256, 1024)))
    return replace(settings, sizes=(size,), banks=banks, repeats=1)


def markdown(record: dict[str, Any]) -> str:
    """The record as tables."""
    lines = [
        "| model, step | contender | parameters | CPU ms | range | MemNet takes | range | peak |",
        "| --- | --- |" + " --: |" * 6,
    ]
    for model in record["models"]:
        what = str(Size(**{name: model[name] for name in Size.__dataclass_fields__}))
        for name, told in model["contenders"].items():
            if "cpu" not in told:
                lines.append(f"| {what} | {name} | {told['error']} |||||")
                continue
            cpu, ratio = told["cpu"], told["memnet over it"]
            high = told.get("peak")
            lines.append(
                f"| {what} | {name} | {told['parameters']:,} | {1e3 * cpu['median']:.1f} | {1e3 * cpu['low']:.1f} to "
                f"{1e3 * cpu['high']:.1f} | {ratio['median']:.3g}x | {ratio['low']:.3g} to {ratio['high']:.3g} | "
                f"{'-' if high is None else f'{high / 2**20:.0f} MiB'} |"
            )
            what = ""
    parts = ["\n".join(lines)]
    for bank in record["banks"]:
        name = slots_size.BANKS[bank["settings"]["bank"]].__name__
        parts.append(f"{name}, dim {bank['settings']['dim']}, batch {bank['settings']['batch']}.")
        parts.append(slots_size.markdown(bank))
    parts.append(f"What a state that is too large meets: {record['refusal']}")
    return "\n\n".join(parts) + "\n"
