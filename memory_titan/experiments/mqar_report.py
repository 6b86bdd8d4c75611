"""The report of the experiment on multi-query associative recall: tables and figures, from its record alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memory_titan.evaluation.markdown import mean, spread, table, write_report
from memory_titan.viz.plotting import STYLES, pyplot

Run = dict[str, Any]
MORE = (("#56b4e9", "P", "--"), ("#f0e442", "*", "--"), ("#000000", "d", "--"))  # the rest of Okabe and Ito's colours


def report(record: dict[str, Any], folder: Path) -> str:
    """Write `record.json`, `report.md` and three figures (`mqar-*.png`) into `folder`.

    Returns:
        The report, Markdown.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    told = text(record)
    folder = write_report(record, told, folder)
    draw(record, folder)
    return told


def text(record: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    s, models, ablations = record["settings"], record["models"], record["ablations"]
    trained = ", ".join(f"({length}, {pairs})" for length, pairs in s["shapes"])
    probes = {name: runs for name, runs in models.items() if "probes" in runs[0]}
    length, pairs = max(s["shapes"], key=lambda shape: shape[1])
    parts = [
        f"Chance is 1 in {s['vocabulary'] // 2}. Trained on (tokens, pairs) of {trained}; window {s['window']}; mean "
        f"(range) over {s['seeds']} seeds.\n",
        "Accuracy by (tokens, pairs):\n\n" + accuracy_table(models),
        "Accuracy by tokens between value and question, all tests together. The first column is inside the window; the "
        "second is what its layers can pass on:\n\n" + distance_table(models),
        "Training:\n\n" + training_table(models),
    ]
    for rates in sorted({tuple(rate for rate, *_ in tried) for tried in record["rates"].values() if len(tried) > 1}):
        parts.append(
            "Loss / accuracy on held-out sequences as in training; the accuracy chose the learning rate:\n\n"
            + table(
                ["", *(f"{rate:g}" for rate in rates)],
                [
                    [name, *(f"{_told(loss, 2)} / {_told(share, 3)}" for _, loss, share in tried)]
                    for name, tried in record["rates"].items()
                    if tuple(rate for rate, *_ in tried) == rates
                ],
            )
        )
    if probes:
        ways = list(next(iter(probes.values()))[0]["probes"])
        parts.append(
            f"The memory spoilt, at ({length}, {pairs}):\n\n"
            + table(
                ["", *ways],
                [[n, *(spread([run["probes"][way] for run in runs]) for way in ways)] for n, runs in probes.items()],
            )
        )
    if ablations:
        compared = {n: runs for n, runs in models.items() if any(name.startswith(f"{n}, ") for name in ablations)}
        whole = {**compared, **ablations}
        parts.append(
            "One thing changed:\n\n" + accuracy_table(whole) + "\n" + training_table(whole),
        )
    parts.append(f"All of it took {record['cpu_minutes']:.1f} CPU minutes.\n")
    return "\n".join(parts)


def accuracy_table(models: dict[str, list[Run]]) -> str:
    """A row a model, a column a test."""
    tests = [(length, pairs) for length, pairs, _ in next(iter(models.values()))[0]["tests"]]
    return table(
        ["", *(f"({length:,}, {pairs})" for length, pairs in tests)],
        [
            [name, *(spread([run["tests"][i][2] for run in runs], 3) for i in range(len(tests)))]
            for name, runs in models.items()
        ],
    )


def distance_table(models: dict[str, list[Run]]) -> str:
    """A row a model, a column a range of distances."""
    bins = next(iter(models.values()))[0]["distance"]
    return table(
        ["", *(f"to {end:,} (n = {count})" for end, count, _ in bins)],
        [
            [name, *(spread([run["distance"][i][2] for run in runs]) for i in range(len(bins)))]
            for name, runs in models.items()
        ],
    )


def training_table(models: dict[str, list[Run]]) -> str:
    """Size, cost and speed of learning."""
    rows = []
    for name, runs in models.items():
        learned = [run["learned_at"] for run in runs]
        reached = [step for step in learned if step is not None]
        rows.append(
            [
                name,
                str(runs[0]["width"]),
                f"{runs[0]['parameters']:,}",
                f"{runs[0]['rate']:g}",
                str(runs[0]["steps"]),
                spread([run["cpu_seconds"] for run in runs], 0),
                (spread(reached, 0) if reached else "never") + (f" ({len(reached)} of {len(runs)})" if reached else ""),
                spread([run["curve"][-1][1] for run in runs if run["curve"]]),
            ]
        )
    head = ["", "width", "parameters", "learning rate", "steps", "CPU s", "step with a loss below 0.5", "last loss"]
    return table(head, rows)


def draw(record: dict[str, Any], folder: Path) -> None:
    """Accuracy over distance, loss over training, and the loss of the ablations.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    plt, models = pyplot(), record["models"]
    figure, axis = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    for (name, runs), (colour, mark, line) in zip(models.items(), STYLES + MORE, strict=False):
        ends = [end for end, _, _ in runs[0]["distance"]]
        shares = [[run["distance"][i][2] for run in runs] for i in range(len(ends))]
        axis.plot(ends, [mean(each) for each in shares], line, color=colour, marker=mark, label=name, markersize=4)
        axis.fill_between(ends, [min(e) for e in shares], [max(e) for e in shares], color=colour, alpha=0.15)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ends, [f"{end:,}" for end in ends])
    axis.axvline(record["settings"]["window"], color="grey", linewidth=0.8)
    axis.set(xlabel="tokens between value and question, up to", ylabel="questions answered right", ylim=(-0.02, 1.04))
    axis.set_title("all tests together; grey: the window", fontsize=9)
    axis.legend(fontsize=8)
    _save(plt, figure, folder / "mqar-distance.png")

    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    _curves(axis, models, lambda run, step: step * run["cpu_seconds"] / run["steps"])
    axis.set(xlabel="CPU seconds of training", ylabel="loss, nats")
    _save(plt, figure, folder / "mqar-training.png")

    if not record["ablations"]:
        return
    for picture, wanted in (("fusion", "fusion"), ("ablations", "")):
        chosen = {name: runs for name, runs in record["ablations"].items() if wanted in name}
        bases = [name for name in models if any(each.startswith(f"{name}, ") for each in chosen)]
        if not chosen:
            continue
        shown = {name: models[name] for name in bases} | chosen
        if not wanted:
            shown = {name: runs for name, runs in shown.items() if "fusion" not in name}
        figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
        _curves(axis, shown, lambda run, step: step)
        axis.set(xlabel="training steps", ylabel="loss, nats")
        _save(plt, figure, folder / f"mqar-{picture}.png")


def _curves(axis: Any, models: dict[str, list[Run]], at: Callable[[Run, int], float]) -> None:
    """The loss over training, the mean of all seeds, and their range."""
    styles = [(colour, line) for line in ("-", ":", "--") for colour, _, _ in STYLES + MORE]
    for (name, runs), (colour, line) in zip(models.items(), styles, strict=False):
        curves = [run["curve"] for run in runs if run["curve"]]
        if not curves:
            continue
        places = [mean([at(run, step) for run in runs]) for step, _ in min(curves, key=len)]
        losses: Sequence[list[float]] = [[curve[i][1] for curve in curves] for i in range(len(places))]
        axis.plot(places, [mean(each) for each in losses], line, color=colour, label=name)
        axis.fill_between(places, [min(e) for e in losses], [max(e) for e in losses], color=colour, alpha=0.15)
    axis.legend(fontsize=7)


def _told(figure: float | None, digits: int) -> str:
    """`-` for one that is not finite, or was not measured."""
    return "-" if figure is None else f"{figure:.{digits}f}"


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
