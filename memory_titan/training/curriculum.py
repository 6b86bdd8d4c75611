"""Training a graft in phases, each from the weights of the one before, with more asked of the memory in each.

    OUTPUT/data/1a_train.jsonl, 1a_test.jsonl      drawn when the phase begins
    OUTPUT/1a/latest, OUTPUT/1a/best               its checkpoints
    OUTPUT/curriculum.json                         what each phase came to

A phase ends by success or by its steps. A run that was stopped goes on in its phase, exactly where it stood.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml

from memory_titan.graft.calibrate import calibrate
from memory_titan.graft.config import MAGConfig
from memory_titan.graft.model import MemoryModel, get_memory_model
from memory_titan.tasks.code_retrieval import CodeRetrievalTask, SourceRetrievalTask
from memory_titan.tasks.code_source import read_corpus
from memory_titan.tasks.dependency import DependencyTask
from memory_titan.tasks.examples import Example, load_examples, load_prose
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.needle import NeedleTask
from memory_titan.tasks.ruler import HuggingFace
from memory_titan.tasks.text_task import TextTask
from memory_titan.training.checkpoint import CheckpointError, find_checkpoint, load_weights
from memory_titan.training.lower_cache import with_lower
from memory_titan.training.mag import TrainConfig, train

PRESETS = ("cpu", "gpu")
TASKS: dict[str, Any] = {
    "hash-hop": HashHopTask,
    "needle": NeedleTask,
    "dependency": DependencyTask,
    "code-retrieval": CodeRetrievalTask,
    "source-retrieval": SourceRetrievalTask,  # of the standard library
}
_TEST_SEED = 7_000_001  # test texts are none of those trained on


@dataclass(frozen=True)
class Phase:
    """One phase."""

    name: str
    goal: str
    task: str  # of `TASKS`
    data: Mapping[str, Any]  # the task's options
    samples: int  # to train on
    tests: int = 16  # to evaluate on
    success: float | None = None  # share of test answers right that ends it
    train: Mapping[str, Any] = field(default_factory=dict)  # fields of `TrainConfig`, over the curriculum's


@dataclass(frozen=True)
class Curriculum:
    """Phases, and the graft they train."""

    graft: Mapping[str, Any]  # fields of `MAGConfig`
    phases: tuple[Phase, ...]
    train: Mapping[str, Any] = field(default_factory=dict)  # fields of `TrainConfig`
    calibrate: int = 0  # samples that a new graft takes its start from
    prose: str | None = None  # a text file, or "topics": the first half of Python's help
    prose_share: float = 0.25  # of the texts


def load_curriculum(name: str) -> Curriculum:
    """A preset, or a YAML file of the same form.

    Raises:
        ValueError: it is no curriculum; the message names the part that is wrong.
        OSError: it cannot be read.
    """
    if name in PRESETS:
        text = files("memory_titan.training").joinpath("curricula", f"{name}.yaml").read_text("utf-8")
    else:
        text = Path(name).read_text("utf-8")
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not YAML: {error}") from None
    if not isinstance(given, dict) or not given.get("phases"):
        raise ValueError(f"{name} is no curriculum: it has no phases")
    try:
        phases = tuple(Phase(**phase) for phase in given.pop("phases"))
        curriculum = Curriculum(phases=phases, **given)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None
    MAGConfig.from_dict(curriculum.graft)
    for phase in curriculum.phases:
        if phase.task not in TASKS:
            raise ValueError(f"{name}, phase {phase.name}: task must be one of {', '.join(TASKS)}; got {phase.task!r}")
        config_of(curriculum, phase)
        try:
            if phase.task != "source-retrieval":  # which would read the whole library
                task_of(phase)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}, phase {phase.name}: {error}") from None
    return curriculum


def task_of(phase: Phase) -> TextTask:
    """What draws a phase's samples."""
    first = [read_corpus()] if phase.task == "source-retrieval" else []
    task: TextTask = TASKS[phase.task](*first, **phase.data)
    return task


def config_of(curriculum: Curriculum, phase: Phase) -> TrainConfig:
    """How a phase is trained.

    Raises:
        ValueError: a field that `TrainConfig` does not have, or a value that cannot be.
    """
    given = {**curriculum.train, **phase.train, "success": phase.success}
    if unknown := sorted(set(given) - {f.name for f in fields(TrainConfig)}):
        raise ValueError(f"phase {phase.name}: training has no option {', '.join(unknown)}")
    return TrainConfig(**given)


