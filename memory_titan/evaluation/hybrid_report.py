"""`evaluate hybrid` for readers: tables in Markdown and a picture of the two curves, out of the figures alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from memory_titan.evaluation.compare import Share
from memory_titan.evaluation.hybrid_marking import OVERLAPS, STAGES, VALUES
from memory_titan.evaluation.hybrid_summary import BINS, CURVE, Count, Record
from memory_titan.evaluation.markdown import table, write_report
from memory_titan.viz.plotting import STYLES, pyplot, save

PICTURE = "curves.png"
NAMES = {
    "memory": "the memory",
    "bare": "the bare model",
    "context": "everything in the context",
    "retrieval": "retrieval, text as notes",
    "soft": "retrieval, the memory's prompt",
    "oracle": "the right text, the memory's prompt",
}


def report(figures: Record, folder: Path) -> list[Path]:
    """Write `record.json`, `report.md` and, where there is a curve, its picture into a folder, which is made.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    picture = bool(figures["since"] or figures["curve"])
    told = markdown(figures) + (f"\n![right over facts told, and over turns since]({PICTURE})\n" if picture else "")
    folder = write_report(figures, told, folder)
    return [folder / "record.json", folder / "report.md", *([draw(figures, folder / PICTURE)] if picture else [])]


def markdown(figures: Record) -> str:
    """All tables that there are figures for."""
    settings = figures["settings"]
    parts = [
        "# What a memory recalls of a long chat",
        f"{settings['model']['name']}, split {settings['split']}, {settings['facts']} facts among {settings['turns']} "
        "turns. "
        "Counts are right of asked, a seed each; shares are of all seeds, with Wilson's 95% interval.",
    ]
    for title, of_part in (
        ("Facts, asked for in other words", _facts),
        ("By what the question shares with the fact", _overlap),
        ("Where wrong answers went wrong", _stages),
        ("Over turns since it was told", _since),
        ("Over facts told", _curve),
        ("Corrected facts", _corrections),
        ("Answers of several parts", _several),
        ("Questions about what was never told, and general ones", _silence),
        ("What was written", _told),
        ("Time and size", _timing),
    ):
        if told := of_part(figures):
            parts += [f"## {title}", told.rstrip()]
    return "\n\n".join(parts) + "\n"


def share(counts: Sequence[Count]) -> str:
    """`92.5% [88.0, 95.4] (93, 92 of 100)`; of nothing "-"."""
    right, asked = (sum(each[place] for each in counts) for place in (0, 1))
    if not asked:
        return "-"
    found = Share(right, asked)
    sizes = {each[1] for each in counts}
    each = ", ".join(str(count[0]) for count in counts) if len(sizes) == 1 else str(right)
    of = sizes.pop() if len(sizes) == 1 else asked
    return f"{found.exact:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}] ({each} of {of})"


def _short(count: Count) -> str:
    """`46 of 50`."""
    return f"{count[0]} of {count[1]}" if count[1] else "-"


def _no_room(found: Record) -> str:
    return f"does not fit: {found['tokens']:,} positions of {found['positions']:,}"


def _facts(figures: Record) -> str:
    rows = []
    for arm, found in figures["facts"].items():
        if "right" not in found:
            rows.append([NAMES[arm], _no_room(found), "-"])
            continue
        rows.append([NAMES[arm], share(found["right"]), f"{found['seconds']:.2f}"])
    told = table(["", "right", "seconds a question"], rows) if rows else ""
    kept = next((found for found in figures["facts"].values() if "bytes" in found), None)
    if kept and figures["told"]:
        out = max(kept["left_out"])
        fits = "all turns fit" if not out else f"up to {out} of the oldest turns were left out"
        told += (
            f"\nRetrieval keeps {max(kept['bytes']):,} bytes of text and vectors; its budget is the memory's file, "
            f"{figures['told']['bytes']:,} bytes: {fits}.\n"
        )
    return told


def _overlap(figures: Record) -> str:
    found = {arm: each["overlap"] for arm, each in figures["facts"].items() if "overlap" in each}
    rows = [[NAMES[arm], *(_short(counts[name]) for name in OVERLAPS)] for arm, counts in found.items()]
    return table(["right, where question and fact share", *OVERLAPS], rows) if rows else ""


def _stages(figures: Record) -> str:
    found = {arm: each["stages"] for arm, each in figures["facts"].items() if "stages" in each and arm != "bare"}
    rows = [[NAMES[arm], *(str(counts.get(name, 0)) for name in STAGES)] for arm, counts in found.items()]
    return table(["wrong answers", *STAGES], rows) if rows else ""


def _since(figures: Record) -> str:
    rows = [[NAMES[arm], *map(_short, counts)] for arm, counts in figures["since"].items() if arm != "bare"]
    return table(["turns since", *_bins(figures["settings"]["turns"])], rows) if rows else ""


