"""The learned-forgetting experiment for readers: tables in Markdown, and its pictures. Made from the record alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memory_titan.evaluation.markdown import table
from memory_titan.experiments.slot_page import write_slot_page
from memory_titan.tasks.forgetting import KINDS, ROLES

Record = dict[str, Any]
COLOURS = ("#3f67a3", "#b4530a", "#14692f", "#7b4a9e", "#87827a")
KINDS_ASKED = ("too late", "in time", "overwritten", "staying")
MODELS = ("memnet", "transformer", "lstm", "neural")
FEW = 30  # lives below which a curve says nothing
PICTURES = ("survival", "accuracy", "lifetimes")


def report(record: Record, folder: Path) -> list[Path]:
    """Write `record.json`, `report.md` and the figures into a folder, which is made.

    Args:
        record: of `forgetting.run`.
        folder: where to.

    Returns:
        The files.

    Raises:
        ImportError: matplotlib is missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "record.json", folder / "report.md"]
    files[0].write_text(json.dumps(record, separators=(",", ":")) + "\n", "utf-8")
    files[1].write_text(markdown(record), "utf-8")
    files += figures(record, folder)
    page = next((run["page"] for run in record["runs"] if "page" in run), None)
    return files + write_slot_page(
        page, folder / "slots.html", "Facts that expire (E), are overwritten (O), or stay (S)"
    )


def markdown(record: Record) -> str:
    """All tables."""
    pictures = "\n\n".join(f"![{name}](forgetting-{name}.png)" for name in PICTURES)
    task = ", ".join(f"{name} {value}" for name, value in record["task"].items())
    seeds, few = record["settings"]["seeds"], record["settings"]["ablation_seeds"]
    parts = [
        "# Learned forgetting",
        f"Mean and standard deviation over {seeds} seed(s), ablations {few}. Task: {task}.",
        "## Right answers by kind",
        accuracy_table(record),
        "## By kind and distance (MemNet)",
        distance_table(record),
        "## Ablations",
        ablation_table(record),
        "## What was dropped",
        policy_table(record),
        "## By the token's role (MemNet)",
        role_table(record),
        pictures,
    ]
    return "\n\n".join(parts) + "\n"


def cell(record: Record, label: str, name: str, digits: int = 2) -> str:
    """A figure of the summary, "0.53 ± 0.02", of one seed "0.53"; "-" where a seed has none."""
    found = record["summary"][label].get(name)
    if found is None:
        return "-"
    return f"{found[0]:.{digits}f}" + (f" ± {found[1]:.{digits}f}" if found[2] > 1 else "")


def accuracy_table(record: Record) -> str:
    """Each model's answers."""
    header = ["model", "parameters", "rate", "CPU s", *KINDS_ASKED, "values, all", '"gone" said of a value']
    rows = []
    for name in MODELS:
        run = next(run for run in record["runs"] if run["label"] == name)
        kinds = [cell(record, name, f"accuracy.by_kind.{kind}") for kind in KINDS_ASKED]
        more = [cell(record, name, f"accuracy.{which}") for which in ("values", "gone_instead")]
        seconds = cell(record, name, "cpu_seconds", 0)
        rows.append([name, f"{run['parameters']:,}", f"{run['rate']:g}", seconds, *kinds, *more])
    return table(header, rows)


def distance_table(record: Record) -> str:
    """MemNet's answers by tokens from the value to the question."""
    labels = list(record["runs"][0]["accuracy"]["by_distance"]["staying"])
    rows = [
        [name, kind, *(cell(record, name, f"accuracy.by_distance.{kind}.{label}") for label in labels)]
        for name in MODELS
        for kind in KINDS_ASKED
    ]
    return table(["model", "kind", *labels], rows)


def ablation_table(record: Record) -> str:
    """MemNet, and each change of it."""
    columns = {
        **{kind: f"accuracy.by_kind.{kind}" for kind in KINDS_ASKED},
        "values, all": "accuracy.values",
        "held when asked": "slots.dropped.found",
        "still needed, of evictions": "slots.dropped.wrong",
        "the same, at random": "slots.own_writes.random.wrong",
    }
    counts = {"evictions a row": "slots.evictions_a_row", "slots taken a row": "slots.taken_a_row"}
    lives = {f"half-life, {kind}": f"slots.survival.{kind}.half_life" for kind in KINDS}
    labels = ["memnet", *record["settings"]["ablations"]]
    rows = [
        [label]
        + [cell(record, label, name) for name in columns.values()]
        + [cell(record, label, name, 1) for name in counts.values()]
        + [cell(record, label, name, 0) for name in lives.values()]
        for label in labels
    ]
    return table(["", *columns, *counts, *lives], rows)


def policy_table(record: Record) -> str:
    """MemNet's evictions beside those of policies: on its own writes, and on streams of facts alone."""
    header = ["who decides", "still needed, of evictions", "held when asked"]
    rows = [["MemNet", *(cell(record, "memnet", f"slots.dropped.{name}") for name in ("wrong", "found"))]]
    for policy in record["runs"][0]["slots"]["own_writes"]:
        before = f"slots.own_writes.{policy}"
        rows.append(
            [f"{policy}, MemNet's writes", *(cell(record, "memnet", f"{before}.{n}") for n in ("wrong", "found"))]
        )
    for slots, each in record["only_facts"].items():
        for policy, shares in each.items():
            shown = ["-" if shares[name] is None else f"{shares[name]:.2f}" for name in ("wrong", "found")]
            rows.append([f"{policy}, facts alone, {slots} slots", *shown])
    return table(header, rows)


