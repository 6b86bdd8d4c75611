"""Experiment: needles among filler, trained on at most 2,048 tokens and asked for after up to ten million.

A neural memory without attention (`TitansForCausalLM`, architecture "lmm"), beside Gated DeltaNet in its place, a
window-only transformer, an LSTM and the MAC of titans-pytorch, each trained for the same CPU time.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan import __version__
from memory_titan.evaluation.finished import Finished
from memory_titan.evaluation.language import ask_streams
from memory_titan.experiments.needles_report import report
from memory_titan.experiments.training import fit
from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.memory.trace import Trace, trace
from memory_titan.models import (
    RecurrentConfig,
    RecurrentForCausalLM,
    TitansConfig,
    TitansForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
    parameter_count,
    width_of_size,
)
from memory_titan.models.language_model import MemoryLanguageModel
from memory_titan.tasks.needle_stream import StreamTask
from memory_titan.tasks.token_tasks import settings as settings_of

__all__ = ["TASKS", "Settings", "build", "report", "run", "train"]
Record = dict[str, Any]
TASKS: dict[str, Record] = {
    "8 pairs": {},
    "32 pairs": {"pairs": 32, "keys": 64, "values": 64},
    "8 pairs in prose": {"text": "docs", "filler": 256},
}
MODELS = ("lmm", "gated deltanet", "window", "lstm", "peer")
# What is taken out or exchanged of "lmm": options of its memory, or "price", times that of every stage
ABLATIONS: dict[str, Record] = {
    "sigmoid gates, no price": {"gates": "sigmoid", "price": 0.0},
    "sigmoid gates": {"gates": "sigmoid"},
    "no price": {"price": 0.0},
    "a tenth of the price": {"price": 0.1},
    "random taps": {"context": None},
    "a matrix": {"depth": 1},
    "no momentum": {"algorithm": "descent"},
}
PEER_LIMIT = 16_384  # tokens that the peer reads at most: it has no exact stream, and reads all at once


@dataclass
class Stage:
    """Of the training: so many steps at a rate and a price on writing, on streams of these lengths, by chance."""

    steps: int
    rate: float
    price: float
    lengths: list[int]
    pairs: int | None = None  # fewer than the task's
    rise: float = 1 / 3  # the share of the steps over which the price rises to its height

    @classmethod
    def of(cls, given: Stage | Record) -> Stage:
        """As it comes from a file."""
        return given if isinstance(given, Stage) else cls(**given)


LONG = [64, 128, 256, 512, 1024, 2048]


@dataclass
class Settings:
    """The documented run; `runs/experiments/needles.yaml` names the same.

    Raises:
        ValueError: a model, a task or a number that cannot be.
    """

    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    models: list[str] = field(default_factory=lambda: list(MODELS))  # on the first task; on the others "lmm" alone
    ablations: list[str] = field(default_factory=lambda: list(ABLATIONS))  # on the first task
    seeds: int = 3
    ablation_seeds: int = 1
    hidden: int = 64  # of "lmm"; the others get the width that makes them as large
    layers: int = 2
    memory: Record = field(
        default_factory=lambda: {"gates": "hard", "chunk_size": 16, "expansion": 2, "heads": 2, "context": 1}
    )
    window: int = 64
    stages: list[Any] = field(
        default_factory=lambda: [
            {"steps": 100, "rate": 3e-3, "price": 0.05, "lengths": [48], "pairs": 4},
            {"steps": 100, "rate": 2e-3, "price": 0.3, "lengths": LONG},
            {"steps": 100, "rate": 1e-3, "price": 3.0, "lengths": LONG},
            {"steps": 100, "rate": 1e-3, "price": 12.0, "lengths": LONG},
        ]
    )
    tokens: int = 4096  # of a step at most; 2 to 32 streams
    rates: list[float] = field(default_factory=lambda: [0.5, 1.0, 3.0])  # times the stages', tried for the baselines
    lengths: list[int] = field(default_factory=lambda: [2048, 16_384, 65_536, 262_144, 1_048_576])
    longest: int = 10_485_760  # "lmm" on the first task reads this, too; 0: nobody does
    streams: int = 8  # of a test, up to 65,536 tokens; beyond, as many as `long_streams`
    long_streams: int = 2
    test_chunk: int = 64  # of the memory in the test: the exact rule reads the same at every chunk
    finished: str = ""  # a file of finished jobs, one a line: what it has is not done again
    keep: str = ""  # a folder for the trained "lmm" models

    def __post_init__(self) -> None:
        for name, known in (("tasks", TASKS), ("models", MODELS), ("ablations", ABLATIONS)):
            if unknown := [each for each in getattr(self, name) if each not in known]:
                raise ValueError(f"{name}: there is no {', '.join(unknown)}; there are {', '.join(known)}")
        for name in ("seeds", "hidden", "layers", "window", "tokens", "streams", "long_streams", "test_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not self.tasks or not self.stages or not self.lengths or not self.rates or "lmm" not in self.models:
            raise ValueError("tasks, stages, lengths and rates must not be empty, and models must have lmm among them")
        self.courses()

    def courses(self) -> list[Stage]:
        """The stages.

        Raises:
            ValueError: a stage has a field that there is not.
        """
        try:
            return [Stage.of(each) for each in self.stages]
        except TypeError as error:
            raise ValueError(f"stages: {error}") from None


def task_of(name: str, length: int, split: str = "test", pairs: int | None = None) -> StreamTask:
    """One of `TASKS`, so long; of a text the paragraphs of a split."""
    options = {**TASKS[name], "split": split if TASKS[name].get("text") else "all"}
    task = StreamTask(length=max(length, 4 * options.get("pairs", 8)), **options)
    most = task.pairs if pairs is None else min(pairs, task.pairs)
    return dataclasses.replace(task, length=length, pairs=min(most, length // 4))


def build(settings: Settings, name: str, task: str, options: Record | None = None) -> nn.Module:
    """A fresh model, as large as "lmm".

    Args:
        settings: of the experiment.
        name: one of `MODELS`.
        task: one of `TASKS`, for its vocabulary.
        options: changes of the memory, see `ABLATIONS`.
    """
    s = settings
    vocabulary = task_of(task, 2048).vocabulary
    common: Record = {
        "vocab_size": vocabulary,
        "num_hidden_layers": s.layers,
        "num_attention_heads": 2,
        "tie_word_embeddings": False,
        "shift_labels": False,
    }

    def titans(width: int, **more: Any) -> MemoryLanguageModel:
        memory = {**s.memory, **more.pop("memory_options", {}), **(options or {})}
        config = TitansConfig("lmm", hidden_size=width, memory_options=memory, persistent=0, **common, **more)
        return TitansForCausalLM(config)

    def even(width: int) -> int:
        return width + width % 2  # half a width for each of two heads

    with torch.device("meta"):
        size = parameter_count(titans(s.hidden))
    makers: dict[str, Callable[[int], Any]] = {
        "lmm": lambda width: titans(s.hidden),
        "gated deltanet": lambda width: titans(even(width), preset="gated_deltanet", memory_options={"gates": "hard"}),
        "window": lambda width: TransformerForCausalLM(
            TransformerConfig(hidden_size=even(width), window=s.window, **common)
        ),
        "lstm": lambda width: RecurrentForCausalLM(RecurrentConfig(hidden_size=width, **common)),
    }
    if name == "peer":
        from memory_titan.experiments.needles_peer import PeerModel

        return PeerModel(vocabulary, s.hidden, s.layers, s.window, PEER_LIMIT)
    if name == "lmm":
        return titans(s.hidden)
    return makers[name](width_of_size(makers[name], size))


def train(
    settings: Settings,
    model: Any,
    task: str,
    seed: int,
    rate: float = 1.0,
    price: float = 1.0,
    steps: float = 1.0,
    stages: int | None = None,
) -> Record:
    """Through the stages; the model is then in eval mode.

    Args:
        settings: of the experiment.
        model: of `build`.
        task: one of `TASKS`.
        seed: of the streams.
        rate, price, steps: times those of every stage.
        stages: so many of them, from the first; None: all.

    Returns:
        CPU seconds, those that the stages would take with `steps=1`, and the loss's curve of each stage.
    """
    generator = torch.Generator().manual_seed(10_000 + seed)
    priced, spent = isinstance(model, TitansForCausalLM), 0.0
    seconds, curves = [], []
    for stage in settings.courses()[:stages]:
        count = max(1, round(stage.steps * steps))

        def set_price(step: int, stage: Stage = stage, count: int = count) -> None:
            if priced:
                model.config.write_price = price * stage.price * min(1.0, step / max(1.0, stage.rise * count))

        def draw(step: int, stage: Stage = stage) -> dict[str, Tensor]:
            length = stage.lengths[int(torch.randint(len(stage.lengths), (1,), generator=generator))]
            rows = min(32, max(2, settings.tokens // length))
            x, y = task_of(task, length, "train", stage.pairs).batch(rows, generator)
            return {"input_ids": x, "labels": y}

        set_price(0)
        course = fit(model, draw, count, stage.rate * rate, after=set_price)
        seconds.append(course.cpu_seconds / count * stage.steps)
        spent += course.cpu_seconds
        curves.append([(step, round(loss, 4)) for step, loss in course.curves["loss"]])
    model.eval()
    return {"cpu_seconds": round(spent, 1), "cpu_seconds_of_all": sum(seconds), "loss": curves}


@torch.no_grad()
def watch(model: nn.Module, task: str) -> Record:
    """The mean step and decay of each layer's memory on filler and on pairs, over streams of 2,048 tokens."""
    made = task_of(task, 2048)
    x, _ = made.batch(4, torch.Generator().manual_seed(6))
    filler = x >= made.keys + made.values
    with trace(model.eval()) as traces:
        model(input_ids=x)
    calls = [call for each in traces.values() for call in each if isinstance(call, Trace)]
    return {
        "step, filler": [float(call.step[filler].mean()) for call in calls],
        "step, pairs": [float(call.step[~filler].mean()) for call in calls],
        "decay, filler": [float(1 - call.keep[filler].mean()) for call in calls],
    }


