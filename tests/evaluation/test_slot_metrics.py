"""The figures of a bank's slots, on a stream told by hand, and on a bank."""

import math

import pytest
import torch

from memory_titan.evaluation.slots import slot_metrics
from memory_titan.memory.slots.layer import MultiHeadMemoryBank
from memory_titan.memory.slots.trace import SlotTrace
from memory_titan.memory.surprise import Surprise
from memory_titan.memory.trace import trace


def told(writes, reads, slots=4):
    """One row and head. writes: (known slot, weight, new slot, weight) a token; reads: two slots, their weights."""
    step = torch.tensor([[[w[1] + w[3]] for w in writes]])
    put = torch.tensor([[[[w[0], 0, w[2]]] for w in writes]]), torch.tensor([[[[w[1], 0.0, w[3]]] for w in writes]])
    look = torch.tensor([[[[0, 1]] for _ in reads]]), torch.tensor([[[list(r)] for r in reads]])
    taken = torch.tensor([[[w[3]] for w in writes]])
    return SlotTrace(step, 1 - step, 0 * step, Surprise(step, step, step), taken, *put, *look, slots)


def test_by_hand():
    # slot 0 and 1 are taken, 0 is written to as known, then 1 is taken again while it holds something
    writes = [(0, 0.0, 0, 1.0), (0, 0.0, 1, 1.0), (0, 1.0, 2, 0.0), (0, 0.0, 1, 1.0), (0, 0.0, 3, 0.0)]
    reads = [(1.0, 0.0), (0.5, 0.5), (1.0, 0.0), (1.0, 0.0), (0.0, 0.0)]  # the last one finds nothing
    found = slot_metrics([told(writes, reads)])
    assert found["read_entropy"] == pytest.approx(math.log(2) / 4, abs=1e-6)
    assert found["read_top"] == pytest.approx(3.5 / 4)
    assert found["reuse"] == pytest.approx(0.25) and found["write_gate"] == pytest.approx(0.8)
    assert found["collision_rate"] == pytest.approx(1 / 3) and found["taken"] == pytest.approx(3 / 5)
    assert found["overwrite_age"] == 2  # taken at 3, last looked at at 1
    assert found["effective_slots_writes"] == pytest.approx(0.5, rel=1e-5)  # 0 and 1 alike, of four
    p = [3.5 / 4, 0.5 / 4]
    assert found["effective_slots_reads"] == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)) / 4, rel=1e-5)
    assert found["half_life"] == 2  # of three lives, one was seen for 1 token only; of the other two one ended at 2


def test_nothing_happened():
    found = slot_metrics([told([(0, 0.0, 0, 0.0)] * 3, [(0.0, 0.0)] * 3)])
    assert found == dict.fromkeys(found) | {"taken": 0.0, "write_gate": 0.0}
    with pytest.raises(ValueError, match="at least one"):
        slot_metrics([])


def test_of_a_bank_whose_slots_run_over():
    torch.manual_seed(0)
    metrics = {}
    for slots in (4, 64):
        bank = MultiHeadMemoryBank(16, heads=2, slots=slots, top_k=2, chunk_size=4).eval()
        with trace(bank) as traces, torch.no_grad():
            x = torch.randn(3, 30, 16)
            _, state = bank(x[:, :11])
            bank(x[:, 11:], state)
        metrics[slots] = slot_metrics(traces[""])
    assert metrics[4]["collision_rate"] > 0.5 and metrics[4]["half_life"] is not None
    assert metrics[64]["collision_rate"] < 0.1 and metrics[64]["half_life"] is None
    assert metrics[4]["effective_slots_writes"] > metrics[64]["effective_slots_writes"]
    assert all(0 < metrics[n]["read_top"] <= 1 + 1e-5 for n in metrics)
