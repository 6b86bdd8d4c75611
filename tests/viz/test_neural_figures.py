"""Pictures of a neural memory: written, refused where there is nothing to draw; the half-life by hand."""

import numpy as np
import pytest

from memory_titan.viz import neural
from test_neural_record import by_hand

RECORD = by_hand([[1, 0.4], [0.9, 0.5], [0.9, 0.5]], matrices=2)


def test_half_life_by_hand():
    assert neural.half_life(RECORD) == [None, 1]
    assert neural.half_life(by_hand([0.1, 0.8, 0.8, 0.8, 0.8])) == [4]  # 0.8^4 = 0.41, 0.8^3 = 0.51


def test_pictures_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    made = [
        neural.draw_surprise(tmp_path / "a.png", RECORD, "t", ["a", "b", "c"]),
        neural.draw_gates(tmp_path / "b.png", RECORD, "t"),
        neural.draw_weights(tmp_path / "c.png", RECORD, "t", ["in", "out"]),
        neural.draw_decay(tmp_path / "d.png", RECORD, "t"),
        neural.draw_kinds(tmp_path / "e.png", RECORD, ["a", "b", "a"], "t"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    with pytest.raises(ValueError, match="3 tokens"):
        neural.draw_surprise(tmp_path / "f.png", RECORD, "t", ["a"])
    with pytest.raises(ValueError, match="2 matrices"):
        neural.draw_weights(tmp_path / "f.png", RECORD, "t", ["in"])
    with pytest.raises(ValueError, match="at most 6"):
        neural.draw_gates(tmp_path / "f.png", by_hand(np.ones((2, 7))), "t")
    with pytest.raises(ValueError, match="no tokens"):
        neural.draw_decay(tmp_path / "f.png", by_hand(np.ones((0, 2))), "t")
