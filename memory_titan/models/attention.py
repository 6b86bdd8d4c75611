"""`WindowAttention`: causal attention over a sliding window, or over everything, called as a memory is.

Positions are rotary (arXiv 2104.09864) and count valid tokens. Angles are kept in integers, 2^64 to a turn, that wrap
around as angles do: two tokens n apart differ by exactly n steps, at position 10 and at position 10 million.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_titan.memory.finite import valid_tokens
from memory_titan.memory.packing import Packing
from memory_titan.memory.state import MemoryState

TURN = 2**64


def rotary_steps(width: int, base: float) -> Tensor:
    """By how much each pair of coordinates turns from one position to the next: `[width / 2]`, int64, `TURN` a turn."""
    steps = [base ** (-2 * pair / width) / (2 * math.pi) for pair in range(width // 2)]
    return torch.tensor([round(step * TURN) for step in steps], dtype=torch.long, device="cpu")


def rotate(positions: Tensor, steps: Tensor, *heads: Tensor) -> list[Tensor]:
    """Each of `heads`, `[B, H, T, width]`, its pairs of coordinates turned.

    Args:
        positions: `[B or 1, T]`, int64.
        steps: of `rotary_steps`.
        *heads: queries, keys.
    """
    dtype = torch.float64 if heads[0].dtype == torch.float64 else torch.float32
    turns = positions[:, None, :, None] * steps.to(positions.device)  # wraps around: whole turns fall away
    angle = turns.to(dtype) * (2 * math.pi / TURN)
    cos, sin = angle.cos(), angle.sin()
    turned = []
    for x in heads:
        a, b = x.to(dtype).chunk(2, -1)
        turned.append(torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype))
    return turned


@dataclass(frozen=True)
class AttentionState(MemoryState):
    """The keys and values that later tokens may still see, each row's to the right; 0 in front of those of short rows.

    In the dtype of the layer's weights. With a window there are always `window - 1` of them, so that the size does not
    depend on how much was read. Without one it does: full attention forgets nothing.

    Attributes:
        keys: `[B, heads, S, dim / heads]`, rotated to their positions.
        values: `[B, heads, S, dim / heads]`.
        tokens: `[B]`, int64, tokens read so far: the position of the next one. The last min(tokens, S) keys count.
    """

    keys: Tensor
    values: Tensor
    tokens: Tensor

    def reset(self, rows: Tensor | Sequence[int], initial: AttentionState) -> AttentionState:
        """See `MemoryState.reset`; keys that have grown beyond the initial ones become empty slots."""
        pad = (0, 0, self.keys.shape[2] - initial.keys.shape[2], 0)
        initial = dataclasses.replace(initial, keys=F.pad(initial.keys, pad), values=F.pad(initial.values, pad))
        return super().reset(rows, initial)


class WindowAttention(nn.Module):
    """Causal multi-head attention with rotary positions.

        attention = WindowAttention(dim=256, heads=4, window=128)
        y, state = attention(x)                # x, y: [batch, time, dim]
        y, state = attention(x_next, state)    # goes on where it stopped

    A token sees itself and the `window - 1` tokens before it. That costs O(T * window) time and memory.

    Args:
        dim: width of x and y.
        heads: divides dim into an even width.
        window: tokens seen; None: all.
        rotary_base: the slowest pair of coordinates turns about once in `2 pi * rotary_base` tokens.

    Raises:
        ValueError: one of these cannot be.
    """

    def __init__(self, dim: int, heads: int, window: int | None = None, rotary_base: float = 10_000.0) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads or (dim // heads) % 2:
            raise ValueError(f"dim / heads must be an even number (rotary positions turn pairs); got {dim} / {heads}")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1, or None for full attention; got {window}")
        if not rotary_base >= 1:
            raise ValueError(f"rotary_base must be at least 1; got {rotary_base}")
        self.dim, self.heads, self.window, self.width = dim, heads, window, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        # No buffer: nothing that a checkpoint, a meta device or a change of dtype could spoil.
        self.steps = rotary_steps(self.width, rotary_base)

    def initial_state(self, batch_size: int) -> AttentionState:
        """The state before the first token, for `batch_size` rows."""
        slots = 0 if self.window is None else self.window - 1
        empty = self.qkv.weight.new_zeros(batch_size, self.heads, slots, self.width)
        tokens = torch.zeros(batch_size, dtype=torch.long, device=empty.device)
        return AttentionState(empty, empty, tokens)

    def forward(
        self,
        x: Tensor,
        state: AttentionState | None = None,
        mask: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """Each token's mixture of what it sees.

        Args:
            x: `[B, T, dim]`.
            state: where to go on; None: at the beginning.
            mask: `[B, T]`, bool or 0/1; tokens at False change nothing and have y = 0. On either side, or within.
            prefix: `[B, P, dim]` or `[1, P, dim]`, tokens that every token sees beside its window, wherever it stands.
                They have no position and are not kept: give them to each call.

        Returns:
            `(y, state)`, y `[B, T, dim]` of x's dtype.

        Raises:
            ValueError: wrong shapes, or the state of another layer.
        """
        self._check(x, state, prefix)
        start = self.initial_state(x.shape[0]) if state is None else state
        if not x.shape[1]:
            return torch.zeros_like(x), start
        mask = valid_tokens(x, mask, "ignore", 0)
        packing = None if mask is None else Packing(mask)
        x = x if packing is None else packing.pack(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4)
        plain = q
        q, k = self._rotate(start.tokens, q, k)
        # Nothing was read: its empty slots need no looking at.
        keys = k if state is None else torch.cat([state.keys.to(k.dtype), k], 2)
        values = v if state is None else torch.cat([state.values.to(v.dtype), v], 2)
        if prefix is None:
            y = self._windows(q, keys, values, start.tokens, None)
        else:
            y = self._with_prefix(q, plain, keys, values, start.tokens, prefix)
        y = self.out(y.transpose(1, 2).flatten(2)).to(x.dtype)
        new = self._keep(keys, values, start.tokens, packing, x.shape[1])
        return y if packing is None else packing.unpack(y), new

    def _rotate(self, tokens: Tensor, *heads: Tensor) -> list[Tensor]:
        """`[B, H, T, width]`, pairs of coordinates turned by their positions, counted on from `tokens` `[B]`."""
        positions = tokens[:, None] + torch.arange(heads[0].shape[2], device=tokens.device)
        return rotate(positions, self.steps, *heads)

    def _with_prefix(
        self, q: Tensor, plain: Tensor, keys: Tensor, values: Tensor, tokens: Tensor, prefix: Tensor
    ) -> Tensor:
        """Twice the width, so that one softmax goes over both: turned queries meet turned keys in the first half,
        and the queries as they are meet the prefix in the second, at no distance."""
        k, v = F.linear(prefix, self.qkv.weight[self.dim :]).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        left, right = (0, self.width), (self.width, 0)
        seen = F.pad(k, right), F.pad(v, left)
        y = self._windows(torch.cat([q, plain], -1), F.pad(keys, left), F.pad(values, left), tokens, seen)
        return y[..., : self.width]

    def _windows(
        self, q: Tensor, keys: Tensor, values: Tensor, tokens: Tensor, prefix: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Attention of q `[B, H, T, d]` over keys `[B, H, past + T, d]`, the slots of the state in front."""
        length, past = q.shape[2], keys.shape[2] - q.shape[2]
        window = past + length if self.window is None else self.window
        first = min(length, window)
        # The first queries may see slots of the state, of which some are empty.
        y = self._attend(
            q[:, :, :first],
            keys[:, :, : past + first],
            values[:, :, : past + first],
            _first_mask(tokens, first, past, window) if past else None,
            prefix,
        )
        if first == length:
            return y
        # The others come in blocks of `window` queries, each with its own keys and the `window - 1` before them. All
        # blocks are alike; the last is filled up.
        B, H, _, d = q.shape
        rest = length - first
        blocks = -(-rest // window)
        fill = (0, 0, 0, blocks * window - rest)
        queries = F.pad(q[:, :, first:], fill).unflatten(2, (blocks, window)).transpose(1, 2).flatten(0, 1)

        def overlapping(x: Tensor) -> Tensor:
            x = F.pad(x[:, :, past + first - (window - 1) :], fill).unfold(2, 2 * window - 1, window)
            return x.permute(0, 2, 1, 4, 3).flatten(0, 1)

        if prefix is not None:
            k, v = (x.expand(B, *x.shape[1:]).repeat_interleave(blocks, 0) for x in prefix)
            prefix = k, v
        # Query t stands at key t + window - 1.
        age = torch.arange(window - 1, 2 * window - 1, device=q.device)[:, None]
        age = age - torch.arange(2 * window - 1, device=q.device)
        others = self._attend(
            queries, overlapping(keys), overlapping(values), ((age >= 0) & (age < window))[None, None], prefix
        )
        others = others.unflatten(0, (B, blocks)).transpose(1, 2).reshape(B, H, blocks * window, d)
        return torch.cat([y, others[:, :, :rest]], 2)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, prefix: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Softmax attention of q `[N, H, T, d]` over k, v `[N, H, S, d]`; mask None: causal, with S = T."""
        if prefix is not None:
            if mask is None:
                mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()[None, None]
            before = [x.expand(len(q), *x.shape[1:]) for x in prefix]
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
            mask = F.pad(mask, (before[0].shape[2], 0), value=True)
        scale = 1 / math.sqrt(self.width)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)

    def _keep(
        self, keys: Tensor, values: Tensor, tokens: Tensor, packing: Packing | None, length: int
    ) -> AttentionState:
        """The state after packed tokens, of `[B, H, past + T, width]`. The same however the tokens were cut."""
        count = torch.full_like(tokens, length) if packing is None else packing.count
        tokens, past, dtype = tokens + count, keys.shape[2] - length, self.qkv.weight.dtype
        if self.window is not None:
            slots = self.window - 1
        else:
            slots = past + length if packing is None else int(tokens.max())
        if packing is None:
            missing = max(0, slots - keys.shape[2])
            kept = [F.pad(x[:, :, x.shape[2] - (slots - missing) :], (0, 0, missing, 0)) for x in (keys, values)]
            if not missing and (slots < keys.shape[2] or not past):
                kept = [x.clone() for x in kept]  # so that nothing else of what they are views of stays in memory
            return AttentionState(kept[0].to(dtype), kept[1].to(dtype), tokens)
        slot = torch.arange(slots, device=tokens.device)
        full = (slot >= slots - tokens[:, None])[:, None, :, None]
        index = (past + count - slots)[:, None] + slot
        index = index.clamp(min=0)[:, None, :, None].expand(-1, self.heads, -1, self.width)
        kept = [torch.where(full, x.gather(2, index), 0.0) for x in (keys, values)]
        return AttentionState(kept[0].to(dtype), kept[1].to(dtype), tokens)

    def _check(self, x: Tensor, state: AttentionState | None, prefix: Tensor | None) -> None:
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(f"expected x of shape [batch, time, {self.dim}]; got {list(x.shape)}")
        if state is not None:
            if state.batch_size != x.shape[0]:
                raise ValueError(f"the state has {state.batch_size} rows and x has {x.shape[0]}")
            slots = state.keys.shape[2] if self.window is None else self.window - 1
            if state.keys.shape[1:] != (expected := torch.Size([self.heads, slots, self.width])):
                raise ValueError(
                    f"the state is that of another layer: its keys are {list(state.keys.shape[1:])} a row, and "
                    f"{list(expected)} by this layer's heads, window and width"
                )
        if prefix is not None and (
            prefix.dim() != 3 or prefix.shape[2] != self.dim or prefix.shape[0] not in (1, x.shape[0])
        ):
            raise ValueError(
                f"expected a prefix of shape [{x.shape[0]} or 1, tokens, {self.dim}]; got {list(prefix.shape)}"
            )


def _first_mask(tokens: Tensor, length: int, past: int, window: int) -> Tensor:
    """`[B, 1, length, past + length]`, bool: full slots and tokens of the call, causal, within the window."""
    key = torch.arange(past + length, device=tokens.device)
    age = torch.arange(past, past + length, device=tokens.device)[:, None] - key
    full = key >= past - tokens[:, None]
    return (full[:, None] & (age >= 0) & (age < window))[:, None]
