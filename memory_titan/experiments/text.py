"""Experiment: what a memory brings on real text. Bits per byte of models of one size, trained for the same CPU time.

Bytes of Python's own sources; files held out by a hash of their paths. Each model is then read at one, four and
sixteen times the length of its training steps.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from memory_titan import __version__
from memory_titan.evaluation.finished import Finished
from memory_titan.evaluation.language_text import Text, bits_per_byte
from memory_titan.experiments.text_report import report
from memory_titan.models import MemoryLanguageModel, parameter_count, width_of_size
from memory_titan.training.lm import train
from memory_titan.training.lm_config import LMConfig, make_model
from memory_titan.training.text import Corpus, TextConfig, read_text

__all__ = ["MODELS", "Settings", "build", "report", "run"]
Record = dict[str, Any]
TITANS = ("mag", "mac", "mal", "lmm")
MODELS = (*TITANS, "window", "lstm")
TRIAL = 4  # steps that tell how long one takes


@dataclass
class Settings:
    """The documented run; `runs/experiments/text.yaml` names the same.

    Raises:
        ValueError: a model or a number that cannot be.
    """

    models: list[str] = field(default_factory=lambda: list(MODELS))
    seeds: int = 3
    files: list[str] = field(default_factory=lambda: ["python-sources"])
    test_bytes: int = 262_144  # of the held-out files
    hidden: int = 128  # of "mag"; the others get the width that makes them as large
    layers: int = 4
    heads: int = 4
    window: int = 64  # of attention; MAC's segment
    memory: Record = field(default_factory=lambda: {"chunk_size": 32, "expansion": 2, "context": 1})
    rows: int = 8
    length: int = 512  # tokens of a row in a step; the state goes on to the next step
    seconds: float = 240.0  # of CPU, of each training
    rates: list[float] = field(default_factory=lambda: [1e-3, 3e-3])
    sweep: float = 0.25  # of the seconds, for each rate, on a seed apart
    contexts: list[int] = field(default_factory=lambda: [512, 2048, 8192])
    finished: str = ""  # a file of finished jobs, one a line: what it has is not done again

    def __post_init__(self) -> None:
        if unknown := [each for each in self.models if each not in MODELS]:
            raise ValueError(f"models: there is no {', '.join(unknown)}; there are {', '.join(MODELS)}")
        for name in ("seeds", "test_bytes", "hidden", "layers", "heads", "window", "rows", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not self.seconds > 0 or not 0 < self.sweep <= 1:
            raise ValueError(f"seconds must be positive, and sweep at most 1; got {self.seconds} and {self.sweep}")
        if not self.models or not self.rates or not self.contexts:
            raise ValueError("models, rates and contexts must not be empty")


def fields_of(settings: Settings, name: str, width: int) -> Record:
    """A model of `MODELS` as `train lm` is told of it."""
    s = settings
    common: Record = {"hidden_size": width, "num_hidden_layers": s.layers}
    if name == "lstm":
        return {"type": "recurrent", "cell": "lstm", **common}
    common |= {"num_attention_heads": s.heads, "window": s.window}
    if name == "window":
        return {"type": "transformer", **common}
    return {"type": "titans", "architecture": name, "segment": s.window, "memory_options": s.memory, **common}


def build(settings: Settings, name: str, corpus: Corpus, seed: int) -> MemoryLanguageModel:
    """A fresh model, as large as "mag".

    Args:
        settings: of the experiment.
        name: one of `MODELS`.
        corpus: that it is to read.
        seed: of its weights.
    """

    def of(width: int) -> MemoryLanguageModel:
        return make_model(fields_of(settings, name, width), corpus, seed)

    if name == "mag":
        return of(settings.hidden)
    with torch.device("meta"):
        size = parameter_count(build(settings, "mag", corpus, seed))
    return of(width_of_size(of, size, 1 if name == "lstm" else 2 * settings.heads))


def trained(
    settings: Settings, name: str, corpus: Corpus, seed: int, rate: float, seconds: float
) -> tuple[MemoryLanguageModel, Record]:
    """A model after so much CPU time, and how it went."""
    alone = replace(corpus, held_out=[])
    told: Record = {}

    def go(steps: int, losses: list[float]) -> tuple[MemoryLanguageModel, float]:
        model = build(settings, name, corpus, seed)
        config = LMConfig(
            model=fields_of(settings, name, model.config.hidden_size),
            data=TextConfig(settings.files),
            rows=settings.rows,
            length=settings.length,
            segment=settings.length,
            steps=steps,
            learning_rate=rate,
            seed=seed,
            eval_every=steps,
            save_every=steps,
        )
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            train(
                model, alone, config, Path(folder), report=lambda r: losses.append(r["loss"]) if "loss" in r else None
            )
        return model.eval(), time.process_time() - begun

    fixed = go(1, [])[1]  # the first step, reading and writing are in it
    each = max(1e-3, (go(1 + TRIAL, [])[1] - fixed) / TRIAL)
    steps = max(2, round(seconds / each))
    losses: list[float] = []
    model, spent = go(steps, losses)
    part = max(1, len(losses) // 20)
    curve = [sum(losses[i : i + part]) / len(losses[i : i + part]) for i in range(0, len(losses), part)]
    told = {"steps": steps, "cpu_seconds": round(spent, 1), "rate": rate, "loss": [round(x, 4) for x in curve]}
    return model, told


def _loss(told: Record) -> list[float]:
    """Of a step's record; none of others."""
    return [told["loss"]] if "loss" in told else []


