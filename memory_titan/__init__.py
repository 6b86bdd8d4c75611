"""An explicit, trainable, inspectable long-term memory for sequence models and applications."""

from memory_titan.hybrid.engine import HybridEngine
from memory_titan.memory.neural.config import NeuralMemoryConfig
from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryState
from memory_titan.memory.neural.presets import PRESETS
from memory_titan.memory.neural.trace import trace, writing_price

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "HybridEngine",
    "NeuralMemory",
    "NeuralMemoryConfig",
    "NeuralMemoryState",
    "trace",
    "writing_price",
]
