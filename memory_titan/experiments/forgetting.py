"""Learned forgetting: more facts than slots, some of which expire. Does what is dropped deserve it, and was it learned?

The stream is `tasks.forgetting`'s. MemNet is trained on it beside models of its size without slots, then with one part
after another of its forgetting taken out or exchanged. Of each bank the lives of its slots are followed.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan import __version__
from memory_titan.evaluation.finished import Finished
from memory_titan.experiments import slot_lives
from memory_titan.experiments.forgetting_report import report
from memory_titan.experiments.slot_page import slot_page
from memory_titan.experiments.training import fit
from memory_titan.memory.slots.layer import MultiHeadMemoryBank
from memory_titan.memory.slots.rule import SlotGates
from memory_titan.memory.slots.trace import SlotTrace
from memory_titan.memory.trace import trace
from memory_titan.models import (
    MemNet,
    MemNetConfig,
    RecurrentConfig,
    RecurrentForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
    parameter_count,
    width_of_size,
)
from memory_titan.models.memnet import MemNetLayer
from memory_titan.tasks.forgetting import ASK, GONE, KINDS, MARKS, Facts, ForgettingTask

__all__ = ["ABLATIONS", "Settings", "answers", "build", "report", "run", "summary", "train", "watch"]
Record = dict[str, Any]
MODELS = ("memnet", "transformer", "lstm", "neural")
EASY = ({"length": 56, "expiring": 2, "overwritten": 1, "staying": 2},
        {"length": 80, "expiring": 3, "overwritten": 2, "staying": 3})  # fmt: skip
# What is taken out or exchanged: options of the model, those of its bank under "bank"
ABLATIONS: dict[str, Record] = {
    "erase off": {"bank": {"erase": False}},
    "decay none": {"bank": {"decay": "none"}},
    "decay all": {"bank": {"decay": "all"}},
    "allocation dnc": {"bank": {"allocation": "dnc"}},
    "allocation gumbel": {"bank": {"allocation": "gumbel"}},
    "staleness usage": {"bank": {"staleness": "usage"}},
    "pressure 0.05": {"pressure_weight": 0.05},
    "pressure 0.3": {"pressure_weight": 0.3},
    "write gate off": {"bank": {"write_gate": False}},
    "slots 4": {"bank": {"slots": 4}},
    "slots 12": {"bank": {"slots": 12}},
}
NAMES = ("too late", "in time", "overwritten", "staying")
EDGES = (16, 32, 64)  # tokens: the distances "up to 16", "17 to 32", "33 to 64", "over 64"
DISTANCES = ("1-16", "17-32", "33-64", "65+")


@dataclass
class Settings:
    """Of the experiment. The defaults are the documented run."""

    seeds: int = 3
    task: Record = field(default_factory=dict)  # fields of ForgettingTask
    hidden: int = 64  # of MemNet; the others get as many parameters
    window: int = 8
    slots: int = 6  # a head
    heads: int = 2
    top_k: int = 4
    chunk_size: int = 8
    rows: int = 16  # a batch; twice as many in the first, easiest part
    steps: int = 140
    baseline_steps: int = 280  # of the models without slots, which cost less and learn later
    curriculum: float = 0.5  # the share of the steps with fewer facts in shorter rows, for every model
    rates: list[float] = field(
        default_factory=lambda: [3e-3, 6e-3]
    )  # each model takes the better, by rows and a seed of their own
    ablations: list[str] = field(default_factory=lambda: list(ABLATIONS))
    ablation_seeds: int = 1  # of the ablations, at most as many as seeds are run
    test_rows: int = 512
    watched_rows: int = 128  # of these, those whose slots are followed

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.ablations) - set(ABLATIONS)):
            raise ValueError(f"there is no ablation {', '.join(unknown)}; there are {', '.join(ABLATIONS)}")
        if min(self.seeds, self.steps, self.baseline_steps, self.rows, len(self.rates)) < 1:
            raise ValueError("seeds, steps, baseline_steps, rows and rates must be at least 1")
        if not 1 <= self.watched_rows <= self.test_rows:
            raise ValueError(f"watched_rows must be from 1 to test_rows={self.test_rows}; got {self.watched_rows}")
        if not 0 <= self.curriculum <= 1:
            raise ValueError(f"curriculum must be from 0 to 1; got {self.curriculum}")
        self.stream  # noqa: B018 - refuses fields that cannot be

    @property
    def stream(self) -> ForgettingTask:
        """What is tested, and trained on at the end."""
        return ForgettingTask(**self.task)

    def at(self, step: int, steps: int) -> tuple[ForgettingTask, int]:
        """The task and the rows of a step: fewer facts in shorter rows at first."""
        part, last = step / steps / max(self.curriculum, 1e-9), self.stream
        if part >= 1:
            return last, self.rows
        easy = {name: min(value, getattr(last, name)) for name, value in EASY[part >= 0.6].items()}
        return ForgettingTask(**{**self.task, **easy}), self.rows * (2 if part < 0.6 else 1)


def build(name: str, settings: Settings, options: Record | None = None) -> nn.Module:
    """A model of `MODELS`, untrained; those other than MemNet have about as many parameters as it.

    Args:
        name: which.
        settings: of the experiment.
        options: of `MemNetConfig`, over the usual ones; its bank's are joined with the usual ones.
    """
    options = dict(options or {})
    shared: Record = {
        "vocab_size": settings.stream.vocabulary, "num_hidden_layers": 2, "num_attention_heads": 2,
        "initializer_range": 0.02, "tie_word_embeddings": False, "shift_labels": False,
    }  # fmt: skip
    slots = {"heads": settings.heads, "slots": settings.slots, "chunk_size": settings.chunk_size}
    bank = {**slots, "top_k": settings.top_k, **options.pop("bank", {})}
    if name == "memnet":
        return MemNet(MemNetConfig(window=settings.window, hidden_size=settings.hidden, bank=bank, **shared, **options))

    def sized(width: int) -> nn.Module:
        if name == "transformer":
            return TransformerForCausalLM(TransformerConfig(hidden_size=width, window=settings.window, **shared))
        if name == "lstm":
            return RecurrentForCausalLM(RecurrentConfig(hidden_size=width, **shared))
        neural = {"heads": settings.heads, "depth": 1, "chunk_size": 16}
        own: Record = {"memory": "neural", "window": settings.window, "bank": neural}
        return MemNet(MemNetConfig(hidden_size=width, **own, **shared))

    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    with torch.device("meta"):
        wanted = parameter_count(build("memnet", settings))
    return sized(width_of_size(sized, wanted))


def train(
    name: str, settings: Settings, seed: int, rate: float, options: Record | None = None
) -> tuple[nn.Module, Record]:
    """A trained model, and how it went: parameters, CPU seconds, the loss's curve."""
    torch.manual_seed(seed)
    model = build(name, settings, options)
    steps = settings.steps if name == "memnet" else settings.baseline_steps
    chance = torch.Generator().manual_seed(1_000 + seed)

    def draw(step: int) -> dict[str, Tensor]:
        task, rows = settings.at(step, steps)
        x, y, _ = task.batch(rows, chance)
        return {"input_ids": x, "labels": y}

    course = fit(model, draw, steps, rate)
    curve = [(step, round(value, 4)) for step, value in course.curves["loss"]]
    went = {"parameters": parameter_count(model), "cpu_seconds": round(course.cpu_seconds, 1), "loss": curve}
    return model.eval(), went


