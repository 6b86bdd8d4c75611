"""What a graft is trained for: to say the answers' tokens, to open for little else, and to write what will be asked."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_titan.graft.model import MemoryModel
from memory_titan.graft.session import MemorySession
from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.memory.slots.layer import MultiHeadMemoryBank
from memory_titan.memory.trace import Trace, trace
from memory_titan.tasks.examples import Stretch


@dataclass(frozen=True)
class Sums:
    """What a stretch of text adds up to; 0-d, with their gradients.

    Attributes:
        loss: cross entropy of the answers' tokens.
        opened: how far gates are open, over the tokens that say no answer; the mean over grafted layers.
        written: theta over its bound, over all tokens; the mean over heads and grafted layers.
        right: `[B, T]`, bool, where the most likely token is the one that follows, False outside answers.
        session: that has read the stretch.
    """

    loss: Tensor
    opened: Tensor
    written: Tensor
    right: Tensor
    session: MemorySession


class AnswerLoss(nn.Module):
    """Reads a stretch; a module, so that DDP and FSDP can wrap it: a weight is used in its forward, and nowhere else.

    Args:
        model: the grafted model.
        watch: whether to add up what is written, too.
        recompute: whether to run each segment again in the backward pass instead of keeping its activations.
    """

    def __init__(self, model: MemoryModel, watch: bool = False, recompute: bool = False) -> None:
        super().__init__()
        self.model, self.watch, self.recompute = model, watch, recompute
        self._no_split_modules = model.base_model._no_split_modules  # the units that FSDP shares out

    def forward(self, stretch: Stretch, session: MemorySession | None = None) -> Sums:
        """Read a stretch, and move the session on; None: a new one."""
        session = self.model.new_session(len(stretch.ids)) if session is None else session
        none: AbstractContextManager[dict[str, list[Trace]]] = nullcontext({})
        with trace(self.model.branches) if self.watch else none as traces:
            hidden, gates = self.model.hidden(
                stretch.ids, stretch.mask, session, stretch.lower, recompute=self.recompute
            )
        wanted = stretch.said > 0
        logits = self.model.logits(hidden[wanted])
        loss = F.cross_entropy(logits.float(), stretch.follows[wanted], reduction="sum")
        right = torch.zeros_like(wanted)
        right[wanted] = logits.argmax(-1) == stretch.follows[wanted]
        opened = gates.mean(0)[stretch.mask & ~wanted].sum()
        # What is not in the loss has no gradient, and DDP waits for one.
        return Sums(loss + 0.0 * gates.sum(), opened, self._written(traces).to(loss.device), right, session)

    def _written(self, traces: dict[str, list[Trace]]) -> Tensor:
        total = torch.zeros(())
        for name, calls in traces.items():
            memory = self.model.branches.get_submodule(name)
            assert isinstance(memory, (NeuralMemory, MultiHeadMemoryBank))
            for call in calls:
                total = total + call.step.mean(-1).sum().cpu() / memory.config.step_bound
        return total / max(1, len(traces))
