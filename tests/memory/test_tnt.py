"""A global memory beside local ones keeps the laws, and is the sum of its parts."""

import pytest
import torch

import laws
from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.memory.neural.tnt import GlobalLocalMemory


@pytest.fixture(params=["momentum", "descent"])
def memory(request) -> GlobalLocalMemory:
    torch.manual_seed(0)
    options = {"heads": 2, "expansion": 2, "algorithm": request.param}
    memory = GlobalLocalMemory(8, global_chunk=6, local_chunks=(2, 4), reset_every=8, **options).double()
    with torch.no_grad():
        for part in memory.memories:
            part.gating.linear.weight.normal_()
    return memory


def tokens(length: int = 29, seed: int = 1) -> torch.Tensor:
    return torch.randn(3, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_laws(memory, tmp_path):
    laws.causal(memory, tokens(), at=9)
    laws.rows_alone(memory, tokens())
    laws.any_split(memory, tokens(), list(range(1, 29)))
    laws.any_split(memory, tokens(), [3, 8, 19])
    mask = torch.rand(3, 29, generator=torch.Generator().manual_seed(2)) > 0.4
    laws.padding_changes_nothing(memory, tokens(), mask, before=3)
    laws.state_round_trip(memory, tokens(), tmp_path / "state.safetensors")
    laws.reading_changes_nothing(memory, tokens(), tokens(seed=3))
    laws.writing_alone_writes_the_same(memory, tokens())
    laws.gradients_are_true(memory, tokens(10)[:2])


def test_it_is_the_sum_of_its_parts(memory):
    x = tokens()
    laws.same(memory(x)[0], sum(part(x)[0] for part in memory.memories))
    assert [part.config.chunk_size for part in memory.memories] == [6, 2, 4]
    assert all(isinstance(part, NeuralMemory) for part in memory.memories)


def test_a_local_memory_forgets_at_a_reset_and_the_global_one_does_not(memory):
    x, other = tokens(), tokens()
    other[:, :5] += 1
    with torch.no_grad():
        for part in memory.memories:  # so that nothing but the memory reaches across the reset at token 8
            part.conv.weight[:, :, :-1] = 0
    differs = [(part(x)[0] - part(other)[0])[:, 8:].abs().max() > 1e-6 for part in memory.memories]
    assert differs == [True, False, False]


def test_options_of_mathematics_are_checked():
    with pytest.raises(ValueError, match="multiple"):
        GlobalLocalMemory(8, heads=2, local_chunks=(3,), reset_every=8)
