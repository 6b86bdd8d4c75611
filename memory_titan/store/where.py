"""The filters of a query: `where={"user": "u1", "age": {"$gt": 3}}` on an item's metadata, a JSON object.

A filter is an object. A key names a field of the metadata, at its top level and whatever it is spelt like, or it is one
of `$and`, `$or` (lists of filters) and `$not` (one filter). A field's value is what it must equal, or an object of
operators. Several keys, and several operators, must all hold; `{}` matches every item.

    $eq $ne           equal; values are strings, numbers, booleans and None, and never equal one of another kind (True
                      is not 1, None is not a missing field; 1 is 1.0)
    $gt $gte $lt $lte numbers with numbers, strings with strings, by code point; anything else does not match
    $in $nin          equal to one of a list
    $exists           whether there is such a field, be it None
    $contains         a list holds the value, or a string holds the string; "" is in every string

`$ne` and `$nin` are the opposites of `$eq` and `$in`: they match items without the field too. Lists and objects can be
asked for `$exists` and `$contains` only.

`matches` and `matcher` are what a filter means; `sqlite_clause` and `postgres_clause` say it to a database. Values, and
names too, are bound and never part of the SQL, and no clause is ever NULL.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

SMALLEST, LARGEST = -(2**63), 2**63 - 1  # SQLite's integers
METADATA_BYTES: Final = 65_536
MAX_DEPTH: Final = 32
MAX_CONDITIONS: Final = 300  # SQLite takes expressions 1000 deep, and counts a chain of AND as depth
MAX_VALUES: Final = 10_000  # and 32766 parameters

LOGIC: Final = ("$and", "$or", "$not")
COMPARE: Final = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
SYMBOLS: Final = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
OPERATORS: Final = ("$eq", "$ne", *COMPARE, "$in", "$nin", "$exists", "$contains")
OPPOSITES: Final = {"$ne": "$eq", "$nin": "$in"}

# What sqlite_clause looks into. `value` has no type, so that SQLite keeps each value as it came.
TAGS_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tags (
    key TEXT NOT NULL, kind TEXT NOT NULL, value NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (key, kind, value, seq)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tags_of_item ON tags (seq);
"""

# bool before int, which it is one of
KINDS: Final[dict[type, str]] = {
    bool: "bool", str: "text", int: "number", float: "number", type(None): "null", list: "list", dict: "object",
}  # fmt: skip

_json = json.JSONEncoder(ensure_ascii=False).encode  # made once

Scalar: TypeAlias = "str | int | float | bool | None"
Tag: TypeAlias = "tuple[str, str, str | int | float]"
Clause: TypeAlias = "tuple[str, list[Any]]"


@dataclass(frozen=True)
class Condition:
    """One condition on one field: an operator of OPERATORS (never an opposite) and its value."""

    key: str
    op: str
    value: Any


@dataclass(frozen=True)
class Join:
    """Filters that must all hold ("AND"), one of which must hold ("OR"), or the one that must not ("NOT")."""

    word: str
    parts: tuple[Condition | Join, ...]


Node: TypeAlias = "Condition | Join"


def check_metadata(metadata: Any, limit: int = METADATA_BYTES) -> None:
    """Refuse what no store could keep and give back: not a JSON object, or more than `limit` bytes as JSON (UTF-8).

    Numbers are finite and integers fit 64 bits; strings hold no NUL and no lone surrogate; keys are strings; lists and
    objects nest at most MAX_DEPTH deep. Raises ValueError naming the field.
    """
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata is an object of names and values, not {_shown(metadata)}")
    if not metadata:
        return
    _check_value(metadata, "metadata", 0)
    size = len(_json(metadata).encode())
    if size > limit:
        raise ValueError(
            f"metadata of {size} bytes as JSON; at most {limit} are kept (long text belongs in the content)"
        )


