"""`TitansBlock`: what the four blocks share. A memory, persistent tokens, a feed-forward; residual sums around all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryState
from memory_titan.memory.slots.layer import MemoryBankState, MultiHeadMemoryBank
from memory_titan.memory.sparse.layer import SparseDeltaBank, SparseDeltaBankState
from memory_titan.memory.state import MemoryState
from memory_titan.models.attention import AttentionState
from memory_titan.models.layers import FeedForward
from memory_titan.models.titans.config import TitansConfig

MEMORIES = {"neural": NeuralMemory, "slots": MultiHeadMemoryBank, "sparse": SparseDeltaBank}
MEMORY_STATES = (NeuralMemoryState, MemoryBankState, SparseDeltaBankState)


@dataclass(frozen=True)
class TitansState(MemoryState):
    """Of a block of "lmm", "mag" or "mal".

    Attributes:
        memory: its state; one.
        attention: its state; one, or none in "lmm".
        prefix: "mal": what the memory made of the persistent tokens, `[B, P, dim]`; one, or none.
    """

    memory: tuple[Any, ...] = field(metadata={"of": MEMORY_STATES})
    attention: tuple[AttentionState, ...] = field(default=(), metadata={"of": AttentionState})
    prefix: tuple[Tensor, ...] = ()


class TitansBlock(nn.Module):
    """h = mix(x);  y = h + feed_forward(norm(h)). A subclass says how memory and attention mix, residual included.

    Args:
        config: of the model.
    """

    memory: Any

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.norm = nn.RMSNorm(width, eps=eps)
        self.memory = MEMORIES[config.memory](**config.memory_arguments())
        self.persistent = nn.Parameter(torch.randn(1, config.persistent, width)) if config.persistent else None
        self.feed_forward_norm = nn.RMSNorm(width, eps=eps)
        self.feed_forward = FeedForward(width, config.intermediate_size, config.feed_forward)

    def initial_state(self, batch_size: int) -> MemoryState:
        """The state before the first token, for `batch_size` rows."""
        raise NotImplementedError

    def mix(self, x: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, MemoryState]:
        """x `[B, T, dim]`, before the norm, and what attention and memory add to it."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, state: MemoryState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, MemoryState]:
        """Called as a memory is.

        Args:
            x: `[B, T, dim]`.
            state: where to go on; None: the initial state.
            mask: `[B, T]`, bool or 0/1; tokens at False change nothing and have y = 0. On either side, or within.

        Returns:
            `(y, state)`, y `[B, T, dim]`.
        """
        mask = None if mask is None else mask.bool()
        h, state = self.mix(x, self.initial_state(x.shape[0]) if state is None else state, mask)
        y = h + self.feed_forward(self.feed_forward_norm(h))
        return y if mask is None else torch.where(mask[..., None], y, 0.0), state

    def prefix(self) -> Tensor | None:
        """The persistent tokens as the parts of the block see them, `[1, P, dim]`."""
        return None if self.persistent is None else self.norm(self.persistent)

    def read_persistent(self, batch_size: int) -> tuple[Tensor | None, Any]:
        """What the memory makes of the persistent tokens, `[B, P, dim]`, and its state once it has read them.

        They are the same for every row, so that one row is read, and nobody watches.
        """
        prefix = self.prefix()
        if prefix is None:
            return None, self.memory.initial_state(batch_size)
        watched, self.memory.traces = self.memory.traces, None
        try:
            y, state = self.memory(prefix)
        finally:
            self.memory.traces = watched
        rows = torch.zeros(batch_size, dtype=torch.long, device=y.device)
        return y[rows], state.select(rows)
