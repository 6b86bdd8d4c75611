"""From texts to vectors: what a memory store searches by."""

from memory_titan.embedders.base import BaseEmbedder, CallableEmbedder, as_embedder
from memory_titan.embedders.cached import CachedEmbedder

__all__ = [
    "BaseEmbedder",
    "CachedEmbedder",
    "CallableEmbedder",
    "as_embedder",
]
