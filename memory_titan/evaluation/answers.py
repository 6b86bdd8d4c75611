"""What a grafted model says to the questions of samples, by greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memory_titan.graft.model import MemoryModel
from memory_titan.graft.session import MemorySession
from memory_titan.tasks.examples import Example, Stretch, batches, collate, exact, stretches


def said_right(model: MemoryModel, stretch: Stretch, session: MemorySession) -> Tensor:
    """Read a stretch: `[B, T]`, bool, where the most likely token is the one that follows; False outside answers."""
    hidden, _ = model.hidden(stretch.ids, stretch.mask, session, stretch.lower)
    wanted = stretch.said > 0
    right = torch.zeros_like(wanted)
    right[wanted] = model.logits(hidden[wanted]).argmax(-1) == stretch.follows[wanted]
    return right


@torch.no_grad()
def evaluate(model: MemoryModel, examples: Sequence[Example], batch_size: int = 8) -> dict[str, Any]:
    """Share of answers said right by greedy decoding given all that stands before them, and of their tokens.

    Args:
        model: in whatever mode; memory on or off.
        examples: what to ask.
        batch_size: texts at a time.

    Returns:
        exact, tokens: shares; answers: one dict an answer, with right, distance, nearest and name.
    """
    was = model.training
    model.eval()
    answers: list[dict[str, Any]] = []
    said = right_ones = 0
    ordered = sorted(examples, key=lambda example: len(example.ids))
    for group in batches(ordered, batch_size, 0, 0, shuffle=False):
        batch = collate(group)
        session, parts = model.new_session(len(group)), []
        for stretch in stretches(batch, model.graft_config.segment):
            parts.append(said_right(model, stretch.to(model.device), session).cpu())
        right = torch.cat(parts, 1)
        said, right_ones = said + int((batch.said > 0).sum()), right_ones + int(right.sum())
        for example, row in zip(group, exact(batch, right), strict=True):
            for one, distance, nearest in zip(row, example.distances, example.nearest, strict=True):
                answers.append({"right": one, "distance": distance, "nearest": nearest, "name": example.name})
    model.train(was)
    return {
        "exact": sum(a["right"] for a in answers) / len(answers),
        "tokens": right_ones / max(1, said),
        "answers": answers,
    }
