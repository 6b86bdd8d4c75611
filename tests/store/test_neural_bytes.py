"""The weights' bytes, at the boundary of a chunk, where the state's tensors share memory."""

import numpy as np

from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.neural import CHUNK, NeuralRecall


def test_a_whole_chunk_can_be_saved():
    rows = np.random.default_rng(0).standard_normal((CHUNK, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    one, two = (NeuralRecall(8, LongTermMemoryConfig()) for _ in range(2))
    one.write(rows)
    assert two.load_bytes(one.to_bytes()) and two.written == CHUNK
    one.write(rows)
    two.write(rows)
    np.testing.assert_array_equal(one.recall(rows[0]), two.recall(rows[0]))
