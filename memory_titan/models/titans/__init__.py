"""The paper's four models: LMM, MAC, MAG, MAL, each in a file of its own (arXiv 2501.00663)."""

from memory_titan.models.titans.config import TitansConfig
from memory_titan.models.titans.model import TitansForCausalLM

__all__ = ["TitansConfig", "TitansForCausalLM"]
