"""What training pays for besides wrong answers, prose among the samples, and lower layers computed once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from memory_titan.tasks.examples import SampleError, collate, load_prose, stretches
from memory_titan.training.lower_cache import with_lower
from memory_titan.training.mag import train
from memory_titan.training.objective import AnswerLoss
from test_training_mag import CONFIG, TOKENIZER, examples, model, weights

HARD = {"memory": {"gates": "hard", "algorithm": "descent"}, "n_persistent_tokens": 0}


def test_sums_are_of_what_they_say():
    graft, made = model(**HARD), examples(3)
    with torch.no_grad():
        for branch in graft.branches.values():
            branch.gate.bias.fill_(2.0)
    batch = collate(made)
    parts = stretches(batch, 40)
    session = graft.new_session(3)
    sums = [AnswerLoss(graft, watch=True)(part, session) for part in parts]
    session = graft.new_session(3)
    plain = [graft.hidden(part.ids, part.mask, session) for part in parts]
    opened = sum(g.mean(0)[part.mask & (part.said == 0)].sum() for part, (_, g) in zip(parts, plain, strict=True))
    torch.testing.assert_close(sum(s.opened for s in sums), opened)
    assert opened > 0
    written = sum(float(s.written.detach()) for s in sums)
    tokens = int(batch.mask.sum())
    assert 0.3 * tokens < written < 0.7 * tokens  # hard gates start in the middle
    with torch.no_grad():
        for branch in graft.branches.values():
            branch.memory.gating.linear.weight.zero_()
            branch.memory.gating.linear.bias.fill_(99.0)
    session = graft.new_session(3)
    full = sum(float(AnswerLoss(graft, watch=True)(part, session).written.detach()) for part in parts)
    assert abs(full - tokens) < 1e-2 * tokens  # padding is not written


def test_prices_shut_gates_and_stop_writing(tmp_path):
    made, config = examples(24), replace(CONFIG, num_epochs=4, evaluate_every=99, learning_rate=2e-2, price_ramp=0.0)
    seen = {}
    for name, price in {"free": 0.0, "dear": 30.0}.items():
        told: list[dict[str, float]] = []
        priced = replace(config, gate_price=price, write_price=price + 1e-9)
        train(model(**HARD), made, [], priced, tmp_path / name, report=told.append)
        seen[name] = told[-1]
    assert seen["dear"]["written"] < 0.1 < seen["free"]["written"]
    assert seen["dear"]["opened"] < 0.5 * seen["free"]["opened"] + 1e-6


def test_prose_is_read_and_nothing_asked(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("The mill was quiet. " * 30)
    prose = load_prose(path, TOKENIZER, 50, 4)
    assert [len(p.ids) for p in prose] == [50] * 4 and all(p.ids[0] == TOKENIZER.bos_token_id for p in prose)
    assert TOKENIZER.decode(prose[-1].ids).endswith("quiet. ") and "token 0" in prose[0].name
    with pytest.raises(SampleError, match=r"60\d tokens"):
        load_prose(path, TOKENIZER, 5000, 4)
    told: list[dict[str, float]] = []
    config = replace(CONFIG, num_epochs=1, batch_size=1, evaluate_every=99, gate_price=1.0)
    train(model(), examples(2), [], config, tmp_path / "run", report=told.append, prose=prose)
    assert len(told) == 6 and sum(record["loss"] == 0.0 for record in told) == 4


def test_training_from_the_lower_layers_states_is_the_same(tmp_path):
    options = {"layers": [1], "sinks": 1}
    made, asked = examples(8), examples(2, seed=5)
    whole, short = model(**options), model(**options)
    train(whole, made, asked, CONFIG, tmp_path / "whole")
    done: list[int] = []
    known, held = (with_lower(short, part, tmp_path / "cache", done.append) for part in (made, asked))
    assert sum(done) == 10 and known[0].lower.shape == (len(made[0].ids), 32)
    train(short, known, held, CONFIG, tmp_path / "short")
    for name, x in weights(whole).items():
        torch.testing.assert_close(weights(short)[name], x, rtol=1e-3, atol=1e-4)
    done.clear()
    again = with_lower(model(**options), made, tmp_path / "cache", done.append)
    assert not done and all(torch.equal(a.lower, b.lower) for a, b in zip(again, known, strict=True))
    with_lower(model(**{**options, "window": 5}), made, tmp_path / "cache", done.append)
    assert sum(done) == 8  # another window is another file
    assert with_lower(short, [], tmp_path / "cache") == []
