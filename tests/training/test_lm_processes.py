"""Training a language model in two processes, and one that is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from memory_titan.cli import main
from memory_titan.training.lm import train
from test_lm_training import NEURAL, config, corpus, fresh, log, stop_at

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

WORKER = """
import sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
sharded = sys.argv[4] == "sharded"
# accelerate offers FSDP on accelerators only; told that these two CPUs are some, it does what it does there.
if sharded:
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
import test_lm_processes as t
t.in_parts(t.Path(sys.argv[1]), sharded)
"""


def settings(sharded: bool):
    """With FSDP2 rows do not begin one by one."""
    return config(
        NEURAL,
        "read_on" if sharded else "reset",
        carry=True if sharded else 3,
        log_dir="x",
        gradient_checkpointing=sharded,
    )


def in_parts(output: Path, sharded: bool) -> None:
    """In each process: stopped after four steps, and gone on with by another model."""
    told = settings(sharded)
    model = fresh(told)
    stopped = train(model, corpus(), told, output, report=stop_at(4))  # only the first of them is asked to
    assert stopped["step"] == 4
    if sharded:
        from torch.distributed.fsdp import FSDPModule
        from torch.distributed.tensor import DTensor

        assert [isinstance(layer, FSDPModule) for layer in model.layers] == [True, False]  # see `_units`
        assert all(isinstance(p, DTensor) for p in model.parameters())
    train(fresh(told, seed=9), corpus(), told, output, resume=True)


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_two_processes_are_one(tmp_path, kind):
    """Data parallel, and FSDP2, over gloo: the losses, the weights and the carried states of one process."""
    told = settings(kind == "sharded")
    alone = fresh(told)
    train(alone, corpus(), told, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "worker.py").write_text(WORKER)
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if kind == "sharded":
        asked = yaml.safe_load((ROOT / "runs/accelerate_fsdp2.yaml").read_text())["fsdp_config"]
        common |= {name.upper(): str(value) for name, value in asked.items()} | {"ACCELERATE_USE_FSDP": "true"}
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "two"), str(HERE), str(ROOT), kind]
    workers = [
        subprocess.Popen(
            command, env={**common, "RANK": str(i), "LOCAL_RANK": str(i)}, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert not any(worker.returncode for worker in workers), errors
    found, expected = log(tmp_path / "two"), log(tmp_path / "one")
    assert len(found) == len(expected) == 8
    for one, other in zip(found, expected, strict=True):
        assert {k: one[k] for k in one if "/" not in k} == pytest.approx(
            {k: other[k] for k in one if "/" not in k}, rel=1e-4
        )
        assert set(one) == set(other)
    for name, x in load_file(tmp_path / "two/final/model.safetensors").items():
        torch.testing.assert_close(x, alone.state_dict()[name], rtol=2e-3, atol=2e-5)
    states = [torch.load(tmp_path / part / "latest/trainer.pt")["cache"]["layers"] for part in ("one", "two")]
    for one, other in zip(*states, strict=True):
        for name, x in one.items():
            torch.testing.assert_close(other[name], x, rtol=1e-3, atol=1e-4)


def written(folder: Path, **options) -> Path:
    """A configuration file, and text."""
    (folder / "text").mkdir(exist_ok=True)
    for index in range(12):
        (folder / f"text/{index}.txt").write_text(
            f"the rain is wet and the sand is dry, {index * 'so '} it is said.\n" * 3
        )
    given = {
        "model": {"type": "recurrent", "hidden_size": 16, "num_hidden_layers": 1},
        "data": {"files": [str(folder / "text")], "held_out": 0.3},
        "rows": 2, "length": 16, "segment": 8, "steps": 300, "save_every": 10, "eval_every": 120,
        "learning_rate": "1e-2",  # as YAML reads 1e-2
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**given, **options}))
    return path


def run(*words: object):
    return CliRunner().invoke(main, ["train", "lm", *map(str, words)])


def test_killed(tmp_path):
    """kill -9 in the midst: the run goes on from its last checkpoint to the same losses."""
    file = written(tmp_path)
    command = [sys.executable, "-m", "memory_titan", "train", "lm", "--config", file, "--output", tmp_path / "killed"]
    process = subprocess.Popen(
        [*map(str, command)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "killed/latest/progress.json").exists() and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        told = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, told
    assert len(log_lines(tmp_path / "killed")) < 300
    again = run("--config", file, "--output", tmp_path / "killed", "--resume")
    assert again.exit_code == 0, again.output
    whole = run("--config", file, "--output", tmp_path / "whole")
    assert whole.exit_code == 0 and "bits per byte" in whole.output, whole.output
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "final/model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def log_lines(folder: Path) -> list[str]:
    return (folder / "log.jsonl").read_text().splitlines()


def test_the_command(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = {**NEURAL, "num_hidden_layers": 1}
    file = written(
        tmp_path, model=model, steps=4, eval_every=2, log_dir=str(tmp_path / "tb"), output=str(tmp_path / "run")
    )
    first = run("--config", file, "--steps", 2)
    assert first.exit_code == 0 and "step 2: " in first.output, first.output
    refused = run("--config", file)
    assert refused.exit_code == 2 and "--resume goes on with it" in refused.output
    more = run("--config", file, "--resume", "--quiet")
    assert more.exit_code == 0 and "4 steps, " in more.output and "loss" not in more.output, more.output
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    tags = set(events.Tags()["scalars"])
    layer = {f"{name}/layer_0" for name in ("gate", "surprise", "step_size", "decay", "momentum", "memory_norm")}
    assert layer | {"train/loss", "train/gradient", "train/rate", "evaluation/bits_per_byte"} <= tags
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [e.step for e in events.Scalars("decay/layer_0")] == [2, 4]


@pytest.mark.parametrize(
    ("options", "words", "message"),
    [
        ({}, [], "names no output"),
        ({"lenght": 3}, ["--output", "x"], "there is no setting lenght; there are carry, "),
        ({"rows": "many"}, ["--output", "x"], "rows must be int; got 'many'"),
        ({"data": {"files": ["nowhere.txt"]}}, ["--output", "x"], "nowhere.txt is no file"),
        ({"data": {"file": "a"}}, ["--output", "x"], "data: there is no setting file"),
        ({"length": 8000}, ["--output", "x"], "one step reads 2 rows of 8000"),
        ({"model": {"type": "recurrent", "window": 3}}, ["--output", "x"], "no window"),
        ({}, ["--output", "x", "--resume"], "no checkpoint"),
    ],
)
def test_what_is_refused_in_a_line(tmp_path, monkeypatch, options, words, message):
    monkeypatch.chdir(tmp_path)
    found = run("--config", written(tmp_path, **options), *words)
    assert found.exit_code == 2 and message in found.output and found.output.count("\n") == 1, found.output


def test_files_that_are_no_configuration(tmp_path):
    for text, message in (
        ("- 1", "expected names and values"),
        ("a: [", "is not YAML"),
        ("rows: 2", "model, data must be"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        found = run("--config", tmp_path / "bad.yaml", "--output", tmp_path)
        assert found.exit_code == 2 and message in found.output, found.output
    missing = run("--config", tmp_path / "none.yaml", "--output", tmp_path)
    assert missing.exit_code == 2 and "No such file" in missing.output


def test_the_documented_run_can_be_read():
    from memory_titan.training.lm_config import load_config

    for path in sorted((ROOT / "runs/lm").glob("*.yaml")):
        assert json.dumps(load_config(path).told())
