"""The record of `store.py` as a table."""

from __future__ import annotations

from typing import Any

from memory_titan.benchmarks.store_data import SINGLE

ROWS = (
    "bulk insert, items a CPU second",
    "bulk insert, items a second",
    "single insert, CPU ms",
    "single insert, ms: p50, p99",
    "the same, flushed to the disk (durable)",
    "query, CPU ms",
    "query, ms: p50, p99",
    "vectors alone, CPU ms",
    "filter, 1 item in 50, CPU ms",
    "filter, 1 item in 2, CPU ms",
    "import, s (CPU s)",
    "open to first answer, s (CPU s)",
    "bytes on disk an item",
    "resident bytes an item",
    "recall@10 of vectors",
)


def markdown(record: dict[str, Any]) -> str:
    """A table for each size; in brackets how many times ours a contender takes."""
    parts = []
    for each in record["sizes"]:
        names = list(each["summary"])
        heads = [f"{name} {each['summary'][name]['version'] or ''}".strip() for name in names]
        lines = [f"| {each['size']:,} items | " + " | ".join(heads) + " |", "| --- " * (len(names) + 1) + "|"]
        columns = [_column(each["summary"][name], each["size"], name == "ours") for name in names]
        lines += [f"| {row} | " + " | ".join(column[at] for column in columns) + " |" for at, row in enumerate(ROWS)]
        errors = [f"{name}: {each['summary'][name]['error']}" for name in names if each["summary"][name]["error"]]
        parts.append("\n".join([*lines, *errors]))
    return "\n\n".join(parts) + "\n"


def _column(figures: dict[str, Any], size: int, ours: bool) -> list[str]:
    def timed(label: str, pair: bool = False) -> str:
        if label not in figures:
            return "-"
        f = figures[label]
        key = "wall" if pair else "cpu"
        text = f"{f['p50']:.2f}, {f['p99']:.1f}" if pair else f"{f[key]:.2f}"
        return text + _times(f["x ours, wall" if pair else "x ours, CPU"], ours)

    bulk = figures.get("bulk")
    stored = size + SINGLE
    opened = figures.get("open")
    return [
        "-" if bulk is None else f"{size / bulk['cpu s']:,.0f}{_times(bulk['x ours, CPU'], ours)}",
        "-" if bulk is None else f"{size / bulk['wall s']:,.0f}{_times(bulk['x ours, wall'], ours)}",
        timed("single"),
        timed("single", pair=True),
        f"{figures['durable']['p50']:.2f}, {figures['durable']['p99']:.1f}" if "durable" in figures else "-",
        timed("query"),
        timed("query", pair=True),
        timed("dense"),
        timed("1 in 50"),
        timed("1 in 2"),
        *("-" if f is None else f"{f['wall']:.2f} ({f['cpu']:.2f})" for f in (figures.get("import"), opened)),
        f"{figures['bytes'] / stored:,.0f}" if "bytes" in figures else "-",
        f"{figures['resident'] / stored:,.0f}" if figures.get("resident") else "-",
        f"{figures['recall']:.3f}" if "recall" in figures else "-",
    ]


def _times(ratio: float | None, ours: bool) -> str:
    return "" if ours or ratio is None else f" ({ratio:.2g}x)"
