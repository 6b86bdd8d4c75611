"""What the memories of a language model do while held-out text is read, a layer at a time, as means.

step_size/layer_0      theta: how much a token is written
decay/layer_0          1 - keep: how much of what was there it takes away
momentum/layer_0       eta
surprise/layer_0       how far what the memory said was from what was written, see `Surprise.loss`
gate/layer_0           what a fusion of two branches lets through of the first, where it has a gate
memory_norm/layer_0    the norm of a row's memory, at the ends of what was read at once
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryState
from memory_titan.memory.state import MemoryState
from memory_titan.memory.trace import Trace, Traceable, trace
from memory_titan.models.cache import StateCache
from memory_titan.models.language_model import MemoryLanguageModel

_GATE = "fusion.gate"  # how modules are called whose sigmoid is a gate


class MemoryWatch:
    """A context manager: within, `look` after every call of the model, then `take`.

    Args:
        model: a language model; its memories are those of its layers.
    """

    def __init__(self, model: MemoryLanguageModel) -> None:
        self.model = model
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._gates: dict[str, list[Tensor]] = {}

    def __enter__(self) -> MemoryWatch:
        self._sums, self._counts, self._gates = {}, {}, {}
        self._tracing: AbstractContextManager[dict[str, list[Trace]]] = trace(self.model)
        self._traces = self._tracing.__enter__()
        self._hooks = []
        for index, layer in enumerate(self.model.layers):
            for name, part in layer.named_modules():
                if isinstance(part, nn.Linear) and name.endswith(_GATE):
                    gates = self._gates.setdefault(f"gate/layer_{index}", [])
                    self._hooks.append(part.register_forward_hook(_into(gates)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tracing.__exit__(kind, error, at)
        for hook in self._hooks:
            hook.remove()

    def look(self, cache: StateCache, shape: tuple[int, ...], mask: Tensor | None) -> None:
        """Add up what a call did.

        Args:
            cache: as the call left it.
            shape: `[B, T]` of its tokens.
            mask: `[B, T]`, bool; None: all.
        """
        for name, calls in self._traces.items():
            layer = name.split(".")[1]
            for one in calls:
                rows, tokens, heads = one.step.shape
                valid = mask.sum() if mask is not None and mask.shape[1] == tokens else rows * tokens
                count = float(valid) * heads
                self._add(f"step_size/layer_{layer}", one.step, count)
                self._add(f"decay/layer_{layer}", count - one.keep.float().sum(), count)
                self._add(f"momentum/layer_{layer}", one.momentum, count)
                self._add(f"surprise/layer_{layer}", one.surprise.loss, count)
            calls.clear()
        for name, gates in self._gates.items():
            for gate in gates:
                read = gate if mask is None or gate.shape[:2] != mask.shape else gate[mask]
                self._add(name, read, read.numel())
            gates.clear()
        for index, (layer_module, state) in enumerate(zip(self.model.layers, cache.states, strict=True)):
            squares = list(_squares(layer_module, state))
            if squares:
                alive = torch.ones(shape[0], dtype=torch.bool) if mask is None else mask.any(1)
                norms = torch.stack(squares).sum(0).sqrt()[alive]
                self._add(f"memory_norm/layer_{index}", norms, len(norms))

    def take(self) -> dict[str, float]:
        """By name, in the order of the layers; nothing of a model without memories."""
        return {name: value / max(1.0, self._counts[name]) for name, value in sorted(self._sums.items())}

    def _add(self, name: str, values: Tensor, count: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(values.detach().float().sum())
        self._counts[name] = self._counts.get(name, 0.0) + count


def _into(gates: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        gates.append(torch.sigmoid(output.detach().float()))

    return hook


def _squares(layer: nn.Module, state: MemoryState) -> Iterator[Tensor]:
    """`[B]` each: the squared norms of the memories in a layer's state."""
    memories = [part for part in layer.modules() if isinstance(part, Traceable)]
    if isinstance(state, NeuralMemoryState) and memories and isinstance(memories[0], NeuralMemory):
        for weight in memories[0].present_weights(state):
            yield weight.detach().float().square().flatten(1).sum(1)
    elif hasattr(state, "content"):
        yield state.content.detach().float().square().flatten(1).sum(1)
    else:
        for each in dataclasses.fields(state):
            inner = getattr(state, each.name)
            for one in inner if isinstance(inner, tuple) else ():
                if isinstance(one, MemoryState):
                    yield from _squares(layer, one)
