"""Training with FSDP2: the weights shared out over processes, a layer's gathered while it runs.

`accelerate launch --config_file runs/accelerate_fsdp2.yaml -m memory_titan train mag ...`, or `train lm`. Each layer of
the model is a unit; embeddings, head and a graft's branches belong to the objective itself and are whole while its
forward runs. What happens outside of it, evaluation and saving, needs what is here. All of it must be called by all
processes alike; without FSDP2 all of it does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def gathered(objective: nn.Module, layers: bool = False) -> Iterator[None]:
    """Within, what belongs to no layer is whole, and the model can be called; layers gather themselves as they run.

    Args:
        objective: what accelerate has prepared.
        layers: theirs is whole, too, until they have run: for what they do outside of a call.
    """
    parts: list[Any] = [part for part in objective.modules() if _is_sharded(part)]
    for part in parts if layers else parts[:1]:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


@contextmanager
def saveable(model: nn.Module, *also: nn.Module) -> Iterator[None]:
    """Within, what is saved of a model is whole, and the model cannot be called: what is trained, and the parts `also`.

    Of a graft these are its branches and the embeddings, for the fingerprint; of frozen layers nothing is gathered.
    """
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    wanted |= {id(p) for part in also for p in part.parameters()}
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    gathered_once: dict[int, nn.Parameter] = {}  # tied weights stay tied
    try:
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None and id(p) in wanted and _is_dtensor(p):
                    swapped.append((module, name, p))
                    if id(p) not in gathered_once:
                        gathered_once[id(p)] = nn.Parameter(whole(p.detach()), p.requires_grad)
                    module._parameters[name] = gathered_once[id(p)]
        yield
    finally:
        for module, name, p in swapped:
            module._parameters[name] = p


def whole(tree: Any) -> Any:
    """Every shared out tensor in dicts, lists and tuples gathered."""
    return _map(_full, tree)


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Go on from an optimizer's `whole` state, with its tensors shared out as its parameters are."""
    parameters = [p for settings in optimizer.param_groups for p in settings["params"]]

    def like(p: Any) -> Callable[[Tensor], Tensor]:
        def spread(x: Tensor) -> Tensor:
            if not _is_dtensor(p) or x.shape != p.shape:
                return x
            from torch.distributed.tensor import distribute_tensor

            return distribute_tensor(x.to(p.device), p.device_mesh, p.placements)

        return spread

    own = {index: _map(like(parameters[index]), found) for index, found in state["state"].items()}
    optimizer.load_state_dict({**state, "state": own})


def _is_sharded(module: nn.Module) -> bool:
    if not torch.distributed.is_available():
        return False
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:  # before torch 2.6
        return False
    return isinstance(module, FSDPModule)


def _is_dtensor(x: Any) -> bool:
    return isinstance(x, Tensor) and hasattr(x, "full_tensor")


def _full(x: Any) -> Tensor:
    return x.full_tensor() if _is_dtensor(x) else x


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map(function, x) for name, x in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(function, x) for x in tree)
    return function(tree) if isinstance(tree, Tensor) else tree
