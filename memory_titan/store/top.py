"""What the indexes need: the best of many scores exactly, places in a sorted array, arrays that grow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_COLUMNS = 1024  # scores fold into so many columns; only rows at or above a bound from their maxima are looked at


def top(scores: NDArray[np.floating], k: int, above: float = -np.inf) -> Ints:
    """Rows of the `k` highest of `scores` [n] that are over `above`: best first, of equals the later row first."""
    bound = above
    columns = max(_COLUMNS, 2 * k)
    deep = len(scores) // columns
    if deep > 1:
        # k columns reach the bound, each with a row of its own: no row under it is among the best k.
        maxima = scores[: deep * columns].reshape(deep, columns).max(0)
        bound = max(bound, np.partition(maxima, columns - k)[columns - k])
    rows = np.flatnonzero(scores > above) if bound == above else np.flatnonzero(scores >= bound)
    found = scores[rows]
    if len(rows) > k:
        worst = np.partition(found, len(rows) - k)[len(rows) - k]
        better, equal = rows[found > worst], rows[found == worst]
        rows = np.concatenate([better, equal[len(equal) - (k - len(better)) :]])
        found = scores[rows]
    return rows[np.lexsort((-rows, -found))]


def where(ascending: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each of `wanted` [n] stands in `ascending` (any place if nowhere), and whether it does: [n], [n] bool."""
    count = len(ascending)
    if not count:
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    if ascending[-1] - ascending[0] == count - 1:  # without a gap: the place is a difference
        places = wanted - ascending[0]
        there = (places >= 0) & (places < count)
        places[~there] = 0
        return places, there
    places = np.searchsorted(ascending, wanted)
    places[places == count] = 0
    return places, ascending[places] == wanted


def ascending(numbers: NDArray[np.int64]) -> Ints:
    """The different ones of `numbers` [n], in order; several times as fast as `np.unique`."""
    numbers = np.sort(numbers)
    new = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=new[1:])
    return numbers[new]


def grown(array: NDArray, used: int, more: NDArray) -> NDArray:  # type: ignore[type-arg]
    """`array` with `more` behind its first `used`: in place where there is room, else in a larger copy."""
    if used + len(more) > len(array):
        larger = np.empty((max(2 * used, 5 * (used + len(more)) // 4, 64), *array.shape[1:]), array.dtype)
        larger[:used] = array[:used]
        array = larger
    array[used : used + len(more)] = more
    return array
