"""An explicit, trainable, inspectable long-term memory for sequence models and applications."""

from memory_titan.graft.config import MAGConfig, Qwen3MAGConfig
from memory_titan.graft.model import MemoryModel, get_memory_model
from memory_titan.graft.qwen3 import patch_qwen3_with_mag
from memory_titan.graft.session import MemorySession
from memory_titan.hybrid.engine import HybridEngine
from memory_titan.memory.neural.config import NeuralMemoryConfig
from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryState
from memory_titan.memory.neural.presets import PRESETS
from memory_titan.memory.slots.config import MemoryBankConfig
from memory_titan.memory.slots.layer import MemoryBankState, MultiHeadMemoryBank
from memory_titan.memory.sparse.config import SparseDeltaBankConfig
from memory_titan.memory.sparse.layer import SparseDeltaBank
from memory_titan.memory.trace import trace, writing_price
from memory_titan.models.memnet import MemNet, MemNetConfig, MemNetForSequenceClassification, TransformerController
from memory_titan.models.titans import TitansConfig, TitansForCausalLM
from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.manager import TitansManager

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "HybridEngine",
    "LongTermMemoryConfig",
    "MAGConfig",
    "MemNet",
    "MemNetConfig",
    "MemNetForSequenceClassification",
    "MemoryBankConfig",
    "MemoryBankState",
    "MemoryModel",
    "MemorySession",
    "MultiHeadMemoryBank",
    "NeuralMemory",
    "NeuralMemoryConfig",
    "NeuralMemoryState",
    "Qwen3MAGConfig",
    "SparseDeltaBank",
    "SparseDeltaBankConfig",
    "TitansConfig",
    "TitansForCausalLM",
    "TitansManager",
    "TransformerController",
    "get_memory_model",
    "patch_qwen3_with_mag",
    "trace",
    "writing_price",
]
