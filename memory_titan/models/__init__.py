"""Language models made from nothing around a memory, and the baselines they are judged by. Hugging Face knows them."""

from transformers import AutoConfig, AutoModelForCausalLM

from memory_titan.models.attention import AttentionState, WindowAttention
from memory_titan.models.cache import StateCache
from memory_titan.models.config import MemoryModelConfig
from memory_titan.models.language_model import MemoryLanguageModel
from memory_titan.models.layers import FeedForward, RecurrentBlock, RecurrentState, TransformerBlock
from memory_titan.models.memnet import MemNet, MemNetConfig, MemNetForSequenceClassification, TransformerController
from memory_titan.models.recurrent import RecurrentConfig, RecurrentForCausalLM
from memory_titan.models.size import parameter_count, width_of_size
from memory_titan.models.titans import TitansConfig, TitansForCausalLM
from memory_titan.models.transformer import TransformerConfig, TransformerForCausalLM

for _model in (TransformerForCausalLM, RecurrentForCausalLM, MemNet, TitansForCausalLM):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModelForCausalLM.register(_model.config_class, _model, exist_ok=True)

__all__ = [
    "AttentionState",
    "FeedForward",
    "MemNet",
    "MemNetConfig",
    "MemNetForSequenceClassification",
    "MemoryLanguageModel",
    "MemoryModelConfig",
    "RecurrentBlock",
    "RecurrentConfig",
    "RecurrentForCausalLM",
    "RecurrentState",
    "StateCache",
    "TitansConfig",
    "TitansForCausalLM",
    "TransformerBlock",
    "TransformerConfig",
    "TransformerController",
    "TransformerForCausalLM",
    "WindowAttention",
    "parameter_count",
    "width_of_size",
]
