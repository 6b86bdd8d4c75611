"""Items as rows in PostgreSQL: written, deleted, read back. Writing happens within a transaction that has the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from memory_titan.store.errors import StoreError
from memory_titan.store.item import Item, Seqs
from memory_titan.store.postgres_link import Connection
from memory_titan.store.postings import Terms, postings_of
from memory_titan.store.terms import pack, unpack

ID_BYTES = 2000  # PostgreSQL indexes no longer ones
COLUMNS = "seq, id, content, written, created, session, position, speaker, places, surprise, value, used"


def insert(db: Connection, store: int, items: Sequence[Item], dim: int) -> int:
    """Insert items, at least one; each is given its `seq`, `position` and `speaker`. How many the store then holds.

    Raises:
        StoreError: there is what PostgreSQL cannot keep.
    """
    for item in items:
        if "\0" in item.id or "\0" in item.content or "\0" in (item.session or ""):
            raise StoreError(
                f"PostgreSQL keeps no NUL character; there is one in item {item.id!r:.60} ({item.content!r:.60})"
            )
        if len(item.id.encode()) > ID_BYTES:
            raise StoreError(f"an id has at most {ID_BYTES} bytes; got {item.id!r:.60}...")
    lengths = np.array([len(item.terms) for item in items], np.int32)
    last, count = db.execute(
        "UPDATE stores SET seq = seq + %s, items = items + %s, tokens = tokens + %s WHERE store = %s "
        "RETURNING seq, items",
        (len(items), len(items), int(lengths.sum()), store),
    ).fetchone() or (0, 0)
    first = last - len(items) + 1
    free = _next_positions(db, store, sorted({item.session or "" for item in items}))
    for seq, item in enumerate(items, first):
        item.seq = seq
        item.position = free[item.session or ""]
        free[item.session or ""] += 1
    documents = [json.dumps(item.metadata, ensure_ascii=False) for item in items]
    with db.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO items (store, {COLUMNS}, metadata, terms, wording) VALUES "
            "(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s, %s)",
            [
                (
                    *(store, i.seq, i.id, i.content, document, i.created, i.session, i.position, i.speaker, i.places),
                    *(i.surprise, i.value, i.used, document, pack(i.terms), wording(i.terms)),
                )
                for i, document in zip(items, documents, strict=True)
            ],
        )
        cursor.executemany(
            f"INSERT INTO vectors_{int(dim)} VALUES (%s, %s, %s::vector)",
            [(store, item.seq, np.asarray(item.vector, np.float32)) for item in items],
        )
    _insert_postings(db, store, np.arange(first, last + 1), [item.terms for item in items])
    return int(count)


def _insert_postings(db: Connection, store: int, seqs: Seqs, terms: list[Terms]) -> None:
    lengths = np.array([len(each) for each in terms], np.int32)
    found = postings_of(np.concatenate(terms), lengths, 0)
    db.execute(
        "INSERT INTO postings SELECT %s, * FROM unnest(%s::int[], %s::bigint[], %s::int[], %s::int[])",
        (
            store,
            found.term.view(np.int32),
            seqs[found.row],
            np.rint(1 / found.x).astype(np.int32),
            lengths[found.row],
        ),
    )


def wording(terms: Terms) -> int:
    """A number for a set of terms."""
    return int.from_bytes(blake2b(np.unique(terms).tobytes(), digest_size=8).digest(), "little", signed=True)


def _next_positions(db: Connection, store: int, sessions: list[str]) -> dict[str, int]:
    """Where the next item of each session stands: behind the last that is there."""
    rows = db.execute(
        "SELECT session, (SELECT coalesce(max(position) + 1, 0) FROM items WHERE store = %s AND stream = "
        "memory_titan.stream_of(asked.session)) FROM unnest(%s::text[]) AS asked (session)",
        (store, sessions),
    ).fetchall()
    return dict(rows)


def delete(db: Connection, store: int, seqs: Sequence[int], dim: int) -> None:
    """Delete items with all that is known of them."""
    gone = np.asarray(seqs, np.int64).reshape(-1)
    rows = db.execute(
        "DELETE FROM items WHERE store = %s AND seq = ANY (%s) RETURNING seq, terms", (store, gone), binary=True
    ).fetchall()
    db.execute(f"DELETE FROM vectors_{int(dim)} WHERE store = %s AND seq = ANY (%s)", (store, gone))
    db.execute("DELETE FROM abridged WHERE store = %s AND seq = ANY (%s)", (store, gone))
    if not rows:
        return
    tokens = _delete_postings(db, store, rows)
    db.execute(
        "UPDATE stores SET items = items - %s, tokens = tokens - %s WHERE store = %s", (len(rows), tokens, store)
    )


def _delete_postings(db: Connection, store: int, rows: list[tuple[int, bytes]]) -> int:
    """Of items, by seq and their terms; how many tokens they had."""
    terms = [unpack(row[1]) for row in rows]
    lengths = np.array([len(each) for each in terms], np.int32)
    found = postings_of(np.concatenate(terms), lengths, 0)
    db.execute(
        "DELETE FROM postings USING unnest(%s::int[], %s::bigint[]) AS gone (term, seq) WHERE postings.store = %s "
        "AND postings.term = gone.term AND postings.seq = gone.seq",
        (found.term.view(np.int32), np.array([row[0] for row in rows], np.int64)[found.row], store),
    )
    return int(lengths.sum())


def shorten(db: Connection, store: int, items: Sequence[Item]) -> None:
    """Set content, terms and `abridged` of items, at least one."""
    seqs, terms = np.array([i.seq for i in items], np.int64), [i.terms for i in items]
    sql = "SELECT seq, terms FROM items WHERE store = %s AND seq = ANY (%s)"
    lost = _delete_postings(db, store, db.execute(sql, (store, seqs), binary=True).fetchall())
    _insert_postings(db, store, seqs, terms)
    db.execute("UPDATE stores SET tokens = tokens + %s - %s WHERE store = %s", (sum(map(len, terms)), lost, store))
    with db.cursor() as cursor:
        cursor.executemany(
            "UPDATE items SET content = %s, terms = %s, wording = %s WHERE store = %s AND seq = %s",
            [(i.content, pack(i.terms), wording(i.terms), store, i.seq) for i in items],
        )
        cursor.executemany(
            "INSERT INTO abridged VALUES (%s, %s, %s) ON CONFLICT (store, seq) DO UPDATE SET bytes = EXCLUDED.bytes",
            [(store, i.seq, i.abridged) for i in items],
        )


def item_of(row: tuple[Any, ...]) -> Item:
    """Of a row of COLUMNS, terms and the bytes cut out; without its vector."""
    seq, name, content, written, created, session, position, speaker, places, surprise, value, used, terms, cut = row
    return Item(
        id=name,
        content=content,
        metadata=json.loads(written),
        created=created,
        session=session,
        vector=np.zeros(0, np.float32),
        terms=unpack(terms),
        places=places,
        seq=seq,
        position=position,
        speaker=speaker,
        surprise=surprise,
        value=value,
        used=used,
        abridged=cut or 0,
    )
