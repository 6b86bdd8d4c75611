"""The benchmark of whole models runs, its figures mean what they say, and a peer that fails costs only itself."""

from __future__ import annotations

import gc
import json
import math
import sys
from dataclasses import asdict, replace

import pytest
import torch
from click.testing import CliRunner

from memory_titan.benchmarks import measure, model, model_child, model_report
from memory_titan.benchmarks.child import ChildError
from memory_titan.cli import main

TINY = model.quick(model.Settings())


@pytest.fixture(autouse=True)
def quick_collections():
    """What is there already is not looked through before every measurement: that would be most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


def job(name: str, settings: model.Settings = TINY, **changes) -> dict:
    return asdict(replace(model.contenders(settings)[name], **changes))


class Peer(torch.nn.Module):
    """Stands in for titans-pytorch's MAC."""

    def __init__(self, num_tokens, dim, depth, segment_len, neural_memory_layers, neural_memory_batch_size=None):
        super().__init__()
        assert (num_tokens, dim, depth, segment_len, neural_memory_layers) == (16, 16, 2, 8, [2])
        self.embedding, self.head = torch.nn.Embedding(num_tokens, dim), torch.nn.Linear(dim, num_tokens)
        self.seq_len_with_longterm_mem, self.neural_memory_segment_len = lambda n: n, segment_len

    def axial_pos_emb(self, dims, return_factorized):
        return dims

    axial_pos_emb.maybe_derive_outer_dim = lambda length, dims: dims

    def forward(self, x, return_loss=False, cache=None, **_):
        if return_loss:
            assert x.shape == (1, TINY.tokens + 1)
            logits = self.head(self.embedding(x[:, :-1]))
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        assert cache is None or x.shape[1] == cache + 1  # the text so far comes with every token
        return None, x.shape[1]


class InProcess:
    """In place of a `Child`."""

    def __init__(self, given, command) -> None:
        self.job = asdict(given)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def facts(self):
        if self.job["name"] == "lstm":
            raise ChildError("no luck")
        kind = model_child.training if self.job["kind"] == "training" else model_child.decoding
        facts, self.turn = kind(self.job, measure)
        return facts


def test_a_quick_run(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "Child", InProcess)
    monkeypatch.setattr(model_child, "build_peer", lambda job: Peer(**job["options"]))
    out, picture = tmp_path / "record.json", tmp_path / "decoding.png"
    options = ["--quick", "--against", "titans-pytorch", "--output", str(out), "--plot", str(picture)]
    result = CliRunner().invoke(main, ["bench", "model", *options])
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    record = json.loads(out.read_text())
    (training,) = record["training"]
    assert "| lstm | no luck |" in result.output
    assert {name for name, told in training["contenders"].items() if told["samples"]} >= {"mag", "full", "peer"}
    assert "32" in record["decoding"]["mag"]["samples"][0]["times"]
    assert "32" not in record["decoding"]["mac"]["samples"][0]["times"]  # it is not among `farthest`


def test_a_step_learns():
    facts, turn = model_child.training(job("mac, two memories"), measure)
    losses = [turn()["loss"] for _ in range(8)]
    assert losses[-1] < losses[0] < 2 * math.log(TINY.vocab)
    assert facts["parameters"] > 0


def test_a_turn_of_decoding_begins_where_the_last_one_did(monkeypatch):
    seen = []
    plain = model_child._reader
    monkeypatch.setattr(model_child, "_reader", lambda m, cache: (seen.append(cache), plain(m, cache))[1])
    facts, turn = model_child.decoding(job("mag", kind="decoding", contexts=(8, 32), calls=3), measure)
    assert set(turn()["times"]) == set(turn()["times"]) == {"8", "32"}
    assert [cache.tokens for cache in seen] == 2 * [8 + 3, 32 + 3]
    assert facts["bytes"]["8"] == facts["bytes"]["32"]


def test_a_filled_cache_is_one_of_that_length():
    streams = dict(
        model_child._streams(
            full := model_child.build(given := job("full", contexts=(8, 32), filled=True)).eval(), given
        )
    )
    assert [stream.states[0].keys.shape[2] for stream in streams.values()] == [8, 32]
    assert streams[32].nbytes > 3 * streams[8].nbytes
    with torch.no_grad():
        full(input_ids=torch.tensor([[1]]), past_key_values=streams[32])
    assert (streams[32].tokens, int(streams[32].states[1].tokens)) == (33, 33)


def test_a_missing_peer_costs_only_itself(tmp_path):
    nowhere = tmp_path / "python"
    nowhere.write_text(f"#!{sys.executable}\nraise SystemExit('no peer here')\n")
    nowhere.chmod(0o755)
    settings = replace(TINY, peer=True, peer_python=str(nowhere))
    jobs = {name: each for name, each in model.contenders(settings).items() if name in ("peer", "window, as lmm")}
    told = model.take_turns(jobs, settings, lambda label, done: None)
    assert "no peer here" in told["peer"]["error"]
    (sample,) = told["window, as lmm"]["samples"]
    assert sample["times"][1] > 0 and sample["peak"] > 1e7


def test_a_peer_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "titans_pytorch", None)
    with pytest.raises(ImportError, match=r"memory-titan\[bench\]"):
        model_child.build_peer({"options": {}})


def test_baselines_are_of_equal_size():
    jobs = model.contenders(model.Settings())
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in model_child.build(asdict(each)).parameters()) for name, each in jobs.items()
        }
    for name in model.ARCHITECTURES:
        assert abs(sizes[f"window, as {name}"] / sizes[name] - 1) < 0.05
    assert abs(sizes["full"] / sizes["mag"] - 1) < 0.05 and abs(sizes["lstm"] / sizes["mag"] - 1) < 0.05
    assert jobs["mac, two memories"].options["memory_layers"] == [1, 3]


def decoded(**milliseconds: float) -> dict:
    return {"samples": [{"times": {length[1:]: [1.0, ms / 1e3] for length, ms in milliseconds.items()}}]}


def test_where_full_attention_becomes_slower():
    flat = decoded(t100=4.0, t1000=4.0, t10000=4.0)
    found, between = model_report.crossing(flat, decoded(t100=1.0, t1000=2.0, t10000=8.0))
    assert (found, between) == (pytest.approx(1000 * 10**0.5), True)
    assert model_report.crossing(flat, decoded(t100=5.0, t1000=9.0)) == (pytest.approx(100), False)
    assert model_report.crossing(flat, decoded(t100=1.0, t1000=3.0)) is None


def test_ratios_are_of_neighbours():
    told = {"a": {"samples": [{"times": [0, 1.0]}, {"times": [0, 4.0]}]}}
    told["b"] = {"samples": [{"times": [0, 0.5]}, {"times": [0, 1.0]}]}
    assert model.against(told, "a", "b") == measure.Spread(3.0, 2.0, 4.0)
    turns = {"samples": [{"times": {"8": [0, 1.0], "32": [0, 3.0]}}, {"times": {"8": [0, 2.0], "32": [0, 2.0]}}]}
    assert model.slope(turns, 32, 8) == measure.Spread(2.0, 1.0, 3.0)


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="only must be one of training, decoding"):
        model.Settings(only="reading")
    with pytest.raises(ValueError, match="contexts must grow"):
        model.Settings(contexts=(128, 128))
    for options, words in (
        (["--output", "nowhere/at/all.json"], "no such folder"),
        (["--only", "training", "--plot", str(tmp_path / "a.png")], "--plot draws decoding"),
    ):
        result = CliRunner().invoke(main, ["bench", "model", "--quick", *options])
        assert (result.exit_code, words in result.output) == (2, True)
