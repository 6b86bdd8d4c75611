"""What a memory holds: the laws that need no long run, and the run itself, small."""

import json

import pytest
import torch

from memory_titan.benchmarks import capacity
from memory_titan.memory.neural.chunk import chunk_memory
from memory_titan.memory.neural.naive import naive_memory


def accuracy(memory, kind, step, loads, width=16, seeds=(1, 2, 3)):
    found = capacity.measure(memory, kind, seeds, [step] * len(seeds), width, loads)
    return [[row["accuracy"] for row in rows] for _, rows in found]


def slot_recall(keys, values, slots):
    """The table that `slot_accuracy` is the formula of: it keeps the newest, and answers with the nearest key's."""
    kept = slice(max(0, len(keys) - slots), None)
    answer = values[kept][(keys @ keys[kept].T).argmax(-1)]
    return (answer == values).all(-1).float().mean().item()


@pytest.mark.parametrize("kind", capacity.KEYS)
@pytest.mark.parametrize(("slots", "pairs"), [(8, 5), (8, 8), (8, 20), (100, 64), (1, 200)])
def test_slots_are_their_formula(kind, slots, pairs):
    keys, values = capacity.draw_pairs(kind, pairs, 32, 1)
    assert slot_recall(keys, values, slots) == pytest.approx(capacity.slot_accuracy(slots, pairs))


def test_keys_are_what_they_are_said_to_be():
    for kind, mean in (("random", 0.0), ("correlated", 1 / (2 * capacity.CENTRES))):
        keys, values = capacity.draw_pairs(kind, 2000, 64, 1)
        cosines = keys @ keys.T
        others = ~torch.eye(2000, dtype=torch.bool)
        assert torch.allclose(cosines.diagonal(), torch.ones(2000), atol=1e-5)
        assert abs(cosines[others].mean() - mean) < 0.02
        assert set(values.unique().tolist()) == {-1, 1} and len(values.unique(dim=0)) == 2000
        near = cosines[others & (cosines > 0.3)]
        assert (kind == "random" or abs(near.mean() - 0.5) < 0.02) and (len(near) > 1e5) == (kind == "correlated")
    with pytest.raises(ValueError, match="random, correlated"):
        capacity.draw_pairs("none", 2, 4, 1)


def test_mesa_recalls_as_many_as_the_width():
    found = accuracy("mesa", "random", 16.0, (0.25, 0.5, 1), width=32)
    assert all(share == 1.0 for shares in found for share in shares)


def test_linear_attention_recalls_few_pairs():
    assert min(accuracy("linear_attention", "random", 1.0, (1 / 8,), width=64)[0]) >= 0.99


@pytest.mark.parametrize("memory", ["retnet", "gated_deltanet", "memora", "omeganet", "atlas"])
def test_a_broken_off_chunk_is_the_reference(memory):
    """What is asked for at a stop is what the memory token by token would answer, its chunk filled up with nothing."""
    width, pairs, step = 8, 5, 0.05
    layer = capacity._layer(memory, width, 1)
    rule, config = layer.config.to_rule(), layer.config
    keys, values = (x[None, None] for x in capacity.draw_pairs("random", pairs, width, 1))
    if config.features > 1:
        keys = capacity.polynomial_features(keys, layer.feature_coefficients.detach())
    blank = rule.chunk_size - pairs if rule.read == "chunk" else 0
    k = torch.cat([keys, keys.new_zeros(1, 1, blank, keys.shape[3])], 2)
    v = torch.cat([values, values.new_zeros(1, 1, blank, width)], 2)
    weights = [weight.detach()[None] for weight in layer.init_weights]
    gates = capacity._gates(config, torch.tensor([step]), range(pairs + blank), 0)
    momentum = [torch.zeros_like(weight) for weight in weights] if config.momentum else []
    *_, A, _ = naive_memory(k, k, v, gates, weights, momentum, rule)
    if rule.read == "chunk":  # the first token of the next chunk reads the whole one
        start = capacity.FastWeights.start(tuple(A), False, capacity.replace(rule, muon=False))
        still = capacity.Gates(torch.zeros(1, 1, pairs), torch.zeros(1, 1, pairs))
        y = chunk_memory(keys, keys, values, still, start, capacity.replace(rule, muon=False))[0]
    else:
        y = rule.structure.forward(lambda i, x: x @ A[i], keys, len(A))
    expected = capacity._judge(y[0, 0], values[0, 0])
    [(stop, [found])] = capacity.measure(memory, "random", [1], [step], width, [pairs / width])
    assert stop == pairs and found == pytest.approx(expected, abs=1e-4)


