"""One query, from candidates to hits.

query -> the nearest vectors, the best by words, and what stands beside them in their sessions
      -> their scores (ranking.py) -> what says the same merged, the newer before what it replaces -> hits
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memory_titan.store.architectures import Plan
from memory_titan.store.backend import Backend
from memory_titan.store.documents import iso
from memory_titan.store.item import PENDING, SHORT, Hit, Item, Seqs, Vector
from memory_titan.store.ranking import Candidates, Floats, Ranking, RankingConfig, idf, rank, replacements
from memory_titan.store.terms import term_ids, tokenize
from memory_titan.store.top import ascending, where

CANDIDATES = 100  # by vectors and by words each, beside their neighbours
SAME = 0.97  # cosine from which two items of the same words say the same
TERMS = 1024  # of a query
RENEWED = 256  # hits among which what is newer is sought: each is compared with each
BLOCK = 512  # hits compared with all before them at once
MORE = 10  # hits looked at beyond those asked for: one may be newer than what it replaces


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
        order = ranking.order(4 * top_k)
        best, vectors = seqs[order], vectors[order]
        near = _near(vectors)
        items = self._read(best, near, top_k + MORE)
        chosen, twins = _merged(best.tolist(), near, items, top_k + MORE)
        first, rest = chosen[:RENEWED], chosen[RENEWED:]
        first, older = self._renewed(first, [items[int(best[at])] for at in first], ranking.scores[order], vectors)
        chosen = first + rest
        hits, used = [], []
        for at in chosen[:top_k]:
            item = items[int(best[at])]
            score = float(ranking.scores[order[at]]) / self._full
            hit = _hit(item, min(1.0, max(0.0, score)), ranking.explain(int(order[at])))
            hit["duplicates"] = [items[int(best[twin])].id for twin in twins[at]]
            hit["replaces"] = [items[int(best[old])].id for new, old in older if new == at]
            hit["replaced_by"] = next((items[int(best[new])].id for new, old in older if old == at), None)
            hits.append(hit)
            used.append(item.seq)
        return hits, used

    def _read(self, best: Seqs, near: dict[int, list[int]], count: int) -> dict[int, Item]:
        """By seq the items that `_merged` looks at: the first `count` that are like none before, and what is alike."""
        alike = near.keys() | {at for before in near.values() for at in before}
        first = [place for place in range(len(best)) if place not in near][:count]
        wanted = sorted(alike.union(first))
        items = self.backend.get(best[wanted])
        if len(items) < len(wanted):  # deleted meanwhile: others move up
            items = self.backend.get(best)
        return {item.seq: item for item in items}

    def _renewed(
        self, chosen: list[int], items: list[Item], scores: Floats, vectors: Vector
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The chosen places with what is newer before what it replaces; and these pairs, (newer, older)."""
        speakers, created = [item.speaker for item in items], [item.created for item in items]
        pairs = replacements(scores[chosen], vectors[chosen], speakers, created)
        order = list(range(len(chosen)))
        for newer, older in pairs:
            if (at := order.index(newer)) > (to := order.index(older)):
                order.insert(to, order.pop(at))
        return [chosen[at] for at in order], [(chosen[newer], chosen[older]) for newer, older in pairs]

    def nearest(self, vector: Vector, top_k: int, allowed: Seqs | None) -> tuple[list[Hit], list[int]]:
        """The nearest by cosine alone, their score -1 to 1; and their seqs."""
        seqs, cosines = self.backend.dense(vector, top_k, allowed)
        items = {item.seq: item for item in self.backend.get(seqs)}
        found = [(items[s], c) for s, c in zip(seqs.tolist(), cosines.tolist(), strict=True) if s in items]
        return [_hit(item, cosine, {"dense": cosine}) for item, cosine in found], [item.seq for item, _ in found]

    def _ranked(self, query: str, plan: Plan, k: int, allowed: Seqs | None) -> tuple[Seqs, Vector, Ranking]:
        """Candidates, ascending, their vectors and their scores."""
        backend, terms = self.backend, self._rarest(np.unique(term_ids(query)))
        near, _ = backend.dense(plan.vector, k, allowed)
        worded, _ = backend.lexical(terms, k, allowed)
        seqs = backend.around(ascending(np.concatenate([near, worded])), len(self.config.neighbours))
        if allowed is not None:
            seqs = seqs[where(allowed, seqs)[1]]
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

    def _rarest(self, terms: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Of a very long query the terms that are in the store and say most: its cost grows with terms times items."""
        if len(terms) <= TERMS:
            return terms
        frequencies = self.backend.words_of(terms, np.zeros(0, np.int64)).frequencies
        terms, frequencies = terms[frequencies > 0], frequencies[frequencies > 0]
        return terms[np.sort(np.argsort(frequencies, kind="stable")[:TERMS])]


def _near(vectors: Vector) -> dict[int, list[int]]:
    """Of the rows of `[n, dim]` that have nearly the same meaning as rows before them, which: ascending."""
    found: dict[int, list[int]] = {}
    for begin in range(0, len(vectors), BLOCK):
        end = begin + BLOCK
        cosines = vectors[begin:end] @ vectors[:end].T
        for place, other in np.argwhere(np.tril(cosines > SAME, begin - 1)).tolist():
            found.setdefault(begin + place, []).append(other)
    return found


def _merged(
    best: list[int], near: dict[int, list[int]], items: dict[int, Item], count: int
) -> tuple[list[int], dict[int, list[int]]]:
    """Places of the first `count` that say different things, and of each the places of its twins.

    Twins are near in meaning and have the same words: "on Thursday" and "on Friday" are none.

    Args:
        best: seqs, the best first.
        near: see `_near`.
        items: by seq.
        count: at most.
    """
    twins: dict[int, list[int]] = {}  # the chosen ones, in order, and theirs
    words: dict[int, frozenset[str]] = {}

    def words_at(place: int) -> frozenset[str]:
        if place not in words:
            words[place] = frozenset(tokenize(items[best[place]].content))
        return words[place]

    for place, seq in enumerate(best):
        if seq not in items:
            continue  # deleted meanwhile
        alike = (at for at in near.get(place, ()) if at in twins and words_at(at) == words_at(place))
        if (of := next(alike, None)) is not None:
            twins[of].append(place)
        elif len(twins) < count:  # once it is full, twins of the chosen may still follow
            twins[place] = []
    return list(twins), twins


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
        abridged=item.abridged,
    )
