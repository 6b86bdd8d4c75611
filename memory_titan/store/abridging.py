"""What of an item can go without the rest, and what is left of it.

    "Ann: Oh! I moved to Turku. It rains a lot. My flat is in the harbour."
    name   parts, from 0
    "Ann: I moved to Turku. … My flat is in the harbour."        left: 1 and 3

A part is a sentence; one no longer than the mark of a gap goes with the next. What is cut out between two parts is
marked, what is cut off at an end is not: `Item.abridged` counts all of it. The mark is part of the text, and takes its
room. What is left falls into the same parts again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memory_titan.store.item import Item
from memory_titan.store.names import said
from memory_titan.store.terms import term_ids
from memory_titan.store.wording import sentences

GAP = "… "
ROOM = len(GAP.encode())


@dataclass(frozen=True)
class Parts:
    """Of a text.

    Attributes:
        name: of the speaker with its colon, before all else; it stays while anything does.
        texts: each with the space after it.
        gaps: numbers of the parts that stand behind a gap.
    """

    name: str
    texts: list[str]
    gaps: frozenset[int]


def parts_of(content: str, speaker: str | None) -> Parts:
    """The parts of an item's text."""
    words = said(content, speaker)
    texts: list[str] = []
    gaps: set[int] = set()
    short = ""
    for piece in sentences(words):
        if piece == GAP and texts and not short and len(texts) not in gaps:
            gaps.add(len(texts))
            continue
        short += piece
        if len(short.encode()) > ROOM:
            texts.append(short)
            short = ""
    if len(texts) in gaps:  # nothing came of what is behind it
        gaps.remove(len(texts))
        short = GAP + short
    if short and texts:
        texts[-1] += short
    elif short:
        texts = [short]
    return Parts(content[: len(content) - len(words)], texts, frozenset(gaps))


def shortened(content: str, speaker: str | None, left: Sequence[int]) -> str:
    """The text with some of its parts, by their numbers, ascending."""
    parts = parts_of(content, speaker)
    pieces, last = [parts.name], -1
    for number in left:
        if last >= 0 and (number != last + 1 or number in parts.gaps):
            pieces.append(GAP)
        pieces.append(parts.texts[number])
        last = number
    return "".join(pieces).rstrip()


def abridge(item: Item, content: str) -> None:
    """From now on the item has this shorter text, and its terms."""
    item.abridged += item.nbytes - len(content.encode())
    item.content = content
    item.terms = term_ids(f"{item.speaker or ''} {said(content, item.speaker)}")