@torch.no_grad()
def answers(model: nn.Module, x: Tensor, y: Tensor, facts: Facts) -> Record:
    """Shares of right answers: by kind, by kind and distance, over all whose answer is a value; and false "gone"."""
    said = model.eval()(input_ids=x).logits.argmax(-1)
    asked = facts.asked[:, : int((facts.asked[0] < x.shape[1]).sum())]
    n = asked.shape[1]
    wanted, kind, far = facts.answer[:, :n], facts.kind[:, :n], asked - facts.written[:, :n]
    gave = said.gather(1, asked)
    right, value = gave == wanted, wanted != GONE
    kinds = torch.where(kind == 0, value.long(), kind + 1)  # as in NAMES
    bucket = torch.bucketize(far, torch.tensor(EDGES))

    def share(of: Tensor, where: Tensor) -> float | None:
        return float(of[where].float().mean()) if bool(where.any()) else None

    return {
        "by_kind": {name: share(right, kinds == i) for i, name in enumerate(NAMES)},
        "by_distance": {
            name: {label: share(right, (kinds == i) & (bucket == j)) for j, label in enumerate(DISTANCES)}
            for i, name in enumerate(NAMES)
        },
        "values": share(right, value),
        "all": float(right.float().mean()),
        "gone_instead": share(gave == GONE, value),
        "gone_instead_far": share(gave == GONE, value & (far > EDGES[-1])),
    }


