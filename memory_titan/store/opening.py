"""Opening a store: is it this model's, and how large is it to be."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from memory_titan.embedders import BaseEmbedder
from memory_titan.store.backend import Backend
from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.errors import EmbedderMismatchError
from memory_titan.store.item import Vector
from memory_titan.store.terms import rules

PROBE = "The quick brown fox jumps over the lazy dog."  # its embedding tells one model from another
SAME_MODEL = 0.99  # cosine of the probe's embeddings
SIZES = {"short_term_size": 512, "long_term_size": 2048, "persistent_size": 64}  # of a new store


def check_model(backend: Backend, embedder: BaseEmbedder, probe: Vector) -> None:
    """The store's vectors were made by this embedder."""
    known = backend.meta("embedder")
    if known is None and not backend.read_only:
        with backend.transaction():
            known = backend.meta("embedder")  # another process may have been first
            if known is None:
                backend.set_meta("embedder", {"name": embedder.name, "probe": probe.tolist()})
    if known is None:
        return
    old = np.asarray(known["probe"], np.float32)
    if old.shape != probe.shape or float(old @ probe) < SAME_MODEL:
        same = " (a model of the same name, but not the same)" if known["name"] == embedder.name else ""
        raise EmbedderMismatchError(
            f"this store's vectors, {len(old)} wide, were made by {known['name']}; {embedder.name} "
            f"makes others, {len(probe)} wide{same}. Open it with that model, or export and import it."
        )


def check_rules(backend: Backend) -> None:
    """The store's terms were made by the rules of today; if not, a warning says so, and the store still works."""
    known = backend.meta("terms")
    if known is None and not backend.read_only:
        with backend.transaction():
            backend.set_meta("terms", rules())
    if known not in (None, rules()):
        warnings.warn(
            f"this store's words were indexed by other rules ({known}; these are {rules()}): some words may not "
            "be found. Export and import it to index them anew.",
            UserWarning,
            stacklevel=3,
        )


def kept_settings(
    backend: Backend, given: dict[str, int | None], config: LongTermMemoryConfig | None
) -> tuple[dict[str, int], LongTermMemoryConfig]:
    """Sizes and configuration: what was given, else what the store remembers, else the defaults. They are kept."""
    kept = backend.meta("settings", {})
    sizes = {**SIZES, **kept.get("sizes", {}), **{name: size for name, size in given.items() if size is not None}}
    config = config or LongTermMemoryConfig(**kept.get("long_term", {}))
    settings = {"sizes": sizes, "long_term": dataclasses.asdict(config)}
    if settings != kept and not backend.read_only:
        with backend.transaction():
            backend.set_meta("settings", settings)
    return sizes, config
