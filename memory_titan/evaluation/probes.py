"""Is it the memory that answers, written by its own gradient? Ways to spoil just that, and put it right again.

    with flipped_sign(model):
        ...                      # everything as it was, but every write goes up the gradient

All take any module with `NeuralMemory`s in it, whatever path computes them (`fused/`, `chunk.py`, `step.py`): what is
changed is what the path is given. No parameter is touched, and a session stays one of this model. Sessions have to be
made within, since persistent tokens are written when a session is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.memory.neural.rule import Gates

Heads = tuple[Tensor, Tensor, Tensor]


@contextmanager
def flipped_sign(model: nn.Module) -> Iterator[None]:
    """Memories write along the gradient of their loss, not against it: the step theta becomes -theta.

    Errors then grow from write to write, without bound: on long texts the weights may overflow. Within, that is no
    error; what the model then says is NaN (and is counted as wrong by `evaluation.answers`).

    Raises:
        ValueError: a memory has no gradient step whose sign could be flipped ("solve"), or normalises it away ("muon").
    """
    found = _memories(model)
    if bad := {m.config.algorithm for m in found} & {"solve", "muon"}:
        raise ValueError(f"the sign of a write cannot be flipped with algorithm {sorted(bad)[0]!r}")
    before = [memory.config.nonfinite for memory in found]
    with _steps(found, lambda step: -step):
        try:
            for memory in found:
                memory.config.nonfinite = "ignore"
            yield
        finally:
            for memory, policy in zip(found, before, strict=True):
                memory.config.nonfinite = policy


@contextmanager
def no_writes(model: nn.Module) -> Iterator[None]:
    """The step is 0: memories answer from the weights that they start with, which decay as they did."""
    with _steps(_memories(model), lambda step: step * 0):
        yield


@contextmanager
def queries_for_keys(model: nn.Module) -> Iterator[None]:
    """What is stored is stored under the token's query, as it is after convolution and norm, not under its key."""
    with ExitStack() as stack:
        for memory in _memories(model):
            heads: Callable[[Tensor], Heads] = memory._heads

            def swapped(qkv: Tensor, heads: Callable[[Tensor], Heads] = heads) -> Heads:
                q, _, v = heads(qkv)
                return q, q, v

            stack.enter_context(_in_place_of(memory, "_heads", swapped))
        yield


PROBES: dict[str, Callable[[nn.Module], AbstractContextManager[None]]] = {
    "flipped_sign": flipped_sign,
    "queries_for_keys": queries_for_keys,
    "no_writes": no_writes,
}


@contextmanager
def _steps(memories: list[NeuralMemory], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple[Any, ...], gates: Gates) -> Gates:
        return replace(gates, step=change(gates.step))

    handles = [memory.gating.register_forward_hook(hook) for memory in memories]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _in_place_of(memory: NeuralMemory, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """The instance's own `function` stands in front of its class's method."""
    own = memory.__dict__
    before = own.get(name)
    own[name] = function
    try:
        yield
    finally:
        if before is None:
            del own[name]
        else:
            own[name] = before


def _memories(model: nn.Module) -> list[NeuralMemory]:
    found = [part for part in model.modules() if isinstance(part, NeuralMemory)]
    if not found:
        raise ValueError(f"there is no memory in this {type(model).__name__}")
    return found
