"""Is it the memory that answers, written by its own gradient? Ways to spoil just that, and put it right again.

    with probing(model, "flipped"):
        ...                      # everything as it was, but every write goes up the gradient

    off       no_writes          nothing is written: memories answer from the weights that they start with
    flipped   flipped_sign       every write goes up the gradient of its loss
    q_for_k   queries_for_keys   what is written is written under the token's query
    silent    silent             nothing is read: what a memory gives is 0

**A memory that is off has written nothing.** The other meaning, that nothing is read of it, is `silent`. It says less:
a model whose branches are multiplied, or that is nothing but memory, then has no way left for anything to pass, and
fails whether its memory held the answer or not. With writes off all weights stay in use, and what is missing is what
the stream said.

All take any module with `NeuralMemory`s in it, whatever path computes them (`fused/`, `chunk.py`, `step.py`): what is
changed is what the path is given. `silent` and `off` also take banks of slots, `off` those with a write gate. No
parameter is touched, and a session or a cache stays one of this model. Sessions have to be made within, since
persistent tokens are written when a session is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.memory.neural.rule import Gates
from memory_titan.memory.trace import Traceable

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
    """The step is 0: memories answer from the weights that they start with, which decay as they did.

    Banks of slots likewise: their write gates stay shut.

    Raises:
        ValueError: there is no memory, or one without a gate to shut.
    """
    with _steps(_memories(model, Traceable), lambda step: step * 0):
        yield


@contextmanager
def silent(model: nn.Module) -> Iterator[None]:
    """What a memory gives is 0, whatever its kind; it is written as ever.

    Raises:
        ValueError: there is no memory.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], out: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        return torch.zeros_like(out[0]), out[1]

    handles = [memory.register_forward_hook(hook) for memory in _memories(model, Traceable)]
    with ExitStack() as stack:
        for memory in _memories(model, Traceable):
            recall: Callable[..., Tensor] = memory.recall
            stack.enter_context(_in_place_of(memory, "recall", _zero(recall)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


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


# What evaluations of language models call them; AS_IT_IS is none of them.
AS_IT_IS = "model"
SHORT = {"off": "no_writes", "flipped": "flipped_sign", "q_for_k": "queries_for_keys", "silent": "silent"}


def probing(model: nn.Module, way: str | None) -> AbstractContextManager[None]:
    """The model as `way` says while the context is open.

    Args:
        model: anything with memories in it; with "model" or None anything.
        way: "off", "flipped", "q_for_k", "silent", or the names of the functions here; "model" or None: as it is.

    Raises:
        ValueError: there is no such way, or the model has no memory that it can be done to.
    """
    if way is None or way == AS_IT_IS:
        return nullcontext()
    probes = {**PROBES, "silent": silent}
    name = SHORT.get(way, way)
    if name not in probes:
        raise ValueError(f"there is no probe {way!r}; there are {', '.join([*SHORT, *PROBES])}")
    return probes[name](model)


def probes_of(model: nn.Module) -> tuple[str, ...]:
    """Those of "off", "flipped" and "q_for_k" that can be done to a model; none to one without memories."""
    found = []
    for way in ("off", "flipped", "q_for_k"):
        try:
            with probing(model, way):
                found.append(way)
        except ValueError:
            pass
    return tuple(found)


@contextmanager
def _steps(memories: list[Any], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple[Any, ...], gates: Any) -> Any:
        if isinstance(gates, Gates):
            return replace(gates, step=change(gates.step))
        return gates._replace(write=change(gates.write))

    if bad := [memory for memory in memories if not hasattr(memory, "gating")]:
        raise ValueError(f"a {type(bad[0]).__name__} without gates has nothing to shut")
    handles = [memory.gating.register_forward_hook(hook) for memory in memories]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero(recall: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **options: torch.zeros_like(recall(*args, **options))


@contextmanager
def _in_place_of(memory: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
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


def _memories(model: nn.Module, kind: type[Any] = NeuralMemory) -> list[Any]:
    """All memories of a model, if all of them are of this kind."""
    found = [part for part in model.modules() if isinstance(part, Traceable)]
    if not found:
        raise ValueError(f"there is no memory in this {type(model).__name__}")
    if other := [part for part in found if not isinstance(part, kind)]:
        raise ValueError(f"this probe is for neural memories; there is a {type(other[0]).__name__}")
    return found
