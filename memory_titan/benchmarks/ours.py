"""`NeuralMemory` under test: the layer, and its memory op by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.utils.checkpoint
from torch import Tensor

from memory_titan import __version__
from memory_titan.benchmarks.work import CHUNK, DEPTH, EXPANSION, Subject
from memory_titan.memory.neural import layer
from memory_titan.memory.neural.layer import NeuralMemory

CHECKPOINT = 8  # chunks between kept states, at the point that measures recomputation
_OP = "chunk_memory"  # what the layer calls its memory op


def can_recompute() -> bool:
    """Whether the layer can forget states within a sequence and compute them anew in the backward pass."""
    return hasattr(NeuralMemory(dim=1, heads=1).config, "checkpoint")


def build(rule: Literal["exact", "anchored"], dim: int, heads: int, recompute: bool = False) -> Subject:
    """The layer with everything else at its default: momentum, decay, convolution, norms, gates, checks."""
    options: dict[str, Any] = {"checkpoint": CHECKPOINT} if recompute else {}
    memory = NeuralMemory(dim, heads=heads, depth=DEPTH, expansion=EXPANSION, chunk_size=CHUNK, rule=rule, **options)
    weights = sum(weight.numel() for weight in memory.initial_state(1).weights)
    return Subject(memory, lambda x, state: memory(x, state), weights, __version__)


def in_pieces(dim: int, heads: int) -> Subject:
    """The layer called on `CHECKPOINT` chunks at a time, each call under torch's own checkpointing."""
    subject = build("exact", dim, heads)
    size = CHECKPOINT * CHUNK

    def call(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        ys = []
        for part in x.split(size, 1):
            y, state = torch.utils.checkpoint.checkpoint(subject.module, part, state, use_reentrant=False)
            ys.append(y)
        return torch.cat(ys, 1), state

    return replace(subject, call=call)


def op_alone(memory: NeuralMemory, x: Tensor, grad: bool) -> Callable[[], Tensor] | None:
    """The memory op of `memory(x)` as a call of its own, on the very arguments the layer gives it; None if not found.

    With `grad` it asks for the gradient of every one of them, as the layer does.
    """
    op: Any = getattr(layer, _OP, None)
    if op is None:
        return None
    seen: list[Any] = []

    def listen(*args: Any, **options: Any) -> Any:
        seen.append((args, options))
        return op(*args, **options)

    setattr(layer, _OP, listen)
    try:
        with torch.enable_grad():  # without, the layer goes on piece by piece, and the op sees the first alone
            memory(x)
    finally:
        setattr(layer, _OP, op)
    if not seen:
        return None
    args, options = _leaves(seen[0], grad)

    def call() -> Tensor:
        return cast(Tensor, op(*args, **options)[0])

    return call


def _leaves(value: Any, grad: bool) -> Any:
    """The same value, its tensors cut off from how they were made."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(grad and value.is_floating_point())
    if isinstance(value, tuple):
        parts = [_leaves(each, grad) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)  # _fields: a named tuple
    if isinstance(value, dict):
        return {key: _leaves(each, grad) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _leaves(getattr(value, field.name), grad) for field in fields(value)})
    return value
