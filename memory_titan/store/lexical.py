"""Words of a query, for SQLite's full-text index FTS5: what to match, which stems, and where they stand.

    "When did Susan's sister move?"   query_words   ['susan', 'sister', 'move']      no stop words
                                      match         "susan" OR "sister" OR "move"    for MATCH
                                      stems         ['susan', 'sister', 'move']      as the index holds them

The index tokenizes with `TOKENIZER`: Unicode words, folded and without diacritics, cut to stems by Porter's rules
(M. F. Porter, An algorithm for suffix stripping, 1980). Stems are made by FTS5 itself, so that they never differ from
the index's. A query may be any string: nothing in it acts as an operator.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

TOKENIZER = "porter unicode61 remove_diacritics 2"

# The columns that are searched: the text, and who said it, whose name questions often hold.
SCHEMA = f"CREATE VIRTUAL TABLE IF NOT EXISTS {{table}} USING fts5(text, speaker, tokenize='{TOKENIZER}')"
# One row for each place of each stem: what `postings` reads.
VOCABULARY = "CREATE VIRTUAL TABLE IF NOT EXISTS {table}_places USING fts5vocab('{table}', 'instance')"

# Function words and what contractions leave ("don't": don, t). Questions are made of them; evidence is not.
_FUNCTION = """
a about above after again against all also am an and any are as at be because been before being below between
both but by can could d did do does doing don down during each few for from further had has have having he her
here hers herself him himself his how i if in into is it its itself just ll m me more most my myself no nor not
now of off on once only or other our ours ourselves out over own re s same she should so some such t than that
the their theirs them themselves then there these they this those through to too under until up ve very was we
were what when where which while who whom whose why will with would you your yours yourself yourselves
"""
STOP_WORDS = frozenset(_FUNCTION.split())

_NAME_WORD = re.compile(r"[^\W_]+")


def query_words(query: str) -> list[str]:
    """The different words of a query, in order, without stop words unless it has no others.

    Args:
        query: any text.

    Returns:
        Lower-case words of letters and digits; empty if the query has none.
    """
    # cut where FTS5's unicode61 would; what it cuts otherwise it cuts itself, within the quotes of `match`
    kept = "".join(letter if unicodedata.category(letter)[0] in "LNM" else " " for letter in query)
    words = list(dict.fromkeys(word for word in kept.lower().split() if any(map(str.isalnum, word))))
    return [word for word in words if word not in STOP_WORDS] or words


def speakers_named(query: str, speakers: Iterable[str]) -> set[str]:
    """Those of the speakers whom a query names, by their whole name or a word of it.

    Args:
        query: any text.
        speakers: names as they stand in the store, "Carol Willick".
    """
    words = {word.lower() for word in _NAME_WORD.findall(query)}
    return {speaker for speaker in speakers if words.intersection(_name_words(speaker))}


def without_names(query: str, speakers: Iterable[str]) -> str:
    """A query with "someone" for the speakers it names: what to embed.

    The vector of "Where does Carol live?" lies near "Hi Carol!". What Carol herself says seldom holds her name.

    Args:
        query: any text.
        speakers: names as they stand in the store.
    """
    names = sorted({word for speaker in speakers for word in _name_words(speaker)}, key=len, reverse=True)
    if not names:
        return query
    name = "|".join(map(re.escape, names))
    return re.sub(rf"(?<!\w)(?:{name})(?:\s+(?:{name}))*(?!\w)", "someone", query, flags=re.IGNORECASE)


def _name_words(speaker: str) -> list[str]:
    """Words of a name, lower-case; initials and function words, as in "Will" or "the user", name nobody."""
    words = [word.lower() for word in _NAME_WORD.findall(speaker)]
    return [word for word in words if len(word) > 1 and word not in STOP_WORDS]


def match(words: Iterable[str]) -> str | None:
    """The MATCH expression for items that hold any of the words.

    Args:
        words: of `query_words`.

    Returns:
        The expression; None if there is no word, when nothing can match.
    """
    return " OR ".join('"' + word.replace('"', '""') + '"' for word in words) or None


class Stemmer:
    """FTS5's tokenizer, in a small data base in memory. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute(f"CREATE VIRTUAL TABLE words USING fts5(word, tokenize='{TOKENIZER}')")
        self._db.execute("CREATE VIRTUAL TABLE stems USING fts5vocab('words', 'instance')")

    def __call__(self, words: Sequence[str]) -> list[str]:
        """Stems of words.

        Args:
            words: of `query_words`, or any strings that UTF-8 can hold.

        Returns:
            The different stems, in the words' order.
        """
        with self._lock:
            self._db.execute("DELETE FROM words")
            self._db.executemany("INSERT INTO words(rowid, word) VALUES (?, ?)", enumerate(words))
            rows = self._db.execute("SELECT doc, offset, term FROM stems").fetchall()
        return list(dict.fromkeys(term for _, _, term in sorted(rows)))


def postings(
    connection: sqlite3.Connection, table: str, stems: Sequence[str]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Where stems stand in an index made with `SCHEMA` and `VOCABULARY`.

    Args:
        connection: to the data base.
        table: the index's name; trusted, not any input.
        stems: of `Stemmer`.

    Returns:
        For each stem `(rowids, counts)`, both `[items that hold it]`, rowids ascending: how often it stands in the
        item, in its text or its speaker's name. Their length is the stem's document frequency.
    """
    sql = f"SELECT doc, count(*) FROM {table}_places WHERE term = ? GROUP BY doc ORDER BY doc"
    found = []
    for stem in stems:
        rows = np.array(connection.execute(sql, (stem,)).fetchall(), dtype=np.int64).reshape(-1, 2)
        found.append((rows[:, 0].copy(), rows[:, 1].copy()))
    return found
