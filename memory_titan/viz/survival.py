"""How long things last when some are still there at the end: the Kaplan-Meier estimator (1958)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Interval = Literal["log-log", "linear"]
_Z = 1.959963984540054  # of 95%


@dataclass(frozen=True)
class Survival:
    """S(t), the share that lasts longer than t: 1 before the first of `times`, from each one on its value.

    Attributes:
        times: `[M]`, at which one or more ended, rising.
        survival: `[M]`, S from that time on.
        low, high: `[M]`, 95% interval of S, a time for itself.
        at_risk: `[M]`, int64, still there just before.
        ended: `[M]`, int64, that ended then.
        censored: `[C]`, times to which those were seen that did not end, rising.
        count: all that were watched.
    """

    times: Numbers
    survival: Numbers
    low: Numbers
    high: Numbers
    at_risk: NDArray[np.int64]
    ended: NDArray[np.int64]
    censored: Numbers
    count: int

    @property
    def median(self) -> float | None:
        """The half-life: the first time at which S is a half or less; None: it stays above."""
        reached = self.times[self.survival <= 0.5 + 1e-12]
        return float(reached[0]) if len(reached) else None

    def at(self, times: Sequence[float] | NDArray[Any]) -> Numbers:
        """S at these times, `[...]` to the same."""
        steps = np.concatenate([[1.0], self.survival])
        return steps[np.searchsorted(self.times, np.asarray(times, np.float64), side="right")]

    def risk_at(self, times: Sequence[float] | NDArray[Any]) -> NDArray[np.int64]:
        """How many had neither ended nor gone out of sight just before these times."""
        gone = np.sort(np.concatenate([np.repeat(self.times, self.ended), self.censored]))
        return self.count - np.searchsorted(gone, np.asarray(times, np.float64), side="left")


def kaplan_meier(
    durations: Sequence[float] | NDArray[Any], ended: Sequence[bool] | NDArray[Any], interval: Interval = "log-log"
) -> Survival:
    """S(t) = prod over times t_i up to t of (1 - d_i / n_i), d_i ended at t_i of the n_i that were there until then.

    The variance is Greenwood's, S^2 sum d_i / (n_i (n_i - d_i)). One that is censored at t_i still counts in n_i.

    Args:
        durations: `[L]`, not negative.
        ended: `[L]`, bool; False: censored.
        interval: "log-log", symmetric for log(-log S), so that it stays within 0 and 1 and fits few data too; or
            "linear", S and 1.96 times Greenwood's error, cut at 0 and 1. At S = 0 there is none: it is S itself.

    Raises:
        ValueError: no durations, negative ones, or not one `ended` each.
    """
    length, over = np.asarray(durations, np.float64), np.asarray(ended, bool)
    if length.ndim != 1 or length.shape != over.shape or not len(length):
        raise ValueError(f"durations and ended must be [L], L at least 1; got {length.shape} and {over.shape}")
    if not (np.isfinite(length).all() and (length >= 0).all()):
        raise ValueError("durations must be finite and not negative")
    if interval not in get_args(Interval):
        raise ValueError(f"interval must be one of {', '.join(get_args(Interval))}; got {interval!r}")
    times, deaths = np.unique(length[over], return_counts=True)
    at_risk = len(length) - np.searchsorted(np.sort(length), times, side="left")
    survival = np.cumprod(1 - deaths / at_risk).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.cumsum(deaths / (at_risk * (at_risk - deaths)))
        if interval == "linear":
            error = _Z * survival * np.sqrt(greenwood)
            low, high = (survival - error).clip(0, 1), (survival + error).clip(0, 1)
        else:
            error = _Z * np.sqrt(greenwood) / np.log(survival)
            low, high = survival ** np.exp(-error), survival ** np.exp(error)
    none = survival < 1e-12
    bounds = [np.where(none, 0.0, bound).astype(np.float64) for bound in (low, high)]
    return Survival(times, survival, bounds[0], bounds[1], at_risk, deaths, np.sort(length[~over]), len(length))