def _check_value(value: Any, at: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{at[:80]}...: lists and objects nest at most {MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{at}: names are strings, not {_shown(key)}")
            if not _plain(key):
                _check_scalar(key, at)
            if not _plain(item):  # naming the field costs more than looking at what is in it
                _check_value(item, f"{at}[{_shown(key)}]", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_value(item, f"{at}[{index}]", depth + 1)
    else:
        _check_scalar(value, at)


def _plain(value: Any) -> bool:
    """Whether `_check_scalar` need not look at it."""
    if type(value) is str:
        return value.isascii() and "\0" not in value
    return value is None or type(value) is bool or (type(value) is int and SMALLEST <= value <= LARGEST)


def _check_scalar(value: Any, at: str) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError(f"{at}: a string with a NUL character, which databases do not keep: {_shown(value)}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{at}: a string with half a surrogate pair, no valid text: {_shown(value)}") from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{at}: numbers are finite, not {value}")
    elif isinstance(value, int):  # bool too
        if not SMALLEST <= value <= LARGEST:
            raise ValueError(f"{at}: an integer beyond 64 bits; keep it as a string")
    elif value is not None:
        raise ValueError(f"{at}: strings, numbers, booleans, None, and lists and objects of them, not {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, int) and not SMALLEST <= value <= LARGEST:
        return "an integer beyond 64 bits"  # Python refuses to print the longest
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_where(where: Any) -> None:
    """Refuse what is no filter: ValueError says what is wrong and what there is."""
    _parse(where)


def kind_of(value: Any) -> str:
    """Which JSON type a value is: "text", "number", "bool", "null", "list" or "object"."""
    plain = KINDS.get(type(value))
    return plain or next(kind for base, kind in KINDS.items() if isinstance(value, base))  # an enum's member


def _parse(where: Any) -> Node:
    node = _filter(where, "where", 0)
    leaves = _leaves(node)
    if len(leaves) > MAX_CONDITIONS:
        raise ValueError(f"where: {len(leaves)} conditions; at most {MAX_CONDITIONS} ($in takes many values at once)")
    values = sum(len(leaf.value) for leaf in leaves if isinstance(leaf, Condition) and leaf.op == "$in")
    if values > MAX_VALUES:
        raise ValueError(f"where: {values} values in $in and $nin; at most {MAX_VALUES}")
    return node


def is_everything(where: dict[str, Any]) -> bool:
    """Whether a filter has no condition at all, as {} and {"$and": [{}]}."""
    return not any(isinstance(leaf, Condition) for leaf in _leaves(_parse(where)))


def _leaves(node: Node) -> list[Node]:
    if isinstance(node, Condition) or not node.parts:
        return [node]
    return [leaf for part in node.parts for leaf in _leaves(part)]


def _filter(where: Any, at: str, depth: int) -> Node:
    if not isinstance(where, dict):
        raise ValueError(f"{at}: a filter is an object such as {{'user': 'u1'}}, not {_shown(where)}")
    if depth > MAX_DEPTH:
        raise ValueError(f"where: filters nest at most {MAX_DEPTH} deep")
    parts: list[Node] = []
    for key, value in where.items():
        if not isinstance(key, str):
            raise ValueError(f"{at}: names are strings, not {_shown(key)}")
        if key == "$not":
            parts.append(Join("NOT", (_filter(value, key, depth + 1),)))
        elif key in LOGIC:
            if not isinstance(value, list) or not value:
                raise ValueError(
                    f"{key} takes a list of filters, not {_shown(value) if value != [] else 'an empty one'}"
                )
            parts.append(Join(key[1:].upper(), tuple(_filter(part, key, depth + 1) for part in value)))
        elif key.startswith("$"):
            where_it_goes = " (it goes inside a field's object)" if key in OPERATORS else ""
            raise ValueError(
                f"{_shown(key)} is no filter{where_it_goes}; there are {', '.join(LOGIC)} and names of fields"
            )
        else:
            _check_scalar(key, at)
            parts += _field(str.__str__(key), value)
    return parts[0] if len(parts) == 1 else Join("AND", tuple(parts))


def _field(key: str, value: Any) -> list[Node]:
    at = f"where[{_shown(key)}]"
    if not isinstance(value, dict):
        return [Condition(key, "$eq", _scalar(value, at))]
    unknown = [op for op in value if op not in OPERATORS]
    if unknown or not value:
        what = _shown(unknown[0]) if unknown else "an empty object"
        raise ValueError(f"{at}: {what} is no operator; there are {', '.join(OPERATORS)}")
    return [_operator(key, op, item, f"{at}[{op!r}]") for op, item in value.items()]


def _operator(key: str, op: str, value: Any, at: str) -> Node:
    if op in OPPOSITES:
        return Join("NOT", (_operator(key, OPPOSITES[op], value, at),))
    if op == "$exists":
        if not isinstance(value, bool):
            raise ValueError(f"{at} is True or False, not {_shown(value)}")
        exists = Condition(key, op, True)
        return exists if value else Join("NOT", (exists,))
    if op == "$in":
        if not isinstance(value, list):
            raise ValueError(f"{at} takes a list of values, not {_shown(value)}")
        return Condition(key, op, [_scalar(item, at) for item in value])
    scalar = _scalar(value, at)
    if op in COMPARE and kind_of(scalar) not in ("number", "text"):
        raise ValueError(f"{at}: numbers and strings have an order, not {_shown(value)}")
    return Condition(key, op, scalar)


def _scalar(value: Any, at: str) -> Scalar:
    if isinstance(value, (list, dict, tuple, set)):
        allowed = "a string, a number, True, False or None (for lists there are $in and $contains)"
        raise ValueError(f"{at} is {allowed}, not a {type(value).__name__}")
    _check_scalar(value, at)
    return json.loads(json.dumps(value))  # an enum's member or a NumPy number becomes what is stored of it


def matcher(where: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """`matches` with its filter read once, for many items. Raises ValueError as check_where does."""
    whole = _parse(where)

    def holds(node: Node, metadata: dict[str, Any]) -> bool:
        if isinstance(node, Condition):
            return _test(node, metadata)
        if node.word == "NOT":
            return not holds(node.parts[0], metadata)
        return (any if node.word == "OR" else all)(holds(part, metadata) for part in node.parts)

    return lambda metadata: holds(whole, metadata)


def matches(where: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """Whether `metadata` (as check_metadata lets it pass) passes the filter: the meaning of the clauses below."""
    return matcher(where)(metadata)


def _test(condition: Condition, metadata: dict[str, Any]) -> bool:
    if condition.key not in metadata:
        return False
    here, value = metadata[condition.key], condition.value
    if condition.op == "$exists":
        return True
    if condition.op == "$in":
        return any(_equal(here, item) for item in value)
    if condition.op == "$contains":
        if isinstance(here, list):
            return any(_equal(item, value) for item in here)
        return isinstance(here, str) and isinstance(value, str) and value in here
    if condition.op == "$eq":
        return _equal(here, value)
    return kind_of(here) == kind_of(value) and COMPARE[condition.op](here, value)


def _equal(here: Any, value: Scalar) -> bool:
    return kind_of(here) == kind_of(value) and here == value


def _render(node: Node, leaf: Callable[[Condition], Clause]) -> Clause:
    if isinstance(node, Condition):
        return leaf(node)
    clauses = [_render(part, leaf) for part in node.parts]
    params = [param for _, part in clauses for param in part]
    if node.word == "NOT":
        return f"NOT ({clauses[0][0]})", params
    return f" {node.word} ".join(f"({sql})" for sql, _ in clauses) or "1 = 1", params


def tag_rows(metadata: dict[str, Any]) -> list[Tag]:
    """The rows of an item in the table `tags`, each (key, kind, value), for sqlite_clause to find.

    Every field has one row of its kind_of(); a list has one more for each different element that is no list or object,
    its kind being "element:text" and so on. Booleans are 0 and 1; None, lists and objects have "" for a value.
    """
    rows: dict[Tag, None] = {}  # a set in order; 1 and 1.0 are one row, as in the table's key
    for key, value in metadata.items():
        key = str.__str__(key)
        rows[key, kind_of(value), _tag_value(value)] = None
        if isinstance(value, list):
            for item in value:
                if kind_of(item) not in ("list", "object"):
                    rows[key, f"element:{kind_of(item)}", _tag_value(item)] = None
    return list(rows)


def _tag_value(value: Any) -> str | int | float:
    if isinstance(value, str):
        return str.__str__(value)  # plainly a string, if it was an enum's member
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, int) else ""


def sqlite_clause(where: dict[str, Any]) -> Clause:
    """An SQL condition on `items.seq`, with ? for each of the parameters beside it; it looks into TAGS_SCHEMA's table.

    Raises ValueError as check_where does.
    """

    def leaf(condition: Condition) -> Clause:
        sql, params = _sqlite_test(condition)
        return f"items.seq IN (SELECT seq FROM tags WHERE key = ?{sql})", [condition.key, *params]

    return _render(_parse(where), leaf)


def sqlite_tags(where: dict[str, Any]) -> Clause | None:
    """For a filter of one condition: SQL that gives the seqs it lets through, some of them twice; None: for others.

    The items themselves need not be looked up for it, nor a list of seqs be sorted. Raises ValueError likewise.
    """
    node = _parse(where)
    if not isinstance(node, Condition):
        return None
    sql, params = _sqlite_test(node)
    return f"SELECT seq FROM tags WHERE key = ?{sql}", [node.key, *params]


def _sqlite_test(condition: Condition) -> Clause:
    if condition.op == "$exists":
        return "", []
    if condition.op == "$in":
        by_kind: dict[str, list[Any]] = {}
        for value in condition.value:
            by_kind.setdefault(kind_of(value), []).append(_tag_value(value))
        if not by_kind:
            return " AND 1 = 0", []
        sql = " OR ".join(f"kind = ? AND value IN ({', '.join('?' * len(values))})" for values in by_kind.values())
        return f" AND ({sql})", [param for kind, values in by_kind.items() for param in (kind, *values)]
    kind, value = kind_of(condition.value), _tag_value(condition.value)
    if condition.op != "$contains":
        return f" AND kind = ? AND value {SYMBOLS.get(condition.op, '=')} ?", [kind, value]
    element = " AND (kind = ? AND value = ?", [f"element:{kind}", value]
    if kind != "text":
        return f"{element[0]})", element[1]
    return f"{element[0]} OR kind = 'text' AND instr(value, ?) > 0)", [*element[1], value]


def postgres_clause(where: dict[str, Any]) -> Clause:
    """An SQL condition on a JSONB column `metadata`, with %s for each of the parameters beside it (psycopg 3).

    A GIN index on the column serves $eq, $exists and, in lists, $contains. JSONB keeps the decimal digits it was given:
    a float above 1e16 may there differ from the integer that Python calls equal. Raises ValueError as check_where does.
    """
    return _render(_parse(where), _postgres_test)


def _postgres_test(condition: Condition) -> Clause:
    key, value = condition.key, condition.value
    if condition.op == "$exists":
        return "metadata ? %s::text", [key]
    if condition.op == "$in":
        sql = "COALESCE((metadata -> %s::text) = ANY (%s::jsonb[]), FALSE)"
        return sql, [key, [json.dumps(item) for item in value]]
    if condition.op == "$eq":
        return "metadata @> %s::jsonb", [json.dumps({key: value})]
    if condition.op == "$contains":
        holds = "metadata @> %s::jsonb", [json.dumps({key: [value]})]
        if not isinstance(value, str):
            return holds
        # CASE, as AND may look at its second half first
        text = "CASE jsonb_typeof(metadata -> %s::text) WHEN 'string' THEN strpos(metadata ->> %s::text, %s::text) > 0"
        return f"{holds[0]} OR {text} ELSE FALSE END", [*holds[1], key, key, value]
    kind, cast = ("string", 'text COLLATE "C"') if isinstance(value, str) else ("number", "numeric")
    sql = (
        f"CASE jsonb_typeof(metadata -> %s::text) WHEN '{kind}' "
        f"THEN (metadata ->> %s::text)::{cast} {SYMBOLS[condition.op]} %s::{cast} ELSE FALSE END"
    )
    return sql, [key, key, value if isinstance(value, str) else json.dumps(value)]
