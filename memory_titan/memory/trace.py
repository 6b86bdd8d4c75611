"""Watching memories at work: every token's gates and surprise, collected while a `with trace(model)` is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.memory.surprise import Surprise


@dataclass(frozen=True)
class Trace:
    """One call of one memory. All `[B, T, H]`, in the autograd graph; 0 at tokens that a mask excludes.

    Attributes:
        step: theta.
        keep: 1 - alpha, what the token leaves of the weights; the mean over inputs where it is channel-wise.
        momentum: eta; 0 where the rule has none.
        surprise: `loss`, `gradient` and `write`, see `Surprise`.
    """

    step: Tensor
    keep: Tensor
    momentum: Tensor
    surprise: Surprise


class Traceable(nn.Module):
    """A memory that `trace` can watch: it appends a `Trace` a call to `traces` while that is a list."""

    traces: list[Trace] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a watched memory is not watched."""
        return {name: value for name, value in self.__dict__.items() if name != "traces"}


@contextmanager
def trace(module: nn.Module) -> Iterator[dict[str, list[Trace]]]:
    """Collect what every memory inside `module` does; one list a memory, under its name, one `Trace` a call.

        with trace(model) as traces:
            loss = model(x).loss
        loss = loss + 0.05 * writing_price(traces)

    Outside of it nothing of this is computed. One inside another collects for both.
    """
    memories = {name: part for name, part in module.named_modules() if isinstance(part, Traceable)}
    collected: dict[str, list[Trace]] = {name: [] for name in memories}
    before = {name: memory.traces for name, memory in memories.items()}
    for name, memory in memories.items():
        memory.traces = collected[name]
    try:
        yield collected
    finally:
        for name, memory in memories.items():
            if (outer := before[name]) is not None:
                outer.extend(collected[name])
            memory.traces = before[name]


def writing_price(traces: dict[str, list[Trace]]) -> Tensor:
    """The mean step over tokens, heads and memories: added to a loss, it teaches hard gates to close on filler."""
    steps = [one.step.mean() for calls in traces.values() for one in calls if one.step.numel()]
    if not steps:
        raise ValueError("nothing was traced: run the model inside `with trace(model) as traces`")
    return torch.stack(steps).mean()
