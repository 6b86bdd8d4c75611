"""What a memory has to compute: its sizes here, its FLOPs by the formula, and the machine's rate at those products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.benchmarks.measure import timed

# The same for every contender.
DEPTH, EXPANSION, CHUNK = 2, 4, 64

_LOOP_SECONDS = 0.25  # one measurement of the machine's rate


@dataclass
class Subject:
    """A memory under test."""

    module: nn.Module
    call: Callable[[Tensor, Any], tuple[Tensor, Any]]  # x `[1, T, dim]` and a state or None -> y and the state
    fast_weights: int  # numbers that the memory writes to, all heads
    version: str


def flops_per_token(width: int, hidden: int, chunk: int = CHUNK, momentum: bool = True, exact: bool = False) -> int:
    """FLOPs of the memory op, forward, per token and head of `width`, for two layers: 11P + 4C(d + h), P = 2dh.

    Without momentum 7P. The exact rule adds P for its features times the momentum (where there is one), and its
    C x C system: 2Ch to build, Cd to solve. Projections, convolution, gates and norms of the layer are not in it.
    """
    P = 2 * width * hidden
    flops = (11 if momentum else 7) * P + 4 * chunk * (width + hidden)
    if exact:
        flops += (P if momentum else 0) + 2 * chunk * hidden + chunk * width
    return flops


def weight_products(width: int, hidden: int, chunk: int = CHUNK) -> list[tuple[int, int, int, int]]:
    """The products behind the P of the formula (momentum, exact rule): rows, inner size, columns, how many a chunk."""
    return [
        (chunk, width, hidden, 4),  # keys and queries through the first layer and its momentum; deltas down
        (chunk, hidden, width, 4),  # features and queries through the last layer and its momentum
        (width, chunk, hidden, 2),  # what the chunk writes to the first layer and to its momentum
        (hidden, chunk, width, 2),  # and to the last
    ]


class ProductLoop:
    """The machine's own rate: `weight_products` over and over, batched over the heads, results into place."""

    def __init__(self, dim: int, heads: int) -> None:
        width = dim // heads
        self._products = []
        self.flops = 0  # of one run
        for rows, inner, columns, times in weight_products(width, EXPANSION * width):
            left, right = torch.randn(heads, rows, inner), torch.randn(heads, inner, columns)
            if inner == CHUNK:  # written transposed, as the memory has it
                left = torch.randn(heads, inner, rows).mT
            self._products.append((left, right, torch.empty(heads, rows, columns), times))
            self.flops += 2 * rows * inner * columns * heads * times
        self._rounds = 1
        timed(self.run)  # the first call sets things up
        self._rounds = max(1, round(_LOOP_SECONDS / max(1e-6, min(timed(self.run)[0] for _ in range(5)))))
        self.flops *= self._rounds

    def run(self) -> None:
        for _ in range(self._rounds):
            for left, right, out, times in self._products:
                for _ in range(times):
                    torch.bmm(left, right, out=out)
