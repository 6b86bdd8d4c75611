"""Long dependencies: what stood far outside the window is asked for. Slots, a neural memory, and models without either.

Every model has as many parameters as MemNet, reads the same training tokens, and has the best of a few learning rates,
chosen on a seed of its own. They are trained on short sequences, and asked over distances far beyond.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.experiments.longdep_report import report
from memory_titan.experiments.longdep_slots import watch_slots, without_heads
from memory_titan.experiments.slot_page import slot_page
from memory_titan.experiments.training import Course, fit
from memory_titan.models import (
    MemNet,
    MemNetConfig,
    MemoryLanguageModel,
    RecurrentConfig,
    RecurrentForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
    parameter_count,
    width_of_size,
)
from memory_titan.tasks.distance import DistanceTask
from memory_titan.tasks.recall import NO_LABEL, RecallTask

__all__ = ["ABLATIONS", "MODELS", "Settings", "report", "run"]

MODELS = ("slots", "slots, plain start", "neural", "window", "lstm", "gru")
# What is changed in MemNet with slots: options of the bank, and of the model.
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "no write gate": ({"write_gate": False}, {}),
    "no erase gate": ({"erase": False}, {}),
    "no decay": ({"decay": "none"}, {}),
    "writes add": ({"write": "add"}, {}),
    "learned keys": ({"allocation": "none"}, {}),
    "DNC allocation": ({"allocation": "dnc"}, {}),
    "Gumbel allocation": ({"allocation": "gumbel"}, {}),
    "top 1": ({"top_k": 1}, {}),
    "top 16": ({"top_k": 16}, {}),
    "bottleneck 16": ({"bottleneck": 16}, {}),
    "utilization 0.05": ({}, {"utilization_weight": 0.05}),
    "pressure 0.05": ({}, {"pressure_weight": 0.05}),
    "sharpness 0.05": ({}, {"sharpness_weight": 0.05}),
}
SWEPT, TEST = 1_000_003, 3_000_017  # seeds: of the runs that choose the learning rate, of the tests' sequences
TOKENS_A_CALL = 1 << 16  # in a test


@dataclass
class Settings:
    """The documented run; `runs/experiments/longdep.yaml` names the same.

    Raises:
        ValueError: a model, an ablation or a number that cannot be.
    """

    models: list[str] = field(default_factory=lambda: list(MODELS))
    ablations: list[str] = field(default_factory=lambda: list(ABLATIONS))
    seeds: int = 3  # of the models
    ablation_seeds: int = 1
    hidden: int = 64  # of MemNet with slots; the others get the width that makes them as large
    layers: int = 2
    heads: int = 2  # of attention
    window: int = 16
    bank: dict[str, Any] = field(default_factory=lambda: {"heads": 2, "slots": 32, "top_k": 4, "chunk_size": 16})
    neural: dict[str, Any] = field(default_factory=lambda: {"heads": 2, "chunk_size": 16, "expansion": 2})
    pairs: int = 4
    lengths: list[int] = field(default_factory=lambda: [16, 32, 64])  # of training, one a step, by chance
    rows: int = 32  # sequences a step
    steps: int = 300
    rates: list[float] = field(default_factory=lambda: [1e-3, 3e-3, 1e-2])
    sweep_steps: int = 300
    sweep_distances: list[int] = field(default_factory=lambda: [16, 64, 256, 1024])
    ablation_steps: int = 100
    longer: int = 3  # times the steps that all but the first of the models get once more, one seed; 0: none of it
    distances: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128, 256, 1024, 4096])
    many_pairs: int = 16  # of a harder test of the ablations, at `many_distance`
    many_distance: int = 256
    test_rows: int = 64  # sequences a test, each with a question a pair
    test_tokens: int = 65_536  # of a test at most: fewer rows where a sequence is long

    def __post_init__(self) -> None:
        for name, known in (("models", MODELS), ("ablations", tuple(ABLATIONS))):
            if unknown := [each for each in getattr(self, name) if each not in known]:
                raise ValueError(f"{name}: there is no {', '.join(unknown)}; there are {', '.join(known)}")
        for name in ("seeds", "rows", "steps", "sweep_steps", "ablation_steps", "test_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not self.rates or not self.lengths or not self.distances or "slots" not in self.models:
            raise ValueError("rates, lengths and distances must not be empty, and models must have slots among them")
        if min(self.lengths) < 4 * self.pairs or min(self.distances) < 2 * self.pairs:
            raise ValueError(
                f"{self.pairs} pairs need lengths of at least {4 * self.pairs} and distances of at least "
                f"{2 * self.pairs}; got {min(self.lengths)} and {min(self.distances)}"
            )


def build(
    settings: Settings, name: str, bank: dict[str, Any] | None = None, model: dict[str, Any] | None = None
) -> MemoryLanguageModel:
    """A fresh model, as large as MemNet with slots.

    Args:
        settings: of the experiment.
        name: one of `MODELS`.
        bank, model: changes of MemNet with slots, see `ABLATIONS`.
    """
    s = settings
    common: dict[str, Any] = {
        "vocab_size": RecallTask().vocabulary,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "tie_word_embeddings": False,
        "shift_labels": False,
    }

    def slots(options: dict[str, Any]) -> MemoryLanguageModel:
        whole = {**s.bank, **options, **(bank or {})}
        return MemNet(MemNetConfig(hidden_size=s.hidden, window=s.window, bank=whole, **common, **(model or {})))

    if name == "slots":
        return slots({})
    if name == "slots, plain start":
        return slots({"context": None})
    with torch.device("meta"):
        size = parameter_count(build(s, "slots"))
    makers: dict[str, tuple[Callable[[int], MemoryLanguageModel], int]] = {
        # of the same width: its feed-forward makes up for what the memory's own weights take
        "neural": (
            lambda n: MemNet(
                MemNetConfig(
                    hidden_size=s.hidden,
                    window=s.window,
                    memory="neural",
                    bank=s.neural,
                    intermediate_size=n,
                    **common,
                )
            ),
            8,
        ),
        "window": (
            lambda n: TransformerForCausalLM(TransformerConfig(hidden_size=n, window=s.window, **common)),
            2 * s.heads,
        ),
        "lstm": (lambda n: RecurrentForCausalLM(RecurrentConfig(hidden_size=n, cell="lstm", **common)), 2),
        "gru": (lambda n: RecurrentForCausalLM(RecurrentConfig(hidden_size=n, cell="gru", **common)), 2),
    }
    make, multiple = makers[name]
    return make(width_of_size(make, size, multiple))


def run(settings: Settings, progress: Callable[[str], None]) -> dict[str, Any]:
    """Sweep, train, test, ablate.

    Returns:
        settings, versions, and of `models`, `longer` and `ablations`: by name, a list of runs, one a seed; `rates`: by
        model what `sweep` gives; `cpu_minutes`.
    """
    torch.set_flush_denormal(True)
    begun = time.process_time()
    rates = {name: sweep(settings, name, progress) for name in settings.models}
    chosen = {name: best(tried) for name, tried in rates.items()}
    models: dict[str, list[dict[str, Any]]] = {}
    page = None
    for name in settings.models:
        for seed in range(settings.seeds):
            model, told = trained(settings, name, seed, chosen[name], settings.steps)
            told["accuracy"] = over_distance(model, settings, settings.distances)
            told |= watch_slots(model, *draw(DistanceTask(256, settings.pairs), settings.test_rows))
            told |= {"heads": without_heads(model, settings.pairs, accuracy)}
            models.setdefault(name, []).append(told)
            if name == "slots" and not seed:
                page = look(model, settings)
            progress(f"{name}, seed {seed}: " + ", ".join(f"{d}: {a:.2f}" for d, a in told["accuracy"]))
    longer: dict[str, list[dict[str, Any]]] = {}
    for name in [name for name in settings.models if settings.longer and name != "slots"]:
        model, told = trained(settings, name, 0, chosen[name], settings.longer * settings.steps)
        told["accuracy"] = over_distance(model, settings, settings.distances)
        longer[name] = [told]
        progress(f"{name}, trained longer: " + ", ".join(f"{d}: {a:.2f}" for d, a in told["accuracy"]))
    ablations: dict[str, list[dict[str, Any]]] = {}
    for name in settings.ablations:
        for seed in range(settings.ablation_seeds):
            told = ablated(settings, name, seed, chosen["slots"])
            ablations.setdefault(name, []).append(told)
            progress(f"{name}, seed {seed}: " + ", ".join(f"{k}: {a:.2f}" for k, a in told["tests"].items()))
    return {
        "experiment": "longdep",
        "settings": dataclasses.asdict(settings),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rates": rates,
        "models": models,
        "page": page,
        "longer": longer,
        "ablations": ablations,
        "cpu_minutes": (time.process_time() - begun) / 60,
    }


def sweep(settings: Settings, name: str, progress: Callable[[str], None]) -> list[tuple[float, float | None, float]]:
    """(rate, loss on held-out sequences as in training, mean accuracy over `sweep_distances`), on a seed of its own.

    The loss is None where it is not finite. Rates are chosen by the accuracy: by the loss alone a rate may win whose
    model leaves its write gates open, which costs nothing at the lengths of training and everything far beyond.
    """
    tried: list[tuple[float, float | None, float]] = []
    for rate in settings.rates:
        model, told = trained(settings, name, SWEPT, rate, settings.sweep_steps)
        loss = held_out(model, settings)
        shares = over_distance(model, settings, settings.sweep_distances, seed=SWEPT + 2)
        share = statistics.mean(share for _, share in shares)
        tried.append((rate, loss if told["broke"] is None and math.isfinite(loss) else None, share))
        progress(f"{name}, rate {rate:g}: loss {loss:.3f}, accuracy {share:.2f}")
    return tried


def best(tried: Sequence[tuple[float, float | None, float]]) -> float:
    """The rate with the highest accuracy, rounded to a hundredth; of equals, the one with the lowest loss."""
    return min(tried, key=lambda each: (-round(each[2], 2), math.inf if each[1] is None else each[1]))[0]


def trained(
    settings: Settings,
    name: str,
    seed: int,
    rate: float,
    steps: int,
    bank: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[MemoryLanguageModel, dict[str, Any]]:
    """A model after its training, and what is to be told of it. A seed means the same sequences to every model."""
    torch.manual_seed(seed)
    model = build(settings, name, bank, options)
    chance = torch.Generator().manual_seed(seed)
    clock: list[float] = []

    def batch(step: int) -> dict[str, Tensor]:
        length = settings.lengths[int(torch.randint(len(settings.lengths), (), generator=chance))]
        x, y = RecallTask(length=length, pairs=settings.pairs).batch(settings.rows, chance)
        clock.append(time.process_time())
        return {"input_ids": x, "labels": y}

    ends: list[float] = []
    course, broke = Course(), None
    try:
        course = fit(model, batch, steps, rate, after=lambda step: ends.append(time.process_time()))
    except FloatingPointError as error:  # tested as it is, and said
        broke = str(error)
    seconds = [end - start for start, end in zip(clock, ends, strict=False)]
    return model.eval(), {
        "seed": seed,
        "rate": rate,
        "steps": steps,
        "parameters": parameter_count(model),
        "width": model.config.hidden_size,
        "state_bytes": state_bytes(model, settings),
        "step_cpu_seconds": statistics.median(seconds or [0.0]),
        "curve": [(step, round(loss, 4)) for step, loss in course.curves.get("loss", [])],
        "broke": broke,
    }


def state_bytes(model: nn.Module, settings: Settings) -> int:
    """Of one row's state after more tokens than any window holds."""
    with torch.no_grad():
        out = model(torch.zeros(1, 4 * settings.window, dtype=torch.int64), use_cache=True)
    return int(out.past_key_values.nbytes)


