"""A memory beside the attention of a frozen pretrained decoder (MemoryMAG)."""

from memory_titan.graft.config import MAGConfig, Qwen3MAGConfig
from memory_titan.graft.model import MemoryModel, get_memory_model
from memory_titan.graft.qwen3 import patch_qwen3_with_mag
from memory_titan.graft.session import MemorySession

__all__ = ["MAGConfig", "MemoryModel", "MemorySession", "Qwen3MAGConfig", "get_memory_model", "patch_qwen3_with_mag"]
