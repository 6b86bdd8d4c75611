"""Muon's step: a matrix replaced by its nearest orthogonal one, roughly, by Newton-Schulz iteration."""

from __future__ import annotations

from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # K. Jordan et al., Muon: steep at 0, so that five rounds are enough
TINY = 1e-7


def newton_schulz(x: Tensor, rounds: int = 5) -> Tensor:
    """U V^T of x = U D V^T, its singular values between 0.7 and 1.2 unless they were tiny. x: `[..., m, n]`.

    A matrix of zeros gives zeros.
    """
    a, b, c = COEFFICIENTS
    x = x * (x.square().sum((-2, -1), keepdim=True) + TINY**2).rsqrt()
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT
    for _ in range(rounds):
        square = wide @ wide.mT
        wide = a * wide + (b * square + c * (square @ square)) @ wide
    return wide if x.shape[-2] <= x.shape[-1] else wide.mT
