"""What a grafted model says to the questions of samples, by greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memory_titan.graft.model import MemoryModel
from memory_titan.graft.session import MemorySession
from memory_titan.tasks.examples import Example, Stretch, batches, collate, exact, stretches


def said_right(model: MemoryModel, stretch: Stretch, session: MemorySession) -> tuple[Tensor, Tensor]:
    """Read a stretch, and look at what the model would say at its answers.

    Returns:
        `(right, finite)`, each `[B, T]`, bool: where the most likely token is the one that follows, False outside
        answers; where the logits are numbers, True outside answers. What is not finite is not right.
    """
    hidden, _ = model.hidden(stretch.ids, stretch.mask, session, stretch.lower)
    wanted = stretch.said > 0
    right, finite = torch.zeros_like(wanted), torch.ones_like(wanted)
    best, token = model.logits(hidden[wanted]).max(-1)
    finite[wanted] = best.isfinite()
    right[wanted] = (token == stretch.follows[wanted]) & best.isfinite()
    return right, finite


@torch.no_grad()
def evaluate(
    model: MemoryModel,
    examples: Sequence[Example],
    batch_size: int = 8,
    on_read: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Share of answers said right by greedy decoding given all that stands before them, and of their tokens.

    Texts are read in the graft's segments, and of each only what is said at the answers is kept: with an attention
    window the memory this takes does not grow with the texts.

    Args:
        model: in whatever mode; memory on or off.
        examples: what to ask.
        batch_size: texts at a time.
        on_read: told after each stretch how many tokens it had, of all its texts together, padding not counted.

    Returns:
        exact, tokens: shares; answers: one dict an answer, with right, distance, nearest, name, and finite: whether
        the model's logits there were numbers. Ordered by the texts' lengths, then as given.
    """
    was = model.training
    model.eval()
    answers: list[dict[str, Any]] = []
    said = right_ones = 0
    ordered = sorted(examples, key=lambda example: len(example.ids))
    try:
        for group in batches(ordered, batch_size, 0, 0, shuffle=False):
            batch = collate(group)
            session, parts = model.new_session(len(group)), []
            for stretch in stretches(batch, model.graft_config.segment):
                parts.append([part.cpu() for part in said_right(model, stretch.to(model.device), session)])
                on_read(int(stretch.mask.sum()))
            right, finite = (torch.cat(part, 1) for part in zip(*parts, strict=True))
            said, right_ones = said + int((batch.said > 0).sum()), right_ones + int(right.sum())
            rows = exact(batch, right), exact(batch, finite), group
            for row, numbers, example in zip(*rows, strict=True):
                told = zip(row, numbers, example.distances, example.nearest, strict=True)
                answers += [
                    {"right": one, "distance": distance, "nearest": nearest, "name": example.name, "finite": number}
                    for one, number, distance, nearest in told
                ]
    finally:
        model.train(was)
    return {
        "exact": sum(a["right"] for a in answers) / len(answers),
        "tokens": right_ones / max(1, said),
        "answers": answers,
    }
