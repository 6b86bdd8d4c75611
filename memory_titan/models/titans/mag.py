"""MAG, memory as a gate: attention over a window and memory over everything, side by side (arXiv 2501.00663, 4.2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from memory_titan.models.attention import WindowAttention
from memory_titan.models.titans.block import TitansBlock, TitansState
from memory_titan.models.titans.config import TitansConfig
from memory_titan.models.titans.fusion import Fusion


class MAGBlock(TitansBlock):
    """h = x + SWA([p, n]) (x) M([p, n]), n = norm(x); (x) a `Fusion` (eq. 26 to 28)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.attention = WindowAttention(
            config.hidden_size, config.num_attention_heads, config.window, config.rotary_base
        )
        self.fusion = Fusion(config.hidden_size, config.fusion, config.rms_norm_eps)

    def initial_state(self, batch_size: int) -> TitansState:
        """The memory has read the persistent tokens; attention sees them as a prefix of every call."""
        return TitansState((self.read_persistent(batch_size)[1],), (self.attention.initial_state(batch_size),))

    def mix(self, x: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, TitansState]:
        """See the class."""
        n = self.norm(x)
        attended, attention = self.attention(n, state.attention[0], mask, self.prefix())
        remembered, memory = self.memory(n, state.memory[0], mask)
        return x + self.fusion(attended, remembered), TitansState((memory,), (attention,))
