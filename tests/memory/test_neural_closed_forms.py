"""Presets against the formulas of their papers, written out over the whole sequence or by hand."""

from __future__ import annotations

import pytest
import torch

import laws
from memory_titan import NeuralMemory

DIM, HEADS, T = 8, 2, 17


def prepared(name: str, **options):
    """A preset without its surroundings; its q, k, v and gates for random tokens; what it reads."""
    torch.manual_seed(0)
    memory = NeuralMemory.preset(name, DIM, heads=HEADS, chunk_size=5, output_norm=False, output_gate=False, **options)
    memory = memory.double()
    x = torch.randn(2, T, DIM, dtype=torch.float64)
    with torch.no_grad():
        memory.out.weight.copy_(torch.eye(DIM))
        if memory.gating.columns:
            memory.gating.linear.weight.normal_()
        state = memory.initial_state(2)
        projected = torch.cat([state.tail, memory.qkv(x)], 1)
        q, k, v = memory._heads(memory._convolve(projected))
        read = memory(x)[0].unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return q, k, v, memory.gating(x, torch.float64), read


def decays(log_keep: torch.Tensor) -> torch.Tensor:
    """[t, i]: a_{i+1} ... a_t for i <= t, else 0."""
    L = torch.zeros(*log_keep.shape, T, dtype=log_keep.dtype)
    for t in range(T):
        for i in range(t + 1):
            L[..., t, i] = log_keep[..., i + 1 : t + 1].exp().prod(-1)
    return L


@pytest.mark.parametrize("name", ["linear_attention", "retnet"])
def test_linear_attention_is_masked_attention_without_softmax(name):
    q, k, v, gates, read = prepared(name)
    if name == "retnet":
        gammas = torch.tensor([1 - 2.0**-5, 1 - 2.0**-6], dtype=torch.float64)
        laws.same(gates.log_keep.exp(), gammas[:, None].expand(2, HEADS, T))
    laws.same(read, (q @ k.mT * decays(gates.log_keep)) @ v)


def test_gla_by_hand():
    q, k, v, gates, read = prepared("gla")
    W = torch.zeros(2, HEADS, DIM // HEADS, DIM // HEADS, dtype=torch.float64)
    for t in range(T):
        W = gates.log_keep[:, :, t].exp()[..., None] * W + k[:, :, t, :, None] * v[:, :, t, None]
        laws.same(read[:, :, t], (q[:, :, t, None] @ W)[:, :, 0])


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "kda"])
def test_delta_rules_by_hand(name):
    """W_t = (I - theta k k^T) D W_{t-1} + theta k v^T, D = 1, a scalar, or a diagonal matrix."""
    q, k, v, gates, read = prepared(name)
    eye = torch.eye(DIM // HEADS, dtype=torch.float64)
    W = torch.zeros(2, HEADS, *eye.shape, dtype=torch.float64)
    for t in range(T):
        key, value, theta = k[:, :, t, :, None], v[:, :, t, None], gates.step[:, :, t, None, None]
        keep = gates.log_keep[:, :, t].exp()
        keep = keep[..., None] if name == "kda" else keep[..., None, None]
        W = (eye - theta * key @ key.mT) @ (keep * W) + theta * key @ value
        laws.same(read[:, :, t], (q[:, :, t, None] @ W)[:, :, 0])


def test_deltanet_is_the_wy_representation():
    """All of it as one triangular system over the whole sequence (arXiv 2406.06484, eq. 10)."""
    q, k, v, gates, read = prepared("deltanet")
    theta = gates.step[..., None]
    inverse = torch.linalg.inv(torch.eye(T, dtype=torch.float64) + (theta * (k @ k.mT)).tril(-1))
    laws.same(read, (q @ k.mT).tril() @ inverse @ (theta * v))


@pytest.mark.parametrize("retention", ["none", "scalar"])
def test_mesa_is_weighted_least_squares(retention):
    """By lstsq on the stacked, weighted system of everything read so far; not a recurrence at all."""
    q, k, v, gates, read = prepared("mesa", retention=retention, ridge=0.5)
    weights, d = decays(gates.log_keep), DIM // HEADS
    for t in range(T):
        root = (weights[:, :, t, : t + 1] * gates.step[:, :, : t + 1]).sqrt()[..., None]
        ridge = 0.5**0.5 * torch.eye(d, dtype=torch.float64).expand(2, HEADS, d, d)
        a = torch.cat([root * k[:, :, : t + 1], ridge], 2)
        b = torch.cat([root * v[:, :, : t + 1], torch.zeros_like(ridge)], 2)
        W = torch.linalg.lstsq(a, b).solution
        laws.same(read[:, :, t], (q[:, :, t, None] @ W)[:, :, 0], 1e-9)


def test_mesa_token_by_token():
    from memory_titan.memory.neural.mesa import naive_mesa

    q, k, v, gates, read = prepared("mesa")
    zeros = torch.zeros(2, HEADS, DIM // HEADS, DIM // HEADS, dtype=torch.float64)
    laws.same(read, naive_mesa(q, k, v, gates, zeros, zeros, 1.0)[0])


def test_ttt_linear_of_the_first_chunk_by_hand():
    """Inside a chunk all gradients are taken at its start: a plain sum, by autograd."""
    torch.manual_seed(0)
    q, k, v, gates, read = prepared("ttt_linear", init="zero")
    d = DIM // HEADS
    for b in range(2):
        for h in range(HEADS):
            W = torch.zeros(d, d, dtype=torch.float64)
            moved = W.clone()
            for t in range(5):
                at = W.clone().requires_grad_()
                y = k[b, h, t] + torch.nn.functional.layer_norm(k[b, h, t] @ at, (d,))
                (gradient,) = torch.autograd.grad(0.5 * (y - v[b, h, t]).square().sum(), at)
                moved = moved - gates.step[b, h, t] / (1 + k[b, h, t].square().sum()) * gradient
                expected = q[b, h, t] + torch.nn.functional.layer_norm(q[b, h, t] @ moved, (d,))
                laws.same(read[b, h, t], expected)
