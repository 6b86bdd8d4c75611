"""What a full memory keeps: the items of greatest value by what is held now.

Values drift, since a term that becomes common is worth less in all items that hold it. They stand in a heap as they
were when last looked at; the least is looked at again before it goes, and all of them when the stream has grown by an
eighth.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from memory_titan.store.surprise import Impression, Known

REFRESH = 8  # all values anew when so many have come: one part in eight of the stream


@dataclass
class _Held:
    item: Impression
    when: int


class Keeper:
    """Which items are held, by seq, and which goes next. It holds no texts.

    Args:
        fading: of the logarithm of a value, with every item that comes.
    """

    def __init__(self, fading: float) -> None:
        self.fading, self.known = fading, Known()
        self.size = 0  # bytes of all texts held
        self._held: dict[int, _Held] = {}
        self._heap: list[tuple[float, int]] = []  # logarithm of the value, seq
        self._came = self._refreshed = 0
        self._bytes = 0  # of all that came

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, seq: int, item: Impression, when: int) -> None:
        """An item is held; `when`: what had come when it came, or was last of use."""
        self._came, self._bytes = self._came + 1, self._bytes + item.size
        self._held[seq] = _Held(item, when)
        self.known.add(item)
        self.size += item.size
        heapq.heappush(self._heap, (self._value(self._held[seq]), seq))

    def drop(self, seq: int) -> None:
        """It is held no longer; nothing happens if it was not."""
        if (held := self._held.pop(seq, None)) is not None:
            self.known.add(held.item, -1)
            self.size -= held.item.size

    def touch(self, seq: int, when: int) -> None:
        """It was of use."""
        if (held := self._held.get(seq)) is not None:
            held.when = when

    def least(self) -> int:
        """The seq of the item that is worth least by now. There must be one."""
        if self._came > self._refreshed + self._refreshed // REFRESH:
            self._refresh()
        while True:
            value, seq = self._heap[0]
            if (held := self._held.get(seq)) is None:
                heapq.heappop(self._heap)
                continue
            now = self._value(held)
            if now <= value:
                return seq
            heapq.heapreplace(self._heap, (now, seq))

    def _value(self, held: _Held) -> float:
        return float(self._values([held])[0])

    def _values(self, held: list[_Held]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Logarithms. Fading is the same for all that is held, so what came later stands that much higher."""
        values = self.known.values([each.item for each in held], self._bytes / max(1, self._came))
        return np.asarray(np.log(values + 1e-12) + self.fading * np.array([each.when for each in held], np.float64))

    def _refresh(self) -> None:
        values = self._values(list(self._held.values()))
        self._heap = list(zip(values.tolist(), self._held, strict=True))
        heapq.heapify(self._heap)
        self._refreshed = self._came
