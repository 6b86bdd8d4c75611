"""What SQLite can say of a store's file: whether it is as it was written."""

from __future__ import annotations

import sqlite3
import zlib

from memory_titan.store.sqlite_file import sum_of


def check(db: sqlite3.Connection) -> list[str]:
    """What is wrong: with the file by SQLite's own examination, and with what is in it. Empty: nothing."""
    problems = [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
    for name, data, told in db.execute("SELECT * FROM blobs"):
        if zlib.crc32(data) != told:
            problems.append(f"{name} is not as it was written; it will be made anew")
    sql = """SELECT id, content, metadata, items.sum, vector, terms, vectors.sum
             FROM items LEFT JOIN vectors USING (seq)"""
    for name, content, metadata, told, vector, terms, of_vector in db.execute(sql):
        if sum_of(name, content, metadata) != told:
            problems.append(f"item {name!r:.60} is not as it was written")
        if vector is None or zlib.crc32(vector + terms) != of_vector:
            problems.append(f"the vector of item {name!r:.60} is not as it was written, or missing")
    return problems
