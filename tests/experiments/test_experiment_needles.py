"""Needles: the models are of one size, the tasks what they are called, a run tells all of it and can go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from memory_titan.experiments import needles
from memory_titan.experiments.needles_report import shares_table
from memory_titan.models import TitansForCausalLM, parameter_count
from memory_titan.training.settings import load_settings

STAGES = [
    {"steps": 4, "rate": 3e-3, "price": 0.05, "lengths": [48], "pairs": 4},
    {"steps": 2, "rate": 1e-3, "price": 1.0, "lengths": [64, 128]},
]
TINY = {
    "tasks": ["8 pairs"],
    "models": ["lmm", "lstm"],
    "ablations": ["random taps"],
    "seeds": 1,
    "hidden": 16,
    "stages": STAGES,
    "tokens": 256,
    "rates": [1.0],
    "lengths": [64, 256],
    "longest": 512,
    "streams": 2,
}


def test_the_file_is_the_default():
    assert load_settings(needles.Settings, Path("runs/experiments/needles.yaml")) == needles.Settings()


def test_models_of_one_size():
    settings = needles.Settings()
    wanted = parameter_count(needles.build(settings, "lmm", "8 pairs"))
    for name in ("gated deltanet", "window", "lstm"):
        assert abs(parameter_count(needles.build(settings, name, "8 pairs")) / wanted - 1) < 0.1, name


def test_tasks():
    task = needles.task_of("32 pairs", 2048)
    assert (task.pairs, task.keys, task.length) == (32, 64, 2048)
    assert needles.task_of("32 pairs", 64).pairs == 16  # as many as there is room for
    assert needles.task_of("8 pairs", 48, pairs=4).pairs == 4
    train, test = (needles.task_of("8 pairs in prose", 512, split) for split in ("train", "test"))
    assert train.split == "train" and test.split == "test" and train.vocabulary == 64 + 256


def test_a_run_and_going_on_with_it(tmp_path):
    told: list[str] = []
    settings = needles.Settings(**TINY, finished=str(tmp_path / "jobs.jsonl"), keep=str(tmp_path / "models"))
    record = json.loads(json.dumps(needles.run(settings, told.append)))
    assert [run["label"] for run in record["runs"]] == ["8 pairs", "lstm", "lmm, random taps"]
    assert [each["length"] for each in record["runs"][0]["test"]] == [64, 256, 512]
    assert all(0 <= each["right"] <= each["asked"] for run in record["runs"] for each in run["test"])
    assert len(record["runs"][0]["gates"]["step, filler"]) == 2 and "gates" not in record["runs"][1]
    spent, other = (record["runs"][i]["train"]["cpu_seconds"] for i in (0, 1))
    assert 0.1 * spent < other < 10 * spent + 1  # by a trial of so few steps hardly closer
    kept = TitansForCausalLM.from_pretrained(tmp_path / "models" / "8-pairs-0")
    assert kept.config.task["name"] == "niah" and kept.config.write_price == 0

    lines = (tmp_path / "jobs.jsonl").read_text()
    again = needles.run(settings, told.append)
    assert (tmp_path / "jobs.jsonl").read_text() == lines and again["runs"] == record["runs"]
    report = needles.report(record, tmp_path)
    assert "random taps" in report and (tmp_path / "needles-length.png").stat().st_size > 1000


def test_the_price_goes_up_within_a_stage():
    settings = needles.Settings(**TINY)
    torch.manual_seed(0)
    model, seen = needles.build(settings, "lmm", "8 pairs"), []
    model.register_forward_pre_hook(lambda module, _: seen.append(round(model.config.write_price, 4)))
    needles.train(settings, model, "8 pairs", 0, price=2.0)
    assert seen == [0.0, 0.075, 0.1, 0.1, 0.0, 2.0] and not model.training


def test_spread():
    runs = [{"test": [{"length": 64, "right": right, "asked": 4}]} for right in (4, 3)]
    assert "| x | 0.88 (0.75 to 1.00) |" in shares_table({"x": runs})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tasks": ["9 pairs"]}, "tasks: there is no 9 pairs"),
        ({"models": ["lstm"]}, "lmm among them"),
        ({"stages": [{"step": 3}]}, "stages"),
        ({"streams": 0}, "streams"),
    ],
)
def test_settings_that_cannot_be(changed, said):
    with pytest.raises(ValueError, match=said):
        needles.Settings(**changed)
