"""Filler: lines that mean nothing to a question, made or taken from a text, to draw a context out to its length.

    prose     The innkeeper was tired, and the fog stayed under the chestnut trees. Her cousin sold the tea cups ...
    topics    The "for" statement is used to iterate over the elements of a sequence ...
    noise     The rain is wet. The sand is dry. The lamp is lit. Up we go. Down we come. The rain is wet. The sand ...

Prose is made from templates and the same on every machine; topics are the paragraphs of Python's own help that hold no
digit, real prose, and differ between versions of Python. A file's paragraphs serve as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from random import Random

from memory_titan.tasks.words import words

FILLERS = ("prose", "topics", "noise", "none")
_NOISE = "The rain is wet. The sand is dry. The lamp is lit. Up we go. Down we come.\n"

_FIELDS = {
    "who": words("people"), "did": words("deeds"), "what": words("objects"), "where": words("places"),
    "when": words("times"), "mood": words("moods"), "weather": words("weather"), "quality": words("qualities"),
}  # fmt: skip
_TEMPLATES = """
{who} {did} {what} {where}
{when} {who} {did} {what}
{who} {did} {what} {when}, and {who} {did} {what}
{weather} stayed {where} {when}
{what} stood {where}, {quality}, and nobody asked why
{who} was {mood}, and {weather} stayed {where}
nobody knew whether {who} {did} {what} or only {did} it {where}
{where} there was nothing but {weather} and {what}
{who} said that {what} had always been {quality}
although {weather} came {when}, {who} {did} {what}
{who} sat {where} with {who} and talked about {what}
{when}, {what} looked {quality}
everybody was {mood} because {who} {did} {what} {where}
{who} never {did} {what} again
there was talk {where} of {what} and of {weather}
it seemed {quality}, yet {who} {did} it {when}
while {who} {did} {what}, {who} waited {where}, {mood}
{who} thought of {what}, which was {quality}, and of {weather}
what {who} had left {where} was {quality} {when}
the story about {what} made {who} {mood}
"""


def _parsed(template: str) -> list[Sequence[str]]:
    """Pieces to choose from, one after the other; what stands fixed is a choice of one."""
    pieces = re.split(r"\{(\w+)\}", template)
    return [_FIELDS[piece] if i % 2 else (piece,) for i, piece in enumerate(pieces) if piece]


_SENTENCES = [_parsed(template) for template in _TEMPLATES.strip().splitlines()]


def prose(rng: Random) -> Iterator[str]:
    """Lines of one to three sentences, without end. No digits, no hash, no colon."""
    random = rng.random
    while True:
        line = []
        for _ in range(1 + int(3 * random())):
            pieces = _SENTENCES[int(len(_SENTENCES) * random())]
            sentence = "".join(piece[int(len(piece) * random())] for piece in pieces)
            line.append(f"{sentence[0].upper()}{sentence[1:]}.")
        yield " ".join(line) + "\n"


@dataclass(frozen=True)
class Passages:
    """Paragraphs of a real text, given from a random one on and round again.

    Args:
        name: what the samples say their filler was.
        paragraphs: one line each, not empty.
    """

    name: str
    paragraphs: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.paragraphs:
            raise ValueError(f"{self.name} holds no paragraph to fill a context with")

    def lines(self, rng: Random, forbidden: frozenset[str] = frozenset()) -> Iterator[str]:
        """Lines without end; those that hold one of the `forbidden` words are left out."""
        at, barren = int(len(self.paragraphs) * rng.random()), 0
        while barren < len(self.paragraphs):
            line = self.paragraphs[at]
            at, barren = (at + 1) % len(self.paragraphs), barren + 1
            if forbidden.isdisjoint(re.findall(r"\w+", line)):
                barren = 0
                yield line + "\n"
        raise ValueError(f"every paragraph of {self.name} holds a word that the questions ask for")


Filler = str | Passages


def lines(filler: Filler, rng: Random, forbidden: Iterable[str] = ()) -> Iterator[str]:
    """The lines of a filler: a name of `FILLERS`, or passages.

    Raises:
        ValueError: no such filler.
    """
    if isinstance(filler, Passages):
        return filler.lines(rng, frozenset(forbidden))
    if filler == "topics":
        return python_topics().lines(rng, frozenset(forbidden))
    if filler == "prose":
        return prose(rng)
    if filler == "noise":
        return repeat(_NOISE)
    if filler == "none":
        return iter(())
    raise ValueError(f"filler must be one of {', '.join(FILLERS)}, or passages; got {filler!r}")


@cache
def python_topics() -> Passages:
    """The prose of Python's help topics (`help("for")`), as far as it holds no digit: about a thousand paragraphs."""
    from pydoc_data.topics import topics

    plain = re.compile(r"[A-Z][^\d|>=\\_{}\[\]]{60,900}\.")
    found = []
    for topic in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            line = " ".join(paragraph.replace("*", "").split())
            if plain.fullmatch(line):
                found.append(line)
    return Passages("topics", tuple(found))


def read_passages(path: Path) -> Passages:
    """The paragraphs of a text file, UTF-8, long ones cut at sentences; a whole book fits in memory.

    Raises:
        ValueError: not UTF-8, or empty.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start}") from None
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        while len(line) > 600:
            at = line.rfind(". ", 0, 600) + 1 or line.rfind(" ", 0, 600)
            at = at if at > 0 else 600
            found.append(line[:at].strip())
            line = line[at:].strip()
        if line:
            found.append(line)
    return Passages(path.name, tuple(found))
