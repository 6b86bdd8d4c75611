"""Continual learning: five tasks one after the other, and what is left of the first ones at the end.

`memory-titan experiment continual` runs it. Models of as many parameters read a stream of examples and never go back,
unless they replay what they kept; the buffer is then as many bytes as MemNet's memory has. After each task all are
tested: R[i, j] is the accuracy on task j after task i. At the test memories are read, and not written.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memory_titan import __version__
from memory_titan.experiments.continual_models import KINDS, Reader, Replay, Size, build, lesson, nearest
from memory_titan.experiments.continual_streams import STREAMS, Examples, Stream, make_stream
from memory_titan.experiments.training import fit
from memory_titan.memory.slots.layer import MemoryBankState
from memory_titan.models import MemNet, parameter_count

Matrix = list[list[float]]
Progress = Callable[[str], None]
# "+replay": of as many bytes as the memory has; "+few": of as many examples as the memory has slots a head; "+lesson":
# taught to read by random items before the first task, and then no weight is changed
MODELS = (*(f"{kind}{more}" for kind in KINDS for more in ("", "+replay")), "transformer+few", "memnet+lesson")
RESET, NEAREST, NEAREST_FEW = "memnet, reset", "neighbours", "neighbours+few"


@dataclass
class Settings:
    """What is run. The defaults are the documented run.

    Attributes:
        streams: of `STREAMS`.
        passes: by the protocol's name, how often a task is read: a number a stream, in the order of `STREAMS`; 0: the
            stream is not run so. Lessons, neighbours and numbers of slots are of the first protocol.
        models: of `MODELS`.
        seeds: of streams and models.
        tuning_seed: of none of these: the rate is chosen with it, by ACC after the first three tasks, for each stream,
            protocol and model.
        rates: learning rates to choose from; with one there is no choice. MemNet's is also that of MemNet with replay.
        lesson_rate: of the lesson in reading.
        batch: examples a step; a replay puts as many to them.
        looks: tests in the course of each task, the last at its end.
        lesson: steps of the lesson in reading.
        slots: a head, of the runs of MemNet on forgetting against slots; these are of the first protocol.
        train: digits to learn from with "permuted" (a task) and "split" (all together).
        familiarity: cosine from which an item counts as known: a number a stream, in the order of `STREAMS`.
        tasks, test, words, values: see `make_stream`.
        size: fields of `Size`.
    """

    streams: tuple[str, ...] = STREAMS
    passes: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"online": (1, 1, 1), "passes": (0, 3, 16)})
    models: tuple[str, ...] = MODELS
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int = 100
    rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    lesson_rate: float = 0.003
    batch: int = 16
    looks: int = 2
    lesson: int = 300
    slots: tuple[int, ...] = (32, 64, 128, 256)
    familiarity: tuple[float, ...] = (0.75, 0.9, 0.9)
    tasks: int = 5
    train: tuple[int, int] = (400, 1500)
    test: int = 200
    words: int = 64
    values: int = 16
    size: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """Of one training.

    Attributes:
        R: `[T][T]`, accuracy on task j after task i.
        course: (step, accuracies on all tasks).
        parameters, trained: of the model, and those that were not fixed.
        cpu_seconds: of the training steps.
        memory_bytes: of the memory's state.
        reset: R with an empty memory at the tests.
        born: share of the slots that were taken in each task, and last of those never taken.
    """

    R: Matrix
    course: list[tuple[int, list[float]]]
    parameters: int
    trained: int
    cpu_seconds: float
    memory_bytes: int = 0
    reset: Matrix | None = None
    born: list[float] | None = None


def measures(R: Matrix) -> dict[str, float]:
    """ACC, BWT (Lopez-Paz and Ranzato, arXiv 1706.08840) and F (Chaudhry et al. 1801.10112) of `R[i][j]`, `[T, T]`."""
    last, tasks = R[-1], len(R)
    earlier = range(tasks - 1)
    mean = statistics.fmean
    return {
        "ACC": mean(last),
        "BWT": mean(last[j] - R[j][j] for j in earlier) if tasks > 1 else 0.0,
        "F": mean(max(R[i][j] for i in range(j, tasks - 1)) - last[j] for j in earlier) if tasks > 1 else 0.0,
    }


def train(
    model: str, stream: Stream, size: Size, rate: float, passes: int, settings: Settings, seed: int, capacity: int
) -> Outcome:
    """One model through all tasks.

    Args:
        model: of `MODELS`.
        stream: the tasks.
        size: of the model.
        rate: constant through each task; the optimizer begins anew with it.
        passes: how often each task is read.
        settings: batch, looks.
        seed: of the weights, the order of the examples and the replay.
        capacity: examples that a replay keeps; 0: there is none.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    reader = build(model.partition("+")[0], stream, size)
    replay = Replay(capacity, seed)
    taught = model.endswith("+lesson")
    if taught:
        _teach(reader, stream, rate, settings.lesson, seed)
    memory = reader.model if isinstance(reader.model, MemNet) else None
    done, course, ends = 0, list[tuple[int, list[float]]](), list[int]()
    R, reset, seconds = [], [], 0.0
    for examples in stream.train:
        steps = _steps(examples, settings.batch, passes, order)
        looks = {round(len(steps) * look / settings.looks) for look in range(1, settings.looks)}

        def draw(step: int, steps: list[Examples] = steps) -> dict[str, Tensor]:
            new = steps[step - 1]
            old = replay.draw(len(new))
            replay.add(new)
            both = new if old is None else old.join(new)
            return {"items": both.items, "labels": both.labels}

        def after(step: int, looks: set[int] = looks, begun: int = done) -> None:
            if step in looks:
                course.append((begun + step, accuracies(reader, stream)))

        if taught:
            for step in range(1, len(steps) + 1):
                with torch.no_grad():
                    reader.train()(**draw(step))
                after(step)
        else:
            seconds += fit(reader, draw, len(steps), rate, warm_up=0.0, fall=0.0, after=after).cpu_seconds
        done += len(steps)
        R.append(accuracies(reader, stream))
        course.append((done, R[-1]))
        if memory is not None:
            reset.append(accuracies(reader, stream, forgetful=True))
            ends.append(int(_bank_state(memory).tokens))
    outcome = Outcome(
        R,
        course,
        parameter_count(reader),
        sum(part.numel() for part in reader.parameters() if part.requires_grad),
        seconds,
    )
    if memory is not None:
        state = _bank_state(memory)
        outcome.memory_bytes, outcome.reset = state.nbytes, reset
        task = torch.bucketize(state.born, torch.tensor(ends), right=True).masked_fill(state.born < 0, len(ends))
        outcome.born = [round(float((task == index).float().mean()), 4) for index in range(len(ends) + 1)]
    return outcome


