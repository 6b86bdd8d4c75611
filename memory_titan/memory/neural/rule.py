"""What a neural memory computes (`Rule`), what drives it (`Gates`), what it carries on (`FastWeights`).

Nothing of the update itself is here: `naive.py` and `chunk.py` each state it on their own, so that the tests
that hold them together compare two derivations and not one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from memory_titan.memory.neural.bias import Bias
from memory_titan.memory.neural.retention import Retention
from memory_titan.memory.neural.structure import Structure
from memory_titan.memory.state import MemoryState
from memory_titan.memory.surprise import Surprise

InnerGradient = Literal["exact", "anchored", "token"]
LOG_FLOOR = -60.0  # exp(-60) = 9e-27: a gate that is shut, without an infinity that would spoil gradients


@dataclass(frozen=True)
class Rule:
    """The four choices of MIRAS, and where in a chunk things are taken.

    Attributes:
        structure: the network whose weights are the memory.
        bias: the loss; `p` is the power of "lp".
        retention: what holds the weights; `q` is the norm of "lq". Decay itself comes as a gate.
        muon: the chunk's momentum is made orthogonal before it is added, once a chunk.
        window: tokens whose losses every step descends on (the Omega rule); it ends at the chunk's start.
        chunk_size: tokens from anchor to anchor.
        gradient: where the inner gradient is taken: "anchored" at the weights of the chunk's start; "exact" in
            the last matrix at its present weights, below at the anchor; "token" everywhere at the present weights.
        read: "token": after the token's own write; "chunk": at the chunk's start.
        decay_first: the exact gradient is taken after the token's decay (Gated DeltaNet), not before (Titans).
        step_norm: divide the step by 1 + |h|^2, h the input of the last matrix.
        lower_step: the step of all matrices below the last, relative to its own.
        reset_every: tokens after which the weights go back to the initial ones; 0: never.
        checkpoint: in training, chunks between two states that are kept; the rest is computed again. 0: keep all.
    """

    structure: Structure = field(default_factory=Structure)
    bias: Bias = "l2"
    p: float = 3.0
    retention: Retention = "scalar"
    q: float = 4.0
    muon: bool = False
    window: int = 1
    chunk_size: int = 64
    gradient: InnerGradient = "exact"
    read: Literal["token", "chunk"] = "token"
    decay_first: bool = False
    step_norm: bool = True
    lower_step: float = 0.1
    reset_every: int = 0
    checkpoint: int = 0

    @property
    def anchor_every(self) -> int:
        """Tokens from anchor to anchor; the token-by-token gradient is a chunk of one."""
        return 1 if self.gradient == "token" else self.chunk_size

    @property
    def period(self) -> int:
        """Tokens after which everything about a position repeats: what `FastWeights.position` counts to."""
        return self.reset_every or self.anchor_every


def refusal(rule: Rule, momentum: bool) -> str | None:
    """Why this combination cannot be, or None."""
    residual = rule.structure.kind == "residual"
    if rule.gradient == "exact" and rule.bias in ("lp", "huber"):
        return (
            f'rule="exact" needs bias "l2" or "dot": the errors of a chunk solve a linear system only where the '
            f"gradient is linear in the error, and that of {rule.bias!r} is not. "
            'Use rule="anchored" or rule="token".'
        )
    if rule.gradient == "exact" and residual:
        return (
            'rule="exact" needs an answer that is linear in the last matrix; structure "residual" puts a norm behind '
            'it. Use rule="anchored" or rule="token".'
        )
    if rule.gradient == "exact" and rule.window > 1:
        return (
            'rule="exact" with window > 1: each token would need its error at every step of the window, not one; no '
            'triangular system gives those. Use rule="anchored".'
        )
    if rule.gradient == "token" and rule.window > 1:
        return 'window > 1 ends at the chunk\'s start, and rule="token" is a chunk of one. Use rule="anchored".'
    if rule.retention == "channel" and momentum:
        return (
            'retention "channel" with momentum does not separate: the product of two decays, one by channel and one '
            "not, summed over the steps between, is no longer a coefficient of token pairs. "
            'Use algorithm="descent", or retention "scalar".'
        )
    if rule.retention == "channel" and rule.window > 1:
        return 'retention "channel" has no form with window > 1. Use retention "scalar".'
    if rule.read == "token" and rule.retention in ("kl", "norm"):
        return (
            f"retention {rule.retention!r} makes new weights of what was accumulated, by a function that is not "
            'linear; reading after every token would need the weights of every token. Use read="chunk".'
        )
    if rule.gradient == "exact" and rule.retention in ("kl", "norm"):
        return (
            f'rule="exact" needs weights that are linear in what was written; retention {rule.retention!r} is not. '
            'Use rule="anchored".'
        )
    if rule.muon and (rule.read == "token" or rule.gradient != "anchored"):
        return (
            "Muon makes one orthogonal step of a whole chunk, so within a chunk there are no weights of a token: it "
            'needs read="chunk" and rule="anchored".'
        )
    if rule.decay_first and rule.gradient != "exact":
        return 'decay_first speaks of the present weights; at the anchor there is no such thing. Use rule="exact".'
    if rule.reset_every % rule.anchor_every:
        return f"reset_every must be a multiple of the chunk, {rule.anchor_every}; got {rule.reset_every}"
    return None


@dataclass(frozen=True)
class Gates:
    """What a token decides about its write. T tokens; all but `step` and `log_keep` may be absent.

    Attributes:
        step: `[B, H, T]`, theta.
        log_keep: `[B, H, T]`, log of a = 1 - alpha, at most 0, below -60 counted as -60. With retention "channel"
            `[B, H, T, n]`, one for every input of every matrix, in order.
        log_momentum: `[B, H, T]`, log of eta, likewise; None: no momentum.
        threshold: `[B, H, T]`, of the Huber loss.
        context: `[B, H, T]`, the weight of the token's loss in every window that it is in; None: 1.
    """

    step: Tensor
    log_keep: Tensor
    log_momentum: Tensor | None = None
    threshold: Tensor | None = None
    context: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Gates:
        """`function` of every tensor that is there."""
        rest = (self.log_momentum, self.threshold, self.context)
        return Gates(function(self.step), function(self.log_keep), *(None if x is None else function(x) for x in rest))


@dataclass(frozen=True)
class FastWeights(MemoryState):
    """What a memory has written, and what going on inside a chunk takes. A *frame* is a chunk's place for its tokens.

    The present weights of an open chunk are not formed; they are those of its start plus the chunk's tokens, kept as
    inputs and deltas, unless the chunk is so long that the weights themselves are smaller. `present` forms them.

    Attributes:
        weights: one tensor a matrix, `[B, H, in, out]`, at the open chunk's start; for long chunks, present.
        momentum: the same shapes; empty where the rule has none.
        anchor: for long chunks the weights at the chunk's start; else empty.
        inputs: one a matrix, `[B, H, chunk_size - 1, in]`, what each token of the open chunk put into it; 0 beyond.
        deltas: likewise `[B, H, chunk_size - 1, out]`, the gradient there; the step is in the coefficients.
        coefficients: `[B, H, chunk_size - 1, 2]`, how much of each token is in the weights and in the momentum.
        scale: `[B, H, 4]`, how much of `weights` and of `momentum` is in the present weights, of `momentum` in the
            present momentum, and Muon's step so far. With channel-wise decay `[B, H, n]`, the first of these.
        position: `[B]`, int64, tokens since the last reset, or since the chunk's start where there are no resets.
    """

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    anchor: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    coefficients: Tensor
    scale: Tensor
    position: Tensor

    @classmethod
    def start(cls, weights: tuple[Tensor, ...], momentum: bool, rule: Rule) -> FastWeights:
        """The state at a chunk's start. weights: `[B, H, in, out]` each."""
        first = weights[0]
        B, H = first.shape[:2]
        capacity = rule.anchor_every - 1
        ins, outs = [w.shape[2] for w in weights], [w.shape[3] for w in weights]
        # Measured in numbers: below twice the weights, copying tokens is cheaper than writing weights at every token.
        long = capacity * sum(ins + outs) > 2 * sum(w.shape[2] * w.shape[3] for w in weights)
        merged = long and rule.window == 1
        kept = 0 if merged else capacity
        channel = rule.retention == "channel"
        scale = first.new_ones(B, H, sum(ins)) if channel else first.new_tensor([1.0, 0, 1, 0]).expand(B, H, 4)
        return cls(
            weights,
            tuple(torch.zeros_like(w) for w in weights) if momentum else (),
            weights if merged else (),
            () if merged else tuple(first.new_zeros(B, H, kept, n) for n in ins),
            () if merged else tuple(first.new_zeros(B, H, kept, n) for n in outs),
            first.new_zeros(B, H, kept, 2),
            scale,
            torch.zeros(B, dtype=torch.long, device=first.device),
        )


def surprise_of(loss: Tensor, inputs: list[Tensor], deltas: list[Tensor], step: Tensor, lower_step: float) -> Surprise:
    """From each matrix's inputs and true deltas, `[B, H, T, n]`, and the step as it is taken, `[B, H, T]`."""
    norms = [safe_norm(x) * safe_norm(d) for x, d in zip(inputs, deltas, strict=True)]
    moved = [lower_step * norm for norm in norms[:-1]] + norms[-1:]
    return Surprise(loss, safe_norm(torch.stack(norms, -1)), step * safe_norm(torch.stack(moved, -1)))


def flush_small(x: Tensor, floor: float = 1e-30) -> Tensor:
    """`x` with magnitudes under `floor` set to zero.

    A state that decays for long passes through the denormal numbers, on which CPUs are many times slower.
    """
    return torch.where(x.abs() < floor, 0.0, x)


def safe_norm(x: Tensor) -> Tensor:
    """The norm over the last dimension, which does not overflow where it is itself in range, with a gradient at 0."""
    top = x.detach().abs().amax(-1).clamp(min=1e-30)
    return top * (x / top[..., None]).square().sum(-1).clamp(min=1e-30).sqrt()
