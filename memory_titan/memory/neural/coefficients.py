"""How much of each token is in the weights at another: the gates of a stretch of tokens, multiplied up.

A stretch is c new tokens of one chunk, behind o tokens of the same chunk that came in earlier calls. With
b_t = a_1 ... a_t and m_t = eta_1 ... eta_t over the stretch, W and S standing at its beginning,

    W_t = b_t W + f_t S - sum_{i<=t} G[t,i] x_i^T d_i           S_t = m_t S - sum_{i<=t} M[t,i] x_i^T d_i
    f_t = sum_{j<=t} (b_t/b_j) m_j      G[t,i] = theta_i sum_{i<=j<=t} (b_t/b_j)(m_j/m_i)      M[t,i] = theta_i m_t/m_i

for every matrix, x_i its input at key i and d_i its delta. Tokens of earlier calls enter through how much of them
is in the weights and in the momentum by then. All ratios are exponentials of sums of log gates, never quotients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memory_titan.memory.neural.rule import LOG_FLOOR, FastWeights, Gates, Rule

BLOCK = 16


@dataclass
class Scalar:
    """One decay a token and head, momentum or none. `before`: as things stood before each token's own write."""

    b: Tensor  # [B, H, c], of the weights in the state
    G: Tensor  # [B, H, c, o + c]
    f: Tensor | None  # [B, H, c], of the momentum in the state
    b_before: Tensor
    f_before: Tensor | None
    G_before: Tensor
    M_end: Tensor | None  # [B, H, o + c]
    m_end: Tensor | None  # [B, H]
    muon: Tensor  # [B, H], Muon's step since the chunk's start

    @classmethod
    def multiply_up(
        cls, gates: Gates, state: FastWeights, old: int, positions: Tensor, rule: Rule, present: Tensor | None
    ) -> Scalar:
        """`positions` `[o + c]`: places in the chunk; `present` `[B, o + c]`: which hold a token (None: all)."""
        if rule.muon and rule.window == 1:
            return cls._for_muon(gates, state, old, rule)
        log_keep = gates.log_keep.clamp(min=LOG_FLOOR)
        theta, c = gates.step, gates.step.shape[2]
        b, L = log_keep.cumsum(-1).exp(), products(log_keep)
        b0, f0, m0, e0 = state.scale.unbind(-1)
        # Muon's step is the mean of the chunk's steps
        muon = e0 * b[..., -1] + (L[..., -1, :] * theta).sum(-1) / rule.anchor_every
        carried = state.coefficients[:, :, :old]
        f = M_end = m_end = None
        seen = b[..., None] * carried[..., None, :, 0]
        if gates.log_momentum is not None:
            log_momentum = gates.log_momentum.clamp(min=LOG_FLOOR)
            if present is not None:  # a slot without a token does not add its momentum to the weights once more
                L = L * present[:, None, None, old:]
            m, momenta = log_momentum.cumsum(-1).exp(), products(log_momentum)
            f = (L @ m[..., None])[..., 0]
            L = L @ momenta
            m_end = m[..., -1]
            seen = seen + f[..., None] * carried[..., None, :, 1]
            M_end = torch.cat([m_end[..., None] * carried[..., 1], momenta[..., -1, :] * theta], -1)
        if rule.window == 1:
            G = torch.cat([seen, L * theta[..., None, :]], -1) if old else L * theta[..., None, :]
        else:
            distance = positions[old:, None] - positions
            steps = theta[..., None] * ((distance >= 0) & (distance < rule.window))
            steps = steps if present is None else steps * present[:, None, None, :]
            G = L @ steps
            if old:
                G = G + torch.cat([seen, torch.zeros_like(L)], -1)
            if m_end is not None:
                pushed = (momenta[..., -1:, :] @ steps)[..., 0, :]
                pad = pushed.new_zeros(*pushed.shape[:2], c)
                M_end = pushed + torch.cat([m_end[..., None] * carried[..., 1], pad], -1)
        first = torch.cat([carried[..., 0], torch.zeros_like(theta)], -1)[..., None, :]
        G_before = torch.cat([first, G[..., :-1, :]], -2)
        f_before = None
        if f is not None:
            assert m_end is not None
            f = b * f0[..., None] + f * m0[..., None]
            f_before, m_end = _before(f, f0[..., None]), m_end * m0
        b = b * b0[..., None]
        b_before = _before(b, b0[..., None])
        if rule.decay_first:
            keep = log_keep.exp()
            b_before, G_before = b_before * keep, G_before * keep[..., None]
            f_before = None if f_before is None else f_before * keep
        return cls(b, G, f, b_before, f_before, G_before, M_end, m_end, muon)

    @classmethod
    def _for_muon(cls, gates: Gates, state: FastWeights, old: int, rule: Rule) -> Scalar:
        """Muon asks only what is there at the end: c numbers, not c by c, for its chunks may be thousands long."""
        assert gates.log_momentum is not None
        log_keep, log_momentum = (x.clamp(min=LOG_FLOOR) for x in (gates.log_keep, gates.log_momentum))
        b0, _, m0, e0 = state.scale.unbind(-1)
        b, m_end = log_keep.cumsum(-1).exp(), log_momentum.sum(-1).exp()
        muon = e0 * b[..., -1] + (_to_the_end(log_keep) * gates.step).sum(-1) / rule.anchor_every
        carried = m_end[..., None] * state.coefficients[:, :, :old, 1]
        M_end = torch.cat([carried, _to_the_end(log_momentum) * gates.step], -1)
        none, b = torch.zeros_like(M_end)[..., None, :], b * b0[..., None]
        f = torch.zeros_like(b)
        return cls(b, none, f, b, f, none, M_end, m_end * m0, muon)

    def carried(self, i: int, x: Tensor, state: FastWeights, before: bool = False) -> Tensor:
        """x times what the state brings into matrix i: `[B, H, c, out]`."""
        b, f = (self.b_before, self.f_before) if before else (self.b, self.f)
        y = b[..., None] * (x @ state.weights[i])
        return y if f is None else y + f[..., None] * (x @ state.momentum[i])

    def pairs(self, i: int, x: Tensor, inputs: Tensor, before: bool = False) -> Tensor:
        """Inner products of x_t with the tokens' inputs, each times how much of it is in the weights at t."""
        return (x @ inputs.mT) * (self.G_before if before else self.G)

    def finish(
        self, i: int, state: FastWeights, inputs: Tensor, deltas: Tensor, muon: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Matrix i and its momentum after the last token. With Muon the weights only decay here."""
        scale = self.b[..., -1, None, None]
        W, S = scale * state.weights[i], None
        if not muon:
            W = W - inputs.mT @ (self.G[..., -1, :, None] * deltas)
        if self.f is not None:
            assert self.M_end is not None and self.m_end is not None
            W = W if muon else W + self.f[..., -1, None, None] * state.momentum[i]
            S = self.m_end[..., None, None] * state.momentum[i] - inputs.mT @ (self.M_end[..., None] * deltas)
        return W, S

    def kept(self) -> tuple[Tensor, Tensor]:
        """`coefficients` `[B, H, o + c, 2]` and `scale` `[B, H, 4]` for the state after the last token."""
        g, zero = self.G[..., -1, :], torch.zeros_like(self.muon)
        if self.f is None or self.m_end is None or self.M_end is None:
            one = torch.ones_like(zero)
            coefficients, scale = [g, torch.zeros_like(g)], [self.b[..., -1], zero, one, self.muon]
        else:
            coefficients, scale = [g, self.M_end], [self.b[..., -1], self.f[..., -1], self.m_end, self.muon]
        return torch.stack(coefficients, -1), torch.stack(scale, -1)

    def aged(self, i: int, inputs: Tensor) -> Tensor:
        """The new tokens' inputs as the state keeps them."""
        return inputs


@dataclass
class Channel:
    """A decay for every input of every matrix, no momentum. The coefficient of a pair of tokens is then a vector over
    the inputs; inputs in the state are kept multiplied by theirs, so that of a token only its step is left."""

    log_keep: tuple[Tensor, ...]  # one a matrix, [B, H, c, in]
    b: tuple[Tensor, ...]  # likewise, of the weights and inputs in the state
    steps: Tensor  # [B, H, o + c]
    old: int
    decay_first: bool
    b0: tuple[Tensor, ...]  # one a matrix, [B, H, in]: at the stretch's beginning

    @classmethod
    def multiply_up(
        cls, gates: Gates, state: FastWeights, old: int, positions: Tensor, rule: Rule, present: Tensor | None
    ) -> Channel:
        """As `Scalar.multiply_up`."""
        sizes = [w.shape[2] for w in state.weights]
        log_keep = gates.log_keep.clamp(min=LOG_FLOOR)
        b = log_keep.cumsum(2).exp()
        steps = torch.cat([state.coefficients[:, :, :old, 0], gates.step], -1)
        return cls(
            log_keep.split(sizes, -1), b.split(sizes, -1), steps, old, rule.decay_first, state.scale.split(sizes, -1)
        )

    def _decay(self, i: int, before: bool) -> Tensor:
        if not before or self.decay_first:  # the present weights after the token's decay
            return self.b[i]
        return torch.cat([torch.ones_like(self.b[i][:, :, :1]), self.b[i][:, :, :-1]], 2)

    def carried(self, i: int, x: Tensor, state: FastWeights, before: bool = False) -> Tensor:
        """As `Scalar.carried`."""
        return (x * self._decay(i, before) * self.b0[i][:, :, None]) @ state.weights[i]

    def pairs(self, i: int, x: Tensor, inputs: Tensor, before: bool = False) -> Tensor:
        """As `Scalar.pairs`. New tokens in blocks: a block's ratios to all before it go through its first token, so
        that no factor exceeds 1; within a block the ratios are formed one by one."""
        new, c = inputs[:, :, self.old :], x.shape[2]
        sums = self.log_keep[i].cumsum(2)
        reading = sums
        if before and not self.decay_first:
            reading = torch.cat([torch.zeros_like(sums[:, :, :1]), sums[:, :, :-1]], 2)
        rows = []
        for at in range(0, c, BLOCK):
            rest = slice(at, min(c, at + BLOCK))
            here, size = reading[:, :, rest], rest.stop - at
            # row t may see i < t (before), or i <= t
            order = torch.arange(size, device=x.device)
            lower = order[:, None] > order if before else order[:, None] >= order
            ratio = here[:, :, :, None] - sums[:, :, None, rest]
            ratio = ratio.masked_fill(~lower[..., None], -torch.inf).exp()
            blocks = [(x[:, :, rest, None] * ratio * new[:, :, None, rest]).sum(-1)]
            if at:
                middle, passed = sums[:, :, at - 1 : at], slice(0, at)
                earlier = new[:, :, passed] * (middle - sums[:, :, passed]).exp()
                blocks.insert(0, (x[:, :, rest] * (here - middle).exp()) @ earlier.mT)
            rows.append(torch.cat([*blocks, x.new_zeros(*x.shape[:2], size, c - rest.stop)], -1))
        within = torch.cat(rows, 2)
        if self.old:
            within = torch.cat([(x * self._decay(i, before)) @ inputs[:, :, : self.old].mT, within], -1)
        return within * self.steps[..., None, :]

    def finish(
        self, i: int, state: FastWeights, inputs: Tensor, deltas: Tensor, muon: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `Scalar.finish`."""
        scale = self.b[i][:, :, -1] * self.b0[i]
        return scale[..., None] * state.weights[i] - self.aged(i, inputs).mT @ (self.steps[..., None] * deltas), None

    def kept(self) -> tuple[Tensor, Tensor]:
        """As `Scalar.kept`; scale `[B, H, n]`."""
        scale = torch.cat([b[:, :, -1] * b0 for b, b0 in zip(self.b, self.b0, strict=True)], -1)
        return torch.stack([self.steps, torch.zeros_like(self.steps)], -1), scale

    def aged(self, i: int, inputs: Tensor) -> Tensor:
        """The inputs, old and new, times what has decayed of each by the last token."""
        end = self.log_keep[i].flip(2).cumsum(2).flip(2) - self.log_keep[i]
        return torch.cat([inputs[:, :, : self.old] * self.b[i][:, :, -1:], inputs[:, :, self.old :] * end.exp()], 2)


def products(log_gate: Tensor) -> Tensor:
    """`[..., c]` -> `[..., c, c]`: exp of the sum over j in (i, t] at [t, i]; 0 above the diagonal.

    Each sum is built up by itself: the difference of two running sums would lose a large gate's digits after a shut
    one has put -60 into both.
    """
    c = log_gate.shape[-1]
    lower = torch.ones(c, c, dtype=torch.bool, device=log_gate.device).tril()
    sums = log_gate[..., :, None].expand(*log_gate.shape, c).masked_fill(~lower.tril(-1), 0.0).cumsum(-2)
    return sums.masked_fill(~lower, -torch.inf).exp()


def _to_the_end(log_gate: Tensor) -> Tensor:
    """`[..., c]`: exp of the sum over all later tokens."""
    later = torch.cat([log_gate[..., 1:], torch.zeros_like(log_gate[..., :1])], -1)
    return later.flip(-1).cumsum(-1).flip(-1).exp()


def _before(x: Tensor, first: Tensor) -> Tensor:
    """Shift by one along the last dimension: what stood before each token. first: `[..., 1]`."""
    return torch.cat([first, x[..., :-1]], -1)