def test_what_is_not_finite_is_not_recalled():
    values = torch.eye(4)
    answer = values.clone()
    answer[0, 0] = torch.nan
    found = capacity._judge(answer, values)
    assert found["accuracy"] == 0.75 and found["oldest"] == 0.5 and found["newest"] == 1.0


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [([1.0, 1.0], 20.0), ([0.5, 0.2], 0.0), ([1.0, 0.8], 10 * 2**0.5), ([0.8, 0.95], 20.0)],
)
def test_pairs_held(accuracy, expected):
    assert capacity.pairs_held([10, 20], accuracy) == pytest.approx(expected)


def test_run_resumes_and_draws(tmp_path, monkeypatch):
    out, figure, told = tmp_path / "new" / "capacity.json", tmp_path / "new" / "capacity.png", []
    some = ["linear_attention", "gla", "deltanet", "memora", "mesa"]

    def run(seeds):
        return capacity.run(out, figure, seeds, True, lambda what, done: told.append((what, done)), some)

    record = run(1)
    assert told[0] == ("linear_attention, random keys", 0) and told[-1] == ("done", capacity.jobs(some))
    loads = len(capacity.QUICK.loads)
    assert len(record["rows"]) == loads * capacity.jobs(some)
    assert figure.stat().st_size > 10_000
    assert json.loads(out.read_text()) == record

    # broken off in the middle of a stream: the rest comes out the same, and nothing is tuned again
    broken = {**record, "rows": record["rows"][: 2 * loads + 1]}
    capacity._save(broken, out)
    monkeypatch.setattr(capacity, "choose_step", None)
    assert run(1)["rows"] == record["rows"]
    monkeypatch.setattr(capacity, "draw_figure", lambda record, path: None)
    more = run(2)
    assert more["rows"][: len(record["rows"])] == record["rows"] and len(more["rows"]) == 2 * len(record["rows"])
    monkeypatch.setattr(capacity, "measure", None)
    assert run(2) == more

    with pytest.raises(ValueError, match="other settings"):
        capacity.run(out, None, 1, False)
    with pytest.raises(ValueError, match="no memory 'none'"):
        capacity.run(out, None, 1, True, memories=["none"])


def test_tables(tmp_path):
    rows = [
        [name, kind, pairs, seed, *[share - 0.1 * (name == "deltanet")] * 5]
        for name in ("linear_attention", "gla", "deltanet")
        for kind in capacity.KEYS
        for seed in (1, 2)
        for pairs, share in ((8, 1.0), (16, 0.95), (32, 0.5))
    ]
    record = capacity._open(tmp_path / "none.json", capacity.QUICK)
    names = ("linear_attention", "gla", "deltanet")
    record |= {"rows": rows, "numbers": dict.fromkeys(names, 256)}
    record["steps"] = {name: dict.fromkeys(capacity.KEYS, 0.25) for name in names}
    first, second = capacity.curves(record, "random")
    assert first.names == ("linear_attention", "gla") and second.names == ("deltanet",)
    assert first.held == pytest.approx(16 * 2 ** (0.05 / 0.45)) and second.held == pytest.approx(8)
    table = capacity.markdown(record)
    assert "| `linear_attention`, `gla` | 1 | 1/4 | 1 | 1.08 (1.08 to 1.08) | 17.3 | 0.5 | 2 | 0.50 |" in table

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench capacity: begin -->\nof before\n<!-- bench capacity: end -->\nafter\n")
    capacity.write_document(record, page)
    assert table in page.read_text() and "of before" not in page.read_text()
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no place for the tables"):
        capacity.write_document(record, page)
    assert page.read_text() == "nothing"


@pytest.mark.parametrize("kind", capacity.KEYS)
def test_the_hidden_layer_has_the_room(kind):
    """Least squares in the last matrix recalls 8 d pairs through the first one as drawn: where one pass of steps holds
    fewer, it is the steps and not the structure that bounds it (docs/capacity.md says so)."""
    keys, values = capacity.draw_pairs(kind, 512, 64, 1)
    first, _ = (weight.detach()[0].double() for weight in capacity._layer("default", 64, 1).init_weights)
    hidden = torch.nn.functional.silu(keys.double() @ first)
    gram = hidden.T @ hidden + 1e-3 * torch.eye(len(first.T), dtype=torch.float64)
    answer = hidden @ torch.linalg.solve(gram, hidden.T @ values.double())
    assert capacity._judge(answer, values.double())["accuracy"] >= 0.98
