"""Training at scale: less kept for the backward pass, scalars for TensorBoard, weights shared out over processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from memory_titan.cli import main
from memory_titan.graft.recompute import recomputed
from memory_titan.training import mag
from memory_titan.training.checkpoint import load_trainer, load_weights
from memory_titan.training.log import TensorBoardLog
from memory_titan.training.mag import train
from test_training_mag import CONFIG, TOKENIZER, _stop_at, examples, model, samples, weights

ROOT = Path(__file__).parents[2]


def opened(**options):
    """A graft whose memories are heard from the first step on."""
    graft = model(**options)
    with torch.no_grad():
        for branch in graft.branches.values():
            branch.gate.bias.fill_(2.0)
            branch.gate.weight.normal_(std=0.3)
    return graft


def test_recomputing_trains_the_same(tmp_path, monkeypatch):
    made, config = examples(8), replace(CONFIG, num_epochs=1, learning_rate=1e-4, write_price=0.5)
    runs = []
    monkeypatch.setattr("memory_titan.graft.model.recomputed", lambda *a, **k: runs.append(1) or recomputed(*a, **k))
    found = {}
    for recompute in (False, True):
        graft = opened(segment=16)
        progress = train(graft, made, [], replace(config, recompute=recompute), tmp_path / str(recompute))
        found[recompute] = progress["history"], weights(graft)
    assert len(runs) >= 10
    for one, other in zip(found[False][0], found[True][0], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for name, x in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], x, rtol=1e-4, atol=1e-6)
    again = replace(config, recompute=True)  # memory ran out, say
    train(opened(segment=16), made, [], again, tmp_path / "False", resume=tmp_path / "False/latest")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_log_goes_on_where_training_does(tmp_path):
    made, held_out = examples(15), examples(3, seed=1)
    graft, folder = opened(), tmp_path / "log"
    with pytest.raises(KeyboardInterrupt), TensorBoardLog(folder, graft) as log:
        train(graft, made, held_out, CONFIG, tmp_path, report=lambda record: (log(record), _stop_at(5)(record)))
    before = scalars(folder)
    assert [step for step, _ in before["train/loss"]] == [1, 2, 3, 4, 5]
    latest = tmp_path / "latest"
    with TensorBoardLog(folder, graft, load_trainer(latest)[1]["step"]) as log:
        progress = train(graft, made, held_out, CONFIG, tmp_path, resume=latest, report=log)
    found = scalars(folder)
    for name in ("loss", "train_exact", "gradient", "rate", "opened"):
        expected = [(record["step"], record[name]) for record in progress["history"] if "loss" in record]
        assert found[f"train/{name}"] == [(step, pytest.approx(value, rel=1e-5)) for step, value in expected]
    asked = [record["step"] for record in progress["history"] if "exact" in record]
    names = {"evaluation/exact", "evaluation/exact_tokens"}
    names |= {f"{what}/layer_{layer}" for what in ("gate_mean", "gate_max", "memory_norm") for layer in (0, 1)}
    assert names <= found.keys() and all([step for step, _ in found[name]] == asked for name in names)
    for (_, mean), (_, most) in zip(found["gate_mean/layer_1"], found["gate_max/layer_1"], strict=True):
        assert 0 < mean < most < 1
    assert not any(branch._forward_hooks for branch in graft.branches.values())


def test_what_a_log_says_of_gates_and_memories(tmp_path):
    graft = opened().eval()
    ids, mask = torch.randint(1, 99, (2, 30)), torch.ones(2, 30, dtype=torch.bool)
    mask[1, 20:] = False
    with TensorBoardLog(tmp_path, graft) as log, torch.no_grad():
        session = graft.new_session(2)
        _, gates = graft.hidden(ids, mask, session)
        graft.train().hidden(ids, mask)  # not of the evaluation
        log({"step": 7, "exact": 0.5})
    found = scalars(tmp_path)
    for layer, memory in enumerate(session.state.memories):
        assert found[f"gate_mean/layer_{layer}"] == [(7, pytest.approx(float(gates[layer][mask].mean()), rel=1e-5))]
        assert found[f"gate_max/layer_{layer}"] == [(7, pytest.approx(float(gates[layer][mask].max()), rel=1e-5))]
        held = graft.branches[str(layer)].memory.present_weights(memory)
        norm = torch.cat([w.flatten(1) for w in held], 1).norm(dim=1).mean()
        assert found[f"memory_norm/layer_{layer}"] == [(7, pytest.approx(float(norm), rel=1e-5))]


def test_the_command_has_both(tmp_path, monkeypatch):
    model().unload().save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    data = tmp_path / "hop.jsonl"
    data.write_text("".join(sample.to_json() + "\n" for sample in samples(6)))
    command = ["train", "mag", "--model_name", str(tmp_path / "base"), "--data_path", str(data), "--window", "8"]
    command += ["--output_dir", str(tmp_path / "run"), "--save_every", "1", "--log_dir", str(tmp_path / "log")]
    small = ["--chunk_size", "8", "--num_epochs", "1", "--recompute"]
    one = CliRunner().invoke(main, [*command, *small, "--max_steps", "1"])
    assert one.exit_code == 0, one.output
    assert json.loads((tmp_path / "run/latest/progress.json").read_text())["config"]["recompute"]
    more = CliRunner().invoke(main, [*command, *small, "--resume"])
    assert more.exit_code == 0, more.output
    assert [step for step, _ in scalars(tmp_path / "log")["train/loss"]] == [1, 2]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delattr(torch.utils, "tensorboard")
    refused = CliRunner().invoke(main, [*command, "--resume"])
    assert refused.exit_code == 2 and "pip install 'memory-titan[tensorboard]'" in refused.output


# accelerate offers FSDP on accelerators only; told that these two CPUs are some, it does what it does there.
WORKER = """
import sys
sys.path[:0] = [sys.argv[2], sys.argv[3], sys.argv[3] + "/tests"]
from accelerate import PartialState
from accelerate.utils import DistributedType
PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
import test_training_scale as t
t.sharded(t.Path(sys.argv[1]))
"""
SHARDED = replace(CONFIG, num_epochs=2, learning_rate=1e-4, evaluate_every=2, gate_price=0.1, recompute=True)


def sharded(output: Path) -> None:
    """In each process: stopped in the third step, and gone on with by another model from the second."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    graft, asked = opened(segment=32), examples(1, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(graft, examples(7), asked, SHARDED, output, report=_stop_at(3))
    layers = [type(module).__name__ for module in graft.modules() if isinstance(module, FSDPModule)]
    assert layers == ["FSDPLlamaDecoderLayer"] * 2
    assert all(isinstance(p, DTensor) for p in graft.parameters())
    train(opened(segment=32), examples(7), asked, SHARDED, output, resume=output / "latest")


