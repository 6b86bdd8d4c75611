"""Three ways to combine the three memories in one query (Titans, arXiv 2501.00663, section 4).

MAC  memory as context   the long-term memory is asked first; the query and what was recalled search
MAG  memory as gate      what the short-term and the long-term memory hold is weighed by a gate made of the query
MAL  memory as layer     the query passes through the memories in turn, persistent, long-term; what comes out searches

Each is a function from the query to a `Plan`: which vectors to search with, and how much each place's items count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memory_titan.store.item import Vector


@dataclass(frozen=True)
class Plan:
    """How to search.

    Attributes:
        vector: `[dim]`, of length 1: what is compared with the items.
        short, long: what the scores of the short-term window's items and of the others are multiplied with.
        gate: of MAG, how much the long-term memory is trusted with this query, 0 to 1; None elsewhere.
        recalled: cosine of the query and what the neural memory recalled.
    """

    vector: Vector
    short: float = 1.0
    long: float = 1.0
    gate: float | None = None
    recalled: float = 0.0


@dataclass(frozen=True)
class Memories:
    """What a plan is made from.

    Attributes:
        recall: `[dim]` -> `[dim]`, the neural memory's answer.
        persistent: `[n, dim]`, the persistent memory's vectors.
        nearest_short: the greatest cosine of the query and the window's items; 0 for an empty one.
        weight: of what is recalled beside the query.
    """

    recall: Callable[[Vector], Vector]
    persistent: Vector
    nearest_short: Callable[[Vector], float]
    weight: float


def mac(query: Vector, memories: Memories) -> Plan:
    """Recall, then search with the query in the context of what was recalled: q + w (M(q) + persistent memory of q)."""
    recalled = memories.recall(query)
    context = recalled + _attend(query, memories.persistent)
    return Plan(_unit(query + memories.weight * context), recalled=_cosine(query, recalled))


def mag(query: Vector, memories: Memories) -> Plan:
    """Search both, and mix by how well each knows the query: g = sigmoid(4 (cos(M(q), q) - window's best cosine))."""
    known = _cosine(query, memories.recall(query))
    gate = 1.0 / (1.0 + np.exp(-4.0 * (known - memories.nearest_short(query))))
    # The mix reorders, it does not hide: three quarters at least are left to the memory that is trusted less.
    short, long = min(1.0, 1.25 - 0.5 * gate), min(1.0, 0.75 + 0.5 * gate)
    return Plan(query, short=float(short), long=float(long), gate=float(gate), recalled=known)


def mal(query: Vector, memories: Memories) -> Plan:
    """Through the layers in turn: h = q + w persistent(q), then h + w M(h); what comes out is searched with."""
    hidden = _unit(query + memories.weight * _attend(query, memories.persistent))
    recalled = memories.recall(hidden)
    return Plan(_unit(hidden + memories.weight * recalled), recalled=_cosine(query, recalled))


ARCHITECTURES: dict[str, Callable[[Vector, Memories], Plan]] = {"mac": mac, "mag": mag, "mal": mal}


def _attend(query: Vector, keys: Vector, sharpness: float = 16.0) -> Vector:
    """Softmax attention of `[dim]` over `[n, dim]`, scaled by how near the nearest is; zeros where there is none."""
    if not len(keys):
        return np.zeros_like(query)
    scores = keys @ query
    weights = np.exp(sharpness * (scores - scores.max()))
    return np.asarray(max(0.0, float(scores.max())) * (weights @ keys) / weights.sum(), np.float32)


def _unit(x: Vector) -> Vector:
    length = float(np.linalg.norm(x))
    return np.asarray(x / length if length > 0 else x, np.float32)


def _cosine(x: Vector, y: Vector) -> float:
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / lengths if lengths > 0 else 0.0
