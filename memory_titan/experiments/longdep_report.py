"""The report of the experiment on long dependencies: tables and figures, from its record alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memory_titan.evaluation.markdown import mean, spread, table, write_report
from memory_titan.experiments.slot_page import write_slot_page
from memory_titan.viz.plotting import STYLES

Run = dict[str, Any]


def report(record: dict[str, Any], folder: Path) -> str:
    """Write `record.json`, `report.md`, three figures (`longdep-*.png`) and the page `slots.html` into `folder`.

    Returns:
        The report, Markdown.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    told = text(record)
    folder = write_report(record, told, folder)
    draw(record, folder)
    write_slot_page(record.get("page"), folder / "slots.html", "Pairs among filler, asked for 64 tokens later")
    return told


def text(record: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    settings, models = record["settings"], record["models"]
    window, seeds = settings["window"], settings["seeds"]
    parts = [
        f"Chance is 1 in 32. Trained at {min(settings['lengths'])} to {max(settings['lengths'])} tokens, window "
        f"{window}; mean (range) over {seeds} seeds.\n",
        "Accuracy by distance in tokens:\n\n" + accuracy_table(models),
        "Size and cost:\n\n"
        + table(
            ["", "width", "parameters", "learning rate", "state of a row, kB", "CPU ms a step"],
            [
                [
                    name,
                    str(runs[0]["width"]),
                    f"{runs[0]['parameters']:,}",
                    f"{runs[0]['rate']:g}",
                    f"{runs[0]['state_bytes'] / 1000:.1f}",
                    spread([1000 * run["step_cpu_seconds"] for run in runs], 0),
                ]
                for name, runs in models.items()
            ],
        ),
        "After the training that chose the rate: loss on held-out sequences as in training / mean accuracy over the "
        f"distances {', '.join(map(str, settings['sweep_distances']))}; the accuracy chose:\n\n"
        + table(
            ["", *(f"{rate:g}" for rate in settings["rates"])],
            [
                [name, *(f"{_told(loss)} / {_told(share)}" for _, loss, share in tried)]
                for name, tried in record["rates"].items()
            ],
        ),
        "What slots do at distance 256:\n\n"
        + slot_table({n: runs for n, runs in models.items() if "slots" in runs[0]}),
        "Heads:\n\n" + head_table({name: runs for name, runs in models.items() if runs[0].get("heads")}),
    ]
    if record["longer"]:
        parts.append(f"Trained {settings['longer']} times as long, one seed:\n\n" + accuracy_table(record["longer"]))
    if record["ablations"]:
        parts.append(
            f"MemNet with one thing changed, {settings['ablation_steps']} steps:\n\n"
            + ablation_table(record["ablations"])
            + "\n"
            + slot_table({n: runs for n, runs in record["ablations"].items() if "slots" in runs[0]})
        )
    parts.append(f"All of it took {record['cpu_minutes']:.1f} CPU minutes.\n")
    return "\n".join(parts)


def accuracy_table(models: dict[str, list[Run]]) -> str:
    """A row a model, a column a distance."""
    distances = [distance for distance, _ in next(iter(models.values()))[0]["accuracy"]]
    return table(
        ["", *(f"{distance:,}" for distance in distances)],
        [[name, *(spread(shares) for shares in _by_distance(runs))] for name, runs in models.items()],
    )


def slot_table(models: dict[str, list[Run]]) -> str:
    """How slots are used."""
    figures = {
        "writes a slot in use": "reuse",
        "written into known slots": "known_share",
        "entropy of a read, nats": "read_entropy",
        "weight of its top slot": "top_weight",
        "effective slots, reads": "effective_reads",
        "effective slots, writes": "effective_writes",
    }
    rows = []
    for name, runs in models.items():
        gates = [[mean(run["slots"]["gate"][kind]) for run in runs] for kind in ("value", "filler")]
        rows.append(
            [name, *(spread([run["slots"][key] for run in runs]) for key in figures.values()), *map(spread, gates)]
        )
    return table(["", *figures, "write gate, values", "write gate, filler"], rows)


def head_table(models: dict[str, list[Run]]) -> str:
    """What each head writes, and what it is worth."""
    rows = []
    for name, runs in models.items():
        for run in runs:
            gate = run["slots"]["gate"]
            silenced = " / ".join(f"{share:.2f}" for head, share in run["heads"].items() if head != "all")
            rows.append(
                [
                    f"{name}, seed {run['seed']}",
                    *(" / ".join(f"{share:.2f}" for share in gate[kind]) for kind in ("key", "value", "filler")),
                    f"{run['slots']['head_information']:.3f}",
                    silenced,
                    f"{run['heads']['all']:.2f}",
                ]
            )
    head = ["", "write gate by head: keys", "values", "filler", "bits that head and kind share"]
    return table([*head, "accuracy at 64 without each head", "without all"], rows)


def ablation_table(ablations: dict[str, list[Run]]) -> str:
    """A row a variant, a column a test."""
    tests = list(next(iter(ablations.values()))[0]["tests"])
    rows = []
    for name, runs in ablations.items():
        last = [run["curve"][-1][1] for run in runs if run["curve"]]
        rows.append([name, *(spread([run["tests"][test] for run in runs]) for test in tests), spread(last)])
    return table(["", *tests, "last training loss"], rows)


def draw(record: dict[str, Any], folder: Path) -> None:
    """Accuracy over distance, loss over training, and the ablations.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    try:
        import matplotlib
    except ImportError as missing:
        raise ImportError("figures need matplotlib: pip install memory-titan[plot]") from missing
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    settings = record["settings"]
    figure, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    for (name, runs), (colour, mark, line) in zip(record["models"].items(), STYLES, strict=False):
        distances, shares = [d for d, _ in runs[0]["accuracy"]], _by_distance(runs)
        axis.plot(distances, [mean(each) for each in shares], line, color=colour, marker=mark, label=name, markersize=4)
        axis.fill_between(distances, [min(e) for e in shares], [max(e) for e in shares], color=colour, alpha=0.15)
    axis.axvline(settings["window"], color="grey", linewidth=0.8)
    axis.axvline(max(settings["lengths"]), color="grey", linewidth=0.8, linestyle=":")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="tokens between pair and question", ylabel="questions answered right", ylim=(-0.02, 1.04))
    axis.set_xticks(settings["distances"], [f"{d:,}" for d in settings["distances"]])
    axis.set_title("grey: the window; dotted: the longest sequence in training", fontsize=9)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(0.02, 0.76))
    _save(figure, folder / "longdep-distance.png")

    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for (name, runs), (colour, _, line) in zip(record["models"].items(), STYLES, strict=False):
        curves = [run["curve"] for run in runs if run["curve"]]
        steps = [step for step, _ in min(curves, key=len)] if curves else []
        losses = [[curve[i][1] for curve in curves] for i in range(len(steps))]
        axis.plot(steps, [mean(each) for each in losses], line, color=colour, label=name)
        axis.fill_between(steps, [min(e) for e in losses], [max(e) for e in losses], color=colour, alpha=0.15)
    axis.set(xlabel="training steps", ylabel="loss, nats")
    axis.legend(fontsize=8)
    _save(figure, folder / "longdep-training.png")

    if not record["ablations"]:
        return
    tests = list(next(iter(record["ablations"].values()))[0]["tests"])
    names = list(record["ablations"])
    figure, axis = plt.subplots(figsize=(7.5, 0.42 * len(names) + 1.2), layout="constrained")
    for place, test in enumerate(tests):
        shares = [[run["tests"][test] for run in record["ablations"][name]] for name in names]
        at = [i + 0.8 * (place + 0.5) / len(tests) - 0.4 for i in range(len(names))]
        axis.barh(at, [mean(each) for each in shares], 0.8 / len(tests), label=test, color=STYLES[place][0])
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="questions answered right", xlim=(0, 1.02))
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(tests))
    _save(figure, folder / "longdep-ablations.png")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.savefig(path, dpi=110)
    plt.close(figure)


def _by_distance(runs: Sequence[Run]) -> list[list[float]]:
    """Accuracies, a list a distance."""
    return [[run["accuracy"][i][1] for run in runs] for i in range(len(runs[0]["accuracy"]))]


def _told(figure: float | None) -> str:
    """Two digits; `-` for one that is not finite, or was not measured."""
    return "-" if figure is None else f"{figure:.2f}"
