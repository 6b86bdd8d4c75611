"""Which of the candidates hold the evidence: words and meaning, of an item and of what was said around it.

    score =   lexical * BM25 of the item, words of its neighbours counted in part    "Where do you live now?"
            + dense   * cosine of the item, with part of its neighbours'             "In York, by the river."
            + window  * BM25 of the dozen items either side: the subject             "... since we left Leeds ..."
            + speaker * 1 if the query names who said it
            + length  * words / (words + half_length)                                "Yes!" tells nothing

The first three are divided by the best candidate's. Evidence in a conversation often answers or follows the turn that
holds the question's words; hence neighbours, whose words are counted before BM25 saturates, as BM25F counts fields (S.
Robertson, H. Zaragoza, M. Taylor, Simple BM25 extension to multiple weighted fields, 2004). Pure functions over arrays;
no data base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

USUAL_LENGTH = 0.75  # of `length`, for what stands alone
NEARLY = 0.1  # of two scores
ABOUT_THE_SAME, SAME_WORDS = 0.6, 0.8  # cosines of statements of one speaker, and of nobody in particular

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RankingConfig:
    """Weights of the parts of a score, and the constants within them. Chosen once, on scripts of conversations."""

    lexical: float = 0.5  # BM25 of the item
    dense: float = 0.5  # cosine of the query's and the item's vectors
    window: float = 0.2  # BM25 of the items around
    speaker: float = 0.1  # the query names the speaker
    length: float = 0.2  # long items before short ones
    neighbours: tuple[float, ...] = (0.2, 0.1)  # shares that items 1, 2, ... before and after count with
    radius: int = 12  # items either side in the window
    k1: float = 0.9  # BM25: how soon repetition stops to count
    b: float = 0.4  # BM25: how much long items are discounted, from 0 to 1
    window_k1: float = 1.2
    half_length: float = 5.0  # words at which `length` counts half

    def __post_init__(self) -> None:
        weights = (self.lexical, self.dense, self.window, self.speaker, self.length, *self.neighbours)
        if min(weights) < 0 or not np.isfinite(weights).all():
            raise ValueError(f"weights must be at least 0; got {self}")
        if min(self.k1, self.window_k1, self.half_length) <= 0 or not 0 <= self.b <= 1 or self.radius < 0:
            raise ValueError(
                f"k1, window_k1 and half_length must be above 0, b from 0 to 1, radius at least 0; got {self}"
            )


@dataclass(frozen=True)
class Candidates:
    """What is known of n candidates, in any order, and of the query's m words.

    Candidates should hold the neighbours of what matched, too: evidence need not match itself.
    """

    session: Ints  # [n] a number for each session; items without one need different numbers
    position: Ints  # [n] place in the session: 0, 1, 2, ...
    words: Floats  # [n] length in words
    counts: Floats  # [m, n] how often each word of the query stands in the item
    idf: Floats  # [m], see `idf`
    mean_words: float  # length of an item of the store, on average
    dense: Floats | None = None  # [n] cosine with the query; None: no vectors
    named: NDArray[np.bool_] | None = None  # [n] the query names the item's speaker; None: it names none

    def __post_init__(self) -> None:
        n, m = len(self.session), len(self.idf)
        for name, shape in {"position": (n,), "words": (n,), "counts": (m, n), "dense": (n,), "named": (n,)}.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must have shape {shape} beside {n} sessions and {m} idf; got {value.shape}")


@dataclass(frozen=True)
class Ranking:
    """Scores of candidates and what they are made of."""

    scores: Floats  # [n]
    parts: dict[str, Floats]  # name of a part: [n], weighted; they sum to the scores

    def order(self, count: int | None = None) -> Ints:
        """`[n]` candidates, best first, or the first `count`; equal ones in the order they came."""
        scores, rows = -self.scores, None
        if count is not None and count < len(scores):
            rows = np.flatnonzero(scores <= np.partition(scores, count)[count])
            scores = scores[rows]
        order = np.argsort(scores, kind="stable")[:count]
        return order if rows is None else rows[order]

    def explain(self, candidate: int) -> dict[str, float]:
        """The parts of one candidate's score, by name."""
        return {name: float(part[candidate]) for name, part in self.parts.items()}


def idf(items: int, frequencies: ArrayLike) -> Floats:
    """Inverse document frequency, never negative.

    Args:
        items: in the store.
        frequencies: `[m]`, how many of them hold each word.

    Returns:
        `[m]`, `log(1 + (items - f + 0.5) / (f + 0.5))`.
    """
    f = np.asarray(frequencies, dtype=np.float64)
    return np.asarray(np.log1p((items - f + 0.5) / (f + 0.5)))


