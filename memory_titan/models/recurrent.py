"""The baseline: a recurrent network, LSTM or GRU."""

from __future__ import annotations

from typing import Any

from torch import nn

from memory_titan.models.config import MemoryModelConfig
from memory_titan.models.language_model import MemoryLanguageModel
from memory_titan.models.layers import CELLS, RecurrentBlock


class RecurrentConfig(MemoryModelConfig):
    """Of a `RecurrentForCausalLM`.

    Args:
        cell: "lstm" or "gru".
        **kwargs: the fields of `MemoryModelConfig`. Those of attention and of the feed-forward mean nothing here.

    Raises:
        ValueError: these cannot be.
    """

    model_type = "memory_titan_recurrent"

    def __init__(self, cell: str = "lstm", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cell = cell
        if cell not in CELLS:
            raise ValueError(f"there is no cell {cell!r}; there are {', '.join(CELLS)}")
        if self.window is not None:
            raise ValueError("a recurrent model has no window: leave it at None")


class RecurrentForCausalLM(MemoryLanguageModel):
    """A stack of `RecurrentBlock`s: pre-norm, each added to what it was given."""

    config_class = RecurrentConfig
    config: RecurrentConfig

    def make_layer(self, index: int) -> nn.Module:
        """One block."""
        return RecurrentBlock(self.config.hidden_size, self.config.cell, self.config.rms_norm_eps)
