"""What slots do on the recall task: how often one is written again, how sharp reads are, who writes what."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.memory.slots.layer import MultiHeadMemoryBank
from memory_titan.memory.slots.losses import marginal
from memory_titan.memory.slots.trace import SlotTrace
from memory_titan.memory.trace import trace
from memory_titan.memory.usage import dense, effective_slots, slot_entropy
from memory_titan.tasks.distance import DistanceTask
from memory_titan.tasks.recall import NO_LABEL

WRITTEN = 0.1  # a write of less does not count as one
KINDS = ("key", "value", "filler", "question")


def kinds(x: Tensor, y: Tensor, task: DistanceTask) -> Tensor:
    """`[B, T]`: which of `KINDS` each token is."""
    kind = torch.full_like(x, KINDS.index("filler"))
    kind[x < task.keys + task.values] = KINDS.index("value")
    kind[x < task.keys] = KINDS.index("key")
    kind[y != NO_LABEL] = KINDS.index("question")
    return kind


def watch_slots(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """What the first bank does with x; empty for a model without one.

    Args:
        model: in eval mode.
        x, y: `[B, T]`, of a `DistanceTask`.

    Returns:
        under "slots": reuse (writes a slot that is written at all), known_share (of what is written, into slots whose
        key was known), read_entropy (nats) and top_weight (of the first slot), both at questions, effective_reads and
        effective_writes (exp(H)/N), gate (mean write gate by kind and head), and head_information (bits that the
        writing head tells of the token's kind).
    """
    if not any(isinstance(part, MultiHeadMemoryBank) for part in model.modules()):
        return {}
    with torch.no_grad(), trace(model) as traces:
        model(x, use_cache=False)
    told = next(call for calls in traces.values() for call in calls if isinstance(call, SlotTrace))
    kind, asked = kinds(x, y, DistanceTask()), y != NO_LABEL
    written = told.write_weights.sum(-1)  # [B, T, H]
    writes = (dense(told.write_slots, told.write_weights, told.slots) > WRITTEN).sum(1)
    reads = told.read_weights[asked]  # [questions, H, K]
    by_kind = torch.stack([written[kind == i].sum(0) for i in range(len(KINDS))])  # [kinds, H]
    used_reads, used_writes = (
        marginal(told.read_slots, told.read_weights, told.slots),
        marginal(told.write_slots, told.write_weights, told.slots),
    )
    return {
        "slots": {
            "reuse": float(writes[writes > 0].float().mean()) if bool((writes > 0).any()) else 0.0,
            "known_share": float(1 - told.taken.sum() / written.sum().clamp(min=1e-9)),
            "read_entropy": float(slot_entropy(reads).mean()),
            "top_weight": float(reads.amax(-1).mean()),
            "effective_reads": float(effective_slots(used_reads).mean()),
            "effective_writes": float(effective_slots(used_writes).mean()),
            "gate": {name: told.step[kind == i].mean(0).tolist() for i, name in enumerate(KINDS)},
            "head_information": information(by_kind),
        }
    }


def information(joint: Tensor) -> float:
    """Mutual information in bits of the two indices of a table of weights `[M, N]`; 0 where it is empty."""
    total = float(joint.sum())
    if total <= 0:
        return 0.0
    p = joint.double() / total
    apart = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    there = p > 0
    return float((p[there] * (p[there] / apart[there]).log()).sum()) / math.log(2)


def without_heads(
    model: nn.Module, pairs: int, accuracy: Callable[[nn.Module, Tensor, Tensor], float]
) -> dict[str, float]:
    """Accuracy at distance 64 with what a head read set to 0, by head, and "all"; empty without slots.

    Args:
        model: in eval mode.
        pairs: of the task.
        accuracy: of a model on x, y.
    """
    banks = [part for part in model.modules() if isinstance(part, MultiHeadMemoryBank)]
    if not banks:
        return {}
    x, y = DistanceTask(64, pairs).batch(64, torch.Generator().manual_seed(5))
    heads = banks[0].config.heads
    shares = {}
    for name, silent in {**{str(h): [h] for h in range(heads)}, "all": list(range(heads))}.items():

        def silence(bank: nn.Module, given: Any, out: tuple[Tensor, Any], silent: list[int] = silent) -> Any:
            read = out[0].unflatten(2, (heads, -1)).clone()
            read[:, :, silent] = 0
            return read.flatten(2), out[1]

        hooks = [bank.register_forward_hook(silence) for bank in banks]
        try:
            shares[name] = accuracy(model, x, y)
        finally:
            for hook in hooks:
                hook.remove()
    return shares
