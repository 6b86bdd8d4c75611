"""Searching in PostgreSQL: vectors compared exactly or through pgvector's HNSW graph, words by BM25 in one statement.

A store of its own graph: an index over the vectors of one store, made when it grows large. So a small store pays for
none, a search does not wade through others' vectors, and a filter is all that can make the graph run short. Then
pgvector goes on searching (iterative scan); where it gives up before enough are found, all are compared.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from memory_titan.store.item import Seqs, Vector
from memory_titan.store.postgres_link import FIND_VECTOR, LOCK, Connection, psycopg
from memory_titan.store.postings import Terms
from memory_titan.store.where import postgres_clause

EXACT = 20_000  # so many vectors are compared one by one
INDEXED_FROM = 50_000  # items of a store that gets a graph
INDEXED_DIM = 4000  # pgvector's limit, for half precision
ITERATIVE = "relaxed_order"  # of pgvector's scans; what is found is sorted anew
K1, B = 1.2, 0.75  # as in `words.py`


def exact(db: Connection, store: int, query: Vector, k: int, allowed: Seqs | None) -> tuple[Seqs, Vector]:
    """The k nearest of all `allowed`, compared one by one."""
    table, only = f"vectors_{len(query)}", "" if allowed is None else " AND seq = ANY (%s)"
    found = db.execute(
        f"SELECT seq, -(embedding <#> %s::vector) AS cosine FROM {table} WHERE store = %s{only} "
        "ORDER BY cosine DESC, seq DESC LIMIT %s",
        (query, store, *(() if allowed is None else (allowed,)), k),
        binary=True,
    ).fetchall()
    return _columns(found)


def by_graph(db: Connection, store: int, query: Vector, k: int, allowed: Seqs | None) -> tuple[Seqs, Vector]:
    """The k nearest that the store's graph leads to; fewer where a filter lets so few through that it gives up."""
    dim, only = len(query), "" if allowed is None else " AND seq = ANY (%s)"
    wide = k + k // 4 + 16  # by half precision
    with db.transaction():
        db.execute(
            "SELECT set_config('hnsw.iterative_scan', %s, true), set_config('hnsw.ef_search', %s, true), "
            "set_config('hnsw.max_scan_tuples', '40000', true), set_config('hnsw.scan_mem_multiplier', '8', true), "
            "set_config('enable_sort', 'off', true)",  # the planner's guesses about filters are no better than ours
            (ITERATIVE, str(min(1000, max(100, 3 * wide)))),
        )
        found = db.execute(
            "SELECT seq, -(embedding <#> %s::vector) AS cosine FROM (SELECT seq, embedding FROM "
            f"vectors_{dim} WHERE store = {int(store)}{only} ORDER BY embedding::halfvec({dim}) <#> "
            f"%s::vector::halfvec({dim}) LIMIT %s) AS near ORDER BY cosine DESC, seq DESC LIMIT %s",
            (query, *(() if allowed is None else (allowed,)), query, wide, k),
            binary=True,
        ).fetchall()
    return _columns(found)


def graph_name(store: int, dim: int) -> str:
    """Of the index."""
    return f"vectors_{dim}_of_{store}"


def has_graph(db: Connection, store: int, dim: int) -> bool:
    """Whether the store's vectors have an index that is ready."""
    name = f"memory_titan.{graph_name(store, dim)}"
    return bool(
        db.execute("SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid", (name,)).fetchone()
    )


def make_graph(url: str, store: int, dim: int) -> None:
    """Index the vectors of a store, while others read and write. Where it cannot be done, searches compare all."""
    name = graph_name(store, dim)
    try:
        with psycopg.connect(url, autocommit=True) as db:
            db.execute(FIND_VECTOR)
            free = db.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK, store)).fetchone()
            if not free or not free[0] or has_graph(db, store, dim):
                return  # someone is at it, or was
            db.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # one that was not finished
            db.execute(
                f"CREATE INDEX CONCURRENTLY {name} ON vectors_{int(dim)} USING hnsw "
                f"((embedding::halfvec({int(dim)})) halfvec_ip_ops) WHERE store = {int(store)}"
            )
    except psycopg.Error as error:
        logging.getLogger(__name__).warning("store %d is searched without an index of its vectors: %s", store, error)


