"""LangGraph's filters on values, `{"kind": "note", "score": {"$gt": 3}}`, as its own stores understand them.

A field of the filter must equal the value's; a missing field counts as None. An object without operators must match in
the fields that it names, a list in each place. `$gt $gte $lt $lte` compare as numbers, also strings that read as ones;
what is no number does not match (LangGraph's `InMemoryStore` raises there).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

EQUAL: dict[str, Callable[[Any, Any], bool]] = {"$eq": operator.eq, "$ne": operator.ne}
ORDER: dict[str, Callable[[float, float], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def check_filter(wanted: Any) -> None:
    """Raises ValueError for what is no filter."""
    if wanted is None:
        return
    if not isinstance(wanted, Mapping):
        raise ValueError(f"a filter is an object such as {{'kind': 'note'}}; got {type(wanted).__name__}")
    for value in wanted.values():
        _check(value)


def _check(value: Any) -> None:
    if isinstance(value, Mapping):
        if _has_operators(value):
            if unknown := [name for name in value if name not in EQUAL and name not in ORDER]:
                raise ValueError(f"{unknown[0]!r} is no operator; there are {', '.join([*EQUAL, *ORDER])}")
        else:
            for inner in value.values():
                _check(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check(inner)


def matches_filter(value: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Whether a value passes a filter that `check_filter` lets pass."""
    return all(_matches(value.get(name), what) for name, what in (wanted or {}).items())


def _matches(here: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if _has_operators(wanted):
            return all(_compare(here, name, what) for name, what in wanted.items())
        return isinstance(here, Mapping) and matches_filter(here, wanted)
    if isinstance(wanted, (list, tuple)):
        return isinstance(here, list) and len(here) == len(wanted) and all(map(_matches, here, wanted))
    return bool(here == wanted)


def _compare(here: Any, name: str, wanted: Any) -> bool:
    if name in EQUAL:
        return EQUAL[name](here, wanted)
    try:
        return ORDER[name](float(here), float(wanted))
    except (TypeError, ValueError):
        return False


def _has_operators(wanted: Mapping[str, Any]) -> bool:
    return any(isinstance(name, str) and name.startswith("$") for name in wanted)