def test(settings: Settings, model: nn.Module, task: str, lengths: list[int]) -> list[Record]:
    """Right answers, asked for at the end of streams of these lengths; None where the model cannot read so much."""
    told = []
    memories = [part.config for part in model.modules() if isinstance(part, NeuralMemory)]
    trained = [memory.chunk_size for memory in memories]
    for memory in memories:
        memory.chunk_size = settings.test_chunk
    for length in lengths:
        streams = settings.streams if length <= 65_536 else settings.long_streams if length <= 2**21 else 1
        made, begun = task_of(task, length), time.perf_counter()
        (cell,) = ask_streams(model, made.stream, length, made.pairs, streams, seed=1)
        seconds = time.perf_counter() - begun
        told.append(
            {"length": length, "right": cell.right, "asked": cell.total, "tokens_a_second": streams * length / seconds}
        )
    for memory, size in zip(memories, trained, strict=True):
        memory.chunk_size = size
    return told


def run(settings: Settings, progress: Callable[[str], None]) -> Record:
    """Train and test all of it.

    Args:
        settings: of the experiment.
        progress: told a line after each model.

    Returns:
        A record that can be written as JSON: settings, versions, the rates tried, every run.
    """
    torch.set_flush_denormal(True)
    shown = {**asdict(settings), "finished": "", "keep": ""}
    rest = {"seeds": None, "ablation_seeds": None, "ablations": None, "models": None, "tasks": settings.tasks[0]}
    finished = Finished(Path(settings.finished) if settings.finished else None, {**shown, **rest})
    runs: list[Record] = []

    def job(label: str, seed: int, do: Callable[[], Record]) -> Record:
        record = finished.get(f"{label}, seed {seed}", do)
        runs.append({"label": label, "seed": seed, **record})
        shares = [f"{each['length']:,}: {each['right']}/{each['asked']}" for each in record["test"] if each["asked"]]
        progress(f"{label}, seed {seed} ({record['train']['cpu_seconds']} s): {', '.join(shares)}")
        return runs[-1]

    def one(task: str, name: str, seed: int, options: Record | None = None, **training: Any) -> Record:
        torch.manual_seed(seed)
        changed = dict(options or {})
        price, whole = changed.pop("price", 1.0), name == "lmm" and options is None
        model: Any = build(settings, name, task, changed)
        went = train(settings, model, task, seed, price=price, **training)
        more = [settings.longest] if whole and task == settings.tasks[0] and settings.longest else []
        lengths = [length for length in settings.lengths + more if name != "peer" or length <= PEER_LIMIT]
        told: Record = {"parameters": parameter_count(model), "train": went, "rate": training.get("rate", 1.0)}
        if isinstance(model, TitansForCausalLM):
            told["gates"] = watch(model, task)
        if settings.keep and whole:
            model.config.task = settings_of(task_of(task, 2048))
            model.config.write_price = 0.0
            model.save_pretrained(Path(settings.keep) / f"{task.replace(' ', '-')}-{seed}")
        return {**told, "test": test(settings, model, task, lengths)}

    for task in settings.tasks:
        for seed in range(settings.seeds):
            job(task, seed, partial(one, task, "lmm", seed))
    task = settings.tasks[0]
    spent = [each["train"]["cpu_seconds"] for each in runs if each["label"] == task]
    budget = sum(spent) / len(spent)
    tried: dict[str, Record] = {}
    for name in [each for each in settings.models if each != "lmm"]:
        tried[name] = told = finished.get(f"rates of {name}", partial(_rates, settings, name, task, budget))
        for seed in range(settings.seeds):
            job(name, seed, partial(one, task, name, seed, rate=told["best"], steps=told["steps"]))
    for label in settings.ablations:
        for seed in range(settings.ablation_seeds):
            job(f"lmm, {label}", seed, partial(one, task, "lmm", seed, ABLATIONS[label]))
    versions = {"python": platform.python_version(), "torch": torch.__version__, "memory_titan": __version__}
    return {"experiment": "needles", "settings": shown, "versions": versions, "rates": tried, "runs": runs}


def _rates(settings: Settings, name: str, task: str, budget: float) -> Record:
    """The rate, times the stages', with the lowest loss after the first stage, on a seed apart; and how many times the
    stages' steps a model can do in the CPU time of "lmm"."""
    losses = {}
    for rate in settings.rates:
        torch.manual_seed(100)
        model = build(settings, name, task)
        losses[rate] = train(settings, model, task, 100, rate=rate, stages=1)["loss"][-1][-1][1]
    torch.manual_seed(100)
    model = build(settings, name, task)
    steps = round(budget / train(settings, model, task, 100, steps=0.05)["cpu_seconds_of_all"], 2)
    best = min(losses, key=lambda rate: losses[rate])
    return {"losses": {str(rate): loss for rate, loss in losses.items()}, "best": best, "steps": steps}
