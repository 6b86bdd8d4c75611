"""Polynomial key features (ATLAS, arXiv 2505.23735, section 3.1): more room for keys, without more of them."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import torch
from torch import Tensor


def feature_size(width: int, degree: int) -> int:
    """Numbers in the features of a key of `width`."""
    return sum(math.comb(width + power - 1, power) for power in range(1, degree + 1))


def polynomial_features(x: Tensor, coefficients: Tensor) -> Tensor:
    """All monomials of x up to a degree, weighted so that inner products are polynomials of inner products.

        phi(x) . phi(y) = sum_i c_i^2 (x . y)^i / sum_i c_i^2

    so unit keys keep unit length.

    Args:
        x: `[B, H, T, d]`.
        coefficients: `[H, degree]`, c_1 to c_degree.

    Returns:
        `[B, H, T, feature_size(d, degree)]`.
    """
    width, degree = x.shape[-1], coefficients.shape[-1]
    coefficients = coefficients * coefficients.square().sum(-1, keepdim=True).rsqrt()
    parts = []
    for power in range(1, degree + 1):
        index = list(combinations_with_replacement(range(width), power))
        # each monomial stands for all orderings of its factors: a multinomial number of them
        orderings = [math.factorial(power) / math.prod(math.factorial(i.count(j)) for j in set(i)) for i in index]
        columns = torch.tensor(index, device=x.device).T
        part = x[..., columns[0]]
        for column in columns[1:]:
            part = part * x[..., column]
        weight = torch.tensor(orderings, dtype=x.dtype, device=x.device).sqrt()
        parts.append(part * weight * coefficients[:, power - 1, None, None])
    return torch.cat(parts, -1)
