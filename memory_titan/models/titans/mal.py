"""MAL, memory as a layer: attention over a window sees what the memory made of the tokens (arXiv 2501.00663, 4.3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from memory_titan.models.attention import WindowAttention
from memory_titan.models.titans.block import TitansBlock, TitansState
from memory_titan.models.titans.config import TitansConfig


class MALBlock(TitansBlock):
    """z = [p, x] + M(norm([p, x]));  h = z + SWA(norm(z)) (eq. 29 to 31; the residual sums are ours)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = WindowAttention(
            config.hidden_size, config.num_attention_heads, config.window, config.rotary_base
        )

    def initial_state(self, batch_size: int) -> TitansState:
        """The memory has read the persistent tokens; what it made of them is the prefix that attention sees."""
        y, memory = self.read_persistent(batch_size)
        prefix = () if y is None or self.persistent is None else (self.attention_norm(self.persistent + y),)
        return TitansState((memory,), (self.attention.initial_state(batch_size),), prefix)

    def mix(self, x: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, TitansState]:
        """See the class."""
        remembered, memory = self.memory(self.norm(x), state.memory[0], mask)
        z = x + remembered
        prefix = state.prefix[0] if state.prefix else None
        attended, attention = self.attention(self.attention_norm(z), state.attention[0], mask, prefix)
        return z + attended, TitansState((memory,), (attention,), state.prefix)
