"""The store's own writes of the weights beside `NeuralMemory.memorize`, of which they are a faster form."""

import numpy as np
import pytest
import torch

from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.neural import NeuralRecall


def unit_rows(count, dim, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    rows += 2 * rows[:1]  # of one kind, so that there is something to learn
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.no_grad()
def memorized(neural, state, rows):
    x = torch.from_numpy(rows)[None]
    state, surprise = neural.memory.memorize(x, state, qkv=torch.cat([x, x, x], -1))
    return state, surprise.loss[0, :, 0].numpy()


def assert_same(state, other):
    mine, theirs = state.tensors(), other.tensors()
    assert mine.keys() == theirs.keys()
    for name, x in mine.items():
        assert x.shape == theirs[name].shape and x.dtype == theirs[name].dtype, name
        torch.testing.assert_close(x, theirs[name], atol=2e-6, rtol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


# 96 wide, the state holds an open chunk's tokens; 24 wide, the weights themselves
@pytest.mark.parametrize(("dim", "depth"), [(96, 1), (96, 2), (96, 4), (24, 1), (24, 2), (24, 3)])
def test_writes_what_the_neural_memory_writes(dim, depth):
    config = LongTermMemoryConfig(memory_depth=depth, forget_rate=0.3)
    neural = NeuralRecall(dim, config, size=128)
    rows = unit_rows(330, dim)
    rows[40] = 0
    state, begin = neural.memory.initial_state(1), 0
    for count in (1, 62, 1, 64, 10, 64, 100, 28):  # within a chunk, to its end, over it, from a boundary to the next
        part = rows[begin : begin + count]
        state, expected = memorized(neural, state, part)
        np.testing.assert_allclose(neural.write(part), expected, atol=2e-6, rtol=2e-5)
        begin += count
        assert_same(neural.state, state)
        for mine, theirs in zip(neural.weights, neural.memory.present_weights(state), strict=True):
            np.testing.assert_allclose(mine, theirs[0, 0].numpy(), atol=2e-6, rtol=2e-5)
    assert neural.written == begin == 330
    assert expected.mean() < 0.98  # it has learned something


@pytest.mark.parametrize("dim", [96, 24])
def test_goes_on_from_a_state_of_the_neural_memory(dim):
    one, two = (NeuralRecall(dim, LongTermMemoryConfig()) for _ in range(2))
    rows = unit_rows(150, dim)
    state, _ = memorized(one, one.memory.initial_state(1), rows[:90])
    one.write(rows[:90])
    two._fast = two._fast.of(two._rule, state)
    np.testing.assert_allclose(one.write(rows[90:]), two.write(rows[90:]), atol=1e-6)
    assert_same(one.state, two.state)


def test_weights_that_were_taken_stay_as_they_are():
    neural = NeuralRecall(96, LongTermMemoryConfig())
    rows = unit_rows(200, 96)
    neural.write(rows[:70])
    fast = neural._fast  # its present weights are made only now, after others were written
    neural.write(rows[70:])
    other = NeuralRecall(96, LongTermMemoryConfig())
    other.write(rows[:70])
    for mine, theirs in zip(fast.present, other.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_numbers_too_large_are_refused_and_nothing_is_written():
    neural = NeuralRecall(96, LongTermMemoryConfig())
    rows = unit_rows(10, 96)
    neural.write(rows)
    with pytest.raises(FloatingPointError):
        neural.write(np.full((2, 96), np.nan, np.float32))
    assert neural.written == 10 and all(np.isfinite(w).all() for w in neural.weights)
