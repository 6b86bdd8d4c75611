"""The layers of the baselines: a transformer block and a recurrent one. Both are called as a memory is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from memory_titan.memory.finite import valid_tokens
from memory_titan.memory.packing import Packing
from memory_titan.memory.state import MemoryState
from memory_titan.models.attention import AttentionState, WindowAttention
from memory_titan.models.config import FEED_FORWARD

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class FeedForward(nn.Module):
    """The part of a block that looks at one token at a time: SwiGLU (arXiv 2002.05202), or GELU.

    Args:
        dim: width of x and y.
        inner: width within.
        kind: one of `FEED_FORWARD`.
    """

    def __init__(self, dim: int, inner: int, kind: str = "swiglu") -> None:
        super().__init__()
        if kind not in FEED_FORWARD:
            raise ValueError(f"there is no feed-forward {kind!r}; there are {', '.join(FEED_FORWARD)}")
        self.kind = kind
        self.up = nn.Linear(dim, 2 * inner if kind == "swiglu" else inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` to `[..., dim]`."""
        if self.kind == "gelu":
            return self.down(F.gelu(self.up(x)))
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class TransformerBlock(nn.Module):
    """h = x + attention(norm(x));  y = h + feed_forward(norm(h)). Its state is its attention's.

    Args:
        dim: width of x and y.
        heads, window, rotary_base: see `WindowAttention`.
        inner: width of the feed-forward.
        feed_forward: one of `FEED_FORWARD`.
        eps: of the norms.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        inner: int,
        window: int | None = None,
        rotary_base: float = 10_000.0,
        feed_forward: str = "swiglu",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, eps=eps)
        self.attention = WindowAttention(dim, heads, window, rotary_base)
        self.feed_forward_norm = nn.RMSNorm(dim, eps=eps)
        self.feed_forward = FeedForward(dim, inner, feed_forward)

    def initial_state(self, batch_size: int) -> AttentionState:
        """The state before the first token, for `batch_size` rows."""
        return self.attention.initial_state(batch_size)

    def forward(
        self,
        x: Tensor,
        state: AttentionState | None = None,
        mask: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """Arguments and errors as in `WindowAttention.forward`; the prefix goes through the attention's norm as x does.

        Returns:
            `(y, state)`, y `[B, T, dim]`, 0 where the mask excludes.
        """
        prefix = None if prefix is None else self.attention_norm(prefix)
        mixed, state = self.attention(self.attention_norm(x), state, mask, prefix)
        h = x + mixed
        y = h + self.feed_forward(self.feed_forward_norm(h))
        return y if mask is None else torch.where(mask.bool()[..., None], y, 0.0), state


@dataclass(frozen=True)
class RecurrentState(MemoryState):
    """What a `RecurrentBlock` carries on, in the dtype of its weights.

    Attributes:
        hidden: `[B, dim]`, h.
        cell: `[B, dim]`, c of an LSTM; `[B, 0]` with a GRU, which has none.
    """

    hidden: Tensor
    cell: Tensor


class RecurrentBlock(nn.Module):
    """y = x + cell(norm(x)), the cell an LSTM or a GRU of one layer.

    Args:
        dim: width of x, y and of the cell.
        cell: one of `CELLS`.
        eps: of the norm.
    """

    def __init__(self, dim: int, cell: str = "lstm", eps: float = 1e-6) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"there is no cell {cell!r}; there are {', '.join(CELLS)}")
        self.dim = dim
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.cell = CELLS[cell](dim, dim, batch_first=True)

    def initial_state(self, batch_size: int) -> RecurrentState:
        """The state before the first token, for `batch_size` rows."""
        weight = self.norm.weight
        cells = self.dim if isinstance(self.cell, nn.LSTM) else 0
        return RecurrentState(weight.new_zeros(batch_size, self.dim), weight.new_zeros(batch_size, cells))

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """One step of the cell a token.

        Args:
            x: `[B, T, dim]`.
            state: where to go on; None: the initial state.
            mask: `[B, T]`, bool or 0/1; tokens at False change nothing and have y = 0. On either side, or within.

        Returns:
            `(y, state)`, y `[B, T, dim]`.

        Raises:
            ValueError: wrong shapes, or the state of another layer.
        """
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(f"expected x of shape [batch, time, {self.dim}]; got {list(x.shape)}")
        state = self.initial_state(x.shape[0]) if state is None else state
        cells = self.dim if isinstance(self.cell, nn.LSTM) else 0
        if state.hidden.shape != (x.shape[0], self.dim) or state.cell.shape != (x.shape[0], cells):
            raise ValueError(
                f"the state is of another size: hidden {list(state.hidden.shape)}, cell {list(state.cell.shape)}; "
                f"this layer and x want {[x.shape[0], self.dim]} and {[x.shape[0], cells]}"
            )
        if not x.shape[1]:
            return torch.zeros_like(x), state
        mask = valid_tokens(x, mask, "ignore", 0)
        if mask is None:
            y, new = self._run(self.norm(x), state, None)
            return x + y, new
        packing = Packing(mask)
        x = packing.pack(x)
        y, new = self._run(self.norm(x), state, packing.count)
        return packing.unpack(x + y), new

    def _run(self, x: Tensor, state: RecurrentState, count: Tensor | None) -> tuple[Tensor, RecurrentState]:
        """The cell over x `[B, T, dim]`; of each row its first `count` tokens."""
        before = state.hidden[None], state.cell[None]
        hidden = before if isinstance(self.cell, nn.LSTM) else before[0]
        if count is None:
            y, last = self.cell(x, hidden)
        else:
            # It takes no empty rows: those read one token, and stay as they were.
            lengths = count.clamp(min=1).cpu()
            packed, last = self.cell(pack_padded_sequence(x, lengths, True, enforce_sorted=False), hidden)
            y = pad_packed_sequence(packed, True, total_length=x.shape[1])[0]
        h, c = last if isinstance(self.cell, nn.LSTM) else (last, before[1])
        if count is not None:
            read = (count > 0)[:, None]
            h, c = torch.where(read, h, before[0]), torch.where(read, c, before[1])
        return y, RecurrentState(h[0].to(state.hidden.dtype), c[0].to(state.cell.dtype))
