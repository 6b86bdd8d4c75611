"""The record of a neural memory agrees with the memory's own reports and states, and with gates told by hand."""

import numpy as np
import pytest
import torch

from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.memory.trace import trace
from memory_titan.viz.neural_record import NeuralRecord, record_neural


def by_hand(keep, matrices=1, **others):
    keep = np.array(keep, np.float32)
    keep = keep if keep.ndim == 2 else keep[:, None]
    T, H = keep.shape
    values = {name: np.zeros((T, H), np.float32) for name in ("step", "momentum", "loss", "gradient", "write")}
    weights = np.zeros((T + 1, H, matrices), np.float32)
    values |= dict.fromkeys(("norm", "moved", "away"), weights)
    return NeuralRecord(**{**values, "keep": keep, "looked_at": np.arange(T + 1), **others})


@pytest.mark.parametrize("options", [{"depth": 2}, {"depth": 1, "algorithm": "descent"}, {"structure": "gated"}])
def test_it_says_what_memory_and_state_say(options):
    torch.manual_seed(0)
    memory = NeuralMemory(16, heads=2, chunk_size=8, **options).eval()
    x = torch.randn(3, 21, 16)
    state = before = memory.initial_state(3)

    def run():
        nonlocal state
        for part in x.split(13, 1):
            _, state = memory(part, state)

    record = record_neural(memory, run, row=1, every=5)[""]
    with torch.no_grad(), trace(memory) as traces:
        memory(x)
    (call,) = traces[""]
    for name, value in (("step", call.step), ("keep", call.keep), ("momentum", call.momentum)):
        assert np.allclose(getattr(record, name), value[1].numpy(), atol=1e-5)
    for name in ("loss", "gradient", "write"):
        assert np.allclose(getattr(record, name), getattr(call.surprise, name)[1].numpy(), atol=1e-4)
    assert record.looked_at.tolist() == [0, 5, 10, 13, 18, 21]
    start, end = ([w[1].detach() for w in memory.present_weights(one)] for one in (before, state))
    assert record.matrices == len(end)
    for matrix, (a, b) in enumerate(zip(start, end, strict=True)):
        assert np.allclose(record.norm[0, :, matrix], a.flatten(1).norm(dim=1), atol=1e-5)
        assert np.allclose(record.norm[-1, :, matrix], b.flatten(1).norm(dim=1), atol=1e-4)
        assert np.allclose(record.away[-1, :, matrix], (b - a).flatten(1).norm(dim=1), atol=1e-4)
    assert not record.moved[0].any() and (record.moved[1:] > 0).all()


def test_without_decay_and_momentum_a_token_moves_what_it_writes():
    torch.manual_seed(0)
    memory = NeuralMemory(8, heads=2, depth=2, algorithm="descent", retention="none", chunk_size=1).eval()
    record = record_neural(memory, lambda: memory(torch.randn(1, 9, 8)))[""]
    assert np.allclose(np.linalg.norm(record.moved[1:], axis=-1), record.write, rtol=1e-3, atol=1e-5)


def test_padding_is_left_out_and_watching_changes_nothing():
    torch.manual_seed(0)
    memory = NeuralMemory(8, heads=1, chunk_size=4).eval()
    x, mask = torch.randn(1, 9, 8), torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 0]])
    seen = []
    padded = record_neural(memory, lambda: seen.append(memory(x, None, mask)[0]))[""]
    plain = record_neural(memory, lambda: memory(x[mask.bool()][None]))[""]
    assert padded.tokens == 5 and padded.looked_at.tolist() == [0, 1, 2, 3, 4, 5]
    for name in vars(plain):
        assert np.allclose(getattr(padded, name), getattr(plain, name), atol=1e-5)
    with torch.no_grad():
        assert torch.equal(seen[0], memory(x, None, mask)[0])
    assert memory.traces is None and not memory._forward_hooks


def test_decay_and_kinds_by_hand():
    record = by_hand([[1, 0], [0.5, 1], [0.25, 1]], loss=np.array([[1, 2], [3, 4], [5, 9]], np.float32))
    assert record.left()[:, 0] == pytest.approx([1, 0.375, 0.125])  # (1/2 + 1/4) / 2; 1/2 1/4
    assert record.left()[:, 1].tolist() == [1, 1, 1]  # a token's own gate is not on what it writes
    names, means = record.by_kind(["a", "b", "a"])
    assert names == ["a", "b"] and means["loss"].tolist() == [[3, 3], [5.5, 4]]
    with pytest.raises(ValueError, match="3 tokens"):
        record.by_kind(["a"])


def test_save_and_load(tmp_path):
    memory = NeuralMemory(8, heads=2)
    record = record_neural(memory, lambda: memory(torch.randn(1, 7, 8)), every=3)[""]
    again = NeuralRecord.load(record.save(tmp_path / "record.npz"))
    for name, array in vars(record).items():
        assert getattr(again, name).dtype == array.dtype and np.array_equal(getattr(again, name), array)
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(ValueError, match="no record of a neural memory"):
        NeuralRecord.load(tmp_path / "other.npz")


def test_what_cannot_be():
    memory = NeuralMemory(8, heads=1)
    x = torch.randn(2, 5, 8)
    for module, run, options, says in (
        (torch.nn.Linear(2, 2), lambda: None, {}, "no NeuralMemory"),
        (memory, lambda: None, {}, "did not write any token into NeuralMemory"),
        (memory, lambda: memory(x), {"row": 2}, "0 to 1"),
        (memory, lambda: memory(x), {"every": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            record_neural(module, run, **options)
        assert not module._forward_hooks
    with pytest.raises(ValueError, match="loss must be"):
        by_hand([1, 1], loss=np.zeros((3, 1), np.float32))
