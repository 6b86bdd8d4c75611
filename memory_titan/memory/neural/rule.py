"""What the two forms of the neural memory share: the state they carry, the activations, the choice of rule.

Nothing of the update itself is here: `naive.py` and `chunk.py` each state it on their own, so that the tests
that hold them together compare two derivations and not one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.memory.state import MemoryState

Rule = Literal["exact", "anchored"]
Activation = Callable[[Tensor], Tensor]
LOG_FLOOR = -60.0  # exp(-60) = 9e-27: a gate that is shut, without an infinity that would spoil gradients


@dataclass(frozen=True)
class FastWeights(MemoryState):
    """The weights that a memory writes to, and what continuing inside a chunk takes.

    Attributes:
        weights: one tensor a layer, `[B, H, in, out]`.
        momentum: the same shapes; empty where the rule has none.
        anchor: the weights as they stood at the first token of the open chunk; equal to `weights` where
            `position` is 0.
        position: `[B]`, int64, tokens already in the open chunk, `0 <= position < chunk_size`.
    """

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    anchor: tuple[Tensor, ...]
    position: Tensor


def _silu_grad(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _gelu_grad(x: Tensor) -> Tensor:
    normal = torch.exp(-0.5 * x.square()) * 0.3989422804014327  # 1 / sqrt(2 pi)
    return 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * normal


# name -> (function, derivative)
ACTIVATIONS: dict[str, tuple[Activation, Activation]] = {
    "silu": (F.silu, _silu_grad),
    "gelu": (F.gelu, _gelu_grad),
    "relu": (F.relu, lambda x: (x > 0).to(x)),
}


def flush_small(x: Tensor, floor: float = 1e-30) -> Tensor:
    """`x` with magnitudes under `floor` set to zero.

    A state that decays for long passes through the denormal numbers, on which CPUs are many times slower.
    """
    return torch.where(x.abs() < floor, 0.0, x)
