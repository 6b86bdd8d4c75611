"""Who said it, and names in questions.

A name says who is meant and nothing of what: to an embedding "Which city does Igor live in?" is near "Hi Igor!". So the
names of a store's speakers are hidden from the vector of a query, and found by its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from functools import lru_cache
from typing import Any

from memory_titan.store.terms import STOP_WORDS

_PREFIX = re.compile(r"\s{0,3}([^\W\d_][\w .'-]{0,40}?)\s?:\s+(?=\S)")  # "Anna Maria: I am back"
_WORD = re.compile(r"\w+")
_LOWER = re.compile(r"(?<!\w)[^\W\d_A-Z][^\W\d_]*")
ROLES = frozenset(["user", "assistant", "human", "ai", "bot", "agent", "system", "customer"])


def lower_words(texts: Iterable[str]) -> set[str]:
    """Words that stand in lower case somewhere in texts."""
    return {word for text in texts for word in _LOWER.findall(text)}


def speaker_of(content: str, metadata: dict[str, Any], common: Set[str] = frozenset()) -> str | None:
    """Who said it: metadata's "speaker", or a name before a colon at the start of the text.

    Args:
        content: the text.
        metadata: its own.
        common: words that are written in lower case elsewhere ("Returns:", "Note:" are labels and no names).
    """
    given = metadata.get("speaker")
    if isinstance(given, str) and given.strip():
        return given
    found = _PREFIX.match(content)
    if found is None:
        return None
    words = found.group(1).lower().split()
    return found.group(1) if (words == [words[0]] and words[0] in ROLES) or common.isdisjoint(words) else None


def said(content: str, speaker: str | None) -> str:
    """What was said, without its speaker's name and colon before it."""
    found = _PREFIX.match(content)
    return content[found.end() :] if found and speaker and found.group(1) == speaker else content


@lru_cache(4096)
def name_words(name: str) -> frozenset[str]:
    """Words of a name, in lower case; initials and function words, as in "Will" or "the user", name nobody."""
    return frozenset(word for word in _WORD.findall(name.lower()) if len(word) > 1 and word not in STOP_WORDS)


def all_words(text: str) -> set[str]:
    """The words of a text, lower case."""
    return set(_WORD.findall(text.lower()))


def names_in(query: str, known: Set[str]) -> set[str]:
    """The words of a query that are words of names."""
    return {word for word in all_words(query) if word in known}


def without_names(query: str, known: Set[str]) -> str:
    """A query with "someone" for each name: what to embed.

    Args:
        query: any text.
        known: words of names, lower case.
    """
    named = sorted(names_in(query, known), key=len, reverse=True)
    if not named:
        return query
    name = "|".join(map(re.escape, named))
    return re.sub(rf"(?<!\w)(?:{name})(?:\s+(?:{name}))*(?!\w)", "someone", query, flags=re.IGNORECASE)
