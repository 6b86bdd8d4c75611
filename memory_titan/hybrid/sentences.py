"""A stream of sentences out of a stream of text, of any length, in constant space."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencex

_LONGEST = 20_000  # characters of one paragraph held at once
_NUMBER = re.compile(r"\(?\d{1,3}[.)]")
_ITEM = re.compile(r"\s*(?:[-*+•>#|]|\d+[.)])\s")


class TextError(ValueError):
    """A text that cannot be read; the message names the file and the place."""


def read_text(path: Path, size: int = 1 << 16) -> Iterator[str]:
    """The pieces of a UTF-8 text file.

    Raises:
        TextError: the file is missing, empty, or not UTF-8.
    """
    if path.is_dir():
        raise TextError(f"{path} is a folder, not a text file")
    if not path.exists():
        raise TextError(f"no such file: {path}")
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset, empty = 0, True
    with path.open("rb") as file:
        while True:
            data = file.read(size)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise TextError(f"{path} is not UTF-8 text (near byte {offset + error.start})") from error
            if "\x00" in text:
                raise TextError(f"{path} is not text: it holds zero bytes (near byte {offset})")
            offset += len(data)
            empty = empty and not text.strip()
            if text:
                yield text
            if not data:
                break
    if empty:
        raise TextError(f"{path} is empty")


def sentences(text: str | Iterable[str], language: str = "en") -> Iterator[str]:
    """Sentences in order, inner white space made single; never empty.

    A blank line, a list item and a short line without a full stop end a sentence; other line breaks do not.
    """
    for paragraph in _paragraphs([text] if isinstance(text, str) else text):
        number = ""
        for sentence in sentencex.segment(language, paragraph):
            plain = " ".join(f"{number} {sentence}".split())
            # The segmenter takes the number of an item for a sentence.
            number = plain if _NUMBER.fullmatch(plain) else ""
            if not number and re.search(r"\w", plain):
                yield plain
        if number:
            yield number


def _paragraphs(pieces: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    length = 0
    for line in _lines(pieces):
        bare = line.strip()
        starts_anew = not bare or _ITEM.match(line) or (held and _ends(held[-1], bare))
        if held and (starts_anew or length > _LONGEST):
            yield " ".join(held)
            held, length = [], 0
        if bare:
            held.append(bare)
            length += len(bare)
    if held:
        yield " ".join(held)


def _ends(line: str, following: str) -> bool:
    """Whether a line break ends a sentence: the line is short for prose, and the next does not go on in lower case."""
    return line[-1] not in ",;:-" and not following[0].islower() and (len(line) < 55 or line[-1] in ".!?")


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            *cut, line = _cut(line)
            yield from cut
            yield line
        *cut, rest = _cut(rest)
        yield from cut
    if rest:
        yield rest


def _cut(line: str) -> Iterator[str]:
    """A line in parts of at most `_LONGEST` characters, the last part last; between words where it can be."""
    while len(line) > _LONGEST:
        end = line.rfind(" ", 0, _LONGEST) + 1 or _LONGEST
        yield line[:end]
        line = line[end:]
    yield line
