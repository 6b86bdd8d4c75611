"""How many pairs of key and value a memory holds, before anything was trained.

`memory-titan bench capacity` runs it. Pairs are written once each, one after the other, into one head of a memory as
its preset makes it, and then every key is asked for. No projections, no convolution, nothing learned: this is the
operation alone, with one number tuned, the step. Beside it stand slots of the same number of bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.memory.neural.chunk import chunk_memory, read_memory
from memory_titan.memory.neural.config import NeuralMemoryConfig
from memory_titan.memory.neural.features import polynomial_features
from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.memory.neural.mesa import mesa_memory, read_mesa
from memory_titan.memory.neural.presets import PRESETS
from memory_titan.memory.neural.rule import LOG_FLOOR, FastWeights, Gates

KEYS = ("random", "correlated")
CENTRES = 8  # of correlated keys; two keys of one centre have a cosine around 1/2
RECALLED = 0.9  # the share of pairs that must come back where a number of pairs is said to be held
RETNET_HEAD = 3  # of RetNet's fixed decays that of the fourth head, 1 - 2^-8: the slowest of the default's four

# The presets, and what the library does where nothing is chosen.
MEMORIES: dict[str, dict[str, Any]] = {name: preset.options for name, preset in PRESETS.items()}
MEMORIES |= {"default_depth1": {"depth": 1}, "default": {}, "default_depth3": {"depth": 3}}

Progress = Callable[[str, int], None]  # what is going on, and how many of `jobs()` are done


@dataclass(frozen=True)
class Settings:
    """What is measured. Loads are numbers of pairs over the width."""

    width: int = 64
    loads: tuple[float, ...] = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)
    tuning_loads: tuple[float, ...] = (0.5, 1, 2, 4, 8)
    steps: tuple[float, ...] = tuple(4.0**power for power in range(-8, 3))  # then half and double the best
    tuning_seed: int = 1000  # of none of the measurements


QUICK = Settings(width=16, loads=(0.5, 1, 2, 4), tuning_loads=(1, 4), steps=(2**-10, 2**-6, 2**-2))
COLUMNS = ("memory", "keys", "pairs", "seed", "accuracy", "oldest", "middle", "newest", "cosine")
Row = list[Any]


def draw_pairs(kind: str, pairs: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit keys and codes of plus and minus one, `[pairs, width]` each.

    Random keys point anywhere. A correlated key is one of `CENTRES` random unit vectors plus a random unit vector of
    its own, made unit again. Values have the length that a norm gives, sqrt(width); presets with a LayerNorm in the
    memory answer at that length.
    """
    generator = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(pairs, width, generator=generator), dim=-1)
    values = 2.0 * torch.randint(2, (pairs, width), generator=generator) - 1
    if kind == "correlated":
        centres = F.normalize(torch.randn(CENTRES, width, generator=generator), dim=-1)
        keys = F.normalize(keys + centres[torch.randint(CENTRES, (pairs,), generator=generator)], dim=-1)
    elif kind != "random":
        raise ValueError(f"keys must be one of {', '.join(KEYS)}; got {kind!r}")
    return keys, values


def slot_accuracy(slots: int, pairs: int) -> float:
    """Recall of a table that keeps the last `slots` pairs as they are and answers with the nearest key's value."""
    return min(1.0, slots / pairs)


def numbers_held(memory: str, width: int) -> int:
    """Numbers in the weights of a memory of one head; mesa's are two sums, and it answers from both."""
    layer = _layer(memory, width, 0)
    if layer.config.algorithm == "solve":
        return 2 * width * width
    return sum(weight.numel() for weight in layer.init_weights)