@torch.no_grad()
def watch(model: nn.Module, x: Tensor, facts: Facts, settings: Settings) -> Record:
    """What the slots did: lives, survival, writes, reads, what was dropped beside other policies, decay."""
    decays: list[SlotGates] = []
    layer = next(each for each in model.modules() if isinstance(each, MemNetLayer))
    assert layer.controller.gating is not None
    handle = layer.controller.gating.register_forward_hook(lambda _, __, gates: decays.append(gates))
    try:
        with trace(model) as traces:
            model.eval()(input_ids=x)
    finally:
        handle.remove()
    (told,) = (call for calls in traces.values() for call in calls)
    assert isinstance(told, SlotTrace)
    bank = layer.memory
    assert isinstance(bank, MultiHeadMemoryBank)
    length, deltas = x.shape[1], list(range(0, x.shape[1] + 1, 4))
    rows = slot_lives.follow(told, facts)
    heads, one = slot_lives.heads_apart(rows), slot_lives.pooled(rows)
    lives = [life for each in one for life in each.lives]
    groups = {kind: [life for life in lives if life.role == kind] for kind in KINDS}
    groups["no fact"] = [life for life in lives if life.role not in KINDS]
    ages = [age for each in one for age in each.overwritten_after]
    taken, written = told.taken.mean(-1), (told.step > slot_lives.HALF).float().mean(-1)
    streams = [[each.events for each in head] for head in heads]
    own = slot_lives.merged([slot_lives.dropped(head, facts) for head in heads])
    decay = None
    if decays[0].decay is not None:
        decay = torch.sigmoid(decays[0].decay[..., None] + bank.slot_decay).mean((-1, -2))

    return {
        "survival": {
            name: {
                "lives": len(group),
                "ended": sum(life.died is not None for life in group),
                "half_life": slot_lives.half_life(group, length),
                "s": [round(s, 4) for s in slot_lives.survival(group, length, deltas)] if group else None,
            }
            for name, group in groups.items()
        },
        "deltas": deltas,
        "gate": slot_lives.by_role(told.step.mean(-1), facts),
        "written": slot_lives.by_role(written, facts),
        "written_all": float(written.mean()),
        "taken": slot_lives.by_role(taken, facts),
        "taken_a_row": float(told.taken.sum(1).mean()),
        "read_entropy": slot_lives.by_role(slot_lives.read_entropy(told), facts),
        "decay": None if decay is None else slot_lives.by_role(decay, facts),
        "overwrite_age": sum(ages) / len(ages) if ages else None,
        "overwrites_a_row": len(ages) / len(one),
        "dropped": own.shares(),
        "evictions_a_row": own.evictions / len(one),
        "found_by_any_head": slot_lives.found_anywhere(rows),
        "own_writes": policies(streams, facts, told.slots),
    }


def policies(streams: list[list[Any]], facts: Facts, slots: int) -> Record:
    """What each policy would have dropped of streams of writes, a list of rows each; all together."""
    return {
        policy: slot_lives.merged([slot_lives.replay(each, facts, slots, policy) for each in streams]).shares()
        for policy in slot_lives.POLICIES
    }


