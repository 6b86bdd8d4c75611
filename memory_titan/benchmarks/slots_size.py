"""What a bank costs as its slots and as the sequence grow: a training step, and single tokens of a stream.

`SparseDeltaBank` and `MultiHeadMemoryBank`, each for itself.

The sizes take turns (1k, 4k, 16k, 64k, 1k, ...), and what is reported is the median of the ratios to the neighbour in
time with the fewest slots, or the shortest sequence: a shared machine's speed changes within seconds. CPU time of all
threads counts, the backward pass too; denormal numbers are flushed to zero, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from memory_titan.benchmarks.measure import Spread, timed
from memory_titan.memory.slots.layer import MultiHeadMemoryBank
from memory_titan.memory.sparse.layer import SparseDeltaBank

BANKS: dict[str, type[SparseDeltaBank] | type[MultiHeadMemoryBank]] = {
    "sparse": SparseDeltaBank,
    "slots": MultiHeadMemoryBank,
}

OnStep = Callable[[str], None]  # what is measured now


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    slots: tuple[int, ...] = (1024, 4096, 16_384, 65_536)
    tokens: tuple[int, ...] = (512, 1024, 2048, 4096)  # lengths of a training step, at the middle one of `slots`
    step_tokens: int = 1024  # of a training step, as slots grow
    stream_tokens: int = 256  # single tokens that are timed together
    prefix: int = 1024  # tokens read before single ones are timed
    dim: int = 256
    heads: int = 4
    batch: int = 1
    repeats: int = 7  # turns, after one that does not count
    threads: int = 1
    bank: str = "sparse"  # of BANKS

    def __post_init__(self) -> None:
        if self.bank not in BANKS:
            raise ValueError(f"bank must be one of {', '.join(BANKS)}; got {self.bank!r}")
        for name in ("slots", "tokens"):
            if not getattr(self, name) or list(getattr(self, name)) != sorted(set(getattr(self, name))):
                raise ValueError(f"{name} must grow, and there must be one; got {getattr(self, name)}")
        for name in ("step_tokens", "stream_tokens", "prefix", "batch", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")

    def build(self, slots: int) -> SparseDeltaBank | MultiHeadMemoryBank:
        """Raises ValueError for sizes that cannot be."""
        torch.manual_seed(0)
        return BANKS[self.bank](self.dim, heads=self.heads, slots=slots)


def run(settings: Settings, on_step: OnStep = lambda label: None) -> dict[str, Any]:
    """Measure everything; the record is ready for JSON.

    Returns:
        `settings`, `seconds`, and `points`: one a kind, slots and tokens, with `cpu` and `wall` (medians with their
        range, in seconds a step or a token) and `ratio`, of CPU time, to the first point of its series.
    """
    started = time.perf_counter()
    middle = settings.slots[len(settings.slots) // 2]
    series = [
        ("training", [(slots, settings.step_tokens) for slots in settings.slots]),
        ("token", [(slots, settings.stream_tokens) for slots in settings.slots]),
        ("length", [(middle, tokens) for tokens in settings.tokens]),
    ]
    with _prepared(settings.threads):
        points = [point for kind, sizes in series for point in _series(kind, sizes, settings, on_step)]
    return {
        "benchmark": "slots-size",
        "settings": asdict(settings),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - started,
        "points": points,
    }


def markdown(record: dict[str, Any]) -> str:
    """The record as three tables."""
    titles = {
        "training": "A training step, by slots",
        "token": "A token of a stream, by slots",
        "length": "A training step, by tokens",
    }
    parts = []
    for kind, title in titles.items():
        lines = [f"{title}:", "", "| slots | tokens | CPU ms | range | of the first | range |", "|" + "--:|" * 6]
        for point in (point for point in record["points"] if point["kind"] == kind):
            cpu, ratio = (
                {k: v * scale for k, v in point[name].items()} for name, scale in (("cpu", 1e3), ("ratio", 1))
            )
            lines.append(
                f"| {point['slots']:,} | {point['tokens']:,} | {cpu['median']:.3g} | {cpu['low']:.3g} to "
                f"{cpu['high']:.3g} | {ratio['median']:.2f} | {ratio['low']:.2f} to {ratio['high']:.2f} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _series(kind: str, sizes: list[tuple[int, int]], settings: Settings, on_step: OnStep) -> Iterator[dict[str, Any]]:
    subjects = []
    for slots, tokens in sizes:
        on_step(f"{kind}, {slots} slots, {tokens} tokens: starting")
        subjects.append(_token(settings, slots, tokens) if kind == "token" else _training(settings, slots, tokens))
    times: list[list[tuple[float, float]]] = [[] for _ in sizes]
    for turn in range(settings.repeats + 1):
        for at, subject in enumerate(subjects):
            on_step(f"{kind}, {sizes[at][0]} slots, {sizes[at][1]} tokens: turn {turn}")
            sample = timed(subject)
            if turn:
                times[at].append(sample)
    for (slots, tokens), samples in zip(sizes, times, strict=True):
        wall, cpu = ([sample[clock] / (tokens if kind == "token" else 1) for sample in samples] for clock in (0, 1))
        ratio = Spread.of_ratios([cpu for _, cpu in samples], [cpu for _, cpu in times[0]])
        yield {
            "kind": kind,
            "slots": slots,
            "tokens": tokens,
            "cpu": asdict(Spread.of(cpu)),
            "wall": asdict(Spread.of(wall)),
            "ratio": asdict(ratio) if ratio else None,
        }


def _training(settings: Settings, slots: int, tokens: int) -> Callable[[], None]:
    """Forward and backward from an empty state."""
    bank, x = settings.build(slots), torch.randn(settings.batch, tokens, settings.dim)

    def step() -> None:
        bank.zero_grad()
        bank(x)[0].square().mean().backward()

    return step


def _token(settings: Settings, slots: int, tokens: int) -> Callable[[], None]:
    """Token by token, in place where the bank can, on a state that has read `prefix` tokens."""
    options = {"inplace": True} if settings.bank == "sparse" else {}
    bank, x = settings.build(slots).eval(), torch.randn(settings.batch, tokens, settings.dim)
    with torch.no_grad():
        state = bank(torch.randn(settings.batch, settings.prefix, settings.dim))[1]

    def stream() -> None:
        nonlocal state
        with torch.no_grad():
            for t in range(tokens):
                _, state = bank(x[:, t : t + 1], state, **options)

    return stream


@contextmanager
def _prepared(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
