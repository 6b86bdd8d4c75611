"""Perplexity of a grafted model on ordinary prose: what the memory costs where there is nothing to recall."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from memory_titan.graft.model import MemoryModel


@torch.no_grad()
def perplexity(model: MemoryModel, ids: torch.Tensor) -> float:
    """exp of the mean cross entropy of all tokens but the first.

    Args:
        model: with the memory on or off.
        ids: `[T]`, int64, any length; read in the graft's segments.
    """
    total, session, size = 0.0, model.new_session(), model.graft_config.segment
    row = ids.to(model.device)[None]
    for begin in range(0, len(ids) - 1, size):
        hidden, _ = model.hidden(row[:, begin : begin + size], None, session)
        follows = row[0, begin + 1 : begin + size + 1]
        logits = model.logits(hidden[0, : len(follows)])
        total += float(F.cross_entropy(logits.float(), follows, reduction="sum"))
    return math.exp(total / (len(ids) - 1))


def python_help(tokenizer: Any, tokens: int) -> torch.Tensor:
    """`[tokens]`, from the middle of the running Python's help on its language: prose that is there anywhere."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    middle = text[len(text) // 2 : len(text) // 2 + 20 * tokens]
    return torch.tensor(tokenizer(middle, add_special_tokens=False).input_ids[:tokens])