def run(settings: Settings, progress: Callable[[str], None], finished: Path | None = None) -> Record:
    """Train and measure all of it.

    Args:
        settings: of the experiment.
        progress: told a line after each model.
        finished: a file of lines, one a finished model; what it has is not done again. None: nothing is kept.

    Returns:
        A record that can be written as JSON: settings, versions, the rates tried, every run, and their summary.

    Raises:
        ValueError: `finished` is of other settings.
    """
    held = Finished(finished, {**asdict(settings), "seeds": None, "ablations": None, "ablation_seeds": None})
    x, y, facts = settings.stream.batch(settings.test_rows, torch.Generator().manual_seed(7))
    held_out = settings.stream.batch(settings.test_rows, torch.Generator().manual_seed(8))  # rates are chosen by these
    part = slice(settings.watched_rows)
    few = Facts(**{name: value[part] for name, value in vars(facts).items()})

    def one(label: str, name: str, seed: int, rate: float, options: Record | None) -> Record:
        def make() -> Record:
            start = None
            if name == "memnet" and label == "memnet":  # what is there before anything was learned
                torch.manual_seed(seed)
                start = watch(build(name, settings, options), x[part], few, settings)
            model, went = train(name, settings, seed, rate, options)
            done = {"label": label, "seed": seed, "rate": rate, **went, "accuracy": answers(model, x, y, facts)}
            if label == "memnet" and not seed:
                done["page"] = slot_page(model, x, names_of(x[0], settings.stream))
            if name == "memnet":
                done |= {"slots": watch(model, x[part], few, settings), "start": start}
            return done

        done = held.get(f"{label} {seed}", lambda: _rounded(make()))
        kinds = " ".join(f"{kind} {_short(share)}" for kind, share in done["accuracy"]["by_kind"].items())
        progress(f"{label}, seed {seed}: {kinds} ({done['cpu_seconds']} s)")
        return done

    tried: dict[str, dict[str, float | None]] = {}
    for name in MODELS:
        tried[name] = {}
        for rate in settings.rates:
            if len(settings.rates) > 1:
                trial = held.get(f"rate {name} {rate}", lambda name=name, rate=rate: _rounded({  # type: ignore[misc]
                    "all": answers(train(name, settings, 99, rate)[0], *held_out)["all"]
                }))  # fmt: skip
                progress(f"{name} at a rate of {rate}: {_short(trial['all'])} of all answers right, on a seed apart")
            tried[name][str(rate)] = trial["all"] if len(settings.rates) > 1 else None
    best = {name: max(settings.rates, key=lambda rate: tried[name][str(rate)] or 0.0) for name in MODELS}
    runs = []
    for seed in range(settings.seeds):
        runs += [one(name, name, seed, best[name], None) for name in MODELS]
    for seed in range(min(settings.seeds, settings.ablation_seeds)):
        runs += [one(label, "memnet", seed, best["memnet"], ABLATIONS[label]) for label in settings.ablations]
    counts = sorted({settings.slots, settings.slots * settings.heads})
    return {
        "experiment": "forgetting",
        "settings": asdict(settings),
        "task": asdict(settings.stream),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "memory_titan": __version__},
        "rates": tried,
        "only_facts": {str(n): policies([slot_lives.only_facts(few)], few, n) for n in counts},
        "runs": runs,
        "summary": summary(runs),
    }


def names_of(x: Tensor, task: ForgettingTask) -> list[str]:
    """Of a first row's tokens `[T]`: a kind's letter, k and v with numbers, "?", "gone", "."."""
    last = MARKS + task.keys

    def name(token: int) -> str:
        if token < MARKS:
            return "EOS"[token] if token < ASK else {ASK: "?", GONE: "gone"}[token]
        return f"k{token - MARKS}" if token < last else f"v{token - last}" if token < last + task.values else "."

    return [name(token) for token in x.tolist()]


def summary(runs: list[Record]) -> dict[str, dict[str, list[float] | None]]:
    """By label: each figure's mean, standard deviation and number of seeds; None where a seed has none.

    Dots join the names of what is nested: "accuracy.by_kind.staying".
    """
    found: dict[str, dict[str, list[float] | None]] = {}
    for label in dict.fromkeys(run["label"] for run in runs):
        flat = [_flat(run) for run in runs if run["label"] == label]
        found[label] = {}
        for name in flat[0]:
            values = [each.get(name) for each in flat]
            known = [float(value) for value in values if value is not None]
            found[label][name] = _spread(known) if len(known) == len(values) else None
    return found


def _spread(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    square = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return [round(mean, 4), round(math.sqrt(square), 4), len(values)]


def _flat(tree: Record, before: str = "") -> dict[str, float | None]:
    """The numbers of a tree, under their dotted names; lists are left out."""
    found: dict[str, float | None] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        elif value is None or isinstance(value, int | float):
            found[before + name] = value
    return found


def _rounded(tree: Any) -> Any:
    """With four digits after the point."""
    if isinstance(tree, dict):
        return {name: _rounded(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_rounded(value) for value in tree]
    return round(tree, 4) if isinstance(tree, float) else tree


def _short(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f}"
