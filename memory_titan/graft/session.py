"""What a grafted model carries from call to call: the memories, and the keys and values that attention may still see.

`MemorySession` is the cache that Hugging Face's `generate` is given as `past_key_values`. All it holds is one immutable
`SessionState`; a call leaves a new one, or, if it fails, the old one. With an attention window its size is bounded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from memory_titan.memory.neural.layer import NeuralMemoryState
from memory_titan.memory.slots.layer import MemoryBankState
from memory_titan.memory.state import MemoryState

CALL = "memory_call"  # the keyword under which a `Call` reaches the layers


@dataclass(frozen=True)
class SessionState(MemoryState):
    """A session after the tokens read so far.

    Attributes:
        tokens: `[B]`, int64, tokens read, padding not counted: the position of the next one.
        columns: `[B]`, int64, the same in all rows: tokens read, padding counted.
        positions: `[B, K]`, int64, of the tokens whose keys are kept, padding in front of them: -1. K is the longest of
            the keys; shorter ones are the last of them.
        keys, values: one a layer of the model, `[B, heads, at most sinks + window - 1, width]`, in the model's dtype.
        memories: one a grafted layer.
    """

    tokens: Tensor
    columns: Tensor
    positions: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    memories: tuple[NeuralMemoryState, ...] = field(metadata={"of": NeuralMemoryState})


@dataclass(frozen=True)
class SlotSessionState(SessionState):
    """Of a graft of `memory_kind="slots"`."""

    memories: tuple[MemoryBankState, ...] = field(metadata={"of": MemoryBankState})  # type: ignore[assignment]


SESSIONS: dict[str, type[SessionState]] = {"neural": SessionState, "slots": SlotSessionState}  # by the graft's kind


class Call:
    """One call of the decoder: what its layers are given, and what they leave.

    Layers find it among their keyword arguments. So it is right for two threads at once, and for a layer that is run
    again in the backward pass: it then sees the state that it saw before. No dataclass: FSDP would hand each layer a
    copy of one, and what they leave would be lost.

    Attributes:
        before: the session's state; None: a whole text by itself, nothing is carried on.
        mask: `[B, T]`, bool.
        positions: `[B, T]`, int64, of each token; -1 for padding.
        padded: whether the mask excludes anything.
        gaps: whether there is padding among what is kept or in the call.
        session: to be moved on.
        lower: `[B, T, hidden]`, what the first grafted layer is given, where it is known already.
        tokens: `[B, T, hidden]`, embeddings, where something is made of them.
        answers: what each layer's memory answered, `[B, T, hidden]`.
        gates: `[B, T, 1]`, by grafted layer.
        memories: by grafted layer.
        keys: by layer, keys and values that are kept.
        near: how sinks are scored, where that is not where they are: a `graft.sinks.NearSinks`.
    """

    def __init__(
        self,
        before: SessionState | None,
        mask: Tensor,
        positions: Tensor,
        padded: bool,
        gaps: bool = False,
        session: MemorySession | None = None,
        lower: Tensor | None = None,
    ) -> None:
        self.before, self.mask, self.positions = before, mask, positions
        self.padded, self.gaps, self.session, self.lower = padded, gaps, session, lower
        self.tokens: Tensor | None = None
        self.answers: dict[int, Tensor] = {}
        self.gates: dict[int, Tensor] = {}
        self.memories: dict[int, Any] = {}
        self.keys: dict[int, tuple[Tensor, Tensor]] = {}
        self.near: Any = None

    def seen(self, kept: int) -> Tensor:
        """`[B, kept + T]`, positions of the last `kept` tokens before the call and of its own; -1 for padding."""
        if self.before is None or not kept:
            return self.positions
        before = self.before.positions
        return torch.cat([before[:, before.shape[1] - kept :], self.positions], 1)

    def keep(self, x: Tensor, kept: int, length: int, sinks: int) -> Tensor:
        """What is to be kept of `[B, heads, kept + T, width]` or `[B, kept + T]`: each row's last tokens, no padding.

        Args:
            x: of the tokens in `seen(kept)`.
            kept: see there.
            length: columns to keep. Rows with fewer tokens have padding in front.
            sinks: so many of these for each row's first tokens.
        """
        dim = 1 if x.dim() == 2 else 2
        first, sinks = x.shape[dim] - length, min(sinks, length)
        if not self.gaps:
            # a copy, so that what falls out of the window does not stay in memory
            parts = x.narrow(dim, 0, sinks), x.narrow(dim, first + sinks, length - sinks)
            return torch.cat(parts, dim) if first else x
        there = self.seen(kept) >= 0
        order = torch.argsort(there.to(torch.int8), dim=1, stable=True)
        columns = torch.arange(first, first + length, device=x.device).expand(len(x), -1)
        if sinks and first:
            full = (padding := (~there).sum(1, keepdim=True)) <= first  # these rows have tokens for all columns
            begin = padding + torch.arange(sinks, device=x.device)
            columns = torch.cat([torch.where(full, begin, columns[:, :sinks]), columns[:, sinks:]], 1)
        order = order.gather(1, columns)
        if dim == 1:
            return x.gather(1, order)
        return x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


class MemorySession(Cache):
    """A stream that goes on from call to call. Made by `MemoryModel.new_session`.

        session = model.new_session()
        model.generate(**inputs, memory=session)    # and again, with what comes next
        session.save("session.safetensors"); session = model.load_session("session.safetensors")

    Args:
        state: where it stands.
        windows: of each layer, tokens its attention sees; None: all.
        sinks: of each layer, the text's first tokens that it sees beside the window.
        layers: the grafted ones.
        fingerprint: of the model it belongs to.
    """

    def __init__(
        self,
        state: SessionState,
        windows: list[int | None],
        sinks: list[int],
        layers: list[int],
        fingerprint: dict[str, Any],
    ) -> None:
        super().__init__(layers=[])
        self.state = state
        self.windows, self.sinks, self.grafted, self.fingerprint = windows, sinks, layers, fingerprint
        self.call: Call | None = None
        self.gates: dict[int, Tensor] = {}  # of the last call, by grafted layer, [B, T, 1]
        self.offset = 0  # columns of which `generate` need not know

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self.state.batch_size

    @property
    def columns(self) -> int:
        """Tokens read, padding counted."""
        return int(self.state.columns[0])

    @property
    def nbytes(self) -> int:
        """All that is carried on; with a window it stops growing once the window is full."""
        return sum(x.numel() * x.element_size() for x in self.state.tensors().values())

    def copy(self) -> MemorySession:
        """One that goes on by itself from here. States are shared, never changed: it costs nothing."""
        return MemorySession(self.state, self.windows, self.sinks, self.grafted, self.fingerprint)

    def detach(self) -> MemorySession:
        """Cut the gradient, for truncated backpropagation; returns itself."""
        self.state = self.state.detach()
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it whole, safetensors; `MemoryModel.load_session` reads it."""
        self.state.save(path, {"graft": self.fingerprint})

    def begin(self, call: Call) -> None:
        """A call sets out from here."""
        self.call = call

    def commit(self, call: Call) -> None:
        """The call has come to its end: go on after it. One that is run again, in a backward pass, changes nothing."""
        if self.call is not call:
            return
        self.call, self.gates = None, call.gates
        state, length = self.state, call.mask.shape[1]
        keys, values = (
            tuple(call.keys[i][j] if i in call.keys else old for i, old in enumerate(olds))
            for j, olds in enumerate((state.keys, state.values))
        )
        before, kept = state.positions.shape[1], max(key.shape[2] for key in keys)
        memories = tuple(call.memories.get(i, old) for i, old in zip(self.grafted, state.memories, strict=True))
        self.state = replace(
            state,
            tokens=state.tokens + call.mask.sum(1),
            columns=state.columns + length,
            positions=call.keep(call.seen(before), before, kept, max(self.sinks)),
            keys=keys,
            values=values,
            memories=memories,
        )

    # What transformers asks of a cache.

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The layer's keys and values with those kept in front. They are kept once the call has come to its end."""
        assert self.call is not None, "a session is used through its model"
        call, kept = self.call, self.state.keys[layer_idx].shape[2]
        keys = torch.cat([self.state.keys[layer_idx], keys], 2)
        values = torch.cat([self.state.values[layer_idx], values], 2)
        window, sinks, length = self.windows[layer_idx], self.sinks[layer_idx], keys.shape[2]
        length = length if window is None else min(length, sinks + window - 1)
        call.keys[layer_idx] = (call.keep(keys, kept, length, sinks), call.keep(values, kept, length, sinks))
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read, since `offset`."""
        return self.columns - self.offset

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length of the keys, and the column of the first."""
        kept = self.state.keys[layer_idx].shape[2]
        return kept + query_length, self.get_seq_length() - kept

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No limit."""
        return -1

    @property
    def is_initialized(self) -> bool:
        """Whether anything was read."""
        return self.columns > 0

    @property
    def is_compileable(self) -> bool:
        """No: shapes change."""
        return False

    @property
    def is_croppable(self) -> bool:
        """No: see `crop`."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what a memory has read cannot be taken back. Keep a `copy` to go back to."""
        if tokens_to_remove:
            raise ValueError(
                "a memory cannot be cropped: what was read has changed its weights. Assisted and contrastive decoding, "
                "which take tokens back, do not work with it; keep session.copy() to go back to."
            )

    def reset(self) -> None:
        """Refused: a new session starts with what the model has learned. `MemoryModel.new_session` makes one."""
        raise ValueError("a session does not start anew; model.new_session() makes another one")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in the order `beam_idx`, `[B]`."""
        self.state = self.state.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """These rows only."""
        self.state = self.state.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        self.state = self.state.select(torch.arange(self.batch_size).repeat_interleave(repeats))


def attention_mask(call: Call, window: int | None, sinks: int, kept: int, eager: torch.dtype | None) -> Tensor | None:
    """Which tokens each token's attention sees: itself, those before it within the window, the sinks. No padding.

    Args:
        call: the call; it says what is padding.
        window: tokens seen; None: all.
        sinks: the first tokens of the text, seen as well.
        kept: tokens in front that were kept from earlier calls.
        eager: None: a bool mask, for `scaled_dot_product_attention`; else the dtype of one that is added.

    Returns:
        `[B, 1, T, kept + T]`, or None where plain causal attention over T is the same.
    """
    B, T = call.mask.shape
    if not kept and not call.padded and (window is None or window >= T) and eager is None:
        return None
    keys, queries = call.seen(kept)[:, None], call.positions[:, :, None]
    allowed = (keys >= 0) & (keys <= queries)
    if window is not None:
        allowed &= (keys > queries - window) | (keys < sinks)
    if call.padded:  # it sees itself, so that no row of the softmax is empty
        column = torch.arange(kept + T, device=keys.device)
        allowed = allowed | (column == column[kept:, None])
    if eager is None:
        return allowed[:, None]
    return torch.zeros(B, 1, T, kept + T, dtype=eager, device=keys.device).masked_fill_(
        ~allowed[:, None], torch.finfo(eager).min
    )
