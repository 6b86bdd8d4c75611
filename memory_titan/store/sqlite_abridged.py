"""Shortened items in a store's SQLite file: how much was cut out of each, and by which change, as readers follow it."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence

from memory_titan.store.item import Item
from memory_titan.store.postings import Terms
from memory_titan.store.sqlite_file import sum_of
from memory_titan.store.terms import pack, unpack

ADDED = (
    "CREATE TABLE IF NOT EXISTS abridged (seq INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, change INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS abridged_change ON abridged (change)",
)


def is_there(db: sqlite3.Connection) -> bool:
    """Not in a file that was last written by an earlier memory-titan."""
    return bool(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'abridged'").fetchone())


def write(db: sqlite3.Connection, items: Sequence[Item], change: int) -> None:
    """Set content, terms and `abridged` of items."""
    for i in items:
        sql = "SELECT metadata, vector FROM items JOIN vectors USING (seq) WHERE seq = ?"
        metadata, vector = db.execute(sql, (i.seq,)).fetchone()
        told = i.content, sum_of(i.id, i.content, metadata), change, i.seq
        db.execute("UPDATE items SET content = ?, sum = ?, change = ? WHERE seq = ?", told)
        terms = pack(i.terms)
        db.execute("UPDATE vectors SET terms = ?, sum = ? WHERE seq = ?", (terms, zlib.crc32(vector + terms), i.seq))
        db.execute("INSERT OR REPLACE INTO abridged VALUES (?, ?, ?)", (i.seq, i.abridged, change))


def terms_since(db: sqlite3.Connection, change: int, newest: int) -> dict[int, Terms]:
    """Of items up to `newest` that were shortened after a change: by seq, the terms left."""
    sql = "SELECT seq, terms FROM abridged JOIN vectors USING (seq) WHERE change > ? AND seq <= ?"
    return {seq: unpack(terms) for seq, terms in db.execute(sql, (change, newest))}
