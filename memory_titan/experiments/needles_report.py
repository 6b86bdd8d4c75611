"""The report of the experiment on needles: tables and a figure, from its record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memory_titan.evaluation.markdown import mean, spread, table, write_report
from memory_titan.viz.plotting import STYLES

Run = dict[str, Any]


def report(record: dict[str, Any], folder: Path) -> str:
    """Write `record.json`, `report.md` and `needles-length.png` into `folder`.

    Returns:
        The report, Markdown.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    told = text(record)
    folder = write_report(record, told, folder)
    draw(record, folder / "needles-length.png")
    return told


def text(record: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    groups = grouped(record)
    tasks = record["settings"]["tasks"]
    mains = {label: runs for label, runs in groups.items() if not label.startswith("lmm, ")}
    ablations = {label: runs for label, runs in groups.items() if label.startswith("lmm, ")}
    parts = ["Right answers by length, mean (range over seeds); -: not read.\n\n" + shares_table(mains)]
    if ablations:
        parts.append(f"Ablations, {tasks[0]}:\n\n" + shares_table(ablations))
        parts.append("What the memories of both layers do per token:\n\n" + gates_table({**mains, **ablations}))
    parts.append(
        "Size, training and reading:\n\n"
        + table(
            ["", "parameters", "CPU s of training", "times the stages' rates", "tokens a second, shortest and longest"],
            [
                [
                    label,
                    f"{runs[0]['parameters']:,}",
                    spread([run["train"]["cpu_seconds"] for run in runs], 0),
                    f"{runs[0]['rate']:g}",
                    " / ".join(f"{mean([run['test'][i]['tokens_a_second'] for run in runs]):,.0f}" for i in (0, -1)),
                ]
                for label, runs in groups.items()
            ],
        )
    )
    return "\n".join(parts)


def grouped(record: dict[str, Any]) -> dict[str, list[Run]]:
    """The runs by label, in their order."""
    found: dict[str, list[Run]] = {}
    for run in record["runs"]:
        found.setdefault(run["label"], []).append(run)
    return found


def shares_table(groups: dict[str, list[Run]]) -> str:
    """A row a label, a column a length."""
    lengths = sorted({each["length"] for runs in groups.values() for run in runs for each in run["test"]})
    rows = []
    for label, runs in groups.items():
        cells = []
        for length in lengths:
            shares = [
                each["right"] / each["asked"]
                for run in runs
                for each in run["test"]
                if each["length"] == length and each["asked"]
            ]
            cells.append(spread(shares, 2) if shares else "-")
        rows.append([label, *cells])
    return table(["", *(f"{length:,}" for length in lengths)], rows)


def gates_table(groups: dict[str, list[Run]]) -> str:
    """Mean steps and decays, first layer / second layer / ..."""
    names = ("step, pairs", "step, filler", "decay, filler")
    rows = []
    for label, runs in groups.items():
        if "gates" not in runs[0]:
            continue
        cells = []
        for name in names:
            layers = zip(*(run["gates"][name] for run in runs), strict=True)
            cells.append(" / ".join(f"{mean(each):.5f}" for each in layers))
        rows.append([label, *cells])
    return table(["", *names], rows)


def draw(record: dict[str, Any], path: Path) -> Path:
    """Right answers over length, a line a label, a band from the lowest to the highest seed; ablations apart."""
    from memory_titan.viz.plotting import pyplot, save

    plt = pyplot()
    groups = grouped(record)
    sides = [
        {label: runs for label, runs in groups.items() if label.startswith("lmm, ") == apart} for apart in (False, True)
    ]
    sides = [side for side in sides if side]
    figure, axes = plt.subplots(1, len(sides), figsize=(5.2 * len(sides), 3.6), squeeze=False, sharey=True)
    for axis, side in zip(axes[0], sides, strict=True):
        for number, (label, runs) in enumerate(side.items()):
            color, marker, dash = STYLES[number % len(STYLES)]
            points: dict[int, list[float]] = {}
            for run in runs:
                for each in run["test"]:
                    if each["asked"]:
                        points.setdefault(each["length"], []).append(each["right"] / each["asked"])
            lengths = sorted(points)
            axis.plot(
                lengths,
                [mean(points[x]) for x in lengths],
                label=label.removeprefix("lmm, "),
                color=color,
                marker=marker,
                linestyle=dash,
                markersize=4,
            )
            low, high = [min(points[x]) for x in lengths], [max(points[x]) for x in lengths]
            axis.fill_between(lengths, low, high, color=color, alpha=0.12, linewidth=0)
        axis.axvline(2048, color="0.6", linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("tokens read (dotted: longest in training)")
        axis.set_ylim(-0.03, 1.05)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(0, 0.55))
    axes[0][0].set_ylabel("right answers")
    return save(plt, figure, path)
