"""The sparse bank keeps the laws of a memory."""

from __future__ import annotations

import math

import pytest
import torch

import laws
from memory_titan.memory.sparse import layer
from memory_titan.memory.sparse.config import SparseDeltaBankConfig
from memory_titan.memory.sparse.layer import SparseDeltaBank
from memory_titan.memory.sparse.product_keys import QueryNorm
from memory_titan.memory.trace import trace, writing_price

DIM, HEADS, SLOTS = 8, 2, 36
OPTIONS = [
    pytest.param(options, id="-".join(f"{k}={v}" for k, v in options.items()) or "default")
    for options in (
        {},
        {"write": "erase"},
        {"write": "add"},
        {"decay": "none"},
        {"write": "erase", "decay": "none"},
        {"write": "add", "decay": "none"},
        {"gates": "hard"},
        {"gates": "hard", "write": "erase"},
        {"query_norm": "unit"},
        {"query_norm": "none", "share_keys": False},
        {"reads": 1, "writes": 1},
        {"reads": 5, "writes": 2},
        {"slots": 4, "reads": 4, "writes": 3},
        {"chunk_size": 1},
        {"conv_size": 0},
        {"conv_size": 1, "qkv_activation": False},
        {"output_norm": False, "output_gate": False},
    )
]


def build(seed: int = 0, **options) -> SparseDeltaBank:
    """In eval mode, with running statistics and gates that matter."""
    torch.manual_seed(seed)
    sizes = {"dim": DIM, "heads": HEADS, "slots": SLOTS, "reads": 3, "writes": 3, "chunk_size": 5}
    bank = SparseDeltaBank(**{**sizes, **options}).double()
    with torch.no_grad():
        bank.gating.linear.weight.normal_()
        for norm in (bank.key_norm, bank.query_norm):
            if norm.kind == "batch":
                norm.mean.normal_(std=0.1)
                norm.variance.uniform_(0.05, 0.2)
    return bank.eval()


def tokens(batch: int = 3, length: int = 23, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=OPTIONS)
def bank(request) -> SparseDeltaBank:
    return build(**request.param)


def test_causal(bank):
    laws.causal(bank, tokens(), at=9)


def test_rows_alone(bank):
    laws.rows_alone(bank, tokens())


@pytest.mark.parametrize("cuts", [list(range(1, 23)), [0, 4, 4, 17, 23]], ids=["single", "odd"])
def test_any_split(bank, cuts):
    laws.any_split(bank, tokens(), cuts)


@torch.no_grad()
def test_without_gradients(bank, monkeypatch):
    """Single tokens have a form of their own, and a long sequence is read in pieces."""
    laws.any_split(bank, tokens(), list(range(1, 23)))
    x, mask = tokens(length=71), torch.rand(3, 71) > 0.3
    state = bank(x[:, :3])[1]
    for valid in (None, mask):
        y, after = bank(x, state, valid)
        written, surprise = bank.memorize(x, state, valid)
        monkeypatch.setattr(layer, "PIECE", 24)
        again, again_after = bank(x, state, valid)
        again_written, again_surprise = bank.memorize(x, state, valid)
        monkeypatch.undo()
        laws.same(again, y)
        laws.same_state(again_after, after)
        laws.same_state(again_written, written)
        for one, other in zip(again_surprise, surprise, strict=True):
            laws.same(one, other)


@torch.no_grad()
def test_in_place(bank, monkeypatch):
    """The same as with a copy, in the given content; pieces and single tokens too."""
    monkeypatch.setattr(layer, "PIECE", 24)
    x = tokens(length=40)
    state = bank(x[:, :3])[1]
    y, after = bank(x, state)
    own, place = state.clone(), state.content.data_ptr()
    for begin, end in ((0, 1), (1, 30), (30, 31), (31, 40)):
        part, own = bank(x[:, begin:end], own, inplace=True)
        laws.same(part, y[:, begin:end])
    laws.same_state(own, after)
    assert state.content.data_ptr() == place
    held = after.clone()
    _, last = bank(x, held, inplace=True)
    assert last.content.data_ptr() == held.content.data_ptr()
    laws.same_state(last, bank(x, after)[1])


