"""What a graft is trained for: to say the answers' tokens. The loss of a stretch of text, and what was said right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_titan.graft.model import MemoryModel
from memory_titan.graft.session import MemorySession
from memory_titan.tasks.examples import Stretch


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