def lexical(db: Connection, store: int, terms: Terms, k: int, allowed: Seqs | None) -> tuple[Seqs, Vector]:
    """The k best by BM25, as `words.py` has it, over the items that are there when it is asked."""
    distinct, times = np.unique(np.asarray(terms, np.uint32), return_counts=True)
    only = "" if allowed is None else " AND seq = ANY (%(allowed)s)"
    found = db.execute(
        "WITH total AS (SELECT items, tokens::float8 / greatest(items, 1) AS mean "
        "FROM stores WHERE store = %(store)s), "
        "query AS MATERIALIZED (SELECT term, %(slope)s / greatest(mean, 1e-9) AS slope, "
        "%(gain)s * times * ln(1 + (items - df + 0.5::float8) / (df + 0.5::float8)) AS gain "
        "FROM total, unnest(%(terms)s, %(times)s) AS distincts (term, times), LATERAL (SELECT count(*) AS df "
        "FROM postings WHERE store = %(store)s AND postings.term = distincts.term) AS counts) "
        # rounded, as equal items must score equally in whatever order their terms are added up
        "SELECT seq, sum(gain / (1 + (%(flat)s + slope * length) / tf))::real AS score FROM query JOIN postings "
        f"USING (term) WHERE store = %(store)s{only} GROUP BY seq ORDER BY score DESC, seq DESC LIMIT %(k)s",
        {
            "terms": distinct.view(np.int32),
            "times": times,
            "store": store,
            "k": k,
            "allowed": allowed,
            "gain": K1 + 1,
            "flat": K1 * (1 - B),
            "slope": K1 * B,
        },
        binary=True,
    ).fetchall()
    return _columns(found)


def selection(
    where: dict[str, Any] | None,
    places: int | None,
    after: float | None,
    before: float | None,
    order: str,
    limit: int | None,
) -> tuple[str, list[Any]]:
    """`Backend.select` as SQL, and its parameters after the first, which is the store."""
    clauses: list[str] = []
    values: list[Any] = []
    if places is not None:
        clauses.append(f" AND places & {int(places)} <> 0")  # written out: that is how an index of these items is found
    if after is not None:
        clauses.append(" AND created >= %s")
        values.append(after)
    if before is not None:
        clauses.append(" AND created < %s")
        values.append(before)
    if where:
        sql, parameters = postgres_clause(where)
        clauses.append(f" AND ({sql})")
        values += parameters
    by = {"seq": "seq", "-seq": "seq DESC", "value": "value, seq"}[order]
    some = "" if limit is None else f" LIMIT {int(limit)}"
    return f"SELECT seq FROM items WHERE store = %s{''.join(clauses)} ORDER BY {by}{some}", values


def idf(db: Connection, store: int, terms: Terms) -> Vector:
    """`[n]`: how rare each of `[n]` terms is among the items, as `words.py` has it."""
    distinct, places = np.unique(np.asarray(terms, np.uint32).reshape(-1), return_inverse=True)
    found = db.execute(
        "SELECT items, (SELECT count(*) FROM postings WHERE store = %(store)s AND postings.term = query.term) "
        "FROM stores, unnest(%(terms)s) WITH ORDINALITY AS query (term, place) WHERE store = %(store)s ORDER BY place",
        {"terms": distinct.view(np.int32), "store": store},
        binary=True,
    ).fetchall()
    counts = np.array(found, np.float64).reshape(-1, 2)
    return np.asarray(np.log1p((counts[:, 0] - counts[:, 1] + 0.5) / (counts[:, 1] + 0.5))[places], np.float32)


def _columns(rows: list[tuple[int, float]]) -> tuple[Seqs, Vector]:
    return np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.float32)
