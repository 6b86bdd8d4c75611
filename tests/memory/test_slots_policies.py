"""Each policy of the memory bank does what its name says, and off it does not."""

from __future__ import annotations

import math

import pytest
import torch

import laws
from memory_titan.memory.slots.layer import MultiHeadMemoryBank
from memory_titan.memory.slots.losses import (
    marginal,
    pressure_loss,
    sharpness_loss,
    utilization_loss,
)
from memory_titan.memory.slots.rule import SlotGates
from memory_titan.memory.trace import trace, writing_price
from memory_titan.memory.usage import effective_slots, slot_entropy

D = 16
ON, OFF = 1.0, 0.0


def bank(**options) -> MultiHeadMemoryBank:
    """One head that takes keys and values as they come: what is written is in the caller's hands."""
    plain = {
        "projections": False,
        "gating": False,
        "output_gate": False,
        "output_norm": False,
        "conv_size": 0,
        "decay": "none",
    }
    torch.manual_seed(0)
    memory = MultiHeadMemoryBank(
        D, **{"heads": 1, "slots": 4, "top_k": 1, "chunk_size": 1, **plain, **options}
    ).double()
    with torch.no_grad():  # a key is known or new, nothing between
        memory.familiarity[0] = 60.0
    return memory


def basis(*rows: int) -> torch.Tensor:
    return torch.eye(D, dtype=torch.float64)[list(rows)][None]


def tell(memory, keys, values, state=None, queries=None, write=ON, erase=ON, decay=None):
    """Read the tokens, each with its gates; `(y, state)`."""
    shape = (1, keys.shape[1], 1)
    gates = [torch.as_tensor(g, dtype=torch.float64).expand(shape[1]).view(shape) for g in (write, erase)]
    dims = None if decay is None else torch.as_tensor(decay, dtype=torch.float64).expand(shape[1]).view(shape)
    qkv = torch.cat([keys if queries is None else queries, keys, values], -1)
    return memory(keys, state, qkv=qkv, gates=SlotGates(gates[0], gates[1], dims))


def near(a, b) -> None:
    """All gates are open or shut but for what a sigmoid leaves."""
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_what_is_written_is_read():
    values = torch.randn(1, 3, D, dtype=torch.float64)
    memory = bank()
    _, state = tell(memory, basis(0, 1, 2), values)
    near(memory.recall(basis(1, 0, 2), state), values[:, [1, 0, 2]])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_exact(k):
    """A read is the softmax over exactly the k largest cosines of all slots, and nothing of the others."""
    memory = bank(slots=8, top_k=k, sharpness=3.0)
    torch.manual_seed(1)
    keys = torch.nn.functional.normalize(torch.randn(1, 8, D, dtype=torch.float64), dim=-1)
    _, state = tell(memory, keys, torch.randn(1, 8, D, dtype=torch.float64))
    q = torch.nn.functional.normalize(torch.randn(1, 5, D, dtype=torch.float64), dim=-1)
    cosines = q @ state.keys[:, 0].mT
    keep = torch.zeros_like(cosines).scatter(-1, cosines.topk(k, -1).indices, 1.0) > 0
    sharpness = torch.nn.functional.softplus(memory.sharpness[1])
    weights = torch.softmax((sharpness * cosines).masked_fill(~keep, -torch.inf), -1)
    laws.same(memory.recall(q, state), weights @ state.content[:, 0])
    assert (weights > 0).sum(-1).eq(k).all()


def test_the_stalest_slot_is_taken_first():
    """Full, the bank lets go of what was used longest ago: what was read since then stays."""
    memory = bank()
    values = torch.randn(1, 4, D, dtype=torch.float64)
    _, state = tell(memory, basis(0, 1, 2, 3), values)
    nothing = torch.zeros(1, 1, D, dtype=torch.float64)
    _, state = tell(memory, nothing, nothing, state, queries=basis(0), write=OFF)  # slot 0 is of use
    assert state.age[0, 0].tolist() == [0, 3, 2, 1]
    _, state = tell(memory, basis(9), values[:, :1], state)
    assert state.born[0, 0].tolist() == [0, 5, 2, 3]  # slot 1 went
    near(memory.recall(basis(0, 2, 3, 9), state), values[:, [0, 2, 3, 0]])