@torch.no_grad()
def measure(
    memory: str, kind: str, seeds: Sequence[int], steps: Sequence[float], width: int, loads: Sequence[float]
) -> Iterator[tuple[int, list[dict[str, float]]]]:
    """Write a stream of pairs and stop at each load to ask for all that was written so far.

    Args:
        memory: one of `MEMORIES`.
        kind: one of `KEYS`.
        seeds: of the pairs and the initial weights; one stream each, all side by side.
        steps: theta, one a stream.
        width: of the head.
        loads: numbers of pairs over the width.

    Yields:
        `(pairs, results)`, a result a stream: accuracy of all and of each third by age, mean cosine with the value.
    """
    stops = [max(1, round(load * width)) for load in sorted(loads)]
    drawn = [draw_pairs(kind, stops[-1], width, seed) for seed in seeds]
    keys, values = (torch.stack(part)[:, None] for part in zip(*drawn, strict=True))
    layers = [_layer(memory, width, seed) for seed in seeds]
    config = layers[0].config
    rule = config.to_rule()
    if config.features > 1:
        keys = polynomial_features(keys, layers[0].feature_coefficients)
    theta = torch.tensor(steps)
    state: FastWeights = layers[0].initial_state(len(layers))
    if config.algorithm != "solve":
        weights = tuple(torch.stack(rows) for rows in zip(*(layer.init_weights for layer in layers), strict=True))
        state = FastWeights.start(weights, config.momentum, rule)
    inputs = sum(weight.shape[2] for weight in state.weights)

    def write(k: Tensor, v: Tensor, begin: int, state: FastWeights) -> FastWeights:
        gates = _gates(config, theta, range(begin, begin + k.shape[2]), inputs)
        if config.algorithm == "solve":
            return mesa_memory(None, k, v, gates, state, config.ridge)[2]
        return chunk_memory(None, k, v, gates, state, rule)[2]

    begin = 0
    for stop in stops:
        state, begin = write(keys[:, :, begin:stop], values[:, :, begin:stop], begin, state), stop
        full, asked = state, keys[:, :, :stop]
        blank = -stop % rule.chunk_size
        if rule.read == "chunk" and blank:
            # Only whole chunks are read. What is empty has no error and so writes nothing; its step counts all the
            # same, since Muon's is the mean over the chunk.
            nothing = keys.new_zeros(len(seeds), 1, blank, keys.shape[3]), values.new_zeros(len(seeds), 1, blank, width)
            full = write(*nothing, stop, state)
        answer = read_mesa(asked, full, config.ridge) if config.algorithm == "solve" else read_memory(asked, full, rule)
        yield stop, [_judge(row, v) for row, v in zip(answer[:, 0], values[:, 0, :stop], strict=True)]


def choose_step(memory: str, kind: str, settings: Settings) -> float:
    """The step with the best mean accuracy over the tuning loads, on a stream of its own."""
    config = _layer(memory, settings.width, 0).config
    if config.step == "fixed":
        return config.step_bound  # a Hebbian memory from zero: its step only scales the answer

    def mean_accuracy(steps: Sequence[float]) -> list[tuple[float, float]]:
        seeds = [settings.tuning_seed] * len(steps)
        loads = [
            [row["accuracy"] for row in rows]
            for _, rows in measure(memory, kind, seeds, steps, settings.width, settings.tuning_loads)
        ]
        return [(sum(column) / len(loads), step) for column, step in zip(zip(*loads, strict=True), steps, strict=True)]

    best = max(mean_accuracy(settings.steps))
    return max(best, *mean_accuracy([best[1] / 2, best[1] * 2]))[1]


def jobs(memories: Sequence[str] | None = None) -> int:
    """How many steps of progress a run makes."""
    return len(KEYS) * len(MEMORIES if memories is None else memories)