def run(settings: Settings, progress: Callable[[str], None]) -> Record:
    """Train and test all of it.

    Args:
        settings: of the experiment.
        progress: told a line after each model.

    Returns:
        A record that can be written as JSON: settings, versions, the text, the rates tried, every run.
    """
    torch.set_flush_denormal(True)
    shown = {**asdict(settings), "finished": ""}
    finished = Finished(Path(settings.finished) if settings.finished else None, {**shown, "seeds": 0, "models": []})
    corpus = read_text(TextConfig(settings.files, eval_bytes=settings.test_bytes))
    test = [Text(each.tokens.long(), torch.tensor([0] + [1] * (len(each.tokens) - 1))) for each in corpus.held_out]

    def asked(model: MemoryLanguageModel, contexts: list[int]) -> list[Record]:
        found = bits_per_byte(model, test, contexts)
        return [{"context": each.context, "bits": each.bits_per_byte, "bytes": each.bytes} for each in found]

    def tried(name: str, rate: float) -> Record:
        model, told = trained(settings, name, corpus, 100, rate, settings.sweep * settings.seconds)
        return {**told, "test": asked(model, settings.contexts[:1])}

    def one(name: str, seed: int, rate: float) -> Record:
        model, told = trained(settings, name, corpus, seed, rate, settings.seconds)
        return {**told, "parameters": parameter_count(model), "test": asked(model, settings.contexts)}

    rates: Record = {}
    for name in settings.models:
        for rate in settings.rates:
            told = finished.get(f"{name} at {rate}", partial(tried, name, rate))
            rates.setdefault(name, {})[str(rate)] = told["test"][0]["bits"]
            progress(f"{name} at {rate:g}: {told['test'][0]['bits']:.3f} bits per byte after {told['steps']} steps")
    runs = []
    for seed in range(settings.seeds):
        for name in settings.models:
            best = min(settings.rates, key=lambda rate: rates[name][str(rate)])
            record = finished.get(f"{name}, seed {seed}", partial(one, name, seed, best))
            runs.append({"model": name, "seed": seed, **record})
            bits = ", ".join(f"{each['context']:,}: {each['bits']:.3f}" for each in record["test"])
            progress(f"{name}, seed {seed}, {record['steps']} steps: {bits}")
    return {
        "experiment": "text",
        "settings": shown,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "memory_titan": __version__},
        "text": {
            "files": len(corpus.train),
            "bytes": sum(len(each.tokens) for each in corpus.train),
            "test": len(test),
        },
        "rates": rates,
        "runs": runs,
    }
