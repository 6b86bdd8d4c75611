"""`Fusion`: two branches become one, the paper's (x)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUSIONS = ("product", "convex", "sum")


class Fusion(nn.Module):
    """How what attention said and what the memory said are joined.

    - "product": norm(a) * silu(norm(m)), the norms with learned vector weights: the paper's (section 4.2) words, "we
      normalize the outputs using learnable vector-valued weights, followed by a non-linearity", put so. Which
      non-linearity, and on which side, it does not say.
    - "convex": g * norm(a) + (1 - g) * norm(m), g = sigmoid(W [a, m] + b) a channel, begun at 1/2.
    - "sum": norm(a) + norm(m).

    Args:
        dim: width of both.
        kind: one of `FUSIONS`.
        eps: of the norms.
    """

    def __init__(self, dim: int, kind: str = "convex", eps: float = 1e-6) -> None:
        super().__init__()
        if kind not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}; got {kind!r}")
        self.kind = kind
        self.attention_norm, self.memory_norm = nn.RMSNorm(dim, eps=eps), nn.RMSNorm(dim, eps=eps)
        if kind == "convex":
            self.gate = nn.Linear(2 * dim, dim)

    def forward(self, attended: Tensor, remembered: Tensor) -> Tensor:
        """`[B, T, dim]` both, and what comes out."""
        a, m = self.attention_norm(attended), self.memory_norm(remembered)
        if self.kind == "product":
            return a * F.silu(m)
        if self.kind == "sum":
            return a + m
        gate = torch.sigmoid(self.gate(torch.cat([a, m], -1)))
        return gate * a + (1 - gate) * m
