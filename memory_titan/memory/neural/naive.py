"""The neural memory token by token: its meaning. Plain and slow; `chunk.py` is the same function, fast.

For one head, with key k, value v, query q, step theta, momentum gate eta and keep gate a = 1 - alpha (Titans,
arXiv 2501.00663, eq. 9, 10, 13, 14):

    loss     l(W; k, v) = 1/2 |M_W(k) - v|^2           M_W: W_L act( ... act(W_1 k))
    S_t = eta_t S_{t-1} - theta'_t grad l              W_t = a_t W_{t-1} + S_t              y_t = M_{W_t}(q_t)

Where the gradient is taken, for weights A that stood at the chunk's first token (the anchor; eq. 16):

    rule="anchored"   every layer at A: the paper's chunked training
    rule="exact"      the last layer at its present weights W_{t-1}; the layers below at A, driven by the same
                      true error. A key that repeats in a chunk is then corrected once and not once a repetition.

The step is theta' = theta / (1 + |h|^2), h the input of the last layer, and `lower_step` times that below it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memory_titan.memory.neural.rule import ACTIVATIONS, LOG_FLOOR, Activation, FastWeights, Rule


def naive_memory(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    log_keep: Tensor,
    log_momentum: Tensor | None,
    state: FastWeights,
    *,
    chunk_size: int,
    rule: Rule = "exact",
    activation: str = "silu",
    lower_step: float = 0.1,
    valid: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, FastWeights]:
    """Write `k -> v` and read `q`, one token after the other.

    Args:
        q: `[B, H, T, d]` queries, or None to write only.
        k: `[B, H, T, d]` keys.
        v: `[B, H, T, d_v]` values.
        step: `[B, H, T]`, theta, in [0, 1] (see `docs/neural-memory.md` on what bounds it).
        log_keep: `[B, H, T]`, log of a = 1 - alpha, at most 0; below -60 counts as -60.
        log_momentum: `[B, H, T]`, log of eta, likewise; None: no momentum.
        state: where to start; see `FastWeights`.
        chunk_size: tokens between two anchors.
        rule: where the gradient is taken: "exact" or "anchored".
        activation: "silu", "gelu" or "relu", between the memory's layers.
        lower_step: the step of the layers below the last, relative to its own.
        valid: `[B, T]`, bool; tokens that are False change nothing, and their outputs are 0.

    Returns:
        `(y, surprise, state)`: y `[B, H, T, d_v]` or None, what the memory answers to q_t after token t was
        written; surprise `[B, H, T]`, |M(k_t) - v_t|^2 just before it was.
    """
    act = ACTIVATIONS[activation][0]
    W, S, A, position = list(state.weights), list(state.momentum), list(state.anchor), state.position
    log_keep = log_keep.clamp(min=LOG_FLOOR)
    outputs, surprises = [v[:, :, :0]], [step[:, :, :0]]
    for t in range(k.shape[2]):
        k_t, v_t, theta = k[:, :, t : t + 1], v[:, :, t : t + 1], step[:, :, t, None, None]
        present = torch.ones_like(position, dtype=torch.bool) if valid is None else valid[:, t]
        row = present.view(-1, 1, 1, 1)

        gradients, error, h = _inner_gradients(A, W[-1] if rule == "exact" else A[-1], k_t, v_t, act)
        theta = theta / (1 + h.square().sum(-1, keepdim=True))
        keep = log_keep[:, :, t, None, None].exp()
        for layer, gradient in enumerate(gradients):
            move = -theta * gradient * (1.0 if layer == len(W) - 1 else lower_step)
            if log_momentum is not None:
                eta = log_momentum[:, :, t, None, None].clamp(min=LOG_FLOOR).exp()
                move = eta * S[layer] + move
                S[layer] = torch.where(row, move, S[layer])
            W[layer] = torch.where(row, keep * W[layer] + move, W[layer])

        position = torch.where(present, (position + 1) % chunk_size, position)
        A = [torch.where((position == 0).view(-1, 1, 1, 1), w, a) for w, a in zip(W, A, strict=True)]
        surprises.append(torch.where(present[:, None, None], error.square().sum(-1), 0.0))
        if q is not None:
            outputs.append(torch.where(row, _forward(W, q[:, :, t : t + 1], act), 0.0))
    y = None if q is None else torch.cat(outputs, 2)
    return y, torch.cat(surprises, 2), FastWeights(tuple(W), tuple(S), tuple(A), position)


def read_memory(q: Tensor, weights: tuple[Tensor, ...], activation: str = "silu") -> Tensor:
    """Read only: `M_W(q)`. q: `[B, H, T, d]`; returns `[B, H, T, d_v]`."""
    return _forward(list(weights), q, ACTIVATIONS[activation][0])


def _forward(W: list[Tensor], x: Tensor, act: Activation) -> Tensor:
    for w in W[:-1]:
        x = act(x @ w)
    return x @ W[-1]


def _inner_gradients(
    A: list[Tensor], top: Tensor, k: Tensor, v: Tensor, act: Activation
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of the loss by autograd, left in the graph so that an outer loss can differentiate through them."""
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        lower = [a if a.requires_grad else a.detach().requires_grad_() for a in A[:-1]]
        top = top if top.requires_grad else top.detach().requires_grad_()
        h = k
        for a in lower:
            h = act(h @ a)
        error = h @ top - v
        (last,) = torch.autograd.grad(0.5 * error.square().sum(), top, create_graph=outer, retain_graph=True)
        below: tuple[Tensor, ...] = ()
        if lower:  # the error is carried down through the anchor's last layer
            below = torch.autograd.grad(h @ A[-1], lower, grad_outputs=error, create_graph=outer)
    gradients = [*below, last]
    if not outer:
        gradients, error, h = [g.detach() for g in gradients], error.detach(), h.detach()
    return gradients, error, h