def run(
    curriculum: Curriculum,
    base_model: Any,
    tokenizer: Any,
    output: Path,
    *,
    cache: Path | None = None,
    seed: int = 0,
    report: Callable[[str, dict[str, Any]], None] = lambda phase, record: None,
) -> dict[str, dict[str, Any]]:
    """Train all phases that are not done yet.

    Args:
        curriculum: what to do.
        base_model, tokenizer: the frozen model.
        output: folder for everything.
        cache: folder for the lower layers' states; None: they are computed anew each time.
        seed: of data, start and order.
        report: called with the phase's name and each record of `train`.

    Returns:
        by phase: steps, seconds, best (share of its test answers right, at its best).
    """
    told = output / "curriculum.json"
    done: dict[str, dict[str, Any]] = json.loads(told.read_text("utf-8")) if told.exists() else {}
    model: MemoryModel | None = None
    before: Path | None = None
    for number, phase in enumerate(curriculum.phases):
        folder = output / phase.name
        if phase.name not in done:
            examples, tests = _data(curriculum, phase, number, tokenizer, output, seed)
            prose = _prose(curriculum, tokenizer, examples)
            if model is None:
                model = _start(curriculum, base_model, before, examples, seed)
            elif before is not None:
                load_weights(before, model)
            if cache is not None:
                examples, tests, prose = (with_lower(model, part, cache) for part in (examples, tests, prose))
            try:
                resume: Path | None = find_checkpoint(folder / "latest")
            except CheckpointError:
                resume = None
            name = phase.name

            def tell(record: dict[str, Any], name: str = name) -> None:
                report(name, record)

            progress = train(
                model, examples, tests, config_of(curriculum, phase), folder, prose=prose, resume=resume,
                report=tell, details={"phase": name, "goal": phase.goal},
            )  # fmt: skip
            done[name] = {key: progress[key] for key in ("step", "seconds", "best")} | {"goal": phase.goal}
            told.write_text(json.dumps(done, indent=2) + "\n", "utf-8")
        before = folder / "best"
    return done


def _start(
    curriculum: Curriculum, base_model: Any, before: Path | None, examples: list[Example], seed: int
) -> MemoryModel:
    """The graft that the first phase to be trained starts from."""
    if before is not None:
        return MemoryModel.from_pretrained(base_model, str(before))
    torch.manual_seed(seed)
    model = get_memory_model(base_model, MAGConfig.from_dict(curriculum.graft))
    if curriculum.calibrate:
        calibrate(model, [example.ids[None] for example in examples[-curriculum.calibrate :]], seed)
    return model


def _data(
    curriculum: Curriculum, phase: Phase, number: int, tokenizer: Any, output: Path, seed: int
) -> tuple[list[Example], list[Example]]:
    """A phase's samples, drawn if they are not there, as tokens."""
    folder, found = output / "data", []
    folder.mkdir(parents=True, exist_ok=True)
    for kind, count, offset in (("train", phase.samples, 0), ("test", phase.tests, _TEST_SEED)):
        path = folder / f"{phase.name}_{kind}.jsonl"
        if not path.exists():
            new = path.with_suffix(".new")
            ruler = HuggingFace(tokenizer, Path(getattr(tokenizer, "name_or_path", "")).name or "tokens")
            with new.open("w", encoding="ascii") as file:
                for sample in task_of(phase).samples(count, seed=seed * 1000 + number + offset, ruler=ruler):
                    file.write(sample.to_json() + "\n")
            new.replace(path)
        found.append(load_examples(path, tokenizer))
    return found[0], found[1]


def _prose(curriculum: Curriculum, tokenizer: Any, examples: list[Example]) -> list[Example]:
    """Texts in which nothing is asked, as many as the share says."""
    if curriculum.prose is None or not curriculum.prose_share:
        return []
    length = sorted(len(example.ids) for example in examples)[len(examples) // 2]
    number = round(len(examples) * curriculum.prose_share / (1 - curriculum.prose_share))
    return load_prose(curriculum.prose, tokenizer, length, number)
