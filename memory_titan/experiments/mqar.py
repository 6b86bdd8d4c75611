"""Multi-query associative recall: Titans' four architectures, Gated DeltaNet, attention and an LSTM, of one size.

Pairs stand at the start of a sequence, all keys are asked for later (`memory_titan.tasks.mqar`). Training mixes lengths
and numbers of pairs, with fresh sequences at every step; each model has the best of a few learning rates, chosen on a
seed of its own.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.evaluation.probes import flipped_sign, no_writes
from memory_titan.experiments.mqar_report import report
from memory_titan.experiments.training import Course, fit
from memory_titan.models import (
    MemoryLanguageModel,
    RecurrentConfig,
    RecurrentForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
    parameter_count,
    width_of_size,
)
from memory_titan.models.titans import TitansConfig, TitansForCausalLM
from memory_titan.tasks.mqar import MQARTask
from memory_titan.tasks.recall import NO_LABEL

__all__ = ["ABLATIONS", "MODELS", "Settings", "report", "run"]

ATTENTION = ("window", "full")
BASELINES = (*ATTENTION, "lstm")
MODELS = ("lmm", "mag", "mal", "mac", "gated_deltanet", *BASELINES)
# By name: the model that is changed, options of its memory, and of its configuration; "longer" changes nothing else.
ABLATIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mag, fusion sum": ("mag", {}, {"fusion": "sum"}),
    "mag, fusion product": ("mag", {}, {"fusion": "product"}),
    "lmm, random taps": ("lmm", {"context": None}, {}),
    "gated_deltanet, random taps": ("gated_deltanet", {"context": None}, {}),
    "lmm, a matrix (depth 1)": ("lmm", {"depth": 1}, {}),
    "lmm, no momentum": ("lmm", {"algorithm": "descent"}, {}),
    "lmm, hard gates": ("lmm", {"gates": "hard"}, {}),
    "lmm, no SiLU": ("lmm", {"qkv_activation": False}, {}),
    "lmm, two heads": ("lmm", {"heads": 2}, {}),
    "mac, longer": ("mac", {}, {}),
    "window, longer": ("window", {}, {}),
    "full, longer": ("full", {}, {}),
    "lstm, longer": ("lstm", {}, {}),
}
Tried = tuple[float, float | None, float | None]  # learning rate, loss, accuracy
SWEPT, TEST = 1_000_003, 3_000_017  # seeds: of the runs that choose the learning rate, of the tests' sequences


@dataclass
class Settings:
    """The documented run; `runs/experiments/mqar.yaml` names the same.

    Raises:
        ValueError: a model, an ablation or a number that cannot be.
    """

    models: list[str] = field(default_factory=lambda: list(MODELS))
    ablations: list[str] = field(default_factory=lambda: list(ABLATIONS))
    seeds: int = 3  # of the models
    ablation_seeds: dict[str, int] = field(default_factory=lambda: {"mag, fusion sum": 2, "mag, fusion product": 2})
    hidden: int = 64  # of the memories; the others get the width that makes them as large as lmm
    layers: int = 2
    heads: int = 2  # of attention
    window: int = 32  # tokens that attention sees; mac: its segment
    memory: dict[str, Any] = field(default_factory=lambda: {"heads": 1, "chunk_size": 32, "expansion": 2, "context": 1})
    matrix: dict[str, Any] = field(
        default_factory=lambda: {"heads": 1, "chunk_size": 32, "context": 1}
    )  # of gated_deltanet
    vocabulary: int = 256
    noise: str = "none"  # between questions: "none", always token 0; "random", any token, keys and values too
    shapes: list[list[int]] = field(default_factory=lambda: [[64, 4], [128, 8], [256, 16], [256, 32]])  # of training
    tests: list[list[int]] = field(
        default_factory=lambda: [[64, 4], [128, 8], [256, 16], [256, 32], [512, 64], [1024, 64]]
    )
    tokens: int = 2048  # a step, in as many sequences as that makes
    steps: int = 180
    baseline_steps: int = 300  # of attention and lstm, in about the same time
    rates: list[float] = field(default_factory=lambda: [3e-3])  # of memories; one is taken as it is
    baseline_rates: list[float] = field(default_factory=lambda: [1e-3, 3e-3])
    longer: int = 3  # times the steps for what is called longer, and for memories whose taps start at random
    baseline_longer: int = 6  # the same for attention and lstm
    test_rows: int = 64  # sequences a test
    test_tokens: int = 16_384  # of a test at most: fewer rows where a sequence is long

    def __post_init__(self) -> None:
        for name, known in (("models", MODELS), ("ablations", tuple(ABLATIONS)), ("ablation_seeds", tuple(ABLATIONS))):
            if unknown := [each for each in getattr(self, name) if each not in known]:
                raise ValueError(f"{name}: there is no {', '.join(unknown)}; there are {', '.join(known)}")
        for name in ("seeds", "steps", "baseline_steps", "longer", "baseline_longer", "test_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not self.rates or not self.baseline_rates or not self.shapes or not self.tests:
            raise ValueError("rates, baseline_rates, shapes and tests must not be empty")
        if self.tokens < (longest := max(length for length, _ in self.shapes)):
            raise ValueError(f"tokens must be at least the longest sequence, {longest}; got {self.tokens}")
        for length, pairs in [*self.shapes, *self.tests]:
            self.task(length, pairs)

    def task(self, length: int, pairs: int) -> MQARTask:
        """Of this vocabulary."""
        return MQARTask(length, pairs, self.vocabulary, noise=self.noise)  # type: ignore[arg-type]


def build(
    settings: Settings, name: str, memory: dict[str, Any] | None = None, model: dict[str, Any] | None = None
) -> MemoryLanguageModel:
    """A fresh model, about as large as lmm.

    Args:
        settings: of the experiment.
        name: one of `MODELS`.
        memory, model: changes of a memory, see `ABLATIONS`.
    """
    s = settings
    common: dict[str, Any] = {
        "vocab_size": s.vocabulary,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "tie_word_embeddings": False,
        "shift_labels": False,
    }

    def titans(inner: int | None) -> MemoryLanguageModel:
        matrix = name == "gated_deltanet"
        given: dict[str, Any] = {
            "architecture": "lmm" if matrix else name,
            "preset": name if matrix else None,
            "memory_options": {**(s.matrix if matrix else s.memory), **(memory or {})},
            "hidden_size": s.hidden,
            "intermediate_size": inner,
            "window": s.window,
            "segment": s.window,
            **common,
            **(model or {}),
        }
        return TitansForCausalLM(TitansConfig(**given))

    if name == "lmm":
        return titans(None)
    with torch.device("meta"):
        size = parameter_count(build(s, "lmm"))
    window = None if name == "full" else s.window
    makers: dict[str, tuple[Callable[[int], MemoryLanguageModel], int]] = {
        "window": (
            lambda n: TransformerForCausalLM(TransformerConfig(hidden_size=n, window=window, **common)),
            2 * s.heads,
        ),
        "lstm": (lambda n: RecurrentForCausalLM(RecurrentConfig(hidden_size=n, cell="lstm", **common)), 2),
    }
    # The others are of lmm's width: their feed-forward makes up for what attention and memory take.
    make, multiple = makers.get("window" if name in ATTENTION else name, (titans, 8))
    return make(width_of_size(make, size, multiple))


def run(settings: Settings, progress: Callable[[str], None]) -> dict[str, Any]:
    """Sweep, train, test, probe, ablate.

    Returns:
        settings, versions; `rates`, by model what `sweep` gives; `models` and `ablations`, by name a list of runs, one
        a seed, see `trained` and `tested`; `cpu_minutes`.
    """
    torch.set_flush_denormal(True)
    begun = time.process_time()
    rates: dict[str, list[Tried]] = {}
    models: dict[str, list[dict[str, Any]]] = {}
    for name in settings.models:
        rates[name] = sweep(settings, name, progress)
        for seed in range(settings.seeds):
            model, told = trained(settings, name, seed, best(rates[name]), steps_of(settings, name))
            models.setdefault(name, []).append(told | tested(model, settings) | probed(model, settings))
            progress(f"{name}, seed {seed}: {_line(models[name][-1])}")
    ablations: dict[str, list[dict[str, Any]]] = {}
    for name in settings.ablations:
        base, memory, options = ABLATIONS[name]
        rate = best(rates[base] if base in rates else sweep(settings, base, progress))
        steps = steps_of(settings, base)
        if name.endswith(("longer", "random taps")):
            steps *= settings.baseline_longer if base in BASELINES else settings.longer
        for seed in range(settings.ablation_seeds.get(name, 1)):
            model, told = trained(settings, base, seed, rate, steps, memory, options)
            ablations.setdefault(name, []).append(told | tested(model, settings))
            progress(f"{name}, seed {seed}: {_line(ablations[name][-1])}")
    return {
        "experiment": "mqar",
        "settings": dataclasses.asdict(settings),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rates": rates,
        "models": models,
        "ablations": ablations,
        "cpu_minutes": (time.process_time() - begun) / 60,
    }


def steps_of(settings: Settings, name: str) -> int:
    """Of a model's training."""
    return settings.baseline_steps if name in BASELINES else settings.steps


