"""Structure: the small network whose weights are the memory (MIRAS, arXiv 2504.13173: the first of four choices).

    mlp        y = W_L act( ... act(W_1 x))             depth 1 is a matrix, up to 4 layers
    gated      y = W_3 (act(W_1 x) * W_2 x)             as in LaCT (arXiv 2505.23884)
    residual   y = x + norm(W_L act( ... act(W_1 x)))   as in TTT and MIRAS; norm is LayerNorm with learned scale, shift

A structure is written down once, in `forward`, as what it does with the results of `linear(i, x)`, "x times matrix i".
What a matrix is (fixed, or moving from token to token) is the caller's business. `deltas` is its backpropagation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

StructureKind = Literal["mlp", "gated", "residual"]
Linear = Callable[[int, Tensor], Tensor]
NORM_EPS = 1e-5


def _silu_grad(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _gelu_grad(x: Tensor) -> Tensor:
    normal = torch.exp(-0.5 * x.square()) * 0.3989422804014327  # 1 / sqrt(2 pi)
    return 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * normal


# name -> (function, derivative)
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (F.silu, _silu_grad),
    "gelu": (F.gelu, _gelu_grad),
    "relu": (F.relu, lambda x: (x > 0).to(x)),
}


@dataclass(frozen=True)
class Structure:
    """The network of a memory, without its weights.

    Attributes:
        kind: "mlp", "gated" or "residual".
        activation: a name in `ACTIVATIONS`.
        scale, shift: `[H, d_v]`, of the norm of "residual"; None: 1 and 0.
    """

    kind: StructureKind = "mlp"
    activation: str = "silu"
    scale: Tensor | None = None
    shift: Tensor | None = None

    @staticmethod
    def sizes(kind: StructureKind, fan_in: int, hidden: int, fan_out: int, depth: int) -> list[tuple[int, int]]:
        """(in, out) of each matrix."""
        if kind == "gated":
            return [(fan_in, hidden), (fan_in, hidden), (hidden, fan_out)]
        return list(pairwise([fan_in, *[hidden] * (depth - 1), fan_out]))

    def forward(self, linear: Linear, x: Tensor, matrices: int) -> Tensor:
        """The network on x `[B, H, T, d]`; `linear(i, x)` multiplies by matrix i, and is called in order."""
        act, first = ACTIVATIONS[self.activation][0], x
        if self.kind == "gated":
            return linear(2, act(linear(0, x)) * linear(1, x))
        for layer in range(matrices - 1):
            x = act(linear(layer, x))
        x = linear(matrices - 1, x)
        return first + self._norm(x) if self.kind == "residual" else x

    def deltas(self, weights: Sequence[Tensor], products: Sequence[Tensor], error: Tensor) -> list[Tensor]:
        """The loss's gradient at each matrix's product, from `error`, its gradient at the network's output.

        Args:
            weights: the matrices, `[B, H, in, out]`, through which the error is carried down.
            products: what `linear(i, x)` returned, `[B, H, T, out]`.
            error: `[B, H, T, d_v]`.
        """
        act, act_grad = ACTIVATIONS[self.activation]
        if self.kind == "gated":
            below = error @ weights[2].mT
            return [below * products[1] * act_grad(products[0]), below * act(products[0]), error]
        if self.kind == "residual":
            error = self._norm_backward(products[-1], error)
        down = [error]
        for layer in range(len(weights) - 1, 0, -1):
            down.append((down[-1] @ weights[layer].mT) * act_grad(products[layer - 1]))
        return down[::-1]

    def _norm(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
        if self.scale is not None:
            x = x * self.scale[:, None]
        return x if self.shift is None else x + self.shift[:, None]

    def _norm_backward(self, x: Tensor, error: Tensor) -> Tensor:
        if self.scale is not None:
            error = error * self.scale[:, None]
        centred = x - x.mean(-1, keepdim=True)
        rstd = (centred.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        unit = centred * rstd
        return rstd * (error - error.mean(-1, keepdim=True) - unit * (error * unit).mean(-1, keepdim=True))
