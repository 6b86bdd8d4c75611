"""The gates of the sparse bank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memory_titan.memory.gates import opening
from memory_titan.memory.sparse.config import SparseDeltaBankConfig
from memory_titan.memory.sparse.naive import SlotGates


class SlotGating(nn.Module):
    """x to `SlotGates`. They start at a middling write that erases most of what it meets, and little decay."""

    def __init__(self, config: SparseDeltaBankConfig) -> None:
        super().__init__()
        self.heads, self.hard = config.heads, config.gates == "hard"
        starts = {"write": 0.0}
        if config.write != "add":
            starts["erase"] = 2.0
        if config.decay == "written":
            starts["decay"] = -2.94 if self.hard else -6.0
        self.columns = tuple(starts)
        self.linear = nn.Linear(config.input_width, config.heads * len(starts))
        with torch.no_grad():
            self.linear.bias.copy_(torch.tensor([start for start in starts.values() for _ in range(config.heads)]))

    def forward(self, x: Tensor, valid: Tensor | None, dtype: torch.dtype) -> SlotGates:
        """x `[B, T, input_width]`, valid `[B, T]` or None -> gates `[B, H, T]` in `dtype`, shut where not valid."""
        raw = self.linear(x).to(dtype).mT.unflatten(1, (len(self.columns), self.heads)).unbind(1)
        opened = {}
        for name, one in zip(self.columns, raw, strict=True):
            gate = opening(one, self.hard, 0.05 if name == "decay" else 0.1)
            opened[name] = gate if valid is None else torch.where(valid[:, None], gate, 0.0)
        return SlotGates(opened["write"], opened.get("erase"), opened.get("decay"))
