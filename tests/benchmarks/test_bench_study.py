"""The training studies: the runner resumes, stacked models are each their own, the reports come from the records."""

import json
import math

import pytest
import torch

from memory_titan.benchmarks import ablation, rules
from memory_titan.benchmarks.recaller import Recaller, Stack, train
from memory_titan.benchmarks.study import Records, best, spread, steps_spread, table
from memory_titan.tasks.recall import RecallTask, accuracy

TASK = RecallTask(length=24, pairs=2, repeats=2, keys=8, values=4, filler=4)


def build(**options):
    options = {"heads": 1, "expansion": 2, "chunk_size": 4} | options
    return Recaller(TASK.vocabulary, 8, **options)


def test_records_survive(tmp_path):
    path = tmp_path / "deep" / "runs.json"
    records = Records(path, {"steps": (1, 2)})
    assert not path.exists()
    records.add([{"seed": 0, "share": 0.5}, {"seed": 1, "share": 0.25}])
    again = Records(path, {"steps": (1, 2)})
    assert again.runs == records.runs
    assert again.done(seed=1) and not again.done(seed=2) and not again.done(seed=1, share=0.5)
    again.add([{"seed": 2, "share": 1.0}])
    assert [run["seed"] for run in json.loads(path.read_text())["runs"]] == [0, 1, 2]
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="another setup"):
        Records(path, {"steps": (1, 3)})


def test_the_best_by_its_mean_over_seeds():
    runs = [
        {"rate": rate, "seed": seed, "held_out": share, "loss": loss}
        for rate, shares, loss in ((1, (0.9, 0.1), 1), (2, (0.6, 0.5), None), (3, (0.5, 0.6), 2), (4, (0.5, 0.6), 3))
        for seed, share in enumerate(shares)
    ]
    assert [run["rate"] for run in best(runs, "rate")] == [3, 3]  # equal to 2 and 4; 2 has no loss, 4 a higher one


