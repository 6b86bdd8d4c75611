"""From text to terms: words folded, stemmed, and hashed to 32 bits.

The rules, in order. Case and compatibility forms are folded (NFKC, casefold) and accents dropped. A word is a run of
letters, digits and their combining marks; anything else separates words, the underscore too. A clitic after an
apostrophe is dropped ('s, 'll, 're, 've, 'd, 'm), n't stays with its word ("don't" is dont), and any other apostrophe
separates words (o'neill is o and neill). Scripts written without spaces, and Hangul, become overlapping pairs of
characters. Words of a to z are stemmed with Porter2. Function words are dropped, unless nothing else is left.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from functools import lru_cache
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from snowballstemmer import EnglishStemmer

_RULES = 1  # raised with every change that alters what `tokenize` returns

STOP_WORDS = frozenset(
    """
    a about am an and are as at be because been being but by can could did do does doing for from had has have having he
    her hers herself him himself his how i if in into is it its itself me my myself of on or our ours ourselves she
    should so than that the their theirs them themselves then there these they this those to too very was we were what
    when where which while who whom whose why will with would you your yours yourself yourselves
    arent cant couldnt didnt doesnt dont hadnt hasnt havent isnt shouldnt wasnt werent wont wouldnt
    """.split()  # noqa: SIM905 (a list of words)
)

_CLITIC = re.compile(r"(?<=\w)'(?:s|ll|re|ve|d|m)(?!\w)")
_NOT = re.compile(r"(?<=n)'(?=t(?!\w))")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ACCENT = re.compile("[\u0300-\u036f]")
# Letters that stand alone or in pairs: Thai, Lao, Burmese, Khmer; kana, Hangul and the Han characters.
_UNSPACED = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\uff07": "'"})


def tokenize(text: str) -> list[str]:
    """The terms of `text`, one a token, in order; the module's docstring has the rules."""
    return [_term(word)[0] for word in _content(_words(text))]


def term_ids(text: str) -> NDArray[np.uint32]:
    """The CRC-32 of each term of `text`, `[tokens]`, in order and with repetition.

    No list of words is kept anywhere: who deletes these numbers has deleted what the index knows of the text.
    """
    return np.array([_term(word)[1] for word in _content(_words(text))], np.uint32)


def pack(ids: NDArray[np.uint32]) -> bytes:
    """Term ids as bytes, four a token, little-endian."""
    return ids.astype("<u4", copy=False).tobytes()


def unpack(data: bytes) -> NDArray[np.uint32]:
    """What `pack` was given; the array shares the memory of `data` and is read-only.

    Raises:
        ValueError: the bytes are no whole number of ids.
    """
    return np.frombuffer(data, "<u4").astype(np.uint32, copy=False)


def rules() -> str:
    """Names the rules by which text becomes terms; stored terms of another name have to be made anew."""
    return f"{_RULES}-{version('snowballstemmer')}"


def _content(words: list[str]) -> list[str]:
    return [word for word in words if word not in STOP_WORDS] or words


def _words(text: str) -> list[str]:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold()
        text = unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFD", text)))
    else:
        text = text.lower()
    if "'" in text:
        text = _NOT.sub("", _CLITIC.sub("", text))
    if text.isascii():
        return _ASCII_WORD.findall(text)
    words: list[str] = []
    for spaced, unspaced in _unicode_word().findall(text):
        if spaced:
            words.append(spaced)
        else:
            words += [unspaced[at : at + 2] for at in range(max(1, len(unspaced) - 1))]
    return words


@lru_cache(maxsize=1)
def _unicode_word() -> re.Pattern[str]:
    # Python's \w leaves out the combining marks that many scripts write their vowels with.
    marks = "".join(chr(code) for code in range(0x300, 0x3100) if unicodedata.category(chr(code))[0] == "M")
    spaced = rf"(?:(?![{_UNSPACED}_])[\w{marks}])"
    return re.compile(rf"((?=[^\W_]){spaced}+)|((?:(?=[{_UNSPACED}])[\w{marks}])+)")


_stemmer: EnglishStemmer | None = None
_stemming = Lock()  # a stemmer holds the word it is at work on


@lru_cache(maxsize=1 << 17)
def _term(word: str) -> tuple[str, int]:
    """A word's term, and its id."""
    if word.isascii() and word.isalpha():
        word = _stem(word)
    return word, zlib.crc32(word.encode())


def _stem(word: str) -> str:
    global _stemmer
    with _stemming:
        if _stemmer is None:
            # Not snowballstemmer.stemmer(): that one gives way to PyStemmer, whose version is not ours to know.
            from snowballstemmer import EnglishStemmer

            _stemmer = EnglishStemmer()
        return _stemmer.stemWord(word)
