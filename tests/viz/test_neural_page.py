"""The page of a neural memory: what is in it is what was recorded."""

import json

import numpy as np
import pytest

from memory_titan.viz.page import MAX_PAGE_CELLS, page_data, render_page
from test_neural_record import by_hand


def test_data_come_back():
    norm = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    eta = np.array([[0, 0.5], [0.25, np.nan]], np.float32)
    record = by_hand([[0.5, 1], [0.75, 1]], matrices=2, norm=norm, momentum=eta, looked_at=np.arange(3))
    data = page_data(record, ["a", "b"])
    assert (data["matrices"], data["looks"], data["tokens"]) == (2, [0, 1, 2], ["a", "b"]) and "slots" not in data
    first, second = data["heads"]
    assert first["norm"] == [[0, 4, 8], [1, 5, 9]] and second["norm"] == [[2, 6, 10], [3, 7, 11]]
    assert first["decay"] == [0.5, 0.25] and first["left"] == [1, 0.75] and second["momentum"] == [0.5, None]
    assert json.dumps(data, allow_nan=False, separators=(",", ":")) in render_page(record, "t", ["a", "b"])
    assert page_data(by_hand([1]))["heads"][0]["momentum"] is None
    assert "2 tokens, 2 heads, 2 matrices a head." in render_page(record, "t")
    assert "1 token, 1 head, 1 matrix a head." in render_page(by_hand([1]), "t")


def test_too_many_cells():
    with pytest.raises(ValueError, match=r"4 matrices make .* here 125,000 tokens"):
        page_data(by_hand(np.ones(MAX_PAGE_CELLS // 4 + 1), matrices=4))
