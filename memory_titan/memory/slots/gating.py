"""The gates of a bank: how much each token writes, erases, and lets decay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memory_titan.memory.gates import opening
from memory_titan.memory.slots.config import MemoryBankConfig
from memory_titan.memory.slots.rule import SlotGates

STARTS = {"write": 0.0, "erase": 3.0, "decay": -4.0}  # half of what comes, over what was there, and little decay


class SlotGating(nn.Module):
    """x to `SlotGates`. A gate that the configuration does not have takes no parameters.

    Args:
        config: of the bank.
    """

    def __init__(self, config: MemoryBankConfig) -> None:
        super().__init__()
        self.config = config
        learned = {
            "write": config.write_gate,
            "erase": config.erase and config.write != "add",
            "decay": config.decay != "none",
        }
        self.columns = [name for name, there in learned.items() if there]
        if self.columns:
            self.linear = nn.Linear(config.input_width, config.heads * len(self.columns))
            self.start()

    @torch.no_grad()
    def start(self) -> None:
        """Biases as training begins with."""
        if self.columns:
            starts = torch.tensor([STARTS[name] for name in self.columns])
            self.linear.bias.copy_(starts.repeat_interleave(self.config.heads))

    def forward(self, x: Tensor, dtype: torch.dtype) -> SlotGates:
        """x `[B, T, input_width]`; the gates come in `dtype`, `[B, T, H]`."""
        raw: dict[str, Tensor] = {}
        if self.columns:
            raw = dict(zip(self.columns, self.linear(x).to(dtype).chunk(len(self.columns), -1), strict=True))
        ones = x.new_ones(*x.shape[:2], self.config.heads, dtype=dtype)
        write, erase = (
            opening(raw[name], self.config.gates == "hard") if name in raw else ones for name in ("write", "erase")
        )
        return SlotGates(write, erase, raw.get("decay"))
