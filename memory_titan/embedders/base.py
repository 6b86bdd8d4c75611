"""What an embedder is: it turns texts into vectors, and texts that mean the same into vectors that lie close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


class BaseEmbedder(ABC):
    """The base of all embedders. A subclass writes `embed`; it need not call this class's constructor, which is none.

    `encode` and `encode_query` are what a store calls: the same vectors, checked and of unit length.
    """

    @abstractmethod
    def embed(self, texts: list[str]) -> Any:
        """One vector for each text: anything [texts, dim] that NumPy can read, of any real type and any length.

        A list of lists, an array, a tensor on any device, a sparse matrix, or a generator of rows.
        """

    @cached_property
    def name(self) -> str:
        """What a store writes down, to refuse another model's vectors later; by default the class's full name.

        A subclass whose vectors depend on more than its class, such as a model's name, sets `self.name` or overrides.
        """
        return _name_of(type(self))

    def embed_query(self, text: str) -> Any:
        """One vector [dim] for a text that is searched for. Models that treat queries differently override this."""
        return self.encode([text])[0]

    def discard(self, texts: Sequence[str]) -> None:  # noqa: B027 (most embedders keep nothing)
        """Forget what is kept of these texts: nothing, but in a cache."""

    def encode(self, texts: Sequence[str]) -> Rows:
        """float32 [texts, dim], each row of unit length, or zero where the embedder gave a zero vector.

        No texts give [0, 0] without asking the embedder. Raises ValueError, naming the embedder and what it gave, if
        that is not one row of finite real numbers for each text.
        """
        if isinstance(texts, str):
            raise ValueError(f"{self.name} embeds a list of strings, not one string")
        texts = list(texts)
        if other := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"{self.name} embeds a list of strings, not of {_what(other[0])}")
        return self._unit(self.embed(texts), len(texts)) if texts else np.zeros((0, 0), np.float32)

    def encode_query(self, text: str) -> Rows:
        """float32 [dim] of unit length: what embed_query gives, checked as in encode."""
        if not isinstance(text, str):
            raise ValueError(f"{self.name} embeds a string for a query, not {_what(text)}")
        if getattr(self.embed_query, "__func__", None) is BaseEmbedder.embed_query:  # which checks by itself
            return self.encode([text])[0]
        return self._unit([self.embed_query(text)], 1)[0]

    def _unit(self, given: Any, count: int) -> Rows:
        given = list(given) if isinstance(given, Iterator) else given
        expected = f"{self.name} must give {count} row{'s' * (count != 1)} of numbers, one for each text"
        try:
            rows = np.asarray(_plain(given))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{expected}; it gave {_what(given)}: {error}") from error
        if rows.dtype.kind not in "fiu" or rows.ndim != 2 or len(rows) != count or not rows.shape[1]:
            shape = f"shape {list(rows.shape)} and type {rows.dtype}"
            raise ValueError(f"{expected}; it gave {_what(given)} of {shape}")
        rows = rows.astype(np.float64)
        if not np.isfinite(rows).all():
            row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise ValueError(f"{expected}; row {row} of the {count} it gave holds NaN or infinity")
        rows = rows / _or_one(np.abs(rows).max(axis=1))  # first, as the squares of very large or small numbers are none
        rows = rows / _or_one(np.linalg.norm(rows, axis=1))
        return rows.astype(np.float32)


class CallableEmbedder(BaseEmbedder):
    """An embedder from a function of a list of texts.

    Args:
        function: from a list of texts to their vectors, as `BaseEmbedder.embed`.
        name: what a store writes down; by default the function's full name. Name it if the function may change.
        query: from one text to its vector, if queries are embedded differently.
    """

    def __init__(
        self, function: Callable[[list[str]], Any], name: str | None = None, query: Callable[[str], Any] | None = None
    ) -> None:
        if not callable(function):
            raise ValueError(f"an embedder's function can be called; {_what(function)} cannot")
        self.function = function
        if query:
            self.embed_query = query  # type: ignore[method-assign, assignment]
        self.name = name or _name_of(function if hasattr(function, "__qualname__") else type(function))

    def embed(self, texts: list[str]) -> Any:
        """What the function gives."""
        return self.function(texts)


# The methods of others' embedders: for texts, and for one query.
METHODS = (
    ("embed_documents", "embed_query"),  # LangChain
    ("encode_document", "encode_query"),  # sentence-transformers 5
    ("embed", None),
    ("encode", None),
)


def as_embedder(given: Any) -> BaseEmbedder:
    """An embedder from what people have: one of ours, another library's object, or a function.

    Raises TypeError for anything else, saying what is taken.
    """
    if isinstance(given, BaseEmbedder):
        return given
    if not isinstance(given, (type, str, bytes)):  # text too has a method `encode`
        for documents, query in METHODS:
            if callable(getattr(given, documents, None)):
                ask = getattr(given, query, None) if query else None
                return CallableEmbedder(getattr(given, documents), _name_of_object(given), ask)
        if callable(given):
            return CallableEmbedder(given)
    hint = " (a class: make an object of it)" if isinstance(given, type) else ""
    hint = " (a model's name? SentenceTransformerEmbedder(name))" if isinstance(given, str) else hint
    raise TypeError(
        f"no embedder: {_what(given)}{hint}. Taken are a BaseEmbedder, an object with embed(texts) or encode(texts), "
        "one of LangChain's with embed_documents(texts) and embed_query(text), or a function of a list of texts"
    )


def _or_one(length: Any) -> Any:
    """[n] -> [n, 1], zeros replaced, to divide by."""
    return np.where(length > 0, length, 1)[:, None]


def _name_of(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _name_of_object(given: Any) -> str:
    """Its class, and its model where it says which."""
    model = next(
        (m for m in (getattr(given, key, None) for key in ("model_name", "model")) if isinstance(m, str)), None
    )
    return _name_of(type(given)) + (f":{model}" if model else "")


def _plain(given: Any) -> Any:
    """Tensors and sparse matrices as what NumPy reads."""
    if isinstance(given, (list, tuple)):
        return [_plain(row) for row in given] if given and not isinstance(given[0], (int, float)) else given
    if hasattr(given, "detach"):  # a tensor: without its gradient, on the CPU, and NumPy has no bfloat16
        given = given.detach().cpu()
        return (given.float() if given.is_floating_point() else given).numpy()
    return given.toarray() if hasattr(given, "toarray") else given


def _what(given: Any) -> str:
    return f"{type(given).__module__}.{type(given).__qualname__}".removeprefix("builtins.")
