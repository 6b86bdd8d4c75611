"""The report of the experiment on text: tables and a figure, from its record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memory_titan.evaluation.markdown import mean, spread, table, write_report
from memory_titan.viz.plotting import STYLES


def report(record: dict[str, Any], folder: Path) -> str:
    """Write `record.json`, `report.md` and `text-training.png` into `folder`.

    Returns:
        The report, Markdown.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    told = text(record)
    folder = write_report(record, told, folder)
    draw(record, folder / "text-training.png")
    return told


def text(record: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    settings, groups = record["settings"], grouped(record)
    rows = []
    for name, runs in groups.items():
        bits = [spread([run["test"][i]["bits"] for run in runs], 3) for i in range(len(settings["contexts"]))]
        steps, seconds = ([run[key] for run in runs] for key in ("steps", "cpu_seconds"))
        rows.append([name, *bits, f"{runs[0]['parameters']:,}", spread(steps, 0), spread(seconds, 0)])
    main = table(["", *(f"{n:,}" for n in settings["contexts"]), "parameters", "steps", "CPU s"], rows)
    tried = table(
        ["", *(f"{rate:g}" for rate in settings["rates"])],
        [[name, *(f"{told[str(rate)]:.3f}" for rate in settings["rates"])] for name, told in record["rates"].items()],
    )
    return (
        "Bits per byte of held-out files, begun anew every so many tokens; mean (range over seeds):\n\n"
        f"{main}\nRates, after {settings['sweep']:g} of the time on a seed apart:\n\n{tried}"
    )


def grouped(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs by model, in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in record["runs"]:
        found.setdefault(run["model"], []).append(run)
    return found


def draw(record: dict[str, Any], path: Path) -> Path:
    """Training loss over the share of the time, the mean over seeds."""
    from memory_titan.viz.plotting import pyplot, save

    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    for number, (name, runs) in enumerate(grouped(record).items()):
        color, _, dash = STYLES[number % len(STYLES)]
        points = min(len(run["loss"]) for run in runs)
        curve = [mean([run["loss"][i] for run in runs]) / 0.6931 for i in range(points)]
        share = [(i + 1) / points for i in range(points)]
        axis.plot(share[1:], curve[1:], label=name, color=color, linestyle=dash)
    axis.set_xlabel(f"share of {record['settings']['seconds']:g} CPU seconds")
    axis.set_ylabel("bits per byte, in training")
    axis.legend(fontsize=8, frameon=False)
    return save(plt, figure, path)