def test_how_figures_are_written():
    assert spread([0.5, 1.0]) == "0.75 (0.50 to 1.00)"
    assert steps_spread([100, 200]) == "150 (100 to 200)"
    assert steps_spread([100, None]) == "100 (100 to 100), never 1 of 2"
    assert steps_spread([None, None]) == "never (2 of 2)"
    assert table(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | --- |\n| x | 1 |\n"


@pytest.mark.parametrize("together", [True, False], ids=["vmap", "loop"])
def test_a_stack_is_its_models(together):
    stack = Stack(build, [0, 1], together)
    x, y = TASK.batch(3, torch.Generator().manual_seed(5))
    logits = stack(x.expand(2, *x.shape))
    for seed in (0, 1):
        torch.manual_seed(seed)
        alone = build()(x)
        torch.testing.assert_close(logits[seed], alone, rtol=1e-4, atol=1e-5)
        assert stack.recall(TASK, 5, 3, at_once=24)[seed] == pytest.approx(accuracy(alone.argmax(-1), y).item())


@pytest.mark.parametrize("together", [True, False], ids=["vmap", "loop"])
def test_models_train_by_themselves(together):
    """Beside another model, with another rate, a model ends where torch's own optimiser takes it alone."""
    rate, steps = 1e-2, 3
    stack = Stack(build, [0, 1], together)
    # Adam makes whole steps of gradients that are next to nothing: float32 would not tell right from wrong.
    stack.parameters = {name: p.detach().double().requires_grad_() for name, p in stack.parameters.items()}
    train(stack, TASK, [rate, 10 * rate], steps, rows=4)
    torch.manual_seed(0)
    alone, draw = build().double(), torch.Generator().manual_seed(10_007)
    optimizer = torch.optim.Adam(alone.parameters(), betas=(0.9, 0.99))
    for step in range(steps):
        x, y = TASK.batch(4, draw)
        loss = torch.nn.functional.cross_entropy(alone(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate * min(1, (1 - step / steps) / 0.25)
        optimizer.step()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(stack.one(0)[name], parameter, rtol=1e-5, atol=1e-6)


def test_a_broken_model_stops_alone():
    stack, fine = Stack(build, [0, 1]), Stack(build, [0])
    with torch.no_grad():
        stack.parameters["head.weight"][1] = math.nan
        before = stack.parameters["embed.weight"][1].clone()
    courses = train(stack, TASK, [1e-2, 1e-2], 4, rows=4)
    (alone,) = train(fine, TASK, [1e-2], 4, rows=4)
    assert [course.broke for course in courses] == [None, 1]
    assert torch.equal(stack.parameters["embed.weight"][1], before)
    assert courses[0].loss == pytest.approx(alone.loss, rel=1e-3)
    assert courses[1].record(0.9) == {"loss": None, "broke": 1, "reached": None, "curve": courses[1].curve}


def test_when_it_was_reached():
    (course,) = train(Stack(build, [0]), TASK, [1e-3], 3, rows=2, every=2)
    assert [step for step, _ in course.curve] == [2, 3]
    course.curve = [(10, 0.2), (20, 0.9), (30, 0.8)]
    assert course.reached(0.9) == 20 and course.reached(0.95) is None


def test_set_chunk_leaves_the_step_alone():
    model = build(rule="anchored", max_step=0.25)
    x, _ = TASK.batch(2, torch.Generator().manual_seed(0))
    before = model(x)
    model.set_chunk(16)
    assert {memory.config.max_step for memory in model.memories} == {0.25}
    assert not torch.allclose(model(x), before)


@pytest.mark.parametrize("study", [ablation, rules], ids=["ablation", "rules"])
def test_a_study_from_end_to_end(study, tmp_path, monkeypatch):
    path, figure = tmp_path / "study.json", tmp_path / "study.png"
    text = study.run(path, seeds=1, quick=True, figure=figure, quiet=True)
    first = path.read_text()
    assert figure.read_bytes().startswith(b"\x89PNG")

    def never(*args, **options):
        raise AssertionError("trained again what was there")

    with monkeypatch.context() as patch:
        patch.setattr(study, "train", never)
        assert study.run(path, seeds=1, quick=True, quiet=True) == text
    assert path.read_text() == first

    # Interrupted: the last runs are missing, and only they are done again.
    held = json.loads(first)
    path.write_text(json.dumps(held | {"runs": held["runs"][:3]}))
    if study is rules:
        path.write_text(json.dumps(held | {"runs": held["runs"][:2]}))
    study.run(path, seeds=1, quick=True, quiet=True)
    again = json.loads(path.read_text())["runs"]
    assert len(again) == len(held["runs"]) and again[:2] == held["runs"][:2]

    # A quick study and a real one do not share a file.
    with pytest.raises(ValueError, match="another setup"):
        study.run(path, seeds=1, quiet=True)


def test_the_ablation_is_read_from_its_records(tmp_path):
    runs = [
        {"variant": variant, "seed": seed, "rate": rate, "held_out": rate, "loss": 1.0, "broke": None, "reached": 50}
        | {"curve": [(25, 0.5), (50, 0.9)], "test": {"as trained": 0.5 + 0.1 * seed + rate, "longer": 0.25}}
        for variant in ablation.VARIANTS
        for rate in (0.1, 0.2)
        for seed in (0, 1)
    ]
    records = Records(tmp_path / "runs.json", {})
    records.add(runs)
    text = ablation.report(records)
    row = "| 0.2 | 50 (50 to 50) | 0.75 (0.70 to 0.80) | 0.25 (0.25 to 0.25) |"
    assert f"| full {row} 27.01 / 47.83 / 92.68 |" in text
    assert f"| no momentum {row} 28.98 / 45.49 / 87.12 |" in text
    assert "| full | 0.10 (0.10 to 0.10) | 0.20 (0.20 to 0.20) |" in text
    assert "0 of 20" in text


def test_the_rules_are_read_from_their_records(tmp_path):
    runs = [
        {"rule": rule, "bound": bound, "rate": rules.RATE, "seed": seed, "held_out": bound, "loss": 0.1, "reached": 75}
        | {"broke": 7 if rule == "anchored" and seed else None, "curve": [(75, 0.9)]}
        | {"trained": 0.95 if bound < 2 else 0.5, "by_chunk": {"4": 0.5, "64": 0.25 * (1 + seed)}}
        for rule in rules.RULES
        for bound in (1 / rules.CHUNK, 1.0)
        for seed in (0, 1)
    ]
    runs.append(runs[2] | {"rate": rules.RATE / 2, "held_out": 2.0})  # better, with another learning rate
    records = Records(tmp_path / "runs.json", {})
    records.add(runs)
    text = rules.report(records)
    whole, half = "2 of 2: 0.95 (0.95 to 0.95)", "1 of 2: 0.95 (0.95 to 0.95); 1 not finite"
    assert f"| 0.0625 | {whole} | {half} | {whole} |" in text
    assert (
        f"| exact | 1 | {rules.RATE / 2:g} | 75 (75 to 75) | 0.95 (0.95 to 0.95) | 0.50 (0.50 to 0.50) | 0.25 (" in text
    )
    assert f"| token | 1 | {rules.RATE:g} |" in text and "| anchored, default bound | 0.0625 |" in text
    assert "0.38 (0.25 to 0.50)" in text
