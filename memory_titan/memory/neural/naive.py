"""The neural memory token by token: its meaning. Plain and slow; `chunk.py` is the same function, fast.

For one head, with key k, value v, query q, step theta, momentum gate eta and keep gate a = 1 - alpha (Titans,
arXiv 2501.00663, eq. 9, 10, 13, 14), and an accumulator A whose function the weights W are (MIRAS; W = A in Titans):

    S_t = eta_t S_{t-1} - theta_t sum_i gamma_i g_i        A_t = a_t A_{t-1} + S_t           y_t = M_{W_t}(q_t)

g_i is the gradient of the bias at (k_i, v_i) over 1 + |h_i|^2, h the input of the last matrix, and `lower_step` times
that below it. The sum is over the last `window` tokens of the chunk; with a window of one it is g_t. W_0 being the
weights at the chunk's first token (the anchor; eq. 16), g is taken

    gradient="anchored"   in every matrix at W_0: the paper's chunked training
    gradient="exact"      in the last matrix at its present weights W_{t-1}; below at W_0, driven by the same true
                          error. A key that repeats in a chunk is then corrected once and not once a repetition.
    gradient="token"      in every matrix at W_{t-1}: a chunk is one token

Where a rule exists for chunks only, this is that rule: l_q takes its norm at the anchor; softmax and column norms are
taken at the chunk's end; Muon's chunk ends with A_C = (a_1 ... a_C) A_0 + e orthogonal(S_C), e the sum over i of
(a_{i+1} ... a_C) theta_i / C, the mean of the chunk's steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memory_titan.memory.neural.bias import bias_loss, loss_over_gradient
from memory_titan.memory.neural.orthogonal import newton_schulz
from memory_titan.memory.neural.retention import answering, at_boundary, size_factor
from memory_titan.memory.neural.rule import LOG_FLOOR, Gates, Rule
from memory_titan.memory.surprise import Surprise

Matrices = Sequence[Tensor]


def naive_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    weights: Matrices,
    momentum: Matrices,
    rule: Rule,
    *,
    initial: Matrices = (),
    valid: Tensor | None = None,
) -> tuple[Tensor, Surprise, Matrices, Matrices]:
    """Write `k -> v` and read `q`, one token after the other, from a chunk's start on.

    Args:
        q, k: `[B, H, T, d]`.
        v: `[B, H, T, d_v]`.
        gates: see `Gates`.
        weights, momentum: at the start, `[B, H, in, out]` a matrix; momentum empty where there is none.
        rule: see `Rule`.
        initial: `[B, H, in, out]`, what `rule.reset_every` goes back to.
        valid: `[B, T]`, bool; tokens that are False change nothing, and their outputs are 0.

    Returns:
        `(y, surprise, weights, momentum)`, the last two as they stand after the last token.
    """
    if valid is not None:
        return _rows(q, k, v, gates, weights, momentum, rule, initial, valid)
    C = rule.anchor_every
    A, S, anchor = list(weights), list(momentum), list(weights)
    muon_step = v.new_zeros(*k.shape[:2], 1, 1)
    seen: list[tuple[Tensor, list[Tensor]]] = []  # (context, gradients) of the chunk's tokens
    outputs, reports = [v[:, :, :0]], [[gates.step[:, :, :0]] for _ in Surprise._fields]
    for t in range(k.shape[2]):
        part = slice(t, t + 1)
        now = gates.map(lambda x: x[:, :, part])  # noqa: B023
        theta, keep = now.step[..., None], _keep(now.log_keep, A)
        gradients, h, loss = _inner_gradients(A, anchor, keep, k[:, :, part], v[:, :, part], now.threshold, rule)
        norm = 1 + h.square().sum(-1, keepdim=True) if rule.step_norm else torch.ones_like(theta)
        scaled = [g / norm * (1.0 if i == len(A) - 1 else rule.lower_step) for i, g in enumerate(gradients)]
        context = torch.ones_like(theta) if now.context is None else now.context[..., None]
        seen.append((context, scaled))
        for report, value in zip(
            reports, (loss, _norm(gradients), (theta * context)[..., 0] * _norm(scaled)), strict=True
        ):
            report.append(value)

        in_window = seen[-rule.window :]
        moves = [-theta * sum(c * g[i] for c, g in in_window) for i in range(len(A))]
        if S:
            assert now.log_momentum is not None
            S = [now.log_momentum.clamp(min=LOG_FLOOR).exp()[..., None] * s + m for s, m in zip(S, moves, strict=True)]
        added = S or moves
        if rule.muon:
            A = [a * w for a, w in zip(keep, A, strict=True)]
            muon_step = keep[0] * muon_step + theta / C
        else:
            A = [a * w + m for a, w, m in zip(keep, A, added, strict=True)]

        if rule.read == "chunk":
            outputs.append(_forward([answering(rule.retention, w, rule.q) for w in anchor], q[:, :, part], rule))
        else:
            outputs.append(_forward(_present(A, anchor, rule), q[:, :, part], rule))

        if (t + 1) % C == 0:
            if rule.muon:
                A = [w + muon_step * newton_schulz(s) for w, s in zip(A, added, strict=True)]
                muon_step = torch.zeros_like(theta)
            A = [at_boundary(rule.retention, w, before) for w, before in zip(A, anchor, strict=True)]
            if rule.reset_every and (t + 1) % rule.reset_every == 0:
                A, S = list(initial), [torch.zeros_like(s) for s in S]
            anchor, seen = A, []
    return torch.cat(outputs, 2), Surprise(*(torch.cat(report, 2) for report in reports)), A, S


def _present(A: Matrices, anchor: Matrices, rule: Rule) -> list[Tensor]:
    """The weights that answer in the middle of a chunk."""
    factors = [size_factor(rule.retention, a, rule.q) for a in anchor]
    return [w if f is None else w * f for w, f in zip(A, factors, strict=True)]


def _forward(weights: Matrices, x: Tensor, rule: Rule) -> Tensor:
    return rule.structure.forward(lambda i, x: x @ weights[i], x, len(weights))


def _keep(log_keep: Tensor, A: Matrices) -> list[Tensor]:
    """The factor of each matrix: `[B, H, 1, 1]`, or one for each of its inputs, `[B, H, in, 1]`."""
    keep = log_keep.clamp(min=LOG_FLOOR).exp()
    if keep.dim() == 3:
        return [keep[..., None]] * len(A)
    return [part.mT for part in keep.split([a.shape[2] for a in A], -1)]


def _inner_gradients(
    A: Matrices, anchor: Matrices, keep: Matrices, k: Tensor, v: Tensor, threshold: Tensor | None, rule: Rule
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients by autograd, kept in the graph so that an outer loss can differentiate through them; h; the loss."""
    outer = torch.is_grad_enabled()
    constant = loss_over_gradient(rule.bias, rule.p)
    last = len(A) - 1
    with torch.enable_grad():
        at = [answering(rule.retention, w, rule.q) for w in anchor]
        at = [w if w.requires_grad else w.detach().requires_grad_() for w in at]
        inputs: list[Tensor] = []
        if rule.gradient != "exact":
            y = rule.structure.forward(_recording(inputs, at), k, len(at))
            loss = bias_loss(rule.bias, y, v, rule.p, threshold)
            gradients = list(torch.autograd.grad(loss.sum() / constant, at, create_graph=outer, retain_graph=True))
        else:
            top = _present(A, anchor, rule)[last]
            top = keep[last] * top if rule.decay_first else top
            top = top if top.requires_grad else top.detach().requires_grad_()
            y = rule.structure.forward(_recording(inputs, [*at[:last], top]), k, len(at))
            loss = bias_loss(rule.bias, y, v, rule.p, threshold)
            error, gradient = torch.autograd.grad(
                loss.sum() / constant, [y, top], create_graph=outer, retain_graph=True
            )
            gradients = [gradient]
            if last:  # the error is carried down through the anchor's last matrix
                answer = rule.structure.forward(lambda i, x: x @ at[i], k, len(at))
                below = torch.autograd.grad(
                    answer, at[:last], grad_outputs=error, create_graph=outer, retain_graph=True
                )
                gradients = [*below, gradient]
    h = inputs[-1]
    if not outer:
        return [g.detach() for g in gradients], h.detach(), loss.detach()
    return gradients, h, loss


