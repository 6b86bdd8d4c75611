"""LMM: the neural memory alone, without attention (arXiv 2501.00663, section 3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from memory_titan.models.titans.block import TitansBlock, TitansState


class LMMBlock(TitansBlock):
    """h = x + M([p, norm(x)])."""

    def initial_state(self, batch_size: int) -> TitansState:
        """The memory has read the persistent tokens."""
        return TitansState((self.read_persistent(batch_size)[1],))

    def mix(self, x: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, TitansState]:
        """See the class."""
        y, memory = self.memory(self.norm(x), state.memory[0], mask)
        return x + y, TitansState((memory,))
