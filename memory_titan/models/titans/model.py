"""`TitansForCausalLM`: a language model of one of the paper's four blocks (arXiv 2501.00663)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from memory_titan.memory.trace import trace, writing_price
from memory_titan.models.language_model import MemoryLanguageModel, with_forward_signature
from memory_titan.models.layers import TransformerBlock
from memory_titan.models.titans.block import TitansBlock
from memory_titan.models.titans.config import TitansConfig
from memory_titan.models.titans.lmm import LMMBlock
from memory_titan.models.titans.mac import MACBlock
from memory_titan.models.titans.mag import MAGBlock
from memory_titan.models.titans.mal import MALBlock

BLOCKS: dict[str, type[TitansBlock]] = {"lmm": LMMBlock, "mac": MACBlock, "mag": MAGBlock, "mal": MALBlock}


class TitansForCausalLM(MemoryLanguageModel):
    """A causal language model around a memory.

        model = TitansForCausalLM(TitansConfig(architecture="mag", vocab_size=256, hidden_size=128, window=64))
        model(input_ids, labels=input_ids).loss.backward()
        model.generate(input_ids, max_new_tokens=20)
        model.save_pretrained(folder); model = AutoModelForCausalLM.from_pretrained(folder)

    The size of its cache is bounded by the window (or the segment) and the memory, whatever was read.
    """

    config_class = TitansConfig
    config: TitansConfig

    def make_layer(self, index: int) -> nn.Module:
        """A block with a memory, or one without."""
        config = self.config
        if config.memory_layers is not None and index not in config.memory_layers:
            return TransformerBlock(**config.block_options())
        return BLOCKS[config.architecture](config)

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        for layer in self.layers:
            if isinstance(layer, MACBlock):
                layer.start()

    @with_forward_signature
    @can_return_tuple
    def forward(self, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:
        """As `MemoryLanguageModel.forward`; in training the loss holds the price on writing, too."""
        price = self.config.write_price
        if not self.training or not price:
            return super().forward(*args, **kwargs, return_dict=True)
        with trace(self) as traces:
            out = super().forward(*args, **kwargs, return_dict=True)
        if out.loss is not None and any(traces.values()):
            out.loss = out.loss + price * writing_price(traces)
        return out
