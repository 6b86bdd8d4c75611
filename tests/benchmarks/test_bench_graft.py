"""The graft's costs: every way is timed, and what is carried on is counted."""

from __future__ import annotations

import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from memory_titan import MAGConfig, get_memory_model
from memory_titan.benchmarks import graft as bench
from memory_titan.cli import main


def model():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=61, num_key_value_heads=2, **sizes))
    return get_memory_model(base, MAGConfig(layers=[1], window=8, sinks=1, chunk_size=4))


def test_every_way_is_timed_and_restored():
    graft = model()
    ids = torch.randint(61, (1, 12))
    before = graft(ids).logits
    with torch.no_grad():
        costs = bench.decoding(graft, 40, 2, ["graft", "window", "full"])
        costs += bench.reading(graft, 20, 2, ["graft", "window", "full"]) + bench.training(graft, 16, 1)
    assert [(c.what, c.way) for c in costs] == [
        *(("decoding", way) for way in ("graft", "window", "full")),
        *(("reading", way) for way in ("graft", "window", "full")),
        ("training", "graft"), ("training", "window"),
    ]  # fmt: skip
    assert all(c.seconds > 0 and c.low <= c.ratio <= c.high for c in costs)
    assert all(c.ratio == 1 for c in costs if c.way == "graft")
    kept = {c.way: c.kept for c in costs[:3]}
    assert kept["full"] == 3 * 2 * 2 * 8 * 40 * 4  # layers, k and v, heads, width, tokens, float32
    assert kept["window"] == 3 * 2 * 2 * 8 * 8 * 4 < kept["graft"]
    assert "| decoding | 40 | bare, full attention |" in bench.table(costs)
    torch.testing.assert_close(graft(ids).logits, before)
    assert all(p.grad is None for p in graft.parameters())


def test_bad_lists_are_refused():
    result = CliRunner().invoke(main, ["bench", "graft", "--kept", "many"])
    assert result.exit_code == 2 and "are numbers" in result.output