def _bank_state(model: MemNet) -> MemoryBankState:
    assert model.held is not None and isinstance(model.held[0], MemoryBankState)
    return model.held[0]


def _teach(reader: Reader, stream: Stream, rate: float, steps: int, seed: int) -> None:
    """Train on `lesson`s, each with an empty memory; it is empty at the end."""
    assert isinstance(reader.model, MemNet)
    model = reader.model

    def draw(step: int) -> dict[str, Tensor]:
        model.reset_memory()
        examples = lesson(stream, seed * 100_003 + step)
        return {"items": examples.items, "labels": examples.labels}

    fit(reader, draw, steps, rate)
    model.reset_memory()


def _steps(examples: Examples, batch: int, passes: int, order: torch.Generator) -> list[Examples]:
    """Each pass in an order of its own, cut into batches."""
    every = torch.cat([torch.randperm(len(examples), generator=order) for _ in range(passes)])
    return [examples.take(part) for part in every.split(batch)]


def accuracies(reader: Reader, stream: Stream, *, forgetful: bool = False) -> list[float]:
    """Accuracy on each task."""
    return [float((reader.say(part.items, forgetful=forgetful) == part.labels).float().mean()) for part in stream.test]


def neighbours(stream: Stream, size: Size, settings: Settings, seed: int, capacity: int) -> Matrix:
    """R of a reservoir of as many examples, answered from by its nearest neighbours."""
    torch.manual_seed(seed)
    encoder, replay = build("memnet", stream, size).encoder, Replay(capacity, seed)
    R, order = [], torch.Generator().manual_seed(seed)
    for examples in stream.train:
        for part in _steps(examples, settings.batch, 1, order):
            replay.add(part)
        assert replay.kept is not None
        said = [nearest(replay.kept, each.items, encoder, size.top_k) for each in stream.test]
        R.append([float((a == b.labels).float().mean()) for a, b in zip(said, stream.test, strict=True)])
    return R


