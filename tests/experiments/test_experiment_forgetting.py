"""The forgetting experiment: lives and evictions are counted rightly, and a tiny run gives a whole record."""

import json
from pathlib import Path

import pytest
import torch

from memory_titan.experiments import slot_lives
from memory_titan.experiments.forgetting import ABLATIONS, MODELS, Settings, build, run
from memory_titan.experiments.forgetting_report import ablation_table, report
from memory_titan.experiments.slot_lives import Life, follow, half_life, only_facts, replay, survival
from memory_titan.memory.slots.trace import SlotTrace
from memory_titan.memory.surprise import Surprise
from memory_titan.models import parameter_count
from memory_titan.tasks.forgetting import ForgettingTask
from memory_titan.training.settings import load_settings

TINY = {
    "seeds": 2, "hidden": 16, "steps": 2, "baseline_steps": 2, "rows": 2, "rates": [3e-3], "test_rows": 6,
    "watched_rows": 4, "ablations": ["decay none", "allocation dnc"], "ablation_seeds": 1,
    "task": {"length": 56, "expiring": 2, "overwritten": 1, "staying": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stream():
    task = ForgettingTask(length=60, expiring=2, overwritten=2, staying=2, lifetime=8)
    return task.batch(12, torch.Generator().manual_seed(5))


def perfect(facts, slots):
    """Of a bank that writes every value whole, knows overwritten keys, and drops what is longest unwritten."""
    rows, length = facts.roles.shape
    kinds = torch.zeros(rows, length, 1, 2, dtype=torch.long)
    weights, taken = torch.zeros(rows, length, 1, 2), torch.zeros(rows, length, 1)
    for b, events in enumerate(only_facts(facts)):
        table = []
        free = list(range(slots))
        for at, fact, replaced in events:
            known = [place for place, held in table if held == replaced and replaced is not None]
            if known:
                place, part = known[0], 0
                table = [(p, held) for p, held in table if p != place]
            else:
                place, part = (free.pop(0) if free else table.pop(0)[0]), 1
                taken[b, at] = 1.0
            table.append((place, fact))
            kinds[b, at, 0, part], weights[b, at, 0, part] = place, 1.0
    flat, reads = torch.zeros(rows, length, 1), torch.zeros(rows, length, 1, 1)
    told = Surprise(flat, flat, flat)
    return SlotTrace(flat, flat, flat, told, taken, kinds, weights, reads.long(), reads, slots)


def test_survival_is_kaplan_meiers():
    # Ages 2, 4, 4 ended; 3 and 6 are cut off by the end of a row of 10 tokens. At 4 three are left; two of them end.
    lives = [
        Life(0, 2, "a", -1),
        Life(1, 5, "a", -1),
        Life(3, 7, "a", -1),
        Life(7, None, "a", -1),
        Life(4, None, "a", -1),
    ]
    assert survival(lives, 10, [0, 1, 2, 3, 4, 6, 10]) == pytest.approx([1, 1, 0.8, 0.8, 0.8 / 3, 0.8 / 3, 0.8 / 3])
    assert half_life(lives, 10) == 4
    assert half_life(lives[:1] + lives[3:], 10) is None
    assert half_life([], 10) is None


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_what_is_followed_is_what_was_done(stream, slots):
    _, _, facts = stream
    rows = follow(perfect(facts, slots), facts)
    one = [row[0] for row in rows]
    for bank, events in zip(one, only_facts(facts), strict=True):
        assert [event[:2] for event in bank.events] == [event[:2] for event in events]
        assert all(was in (None, wanted) for (*_, was), (*_, wanted) in zip(bank.events, events, strict=True))
    ours = slot_lives.dropped(one, facts)
    assert ours == replay(only_facts(facts), facts, slots, "age")
    lives = [life for bank in one for life in bank.lives]
    assert sum(life.died is None for life in lives) == 12 * min(slots, 6)
    for bank in one:
        takes = sorted(life.born for life in bank.lives)
        assert takes == [at for at, _, replaced in bank.events if replaced is None]
        ends = [life.died for life in bank.lives if life.died is not None]
        assert set(ends) <= set(takes)
    if slots == 8:
        assert ours.found == ours.asked > 0
        assert ours.evictions == 0
        assert all(len(bank.overwritten_after) == 2 for bank in one)


def test_policies_come_in_their_order(stream):
    _, _, facts = stream
    found = {policy: replay(only_facts(facts), facts, 2, policy) for policy in slot_lives.POLICIES}
    assert len({each.asked for each in found.values()}) == 1
    assert all(found["oracle"].found >= each.found for each in found.values())
    assert all(found["oracle"].wrong <= each.wrong for each in found.values())
    assert found["oracle"].found > found["random"].found
    assert replay(only_facts(facts), facts, 8, "lru").shares() == {"wrong": None, "facts": None, "found": 1.0}
    with pytest.raises(ValueError, match="policy must be one of"):
        replay([], facts, 2, "first")


def test_models_are_of_equal_size():
    settings = Settings()
    sizes = [parameter_count(build(name, settings)) for name in MODELS]
    assert max(sizes) < 1.3 * min(sizes)


def test_the_settings_file_is_the_documented_run():
    file = Path(__file__).parents[2] / "runs/experiments/forgetting.yaml"
    assert load_settings(Settings, file) == Settings()


def test_easier_rows_come_first():
    settings = Settings()
    tasks = [settings.at(step, 100) for step in (1, 40, 60)]
    assert [task.writes for task, _ in tasks] == [6, 10, 18]
    assert [rows for _, rows in tasks] == [32, 16, 16]


def test_a_run_gives_a_whole_record(tmp_path):
    settings, lines = Settings(**TINY), []
    record = run(settings, lines.append, tmp_path / "finished.jsonl")
    assert len(record["runs"]) == 2 * 4 + 2
    assert set(record["summary"]) == {*MODELS, *TINY["ablations"]}
    assert json.loads(json.dumps(record)) == record
    assert all(run["slots"]["decay"] is None for run in record["runs"] if run["label"] == "decay none")
    files = report(record, tmp_path / "out")
    assert all(file.stat().st_size > 500 for file in files)
    assert [file.name for file in files if file.suffix == ".html"] == ["slots.html"] and len(files) == 6
    said = [run["page"]["tokens"] for run in record["runs"] if "page" in run]
    x, _, facts = settings.stream.batch(settings.test_rows, torch.Generator().manual_seed(7))
    assert len(said) == 1 and len(said[0]) == x.shape[1]
    at = facts.written[0, 0]
    assert said[0][at - 2] in "EOS" and said[0][at - 1][0] == "k" and said[0][at][0] == "v"
    assert ablation_table(record).count("\n| decay none |") == 1

    lines.clear()
    again = run(settings, lines.append, tmp_path / "finished.jsonl")
    assert again == record, "what was finished is done again, otherwise"
    with pytest.raises(ValueError, match="other settings"):
        run(Settings(**{**TINY, "steps": 3}), lines.append, tmp_path / "finished.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablations": ["erase"]}, "no ablation erase"),
        ({"steps": 0}, "must be at least 1"),
        ({"watched_rows": 600}, "watched_rows must be"),
        ({"curriculum": 2.0}, "curriculum must be"),
        ({"task": {"length": 20}}, "length must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_every_ablation_can_be_built():
    small = Settings(hidden=16)
    for name, options in ABLATIONS.items():
        model = build("memnet", small, options)
        expected = options.get("bank", {})
        assert {key: getattr(model.memories[0].config, key) for key in expected} == expected, name
