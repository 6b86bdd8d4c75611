"""MAC, memory as context: attention over a segment also sees what the memory answers to it (arXiv 2501.00663, 4.1).

segment --query--> memory, as the last segment left it --> h
[p, h, segment] -- causal attention --> y -- written, then read --> M(y)
segment + y (x) M(y)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_titan.memory.packing import Packing
from memory_titan.memory.state import MemoryState
from memory_titan.models.attention import rotary_steps, rotate
from memory_titan.models.titans.block import MEMORY_STATES, TitansBlock
from memory_titan.models.titans.config import TitansConfig
from memory_titan.models.titans.fusion import Fusion


@dataclass(frozen=True)
class MACState(MemoryState):
    """Of a `MACBlock`, in the middle of a segment.

    Attributes:
        memory: as of the last token; one.
        before: as it was where the segment began; one. Queries are put to this one.
        keys, values: of the segment's tokens so far, `[B, 2, H, segment, width]`: what was recalled for them, and they
            themselves; keys turned to their positions. 0 where none is yet.
        tokens: `[B]`, int64, tokens of the segment so far, less than `segment`.
    """

    memory: tuple[Any, ...] = field(metadata={"of": MEMORY_STATES})
    before: tuple[Any, ...] = field(metadata={"of": MEMORY_STATES})
    keys: Tensor
    values: Tensor
    tokens: Tensor


class MACBlock(TitansBlock):
    """Segment by segment, with n = norm(x) (eq. 21 to 25):

        h_t = M_before(W n_t)                         the memory as the last segment left it
        y_t = n_t + attention(n_t; p, h_<=t, n_<=t)   a token sees of h what belongs to itself and those before it
        x_t + y_t (x) M_t(y_t)                        M_t has written y up to and including y_t

    The paper writes a whole segment and reads from the result, which would tell a token of those after it: here the
    memory is read as it stands after each token. The residual sum within y is ours (`mac_residual`): what attention
    says at the start of training tells of no token in particular, and a memory that is written nothing else learns
    nothing. Positions are those of [p, h, segment], as the paper joins them.

    Args:
        config: of the model.
    """

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        width, heads = config.hidden_size, config.num_attention_heads
        self.heads, self.segment, self.residual = heads, config.segment, config.mac_residual
        self.query = nn.Linear(width, width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.steps = rotary_steps(width // heads, config.rotary_base)
        self.fusion = Fusion(width, config.fusion, config.rms_norm_eps)

    @torch.no_grad()
    def start(self) -> None:
        """Where the memory begins as an induction head, what is asked before attention is asked as after it."""
        if getattr(self.memory.config, "context", None) is not None:
            self.query.weight.copy_(self.memory.qkv.weight[: self.query.out_features])

    def initial_state(self, batch_size: int) -> MACState:
        """Before the first token."""
        memory = self.memory.initial_state(batch_size)
        width = self.norm.weight.shape[0] // self.heads
        empty = self.norm.weight.new_zeros(batch_size, 2, self.heads, self.segment, width)
        tokens = torch.zeros(batch_size, dtype=torch.long, device=empty.device)
        return MACState((memory,), (memory,), empty, empty, tokens)

    def mix(self, x: Tensor, state: MACState, mask: Tensor | None) -> tuple[Tensor, MACState]:
        """See the class."""
        if not x.shape[0] or not x.shape[1]:
            return x, state
        n = self.norm(x)
        begin, length = int(state.tokens.min()), x.shape[1]
        if mask is None and begin == int(state.tokens.max()):
            y, state = self._segments(n, None, state, begin)
            return x + y, state
        # Rows stand at different places of their segments: each is laid out on a grid from its own place on.
        packing = None if mask is None else Packing(mask)
        packed = n if packing is None else packing.pack(n)
        count = torch.full_like(state.tokens, length) if packing is None else packing.count
        column = (state.tokens - begin)[:, None] + torch.arange(length, device=x.device)
        columns = int((state.tokens - begin + count).max())
        wide = max(columns, int(column.max()) + 1)
        grid = n.new_zeros(x.shape[0], wide, x.shape[2])
        grid = grid.scatter(1, column[..., None].expand_as(packed), packed)[:, :columns]
        place = torch.arange(begin, begin + columns, device=x.device)
        valid = (place >= state.tokens[:, None]) & (place < (state.tokens + count)[:, None])
        y, state = self._segments(grid, valid, state, begin)
        y = F.pad(y, (0, 0, 0, wide - columns)).gather(1, column[..., None].expand_as(packed))
        return x + (y if packing is None else packing.unpack(y)), state

    def _segments(self, n: Tensor, valid: Tensor | None, state: MACState, begin: int) -> tuple[Tensor, MACState]:
        """One segment after the other.

        Args:
            n: `[B, T, dim]`, column `begin` of the first segment first.
            valid: `[B, T]`, bool, the tokens that there are, of each row one piece; None: all.
            state: from before.
            begin: tokens of the first segment that no row reads.
        """
        # All that does not ask the memory is made for the whole text, before the loop and behind it.
        asked, made = self.query(n), self.qkv(n)
        prefix = self._prefix_heads()
        ends = range(self.segment, begin + n.shape[1] + self.segment, self.segment)
        attended, remembered, at = [], [], 0
        for end in ends:
            stop = min(end - begin, n.shape[1])
            if stop == at:
                break
            given = n[:, at:stop], asked[:, at:stop], made[:, at:stop], None if valid is None else valid[:, at:stop]
            y, m, state = self._segment(*given, prefix, state, begin if not at else 0, stop == end - begin)
            attended.append(y)
            remembered.append(m)
            at = stop
        return self.fusion(torch.cat(attended, 1), torch.cat(remembered, 1)), state

    def _segment(
        self,
        n: Tensor,
        asked: Tensor,
        made: Tensor,
        valid: Tensor | None,
        prefix: tuple[Tensor, Tensor] | None,
        state: MACState,
        begin: int,
        full: bool,
    ) -> tuple[Tensor, Tensor, MACState]:
        """The next tokens of a segment, in its columns from `begin` on; `full`: up to its end.

        Args:
            n: `[B, T, dim]`, the tokens.
            asked: `[B, T, dim]`, what the memory is asked.
            made: `[B, T, 3 * dim]`, queries, keys and values.
            valid: see `_segments`.
            prefix: of `_prefix_heads`.
            state: from before.
            begin, full: see above.

        Returns:
            y, what the memory says to it, both `[B, T, dim]`, and the state.
        """
        length, dim = asked.shape[1:]
        h = self.memory.recall(asked, state.before[0], project=False)
        q, k, v = self._heads(made)
        recalled = self._heads(F.linear(h, self.qkv.weight[dim:]))
        place = torch.arange(begin, begin + length, device=q.device)[None]
        place = place if prefix is None else place + prefix[0].shape[2]
        q, k = rotate(place + self.segment, self.steps, q, k)
        (recalled[0],) = rotate(place, self.steps, recalled[0])
        keys, values = torch.stack([recalled[0], k], 1), torch.stack([recalled[1], v], 1)
        keys, values = (self._joined(*pair, valid, begin) for pair in ((state.keys, keys), (state.values, values)))
        y = self._attend(q, keys, values, prefix, begin)
        y = n + y if self.residual else y
        if valid is not None:
            y = torch.where(valid[..., None], y, 0.0)
        remembered, memory = self.memory(y, state.memory[0], valid)
        count = length if valid is None else valid.sum(1)
        return y, remembered, self._moved(state, memory, keys, values, count, full, valid)

    def _prefix_heads(self) -> tuple[Tensor, Tensor] | None:
        """Keys, turned to their positions, and values of the persistent tokens, `[1, H, P, width]`; None: none."""
        if (prefix := self.prefix()) is None:
            return None
        k, v = self._heads(F.linear(prefix, self.qkv.weight[prefix.shape[2] :]))
        return rotate(torch.arange(k.shape[2], device=k.device)[None], self.steps, k)[0], v

    def _heads(self, x: Tensor) -> list[Tensor]:
        """`[B, T, n * dim]` to n times `[B, H, T, width]`."""
        dim = self.norm.weight.shape[0]
        return list(x.unflatten(-1, (x.shape[-1] // dim, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0))

    def _joined(self, held: Tensor, new: Tensor, valid: Tensor | None, begin: int) -> Tensor:
        """The segment's keys, or values, up to these: those held, and new ones from column `begin` on."""
        if valid is None:
            return torch.cat([held[..., :begin, :].to(new.dtype), new], -2)
        held = held[..., : begin + new.shape[-2], :].to(new.dtype)
        return torch.where(F.pad(valid, (begin, 0))[:, None, None, :, None], F.pad(new, (0, 0, begin, 0)), held)

    def _attend(
        self, q: Tensor, keys: Tensor, values: Tensor, prefix: tuple[Tensor, Tensor] | None, begin: int
    ) -> Tensor:
        """Queries `[B, H, T, width]` of the columns from `begin` on; keys `[B, 2, H, begin + T, width]`; all turned."""
        place = torch.arange(keys.shape[-2], device=q.device)
        causal = place[begin:, None] >= place
        seen = [keys[:, 0], keys[:, 1]], [values[:, 0], values[:, 1]]
        sight = [causal, causal]
        if prefix is not None:
            for tensors, learned in zip(seen, prefix, strict=True):
                tensors.insert(0, learned.expand(len(q), -1, -1, -1))
            sight.insert(0, causal.new_ones(len(causal), prefix[0].shape[2]))
        mask = torch.cat(sight, 1)
        y = F.scaled_dot_product_attention(q, torch.cat(seen[0], 2), torch.cat(seen[1], 2), attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def _moved(
        self,
        state: MACState,
        memory: MemoryState,
        keys: Tensor,
        values: Tensor,
        count: int | Tensor,
        full: bool,
        valid: Tensor | None,
    ) -> MACState:
        """The state after a piece of a segment; where the segment is full, the next one begins."""
        room = (0, 0, 0, self.segment - keys.shape[-2])
        dtype = state.keys.dtype
        tokens = state.tokens + count
        if valid is None:
            if full:
                empty = torch.zeros_like(state.keys)
                return MACState((memory,), (memory,), empty, empty, torch.zeros_like(tokens))
            keys, values = F.pad(keys, room).to(dtype), F.pad(values, room).to(dtype)
            return MACState((memory,), state.before, keys, values, tokens)
        done = tokens == self.segment
        place = torch.arange(self.segment, device=keys.device)
        kept = ((place < tokens[:, None]) & ~done[:, None])[:, None, None, :, None]
        read = valid.any(1)[:, None, None, None, None]  # the others ended in an earlier segment

        def held(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(read, torch.where(kept, F.pad(new, room).to(dtype), 0.0), old)

        before = state.before[0].reset(done, memory)
        return dataclasses.replace(
            state,
            memory=(memory,),
            before=(before,),
            keys=held(keys, state.keys),
            values=held(values, state.values),
            tokens=torch.where(done, 0, tokens),
        )
