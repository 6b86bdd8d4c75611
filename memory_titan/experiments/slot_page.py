"""The page of a run: one row of the test, as the model's first bank of slots read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn


def slot_page(model: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What the page is drawn from, JSON-able (`viz.page.page_data`), of the first row.

    Args:
        model: with a bank of slots, in eval mode.
        x: `[B, T]`, tokens.
        names: of the row's T tokens.
    """
    from memory_titan.viz.page import page_data
    from memory_titan.viz.slots_record import record_slots

    record = next(iter(record_slots(model, lambda: model(input_ids=x[:1], use_cache=False)).values()))
    return page_data(record, names)


def write_slot_page(data: dict[str, Any] | None, path: Path, title: str) -> list[Path]:
    """The page, if the record has what it is drawn from."""
    if data is None:
        return []
    from memory_titan.viz.page import html_of

    path.write_text(html_of(data, title), "utf-8")
    return [path]