def _recording(inputs: list[Tensor], weights: Matrices):  # type: ignore[no-untyped-def]
    def linear(i: int, x: Tensor) -> Tensor:
        inputs.append(x)
        return x @ weights[i]

    return linear


def _norm(gradients: Matrices) -> Tensor:
    """`[B, H, 1]`: the norm over all matrices, without the infinite slope of a root at 0."""
    square = torch.stack([g.square().sum((-2, -1)) for g in gradients]).sum(0)
    return square.clamp(min=1e-30).sqrt()[..., None]


def _rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    weights: Matrices,
    momentum: Matrices,
    rule: Rule,
    initial: Matrices,
    valid: Tensor,
) -> tuple[Tensor, Surprise, Matrices, Matrices]:
    """Each row without the tokens that are none."""
    results = []
    for row in range(k.shape[0]):
        at, one = valid[row].nonzero()[:, 0], slice(row, row + 1)
        y, surprise, W, S = naive_memory(
            q[one][:, :, at],
            k[one][:, :, at],
            v[one][:, :, at],
            gates.map(lambda x: x[one][:, :, at]),  # noqa: B023
            [w[one] for w in weights],
            [s[one] for s in momentum],
            rule,
            initial=[w[one] for w in initial],
        )
        y = torch.zeros_like(v[one]).index_copy(2, at, y)
        spread = Surprise(*(torch.zeros_like(gates.step[one]).index_copy(2, at, x) for x in surprise))
        results.append((y, spread, W, S))
    ys, surprises, Ws, Ss = zip(*results, strict=True)
    return (
        torch.cat(ys),
        Surprise(*(torch.cat(x) for x in zip(*surprises, strict=True))),
        [torch.cat(x) for x in zip(*Ws, strict=True)],
        [torch.cat(x) for x in zip(*Ss, strict=True)],
    )
