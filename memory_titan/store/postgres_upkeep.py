"""What PostgreSQL can say of a store's tables: their size, and whether they fit together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memory_titan.store.postgres_link import Connection

SHARED = ("items", "postings", "meta", "blobs", "log", "abridged")  # tables of all stores, beside that of the vectors

DEAD = 1000  # rows that are left lying anyhow
Rows = Callable[..., list[tuple[Any, ...]]]  # of SQL whose first parameter is the store, and the others


def vacuum(dim: int) -> str:
    """SQL that clears dead rows away. Where another process is at it, it is left to that one."""
    return f"VACUUM (SKIP_LOCKED, INDEX_CLEANUP ON, TRUNCATE OFF) {', '.join(SHARED)}, vectors_{int(dim)}"


def much_is_dead(db: Connection) -> bool:
    """Whether a tenth of the items' rows, of all stores, are dead by the server's count; on its own it waits longer."""
    found = db.execute(
        "SELECT n_dead_tup > %s + n_live_tup / 10 FROM pg_stat_user_tables WHERE relid = to_regclass('items')", (DEAD,)
    ).fetchone()
    return found is not None and bool(found[0])


def share(rows: Rows, dim: int) -> int:
    """Bytes of all tables with their indexes, by the share of items that are this store's."""
    size = (
        "SELECT coalesce(sum(pg_total_relation_size(to_regclass(name))), 0)::bigint FROM unnest(%s::text[]) AS t (name)"
    )
    items, all_items, wide_items, shared, vectors = rows(
        "WITH mine AS (SELECT items, dim FROM stores WHERE store = %s) SELECT mine.items, "
        "(SELECT sum(items) FROM stores)::bigint, (SELECT sum(items) FROM stores WHERE dim = mine.dim)::bigint, "
        f"({size}), ({size}) FROM mine",
        list(SHARED),
        [f"vectors_{dim}"],
    )[0]
    return round(shared * items / max(all_items, 1) + vectors * items / max(wide_items or 0, 1))


def check(rows: Rows, dim: int) -> list[str]:
    """What is wrong; empty: nothing."""
    questions = {
        "items without a vector": f"items LEFT JOIN vectors_{int(dim)} AS v USING (store, seq) WHERE embedding IS NULL",
        "vectors without an item": f"vectors_{int(dim)} AS v LEFT JOIN items USING (store, seq) WHERE id IS NULL",
        "words without an item": "postings LEFT JOIN items USING (store, seq) WHERE id IS NULL",
        "items with other words in the index": "items LEFT JOIN (SELECT store, seq, sum(tf) AS words FROM postings "
        "GROUP BY store, seq) AS p USING (store, seq) WHERE coalesce(words, 0) * 4 <> octet_length(terms)",
    }
    counts = {what: rows(f"SELECT count(*) FROM {sql} AND store = %s")[0][0] for what, sql in questions.items()}
    problems = [f"{number} {what}" for what, number in counts.items() if number]
    sums = "SELECT count(*), coalesce(sum(octet_length(terms) / 4), 0)::bigint FROM items WHERE store = %s"
    if rows("SELECT items, tokens FROM stores WHERE store = %s") != rows(sums):
        problems.append("the store's sums are not those of its items")
    return problems