def look(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """A row of the test at a distance of 64, or what there is room for, token by token; see `slot_page`."""
    task = DistanceTask(max(64, 2 * settings.pairs), settings.pairs)
    x, _ = draw(task, 1)
    keys, values = task.keys, task.keys + task.values
    names = [f"k{i}" if i < keys else f"v{i - keys}" if i < values else "." for i in x[0].tolist()]
    return slot_page(model, x, names)


def draw(task: RecallTask | DistanceTask, rows: int, seed: int = TEST) -> tuple[Tensor, Tensor]:
    """A test's sequences: the same for all."""
    return task.batch(rows, torch.Generator().manual_seed(seed))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the questions answered right; x, y `[rows, length]`."""
    right = count = 0
    for rows in torch.arange(len(x)).split(max(1, TOKENS_A_CALL // x.shape[1])):
        asked = y[rows] != NO_LABEL
        answers = model(x[rows], use_cache=False).logits.argmax(-1)
        right += int((answers == y[rows])[asked].sum())
        count += int(asked.sum())
    return right / count


@torch.no_grad()
def held_out(model: nn.Module, settings: Settings) -> float:
    """The mean loss on sequences of each training length."""
    tasks = [RecallTask(length=length, pairs=settings.pairs) for length in settings.lengths]
    batches = [task.batch(settings.test_rows, torch.Generator().manual_seed(SWEPT + 1)) for task in tasks]
    return statistics.mean(float(model(x, labels=y).loss) for x, y in batches)


def over_distance(
    model: nn.Module, settings: Settings, distances: Sequence[int], pairs: int | None = None, seed: int = TEST
) -> list[tuple[int, float]]:
    """(distance, accuracy)."""
    points = []
    for distance in distances:
        task = DistanceTask(distance, pairs or settings.pairs)
        rows = max(1, min(settings.test_rows, settings.test_tokens // task.length))
        points.append((distance, accuracy(model, *draw(task, rows, seed))))
    return points


def ablated(settings: Settings, name: str, seed: int, rate: float) -> dict[str, Any]:
    """MemNet with one thing changed; the learning rate is that of the whole."""
    bank, options = ABLATIONS[name]
    if "top_k" in bank:
        bank = {"top_k": min(bank["top_k"], int(settings.bank.get("slots", 64)))}
    model, told = trained(settings, "slots", seed, rate, settings.ablation_steps, bank, options)
    asked = sorted({settings.distances[0], settings.distances[len(settings.distances) // 2], settings.distances[-1]})
    tests = {f"{d:,} tokens": share for d, share in over_distance(model, settings, asked)}
    many = over_distance(model, settings, [settings.many_distance], settings.many_pairs)[0][1]
    tests[f"{settings.many_pairs} pairs"] = many
    return told | {"tests": tests} | watch_slots(model, *draw(DistanceTask(256, settings.pairs), settings.test_rows))
