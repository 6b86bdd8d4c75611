"""What a bank's update is given beside keys and values, what it leaves, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from memory_titan.memory.slots.config import MemoryBankConfig
from memory_titan.memory.state import MemoryState

TOUCH = 0.25  # of a slot: what must be written, or found (weight times cosine), for it to count as used


def length(x: Tensor) -> Tensor:
    """Of the last dimension's vectors; 1e-12 for 0, where its derivative is finite so."""
    return (x.square().sum(-1) + 1e-24).sqrt()


class SlotGates(NamedTuple):
    """A token's decisions, `[B, H, T]`.

    write: g, 0 to 1: how much is written.
    erase: e, 0 to 1: how much of what is there goes when it is written over.
    decay: logit of the decay of the slots, to which each slot adds its own; None: no decay.
    """

    write: Tensor
    erase: Tensor
    decay: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> SlotGates:
        """Apply `function` to each."""
        decay = None if self.decay is None else function(self.decay)
        return SlotGates(function(self.write), function(self.erase), decay)


@dataclass(frozen=True)
class SlotRule:
    """The policies, and the few numbers of them that are learned.

    Attributes:
        config: of the bank.
        sharpness: `[2, H]`, of the softmax over the top k, in writing and in reading.
        familiarity: `[2, H]`: the slope and the cosine at which a key counts as known by half.
        slot_decay: `[H, N]`, logits.
        noise: whether "gumbel" draws.
    """

    config: MemoryBankConfig
    sharpness: Tensor
    familiarity: Tensor
    slot_decay: Tensor
    noise: bool = False


@dataclass(frozen=True)
class SlotState(MemoryState):
    """All that the slots carry on. The chunk's start is what its tokens judge staleness and familiarity by.

    Attributes:
        keys: `[B, H, N, d]`: the key a slot was taken for, times `strength`; 0 for a slot never taken.
        content: `[B, H, N, d]`.
        strength: `[B, H, N]`, 0 to 1: how much of the slot was taken.
        usage: `[B, H, N]`, 0 to 1: use, fading.
        last: `[B, H, N]`, int64: the token that last used the slot; -1.
        born: `[B, H, N]`, int64: the token that took it (by half or more); -1.
        start_keys, start_usage: `keys` and `usage` at the open chunk's start.
        order: `[B, H, N]`, int64: slots by staleness at the chunk's start, the stalest first.
        taken: `[B, H]`: how much the open chunk's tokens have taken of new slots.
        open_keys: `[B, H, C, d]`, the open chunk's keys; 0 where no token is yet.
        open_gates: `[B, H, C]`, its write gates.
        tokens: `[B]`, int64, tokens read so far.
    """

    keys: Tensor
    content: Tensor
    strength: Tensor
    usage: Tensor
    last: Tensor
    born: Tensor
    start_keys: Tensor
    start_usage: Tensor
    order: Tensor
    taken: Tensor
    open_keys: Tensor
    open_gates: Tensor
    tokens: Tensor

    @property
    def age(self) -> Tensor:
        """`[B, H, N]`, int64: tokens since a slot was last of use; of one that never was, the number of all tokens."""
        return self.tokens[:, None, None] - 1 - self.last


class SlotReport(NamedTuple):
    """What each token did, `[B, H, T]` and, E slots a write and K a read, `[B, H, T, E]` and `[B, H, T, K]`.

    loss: `|v - r|^2`, r what was read where it was about to be written.
    gradient: the norm of half its gradient over the contents.
    write: the norm of what was added to the contents.
    taken: n, 0 to 1: how much of a new slot was taken.
    write_slots, write_weights: where, and how much there, the gate included. A slot may stand twice: add up.
    read_slots, read_weights: the same of the read; weights 0 where fewer than K slots hold anything.
    gate: g. keep: 1 - g e, what is left of what is written over.
    """

    loss: Tensor
    gradient: Tensor
    write: Tensor
    taken: Tensor
    write_slots: Tensor
    write_weights: Tensor
    read_slots: Tensor
    read_weights: Tensor
    gate: Tensor
    keep: Tensor
