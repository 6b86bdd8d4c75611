"""What happened in a bank of slots over a stream, as arrays: what the pictures of slots are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memory_titan.memory.slots.layer import MemoryBankState, MultiHeadMemoryBank
from memory_titan.memory.slots.trace import SlotTrace
from memory_titan.memory.trace import Trace, trace
from memory_titan.memory.usage import dense
from memory_titan.viz.record_file import RecordFile

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

MAX_CELLS = 50_000_000  # of one dense array: 200 MB
EPSILON = 1e-9  # weights below count as none


@dataclass(frozen=True)
class Lifetimes:
    """How long slots were held, one entry a life, in the order of births; a life is from one taking to the next.

    Attributes:
        head, slot: `[L]`, int64, where.
        born: `[L]`, int64, the token that took the slot.
        durations: `[L]`, int64, tokens until it was taken again, or until the stream ended.
        ended: `[L]`, bool; False: it was still held at the end, so that it lived at least so long (censored).
    """

    head: Integers
    slot: Integers
    born: Integers
    durations: Integers
    ended: NDArray[np.bool_]

    def of_head(self, head: int) -> Lifetimes:
        """Those of one head."""
        here = self.head == head
        return Lifetimes(self.head[here], self.slot[here], self.born[here], self.durations[here], self.ended[here])


@dataclass(frozen=True)
class SlotRecord(RecordFile):
    """One batch row of one bank: T tokens, H heads, N slots; float32 unless it says otherwise.

    Attributes:
        writes: `[T, H, N]`, how much each token wrote to each slot.
        reads: `[T, H, N]`, how much it looked at each; sums to 1, or 0 where there was nothing to look at.
        taken: `[T, H]`, how much of a new slot it took.
        took: `[T, H]`, int64, the slot that it took by more than half; -1: none.
        gate: `[T, H]`, the write gate.
        surprise: `[T, H]`, `|v - r|^2`, what was not expected.
        content: `[S, H, N, d]`, what the slots held after `content_at` tokens; S is 0 where nobody looked.
        content_at: `[S]`, int64, tokens read by then.
    """

    KIND = "record of slots"

    writes: Floats
    reads: Floats
    taken: Floats
    took: Integers
    gate: Floats
    surprise: Floats
    content: Floats
    content_at: Integers

    def __post_init__(self) -> None:
        if self.writes.ndim != 3 or self.reads.shape != self.writes.shape:
            raise ValueError(f"writes and reads must be [T, H, N]; got {self.writes.shape} and {self.reads.shape}")
        for name in ("taken", "took", "gate", "surprise"):
            if getattr(self, name).shape != self.writes.shape[:2]:
                raise ValueError(f"{name} must be {self.writes.shape[:2]}; got {getattr(self, name).shape}")
        if self.content.ndim != 4 or self.content.shape[1:3] not in ((0, 0), self.writes.shape[1:]):
            raise ValueError(f"content must be [S, H, N, d]; got {self.content.shape}")
        if self.content_at.shape != self.content.shape[:1]:
            raise ValueError(f"{len(self.content)} contents need as many places; got {self.content_at.shape}")

    @classmethod
    def of(
        cls,
        calls: Sequence[Trace],
        row: int = 0,
        *,
        mask: Tensor | None = None,
        states: Sequence[MemoryBankState] = (),
    ) -> SlotRecord:
        """From what `trace` collected of one bank, its calls in the order of the stream.

        Args:
            calls: one a call, of the same bank; what was in the slots before the first is not known.
            row: of the batch.
            mask: `[B, T]` over all calls, bool or 0/1; tokens at False are left out. None: all count.
            states: after some of the tokens, if contents are to be seen.

        Raises:
            ValueError: no calls, or not those of one bank; no such row; arrays too large to be dense.
        """
        told = [call for call in calls if isinstance(call, SlotTrace)]
        if not told or len(told) < len(calls):
            raise ValueError("calls must be SlotTrace, at least one: those that `trace` collects of one bank of slots")
        if len({(call.slots, call.step.shape[2]) for call in told}) > 1:
            raise ValueError("calls are of banks of different shape: give those of one bank")
        rows = min(call.step.shape[0] for call in told)
        if not 0 <= row < rows:
            raise ValueError(f"row must be 0 to {rows - 1}; got {row}")
        tokens, (heads, slots) = sum(call.step.shape[1] for call in told), (told[0].step.shape[2], told[0].slots)
        if tokens * heads * slots > MAX_CELLS:
            raise ValueError(
                f"{tokens} tokens, {heads} heads and {slots} slots make more than {MAX_CELLS:,} cells: record fewer "
                "tokens"
            )
        there = torch.ones(tokens, dtype=torch.bool) if mask is None else mask[row].bool().cpu()
        if len(there) != tokens:
            raise ValueError(f"the mask has {len(there)} tokens and the calls have {tokens}")

        def joined(parts: list[Tensor]) -> Floats:
            whole = torch.cat([part[row].detach().float().cpu() for part in parts])
            return np.ascontiguousarray(whole[there].numpy())

        takes = joined([dense(*_new(call), slots) for call in told])
        kept = [state.content[row].detach().float().cpu().numpy() for state in states]
        return cls(
            writes=joined([dense(call.write_slots, call.write_weights, slots) for call in told]),
            reads=joined([dense(call.read_slots, call.read_weights, slots) for call in told]),
            taken=joined([call.taken for call in told]),
            took=np.where(takes.max(-1) > 0.5, takes.argmax(-1), -1).astype(np.int64),
            gate=joined([call.step for call in told]),
            surprise=joined([call.surprise.loss for call in told]),
            content=np.stack(kept) if kept else np.zeros((0, heads, slots, 0), np.float32),
            content_at=np.array([int(state.tokens[row]) for state in states], np.int64),
        )

    @property
    def tokens(self) -> int:
        """T."""
        return self.writes.shape[0]

    @property
    def heads(self) -> int:
        """H."""
        return self.writes.shape[1]

    @property
    def slots(self) -> int:
        """N, a head."""
        return self.writes.shape[2]

    def lifetimes(self) -> Lifetimes:
        """Of the slots that tokens took by more than half; a slot's life ends when it is taken again."""
        held: dict[tuple[int, int], int] = {}
        lives = []
        for t, h in np.argwhere(self.took >= 0).tolist():
            slot = int(self.took[t, h])
            if (h, slot) in held:
                born = held[h, slot]
                lives.append((h, slot, born, t - born, True))
            held[h, slot] = t
        lives += [(h, slot, born, self.tokens - 1 - born, False) for (h, slot), born in held.items()]
        lives.sort(key=lambda life: (life[2], life[0]))
        columns = np.array(lives, np.int64).reshape(-1, 5).T
        return Lifetimes(columns[0], columns[1], columns[2], columns[3], columns[4].astype(bool))

    def holders(self) -> Integers:
        """`[T, H, N]`, the token that each slot is held by after each token: the last that took it; -1: none yet."""
        held = np.full(self.writes.shape, -1, np.int64)
        t, h = np.nonzero(self.took >= 0)
        held[t, h, self.took[t, h]] = t
        return np.maximum.accumulate(held, 0)

    def usage(self, of: str = "reads") -> Floats:
        """`[H, N]`: where "reads" or "writes" go on average; sums to 1, or 0 where there were none."""
        if of not in ("reads", "writes"):
            raise ValueError(f"usage is of reads or writes; got {of!r}")
        total = (self.reads if of == "reads" else self.writes).sum(0)
        return (total / np.maximum(total.sum(-1, keepdims=True), EPSILON)).astype(np.float32)

    def effective_slots(self, of: str = "reads") -> Floats:
        """`[H]`, exp(H(p)) / N of that usage: the share of slots used as if all were used alike; 0: none was used."""
        usage = self.usage(of)
        return np.where(usage.sum(-1) > 0, np.exp(entropy(usage)) / self.slots, 0.0).astype(np.float32)

    def read_entropy(self) -> Floats:
        """`[T, H]`, nats: 0 where a read looks at one slot; NaN where there was nothing to look at."""
        return np.where(self.reads.sum(-1) > EPSILON, entropy(self.reads), np.nan).astype(np.float32)

    def content_norm(self) -> Floats:
        """`[S, H, N]`."""
        return np.linalg.norm(self.content, axis=-1).astype(np.float32)

    def content_cosine(self, reference: NDArray[Any]) -> Floats:
        """`[S, H, N]`, of each slot's content to `reference`, `[H, d]` or `[d]`; 0 where either is 0."""
        if reference.shape not in ((self.content.shape[-1],), (self.heads, self.content.shape[-1])):
            raise ValueError(f"reference must be [d] or [H, d] of contents {self.content.shape}; got {reference.shape}")
        target = np.broadcast_to(reference, (self.heads, self.content.shape[-1]))
        lengths = np.linalg.norm(self.content, axis=-1) * np.linalg.norm(target, axis=-1)[:, None]
        products = np.einsum("shnd,hd->shn", self.content, target)
        return (products / np.maximum(lengths, 1e-12)).astype(np.float32)


