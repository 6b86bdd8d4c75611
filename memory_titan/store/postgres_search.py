"""Searching in PostgreSQL: vectors compared exactly or through pgvector's HNSW graph, words by BM25 in one statement.

A store of its own graph: an index over the vectors of one store, made when it grows large. So a small store pays for
none, a search does not wade through others' vectors, and a filter is all that can make the graph run short. Then
pgvector goes on searching (iterative scan); where it gives up before enough are found, all are compared.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from memory_titan.store.backend import Words
from memory_titan.store.item import Seqs, Vector
from memory_titan.store.postgres_link import FIND_VECTOR, LOCK, Connection, psycopg
from memory_titan.store.postings import Terms
from memory_titan.store.sessions import Places
from memory_titan.store.where import postgres_clause

EXACT = 20_000  # so many vectors are compared one by one
INDEXED_FROM = 50_000  # items of a store that gets a graph
INDEXED_DIM = 4000  # pgvector's limit, for half precision
ITERATIVE = "relaxed_order"  # of pgvector's scans; what is found is sorted anew
LOOKED_UP = 200  # so many allowed items are looked up with each word
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
    # Few are looked up in the index; many are not: `seq + 0` is in none, and is checked against a hash table.
    column = "seq" if allowed is not None and len(allowed) < LOOKED_UP else "seq + 0"
    only = "" if allowed is None else f" AND {column} = ANY (%(allowed)s)"
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


def words_of(db: Connection, store: int, terms: Terms, seqs: Seqs) -> Words:
    """See `Backend.words_of`. One statement, so that sums and items are of one moment."""
    asked, term_places = np.unique(np.asarray(terms, np.uint32).reshape(-1), return_inverse=True)
    wanted, seq_places = np.unique(np.asarray(seqs, np.int64).reshape(-1), return_inverse=True)
    (_, items, tokens, _), (_, _, there, lengths), *held = db.execute(
        "SELECT NULL::int AS term, items AS df, ARRAY[tokens] AS seqs, NULL::int[] AS numbers FROM stores "
        "WHERE store = %(store)s UNION ALL "
        "SELECT NULL, NULL, array_agg(seq), array_agg(octet_length(terms) / 4) FROM items "
        "WHERE store = %(store)s AND seq = ANY (%(seqs)s) UNION ALL "
        # one way through the postings of each term for both, its frequency and its counts
        "SELECT term, count(*), array_agg(seq) FILTER (WHERE seq = ANY (%(seqs)s)), "
        "array_agg(tf) FILTER (WHERE seq = ANY (%(seqs)s)) FROM postings "
        "WHERE store = %(store)s AND term = ANY (%(terms)s) GROUP BY term "
        "ORDER BY term NULLS FIRST, df NULLS LAST",
        {"store": store, "seqs": wanted, "terms": asked.view(np.int32)},
        binary=True,
    ).fetchall()
    words = np.zeros(len(wanted))
    words[np.searchsorted(wanted, there or [])] = lengths or []
    counts, frequencies = np.zeros((len(asked), len(wanted))), np.zeros(len(asked), np.int64)
    for term, df, holders, tf in held:
        row = np.searchsorted(asked, np.uint32(term % 2**32))
        frequencies[row] = df
        counts[row, np.searchsorted(wanted, holders or [])] = tf or []
    return Words(
        counts=counts[term_places][:, seq_places],
        lengths=words[seq_places],
        frequencies=frequencies[term_places],
        items=items,
        mean_length=tokens[0] / items if items else 0.0,
    )


def places(db: Connection, store: int, seqs: Seqs) -> Places:
    """See `Backend.places`; a session's number is the hash of its name."""
    found = db.execute(
        "SELECT seq, stream, position, speaker FROM items WHERE store = %s AND seq = ANY (%s)",
        (store, seqs),
        binary=True,
    ).fetchall()
    codes: dict[str | None, int] = {None: -1}
    by_seq = {seq: (stream, at, codes.setdefault(name, len(codes) - 1)) for seq, stream, at, name in found}
    table = np.array([by_seq.get(seq, (-1, -1, -1)) for seq in seqs.tolist()], np.int64).reshape(-1, 3)
    return Places(table[:, 0], table[:, 1], table[:, 2], names=[name for name in codes if name is not None])


def around(db: Connection, store: int, seqs: Seqs, radius: int) -> Seqs:
    """See `Backend.around`; the place of a deleted item counts, although it is empty."""
    found = db.execute(
        "SELECT DISTINCT near.seq FROM items AS one, LATERAL (SELECT seq FROM items WHERE store = %(store)s AND stream "
        "= one.stream AND position BETWEEN one.position - %(radius)s AND one.position + %(radius)s "
        # without a limit the planner may think of a join of the whole table
        "ORDER BY position LIMIT 2 * %(radius)s + 1) AS near WHERE one.store = %(store)s AND one.seq = ANY (%(seqs)s) "
        "ORDER BY seq",
        {"store": store, "seqs": seqs, "radius": radius},
        binary=True,
    ).fetchall()
    return np.array([row[0] for row in found], np.int64)


def _columns(rows: list[tuple[int, float]]) -> tuple[Seqs, Vector]:
    return np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.float32)
