"""Long dependencies: the models are of one size, the figures are what they say, a run tells all of it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from memory_titan.experiments import longdep
from memory_titan.experiments.longdep_slots import information, watch_slots, without_heads
from memory_titan.models import parameter_count
from memory_titan.tasks.distance import DistanceTask
from memory_titan.tasks.recall import NO_LABEL
from memory_titan.training.settings import load_settings

TINY = longdep.Settings(
    models=["slots", "lstm"],
    ablations=["as it is", "top 16"],
    seeds=2,
    hidden=16,
    bank={"heads": 2, "slots": 8, "top_k": 2, "chunk_size": 8},
    pairs=2,
    lengths=[8, 12],
    rows=4,
    steps=3,
    rates=[1e-3, 1e-2],
    sweep_steps=2,
    sweep_distances=[4, 20],
    ablation_steps=2,
    longer=2,
    distances=[4, 20],
    many_pairs=3,
    many_distance=12,
    test_rows=3,
)


@pytest.mark.parametrize("task", [DistanceTask(), DistanceTask(8, 4), DistanceTask(100, 7, keys=9, values=3)])
def test_every_question_is_so_far_from_its_pair(task):
    x, y = task.batch(5, torch.Generator().manual_seed(0))
    for row, labels in zip(x.tolist(), y.tolist(), strict=True):
        asked = [place for place, label in enumerate(labels) if label != NO_LABEL]
        assert len(asked) == task.pairs
        for place in asked:
            assert row.index(row[place]) == place - task.distance
            assert row[place - task.distance + 1] == labels[place]


@pytest.mark.parametrize("bad", [{"distance": 7}, {"pairs": 0}, {"pairs": 33, "distance": 99}, {"filler": 0}])
def test_a_task_that_cannot_be(bad):
    with pytest.raises(ValueError, match=r"must be at least|needs as many keys"):
        DistanceTask(**bad)


def test_models_are_of_one_size():
    with torch.device("meta"):
        sizes = {name: parameter_count(longdep.build(longdep.Settings(), name)) for name in longdep.MODELS}
    assert max(sizes.values()) / min(sizes.values()) < 1.03, sizes
    assert all(abs(size / sizes["slots"] - 1) < 0.03 for size in sizes.values()), sizes


@pytest.mark.parametrize("name", longdep.ABLATIONS)
def test_each_ablation_is_another_model(name):
    bank, options = longdep.ABLATIONS[name]
    model = longdep.build(longdep.Settings(), "slots", bank, options)
    for key, value in bank.items():
        assert getattr(model.memories[0].config, key) == value
    for key, value in options.items():
        assert getattr(model.config, key) == value


def test_accuracy_counts_questions_alone():
    x, y = DistanceTask(8, 2).batch(6, torch.Generator().manual_seed(0))

    class Echo(torch.nn.Module):
        """Says the token before, and at questions what stood after the key: right everywhere, or nowhere."""

        def __init__(self, right: bool) -> None:
            super().__init__()
            self.right = right

        def forward(self, ids, use_cache):
            answers = ids.clone()
            for place in (8, 10):
                answers[:, place] = ids[:, place - 7] if self.right else ids[:, place]
            return type("Out", (), {"logits": torch.nn.functional.one_hot(answers, 128).float()})

    assert longdep.accuracy(Echo(True), x, y) == 1.0
    assert longdep.accuracy(Echo(False), x, y) == 0.0


def test_information():
    assert information(torch.eye(4)) == pytest.approx(2.0)
    assert information(torch.ones(3, 2)) == pytest.approx(0.0)
    assert information(torch.zeros(2, 2)) == 0.0


def test_slots_are_told():
    model = longdep.build(TINY, "slots").eval()
    x, y = DistanceTask(20, 2).batch(3)
    told = watch_slots(model, x, y)["slots"]
    assert 0 <= told["known_share"] <= 1 and 0 < told["effective_reads"] <= 1
    assert 0 <= told["read_entropy"] <= math.log(2) + 1e-6 and 0.5 <= told["top_weight"] <= 1
    assert set(told["gate"]) == {"key", "value", "filler", "question"}
    assert watch_slots(longdep.build(TINY, "lstm").eval(), x, y) == {}


def test_a_silent_head_says_nothing():
    model = longdep.build(TINY, "slots").eval()
    x, _ = DistanceTask(64, 2).batch(4, torch.Generator().manual_seed(5))
    whole = model(x, use_cache=False).logits
    seen = []

    def keep(model, x, y):
        seen.append(model(x, use_cache=False).logits)
        return 0.0

    assert set(without_heads(model, 2, keep)) == {"0", "1", "all"}
    assert all(not torch.allclose(whole, logits[: len(x)]) for logits in seen)
    torch.testing.assert_close(model(x, use_cache=False).logits, whole)  # the hooks are gone


def test_a_run_and_its_report(tmp_path):
    lines = []
    record = json.loads(json.dumps(longdep.run(TINY, lines.append)))
    assert {name: len(runs) for name, runs in record["models"].items()} == {"slots": 2, "lstm": 2}
    assert list(record["longer"]) == ["lstm"] and record["longer"]["lstm"][0]["steps"] == 6
    assert [d for d, _ in record["models"]["lstm"][0]["accuracy"]] == [4, 20]
    assert set(record["ablations"]["top 16"][0]["tests"]) == {"4 tokens", "20 tokens", "3 pairs"}
    for name, tried in record["rates"].items():
        assert [rate for rate, _, _ in tried] == [1e-3, 1e-2]
        assert {run["rate"] for run in record["models"][name]} == {longdep.best(tried)}
    assert lines
    text = longdep.report(record, tmp_path)
    assert "| slots |" in text and (tmp_path / "report.md").read_text("utf-8") == text
    pictures = {"longdep-distance.png", "longdep-training.png", "longdep-ablations.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"record.json", "report.md", "slots.html", *pictures}
    assert record["page"]["tokens"][0][0] in "kv." and len(record["page"]["heads"][0]["reads"]) == 68


def test_the_rate_is_chosen_by_what_is_recalled_far_away():
    assert longdep.best([(1e-3, 0.3, 0.9), (3e-3, 0.1, 0.6), (1e-2, None, 0.0)]) == 1e-3
    assert longdep.best([(1e-3, 0.3, 0.901), (3e-3, 0.1, 0.899), (1e-2, None, 0.9)]) == 3e-3


def test_a_seed_is_a_run():
    first, again = (longdep.trained(TINY, "slots", 1, 1e-2, 3)[1]["curve"] for _ in range(2))
    other = longdep.trained(TINY, "slots", 2, 1e-2, 3)[1]["curve"]
    assert first == again != other


@pytest.mark.parametrize("bad", [{"models": ["slots", "rnn"]}, {"steps": 0}, {"lengths": [8]}, {"models": ["gru"]}])
def test_settings_that_cannot_be(bad):
    with pytest.raises(ValueError, match=r"must|there is no|need"):
        longdep.Settings(**bad)


def test_the_settings_file_is_the_documented_run(pytestconfig):
    assert (
        load_settings(longdep.Settings, pytestconfig.rootpath / "runs/experiments/longdep.yaml") == longdep.Settings()
    )