def entropy(weights: NDArray[Any]) -> NDArray[Any]:
    """-sum p log p over the last dimension, nats."""
    return -(weights * np.log(np.maximum(weights, EPSILON))).sum(-1)


def record_slots(
    module: nn.Module, run: Callable[[], Any], row: int = 0, mask: Tensor | None = None
) -> dict[str, SlotRecord]:
    """A record of every bank inside `module`, by its name, of what `run` makes them read.

        records = record_slots(model, lambda: model(input_ids))

    What the slots hold is looked at after each call of a bank: a stream given in pieces shows it on its way.

    Args:
        module: that has banks in it, or is one.
        run: called once, without gradients.
        row: of the batch.
        mask: `[B, T]` over all that is read; tokens at False are left out.

    Raises:
        ValueError: there is no bank of slots in it, or `run` did not call one.
    """
    banks = {name: part for name, part in module.named_modules() if isinstance(part, MultiHeadMemoryBank)}
    if not banks:
        raise ValueError("there is no MultiHeadMemoryBank in the module")
    states: dict[str, list[MemoryBankState]] = {name: [] for name in banks}

    def keeper(name: str) -> Callable[..., None]:
        return lambda bank, given, out: states[name].append(out[1].detach())

    handles = [bank.register_forward_hook(keeper(name)) for name, bank in banks.items()]
    try:
        with torch.no_grad(), trace(module) as traces:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: SlotRecord.of(traces[name], row, mask=mask, states=states[name]) for name in banks}


def _new(call: SlotTrace) -> tuple[Tensor, Tensor]:
    """The part of a write that goes to new slots: it stands after the top k, as many as a read has."""
    known = call.read_slots.shape[-1]
    return call.write_slots[..., known:], call.write_weights[..., known:]
