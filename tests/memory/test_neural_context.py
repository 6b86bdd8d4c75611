"""`context`: where training starts, a neural memory answers with what followed the last token like this one."""

from __future__ import annotations

import pytest
import torch

from memory_titan import NeuralMemory

TOKENS, DIM = 12, 64


def follower_found(seed: int, **options) -> float:
    """Distinct tokens, then each once more: how often what is read is nearest to the value of its follower."""
    torch.manual_seed(seed)
    memory = NeuralMemory(DIM, heads=1, output_gate=False, chunk_size=4, **options)
    torch.nn.init.eye_(memory.out.weight)
    tokens = torch.randn(1, TOKENS, DIM)
    found = 0
    with torch.no_grad():
        _, state = memory(tokens)
        lone = torch.cat([memory._heads(memory._convolve(_padded(memory, t)))[2] for t in tokens.split(1, 1)], 2)[:, 0]
        for place in range(TOKENS - 1):
            y = memory.recall(tokens[:, place : place + 1], state)
            near = torch.cosine_similarity(y, lone, dim=-1)[0]
            found += int(near.argmax() == place + 1)
    return found / (TOKENS - 1)


def _padded(memory: NeuralMemory, token: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros(1, memory.config.conv_size - 1, 3 * DIM), memory.qkv(token)], 1)


@pytest.mark.parametrize("options", [{}, {"qkv_activation": False}, {"depth": 1}, {"preset": "gated_deltanet"}])
def test_an_untrained_memory_answers_with_what_followed(options):
    options = dict(options)
    if options.pop("preset", None):
        options |= {"depth": 1, "algorithm": "descent", "init": "zero", "decay_first": True, "step_norm": False}
    assert sum(follower_found(seed, context=1, **options) for seed in range(3)) / 3 > 0.8
    assert sum(follower_found(seed, **options) for seed in range(3)) / 3 < 0.5


def test_a_start_alone():
    """Random taps are the default, and are left alone; nothing but the taps and the projection of queries differs."""
    torch.manual_seed(0)
    plain = NeuralMemory(DIM).state_dict()
    torch.manual_seed(0)
    started = NeuralMemory(DIM, context=2).state_dict()
    differ = {name for name, weight in plain.items() if not torch.equal(weight, started[name])}
    assert differ == {"qkv.weight", "conv.weight", "conv.bias"}
    assert NeuralMemory(DIM).config.context is None


@pytest.mark.parametrize("bad", [{"context": 4}, {"context": -1}, {"context": 2, "conv_size": 0}])
def test_no_such_tap(bad):
    with pytest.raises(ValueError, match="context must be less than conv_size"):
        NeuralMemory(DIM, **bad)