def test_by_usage_a_slot_read_often_outlives_one_read_last():
    """Two slots: the first was found twice, the second once, and later. Age drops the first, usage the second."""
    kept = {}
    for staleness in ("age", "usage"):
        memory = bank(slots=2, staleness=staleness, usage_decay=0.5)
        values = torch.randn(1, 2, D, dtype=torch.float64)
        _, state = tell(memory, basis(0, 1), values)
        nothing = torch.zeros(1, 3, D, dtype=torch.float64)
        half = torch.stack([basis(0)[0, 0], basis(0)[0, 0], 0.3 * basis(1)[0, 0] + math.sqrt(0.91) * basis(9)[0, 0]])
        _, state = tell(memory, nothing, nothing, state, queries=half[None], write=OFF)
        _, state = tell(memory, basis(7), values[:, :1], state)
        kept[staleness] = int(state.born[0, 0].argmin())
    assert kept == {"age": 1, "usage": 0}


def test_writes_are_not_forced():
    """A shut gate leaves every number of the slots as it was; without the switch every token is written."""
    memory = bank()
    x = torch.randn(1, 6, D, dtype=torch.float64)
    _, state = tell(memory, x, x)
    _, after = tell(memory, -x, x, state, queries=torch.zeros_like(x), write=OFF)
    for name in ("keys", "content", "strength", "last", "born"):
        assert torch.equal(getattr(after, name), getattr(state, name)), name
    open_, forced = (MultiHeadMemoryBank(D, heads=1, slots=4, top_k=1, write_gate=g).double() for g in (True, False))
    with torch.no_grad():
        open_.gating.linear.weight.zero_()
        open_.gating.linear.bias[0] = -20.0
    assert open_(x)[1].strength.sum() == 0
    assert forced(x)[1].strength.sum() > 1


def test_delta_writes_the_difference():
    """The second value under a key takes the first one's place; without delta or erasure it is added to it."""
    values = torch.randn(1, 2, D, dtype=torch.float64)
    read = {}
    for write in ("delta", "erase", "add"):
        memory = bank(write=write)
        _, state = tell(memory, basis(3, 3), values)
        read[write] = memory.recall(basis(3), state)[0, 0]
        assert (state.strength > 0.5).sum() == 1  # a known key takes no second slot
    near(read["delta"], values[0, 1])
    near(read["erase"], values[0, 1])
    near(read["add"], values.sum(1)[0])
    memory = bank()
    _, state = tell(memory, basis(3, 3), values, erase=torch.tensor([ON, 0.25]))
    near(memory.recall(basis(3), state)[0, 0], 0.75 * values[0, 0] + values[0, 1])


def test_decay_is_gated_and_where_written():
    """Only the slot that is written decays; with "all" every slot does, at every token; with "none" no slot."""
    values = torch.ones(1, 2, D, dtype=torch.float64)
    for decay, expected in (("written", [1.0, 0.5]), ("all", [0.5, 0.5]), ("none", [1.0, 1.0])):
        memory = bank(decay=decay, write="add")
        logit = None if decay == "none" else -40.0
        _, state = tell(memory, basis(0, 1), values, decay=logit)
        nothing = 0 * values[:, :1]
        _, state = tell(memory, basis(1), nothing, state, decay=None if decay == "none" else 0.0)  # lambda = 1/2
        got = state.content[0, 0, :2, 0]
        near(got, torch.tensor(expected, dtype=torch.float64))
        if decay == "written":  # by as much as is written, and slots differ
            with torch.no_grad():
                memory.slot_decay[0, 1] = 40.0
            _, state = tell(memory, basis(1), nothing, state, decay=0.0)
            assert state.content[0, 0, 1, 0].abs() < 0.02
            _, again = tell(memory, basis(1), nothing, state, decay=0.0, write=OFF, queries=0 * basis(1))
            assert torch.equal(again.content, state.content)


