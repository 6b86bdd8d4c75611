"""Phases in order, each from the one before; stopped anywhere, it goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from memory_titan.graft.config import MAGConfig
from memory_titan.training import curriculum as module
from memory_titan.training.curriculum import PRESETS, Curriculum, Phase, load_curriculum, run, task_of
from test_training_mag import TOKENIZER, model

GRAFT = {"layers": [1], "window": 8, "chunk_size": 8, "expansion": 2, "segment": 64}
HOP = Phase("1a", "open", "hash-hop", {"context_len": 90, "hash_len": 2, "filler": "none"}, samples=6, tests=2)
TWO = Curriculum(
    graft=GRAFT,
    phases=(HOP, replace(HOP, name="1b", data={**HOP.data, "needles": 2}, train={"max_steps": 3})),
    train={"num_epochs": 1, "batch_size": 2, "save_every": 1, "evaluate_every": 2},
    prose="topics",
)


def base():
    return model().unload()


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_can_be_drawn(name):
    preset = load_curriculum(name)
    assert [phase.name for phase in preset.phases] == ["1a", "1b", "2a", "2b", "3a", "3b"]
    assert MAGConfig.from_dict(preset.graft).window
    lengths = [phase.data["context_len"] for phase in preset.phases]
    assert lengths[1] > lengths[0] and lengths[3] > lengths[2] and lengths[5] > lengths[4]
    for phase in preset.phases[:5]:
        if name == "cpu":
            assert next(task_of(phase).samples(1)).answers


def test_phases_chain_and_go_on(tmp_path, monkeypatch):
    told: list[tuple[str, int]] = []

    def stop(phase, record):
        told.append((phase, record["step"]))
        if told.count(("1b", 2)) == 1 and told[-1] == ("1b", 2) and "loss" in record:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(TWO, base(), TOKENIZER, tmp_path, report=stop)
    done = run(
        TWO, base(), TOKENIZER, tmp_path, report=lambda phase, r: told.append((phase, r["step"])), cache=tmp_path
    )
    assert [name for name, _ in told].count("1a") == len([t for t in told if t[0] == "1a"])
    assert told.index(("1b", 1)) > max(i for i, t in enumerate(told) if t[0] == "1a")  # 1a was not done again
    assert done["1a"]["step"] == 4 and done["1b"]["step"] == 3  # 6 samples and 2 pieces of prose, two at a time
    assert (tmp_path / "1b/best/adapter_config.json").exists() and (tmp_path / "data/1b_test.jsonl").exists()
    monkeypatch.setattr(module, "train", None)
    assert run(TWO, base(), TOKENIZER, tmp_path) == done  # nothing is left to do


def test_each_phase_starts_from_the_one_before(tmp_path, monkeypatch):
    loaded = []
    real = module.load_weights
    monkeypatch.setattr(module, "load_weights", lambda folder, graft: loaded.append(folder) or real(folder, graft))
    run(TWO, base(), TOKENIZER, tmp_path)
    assert loaded == [tmp_path / "1a/best"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phases": []}, "no phases"),
        ({"graft": {"wide": 1}}, "fields this version does not know: wide"),
        ({"phases": [{**vars(HOP), "task": "chess"}]}, "task must be one of hash-hop"),
        ({"phases": [{**vars(HOP), "data": {"needles": 0}}]}, "phase 1a: .*at least 1"),
        ({"phases": [{**vars(HOP), "train": {"speed": 1}}]}, "training has no option speed"),
        ({"phases": [{"name": "1a"}]}, "missing"),
    ],
)
def test_what_is_no_curriculum(tmp_path, change, message):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"graft": GRAFT, "phases": [vars(HOP)], **change}))
    with pytest.raises(ValueError, match=message):
        load_curriculum(str(path))
