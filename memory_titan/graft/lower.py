"""The frozen layers below the first memory, computed once: training reads their output instead of running them again.

What enters the first grafted layer depends on the text, the frozen weights and the window alone, unless a LoRA changes
the layers below. `lower_states` has it; `model.hidden(..., lower=states)` starts there, inside `with skipping(model)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memory_titan.graft.model import MemoryModel
from memory_titan.graft.session import CALL


def check_lower(model: MemoryModel) -> None:
    """Refuse a model whose lower layers are trained.

    Raises:
        ValueError: its LoRA is below the first grafted layer.
    """
    first = model.graft.layers[0]
    if model.lora is not None and model.lora.lowest < first:
        raise ValueError(
            f"the LoRA changes layer {model.lora.lowest}, so what enters layer {first}, the first with a memory, "
            f"cannot be computed once and kept; with layers_to_transform from {first} up, the default, it can"
        )


@contextmanager
def skipping(model: MemoryModel) -> Iterator[None]:
    """Within, `model.hidden` takes `lower`; without it the model computes as ever. One thread at a time.

    Raises:
        ValueError: see `check_lower`.
    """
    check_lower(model)
    layers = model.graft.decoder.get_submodule(model.graft.architecture.layers)
    first = model.graft.layers[0]
    below = list(layers)[:first]
    own = [layer.forward for layer in below]
    for place, layer in enumerate(below):
        layer.forward = partial(_skip, layer.forward, place == first - 1)
    try:
        yield
    finally:
        for layer, forward in zip(below, own, strict=True):
            del layer.forward
            assert layer.forward == forward


def _skip(forward: Callable[..., Any], last: bool, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A layer's forward: it hands on what it is given, and the last one what was computed before."""
    call = kwargs.get(CALL)
    if call is None or call.lower is None:
        return forward(hidden, *args, **kwargs)
    return call.lower if last else hidden


class _EnoughError(Exception):
    """The first grafted layer has been reached."""


@torch.no_grad()
def lower_states(model: MemoryModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """What enters the first grafted layer, in the frozen model's dtype.

    Args:
        model: grafted; its window counts.
        ids: `[B, T]`.
        mask: `[B, T]`, False for padding.

    Returns:
        `[B, T, hidden]`.

    Raises:
        ValueError: see `check_lower`.
    """
    check_lower(model)
    graft, size = model.graft, model.graft_config.segment
    first = graft.decoder.get_submodule(graft.architecture.layers)[graft.layers[0]]
    found: list[Tensor] = []

    def take(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        session.commit(kwargs[CALL])  # of what the layers below have kept
        raise _EnoughError

    handle = first.register_forward_pre_hook(take, with_kwargs=True)
    try:
        with model.disable_memory(keep_window=True):
            session = model.new_session(len(ids))
            for begin in range(0, ids.shape[1], size):
                part = slice(begin, begin + size)
                try:
                    model.hidden(ids[:, part], None if mask is None else mask[:, part], session)
                except _EnoughError:
                    continue
    finally:
        handle.remove()
    return torch.cat(found, 1)