def test_values_pass_the_bottleneck():
    """Through a middle of width 2, all contents lie in a plane."""
    memory = bank(bottleneck=2)
    with torch.no_grad():
        memory.bottleneck.up.bias.zero_()
    _, state = tell(memory, basis(0, 1, 2, 3), torch.randn(1, 4, D, dtype=torch.float64))
    assert torch.linalg.matrix_rank(state.content[0, 0], atol=1e-9) == 2
    assert torch.linalg.matrix_rank(tell(bank(), basis(0, 1, 2, 3), basis(4, 5, 6, 7))[1].content[0, 0]) == 4


@pytest.mark.parametrize("allocation", ["lru", "dnc", "gumbel"])
def test_new_keys_take_slots_of_their_own(allocation):
    memory = bank(allocation=allocation, chunk_size=8, slots=6, top_k=3, sharpness=30.0).eval()
    values = torch.randn(1, 5, D, dtype=torch.float64)
    _, state = tell(memory, basis(*range(5)), values)
    assert (state.strength > 0.9).sum() == 5
    near(memory.recall(basis(*range(5)), state), values)


def test_allocation_passes_a_gradient():
    """DNC's and Gumbel's to the usage that slots were chosen by; the stalest slot alone is chosen without one."""
    for allocation, flows in (("lru", False), ("dnc", True), ("gumbel", True)):
        memory = bank(allocation=allocation, top_k=3).train()
        x = torch.randn(1, 9, D, dtype=torch.float64)
        _, state = tell(memory, x, x)
        usage = (0.3 + 0.1 * torch.rand_like(state.start_usage)).requires_grad_()
        order = usage.detach().argsort(dim=-1)
        start = type(state)(**{**state.tensors(), "start_usage": usage, "order": order})
        _, after = tell(memory, -x[:, :1], x[:, :1], start)
        gradient = torch.autograd.grad(after.content.square().sum(), usage, allow_unused=True)[0]
        assert (gradient is not None and bool((gradient != 0).any())) == flows, allocation


def test_gumbel_draws_in_training_only():
    memory = bank(allocation="gumbel", top_k=3, gumbel_temperature=10.0)
    x = torch.randn(1, 20, D, dtype=torch.float64)
    memory.train()
    assert not torch.equal(tell(memory, x, x)[1].born, tell(memory, x, x)[1].born)
    memory.eval()
    assert torch.equal(tell(memory, x, x)[1].born, tell(memory, x, x)[1].born)


