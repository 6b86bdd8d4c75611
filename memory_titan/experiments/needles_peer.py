"""titans-pytorch's MAC as a model that the experiment can train and ask."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig

from memory_titan.tasks.recall import NO_LABEL


class PeerModel(nn.Module):
    """`MemoryAsContextTransformer`, a memory in every layer; what it says at a token is judged by the label there.

    Args:
        vocabulary: tokens.
        dim: width.
        depth: layers.
        segment: tokens of a segment.
        limit: tokens that it is given at most.

    Raises:
        ImportError: titans-pytorch is missing (extra: bench).
    """

    def __init__(self, vocabulary: int, dim: int, depth: int, segment: int, limit: int) -> None:
        super().__init__()
        try:
            peer: Any = importlib.import_module("titans_pytorch")
        except ImportError as error:
            raise ImportError(f"titans-pytorch: {error}; install it with: pip install 'memory-titan[bench]'") from error
        self.config = PretrainedConfig(vocab_size=vocabulary, max_position_embeddings=limit)
        self.net = peer.MemoryAsContextTransformer(
            num_tokens=vocabulary,
            dim=dim,
            depth=depth,
            segment_len=segment,
            num_persist_mem_tokens=4,
            num_longterm_mem_tokens=4,
            dim_head=dim // 2,
            heads=2,
            neural_memory_layers=tuple(range(1, depth + 1)),
            neural_memory_batch_size=segment,
            neural_memory_kwargs={"dim_head": dim // 2, "heads": 2, "momentum": True, "qk_rmsnorm": True},
        )

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **ignored: Any) -> SimpleNamespace:
        """input_ids, labels: `[B, T]`."""
        logits = self.net(input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL)
        return SimpleNamespace(logits=logits, loss=loss)
