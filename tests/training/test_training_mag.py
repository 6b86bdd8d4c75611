"""Training a graft: examples, exact resumption, two processes, what goes wrong."""

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
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from byte_tokens import byte_tokenizer
from memory_titan import MAGConfig, get_memory_model
from memory_titan.cli import main
from memory_titan.cli.train import parse_layers
from memory_titan.evaluation.answers import evaluate
from memory_titan.evaluation.prose import perplexity, python_help
from memory_titan.tasks.examples import batches, collate, encode, load_examples
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.ruler import HuggingFace
from memory_titan.tasks.sample import SampleError
from memory_titan.training import mag
from memory_titan.training.checkpoint import CheckpointError
from memory_titan.training.mag import TrainConfig, TrainingError, train

TOKENIZER = byte_tokenizer()
TASK = HashHopTask(context_len=90, needles=2, questions=2, hash_len=2, filler="none")


def samples(number: int, seed: int = 0, **options):
    return list(replace(TASK, **options).samples(number, seed=seed, ruler=HuggingFace(TOKENIZER, "bytes")))


def examples(number: int, seed: int = 0):
    return [encode(sample, TOKENIZER, f"sample {i}") for i, sample in enumerate(samples(number, seed))]


def model(seed: int = 0, **options):
    torch.manual_seed(seed)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            bos_token_id=0, eos_token_id=None,
        )
    )  # fmt: skip
    return get_memory_model(base, MAGConfig(**{"window": 8, "chunk_size": 8, "expansion": 2, "segment": 64, **options}))


CONFIG = TrainConfig(learning_rate=3e-3, num_epochs=2, batch_size=4, backprop=64, evaluate_every=3, save_every=2)


def weights(graft) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in graft.branches.state_dict().items()}


def test_examples_say_which_tokens_are_answers():
    sample = samples(1)[0]
    example = encode(sample, TOKENIZER)
    assert example.ids[0] == TOKENIZER.bos_token_id and TOKENIZER.decode(example.ids[1:]) == sample.text
    for (begin, end), answer in zip(example.answers, sample.answers, strict=True):
        assert TOKENIZER.decode(example.ids[begin:end]) == sample.cut(answer.span)
    batch = collate([example, replace(example, ids=example.ids[: example.answers[0][1]], answers=example.answers[:1])])
    assert batch.said.max() == 2 and batch.mask[1].sum() == example.answers[0][1]
    assert (batch.said[0] == 2).sum() == example.answers[1][1] - example.answers[1][0]


def test_what_is_too_long(tmp_path):
    long = samples(1, context_len=400, filler="prose")[0]
    with pytest.raises(SampleError, match=r"line 3: \d+ tokens, and at most 50"):
        encode(long, TOKENIZER, "x.jsonl, line 3", max_length=50)
    assert encode(long, TOKENIZER, max_length=50, too_long="skip") is None
    cut = encode(long, TOKENIZER, max_length=390, too_long="truncate")
    assert len(cut.ids) == 390 and all(
        TOKENIZER.decode(cut.ids[begin:end]) in {long.cut(a.span) for a in long.answers} for begin, end in cut.answers
    )
    with pytest.raises(SampleError, match="no answer is left"):
        encode(long, TOKENIZER, max_length=8, too_long="truncate")
    path = tmp_path / "x.jsonl"
    path.write_text(samples(1)[0].to_json() + "\n{}\n")
    with pytest.raises(SampleError, match=r"x\.jsonl, line 2"):
        load_examples(path, TOKENIZER)


def test_an_epoch_is_every_example_once_in_an_order_of_its_own():
    made = examples(10)
    one, again, other = ([e.name for group in batches(made, 4, 0, epoch) for e in group] for epoch in (0, 0, 1))
    assert one == again != other and sorted(one) == sorted(other) == sorted(e.name for e in made)


def test_it_learns(tmp_path):
    """What stands beyond the window, which nothing but the memory can tell."""
    graft, made = model(n_persistent_tokens=2), examples(4)
    before = evaluate(graft, made)["exact"]
    config = replace(CONFIG, num_epochs=30, learning_rate=1e-2, evaluate_every=30, save_every=60, backprop=512)
    progress = train(graft, made, made, config, tmp_path)
    assert progress["best"] > before + 0.4
    with graft.disable_memory(keep_window=True):
        assert evaluate(graft, made)["exact"] < progress["best"] - 0.3
    losses = [record["loss"] for record in progress["history"] if "loss" in record]
    assert losses[-1] < losses[0] - 0.5


