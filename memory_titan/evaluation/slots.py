"""How well a bank uses its slots, in figures: spread and sharpness, reuse, collisions, how long slots last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from memory_titan.memory.slots.rule import TOUCH
from memory_titan.memory.slots.trace import SlotTrace
from memory_titan.viz.slots_record import EPSILON, SlotRecord, entropy
from memory_titan.viz.survival import kaplan_meier


def slot_metrics(calls: Sequence[SlotTrace], mask: Tensor | None = None) -> dict[str, float | None]:
    """Of one bank, over all rows and heads of a stream; each row begins with empty slots.

    A slot is taken where a token takes it by more than half; it is alive from then on. It is used where a token
    writes or reads it with a weight above 0.25 (the bank also asks how near the read's key is, which no trace tells).

    Args:
        calls: what `trace` collected of the bank, in the order of the stream.
        mask: `[B, T]` over all calls; tokens at False are left out.

    Returns:
        None where nothing happened that could be measured:

        effective_slots_reads, effective_slots_writes: exp(H(p)) / N, p where reads or writes go on average over rows
            and tokens; mean over heads.
        read_entropy: nats, mean over reads.
        read_top: weight of the slot that a read looks at most, mean over reads.
        collision_rate: of the slots taken, the share that was alive, so that something was lost.
        reuse: share of all that was written that went to known slots.
        overwrite_age: median of tokens since the last use of a slot that was alive, when it was taken again.
        half_life: tokens after which half of the slots taken are taken again (Kaplan-Meier); None: more than half stay.
        taken: slots taken a token and head.
        write_gate: mean.

    Raises:
        ValueError: as `SlotRecord.of`.
    """
    rows = calls[0].step.shape[0] if calls else 1
    records = [SlotRecord.of(calls, row, mask=mask) for row in range(rows)]
    entropies = np.concatenate([record.read_entropy().ravel() for record in records])
    reads = ~np.isnan(entropies)
    tops = np.concatenate([record.reads.max(-1).ravel() for record in records])
    lives = [record.lifetimes() for record in records]
    durations, ended = (np.concatenate([getattr(one, name) for one in lives]) for name in ("durations", "ended"))
    ages = [age for record in records for age in _overwrite_ages(record)]
    written = sum(float(record.writes.sum()) for record in records)
    new = sum(float(record.taken.sum()) for record in records)
    gates = np.concatenate([record.gate.ravel() for record in records])
    return {
        "effective_slots_reads": _effective(np.stack([record.reads.sum(0) for record in records]).sum(0)),
        "effective_slots_writes": _effective(np.stack([record.writes.sum(0) for record in records]).sum(0)),
        "read_entropy": float(entropies[reads].mean()) if reads.any() else None,
        "read_top": float(tops[reads].mean()) if reads.any() else None,
        "collision_rate": float(ended.sum() / len(ended)) if len(ended) else None,
        "reuse": max(0.0, 1 - new / written) if written > EPSILON else None,
        "overwrite_age": float(np.median(ages)) if ages else None,
        "half_life": kaplan_meier(durations, ended).median if len(ended) else None,
        "taken": len(ended) / len(gates) if len(gates) else None,
        "write_gate": float(gates.mean()) if len(gates) else None,
    }


def _effective(total: np.ndarray) -> float | None:
    """Of `[H, N]`, mean over the heads that have any."""
    total = total[total.sum(-1) > EPSILON]
    if not len(total):
        return None
    return float((np.exp(entropy(total / total.sum(-1, keepdims=True))) / total.shape[-1]).mean())


def _overwrite_ages(record: SlotRecord) -> list[int]:
    """Tokens since a slot was last used, for each that was taken while alive."""
    now = np.arange(record.tokens)[:, None, None]
    used = np.maximum.accumulate(np.where(np.maximum(record.writes, record.reads) > TOUCH, now, -1), 0)
    alive = record.holders() >= 0
    found = []
    for t, h in np.argwhere(record.took >= 0).tolist():
        slot = record.took[t, h]
        if t and alive[t - 1, h, slot]:
            found.append(int(t - used[t - 1, h, slot]))
    return found
