"""Ranking: parts do what their weights say, neighbours are of one session, the order of candidates is free."""

import math
from dataclasses import replace

import numpy as np
import pytest

from memory_titan.store.ranking import Candidates, RankingConfig, idf, rank, replacements

NONE = RankingConfig(lexical=0, dense=0, window=0, speaker=0, length=0, neighbours=())


def candidates(counts, *, session=None, position=None, words=None, **rest):
    counts = np.array(counts, dtype=float)
    m, n = counts.shape
    return Candidates(
        session=np.zeros(n, np.int64) if session is None else np.array(session),
        position=np.arange(n) if position is None else np.array(position),
        words=np.full(n, 10.0) if words is None else np.array(words, dtype=float),
        counts=counts,
        idf=np.ones(m),
        mean_words=10.0,
        **rest,
    )


def some(n=40, m=3, seed=0):
    rng = np.random.default_rng(seed)
    return candidates(
        rng.integers(0, 3, (m, n)),
        session=np.sort(rng.integers(0, 4, n)),
        position=np.arange(n) * 2 - rng.integers(0, 2, n),  # with gaps
        words=rng.integers(1, 30, n),
        dense=rng.normal(size=n),
        named=rng.random(n) < 0.5,
    )


def reorder(c, order):
    fields = {name: getattr(c, name)[..., order] for name in ("session", "position", "words", "counts")}
    return replace(c, dense=c.dense[order], named=c.named[order], **fields)


def naive(c, config):
    """The scores, place by place."""
    n = len(c.session)

    def value(x, session, place):
        rows = [i for i in range(n) if c.session[i] == session and c.position[i] == place]
        return x[rows[0]] if rows else 0.0

    def smooth(x, i):
        return x[i] + sum(
            share * value(x, c.session[i], c.position[i] + sign * distance)
            for distance, share in enumerate(config.neighbours, 1)
            for sign in (-1, 1)
        )

    discount = 1 - config.b + config.b * c.words / c.mean_words
    lexical, window = np.zeros(n), np.zeros(n)
    for weight, row in zip(c.idf, c.counts, strict=True):
        for i in range(n):
            count = smooth(row / discount, i)
            lexical[i] += weight * count / (count + config.k1)
            near = [j for j in range(n) if c.session[j] == c.session[i]]
            count = sum(row[j] for j in near if abs(c.position[j] - c.position[i]) <= config.radius)
            window[i] += weight * count / (count + config.window_k1)
    dense = np.array([smooth(c.dense, i) for i in range(n)]).clip(0)
    reach = max(config.radius, len(config.neighbours), 1)
    alone = np.array(
        [
            not any(
                j != i and c.session[j] == c.session[i] and abs(c.position[j] - c.position[i]) <= reach
                for j in range(n)
            )
            for i in range(n)
        ]
    )
    return (
        config.lexical * lexical / lexical.max()
        + config.dense * dense / dense.max()
        + config.window * np.where(alone, lexical / lexical.max(), window / window.max())
        + config.speaker * c.named
        + config.length * np.where(alone, 0.75, c.words / (c.words + config.half_length))
    )


@pytest.mark.parametrize("config", [RankingConfig(), RankingConfig(radius=1, neighbours=(0.5, 0.3, 0.2), b=1, k1=2)])
def test_scores_are_the_drawing_s(config):
    c = some()
    np.testing.assert_allclose(rank(c, config).scores, naive(c, config))


def test_the_order_of_candidates_does_not_matter():
    c, order = some(), np.random.default_rng(1).permutation(40)
    np.testing.assert_allclose(rank(reorder(c, order)).scores, rank(c).scores[order])


def test_an_answer_beside_the_words_is_found_but_not_across_sessions():
    counts = [[0, 0, 1, 0, 0]]
    near = rank(candidates(counts), replace(NONE, lexical=1, neighbours=(0.3,))).scores
    assert near[1] == near[3] > near[0] == near[4] == 0
    other = rank(candidates(counts, session=[0, 0, 0, 1, 1], position=[0, 1, 2, 3, 4]), RankingConfig(length=0)).scores
    assert other[1] > other[3] == 0


def test_the_window_gathers_different_words():
    c = candidates([[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]])
    window = rank(c, replace(NONE, window=1, radius=1)).scores
    assert window[0] == window[1] > window[2] > window[3] == 0
    assert window[5] < window[0]


def test_each_weight_has_its_part():
    c = some()
    ranking = rank(c)
    assert ranking.explain(3).keys() == {"lexical", "dense", "window", "speaker", "length"}
    assert sum(ranking.explain(3).values()) == pytest.approx(ranking.scores[3])
    for name, part in ranking.parts.items():
        assert (rank(c, replace(NONE, **{name: 1.0})).scores > 0).any(), name
        assert part.min() >= 0, name
    assert ranking.scores[ranking.order()].tolist() == sorted(ranking.scores, reverse=True)


def test_what_is_missing_counts_nothing():
    c = replace(some(m=1), dense=None, named=None)
    assert set(np.flatnonzero([part.any() for part in rank(c).parts.values()])) == {0, 2, 4}
    empty = candidates(np.zeros((0, 3)))
    assert np.isfinite(rank(empty).scores).all()
    assert len(rank(candidates(np.zeros((2, 0)))).scores) == 0


def test_idf():
    assert idf(100, [1, 100]) == pytest.approx([math.log(1 + 99.5 / 1.5), math.log(1 + 0.5 / 100.5)])


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"created": [1.0, 1.0, 3.0]}, False),  # at once
        ({"speakers": [None, None, None]}, False),  # not as close as that
        ({"scores": [0.85, 0.9, 0.1]}, True),
        ({"speakers": ["a", "b", "a"]}, False),
        ({"vectors": [[1, 0], [0, 1], [0, 1]]}, False),  # of something else
        ({"scores": [0.9, 0.7, 0.1]}, False),  # far behind
    ],
)
def test_replacements(changes, passes):
    usual = {"scores": [0.9, 0.85, 0.1], "vectors": [[1, 0], [0.8, 0.6], [0, 1]], "speakers": ["a", "a", "a"]}
    given = {**usual, "created": [1.0, 2.0, 3.0], **changes}
    found = replacements(given["scores"], np.array(given["vectors"]), given["speakers"], given["created"])
    assert found == ([(1, 0)] if passes else [])


@pytest.mark.parametrize("wrong", [{"lexical": -1}, {"dense": math.nan}, {"b": 2}, {"k1": 0}, {"radius": -1}])
def test_weights_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="must be"):
        RankingConfig(**wrong)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="dense must have shape"):
        candidates([[1, 2]], dense=np.zeros(3))
