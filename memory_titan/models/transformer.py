"""The baseline: a transformer, with a sliding window or with attention over everything."""

from __future__ import annotations

from typing import Any

from torch import nn

from memory_titan.models.config import MemoryModelConfig
from memory_titan.models.language_model import MemoryLanguageModel
from memory_titan.models.layers import TransformerBlock


class TransformerConfig(MemoryModelConfig):
    """Of a `TransformerForCausalLM`; see `MemoryModelConfig`. `window=None`: full attention, whose state grows."""

    model_type = "memory_titan_transformer"
    attends = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class TransformerForCausalLM(MemoryLanguageModel):
    """A decoder of `TransformerBlock`s: pre-norm, rotary positions, SwiGLU."""

    config_class = TransformerConfig

    def make_layer(self, index: int) -> nn.Module:
        """One block."""
        return TransformerBlock(**self.config.block_options())