def rank(candidates: Candidates, config: RankingConfig | None = None) -> Ranking:
    """Score candidates.

    Args:
        candidates: what is known of them.
        config: weights; None: the defaults.

    Returns:
        Scores and their parts "lexical", "dense", "window", "speaker" and "length", in the candidates' order.
    """
    config = config or RankingConfig()
    n = len(candidates.session)
    near = _Near(candidates, config)
    words, counts = near.sorted(candidates.words), near.sorted(candidates.counts)
    discount = 1 - config.b + config.b * words / max(candidates.mean_words, 1e-9)
    smooth = near.smooth(counts / np.maximum(discount, 1e-9))
    lexical = _scaled(candidates.idf @ (smooth / (smooth + config.k1)))
    around = near.window(counts)
    # What stands alone has no subject around it but its own words, and is a document, no "Yes!" to be held back.
    window = np.where(near.alone, lexical, _scaled(candidates.idf @ (around / (around + config.window_k1))))
    length = np.where(near.alone, USUAL_LENGTH, words / (words + config.half_length))
    dense = None if candidates.dense is None else _scaled(near.smooth(near.sorted(candidates.dense)))
    parts = {
        "lexical": config.lexical * near.as_they_came(lexical),
        "dense": np.zeros(n) if dense is None else config.dense * near.as_they_came(dense),
        "window": config.window * near.as_they_came(window),
        "speaker": np.zeros(n) if candidates.named is None else config.speaker * candidates.named.astype(np.float64),
        "length": config.length * near.as_they_came(length),
    }
    return Ranking(np.asarray(sum(parts.values())), parts)


def replacements(
    scores: ArrayLike, vectors: NDArray[np.floating], speakers: Sequence[str | None], created: ArrayLike
) -> list[tuple[int, int]]:
    """Newer statements about the same thing: "We live in Leeds", then, "We moved to York".

    Only where wordings are close; a fact replaced in quite other words is not seen to be the same.

    Args:
        scores: `[n]`, the best first.
        vectors: `[n, dim]`, rows of length 1.
        speakers: of each.
        created: `[n]`, larger is later.

    Returns:
        Pairs `(newer, older)` of one speaker, told at different times, that score nearly the same.
    """
    score, time = np.asarray(scores, np.float64), np.asarray(created, np.float64)
    passes = (time[:, None] > time) & (np.abs(score[:, None] - score) < NEARLY)
    if not passes.any():
        return []
    cosines = vectors @ vectors.T
    passes &= cosines > min(ABOUT_THE_SAME, SAME_WORDS)
    return [
        (newer, older)
        for newer, older in np.argwhere(passes).tolist()
        if speakers[newer] == speakers[older]
        and cosines[newer, older] > (ABOUT_THE_SAME if speakers[newer] else SAME_WORDS)
    ]


class _Near:
    """Candidates by their places, and sums over the neighbours of each, where some places may be no candidate."""

    def __init__(self, candidates: Candidates, config: RankingConfig) -> None:
        # one number a place, sessions so far apart that no window reaches over
        reach = max(config.radius, len(config.neighbours), 1)
        span = (int(candidates.position.max()) if len(candidates.position) else 0) + 2 * (reach + 1)
        place = _numbered(candidates.session, span) * span + candidates.position
        self.order: Ints | None = None  # None: as they came
        if (place[1:] < place[:-1]).any():
            self.order = np.argsort(place, kind="stable")
            place = place[self.order]
        self.low = np.searchsorted(place, place - config.radius, "left")
        self.high = np.searchsorted(place, place + config.radius, "right")
        self.alone = np.ones(len(place), bool)  # no other candidate of its session is anywhere near
        close = place[1:] - place[:-1] <= reach
        self.alone[1:][close] = self.alone[:-1][close] = False
        self.shares = []  # by how much candidates n apart count for each other, n = 1, 2, ...
        for apart in range(1, len(config.neighbours) + 1):
            distance = place[apart:] - place[:-apart]
            self.shares.append(
                sum((distance == d) * share for d, share in enumerate(config.neighbours[apart - 1 :], apart))
            )

    def sorted(self, x: Floats) -> Floats:
        """`[..., n]` in the order of places, in which all below is."""
        return x if self.order is None else x.take(self.order, -1)

    def as_they_came(self, x: Floats) -> Floats:
        """`[n]` back from the order of places."""
        if self.order is None:
            return x
        result = np.empty_like(x)
        result[self.order] = x
        return result

    def smooth(self, x: Floats) -> Floats:
        """`[..., n]` -> `[..., n]`, with the shares of the neighbours' values added."""
        result = x.copy()
        for apart, share in enumerate(self.shares, 1):
            result[..., :-apart] += share * x[..., apart:]
            result[..., apart:] += share * x[..., :-apart]
        return result

    def window(self, x: Floats) -> Floats:
        """`[m, n]` -> `[m, n]`, sums over the windows."""
        sums = np.zeros((len(x), x.shape[1] + 1))
        np.cumsum(x, axis=1, out=sums[:, 1:])
        return sums.take(self.high, 1) - sums.take(self.low, 1)


def _numbered(session: Ints, span: int) -> Ints:
    """Sessions by numbers from 0, so small that times `span` they are still numbers."""
    low = session.min(initial=0)
    if int(session.max(initial=0)) - int(low) < (1 << 62) // span:
        return session - low
    return np.unique(session, return_inverse=True)[1].astype(np.int64)


def _scaled(x: Floats) -> Floats:
    """Of the best; what is below 0 counts as 0."""
    x = np.maximum(x, 0)
    best = x.max(initial=0)
    return x / best if best > 0 else x