def test_exact_match_is_what_greedy_decoding_says():
    graft, made = model(), examples(6)
    train_quickly(graft, made)
    found = {a["name"]: [] for a in evaluate(graft, made)["answers"]}
    for answer in evaluate(graft, made)["answers"]:
        found[answer["name"]].append(answer["right"])
    for example in made:
        begin, end = example.answers[0]
        said = graft.generate(example.ids[None, :begin], max_new_tokens=end - begin, do_sample=False)[0, begin:]
        assert torch.equal(said, example.ids[begin:end]) == found[example.name][0]


def train_quickly(graft, made) -> None:
    optimizer = torch.optim.Adam([p for p in graft.parameters() if p.requires_grad], 1e-2)
    batch = collate(made[:3])
    for _ in range(20):
        loss = graft(batch.ids, attention_mask=batch.mask, labels=batch.ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_resuming_is_exact(tmp_path):
    """Stopped after three steps of eight and gone on with, to the bit what one run gives."""
    made, held_out = examples(15), examples(3, seed=1)
    whole = model()
    expected = train(whole, made, held_out, CONFIG, tmp_path / "whole")
    stopped = model()
    with pytest.raises(KeyboardInterrupt):
        train(stopped, made, held_out, CONFIG, tmp_path / "parts", report=_stop_at(5))
    latest = json.loads((tmp_path / "parts/latest/progress.json").read_text())
    assert latest["step"] == 4
    again = model(seed=9)
    again.base_model.load_state_dict(whole.base_model.state_dict())
    torch.manual_seed(77)
    found = train(again, made, held_out, CONFIG, tmp_path / "parts", resume=tmp_path / "parts/latest")
    for name, x in weights(whole).items():
        assert torch.equal(weights(again)[name], x), name
    assert found["history"] == expected["history"] and found["best"] == expected["best"]
    with pytest.raises(CheckpointError, match="learning_rate"):
        train(again, made, [], replace(CONFIG, learning_rate=1.0), tmp_path, resume=tmp_path / "parts/latest")
    with pytest.raises(CheckpointError, match="number of examples"):
        train(again, made[:4], [], CONFIG, tmp_path, resume=tmp_path / "parts/latest")


def _stop_at(step):
    def report(record):
        if record["step"] == step and "loss" in record:
            raise KeyboardInterrupt

    return report


def test_killed_between_two_renames(tmp_path):
    train(model(), examples(4), [], replace(CONFIG, num_epochs=1), tmp_path)
    os.rename(tmp_path / "latest", tmp_path / ".latest.old")
    train(model(), examples(4), [], replace(CONFIG, num_epochs=1), tmp_path, resume=tmp_path / "latest")
    for path in (tmp_path / "latest/trainer.pt", tmp_path / "latest/adapter_model.safetensors"):
        path.write_bytes(path.read_bytes()[:30])
        with pytest.raises(CheckpointError):
            train(model(), examples(4), [], replace(CONFIG, num_epochs=1), tmp_path, resume=tmp_path / "latest")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(model(), examples(4), [], CONFIG, tmp_path, resume=tmp_path / "nothing")


def test_a_loss_that_is_not_finite_stops_and_says_where(tmp_path, monkeypatch):
    real = mag.AnswerLoss.forward
    calls = []

    def spoiled(self, stretch, session):
        sums = real(self, stretch, session)
        calls.append(1)
        return replace(sums, loss=sums.loss * torch.nan) if len(calls) > 8 else sums

    monkeypatch.setattr(mag.AnswerLoss, "forward", spoiled)
    with pytest.raises(TrainingError, match=r"nan at step \d+, on sample \d+; .*checkpoint stands"):
        train(model(), examples(15), [], CONFIG, tmp_path)
    assert (tmp_path / "latest/progress.json").exists()


def test_success_ends_a_phase(tmp_path):
    made = examples(4)
    config = replace(CONFIG, success=0.0, num_epochs=9)
    assert train(model(), made, made, config, tmp_path)["step"] == 3


WORKER = """
import sys, torch
sys.path[:0] = [sys.argv[2], sys.argv[3], sys.argv[3] + "/tests"]
from pathlib import Path
from dataclasses import replace
import test_training_mag as t
graft = t.model()
progress = t.train(graft, t.examples(7), [], replace(t.CONFIG, num_epochs=1, save_every=9), Path(sys.argv[1]))
"""


def test_two_processes_are_one(tmp_path):
    """Data parallel over gloo: the losses and the weights of one process."""
    alone = model()
    expected = train(alone, examples(7), [], replace(CONFIG, num_epochs=1, save_every=9), tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "worker.py").write_text(WORKER)
    here = Path(__file__).parent
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "two"), str(here), str(here.parents[1])]
    workers = [
        subprocess.Popen(command, env={**common, "RANK": str(i), "LOCAL_RANK": str(i), "ACCELERATE_USE_CPU": "true"},
                         stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]  # fmt: skip
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert not any(worker.returncode for worker in workers), errors
    found = json.loads((tmp_path / "two/latest/progress.json").read_text())
    assert found["step"] == expected["step"] == 2
    for one, other in zip(found["history"], expected["history"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    other = model(seed=3)
    from memory_titan.training.checkpoint import load_weights

    load_weights(tmp_path / "two/latest", other)
    for name, x in weights(alone).items():
        torch.testing.assert_close(weights(other)[name], x, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_epochs": 0}, "num_epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"mixed_precision": "fp8"}, "mixed_precision"),
    ],
)
def test_configurations_that_cannot_train(options, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**options)