def test_padding_changes_nothing(bank):
    mask = torch.rand(3, 23, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[0, :6], mask[1, -7:], mask[2] = False, False, torch.arange(23) > 11
    laws.padding_changes_nothing(bank, tokens(), mask)
    laws.padding_changes_nothing(bank, tokens(), mask, before=3)


def test_state_round_trip(bank, tmp_path):
    laws.state_round_trip(bank, tokens(), tmp_path / "state.safetensors")
    assert bank.state_size == sum(t.numel() for t in bank.initial_state(1).tensors().values())


def test_reading_changes_nothing(bank):
    laws.reading_changes_nothing(bank, tokens(), tokens(seed=3))


def test_writing_alone_writes_the_same(bank):
    laws.writing_alone_writes_the_same(bank, tokens())


def test_gradients_are_true(bank):
    laws.gradients_are_true(bank, tokens(batch=2, length=8))


def test_low_precision(bank):
    """The best slots of a query in bfloat16 may be others than in float32: few are enough to choose from here."""
    options = {**vars(bank.config), "slots": 4, "reads": 4, "writes": 4, "sharpness": 1.0}
    laws.low_precision(build(**options), tokens())


@pytest.mark.parametrize("rule", ["delta", "erase", "add"])
@pytest.mark.parametrize("kind", ["random", "constant", "two keys"])
def test_20k_tokens_stay_finite(rule, kind):
    """With the gates as they start, and with the write gate open, no erasing and no decay."""
    for pushed in (False, True):
        torch.manual_seed(0)
        bank = SparseDeltaBank(DIM, heads=HEADS, slots=SLOTS, reads=4, writes=4, write=rule).eval()
        if pushed:
            with torch.no_grad():
                bank.gating.linear.weight.zero_()
                bank.gating.linear.bias[:HEADS], bank.gating.linear.bias[HEADS:] = 20.0, -50.0
        length = {"random": 4096, "constant": 1, "two keys": 2}[kind]
        laws.stays_finite(bank, tokens(batch=1, length=length).float() * 3, 20_480)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["delta", "erase", "add"])
def test_a_million_tokens_stay_finite(rule):
    torch.manual_seed(0)
    bank = SparseDeltaBank(DIM, heads=HEADS, slots=1024, write=rule).eval()
    laws.stays_finite(bank, tokens(batch=1, length=4096).float(), 1_048_576)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["batch", "unit", "none"])
def test_what_is_written_wide_open_is_read_back(norm, training):
    """g = e = 1, no decay: the last value written under an address is what its query reads, whatever stood there."""
    bank = build(
        projections=False, output_gate=False, output_norm=False, conv_size=0, decay="none", query_norm=norm
    ).train(training)
    bank.query_norm.load_state_dict(bank.key_norm.state_dict())  # as they are where queries and keys are the same
    with torch.no_grad():
        bank.gating.linear.weight.zero_()
        bank.gating.linear.bias.fill_(50.0)
    keys, values = tokens(), tokens(seed=5)
    bank.config.qkv_activation = False
    y, _ = bank(tokens(seed=6), qkv=torch.cat([keys, keys, values], -1))
    laws.same(y, values)


@pytest.mark.parametrize("options", [{}, {"write": "erase"}, {"write": "add"}])
def test_shut_gates_keep_everything(options):
    bank, x = build(gates="hard", **options), tokens()
    _, state = bank(x[:, :8])
    with torch.no_grad():
        bank.gating.linear.weight.zero_()
        bank.gating.linear.bias.fill_(-50.0)
    assert torch.equal(bank(x[:, 8:], state)[1].content, state.content)


def test_only_written_slots_fade():
    bank, x = build(), tokens(batch=1, length=3)
    _, state = bank(tokens(batch=1, length=40))
    with trace(bank) as traces:
        _, after = bank(x, state)
    written = torch.zeros(HEADS, SLOTS, dtype=torch.bool)
    for head in range(HEADS):
        written[head, traces[""][0].write_slots[0, :, head].flatten()] = True
    changed = (after.content != state.content).any(-1)[0]
    assert torch.equal(changed, written)
    assert not written.all()