def test_two_processes_with_weights_shared_out_are_one(tmp_path):
    alone = opened(segment=32)
    expected = train(alone, examples(7), examples(1, seed=1), SHARDED, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "worker.py").write_text(WORKER)
    asked = yaml.safe_load((ROOT / "runs/accelerate_fsdp2.yaml").read_text())
    assert asked["distributed_type"] == "FSDP" and asked["mixed_precision"] == "no"
    shared = {name.upper(): str(value) for name, value in asked["fsdp_config"].items()}
    common = {**os.environ, **shared, "ACCELERATE_USE_FSDP": "true", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(tmp_path / "worker.py"),
        str(tmp_path / "two"),
        str(Path(__file__).parent),
        str(ROOT),
    ]
    workers = [
        subprocess.Popen(command, env={**common, "RANK": str(i), "LOCAL_RANK": str(i), "ACCELERATE_USE_CPU": "true"},
                         stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]  # fmt: skip
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert not any(worker.returncode for worker in workers), errors
    found = json.loads((tmp_path / "two/latest/progress.json").read_text())
    assert found["step"] == expected["step"] == 4 and len(found["history"]) == 6
    for one, other in zip(found["history"], expected["history"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    other = model(seed=3)
    load_weights(tmp_path / "two/latest", other)
    for name, x in weights(alone).items():
        torch.testing.assert_close(weights(other)[name], x, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "config", "words"),
    [
        ({}, replace(CONFIG, mixed_precision="bf16"), "dtype bfloat16"),
        ({"source": "frozen"}, CONFIG, "n_persistent_tokens must be 0"),
    ],
)
def test_what_cannot_be_shared_out(options, config, words):
    with pytest.raises(ValueError, match=words):
        mag._check_shareable(model(**options), config)
