"""Gradient checkpointing (arXiv 1604.06174) with a session: a segment's activations are computed again in its backward.

What is kept in between is what the next segment goes on from, the session's state, and what the decoder gave out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memory_titan.graft.hooks import Graft
from memory_titan.graft.session import MemorySession, SessionState
from memory_titan.memory.trace import Traceable


def recomputed(graft: Graft, session: MemorySession, **given: Any) -> Tensor:
    """A call of the decoder that keeps nothing for the backward pass but where it set out from.

    Args:
        graft: whose decoder.
        session: it is moved on, once: being run again changes nothing.
        **given: what else the decoder is given.

    Returns:
        `[B, T, hidden]`, its last hidden states.
    """
    before, situation, runs = session.state, _Situation(graft), 0

    def run() -> tuple[Tensor, SessionState, dict[int, Tensor]]:
        nonlocal runs
        runs += 1
        own = session.copy()
        own.state = before
        with situation.again() if runs > 1 else nullcontext():
            out = graft.decoder(past_key_values=own, use_cache=True, **given)
        return out.last_hidden_state, own.state, own.gates

    # To its end: hooks of others, such as those that shard, must not be left half done.
    hidden, session.state, session.gates = checkpoint(run, use_reentrant=False, early_stop=False)
    return hidden


class _Situation:
    """What a call depends on beside its arguments: the second run, in the backward pass, must find it as the first did.

    Whether memory and window are on, whether lower layers are skipped, and which memories are watched.
    """

    def __init__(self, graft: Graft) -> None:
        self.graft, self.switches = graft, (graft.with_memory, graft.with_window)
        layers = graft.decoder.get_submodule(graft.architecture.layers)
        self.forwards = {layer: vars(layer).get("forward") for layer in list(layers)[: graft.layers[0]]}
        memories = [part for part in graft.branches.modules() if isinstance(part, Traceable)]
        self.watched = {memory: memory.traces is not None for memory in memories}

    @contextmanager
    def again(self) -> Iterator[None]:
        """As it was. What memories tell this time goes nowhere."""
        graft = self.graft
        before = graft.with_memory, graft.with_window
        forwards = {layer: vars(layer).get("forward") for layer in self.forwards}
        traces = {memory: memory.traces for memory in self.watched}
        graft.with_memory, graft.with_window = self.switches
        _set_forwards(self.forwards)
        for memory, watched in self.watched.items():
            memory.traces = [] if watched else None
        try:
            yield
        finally:
            graft.with_memory, graft.with_window = before
            _set_forwards(forwards)
            for memory, found in traces.items():
                memory.traces = found


def _set_forwards(forwards: dict[nn.Module, Any]) -> None:
    for layer, forward in forwards.items():
        if forward is not None:
            layer.forward = forward
        elif "forward" in vars(layer):
            del layer.forward
