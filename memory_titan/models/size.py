"""Models of equal size: parameters counted, and the width that gives as many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def parameter_count(model: nn.Module) -> int:
    """Parameters of the model; those that are shared count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def width_of_size(build: Callable[[int], nn.Module], parameters: int, multiple: int = 8) -> int:
    """The width at which a model comes nearest to `parameters`.

        width = width_of_size(lambda n: RecurrentForCausalLM(RecurrentConfig(hidden_size=n)), parameter_count(other))

    Args:
        build: makes the model of a width; what it makes must grow with it. No memory is taken for its weights.
        parameters: wanted.
        multiple: the width is one of this, at least one: twice the heads, for attention.

    Raises:
        ValueError: parameters or multiple is below 1.
    """
    if parameters < 1 or multiple < 1:
        raise ValueError(f"parameters and multiple must be at least 1; got {parameters} and {multiple}")

    def size(steps: int) -> int:
        with torch.device("meta"):
            return parameter_count(build(steps * multiple))

    high = 1
    while size(high) < parameters:
        high *= 2
    low = high // 2  # smaller than wanted, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < parameters else (low, middle)
    if low and parameters - size(low) < size(high) - parameters:
        high = low
    return high * multiple