def test_entropy_is_its_formula():
    """-sum p log(p + eps): log N when all slots are alike, 0 when one is all; the loss is lower the higher it is."""
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25] * 4, [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    laws.same(slot_entropy(p), torch.tensor([1.5 * math.log(2), math.log(4), 0.0], dtype=torch.float64), 1e-7)
    laws.same(effective_slots(p), torch.tensor([2**1.5 / 4, 1.0, 0.25], dtype=torch.float64), 1e-7)
    slots = torch.tensor([[[[0, 1]], [[2, 1]]]])
    weights = torch.tensor([[[[0.5, 0.5]], [[1.0, 0.0]]]], dtype=torch.float64)
    laws.same(marginal(slots, weights, 4), torch.tensor([[0.25, 0.25, 0.5, 0.0]], dtype=torch.float64))


def test_losses_see_what_they_are_about():
    """Spread beats crowded for utilisation, one slot a read beats many for sharpness, shut gates beat open ones."""
    x = torch.nn.functional.normalize(torch.randn(1, 8, D, dtype=torch.float64), dim=-1)

    def told(keys, **options):
        memory = bank(slots=8, **{"top_k": 4, "sharpness": 30.0, **options})
        write = options.pop("write_amount", ON)
        with trace(memory) as traces:
            tell(memory, keys, keys, write=write)
        return traces

    assert utilization_loss(told(basis(*range(8)))) < 0.05 < 0.6 < utilization_loss(told(basis(*[0] * 8)))
    assert sharpness_loss(told(x)) < 0.3 < 0.7 < sharpness_loss(told(x, sharpness=0.01))
    memory = bank(slots=8)
    for write in (0.1, 0.9):
        with trace(memory) as traces:
            tell(memory, x, x, write=write)
        near(pressure_loss(traces), torch.tensor(write, dtype=torch.float64))
        near(writing_price(traces), torch.tensor(write, dtype=torch.float64))
    with pytest.raises(ValueError, match="no bank was traced"):
        utilization_loss({})


def test_heads_are_independent():
    """What one head holds says nothing about the other's."""
    memory = MultiHeadMemoryBank(2 * D, heads=2, slots=4, top_k=2, projections=False, output_gate=False, conv_size=0)
    qkv = torch.randn(1, 6, 3 * 2 * D)
    other = qkv.clone().unflatten(-1, (3, 2, D))
    other[:, :, :, 1] = torch.randn(1, 6, 3, D)
    x = torch.randn(1, 6, 2 * D)
    y, changed = memory(x, qkv=qkv)[0], memory(x, qkv=other.flatten(2))[0]
    assert torch.equal(y[..., :D], changed[..., :D]) and not torch.allclose(y[..., D:], changed[..., D:])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dim": 10, "heads": 4}, "multiple of heads"),
        ({"dim": 8, "slots": 3, "top_k": 4}, "top_k must be at most"),
        ({"dim": 8, "allocation": "first"}, "allocation must be one of"),
        ({"dim": 8, "bottleneck": 0}, "bottleneck"),
        ({"dim": 8, "usage_decay": 0.0}, "usage_decay"),
        ({"dim": 8, "projections": False}, "output_gate"),
    ],
)
def test_what_cannot_be_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        MultiHeadMemoryBank(**options)


def test_a_state_too_large_is_refused_before_it_is_made():
    memory = MultiHeadMemoryBank(64, slots=1 << 16, max_state_bytes=1 << 20)
    with pytest.raises(ValueError, match="max_state_bytes allows"):
        memory(torch.randn(2, 3, 64))
    with pytest.raises(ValueError, match="another bank: keys"):
        MultiHeadMemoryBank(8, slots=4)(torch.randn(1, 2, 8), MultiHeadMemoryBank(8, slots=5).initial_state(1))


def test_nan_is_refused_or_skipped():
    x = torch.randn(2, 5, 8)
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="row 1, token 2"):
        MultiHeadMemoryBank(8)(x)
    memory = MultiHeadMemoryBank(8, nonfinite="skip").double()
    with pytest.warns(RuntimeWarning, match="skipped"):
        y, state = memory(x.double())
    assert y.isfinite().all() and state.tokens.tolist() == [5, 4]
    laws.same(y[1, [0, 1, 3, 4]], memory(x[1:, [0, 1, 3, 4]].double())[0][0])


def test_it_is_shared_as_others_are(tmp_path):
    """`save_pretrained` and back: the same configuration, weights and answers."""
    memory = MultiHeadMemoryBank(8, heads=2, slots=5, write="erase", bottleneck=3)
    memory.save_pretrained(tmp_path)
    again = MultiHeadMemoryBank.from_pretrained(tmp_path)
    x = torch.randn(1, 9, 8)
    assert again.config == memory.config and torch.equal(again(x)[0], memory(x)[0])
    state = memory.initial_state(1)
    assert memory.state_size == sum(t.numel() for t in state.tensors().values())