def test_the_command(tmp_path, monkeypatch):
    """The seed's chain: a phase, the next one from its best, going on."""
    base = model().unload()
    base.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    data = tmp_path / "hop.jsonl"
    data.write_text("".join(sample.to_json() + "\n" for sample in samples(10)))
    run = CliRunner()
    common = ["train", "mag", "--model_name", str(tmp_path / "base"), "--data_path", str(data)]
    small = ["--window", "8", "--layers", "1", "--chunk_size", "8", "--num_epochs", "1", "--save_every", "1"]
    one = run.invoke(main, [*common, *small, "--output_dir", str(tmp_path / "phase1"), "--learning_rate", "1e-3"])
    assert one.exit_code == 0, one.output
    assert json.loads((tmp_path / "phase1/best/adapter_config.json").read_text())["config"]["layers"] == [1]
    refused = run.invoke(main, [*common, *small, "--output_dir", str(tmp_path / "phase1")])
    assert refused.exit_code == 2 and "--resume" in refused.output
    chained = [
        "--resume_from",
        str(tmp_path / "phase1/best"),
        "--output_dir",
        str(tmp_path / "phase2"),
        "--num_epochs",
        "1",
    ]
    assert run.invoke(main, [*common, *chained]).exit_code == 0
    assert json.loads((tmp_path / "phase2/best/adapter_config.json").read_text())["config"]["window"] == 8
    os.rename(tmp_path / "phase2/latest", tmp_path / "phase2/.latest.old")  # as if killed between two renames
    more = run.invoke(main, [*common, "--output_dir", str(tmp_path / "phase2"), "--num_epochs", "1", "--resume"])
    assert more.exit_code == 0, more.output
    nothing = run.invoke(main, [*common, "--output_dir", str(tmp_path / "phase4"), "--resume"])
    assert nothing.exit_code == 2 and "no checkpoint" in nothing.output
    with monkeypatch.context() as patched:
        patched.setattr(mag, "_step", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        stopped = run.invoke(main, [*common, *small, "--output_dir", str(tmp_path / "phase5")])
        assert stopped.exit_code == 130 and "no checkpoint yet" in stopped.output
    asked = run.invoke(
        main,
        [
            "evaluate",
            "answers",
            str(data),
            "--adapter",
            str(tmp_path / "phase2/best"),
            "--limit",
            "2",
            "--prose",
            "99",
            "--json",
        ]
        + ["--model", str(tmp_path / "base")],
    )
    report = json.loads(asked.output)
    assert all(cost > 1 for cost in report["perplexity"].values()) and len(report["perplexity"]) == 3
    found = report["answers"][0]
    assert found["answers"] == 4 and found["distance"] > 0 and {"memory", "window", "bare"} <= found.keys()
    for bad, words in (
        (["--layers", "one"], "layers must be"),
        (["--memory", "{"], "not JSON"),
        (["--max_length", "9"], "line 1"),
    ):
        result = run.invoke(main, [*common, "--output_dir", str(tmp_path / "phase3"), *bad])
        assert result.exit_code == 2 and words in result.output, result.output


def test_perplexity_is_that_of_the_bare_model():
    graft, ids = model(segment=16), python_help(TOKENIZER, 77)
    with graft.disable_memory():
        loss = graft.base_model(ids[None], labels=ids[None]).loss
        assert perplexity(graft, ids) == pytest.approx(float(loss.exp()), rel=1e-4)


def test_layers_by_name():
    assert parse_layers("all") == "all" and parse_layers("3,7-9") == [3, 7, 8, 9]
    with pytest.raises(ValueError, match="layers must be"):
        parse_layers("3-")
