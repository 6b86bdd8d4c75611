"""MQAR: the models are of one size, distances and accuracies are what they say, a run tells all of it."""

from __future__ import annotations

import json

import pytest
import torch

from memory_titan.experiments import mqar
from memory_titan.models import parameter_count
from memory_titan.tasks.recall import NO_LABEL
from memory_titan.training.settings import load_settings

TINY = mqar.Settings(
    models=["lmm", "lstm"],
    ablations=["lmm, random taps", "mag, fusion sum"],
    seeds=2,
    ablation_seeds={"mag, fusion sum": 2},
    hidden=16,
    window=8,
    memory={"chunk_size": 8, "expansion": 1, "context": 1},
    vocabulary=32,
    shapes=[[16, 2], [32, 4]],
    tests=[[16, 2], [64, 8]],
    tokens=64,
    steps=3,
    baseline_steps=4,
    rates=[1e-3, 1e-2],
    baseline_rates=[1e-3, 1e-2],
    longer=2,
    test_rows=3,
)


def test_models_are_of_one_size():
    with torch.device("meta"):
        sizes = {name: parameter_count(mqar.build(mqar.Settings(), name)) for name in mqar.MODELS}
    assert all(abs(size / sizes["lmm"] - 1) < 0.03 for size in sizes.values()), sizes


@pytest.mark.parametrize("name", mqar.ABLATIONS)
def test_each_ablation_is_another_model(name):
    base, memory, options = mqar.ABLATIONS[name]
    model = mqar.build(mqar.Settings(), base, memory, options)
    plain = mqar.build(mqar.Settings(), base)
    assert memory or options or name.endswith("longer")
    for part, changes in ((lambda m: m.layers[0].memory.config, memory), (lambda m: m.config, options)):
        for key, value in changes.items():
            assert getattr(part(model), key) == value != getattr(part(plain), key)


def test_distances():
    task = TINY.task(64, 8)
    x, y = task.batch(5, torch.Generator().manual_seed(0))
    told = iter(mqar.distances(x, y, 8).tolist())
    for row, labels in zip(x.tolist(), y.tolist(), strict=True):
        for place in [place for place, label in enumerate(labels) if label != NO_LABEL]:
            assert row[place - next(told)] == labels[place]
    assert next(told, None) is None


class Knows(torch.nn.Module):
    """Says the value of each question whose value is at most `reach` tokens behind, else 0."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, ids, use_cache):
        said = torch.zeros_like(ids)
        for b, row in enumerate(ids.tolist()):
            for place, token in enumerate(row):
                key = row.index(token)
                if key + 1 < place <= key + 1 + self.reach:
                    said[b, place] = row[key + 1]
        return type("Out", (), {"logits": torch.nn.functional.one_hot(said, 32).float()})


def test_accuracy_by_distance():
    told = mqar.tested(Knows(7), TINY)
    shares = {end: share for end, _, share in told["distance"]}
    assert shares.pop(7) == 1.0 and len(shares) > 1 and not any(shares.values())
    assert sum(count for _, count, _ in told["distance"]) == 3 * (2 + 8)
    assert all(share == 1.0 for *_, share in mqar.tested(Knows(99), TINY)["tests"])


def test_a_memory_without_writes_answers_otherwise():
    torch.manual_seed(0)
    model = mqar.build(TINY, "lmm").eval()
    x, _ = mqar.draw(TINY, 32, 4)
    told = mqar.probed(model, TINY)["probes"]
    assert set(told) == {"as it is", "no writes", "flipped sign"} and all(0 <= share <= 1 for share in told.values())
    whole = model(x, use_cache=False).logits
    for probe in (mqar.no_writes, mqar.flipped_sign):
        with probe(model):
            assert not torch.allclose(whole, model(x, use_cache=False).logits)
    assert mqar.probed(mqar.build(TINY, "lstm").eval(), TINY) == {}


def test_a_run_and_its_report(tmp_path):
    lines = []
    assert mqar.sweep(mqar.Settings(rates=[0.5]), "lmm", lines.append) == [(0.5, None, None)]
    record = json.loads(json.dumps(mqar.run(TINY, lines.append)))
    assert {name: len(runs) for name, runs in record["models"].items()} == dict.fromkeys(TINY.models, 2)
    assert {run["steps"] for run in record["models"]["lstm"]} == {4}
    assert [run["steps"] for run in record["ablations"]["lmm, random taps"]] == [6]
    assert len(record["ablations"]["mag, fusion sum"]) == 2
    for name, tried in record["rates"].items():
        assert [rate for rate, *_ in tried] == [1e-3, 1e-2]
        assert {run["rate"] for run in record["models"][name]} == {mqar.best(tried)}
    assert lines
    text = mqar.report(record, tmp_path)
    assert "| lmm |" in text and (tmp_path / "report.md").read_text("utf-8") == text
    pictures = {f"mqar-{name}.png" for name in ("distance", "training", "fusion", "ablations")}
    assert {path.name for path in tmp_path.iterdir()} == {"record.json", "report.md", *pictures}


def test_the_rate_is_chosen_by_the_accuracy():
    assert mqar.best([(1e-3, 0.3, 0.9), (3e-3, 0.1, 0.6), (1e-2, None, 0.0)]) == 1e-3
    assert mqar.best([(1e-3, 0.3, 0.901), (3e-3, 0.1, 0.899), (1e-2, None, 0.9)]) == 3e-3


def test_a_seed_is_a_run():
    first, again = (mqar.trained(TINY, "lmm", 1, 1e-2, 3)[1]["curve"] for _ in range(2))
    other = mqar.trained(TINY, "lmm", 2, 1e-2, 3)[1]["curve"]
    assert first == again != other


@pytest.mark.parametrize(
    "bad", [{"models": ["rnn"]}, {"steps": 0}, {"tokens": 8}, {"vocabulary": 8}, {"noise": "loud"}, {"rates": []}]
)
def test_settings_that_cannot_be(bad):
    with pytest.raises(ValueError, match=r"must|there is no|need"):
        mqar.Settings(**bad)


def test_the_settings_file_is_the_documented_run(pytestconfig):
    assert load_settings(mqar.Settings, pytestconfig.rootpath / "runs/experiments/mqar.yaml") == mqar.Settings()
