"""An embedder from what a command line says."""

from __future__ import annotations

import importlib
import re

from memory_titan.embedders import BaseEmbedder, as_embedder

DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"


def load_embedder(given: str = DEFAULT_EMBEDDER) -> BaseEmbedder:
    """The embedder that `given` names, tried once, so that what is missing is missed now.

    Args:
        given: a model of sentence-transformers by name or folder; "MODEL@https://...", of an OpenAI-compatible
            endpoint; or "module:name", a function or class of Python's that is called without arguments and gives
            anything that `as_embedder` takes.

    Raises:
        ValueError: there is no such thing, or it does not work.
    """
    if re.fullmatch(r"[A-Za-z_][\w.]+:[A-Za-z_]\w*", given):
        module, _, name = given.partition(":")
        try:
            make = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"there is no embedder {given}: {error}") from error
        embedder = as_embedder(make())
    else:
        from memory_titan.embedders import OpenAIEmbedder, SentenceTransformerEmbedder

        model, _, url = given.partition("@")
        at_url = url.startswith(("http://", "https://"))
        embedder = OpenAIEmbedder(model, base_url=url) if at_url else SentenceTransformerEmbedder(given)
    embedder.encode(["ready"])
    return embedder
