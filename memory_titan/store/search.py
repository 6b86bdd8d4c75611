"""One query, from candidates to hits.

query -> the nearest vectors, the best by words, and what stands beside them in their sessions
      -> their scores (ranking.py) -> what says the same merged, the newer before what it replaces -> hits
"""

from __future__ import annotations

import numpy as np

from memory_titan.store.architectures import Plan
from memory_titan.store.backend import Backend
from memory_titan.store.documents import iso
from memory_titan.store.item import PENDING, SHORT, Hit, Item, Seqs, Vector
from memory_titan.store.ranking import Candidates, Ranking, RankingConfig, idf, rank
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
        self._full = config.lexical + config.dense + config.window + config.speaker + config.length

    def __call__(self, query: str, plan: Plan, top_k: int, allowed: Seqs | None) -> tuple[list[Hit], list[int]]:
        """The best `top_k`, searched for as `plan` says; and the seqs of these hits.

        What a filter excludes takes no part, not even as a neighbour.
        """
        seqs, vectors, ranking = self._ranked(query, plan, max(CANDIDATES, 4 * top_k), allowed)
        if plan.short != plan.long:  # of MAG: by the memory that holds them
            held = self.backend.places_of(seqs) & (SHORT | PENDING) > 0
            factors = np.where(held, plan.short, plan.long)
            ranking = Ranking(ranking.scores * factors, {name: x * factors for name, x in ranking.parts.items()})
        order = ranking.order()[: 4 * top_k]
        chosen, twins = self._merged(seqs[order], vectors[order], top_k)
        found = {item.seq: item for item in self.backend.get([*chosen.values(), *twins])}
        hits: list[Hit] = []
        used: list[int] = []
        for place, seq in chosen.items():
            if (item := found.get(seq)) is None:
                continue  # deleted meanwhile
            score = float(ranking.scores[order[place]]) / self._full
            hits.append(_hit(item, min(1.0, max(0.0, score)), ranking.explain(int(order[place]))))
            used.append(seq)
            same = [twin for twin, of in twins.items() if of == seq]
            hits[-1]["duplicates"] = [found[twin].id for twin in same if twin in found]
        return hits, used

    def nearest(self, vector: Vector, top_k: int, allowed: Seqs | None) -> tuple[list[Hit], list[int]]:
        """The nearest by cosine alone, their score -1 to 1; and their seqs."""
        seqs, cosines = self.backend.dense(vector, top_k, allowed)
        items = {item.seq: item for item in self.backend.get(seqs)}
        found = [(items[s], c) for s, c in zip(seqs.tolist(), cosines.tolist(), strict=True) if s in items]
        return [_hit(item, cosine, {"dense": cosine}) for item, cosine in found], [item.seq for item, _ in found]

    @staticmethod
    def _merged(seqs: Seqs, vectors: Vector, top_k: int) -> tuple[dict[int, int], dict[int, int]]:
        """Of the best items: place -> seq of the first `top_k` that say different things; twin -> whose it is."""
        same = vectors @ vectors.T > SAME
        chosen: dict[int, int] = {}
        twins: dict[int, int] = {}
        for place, seq in enumerate(seqs.tolist()):
            of = next((other for at, other in chosen.items() if same[place, at]), None)
            if of is not None:
                twins[seq] = of
            elif len(chosen) < top_k:  # once it is full, twins of the chosen may still follow
                chosen[place] = seq
        return chosen, twins

    def _ranked(self, query: str, plan: Plan, k: int, allowed: Seqs | None) -> tuple[Seqs, Vector, Ranking]:
        """Candidates, ascending, their vectors and their scores."""
        backend, terms = self.backend, np.unique(term_ids(query))
        near, _ = backend.dense(plan.vector, k, allowed)
        worded, _ = backend.lexical(terms, k, allowed)
        seqs = backend.around(np.union1d(near, worded), len(self.config.neighbours))
        if allowed is not None:
            seqs = np.intersect1d(seqs, allowed, assume_unique=True)
        words, places, vectors = backend.words_of(terms, seqs), backend.places(seqs), backend.vectors_of(seqs)
        candidates = Candidates(
            session=places.session,
            position=places.position,
            words=words.lengths,
            counts=words.counts,
            idf=idf(words.items, words.frequencies),
            mean_words=words.mean_length,
            dense=(vectors @ plan.vector).astype(np.float64),
            named=places.named(query),
        )
        return seqs, vectors, rank(candidates, self.config)


def _hit(item: Item, score: float, why: dict[str, float]) -> Hit:
    return Hit(
        content=item.content,
        score=score,
        source=item.source,
        id=item.id,
        metadata=item.metadata,
        surprise=item.surprise,
        created=iso(item.created),
        session=item.session,
        why={name: round(value, 4) for name, value in why.items()},
        duplicates=[],
        replaces=[],
        replaced_by=None,
    )