def _bins(turns: int) -> list[str]:
    edges = [-(-turns * place // BINS) for place in range(BINS + 1)]
    return [f"{low} to {high - 1}" for low, high in pairwise(edges)]


def _curve(figures: Record) -> str:
    held = sorted({facts for points in figures["curve"].values() for facts in points}, key=int)
    rows = []
    for arm, points in figures["curve"].items():
        cells = []
        for facts in held:
            point = points.get(facts)
            cells.append("-" if point is None else share(point["right"]) if "right" in point else _no_room(point))
        rows.append([NAMES[arm], *cells])
    return table(["facts told", *held], rows) if len(held) > 1 else ""


def _corrections(figures: Record) -> str:
    rows = [
        [NAMES[arm], form, str(sum(counts.values())), *(str(counts[value]) for value in VALUES)]
        for arm, forms in figures["corrections"].items()
        for form, counts in forms.items()
        if sum(counts.values())
    ]
    told = table(["", "form", "asked", *(f"{value}" for value in VALUES)], rows) if rows else ""
    if found := figures["erased"]:
        told += (
            f"\nOf {found['corrections']} corrections the memory wrote {found['written']}; "
            f"{found['took_out_the_old']} took out of the weights what they correct. "
            f"{found['took_out_something_else']} other texts were taken out.\n"
        )
    return told


def _several(figures: Record) -> str:
    rows = [
        [NAMES[arm], _short(found["all"]), _short(found["some"]), _short(found["parts"])]
        for arm, found in figures["several"].items()
    ]
    return table(["", "all parts", "some, not all", "parts said"], rows) if rows else ""


def _silence(figures: Record) -> str:
    rows = [
        ["the memory speaks to what was never told", facts, share(counts)]
        for facts, counts in figures["unknown"].items()
    ]
    rows += [
        [f"general answers unchanged, {NAMES[arm]}", facts, share(counts)]
        for arm, by_facts in figures["general"].items()
        for facts, counts in by_facts.items()
    ]
    return table(["", "facts told", "of the questions"], rows) if rows else ""


def _told(figures: Record) -> str:
    told = figures["told"]
    if not told:
        return ""
    rows = [["small talk written", _short(told["small_talk_written"])]]
    rows += [[f"of it, {about}", _short(count)] for about, count in told["by_sort"].items()]
    rows += [["facts not written", _short(told["facts_not_written"])]]
    rows += [["taken out as corrected, though nothing was", str(told["erased"])]]
    return table(["of the main chat", "turns"], rows)


def _timing(figures: Record) -> str:
    found = figures["timing"]
    if not found:
        return ""
    names = {
        "reading": "reading a turn",
        "prefill": "the bare model's prefill of it",
        "recall": "recall",
        "address": "of it, the question's address",
        "lookup": "of it, finding and reading out",
        "evidence": "of it, weighing",
        "first": "to the first words of an answer",
        "first_bare": "to the bare model's",
    }
    rows = [[told, f"{1000 * found[name]:.0f} ms"] for name, told in names.items() if name in found]
    rows.insert(2, ["reading over prefill, median of ratios", f"{found['reading_ratio']:.2f}"])
    rows.append(["the memory's file", f"{found['bytes']:,} bytes"])
    return table(["medians", ""], rows)


def draw(figures: Record, path: Path) -> Path:
    """Right answers over facts told, and over turns since a fact was told; a line an arm, the bar its interval.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    look = dict(zip(NAMES, STYLES, strict=True))
    turns = figures["settings"]["turns"]
    middles = [turns * (place + 0.5) / BINS for place in range(BINS)]
    for aside, arm in enumerate(CURVE, -1):  # beside each other, so that every bar is seen
        points = figures["curve"].get(arm, {})
        there = [(int(facts), point["right"]) for facts, point in points.items() if "right" in point]
        counts = [_pooled(count) for _, count in there]
        _line(left, look[arm], NAMES[arm], [at * 1.03**aside for at, _ in there], counts)
        bins = [each for each in zip(middles, figures["since"].get(arm, ()), strict=False) if each[1][1]]
        _line(right, look[arm], NAMES[arm], [at + 0.01 * aside * turns for at, _ in bins], [each for _, each in bins])
    held = sorted({int(facts) for points in figures["curve"].values() for facts in points})
    if held:
        left.set_xscale("log")
        left.set_xticks(held, [f"{each:,}" for each in held])
        left.minorticks_off()
    left.set(xlabel="facts told", ylabel="right answers", ylim=(-0.03, 1.03))
    right.set(xlabel="turns since the fact was told", xlim=(0, turns))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    legends = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in (left, right)]
    lines = {label: handle for pairs in legends for handle, label in pairs}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save(plt, figure, path)


def _pooled(counts: Sequence[Count]) -> Count:
    return [sum(each[0] for each in counts), sum(each[1] for each in counts)]


def _line(axes: Any, look: tuple[str, str, str], label: str, at: list[float], counts: list[Count]) -> None:
    if not at:
        return
    found = [Share(*count) for count in counts]
    low = [each.exact - each.low for each in found]
    high = [each.high - each.exact for each in found]
    colour, marker, line = look
    middle = [each.exact for each in found]
    axes.errorbar(
        at, middle, [low, high], color=colour, marker=marker, linestyle=line, ms=4, lw=1.3, capsize=2, label=label
    )
