"""What `trace` collects of a bank: beside gates and surprise, where every token wrote and read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from memory_titan.memory.trace import Trace


@dataclass(frozen=True)
class SlotTrace(Trace):
    """One call of one bank: `[B, T, H]`; of E slots a write and K a read `[B, T, H, E]`, `[B, T, H, K]`; 0 at padding.

    Attributes:
        step: the write gate.
        keep: what the token leaves of what it writes over, 1 - g e.
        momentum: 0.
        taken: how much of a new slot it took; 0: it wrote to what it knew, or not at all.
        write_slots, write_weights: where it wrote, and how much there. A slot may stand twice: add up.
        read_slots, read_weights: where it read.
        slots: N.
    """

    taken: Tensor
    write_slots: Tensor
    write_weights: Tensor
    read_slots: Tensor
    read_weights: Tensor
    slots: int
