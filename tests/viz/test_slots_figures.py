"""Pictures of slots: written, refused where there is nothing to draw, and the heads' table by hand."""

import numpy as np
import pytest

from memory_titan.viz import slots
from memory_titan.viz.slots_record import SlotRecord
from memory_titan.viz.survival import kaplan_meier
from test_slots_record import by_hand

RECORD = by_hand([0, 1, -1], reads=[[0, 0, 0], [0.5, 0.5, 0], [1, 0, 0]])


def test_heads_by_hand():
    names, writes, reads = slots.head_specialisation(RECORD, ["key", "value", "question"], at="question")
    assert names == ["key", "value", "question"]
    assert writes.tolist() == [[1, 1, 0]] and reads.tolist() == [[1, 0, 0]]
    assert slots.head_specialisation(RECORD, ["key", "value", "question"])[2].tolist() == [[0.75, 0.25, 0]]
    with pytest.raises(ValueError, match="no token is of the kind"):
        slots.head_specialisation(RECORD, ["a", "b", "c"], at="d")


def test_pictures_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    content = {"content": np.ones((2, 1, 3, 4), np.float32), "content_at": np.array([1, 3])}
    seen = SlotRecord(**{**vars(RECORD), **content})
    curves = {"few": kaplan_meier([1, 3, 5], [True, True, False]), "none": kaplan_meier([4], [False])}
    made = [
        slots.draw_access(tmp_path / "a.png", RECORD, "t", ["a", "b", "c"]),
        slots.draw_content(tmp_path / "b.png", seen, "t"),
        slots.draw_content(tmp_path / "c.png", seen, "t", np.ones(4)),
        slots.draw_survival(tmp_path / "d.png", curves, "t"),
        slots.draw_usage(tmp_path / "e.png", RECORD, "t"),
        slots.draw_read_entropy(tmp_path / "f.png", RECORD, "t"),
        slots.draw_heads(tmp_path / "g.png", RECORD, ["a", "b", "c"], "t"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    with pytest.raises(ValueError, match="no contents"):
        slots.draw_content(tmp_path / "h.png", RECORD, "t")
    with pytest.raises(ValueError, match="3 tokens"):
        slots.draw_access(tmp_path / "h.png", RECORD, "t", ["a"])
