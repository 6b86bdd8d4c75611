"""The short-term memory: a window over the newest items, exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memory_titan.store.backend import Backend
from memory_titan.store.item import LONG, PENDING, SHORT, Item


class ShortTermMemory:
    """The newest `size` items. What leaves the window is offered to the long-term memory, if it was not yet.

    Args:
        backend: the store.
        size: items.
        let_go: told of the items that the memory deletes.
    """

    def __init__(self, backend: Backend, size: int, let_go: Callable[[list[Item]], object] = len) -> None:
        self.backend, self.size, self._let_go = backend, size, let_go

    def add(self, items: list[Item], offered: bool, window: bool) -> None:
        """Mark items before they are inserted: to be in the window, to be offered to the long-term memory."""
        for item in items:
            item.places |= (SHORT if window else 0) | (PENDING if offered else 0)

    def overflow(self) -> None:
        """Let the oldest go. Within a transaction."""
        surplus = self.backend.count(SHORT) - self.size
        if surplus <= 0:
            return
        stay, rejected = [], []
        for seq, places, surprise, value in self.backend.standing(self.backend.select(places=SHORT, limit=surplus)):
            if places & (LONG | PENDING) or surprise is None:
                stay.append((seq, places & ~SHORT | (0 if places & LONG else PENDING), surprise, value))
            else:
                rejected.append(seq)
        self.backend.update(stay)
        if rejected:
            self._let_go(self.backend.get(rejected))
            self.backend.delete(rejected)

    def offer_all(self) -> None:
        """Offer what was not offered yet to the long-term memory; it stays in the window. Within a transaction."""
        items = self.backend.get(self.backend.select(places=SHORT))
        self.backend.update(
            (item.seq, item.places | PENDING, item.surprise, item.value)
            for item in items
            if item.surprise is None and not item.places & PENDING
        )

    def stats(self) -> dict[str, Any]:
        """JSON."""
        return {"items": self.backend.count(SHORT), "size": self.size}
