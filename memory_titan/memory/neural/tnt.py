"""TNT: one memory for the whole stream beside others for the present stretch (arXiv 2511.07343).

    global   large chunks, read at the chunk's start: cheap, and it sees everything
    local    small chunks, put back to a learned state every few thousand tokens: precise, and its stretches are
             independent of each other, so that a sequence's stretches are computed side by side

Both are `NeuralMemory`; what they read is added. The paper's second stage, training on at a smaller local chunk, is a
change of `chunk_size` on loading. Not taken over: its projection of local queries onto the span of the local keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryState
from memory_titan.memory.state import MemoryState
from memory_titan.memory.surprise import Surprise


@dataclass(frozen=True)
class GlobalLocalState(MemoryState):
    """The states of the global memory and of each local one, in this order."""

    parts: tuple[NeuralMemoryState, ...] = field(metadata={"of": NeuralMemoryState})


class GlobalLocalMemory(nn.Module):
    """A global `NeuralMemory` beside local ones; called as one of them is.

        memory = GlobalLocalMemory(dim=256, heads=4, global_chunk=512, local_chunks=(16,), reset_every=2048)
        y, state = memory(x)

    Args:
        dim: width of x and y.
        global_chunk: tokens between two reads of the global memory's weights.
        local_chunks: one local memory for each of these chunk lengths.
        reset_every: tokens after which local memories start anew; a multiple of every local chunk.
        **options: of all of them; see `NeuralMemoryConfig`.
    """

    def __init__(
        self,
        dim: int,
        global_chunk: int = 512,
        local_chunks: Sequence[int] = (16,),
        reset_every: int = 2048,
        **options: Any,
    ) -> None:
        super().__init__()
        whole = {"rule": "anchored", **options, "chunk_size": global_chunk, "read": "chunk"}
        parts = [NeuralMemory(dim, **whole)]
        parts += [
            NeuralMemory(dim, **{**options, "chunk_size": chunk, "reset_every": reset_every}) for chunk in local_chunks
        ]
        self.memories = nn.ModuleList(parts)

    @property
    def state_size(self) -> int:
        """Numbers in one batch row's state, whatever the length read."""
        return sum(memory.state_size for memory in self._parts)

    @property
    def _parts(self) -> list[NeuralMemory]:
        return [memory for memory in self.memories if isinstance(memory, NeuralMemory)]

    def initial_state(self, batch_size: int) -> GlobalLocalState:
        """The state before the first token, for `batch_size` rows."""
        return GlobalLocalState(tuple(memory.initial_state(batch_size) for memory in self._parts))

    def forward(
        self, x: Tensor, state: GlobalLocalState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, GlobalLocalState]:
        """As `NeuralMemory.forward`: `(y, state)`, y the sum of what all memories read."""
        given = self._given(x, state)
        results = [memory(x, part, mask) for memory, part in zip(self._parts, given, strict=True)]
        return torch.stack([y for y, _ in results]).sum(0), GlobalLocalState(tuple(part for _, part in results))

    def memorize(
        self, x: Tensor, state: GlobalLocalState | None = None, mask: Tensor | None = None
    ) -> tuple[GlobalLocalState, Surprise]:
        """As `NeuralMemory.memorize`; surprise `[B, T, memories * heads]`, the global memory's heads first."""
        given = self._given(x, state)
        results = [memory.memorize(x, part, mask) for memory, part in zip(self._parts, given, strict=True)]
        surprise = Surprise(*(torch.cat(parts, -1) for parts in zip(*(told for _, told in results), strict=True)))
        return GlobalLocalState(tuple(part for part, _ in results)), surprise

    def recall(self, q: Tensor, state: GlobalLocalState) -> Tensor:
        """As `NeuralMemory.recall`."""
        return torch.stack([memory.recall(q, part) for memory, part in zip(self._parts, state.parts, strict=True)]).sum(
            0
        )

    def _given(self, x: Tensor, state: GlobalLocalState | None) -> tuple[NeuralMemoryState | None, ...]:
        return (None,) * len(self.memories) if state is None else state.parts
