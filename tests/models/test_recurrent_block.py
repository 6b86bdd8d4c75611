"""The recurrent block keeps the laws of a memory."""

from __future__ import annotations

import pytest
import torch

import laws
from memory_titan.models import RecurrentBlock

DIM = 6


@pytest.fixture(params=["lstm", "gru"])
def block(request) -> RecurrentBlock:
    torch.manual_seed(0)
    return RecurrentBlock(DIM, request.param).double()


def tokens(batch: int = 3, length: int = 13) -> torch.Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_laws(block, tmp_path):
    laws.causal(block, tokens(), at=5)
    laws.rows_alone(block, tokens())
    for cuts in (list(range(1, 13)), [0, 4, 4, 5, 13]):
        laws.any_split(block, tokens(), cuts)
    laws.state_round_trip(block, tokens(), tmp_path / "state.safetensors")
    laws.stays_finite(block, tokens(), 5000)
    laws.gradients_are_true(block, tokens(2, 6))


@pytest.mark.parametrize("before", [0, 4])
def test_padding_changes_nothing(block, before):
    mask = torch.ones(3, 13, dtype=torch.bool)
    mask[0, :6], mask[1, 9:], mask[2, [2, 5, 6, 11]] = False, False, False
    laws.padding_changes_nothing(block, tokens(), mask, before)
    state = block(tokens())[1]
    y, after = block(tokens(), state, torch.zeros(3, 13))  # nothing but padding
    laws.same_state(after, state, 0.0)
    assert not y.any()


def test_low_precision(block):
    exact, _ = block.float()(tokens().float())
    y, state = block.bfloat16()(tokens().bfloat16())
    assert y.dtype == state.hidden.dtype == torch.bfloat16
    assert (y.float() - exact).norm() < 0.03 * exact.norm()


def test_a_gru_has_no_cell_state():
    assert RecurrentBlock(DIM, "gru")(tokens().float())[1].cell.shape == (3, 0)
    assert RecurrentBlock(DIM, "lstm")(tokens().float())[1].cell.shape == (3, DIM)


def test_refuses_what_cannot_work(block):
    with pytest.raises(ValueError, match="there are lstm, gru"):
        RecurrentBlock(DIM, "rnn")
    with pytest.raises(ValueError, match="another size"):
        block(tokens(), block.initial_state(2))
    with pytest.raises(ValueError, match="another size"):
        block(tokens(), RecurrentBlock(DIM, "gru" if block.initial_state(1).cell.numel() else "lstm").initial_state(3))
