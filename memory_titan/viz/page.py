"""One HTML page to look into a memory, slots or neural: pick a head, walk along the stream, ask any cell.

By hand (`data/page.html`: HTML, canvas, SVG, a little JavaScript), not by a chart library: Plotly alone would put
several megabytes into every page, and this one can be sent by mail, opened without a network and read in a year.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_titan.viz.neural_record import OF_WEIGHTS, NeuralRecord
from memory_titan.viz.slots import check_tokens
from memory_titan.viz.slots_record import Lifetimes, SlotRecord
from memory_titan.viz.survival import kaplan_meier

MAX_PAGE_CELLS = (
    500_000  # tokens x heads x slots, or matrices; megabytes if all are in use, a few hundred kB with top-k addressing
)
_DIGITS = 3  # of weights: what is below 0.0005 is not in the page
_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}  # none may end the script element or begin a comment


def write_page(
    path: str | os.PathLike[str],
    record: SlotRecord | NeuralRecord,
    title: str,
    tokens: Sequence[str] | None = None,
) -> Path:
    """Write the page; it needs no network and no other file.

    A head is picked, and writes or reads; a slider walks along the stream. Of slots there are their weights over time,
    with surprise and write gate beneath; the tokens; survival of slots (Kaplan-Meier), their usage, the entropy of
    reads. Of a neural memory: how far each token moved each matrix, with surprise and gates beneath; the tokens; what
    decay leaves, how far the weights are from where they began, their norm.

    Args:
        path: of the page, .html; its folder is made.
        record: of one memory; at most 500,000 cells (tokens x heads x slots, or x matrices). Weights of slots are told
            to 0.001.
        title: above it.
        tokens: T names; None: tokens are told by their number only.

    Returns:
        The path.

    Raises:
        ValueError: not T names; no token was read; too many cells.
        OSError: it cannot be written.
    """
    path = Path(path)
    page = render_page(record, title, tokens)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, "utf-8")
    return path


def render_page(record: SlotRecord | NeuralRecord, title: str, tokens: Sequence[str] | None = None) -> str:
    """The page as HTML; arguments and errors as in `write_page`."""
    return html_of(page_data(record, tokens), title)


def html_of(data: dict[str, Any], title: str) -> str:
    """The page of what `page_data` gave, which a report can keep as JSON."""
    first = data["heads"][0]
    rows = _counted(data["matrices"], "matrix", "matrices") if "matrices" in data else _counted(data["slots"], "slot")
    lead = f"{_counted(len(first['surprise']), 'token')}, {_counted(len(data['heads']), 'head')}, {rows}"
    told = json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)
    parts = {"title": escape(title), "lead": f"{lead} a head.", "data": told}
    template = resources.files("memory_titan.viz").joinpath("data/page.html").read_text("utf-8")
    return re.sub(r"\{\{(title|lead|data)\}\}", lambda mark: parts[mark[1]], template)


def page_data(record: SlotRecord | NeuralRecord, tokens: Sequence[str] | None = None) -> dict[str, Any]:
    """What the page is drawn from, JSON-able: `tokens` (or None) and `heads`; of slots also `slots`, and in `heads`

    writes, reads: a list a token, [slot, weight, slot, weight, ...] of weights of 0.0005 and more;
    took, gate, surprise, entropy: a number a token; None where there was nothing to measure;
    usage, effective: of "reads" and "writes", as `SlotRecord.usage` and `SlotRecord.effective_slots`;
    survival: times, survival, low, high, censored, median, count of `Survival`; None: no slot was taken.

    Of a neural memory also `matrices` and `looks`, the tokens written at each look, and in `heads`

    surprise (the loss), gradient, write, gate (the step), decay, momentum (None where there is none): a number a token;
    left: a number a lag, `NeuralRecord.left`;
    norm, moved, away: a list a matrix of a number a look.

    Raises:
        ValueError: as `write_page`.
    """
    check_tokens(record.tokens, tokens)
    count, rows = (record.matrices, "matrices") if isinstance(record, NeuralRecord) else (record.slots, "slots")
    if (size := record.tokens * record.heads * count) > MAX_PAGE_CELLS:
        raise ValueError(
            f"{record.tokens:,} tokens, {record.heads} heads and {count:,} {rows} make {size:,} cells; a page holds at "
            f"most {MAX_PAGE_CELLS:,}, here {MAX_PAGE_CELLS // (record.heads * count):,} tokens: record fewer"
        )
    told = _neural(record) if isinstance(record, NeuralRecord) else _slots(record)
    return {"tokens": None if tokens is None else list(tokens), **told}


def _slots(record: SlotRecord) -> dict[str, Any]:
    lives, entropy = record.lifetimes(), record.read_entropy()
    usage = {of: (record.usage(of), record.effective_slots(of)) for of in ("reads", "writes")}
    heads = [
        {
            "writes": _sparse(record.writes[:, head]),
            "reads": _sparse(record.reads[:, head]),
            "took": record.took[:, head].tolist(),
            "gate": _rounded(record.gate[:, head]),
            "surprise": _rounded(record.surprise[:, head], 6),
            "entropy": _rounded(entropy[:, head]),
            "usage": {of: _rounded(shares[head], 5) for of, (shares, _) in usage.items()},
            "effective": {of: round(float(effective[head]), 4) for of, (_, effective) in usage.items()},
            "survival": _survival(lives.of_head(head)),
        }
        for head in range(record.heads)
    ]
    return {"slots": record.slots, "heads": heads}


def _neural(record: NeuralRecord) -> dict[str, Any]:
    left, eta = record.left(), bool(record.momentum.any())
    heads = [
        {
            "surprise": _rounded(record.loss[:, head], 6),
            "gradient": _rounded(record.gradient[:, head], 6),
            "write": _rounded(record.write[:, head], 6),
            "gate": _rounded(record.step[:, head], 6),
            "decay": _rounded(1 - record.keep[:, head], 6),
            "momentum": _rounded(record.momentum[:, head], 4) if eta else None,
            "left": _rounded(left[:, head], 4),
            **{name: [_rounded(one, 6) for one in getattr(record, name)[:, head].T] for name in OF_WEIGHTS},
        }
        for head in range(record.heads)
    ]
    return {"matrices": record.matrices, "looks": record.looked_at.tolist(), "heads": heads}


def _counted(count: int, name: str, plural: str = "") -> str:
    return f"{count:,} {name if count == 1 else plural or name + 's'}"


def _survival(lives: Lifetimes) -> dict[str, Any] | None:
    if not len(lives.durations):
        return None
    curve = kaplan_meier(lives.durations, lives.ended)
    told: dict[str, Any] = {
        name: _rounded(getattr(curve, name), 4) for name in ("times", "survival", "low", "high", "censored")
    }
    return {**told, "median": curve.median, "count": curve.count}


def _sparse(weights: NDArray[Any]) -> list[list[float]]:
    """Of `[T, N]`, a list a token: slot, weight, slot, weight, ..."""
    kept = np.nan_to_num(weights.astype(np.float64)).round(_DIGITS)
    rows: list[list[float]] = [[] for _ in kept]
    for t, slot in np.argwhere(kept != 0).tolist():
        rows[t] += [slot, float(kept[t, slot])]
    return rows


def _rounded(values: NDArray[Any], digits: int = _DIGITS) -> list[float | None]:
    """None where a value is not finite: JSON has no word for it."""
    return [round(value, digits) if np.isfinite(value) else None for value in values.astype(np.float64).tolist()]
