"""The persistent memory: what the application declares to be always held."""

from __future__ import annotations

from typing import Any

import numpy as np

from memory_titan.store.backend import Backend
from memory_titan.store.errors import StoreFullError
from memory_titan.store.item import PERSISTENT, Item, Vector


class PersistentMemory:
    """Up to `size` items that nothing but `forget` removes.

    Args:
        backend: the store.
        size: items.
    """

    def __init__(self, backend: Backend, size: int) -> None:
        self.backend, self.size = backend, size

    def add(self, items: list[Item]) -> None:
        """Mark items before they are inserted. StoreFullError when there is no room: nothing is pushed out here."""
        held = self.backend.count(PERSISTENT)
        if held + len(items) > self.size:
            raise StoreFullError(
                f"the persistent memory holds {held} of {self.size} items; {len(items)} more do not fit. Forget some, "
                "or open the store with a larger persistent_size."
            )
        for item in items:
            item.places |= PERSISTENT

    def vectors(self) -> Vector:
        """`[n, dim]`."""
        seqs = self.backend.select(places=PERSISTENT)
        return self.backend.vectors_of(seqs) if len(seqs) else np.zeros((0, self.backend.dim or 0), np.float32)

    def stats(self) -> dict[str, Any]:
        """JSON."""
        return {"items": self.backend.count(PERSISTENT), "size": self.size}
