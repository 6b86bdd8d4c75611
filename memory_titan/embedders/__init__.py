"""From texts to vectors: what a memory store searches by."""

from memory_titan.embedders.api import OpenAIEmbedder
from memory_titan.embedders.base import BaseEmbedder, CallableEmbedder, as_embedder
from memory_titan.embedders.cached import CachedEmbedder
from memory_titan.embedders.sentence import SentenceTransformerEmbedder

__all__ = [
    "BaseEmbedder",
    "CachedEmbedder",
    "CallableEmbedder",
    "OpenAIEmbedder",
    "SentenceTransformerEmbedder",
    "as_embedder",
]
