"""Tables for the reports, what stands in their cells, and the files that a report is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write_report(record: dict[str, Any], told: str, folder: Path) -> Path:
    """`record.json` and `report.md` in a folder, which is made and returned."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (folder / "report.md").write_text(told, "utf-8")
    return folder


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def mean(values: Sequence[float]) -> float:
    """Of at least one."""
    return sum(values) / len(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and range: `0.95 (0.91 to 0.98)`; of one value, or of equal ones, that alone; of none "-"."""
    if not values:
        return "-"
    low, high = (f"{each:.{digits}f}" for each in (min(values), max(values)))
    return f"{mean(values):.{digits}f}" + (f" ({low} to {high})" if low != high else "")
