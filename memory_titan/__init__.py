"""An explicit, trainable, inspectable long-term memory for sequence models and applications."""

from memory_titan.hybrid.engine import HybridEngine
from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryConfig, NeuralMemoryState

__version__ = "0.1.0"
__all__ = ["HybridEngine", "NeuralMemory", "NeuralMemoryConfig", "NeuralMemoryState"]
