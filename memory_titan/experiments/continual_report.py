"""The record of the experiment on continual learning as tables and pictures."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def report(record: Record, folder: str | os.PathLike[str]) -> None:
    """Write record.json, report.md, bars.png, and of each stream course-<stream>.png and matrices-<stream>.png.

    Args:
        record: what `run` returned.
        folder: is made where it is missing.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install memory-titan[experiments]") from error
    matplotlib.use("Agg")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record) + "\n", "utf-8")
    (folder / "report.md").write_text(markdown(record), "utf-8")
    _bars(record, folder / "bars.png")
    for stream in record["settings"]["streams"]:
        _courses(record, stream, folder / f"course-{stream}.png")
        _matrices(record, stream, folder / f"matrices-{stream}.png")
    if record["settings"]["slots"]:
        _slots(record, folder / "slots.png")


def markdown(record: Record) -> str:
    """Tables: a stream and protocol each, then what depends on the slots."""
    passes, seeds = record["settings"]["passes"], len(record["settings"]["seeds"])
    places = ("permuted", "split", "dictionaries")
    lines = ["# Continual learning", "", f"Mean and standard deviation over {seeds} seeds, in percent.", ""]
    for stream in record["settings"]["streams"]:
        for protocol in passes:
            count = passes[protocol][places.index(stream)]
            if not count:
                continue
            lines += [
                f"## {stream}, {protocol} ({count} {'pass' if count == 1 else 'passes'} a task)",
                "",
                "| model | rate | parameters (trained) | ACC | BWT | F |",
                "|---|---|---|---|---|---|",
            ]
            for line in _lines(record, stream, protocol):
                rate = record["rates"].get(f"{stream}, {protocol}, {line['model']}")
                row = _rows(record, stream, protocol, line["model"])[0]
                size = f"{row['parameters']:,} ({row['trained']:,})" if "parameters" in row else ""
                values = " | ".join(_percent(line[name]) for name in ("ACC", "BWT", "F"))
                lines.append(f"| {line['model']} | {'' if rate is None else f'{rate:g}'} | {size} | {values} |")
            lines.append("")
    first = next(iter(passes))
    lines += ["## Slots", "", "| stream | model | slots a head | ACC | F | taken in task 1, 2, ..., never |"]
    lines.append("|---|---|---|---|---|---|")
    for stream in record["settings"]["streams"]:
        told = [*_lines(record, stream, f"{first}, slots"), *_lines(record, stream, first)]
        told = [line for line in told if line["model"] == "memnet"]
        for line in sorted(told, key=lambda line: (line["model"], line["slots"])):
            rows = _rows(record, stream, line["protocol"], line["model"], line["slots"])
            born = [statistics.fmean(part) for part in zip(*(row["born"] for row in rows), strict=True)]
            shares = ", ".join(f"{100 * share:.0f}" for share in born)
            values = f"{_percent(line['ACC'])} | {_percent(line['F'])} | {shares}"
            lines.append(f"| {stream} | {line['model']} | {line['slots']} | {values} |")
    kept = ", ".join(f"{name} {count:,}" for name, count in record["replay_examples"].items())
    lines += ["", f"Examples that a replay of the memory's bytes keeps: {kept}.", ""]
    return "\n".join(lines)


def _percent(value: list[float]) -> str:
    return f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}"


def _lines(record: Record, stream: str, protocol: str) -> list[dict[str, Any]]:
    """Of the summary."""
    return [line for line in record["summary"] if (line["stream"], line["protocol"]) == (stream, protocol)]


def _rows(record: Record, stream: str, protocol: str, model: str, slots: int | None = None) -> list[dict[str, Any]]:
    """A row a seed."""
    return [
        row
        for row in record["rows"]
        if (row["stream"], row["protocol"], row["model"]) == (stream, protocol, model) and slots in (None, row["slots"])
    ]


def _bars(record: Record, path: Path) -> None:
    from matplotlib import pyplot as plt

    streams, protocols = record["settings"]["streams"], list(record["settings"]["passes"])
    figure, axes = plt.subplots(
        len(streams), len(protocols), figsize=(6 * len(protocols), 2.9 * len(streams)), squeeze=False, sharex=True
    )
    for row, stream in zip(axes, streams, strict=True):
        for axis, protocol in zip(row, protocols, strict=True):
            told = _lines(record, stream, protocol)
            if not told:
                axis.axis("off")
                continue
            for shift, name in enumerate(("ACC", "F")):
                places = [index + 0.4 * shift - 0.2 for index in range(len(told))]
                means, spreads = ([line[name][part] for line in told] for part in (0, 1))
                axis.barh(places, means, 0.38, xerr=spreads, label=name, color=("tab:blue", "tab:red")[shift])
            axis.set_yticks(range(len(told)), [line["model"] for line in told], fontsize=7)
            axis.invert_yaxis()
            axis.set_title(f"{stream}, {protocol}", fontsize=9)
            axis.grid(axis="x", alpha=0.3)
    axes[0][0].legend(fontsize=8)
    _save(figure, path)


