"""Text: models of one size get the same time and read the held-out files at every context; a run tells all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from memory_titan.experiments import text
from memory_titan.models import parameter_count
from memory_titan.training.settings import load_settings
from memory_titan.training.text import Corpus, Document

TINY = {
    "models": ["mag", "window"],
    "seeds": 1,
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "window": 8,
    "memory": {"chunk_size": 8},
    "rows": 2,
    "length": 32,
    "seconds": 0.4,
    "sweep": 0.5,
    "rates": [1e-3, 3e-3],
    "contexts": [32, 64],
    "test_bytes": 600,
}


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(f"the {number} of a kind, again and again. " * 20)
    return tmp_path


def test_the_file_is_the_default():
    assert load_settings(text.Settings, Path("runs/experiments/text.yaml")) == text.Settings()


def test_models_of_one_size():
    corpus = Corpus([Document("a", torch.zeros(3, dtype=torch.uint8), 3)], [], 256, 0, None, 0)
    sizes = {name: parameter_count(text.build(text.Settings(), name, corpus, 0)) for name in text.MODELS}
    assert all(abs(size / sizes["mag"] - 1) < 0.05 for size in sizes.values()), sizes


def test_a_run_and_going_on_with_it(folder, tmp_path):
    told: list[str] = []
    settings = text.Settings(**TINY, files=[str(folder)], finished=str(tmp_path / "jobs.jsonl"))
    record = json.loads(json.dumps(text.run(settings, told.append)))
    assert [run["model"] for run in record["runs"]] == ["mag", "window"]
    assert all(0 < each["bits"] < 12 for run in record["runs"] for each in run["test"])
    assert [each["context"] for each in record["runs"][0]["test"]] == [32, 64]
    for run in record["runs"]:
        tried = record["rates"][run["model"]]
        assert run["rate"] == min(map(float, tried), key=lambda rate: tried[str(rate)])
    assert text.run(settings, told.append)["runs"] == record["runs"]
    assert "| window |" in text.report(record, tmp_path / "out")
    assert (tmp_path / "out" / "text-training.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"models": ["rnn"]}, "models: there is no rnn"), ({"seconds": 0}, "seconds"), ({"contexts": []}, "contexts")],
)
def test_settings_that_cannot_be(changed, said):
    with pytest.raises(ValueError, match=said):
        text.Settings(**changed)