def test_trace():
    """A price on writing works here too; tokens that a mask excludes have no weight, wherever they stand."""
    bank, x = build(), tokens()
    mask = torch.rand(3, 23) > 0.4
    with trace(bank) as traces:
        bank(x, mask=mask)
        bank.memorize(x)
    one, other = traces[""]
    assert one.step.shape == (3, 23, HEADS)
    assert one.write_slots.shape == one.read_weights.shape == (3, 23, HEADS, 3)
    laws.same(one.write_weights.norm(dim=-1), mask[..., None].expand(-1, -1, HEADS).double())
    assert ((one.keep > 0) == mask[..., None]).all()
    laws.same(one.write_usage.sum(-1), torch.ones(1, HEADS, dtype=torch.float64))
    alone = build()
    with trace(alone) as alone_traces:
        alone(x[:1, mask[0]])
    assert torch.equal(alone_traces[""][0].write_slots[0], one.write_slots[0, mask[0]])
    assert other.read_slots is None
    writing_price(traces).backward()
    assert bank.gating.linear.weight.grad.any()


def test_batch_norm_counts_valid_tokens_only():
    norm, x = QueryNorm("batch", 2, 3), 5 + torch.randn(4, 2, 6, 3)
    mask = torch.rand(4, 6) > 0.3
    filled = torch.where(mask[:, None, :, None], x, 1e4)
    y = norm(filled, mask).transpose(1, 2)[mask]
    laws.same(y.mean(0), torch.zeros(2, 3), 1e-5)
    laws.same(y.var(0, correction=0), torch.ones(2, 3), 1e-3)
    for _ in range(200):
        norm(filled, mask)
    laws.same(norm.eval()(filled, mask).transpose(1, 2)[mask], y, 5e-2)
    before = norm.mean.clone()
    norm.train()(x[:1, :, :1], None)
    norm(1e30 * x, None)
    norm(x, None, running=True)
    assert torch.equal(norm.mean, before)


def test_callers_projections():
    """x of another width makes the gates; the heads' readings come side by side."""
    bank = build(projections=False, input_dim=5, output_gate=False)
    x, qkv = torch.randn(3, 23, 5, dtype=torch.float64), torch.randn(3, 23, 3 * DIM, dtype=torch.float64)
    y, state = bank(x, qkv=qkv)
    pieces = [bank(x[:, :9], qkv=qkv[:, :9])]
    pieces.append(bank(x[:, 9:], pieces[0][1], qkv=qkv[:, 9:]))
    laws.same(torch.cat([p[0] for p in pieces], 1), y)
    laws.same_state(pieces[1][1], state)
    assert bank.recall(tokens(), state).shape == (3, 23, DIM)
    with pytest.raises(ValueError, match="needs it"):
        bank(x)
    with pytest.raises(ValueError, match="qkv must be"):
        bank(x, qkv=qkv[:, :4])


def test_reading_alone_is_reading():
    """`recall` of the last token's query is what the token itself read, without a convolution."""
    bank, x = build(conv_size=0, output_gate=False), tokens()
    y, state = bank(x)
    laws.same(bank.recall(x[:, -1:], state), y[:, -1:])


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_row_too_large_leaves_everything_as_it_was(policy, inplace, monkeypatch):
    monkeypatch.setattr(layer, "PIECE", 24)
    bank, x = build(nonfinite=policy).float(), tokens(length=40).float()
    with torch.no_grad():
        state = bank(x)[1]
        before = state.clone()
        large = torch.cat([x[:1], torch.cat([x[1:2, :20], 3e38 * x[1:2, 20:].sign()], 1), x[2:]])
        if policy == "raise":
            with pytest.raises(FloatingPointError, match=r"rows \[1\]"):
                bank(large, state, inplace=inplace)
            laws.same_state(state, before, 0.0)
            return
        expected, expected_state = bank(x[::2], before.select([0, 2]))
        with pytest.warns(RuntimeWarning, match=r"rows \[1\]"):
            y, after = bank(large, state, inplace=inplace)
    assert (y[1] == 0).all()
    laws.same_state(after.select([1]), before.select([1]), 0.0)
    laws.same(y[::2], expected, 1e-5)
    laws.same_state(after.select([0, 2]), expected_state, 1e-5)


