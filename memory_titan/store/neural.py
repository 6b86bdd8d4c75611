"""The long-term memory's weights: a `NeuralMemory` over embeddings, written to by what is admitted.

write:   x_1, x_2, ...  ->  M, trained at every x to answer x to x (Titans, arXiv 2501.00663, eq. 8 to 14):
         S_t = eta S_{t-1} - theta grad |M(x_t) - x_t|^2,   M_t = (1 - alpha) M_{t-1} + S_t
recall:  q -> M(q): q as far as the memory knows its like, drawn towards what it holds
"""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryState
from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.fast_weights import FastWeights, Rule
from memory_titan.store.item import Vector

STEP = 0.1  # over 1 + |h|^2; gentle, so that the weights learn what a stream is about and not its last items
CHUNK = 64  # items between two anchors of the inner gradient; written together


class NeuralRecall:
    """The weights and what they have read. Deterministic: the same items in the same order give the same weights.

    Args:
        dim: of the embeddings.
        config: depth, momentum, forgetting.
        size: items after which what is not written again has lost `forget_rate` of its strength.
    """

    def __init__(self, dim: int, config: LongTermMemoryConfig, size: int = 2048) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.memory = NeuralMemory(
                dim,
                heads=1,
                depth=config.memory_depth,
                expansion=1,
                retention="scalar",
                algorithm="momentum",
                step="fixed",
                max_step=STEP,
                chunk_size=CHUNK,
                projections=False,
                conv_size=0,
                qkv_activation=False,
                output_norm=False,
                output_gate=False,
                init="zero" if config.memory_depth == 1 else "fixed",
            ).requires_grad_(False)
        # Constant gates.
        forget = 1.0 - (1.0 - min(config.forget_rate, 0.999)) ** (1.0 / size)
        gates = {"decay": _logit(forget), "momentum": _logit(config.momentum_factor)}
        linear = self.memory.gating.linear
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([gates[name] for name in self.memory.gating.columns]))
        self.identity = {
            "dim": dim,
            "depth": config.memory_depth,
            "forget": forget,
            "momentum_factor": config.momentum_factor,
        }
        self._rule = Rule(self.memory)
        self.reset()

    def reset(self) -> None:
        """Nothing read yet."""
        self._fast = FastWeights.of(self._rule, self._rule.start)

    @property
    def state(self) -> NeuralMemoryState:
        """As `NeuralMemory` goes on from."""
        return self._fast.state()

    @property
    def written(self) -> int:
        """Items read so far."""
        return self._fast.written

    @property
    def weights(self) -> tuple[Vector, ...]:
        """`[in, out]` a matrix, as they stand."""
        return self._fast.present

    def write(self, vectors: Vector) -> Vector:
        """Read `[n, dim]` vectors of length 1 in their order.

        Returns:
            `[n]`, float32: the surprise of each before its own write, `|M(x) - x|^2`: 1 when the memory says nothing.
        """
        # a reader in another thread sees the old weights or the new ones
        self._fast, surprise = self._fast.write(np.asarray(vectors, np.float32))
        return surprise

    def recall(self, vector: Vector) -> Vector:
        """What the memory answers to `[dim]` or `[n, dim]`; zeros while it has read nothing."""
        if not self.written:
            return np.zeros_like(vector, np.float32)
        # NeuralMemory.recall does the same; for one vector numpy takes a tenth of its time.
        weights, hidden = self.weights, vector
        for weight in weights[:-1]:
            hidden = _silu(hidden @ weight)
        return np.asarray(hidden @ weights[-1], np.float32)

    @property
    def norm(self) -> float:
        """Of all its weights together."""
        return math.sqrt(sum(float(np.square(w).sum()) for w in self.weights))

    def to_bytes(self) -> bytes:
        """The state, for a database."""
        # copies: at the end of a chunk the anchor is the weights, and safetensors refuses shared memory
        tensors = {name: tensor.clone() for name, tensor in self.state.tensors().items()}
        return save(tensors, metadata={"identity": json.dumps(self.identity)})

    def load_bytes(self, data: bytes) -> bool:
        """The state back. False, and nothing changed, when it is that of a memory with other settings."""
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        if json.loads(header["__metadata__"]["identity"]) != self.identity:
            return False
        tensors: dict[str, Tensor] = load(data)
        self._fast = FastWeights.of(self._rule, NeuralMemoryState._from_tensors(tensors))
        return True


def _logit(p: float) -> float:
    return math.log(max(p, 1e-7)) - math.log1p(-p)


def _silu(x: Vector) -> Vector:
    return np.asarray(x / (1.0 + np.exp(-x)), np.float32)