def _courses(record: Record, stream: str, path: Path) -> None:
    """Accuracy on each task as training goes on, a panel a model, in the first protocol."""
    from matplotlib import pyplot as plt

    protocol = next(iter(record["settings"]["passes"]))
    models = [line["model"] for line in _lines(record, stream, protocol)]
    models = [model for model in models if "course" in _rows(record, stream, protocol, model)[0]]
    columns = min(4, len(models))
    figure, axes = plt.subplots(
        -(-len(models) // columns), columns, figsize=(3 * columns, 2.2 * -(-len(models) // columns)), squeeze=False
    )
    for axis, model in zip(axes.flat, models, strict=False):
        courses = [row["course"] for row in _rows(record, stream, protocol, model)]
        steps = [step for step, _ in courses[0]]
        for task in range(len(courses[0][0][1])):
            means = [statistics.fmean(c[point][1][task] for c in courses) for point in range(len(steps))]
            axis.plot(steps, means, marker=".", markersize=3, label=f"task {task + 1}")
        axis.set_title(model, fontsize=8)
        axis.set_ylim(-0.03, 1.03)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(models) :]:
        axis.axis("off")
    axes[0][0].legend(fontsize=6, framealpha=0.6, loc="center right")
    figure.supxlabel("steps", fontsize=8)
    figure.supylabel("accuracy", fontsize=8)
    _save(figure, path)


def _matrices(record: Record, stream: str, path: Path) -> None:
    """R, mean over seeds: a row for each task just learned, a column for each task tested."""
    from matplotlib import pyplot as plt

    protocols = [protocol for protocol in record["settings"]["passes"] if _lines(record, stream, protocol)]
    models = [line["model"] for line in _lines(record, stream, protocols[0]) if not line["model"].startswith("neigh")]
    figure, axes = plt.subplots(
        len(protocols), len(models), figsize=(1.7 * len(models), 2.3 * len(protocols)), squeeze=False
    )
    for row, protocol in zip(axes, protocols, strict=True):
        for axis, model in zip(row, models, strict=True):
            rows = _rows(record, stream, protocol, model)
            if not rows:
                axis.axis("off")
                continue
            tasks = range(len(rows[0]["R"]))
            mean = [[statistics.fmean(each["R"][i][j] for each in rows) for j in tasks] for i in tasks]
            axis.imshow(mean, vmin=0, vmax=1, cmap="viridis")
            for i in tasks:
                for j in tasks:
                    colour = "black" if mean[i][j] > 0.6 else "white"
                    axis.text(j, i, f"{100 * mean[i][j]:.0f}", ha="center", va="center", fontsize=6, color=colour)
            axis.set_title(f"{model}\n{protocol}", fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
    _save(figure, path)


def _slots(record: Record, path: Path) -> None:
    """Forgetting and accuracy against the number of slots."""
    from matplotlib import pyplot as plt

    streams, first = record["settings"]["streams"], next(iter(record["settings"]["passes"]))
    figure, axes = plt.subplots(1, len(streams), figsize=(4 * len(streams), 3), squeeze=False, sharey=True)
    for axis, stream in zip(axes[0], streams, strict=True):
        for model, style in (("memnet", "-"),):
            told = [*_lines(record, stream, f"{first}, slots"), *_lines(record, stream, first)]
            told = sorted((line for line in told if line["model"] == model), key=lambda line: line["slots"])
            for name, colour in (("ACC", "tab:blue"), ("F", "tab:red")):
                means, spreads = ([line[name][part] for line in told] for part in (0, 1))
                slots = [line["slots"] for line in told]
                axis.errorbar(slots, means, spreads, linestyle=style, color=colour, label=f"{name}, {model}", capsize=2)
        axis.set_xscale("log", base=2)
        axis.set_title(stream, fontsize=9)
        axis.set_xlabel("slots a head", fontsize=8)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=6)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