def test_tokens_that_are_no_numbers():
    bank, x = build(), tokens()
    x[1, 4, 2] = math.nan
    with pytest.raises(ValueError, match="row 1, token 4"):
        bank(x)
    expected = bank(x, mask=x.isfinite().all(-1))[0]
    bank.config.nonfinite = "skip"
    with pytest.warns(RuntimeWarning, match="row 1, token 4"):
        laws.same(bank(x)[0], expected, 0.0)
    bank.config.nonfinite = "ignore"
    y = bank(x)[0]
    assert not y[1].isfinite().all()
    laws.same(y[0], expected[0])


def test_dull_and_extreme_input_has_finite_gradients(bank):
    bank.float().train()
    x = tokens(batch=1).float()
    scales = torch.tensor([1e-20, 1e-38, 1e4])[:, None, None]
    x = torch.cat([x, x[:, :1].expand_as(x), 0 * x, x * scales]).requires_grad_()
    y, _ = bank(x)
    y.square().mean().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in bank.parameters())


def test_lengths_and_batches_down_to_nothing(bank):
    x = tokens()
    y, state = bank(x)
    for begin, mask in ((state, None), (None, torch.ones(3, 0)), (state, torch.ones(3, 0))):
        nothing, after = bank(x[:, :0], begin, mask)
        assert nothing.shape == (3, 0, DIM)
        laws.same_state(after, bank.initial_state(3) if begin is None else state, 0.0)
    assert all(part.shape == (3, 0, HEADS) for part in bank.memorize(x[:, :0])[1])
    assert bank.recall(x[:, :0], state).shape == (3, 0, DIM)
    none, empty = bank(x[:0], state.select([]))
    assert none.shape == (0, 23, DIM) and empty.batch_size == 0
    laws.same(bank(x[:1, :1])[0], y[:1, :1])


def test_saved_and_loaded(tmp_path):
    bank = build(slots=16)
    bank.float().save_pretrained(tmp_path)
    again = SparseDeltaBank.from_pretrained(tmp_path).eval()
    assert again.config == bank.config
    laws.same(again(tokens().float())[0], bank(tokens().float())[0], 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 10, "heads": 4}, "multiple of heads"),
        ({"dim": 12, "heads": 4}, "must be even"),
        ({"slots": 1000}, "961 and 1024"),
        ({"writes": 40}, "at most slots=36"),
        ({"reads": 0}, "reads"),
        ({"write": "merge"}, "merge"),
        ({"query_norm": "layer"}, "layer"),
        ({"decay": "all"}, "all"),
        ({"sharpness": 0.0}, "sharpness"),
        ({"input_dim": 3}, "projections=False"),
        ({"projections": False}, "output_gate"),
    ],
)
def test_what_cannot_work_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SparseDeltaBankConfig(**{"dim": DIM, "heads": HEADS, "slots": SLOTS, "reads": 3, "writes": 3, **options})


def test_what_would_not_fit_is_refused_before_it_is_there():
    bank = SparseDeltaBank(dim=64, heads=4, slots=2**20)
    told = r"17,179,869,184 bytes: batch 64 x heads 4 x slots 1048576 x width 16 x 4 bytes; .* Lower the batch"
    with pytest.raises(ValueError, match=told):
        bank.initial_state(64)
    with pytest.raises(ValueError, match="Lower the batch"):
        bank(torch.zeros(64, 1, 64))


def test_wrong_shapes_are_refused():
    bank = build()
    with pytest.raises(ValueError, match="expected x"):
        bank(torch.zeros(2, 3, DIM + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="3 rows"):
        bank(tokens(batch=2), bank.initial_state(3))
    with pytest.raises(ValueError, match="another memory: content"):
        bank(tokens(), build(slots=16).initial_state(3))
    with pytest.raises(ValueError, match="mask"):
        bank(tokens(), mask=torch.ones(3, 4))
    with pytest.raises(ValueError, match="no_grad"):
        bank(tokens(), bank.initial_state(3), inplace=True)