def run(
    out_json: Path,
    figure: Path | None = None,
    seeds: int = 5,
    quick: bool = False,
    progress: Progress = lambda what, done: None,
    memories: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure what the file does not have yet, write it there as it comes, and draw it all.

    Args:
        out_json: where the results are, and go on from.
        figure: where the picture goes (needs the extra `plot`).
        seeds: streams for every point, 1 to this.
        quick: small sizes, a look whether all runs; its numbers mean nothing.
        progress: told before each memory, and at the end.
        memories: of `MEMORIES`; None: all.

    Returns:
        The record, which `markdown` makes tables of.

    Raises:
        ValueError: no such memory, or the file is of other settings.
    """
    settings = QUICK if quick else Settings()
    names = list(MEMORIES if memories is None else memories)
    if unknown := set(names) - set(MEMORIES):
        raise ValueError(f"there is no memory {sorted(unknown)[0]!r}; there are {', '.join(MEMORIES)}")
    record = _open(out_json, settings)
    done = {tuple(row[:4]) for row in record["rows"]}
    stops = [max(1, round(load * settings.width)) for load in settings.loads]
    for number, (name, kind) in enumerate((name, kind) for name in names for kind in KEYS):
        progress(f"{name}, {kind} keys", number)
        wanted = range(1, seeds + 1)
        missing = [seed for seed in wanted if any((name, kind, stop, seed) not in done for stop in stops)]
        if not missing:
            continue
        chosen = record["steps"].setdefault(name, {})
        if kind not in chosen:
            chosen[kind] = choose_step(name, kind, settings)
        record["numbers"][name] = numbers_held(name, settings.width)
        thetas = [chosen[kind]] * len(missing)
        for stop, results in measure(name, kind, missing, thetas, settings.width, settings.loads):
            for seed, result in zip(missing, results, strict=True):
                if (name, kind, stop, seed) not in done:
                    record["rows"].append([name, kind, stop, seed, *(round(x, 4) for x in result.values())])
            _save(record, out_json)
    progress("done", jobs(names))
    if figure is not None:
        draw_figure(record, figure)
    return record


def _layer(memory: str, width: int, seed: int) -> NeuralMemory:
    """One head of that memory: of the layer only its initial weights and its configuration count here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NeuralMemory(width, heads=1, **MEMORIES[memory])


def _gates(config: NeuralMemoryConfig, theta: Tensor, positions: range, inputs: int) -> Gates:
    """Nothing decays unless it must, and no momentum outlasts what it is for."""
    shape = len(theta), 1, len(positions)
    keep, momentum = torch.zeros(*shape, inputs) if config.retention == "channel" else torch.zeros(shape), None
    if config.retention == "fixed":
        keep = torch.full(shape, math.log1p(-(2.0 ** (-5 - RETNET_HEAD))))
    if config.momentum:
        # Muon makes its step of the momentum: that of a whole chunk, and of that chunk alone.
        carry = torch.tensor(
            [0.0 if config.algorithm == "muon" and t % config.chunk_size else LOG_FLOOR for t in positions]
        )
        momentum = carry.expand(shape)
    threshold = torch.ones(shape) if config.bias == "huber" else None
    return Gates(theta[:, None, None].expand(shape), keep, momentum, threshold)


def _judge(answer: Tensor, values: Tensor) -> dict[str, float]:
    """answer, values: `[n, d]`. A pair is recalled when of all n values its own is nearest to the answer."""
    finite = answer.isfinite().all(-1)
    near = F.normalize(answer.where(finite[:, None], 0.0), dim=-1) @ F.normalize(values, dim=-1).mT
    right = ((near.argmax(-1) == torch.arange(len(values))) & finite).float()
    thirds = [part.mean().item() if len(part) else 0.0 for part in right.tensor_split(3)]
    return dict(zip(COLUMNS[4:], [right.mean().item(), *thirds, near.diagonal().mean().item()], strict=True))


def _open(path: Path, settings: Settings) -> dict[str, Any]:
    wanted = json.loads(json.dumps(asdict(settings)))
    if not path.exists():
        return {"settings": wanted, "numbers": {}, "steps": {}, "columns": list(COLUMNS), "rows": []}
    record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if record.get("settings") != wanted or record.get("columns") != list(COLUMNS):
        raise ValueError(f"{path} was measured with other settings; remove it, or write to another file")
    return record


def _save(record: dict[str, Any], path: Path) -> None:
    """A row a line; the file is whole at all times."""
    head = json.dumps({**record, "rows": []}, indent=1).removesuffix("[]\n}")
    rows = ",\n".join(json.dumps(row) for row in record["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(f"{head}[\n{rows}\n]}}\n", "utf-8")
    os.replace(fresh, path)


@dataclass(frozen=True)
class Curve:
    """A memory's accuracy over the number of pairs, or that of several which came out the same."""

    names: tuple[str, ...]
    pairs: list[int]
    seeds: list[list[float]]  # accuracy, a list a seed
    means: list[list[float]]  # a list for each measured column: accuracy, oldest, middle, newest, cosine

    @property
    def accuracy(self) -> list[float]:
        """The mean over seeds."""
        return self.means[0]

    @property
    def held(self) -> float:
        """The largest number of pairs of which 90 of 100 come back, between two loads by interpolation; 0 if none."""
        return pairs_held(self.pairs, self.accuracy)


def pairs_held(pairs: Sequence[int], accuracy: Sequence[float]) -> float:
    """Where accuracy falls below `RECALLED` for good, interpolated over log n; 0: it never was above."""
    above = [i for i, share in enumerate(accuracy) if share >= RECALLED]
    if not above:
        return 0.0
    i = above[-1]
    if i + 1 == len(pairs):
        return float(pairs[i])
    way = (accuracy[i] - RECALLED) / (accuracy[i] - accuracy[i + 1])
    return pairs[i] * (pairs[i + 1] / pairs[i]) ** way


def curves(record: dict[str, Any], kind: str, alike: float = 0.005) -> list[Curve]:
    """All curves with these keys, the best first; those that nowhere differ by more than `alike` as one."""
    found: list[Curve] = []
    for name in MEMORIES:
        rows = [row for row in record["rows"] if row[:2] == [name, kind]]
        if not rows:
            continue
        points: dict[int, dict[int, Row]] = {}
        for row in rows:
            points.setdefault(row[2], {})[row[3]] = row[4:]
        pairs = sorted(points)
        whole = sorted(set.intersection(*(set(points[n]) for n in pairs)))  # not a stream that was broken off
        if not whole:
            continue
        seeds = [[points[n][seed][0] for n in pairs] for seed in whole]
        means = [[sum(points[n][s][i] for s in whole) / len(whole) for n in pairs] for i in range(len(COLUMNS) - 4)]
        curve = Curve((name,), pairs, seeds, means)
        for at, other in enumerate(found):
            same = zip(chain(*curve.seeds), chain(*other.seeds), strict=False)
            alikes = record["numbers"][name] == record["numbers"][other.names[0]] and other.pairs == pairs
            if alikes and all(abs(a - b) <= alike for a, b in same):
                found[at] = replace(other, names=(*other.names, name))
                break
        else:
            found.append(curve)
    return sorted(found, key=lambda curve: (curve.held, sum(curve.accuracy)), reverse=True)


def markdown(record: dict[str, Any]) -> str:
    """A table for each kind of keys, the best first."""
    width = record["settings"]["width"]
    header = "| memory | KiB | step | its bound | held / d | held a KiB | slots / d | at n / d | all | oldest |"
    header += " middle | newest | cosine |"
    parts = []
    for kind in KEYS:
        lines = [f"**{kind.capitalize()} keys**", "", header, "|---" * (header.count("|") - 1) + "|"]
        for curve in curves(record, kind):
            numbers = record["numbers"][curve.names[0]]
            KiB = numbers * 4 / 1024
            each = [pairs_held(curve.pairs, seed) / width for seed in curve.seeds]
            held = f"{_least(curve.held / width, curve, width)} ({min(each):.2f} to {max(each):.2f})"
            at = next((i for i, share in enumerate(curve.accuracy) if share < RECALLED), len(curve.pairs) - 1)
            slots = numbers // (2 * width)
            step = record["steps"][curve.names[0]][kind]
            bound = _layer(curve.names[0], width, 0).config.step_bound
            cells = [
                ", ".join(f"`{name}`" for name in curve.names), f"{KiB:.0f}", _step(step), _step(bound), held,
                f"{curve.held / KiB:.1f}", f"{slots / width:g}", f"{curve.pairs[at] / width:g}",
                *(f"{column[at]:.2f}" for column in curve.means),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


_BEGIN, _END = "<!-- bench capacity: begin -->", "<!-- bench capacity: end -->"


def write_document(record: dict[str, Any], path: Path) -> None:
    """Write the tables; in a file that has a place for them, only there."""
    text = f"{_BEGIN}\n\n{markdown(record)}\n\n{_END}"
    if not path.exists():
        path.write_text(text + "\n", "utf-8")
        return
    before, begin, rest = path.read_text("utf-8").partition(_BEGIN)
    if not begin or _END not in rest:
        raise ValueError(f"{path} exists and has no place for the tables: two lines, {_BEGIN} and {_END}")
    path.write_text(before + text + rest.split(_END, 1)[1], "utf-8")


# Colours that are told apart without red and green (Okabe and Ito): one a family, told apart within it by dashes.
_FAMILIES = (
    ("#E69F00", ("linear_attention", "retnet", "gla")),
    ("#0072B2", ("deltanet", "gated_deltanet", "kda", "default_depth1")),
    ("#56B4E9", ("default", "default_depth3", "titans")),
    ("#CC79A7", ("ttt_linear", "ttt_mlp")),
    ("#009E73", ("moneta", "yaad", "memora")),
    ("#D55E00", ("atlas", "omeganet", "lact")),
    ("#000000", ("mesa",)),
)
_DASHES, _MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")


def draw_figure(record: dict[str, Any], path: Path) -> None:
    """Two panels, random and correlated keys (needs the extra `plot`)."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the figure needs matplotlib: pip install 'memory-titan[plot]'") from error

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    width = record["settings"]["width"]
    figure, panels = plt.subplots(len(KEYS), 1, figsize=(10, 10), sharex=True)
    for panel, kind in zip(panels, KEYS, strict=True):
        loads: list[float] = []
        shown = curves(record, kind)
        for curve in shown:
            colour, place = next((c, names.index(curve.names[0])) for c, names in _FAMILIES if curve.names[0] in names)
            loads = [pairs / width for pairs in curve.pairs]
            label = f"{_least(curve.held / width, curve, width)}  {', '.join(curve.names)}"
            panel.plot(
                loads, curve.accuracy, _DASHES[place], color=colour, marker=_MARKERS[place], markersize=4, label=label
            )
            # A name beside the line itself, where it falls below the mark and no other line is near.
            at = next((i for i, share in enumerate(curve.accuracy) if share < RECALLED), 0)
            if at and all(abs(other.accuracy[at] - curve.accuracy[at]) > 0.06 for other in shown if other is not curve):
                point = loads[at], curve.accuracy[at]
                panel.annotate(", ".join(curve.names), point, (6, 4), textcoords="offset points", color=colour)
        for times, told in ((1, "d²"), (8, "8 d²")) if loads else ():
            slots = times / 2  # times d^2 numbers, 2 d of them a slot; over d
            corners = sorted({*loads, *(load for load in (slots, 1.2 * slots) if loads[0] < load < loads[-1])})
            fine = [a * (b / a) ** (i / 20) for a, b in pairwise(corners) for i in range(20)] + corners[-1:]
            panel.plot(
                fine, [min(1.0, slots / load) for load in fine], color="#999999", linewidth=3, alpha=0.5, zorder=0
            )
            if loads[0] < slots < loads[-1]:
                panel.annotate(
                    f"slots in the bytes of {told}", (slots, 1), (0, 6), textcoords="offset points",
                    ha="center", fontsize=8, color="#666666",
                )  # fmt: skip
        panel.axhline(RECALLED, color="#999999", linewidth=0.6)
        panel.set_xscale("log", base=2)
        panel.set(ylim=(-0.03, 1.09), ylabel="share recalled", title=f"{kind} keys")
        panel.set_xticks(loads, [f"{load:g}" for load in loads])
        panel.minorticks_off()
        panel.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9,
            title=f"pairs held at {RECALLED:.0%}, over d", alignment="left",
        )  # fmt: skip
    panels[-1].set_xlabel(f"pairs written, over the width d = {width}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _least(load: float, curve: Curve, width: int) -> str:
    """A number of pairs over the width, as far as the loads can tell."""
    if not load:
        return f"< {curve.pairs[0] / width:g}"
    return f"≥ {load:.2f}" if curve.held >= curve.pairs[-1] else f"{load:.2f}"


def _step(step: float) -> str:
    return f"{step:g}" if step >= 1 else f"1/{1 / step:g}"
