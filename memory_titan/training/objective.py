"""What a graft is trained for: to say the answers' tokens. The loss of a stretch of text, and what was said right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_titan.graft.model import MemoryModel
from memory_titan.graft.session import MemorySession
from memory_titan.training.examples import Batch


@dataclass(frozen=True)
class Stretch:
    """Some tokens of a batch, and what should come after each of them.

    Attributes:
        ids, mask: `[B, T]`, as in `Batch`.
        follows: `[B, T]`, int64, the token after.
        said: `[B, T]`, int64, the answer that token belongs to, from 1; 0: none.
    """

    ids: Tensor
    mask: Tensor
    follows: Tensor
    said: Tensor


def stretches(batch: Batch, length: int) -> list[Stretch]:
    """The batch in pieces of `length` tokens: what is backpropagated through at a time."""
    follows, said = (F.pad(x[:, 1:], (0, 1)) for x in (batch.ids, batch.said))
    return [
        Stretch(batch.ids[:, part], batch.mask[:, part], follows[:, part], said[:, part])
        for part in (slice(begin, begin + length) for begin in range(0, batch.ids.shape[1], length))
    ]


class AnswerLoss(nn.Module):
    """Cross entropy on the answers' tokens; a module, so that DDP can wrap it.

    Args:
        model: the grafted model.
        gate_penalty: times the mean gate, added for each answer token.
    """

    def __init__(self, model: MemoryModel, gate_penalty: float = 0.0) -> None:
        super().__init__()
        self.model, self.gate_penalty = model, gate_penalty

    def forward(self, stretch: Stretch, session: MemorySession) -> tuple[Tensor, Tensor]:
        """Read a stretch.

        Returns:
            `(loss, right)`: loss, the sum over the answers' tokens, 0-d; right `[B, T]`, bool, where the most likely
            token is the one that follows, False outside answers.
        """
        hidden, gates = self.model.hidden(stretch.ids, stretch.mask, session)
        wanted = stretch.said > 0
        logits = self.model.logits(hidden[wanted])
        loss = F.cross_entropy(logits.float(), stretch.follows[wanted], reduction="sum")
        if self.gate_penalty:
            loss = loss + self.gate_penalty * wanted.sum() * gates.mean()
        right = torch.zeros_like(wanted)
        right[wanted] = logits.argmax(-1) == stretch.follows[wanted]
        return loss + 0.0 * gates.sum(), right


def exact(batch: Batch, right: Tensor) -> list[list[bool]]:
    """Of each example's answers, whether every token was the most likely one: greedy decoding would have said it.

    Args:
        batch: what was read.
        right: `[B, T]`, where the following token was right.
    """
    return [
        [bool(right[row, begin - 1 : end - 1].all()) for begin, end in example.answers]
        for row, example in enumerate(batch.examples)
    ]
