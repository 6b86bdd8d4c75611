"""The benchmark of the sparse bank's sizes runs and tells what it ran; no times are asserted."""

import gc
import json

import pytest

from memory_titan.benchmarks.slots_size import Settings, markdown, run


@pytest.fixture(autouse=True)
def quick_collections():
    """What is there already is not looked through before every measurement: that would be most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_a_small_run():
    few = {"step_tokens": 8, "stream_tokens": 3, "prefix": 8, "dim": 16, "heads": 2, "repeats": 2}
    settings = Settings(slots=(256, 1024), tokens=(4, 8), **few)
    steps: list[str] = []
    record = json.loads(json.dumps(run(settings, steps.append)))
    assert [(p["kind"], p["slots"], p["tokens"]) for p in record["points"]] == [
        *[("training", slots, 8) for slots in (256, 1024)],
        *[("token", slots, 3) for slots in (256, 1024)],
        *[("length", 1024, tokens) for tokens in (4, 8)],
    ]
    for first in record["points"][::2]:
        assert first["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert all(p["cpu"]["low"] <= p["cpu"]["median"] <= p["cpu"]["high"] for p in record["points"])
    assert markdown(record).count("| 1,024 |") == 4
    assert steps


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="slots must grow"):
        Settings(slots=(1024, 256))
    with pytest.raises(ValueError, match="repeats"):
        Settings(repeats=0)