def role_table(record: Record) -> str:
    """Gates, writes, reads and decay of MemNet, before training and after."""
    columns = {"write gate": "gate", "new slots": "taken", "read entropy": "read_entropy", "decay": "decay"}
    header = ["token", *(f"{name}, {when}" for name in columns for when in ("start", "end"))]
    rows = [
        [
            role,
            *(
                cell(record, "memnet", f"{when}.{name}.{role}")
                for name in columns.values()
                for when in ("start", "slots")
            ),
        ]
        for role in ROLES
    ]
    return table(header, rows)


def figures(record: Record, folder: Path) -> list[Path]:
    """Draw `forgetting-survival.png`, `-accuracy.png` and `-lifetimes.png`.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'memory-titan[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    files = []
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with plt.rc_context(style):
        for name, draw, size in (
            ("survival", _survival, (7.6, 2.9)),
            ("accuracy", _accuracy, (7.6, 2.9)),
            ("lifetimes", _lifetimes, (7.6, 2.9)),
        ):
            figure = plt.figure(figsize=size, layout="constrained")
            draw(figure, record)
            files.append(Path(folder) / f"forgetting-{name}.png")
            figure.savefig(files[-1], dpi=130, facecolor="white", metadata={"Software": None})
            plt.close(figure)
    return files


def _curves(record: Record, label: str, when: str, kind: str) -> list[list[float]]:
    """S(delta) of each seed that has enough lives of that kind."""
    runs = [run for run in record["runs"] if run["label"] == label and run[when]]
    return [run[when]["survival"][kind]["s"] for run in runs if run[when]["survival"][kind]["lives"] >= FEW]


def _survival(figure: Any, record: Record) -> None:
    """S(delta) by kind: untrained, trained; the line is the mean over seeds, the band reaches to the extremes."""
    deltas = next(run["slots"]["deltas"] for run in record["runs"] if "slots" in run)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (when, title) in zip(panels, (("start", "before training"), ("slots", "after training")), strict=True):
        for kind, colour in zip((*KINDS, "no fact"), COLOURS, strict=False):
            if curves := _curves(record, "memnet", when, kind):
                points = list(zip(*curves, strict=True))
                axes.plot(deltas, [sum(each) / len(each) for each in points], color=colour, label=kind)
                axes.fill_between(
                    deltas, list(map(min, points)), list(map(max, points)), color=colour, alpha=0.15, lw=0
                )
        axes.set(title=title, xlabel="tokens since the slot was taken", ylim=(0, 1.02))
    panels[0].set_ylabel("share of slots not yet taken again")
    panels[1].legend(title="taken by")


def _accuracy(figure: Any, record: Record) -> None:
    """Right answers by kind and distance, a panel a kind, a line a model."""
    panels = figure.subplots(1, len(KINDS_ASKED), sharey=True)
    for axes, kind in zip(panels, KINDS_ASKED, strict=True):
        for model, colour in zip(MODELS, COLOURS, strict=False):
            labels = list(record["runs"][0]["accuracy"]["by_distance"][kind])
            found = [record["summary"][model][f"accuracy.by_distance.{kind}.{label}"] for label in labels]
            there = [(at, each) for at, each in enumerate(found) if each is not None]
            axes.errorbar(
                [at for at, _ in there], [each[0] for _, each in there], [each[1] for _, each in there],
                color=colour, label=model, marker="o", ms=3, lw=1.3, capsize=2,
            )  # fmt: skip
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.set(title=kind, xlim=(-0.3, len(labels) - 0.7), ylim=(-0.03, 1.03))
    panels[0].set_ylabel("right answers")
    figure.supxlabel("tokens from the value to the question", fontsize=9)
    panels[0].legend(fontsize=7)


def _lifetimes(figure: Any, record: Record) -> None:
    """Half-lives by kind, MemNet and its changes; what is not reached within the row stands at its length."""
    labels = ["memnet", *record["settings"]["ablations"]]
    length = record["task"]["length"]
    axes = figure.subplots()
    for offset, (kind, colour) in enumerate(zip(KINDS, COLOURS, strict=False)):
        for place, label in enumerate(labels):
            runs = [run for run in record["runs"] if run["label"] == label]
            lives = [run["slots"]["survival"][kind] for run in runs]
            values = [
                length if each["half_life"] is None else each["half_life"] for each in lives if each["lives"] >= FEW
            ]
            axes.plot(
                [place + 0.2 * (offset - 1)] * len(values), values, "o", ms=4, color=colour, alpha=0.8,
                label=kind if place == 0 else None,
            )  # fmt: skip
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=7)
    axes.set(ylabel="half-life, tokens", ylim=(0, length * 1.05))
    axes.legend(ncols=3, fontsize=8)
