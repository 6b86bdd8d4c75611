"""Training a language model: the state carried, the gradient cut, exact resumption, what goes wrong."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from memory_titan.memory.trace import trace
from memory_titan.training import lm as lm_module
from memory_titan.training.checkpoint import CheckpointError
from memory_titan.training.lm import train
from memory_titan.training.lm_config import LMConfig, make_model
from memory_titan.training.lm_objective import SegmentLoss, evaluate, grows
from memory_titan.training.lm_watch import MemoryWatch
from memory_titan.training.loop import Stop, TrainingError
from memory_titan.training.streams import Streams
from memory_titan.training.text import Corpus, Document

TRANSFORMER = {"type": "transformer", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window": 6}
RECURRENT = {"type": "recurrent", "hidden_size": 16, "num_hidden_layers": 1}
BANK = {"heads": 2, "slots": 4, "top_k": 2, "chunk_size": 4}
SLOTS = {**TRANSFORMER, "type": "memnet", "bank": BANK, "utilization_weight": 0.1}
TITANS = {**TRANSFORMER, "type": "titans", "segment": 8, "persistent": 2, "memory_options": {"chunk_size": 8}}
NEURAL = {**TRANSFORMER, "type": "memnet", "memory": "neural", "bank": {"heads": 2, "chunk_size": 8}}


def document(name: str, text: str) -> Document:
    return Document(name, torch.tensor([0, *text.encode()], dtype=torch.uint8), len(text.encode()))


def corpus() -> Corpus:
    made = [document(str(i), f"the rain is wet and the sand is dry, {i * 'so '} it is said.\n" * 4) for i in range(6)]
    return Corpus(made[1:], [*made[:1], document("x", "the lamp is lit. " * 5)], 256, 0, None, 0)


def config(model=TRANSFORMER, boundaries: str = "reset", **options) -> LMConfig:
    small = {
        "rows": 2,
        "length": 32,
        "segment": 16,
        "steps": 6,
        "learning_rate": 1e-2,
        "eval_every": 4,
        "save_every": 3,
    }
    data = {"files": ["x"], "boundaries": boundaries}
    return LMConfig(model=model, data=data, **{**small, **options})


def fresh(settings: LMConfig, seed: int = 0):
    return make_model(settings.model, corpus(), seed)


def log(folder) -> list[dict]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def stop_at(step: int, number: int = signal.SIGTERM):
    def report(record):
        if record["step"] == step and "loss" in record:
            os.kill(os.getpid(), number)

    return report


def test_it_learns_and_is_saved(tmp_path):
    settings = config(RECURRENT, steps=60, eval_every=30, save_every=60)
    progress = train(fresh(settings), corpus(), settings, tmp_path)
    assert progress["finished"] and progress["evaluation"]["bits_per_byte"] < 4.5
    scores = [record for record in log(tmp_path) if "bits_per_byte" in record]
    assert [record["step"] for record in scores] == [30, 60]
    losses = [record["loss"] for record in log(tmp_path) if "loss" in record]
    assert len(losses) == 60 and losses[0] == pytest.approx(math.log(256), abs=0.4) and losses[-1] < 2.5
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert found.config.shift_labels and found.config.eos_token_id == 0
    again = evaluate(found, corpus().held_out, rows=2, unit=16)
    assert again["bits_per_byte"] == pytest.approx(scores[-1]["bits_per_byte"], rel=1e-6)


@pytest.mark.parametrize("kind", [TRANSFORMER, RECURRENT, {**TITANS, "architecture": "lmm"}, NEURAL, SLOTS])
def test_segments_cut_the_gradient_and_nothing_else(kind):
    model = fresh(config(kind)).train()
    found = {}
    for segment in (32, 8):
        piece = Streams(corpus().train, 2, 32, segment, reset=False).piece(0)
        assert int((piece.labels >= 0).sum()) == 64  # none is lost at a cut
        objective, cache, total = SegmentLoss(model), None, 0.0
        model.zero_grad()
        for part in piece.segments():
            loss, cache = objective(part, cache)
            (loss * part.ids.shape[1] / 32).backward()
            cache.detach()
            total += float(loss.detach()) * part.ids.shape[1] / 32
        if segment == 32 and kind is not SLOTS:  # whose loss has a part of its own
            with torch.no_grad():
                logits = model(piece.ids).logits
            assert total == pytest.approx(
                float(F.cross_entropy(logits.flatten(0, 1), piece.labels.flatten())), rel=1e-5
            )
        found[segment] = total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    if kind is not SLOTS:
        assert found[8][0] == pytest.approx(found[32][0], rel=1e-5)
    assert not torch.allclose(found[8][1], found[32][1], rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (TRANSFORMER, {}),
        (RECURRENT, {"boundaries": "read_on", "precision": "bf16", "weight_decay": 0.0}),
        (
            {**TITANS, "architecture": "mac", "num_hidden_layers": 1, "write_price": 0.1},
            {"carry": 3, "gradient_checkpointing": True},
        ),
        ({**TITANS, "architecture": "mal", "num_hidden_layers": 1}, {}),
        ({**SLOTS, "window": None}, {"carry": False}),
    ],
)
def test_resuming_is_exact(tmp_path, model, options):
    """Asked to stop in the fourth step of six, and gone on with by another model: one run, to the bit."""
    settings = config(model, **options)
    whole = fresh(settings)
    train(whole, corpus(), settings, tmp_path / "whole")
    stopped = train(fresh(settings), corpus(), settings, tmp_path / "parts", report=stop_at(4))
    assert not stopped["finished"] and stopped["step"] == 4 and not (tmp_path / "parts/final").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again = fresh(settings, seed=9)
    torch.manual_seed(77)
    progress = train(again, corpus(), settings, tmp_path / "parts", resume=True)
    assert progress["finished"] and log(tmp_path / "parts") == log(tmp_path / "whole")
    assert [record["step"] for record in log(tmp_path / "whole")] == [1, 2, 3, 4, 4, 5, 6, 6]
    for (name, x), y in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    assert all(p.dtype == torch.float32 for p in again.parameters())


def test_resuming_goes_on_with_the_same_run_only(tmp_path):
    settings = config(steps=2)
    train(fresh(settings), corpus(), settings, tmp_path)
    longer = replace(settings, steps=3, save_every=9)
    assert train(fresh(settings), corpus(), longer, tmp_path, resume=True)["step"] == 3
    with pytest.raises(CheckpointError, match="another run: rows, learning_rate differs"):
        train(fresh(settings), corpus(), replace(settings, rows=1, learning_rate=1.0), tmp_path, resume=True)
    other = config({**TRANSFORMER, "hidden_size": 8}, steps=2)
    with pytest.raises(CheckpointError, match="another run: model differs"):
        train(fresh(other), corpus(), other, tmp_path, resume=True)
    changed = corpus()
    changed.train.pop()
    with pytest.raises(CheckpointError, match=r"the text .* differs"):
        train(fresh(settings), changed, settings, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="does not fit"):
        train(fresh(other), corpus(), settings, tmp_path, resume=True)
    (tmp_path / "latest/trainer.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="damaged"):
        train(fresh(settings), corpus(), settings, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(fresh(settings), corpus(), settings, tmp_path / "nothing", resume=True)


def test_a_log_has_no_line_twice_and_none_cut_off(tmp_path):
    settings = config(steps=5, save_every=2, eval_every=9)
    train(fresh(settings), corpus(), replace(settings, steps=2), tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    train(fresh(settings), corpus(), settings, tmp_path, resume=True)
    assert [record["step"] for record in log(tmp_path) if "loss" in record] == [1, 2, 3, 4, 5]


def test_asked_to_stop_while_evaluating(tmp_path, monkeypatch):
    """The evaluation is given up, a checkpoint stands, and the run goes on with the evaluation."""
    settings, real = config(), lm_module.evaluate

    def slow(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(lm_module, "evaluate", slow)
        progress = train(fresh(settings), corpus(), settings, tmp_path)
    assert progress["step"] == 4 and progress["evaluation"] is None
    train(fresh(settings), corpus(), settings, tmp_path, resume=True)
    assert [record["step"] for record in log(tmp_path)] == [1, 2, 3, 4, 4, 5, 6, 6]


@pytest.mark.parametrize("kind", [TRANSFORMER, RECURRENT, {**TITANS, "architecture": "mac"}])
def test_an_evaluation_reads_each_file_from_its_beginning_to_its_end(kind):
    model, held_out = fresh(config(kind)), corpus().held_out
    nats = 0.0
    for each in held_out:
        ids = each.tokens.long()[None]
        with torch.no_grad():
            nats += float(F.cross_entropy(model.eval()(ids[:, :-1]).logits[0], ids[0, 1:], reduction="sum"))
    expected = nats / math.log(2) / sum(each.size for each in held_out)
    for rows, unit in ((1, 999), (2, 16), (5, 7)):
        found = evaluate(model, held_out, rows, unit)
        assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
        assert found["tokens"] == found["bytes"] == sum(each.size for each in held_out)
    apart = evaluate(model, held_out, 2, 8, carry=False)
    assert apart["tokens"] == found["tokens"] and apart["bits_per_byte"] != pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [NEURAL, SLOTS])
def test_what_is_told_of_memories(kind):
    model, held_out = fresh(config(kind)).eval(), corpus().held_out[:1]
    found = evaluate(model, held_out, 1, 999, watch=MemoryWatch(model))
    with trace(model) as traces, torch.no_grad():
        cache = model(held_out[0].tokens.long()[None, :-1]).past_key_values
    (one,) = next(iter(traces.values()))
    assert found["step_size/layer_0"] == pytest.approx(float(one.step.mean()), rel=1e-4)
    assert found["decay/layer_0"] == pytest.approx(float((1 - one.keep).mean()), rel=1e-3, abs=1e-6)
    assert found["surprise/layer_0"] == pytest.approx(float(one.surprise.loss.mean()), rel=1e-4)
    assert 0 < found["gate/layer_0"] < 1
    state = cache.states[0].memory[0]
    held = model.layers[0].memory.present_weights(state) if kind is NEURAL else [state.content]
    norm = torch.cat([x.flatten() for x in held]).norm()
    assert found["memory_norm/layer_0"] == pytest.approx(float(norm), rel=1e-4)
    padded = evaluate(model, corpus().held_out, 2, 16, watch=MemoryWatch(model))
    assert padded["step_size/layer_0"] == pytest.approx(found["step_size/layer_0"], rel=0.2)
    assert not any(part._forward_hooks for part in model.modules())


def test_what_grows_is_not_carried(tmp_path):
    assert grows(fresh(config({**TRANSFORMER, "window": None}))) and not grows(fresh(config(RECURRENT)))
    settings = config({**TRANSFORMER, "window": None}, steps=1)
    with pytest.raises(ValueError, match="carry: false"):
        train(fresh(settings), corpus(), settings, tmp_path)


def test_a_loss_that_is_not_finite_stops_and_says_where(tmp_path, monkeypatch):
    real, calls = SegmentLoss.forward, []

    def spoiled(self, piece, cache):
        loss, cache = real(self, piece, cache)
        calls.append(1)
        return (loss * torch.nan if len(calls) > 8 else loss), cache

    monkeypatch.setattr(SegmentLoss, "forward", spoiled)
    with pytest.raises(TrainingError, match=r"nan at step 5\. .*checkpoint stands"):
        train(fresh(config()), corpus(), config(), tmp_path)
    assert json.loads((tmp_path / "latest/progress.json").read_text())["step"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows"),
        ({"length": 30}, "multiple of segment"),
        ({"carry": -1}, "carry"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"clip": 0.0}, "clip"),
        ({"warmup": 2.0}, "warmup"),
        ({"seed": -1}, "seed"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16"),
        ({"model": {"hidden_size": 8}}, "type .*memnet, recurrent"),
    ],
)
def test_configurations_that_cannot_train(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"type": "mamba"}, "no type 'mamba'; there are memnet, recurrent, "),
        ({**TRANSFORMER, "widnow": 3}, "transformer has no field widnow; it has .*window"),
        ({**RECURRENT, "cell": "rnn"}, "no cell 'rnn'"),
        ({**TRANSFORMER, "window": 0}, "window must be at least 1"),
        ({**TRANSFORMER, "vocab_size": 100}, "vocab_size is 100, and the text's tokens are 256"),
        ({**NEURAL, "bank": {"slots": 3}}, "model: "),
    ],
)
def test_models_that_cannot_be(model, message):
    with pytest.raises(ValueError, match=message):
        make_model(model, corpus(), 0)


@pytest.mark.parametrize(
    ("property_", "value", "message"),
    [("is_fsdp2", True, "boundaries must be read_on"), ("num_processes", 3, "rows=2 is no multiple of 3 processes")],
)
def test_what_several_processes_cannot_do(tmp_path, monkeypatch, property_, value, message):
    monkeypatch.setattr(f"accelerate.Accelerator.{property_}", property(lambda self: value))
    with pytest.raises(ValueError, match=message):
        train(fresh(config()), corpus(), config(), tmp_path)


def test_the_second_request_acts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