def sweep(settings: Settings, name: str, progress: Callable[[str], None]) -> list[Tried]:
    """(rate, loss, accuracy) on held-out sequences of the training shapes, means over these; on a seed of its own.

    The loss is None where training or loss did not stay finite. Of one rate only nothing is tried, and both are None.
    """
    tried: list[Tried] = []
    rates = settings.baseline_rates if name in BASELINES else settings.rates
    if len(rates) == 1:
        return [(rates[0], None, None)]
    for rate in rates:
        model, told = trained(settings, name, SWEPT, rate, steps_of(settings, name))
        loss, share = held_out(model, settings)
        finite = told["broke"] is None and math.isfinite(loss)
        tried.append((rate, round(loss, 4) if finite else None, round(share, 4)))
        progress(f"{name}, rate {rate:g}: loss {loss:.3f}, accuracy {share:.3f}")
    return tried


def best(tried: Sequence[Tried]) -> float:
    """The rate with the highest accuracy, to a hundredth; of equals, the one with the lowest loss."""
    return min(tried, key=lambda each: (-round(each[2] or 0.0, 2), math.inf if each[1] is None else each[1]))[0]


def trained(
    settings: Settings,
    name: str,
    seed: int,
    rate: float,
    steps: int,
    memory: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[MemoryLanguageModel, dict[str, Any]]:
    """A model after its training, and what is to be told of it. A seed means the same sequences to every model."""
    torch.manual_seed(seed)
    model = build(settings, name, memory, options)
    chance = torch.Generator().manual_seed(seed)

    def batch(step: int) -> dict[str, Tensor]:
        length, pairs = settings.shapes[int(torch.randint(len(settings.shapes), (), generator=chance))]
        x, y = settings.task(length, pairs).batch(settings.tokens // length, chance)
        return {"input_ids": x, "labels": y}

    course, broke, begun = Course(), None, time.process_time()
    try:
        course = fit(model, batch, steps, rate, every=max(1, steps // 40))
    except FloatingPointError as error:  # tested as it is, and said
        broke = str(error)
    curve = [(step, round(loss, 4)) for step, loss in course.curves.get("loss", [])]
    return model.eval(), {
        "seed": seed,
        "rate": rate,
        "steps": steps,
        "parameters": parameter_count(model),
        "width": model.config.hidden_size,
        "step_cpu_ms": round(1000 * course.cpu_seconds / steps, 1),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "learned_at": next((step for step, loss in curve if loss < 0.5), None),  # the first step with such a loss
        "curve": curve,
        "broke": broke,
    }


def draw(settings: Settings, length: int, pairs: int, seed: int = TEST) -> tuple[Tensor, Tensor]:
    """A test's sequences: the same for all."""
    rows = max(1, min(settings.test_rows, settings.test_tokens // length))
    return settings.task(length, pairs).batch(rows, torch.Generator().manual_seed(seed))


@torch.no_grad()
def right(model: nn.Module, x: Tensor, y: Tensor, tokens: int = 1 << 14) -> Tensor:
    """`[questions]`, bool, row by row: was the value said; `tokens` at most in a call."""
    told = []
    for rows in torch.arange(len(x)).split(max(1, tokens // x.shape[1])):
        answers = model(x[rows], use_cache=False).logits.argmax(-1)
        told.append((answers == y[rows])[y[rows] != NO_LABEL])
    return torch.cat(told)


def distances(x: Tensor, y: Tensor, pairs: int) -> Tensor:
    """`[questions]`, int64: tokens from a question back to its pair's value, in the order of `right`."""
    row, place = (y != NO_LABEL).nonzero(as_tuple=True)
    values = x[:, 1 : 2 * pairs : 2]
    return place - (1 + 2 * (values[row] == y[row, place][:, None]).int().argmax(1))


def tested(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """`tests`: (length, pairs, accuracy); `distance`: (up to, questions, accuracy), all tests together.

    A distance goes up to the window, to what two layers of it reach, then to twice as far each time.
    """
    tests, found = [], []
    for length, pairs in settings.tests:
        x, y = draw(settings, length, pairs)
        hits = right(model, x, y)
        tests.append((length, pairs, round(float(hits.float().mean()), 4)))
        found.append((distances(x, y, pairs), hits))
    far, hits = (torch.cat(part) for part in zip(*found, strict=True))
    ends = [settings.window - 1, settings.layers * (settings.window - 1)]
    while ends[-1] < int(far.max()):
        ends.append(2 * ends[-1] + 2)
    bins, low = [], -1
    for end in ends:
        inside = (far > low) & (far <= end)
        if bool(inside.any()):
            bins.append((end, int(inside.sum()), round(float(hits[inside].float().mean()), 4)))
        low = end
    return {"tests": tests, "distance": bins}


def probed(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """`probes`: accuracy at the training shape with most pairs, as it is, without writes, and with writes flipped."""
    if not isinstance(model, TitansForCausalLM):
        return {}
    x, y = draw(settings, *max(settings.shapes, key=lambda shape: shape[1]))
    ways: dict[str, AbstractContextManager[None]] = {
        "as it is": nullcontext(),
        "no writes": no_writes(model),
        "flipped sign": flipped_sign(model),
    }
    told = {}
    for way, within in ways.items():
        with within:
            told[way] = round(float(right(model, x, y).float().mean()), 4)
    return {"probes": told}


@torch.no_grad()
def held_out(model: nn.Module, settings: Settings) -> tuple[float, float]:
    """The mean loss, and the mean accuracy, on sequences of each training shape."""
    batches = [draw(settings, length, pairs, SWEPT + 1) for length, pairs in settings.shapes]
    loss = statistics.mean(float(model(x, labels=y).loss) for x, y in batches)
    return loss, statistics.mean(float(right(model, x, y).float().mean()) for x, y in batches)


def _line(told: dict[str, Any]) -> str:
    return ", ".join(f"({length}, {pairs}) {share:.3f}" for length, pairs, share in told["tests"])
