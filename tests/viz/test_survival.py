"""Kaplan-Meier against a table made by hand and against scipy."""

import math

import numpy as np
import pytest

from memory_titan.viz.survival import kaplan_meier

# Six were watched. By hand: at 1 one of six ends, 5/6; at 3 one of five (the one censored at 3 is still there), 2/3;
# at 5 two of three, 2/9; the one censored at 8 stays.
DURATIONS = [1, 3, 3, 5, 5, 8]
ENDED = [True, True, False, True, True, False]


def test_by_hand():
    curve = kaplan_meier(DURATIONS, ENDED, "linear")
    assert curve.times.tolist() == [1, 3, 5] and curve.at_risk.tolist() == [6, 5, 3]
    assert curve.ended.tolist() == [1, 1, 2] and curve.censored.tolist() == [3, 8] and curve.count == 6
    assert curve.survival == pytest.approx([5 / 6, 2 / 3, 2 / 9])
    error = 1.959964 * (2 / 3) * math.sqrt(1 / (6 * 5) + 1 / (5 * 4))
    assert (curve.low[1], curve.high[1]) == pytest.approx((2 / 3 - error, 1.0), abs=1e-6)  # cut at 1
    assert curve.median == 5
    assert curve.at([0, 1, 2.9, 3, 100]) == pytest.approx([1, 5 / 6, 5 / 6, 2 / 3, 2 / 9])
    assert curve.risk_at([0, 1, 2, 3, 4, 8, 9]).tolist() == [6, 6, 5, 5, 3, 1, 0]


def test_the_median_is_none_when_half_are_never_gone():
    assert kaplan_meier([1, 4, 4, 4], [True, False, False, False]).median is None
    assert kaplan_meier([2, 9], [True, False]).median == 2  # a half is reached
    nothing = kaplan_meier([4, 4], [False, False])
    assert nothing.median is None and nothing.at([7.0])[0] == 1.0 and not len(nothing.times)


@pytest.mark.parametrize("interval", ["linear", "log-log"])
def test_against_scipy(interval):
    stats = pytest.importorskip("scipy.stats")
    if not hasattr(stats, "ecdf"):
        pytest.skip("scipy before 1.11")
    generator = np.random.default_rng(3)
    durations, ended = generator.integers(1, 40, 80), generator.random(80) < 0.6
    data = stats.CensoredData(uncensored=durations[ended], right=durations[~ended])
    theirs = stats.ecdf(data).sf
    ours = kaplan_meier(durations, ended, interval)
    assert ours.at(theirs.quantiles) == pytest.approx(theirs.probabilities)
    bounds = theirs.confidence_interval(0.95, method=interval)
    at = np.searchsorted(bounds.low.quantiles, ours.times)
    here = ours.survival > 0
    assert ours.low[here] == pytest.approx(bounds.low.probabilities[at][here].clip(0, 1))
    assert ours.high[here] == pytest.approx(bounds.high.probabilities[at][here].clip(0, 1))


@pytest.mark.parametrize(
    ("durations", "ended", "says"),
    [([], [], "at least 1"), ([1, 2], [True], "must be"), ([-1], [True], "negative"), ([math.nan], [True], "finite")],
)
def test_what_cannot_be(durations, ended, says):
    with pytest.raises(ValueError, match=says):
        kaplan_meier(durations, ended)
    with pytest.raises(ValueError, match="log-log"):
        kaplan_meier([1], [True], "gamma")