def run(settings: Settings, progress: Progress = lambda said: None) -> dict[str, Any]:
    """All of it; the record is JSON.

    Args:
        settings: what is run.
        progress: is told what is done.

    Raises:
        ValueError: the settings name what there is not.
        ImportError: scikit-learn is missing.
    """
    _check(settings)
    rows: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    begun = time.process_time()
    for place, name in enumerate(settings.streams):
        index = STREAMS.index(name)
        size = Size(**{"familiarity": settings.familiarity[index], **settings.size})
        capacity, few = _capacity(_stream(name, settings.tuning_seed, settings), size), size.slots
        for number, (protocol, passes) in enumerate(settings.passes.items()):
            count = passes[index]
            if not count:
                continue
            for model in settings.models:
                if model.endswith("+lesson") and number:
                    continue
                kept = capacity if model.endswith("+replay") else few if model.endswith("+few") else 0
                alone = f"{name}, {protocol}, {model.partition('+')[0]}"
                if model == "memnet+replay" and alone in rates:
                    rate = rates[alone]
                else:
                    rate = _rate(model, name, size, count, settings, kept)
                rates[f"{name}, {protocol}, {model}"] = rate
                for seed in settings.seeds:
                    outcome = train(model, _stream(name, seed, settings), size, rate, count, settings, seed, kept)
                    row = {"stream": name, "protocol": protocol, "seed": seed, "slots": size.slots}
                    rows += _rows(model, outcome, row)
                progress(f"{name}, {protocol}, {model}: ACC {_of(rows, name, protocol, model):.3f} at rate {rate:g}")
            if not number:
                for label, kept in ((NEAREST, capacity), (NEAREST_FEW, few)):
                    for seed in settings.seeds:
                        R = neighbours(_stream(name, seed, settings), size, settings, seed, kept)
                        row = {"stream": name, "protocol": protocol, "seed": seed, "slots": size.slots}
                        rows.append({**row, "model": label, **_rounded(R)})
                for model in [model for model in ("memnet",) if model in settings.models]:
                    for slots in settings.slots:
                        for seed in settings.seeds:
                            few_slots = dataclasses.replace(size, slots=slots)
                            rate, stream = rates[f"{name}, {protocol}, {model}"], _stream(name, seed, settings)
                            outcome = train(model, stream, few_slots, rate, count, settings, seed, 0)
                            row = {"stream": name, "protocol": f"{protocol}, slots", "seed": seed, "slots": slots}
                            rows += _rows(model, outcome, row)[:1]
                progress(f"{name}: slots and neighbours")
        progress(f"{place + 1} of {len(settings.streams)} streams")
    return {
        "experiment": "continual",
        "settings": dataclasses.asdict(settings),
        "versions": {
            "memory_titan": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "cpu_seconds": round(time.process_time() - begun, 1),
        "rates": rates,
        "replay_examples": {
            name: _capacity(_stream(name, settings.tuning_seed, settings), Size(**settings.size))
            for name in settings.streams
        },
        "rows": rows,
        "summary": summary(rows),
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation (n - 1) over seeds of each stream, protocol, model and number of slots."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["stream"], row["protocol"], row["model"], row["slots"]), []).append(row)
    told = []
    for key, group in groups.items():
        line: dict[str, Any] = dict(zip(("stream", "protocol", "model", "slots"), key, strict=True))
        for name in ("ACC", "BWT", "F"):
            values = [row[name] for row in group]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            line[name] = [round(statistics.fmean(values), 4), round(spread, 4)]
        told.append(line)
    return told


def _check(settings: Settings) -> None:
    for given, known, what in ((settings.streams, STREAMS, "streams"), (settings.models, MODELS, "models")):
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"{what} must be of {', '.join(known)}; got {', '.join(unknown)}")
    for protocol, passes in settings.passes.items():
        if len(passes) != len(STREAMS) or min(passes) < 0:
            raise ValueError(f"passes of {protocol!r} must be {len(STREAMS)} numbers from 0; got {list(passes)}")
    if len(settings.familiarity) != len(STREAMS):
        raise ValueError(f"familiarity must be {len(STREAMS)} numbers; got {list(settings.familiarity)}")
    known_fields = {each.name for each in dataclasses.fields(Size)}
    if unknown := sorted(set(settings.size) - known_fields):
        raise ValueError(f"size has no {', '.join(unknown)}; it has {', '.join(sorted(known_fields))}")
    if not settings.seeds or not settings.rates or settings.tuning_seed in settings.seeds:
        raise ValueError("there must be seeds and rates, and the tuning seed must be none of the seeds")


def _stream(name: str, seed: int, settings: Settings) -> Stream:
    options = {key: getattr(settings, key) for key in ("tasks", "test", "words", "values")}
    return make_stream(name, seed, train=settings.train[int(name == "split")], **options)


def _capacity(stream: Stream, size: Size) -> int:
    """Examples in as many bytes as the memory's state has."""
    layer = build("memnet", stream, size).layer
    assert layer is not None
    return layer.memory.initial_state(1).nbytes // stream.bytes_an_example


def _rate(model: str, name: str, size: Size, passes: int, settings: Settings, kept: int) -> float:
    """The best of the rates."""
    if model.endswith("+lesson"):
        return settings.lesson_rate
    if len(settings.rates) == 1:
        return settings.rates[0]
    seed = settings.tuning_seed
    stream = _stream(name, seed, settings)
    short = dataclasses.replace(stream, train=stream.train[:3], test=stream.test[:3])
    quick = dataclasses.replace(settings, looks=1)
    found = {rate: train(model, short, size, rate, passes, quick, seed, kept) for rate in settings.rates}
    return max(found, key=lambda rate: measures(found[rate].R)["ACC"])


def _rounded(R: Matrix) -> dict[str, Any]:
    return {"R": [[round(value, 4) for value in row] for row in R], **{k: round(v, 4) for k, v in measures(R).items()}}


def _rows(model: str, outcome: Outcome, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the model, and of the same one with an empty memory if it has one."""
    told: dict[str, Any] = {
        "course": [[step, [round(value, 3) for value in values]] for step, values in outcome.course],
        "parameters": outcome.parameters,
        "trained": outcome.trained,
        "cpu_seconds": round(outcome.cpu_seconds, 2),
    }
    if row["protocol"].endswith(", slots"):
        del told["course"]
    if outcome.reset is None:
        return [{**row, "model": model, **_rounded(outcome.R), **told}]
    told |= {"memory_bytes": outcome.memory_bytes, "born": outcome.born}
    empty = {**row, "model": model.replace("memnet", RESET, 1), **_rounded(outcome.reset)}
    return [{**row, "model": model, **_rounded(outcome.R), **told}, empty]


def _of(rows: list[dict[str, Any]], stream: str, protocol: str, model: str) -> float:
    wanted = (stream, protocol, model)
    return statistics.fmean(row["ACC"] for row in rows if (row["stream"], row["protocol"], row["model"]) == wanted)
