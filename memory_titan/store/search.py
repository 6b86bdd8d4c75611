"""One query, from candidates to hits.

query -> the nearest vectors, the best by words, and what stands beside them in their sessions
      -> their scores (ranking.py) -> what says the same merged, the newer before what it replaces -> hits
"""

from __future__ import annotations

import datetime

import numpy as np

from memory_titan.store.architectures import Plan
from memory_titan.store.backend import Backend
from memory_titan.store.item import PENDING, SHORT, Hit, Item, Seqs, Vector
from memory_titan.store.ranking import Candidates, Ranking, RankingConfig, around, idf, rank
from memory_titan.store.terms import term_ids

CANDIDATES = 100  # by vectors and by words each, beside their neighbours
SAME = 0.97  # cosine of two items that say the same


class Search:
    """Asks a backend.

    Args:
        backend: the store.
        config: weights of the ranking.
    """

    def __init__(self, backend: Backend, config: RankingConfig) -> None:
        self.backend, self.config = backend, config

    def __call__(self, query: str, plan: Plan, top_k: int, allowed: Seqs | None) -> tuple[list[Hit], list[int]]:
        """The best `top_k`, searched for as `plan` says; and the seqs of these hits.

        What a filter excludes takes no part, not even as a neighbour.
        """
        seqs, ranking = self._ranked(query, plan, max(CANDIDATES, 4 * top_k), allowed)
        order = ranking.order()
        items = {item.seq: item for item in self.backend.get(seqs[order[: 4 * top_k]])}
        if plan.short != plan.long:  # of MAG: by the memory that holds them
            factors = np.array([_factor(items.get(seq), plan) for seq in seqs.tolist()])
            ranking = Ranking(ranking.scores * factors, {name: part * factors for name, part in ranking.parts.items()})
            order = ranking.order()
        best = max(float(ranking.scores.max(initial=0.0)), sum(self._weights()))
        hits: list[Hit] = []
        used: list[int] = []
        vectors: list[Vector] = []
        for place in order[: 4 * top_k].tolist():
            item = items.get(int(seqs[place]))
            if item is None:
                continue  # deleted meanwhile
            vector = self.backend.vectors_of(seqs[place : place + 1])[0]
            twin = next((n for n, other in enumerate(vectors) if float(vector @ other) > SAME), None)
            if twin is not None:
                hits[twin]["duplicates"].append(item.id)
                continue
            if len(hits) == top_k:
                continue  # duplicates of the hits may still follow
            hits.append(_hit(item, max(0.0, float(ranking.scores[place])) / best, ranking.explain(place)))
            used.append(item.seq)
            vectors.append(vector)
        return hits, used

    def _ranked(self, query: str, plan: Plan, k: int, allowed: Seqs | None) -> tuple[Seqs, Ranking]:
        """Candidates, ascending, and their scores."""
        terms = np.unique(term_ids(query))
        near, _ = self.backend.dense(plan.vector, k, allowed)
        worded, _ = self.backend.lexical(terms, k, allowed)
        found = np.union1d(near, worded)
        places = self.backend.places(found)
        radius = len(self.config.neighbours)
        seqs = np.union1d(found, self.backend.seqs_at(*around(places.session, places.position, radius)))
        if allowed is not None:
            seqs = np.intersect1d(seqs, allowed, assume_unique=True)
        places = self.backend.places(seqs)
        seqs = seqs[places.session >= 0]
        places = self.backend.places(seqs)
        words = self.backend.words_of(terms, seqs)
        named = self.backend.named(query)
        candidates = Candidates(
            session=places.session,
            position=places.position,
            words=words.lengths,
            counts=words.counts,
            idf=idf(words.items, words.frequencies),
            mean_words=words.mean_length,
            dense=(self.backend.vectors_of(seqs) @ plan.vector).astype(np.float64),
            named=np.isin(places.speaker, list(named)) if named else None,
        )
        return seqs, rank(candidates, self.config)

    def _weights(self) -> tuple[float, ...]:
        config = self.config
        return config.lexical, config.dense, config.window, config.speaker, config.length


def _factor(item: Item | None, plan: Plan) -> float:
    if item is None:
        return min(plan.short, plan.long)
    return plan.short if item.places & (SHORT | PENDING) else plan.long


def _hit(item: Item, score: float, why: dict[str, float]) -> Hit:
    return Hit(
        content=item.content,
        score=score,
        source=item.source,
        id=item.id,
        metadata=item.metadata,
        surprise=item.surprise,
        created=datetime.datetime.fromtimestamp(item.created, datetime.timezone.utc).isoformat(),
        session=item.session,
        why={name: round(value, 4) for name, value in why.items()},
        duplicates=[],
        replaces=[],
        replaced_by=None,
    )
