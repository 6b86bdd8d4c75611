"""The record of a bank agrees with the bank's own state, and with a life told by hand."""

import numpy as np
import pytest
import torch

from memory_titan.memory.slots.layer import MultiHeadMemoryBank
from memory_titan.memory.trace import trace
from memory_titan.viz.slots_record import SlotRecord, record_slots


def by_hand(took, slots=3, reads=None):
    took = np.array(took, np.int64).reshape(len(took), -1)
    T, H = took.shape
    writes = np.zeros((T, H, slots), np.float32)
    for t, h in np.argwhere(took >= 0):
        writes[t, h, took[t, h]] = 1.0
    reads = np.zeros_like(writes) if reads is None else np.array(reads, np.float32).reshape(T, H, slots)
    gate = (took >= 0).astype(np.float32)
    nothing = np.zeros((0, H, slots, 0), np.float32)
    return SlotRecord(writes, reads, gate, took, gate, gate, nothing, np.zeros(0, np.int64))


@pytest.mark.parametrize("allocation", ["lru", "dnc"])
def test_it_says_what_the_state_says(allocation):
    torch.manual_seed(0)
    bank = MultiHeadMemoryBank(16, heads=2, slots=6, top_k=3, chunk_size=4, allocation=allocation).eval()
    x = torch.randn(3, 40, 16)
    state = None

    def run():
        nonlocal state
        for part in x.split(13, 1):
            _, state = bank(part, state)

    record = record_slots(bank, run, row=1)[""]
    assert (record.tokens, record.heads, record.slots) == (40, 2, 6)
    assert record.holders()[-1].tolist() == state.born[1].tolist()
    assert record.content_at.tolist() == [13, 26, 39, 40]
    assert np.allclose(record.content[-1], state.content[1].numpy())
    assert np.allclose(record.content_norm()[-1], state.content[1].norm(dim=-1).numpy(), atol=1e-5)
    assert record.reads.sum(-1)[1:] == pytest.approx(1.0, abs=1e-5)
    assert (record.writes.sum(-1) <= record.gate + 1e-5).all() and record.gate.max() > 0.4
    if allocation == "lru":  # before the second token there is no slot that it could know
        assert record.writes.sum(-1)[1:] == pytest.approx(record.gate[1:], abs=1e-5)
    lives = record.lifetimes()
    assert lives.ended.any() == (allocation == "lru")  # DNC's begins at free slots, and takes them by parts
    held = {(h, s): b for h, s, b, e in zip(lives.head, lives.slot, lives.born, lives.ended, strict=True) if not e}
    assert held == {(h, s): int(b) for (h, s), b in np.ndenumerate(state.born[1].numpy()) if b >= 0}


def test_padding_is_left_out():
    torch.manual_seed(0)
    bank = MultiHeadMemoryBank(8, heads=1, slots=4, top_k=2, chunk_size=4).eval()
    x, mask = torch.randn(1, 9, 8), torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 0]])
    padded = record_slots(bank, lambda: bank(x, None, mask), mask=mask)[""]
    plain = record_slots(bank, lambda: bank(x[mask.bool()][None]))[""]
    assert padded.tokens == 5 and (padded.took == plain.took).all()
    assert np.allclose(padded.writes, plain.writes, atol=1e-5) and np.allclose(padded.reads, plain.reads, atol=1e-5)


def test_lives_by_hand():
    lives = by_hand([0, 1, -1, 0, -1, 1, 2]).lifetimes()
    assert lives.slot.tolist() == [0, 1, 0, 1, 2] and lives.born.tolist() == [0, 1, 3, 5, 6]
    assert lives.durations.tolist() == [3, 4, 3, 1, 0]
    assert lives.ended.tolist() == [True, True, False, False, False]
    two = by_hand([[0, 1], [0, 0], [1, 1]])
    assert two.lifetimes().of_head(1).durations.tolist() == [2, 1, 0]
    assert len(by_hand([-1, -1]).lifetimes().durations) == 0


def test_usage_and_entropy_by_hand():
    record = by_hand([0, 1, -1], reads=[[0, 0, 0], [0.5, 0.5, 0], [1, 0, 0]])
    assert record.usage()[0] == pytest.approx([0.75, 0.25, 0])
    assert record.usage("writes")[0] == pytest.approx([0.5, 0.5, 0])
    assert record.effective_slots("writes") == pytest.approx([2 / 3], rel=1e-5)
    entropies = record.read_entropy()[:, 0]
    assert np.isnan(entropies[0]) and entropies[1:] == pytest.approx([np.log(2), 0], abs=1e-6)
    assert by_hand([-1]).effective_slots() == pytest.approx([0])
    with pytest.raises(ValueError, match="reads or writes"):
        record.usage("both")


def test_the_cosine_to_a_reference():
    record = by_hand([0, 1])
    content = np.array([[[[3, 4], [0, 0], [0, -2]]]], np.float32)
    seen = SlotRecord(**{**vars(record), "content": content, "content_at": np.array([2])})
    assert seen.content_cosine(np.array([0.0, 5.0]))[0, 0] == pytest.approx([0.8, 0, -1])
    with pytest.raises(ValueError, match="reference"):
        seen.content_cosine(np.zeros(3))


def test_save_and_load(tmp_path):
    bank = MultiHeadMemoryBank(8, heads=2, slots=4, top_k=2)
    record = record_slots(bank, lambda: bank(torch.randn(1, 7, 8)))[""]
    again = SlotRecord.load(record.save(tmp_path / "record.npz"))
    for name, array in vars(record).items():
        assert getattr(again, name).dtype == array.dtype and np.array_equal(getattr(again, name), array)
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(ValueError, match="no record of slots"):
        SlotRecord.load(tmp_path / "other.npz")


def test_what_cannot_be():
    bank = MultiHeadMemoryBank(8, heads=1, slots=4)
    with trace(bank) as traces:
        bank(torch.randn(2, 5, 8))
    for calls, options, says in (
        ([], {}, "at least one"),
        (traces[""], {"row": 2}, "0 to 1"),
        (traces[""], {"mask": torch.ones(2, 4)}, "mask has 4"),
    ):
        with pytest.raises(ValueError, match=says):
            SlotRecord.of(calls, **options)
    with pytest.raises(ValueError, match="no MultiHeadMemoryBank"):
        record_slots(torch.nn.Linear(2, 2), lambda: None)
