"""How long a text is, and where its tokens start: in words, in bytes, or in a Hugging Face tokenizer's tokens."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Protocol


class Ruler(Protocol):
    """Anything that knows where the tokens of a text start."""

    @property
    def name(self) -> str:
        """What a sample says it was measured in."""

    def starts(self, text: str) -> Sequence[int]:
        """The character at which each token starts, ascending; as many as there are tokens."""


class Words:
    """Tokens are what white space separates."""

    name = "words"
    _word = re.compile(r"\S+")

    def starts(self, text: str) -> Sequence[int]:
        return [match.start() for match in self._word.finditer(text)]


class Bytes:
    """Tokens are the bytes of UTF-8, as for a model without a tokenizer."""

    name = "bytes"

    def starts(self, text: str) -> Sequence[int]:
        if text.isascii():
            return range(len(text))
        return [i for i, character in enumerate(text) for _ in character.encode("utf-8", "surrogatepass")]


class HuggingFace:
    """A Hugging Face tokenizer's tokens, without those it adds in front and behind.

    Args:
        tokenizer: a fast one: called with `return_offsets_mapping` it has to say where each token stands.
        name: what a sample shall say it was measured in.

    Raises:
        ValueError: the tokenizer cannot tell where its tokens stand.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name
        try:
            self.starts("a b")
        except (NotImplementedError, KeyError, TypeError) as error:
            raise ValueError(f"tokenizer {name!r} cannot tell where its tokens stand; a fast one is needed") from error

    def starts(self, text: str) -> Sequence[int]:
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False,
            truncation=False, padding=False, verbose=False,
        )  # fmt: skip
        return [start for start, _ in encoded["offset_mapping"]]


WORDS, BYTES = Words(), Bytes()


def distance(starts: Sequence[int], end: int, answer: int) -> int:
    """Tokens between two places of a text.

    Args:
        starts: of the text's tokens.
        end: a character, where evidence ends.
        answer: a character, where the answer starts.
    """
    return bisect_left(starts, answer) - bisect_left(starts, end)
