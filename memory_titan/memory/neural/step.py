"""One token, as a model that generates needs it: `chunk.py` for T = 1, with no weight written and none copied.

For the usual rule (an MLP, l2, one decay a head), inside a chunk, without gradients. With W, S at the chunk's start,
and for every earlier token i of it how much of it is in the weights, g_i, and in the momentum, m_i, a token makes

    m_i <- eta m_i,  g_i <- a g_i + m_i    and likewise (b, f, m_0) of W and S themselves;    g = m = theta for its own
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memory_titan.memory.neural.rule import LOG_FLOOR, FastWeights, Gates, Rule, surprise_of
from memory_titan.memory.neural.structure import ACTIVATIONS
from memory_titan.memory.surprise import Surprise


def fits_step(rule: Rule, state: FastWeights, tokens: int, position: int | None) -> bool:
    """Whether `step_memory` computes this: one token that does not complete its chunk, of the usual rule."""
    return (
        tokens == 1
        and position is not None
        and position % rule.anchor_every < rule.anchor_every - 1
        and bool(state.inputs)
        and is_usual(rule)
        and not torch.is_grad_enabled()
    )


def is_usual(rule: Rule) -> bool:
    """An MLP with l2 and one decay a head, read after every token: Titans, DeltaNet, and the library's default."""
    return (
        rule.structure.kind == "mlp"
        and rule.bias == "l2"
        and rule.retention in ("none", "fixed", "scalar")
        and rule.window == 1
        and not rule.muon
        and rule.read == "token"
        and not rule.decay_first
        and rule.gradient != "token"
    )


def step_memory(
    q: Tensor | None, k: Tensor, v: Tensor, gates: Gates, state: FastWeights, rule: Rule, place: int, surprise: bool
) -> tuple[Tensor | None, Surprise | None, FastWeights]:
    """As `chunk_memory`, for a token at `place` in its chunk; the position is left to the caller."""
    act, act_grad = ACTIVATIONS[rule.structure.activation]
    W, S, last = state.weights, state.momentum, len(state.weights) - 1
    theta, keep = gates.step, gates.log_keep.clamp(min=LOG_FLOOR).exp()  # [B, H, 1]
    b, f, m, muon = state.scale.split(1, -1)
    g = state.coefficients[:, :, :place, 0]

    # The key through the anchor.
    x, z = [k], []
    for layer in range(last):
        z.append(x[-1] @ W[layer])
        x.append(act(z[-1]))
    h = x[-1]
    y = h @ W[last]
    if rule.gradient == "exact":
        y = y * b[..., None]
        if S:
            y = torch.addcmul(y, h @ S[last], f[..., None])
        if place:
            seen = (h @ state.inputs[last][:, :, :place].mT) * g[:, :, None]
            y = y - seen @ state.deltas[last][:, :, :place]
    error = y - v
    unit = 1 / (1 + h.square().sum(-1, keepdim=True)) if rule.step_norm else torch.ones_like(h[..., :1])
    true = [error]
    for layer in range(last, 0, -1):
        true.append((true[-1] @ W[layer].mT) * act_grad(z[layer - 1]))
    true.reverse()
    deltas = [d * (unit if i == last else unit * rule.lower_step) for i, d in enumerate(true)]

    b, coefficients = b * keep, state.coefficients
    if S:
        eta = _exp(gates.log_momentum)
        m = m * eta
        f = f * keep + m
        pushed = coefficients[:, :, :place, 1] * eta
        g = g * keep + pushed
        row = torch.stack([torch.cat([g, theta], -1), torch.cat([pushed, theta], -1)], -1)
    else:
        g = torch.cat([g * keep, theta], -1)
        row = torch.stack([g, torch.zeros_like(g)], -1)
    g = row[..., None, :, 0]
    rest = slice(place + 1, None)
    coefficients = torch.cat([row, coefficients[:, :, rest]], 2)
    inputs, kept = (
        tuple(torch.cat([old[:, :, :place], new, old[:, :, rest]], 2) for old, new in zip(olds, news, strict=True))
        for olds, news in ((state.inputs, x), (state.deltas, deltas))
    )

    read = q
    if read is not None:
        for layer, w in enumerate(W):
            out = (read @ w) * b[..., None]
            if S:
                out = torch.addcmul(out, read @ S[layer], f[..., None])
            seen = (read @ inputs[layer][:, :, : place + 1].mT) * g
            out = out - seen @ kept[layer][:, :, : place + 1]
            read = act(out) if layer < last else out
    told = None
    if surprise:
        told = surprise_of(error.square().sum(-1), x, true, theta * unit[..., 0], rule.lower_step)
    muon = muon * keep + theta / rule.anchor_every  # of no use to this rule; kept equal to the chunk form's
    scale = torch.cat([b, f, m, muon], -1)
    return read, told, replace(state, inputs=inputs, deltas=kept, coefficients=coefficients, scale=scale)


def _exp(log_gate: Tensor | None) -> Tensor:
    assert log_gate is not None
    return log_gate.clamp(min=LOG_FLOOR).exp()
