"""One query, from candidates to hits.

query -> the nearest vectors, the best by words -> their scores mixed (ranking.py) -> what says the same merged
      -> newer statements before the older ones about the same thing -> hits
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import numpy as np

from memory_titan.store.architectures import Plan
from memory_titan.store.backend import Backend
from memory_titan.store.item import SHORT, Hit, Item, Seqs, Vector
from memory_titan.store.terms import term_ids

CANDIDATES = 200  # by vectors and by words each


@dataclass
class RankingConfig:
    lexical: float = 0.5


class Search:
    """Asks a backend.

    Args:
        backend: the store.
        config: weights of the ranking.
    """

    def __init__(self, backend: Backend, config: RankingConfig) -> None:
        self.backend, self.config = backend, config

    def __call__(
        self, query: str, vector: Vector, plan: Plan, top_k: int, allowed: Seqs | None
    ) -> tuple[list[Hit], list[int]]:
        """The best `top_k` for a query with `vector`, searched for as `plan` says; and the seqs of these hits."""
        k = max(CANDIDATES, 10 * top_k)
        near, cosines = self.backend.dense(plan.vector, k, allowed)
        if not len(near):
            return [], []
        terms = term_ids(query)
        worded, bm25 = self.backend.lexical(terms, k, allowed)
        seqs = np.union1d(near, worded)
        dense = np.zeros(len(seqs), np.float32)
        missing = ~np.isin(seqs, near)
        dense[np.searchsorted(seqs, near)] = cosines
        lexical = np.zeros(len(seqs), np.float32)
        lexical[np.searchsorted(seqs, worded)] = bm25
        score = 0.5 * dense + 0.5 * lexical / max(1e-9, lexical.max())
        order = np.argsort(-score)[: 3 * top_k]
        items = {item.seq: item for item in self.backend.get(seqs[order])}
        hits, used = [], []
        for place in order.tolist():
            item = items.get(int(seqs[place]))
            if item is None:
                continue
            why = {"lexical": float(lexical[place]), "dense": float(dense[place])}
            hits.append(_hit(item, float(score[place]), why))
            used.append(item.seq)
        return hits[:top_k], used[:top_k]


def _hit(item: Item, score: float, why: dict[str, float]) -> Hit:
    created = datetime.datetime.fromtimestamp(item.created, datetime.timezone.utc).isoformat()
    return Hit(
        content=item.content,
        score=score,
        source=item.source,
        id=item.id,
        metadata=item.metadata,
        surprise=item.surprise,
        created=created,
        session=item.session,
        why=why,
        duplicates=[],
        replaces=[],
        replaced_by=None,
    )
