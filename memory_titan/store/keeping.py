"""What a full memory keeps: what is of greatest value by what is held now.

What goes by itself is a unit: an item, or each sentence of one that may be shortened. Values drift, since a term that
becomes common is worth less in all units that hold it. They stand in a heap as they were when last looked at; the least
is looked at again before it goes, and all of them when the stream has grown by an eighth.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_titan.store.abridging import ROOM, parts_of
from memory_titan.store.item import Item
from memory_titan.store.surprise import Impression, Known, impression, together

REFRESH = 8  # all values anew when so many have come: one part in eight of the stream

Values = NDArray[np.float64]


@dataclass
class _Held:
    parts: dict[int, Impression]  # by unit, in the order of the text
    size: int  # bytes of the text
    when: int
    whole: int | None = None  # the unit that is all of it; None: its parts are units


class Keeper:
    """Which items are held, by seq, and what goes next. It holds no texts.

    Args:
        fading: of the logarithm of a value, with every item that comes.
        abridge: sentences may go by themselves.
    """

    def __init__(self, fading: float, abridge: bool = False) -> None:
        self.fading, self.abridge, self.known = fading, abridge, Known()
        self.size = 0  # bytes of all texts held; a little more until `shortened` has told what is left of them
        self._held: dict[int, _Held] = {}
        self._whole: set[int] = set()  # items that are one unit
        self._seqs: dict[int, int] = {}  # by unit
        self._next = 0  # unit
        self._new: list[int] = []  # units that are in no heap yet
        self._units = _Least(self._values, self._seqs.__contains__)
        self._items: _Least | None = None  # of whole items, beside their sentences; made when it is first needed
        self._before: dict[int, list[int]] = {}  # of items that lost some, the units that they had
        self._came = self._refreshed = 0
        self._bytes = 0  # of all that came

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, item: Item) -> None:
        """An item is held."""
        held = self._hold(item)
        self._came, self._bytes = self._came + 1, self._bytes + held.size
        held.whole, self._next = self._next, self._next + 1
        self._whole.add(item.seq)
        self._offer([held.whole], item.seq)

    def shortened(self, item: Item) -> None:
        """What is left of an item that was shortened."""
        self.drop(item.seq)
        self._offer(self._hold(item).parts, item.seq)

    def _hold(self, item: Item) -> _Held:
        texts = parts_of(item.content, item.speaker).texts if self.abridge else [item.content]
        parts = [impression(text, item.surprise or 0.0) for text in texts]
        held = self._held[item.seq] = _Held(dict(enumerate(parts, self._next)), item.nbytes, int(item.value))
        self._next += len(parts)
        for part in parts:
            self.known.add(part)
        self.size += held.size
        if self._items is not None:
            self._items.push([item.seq])
        return held

    def _offer(self, units: Collection[int], seq: int) -> None:
        self._seqs.update(dict.fromkeys(units, seq))
        self._new += units

    def drop(self, seq: int) -> None:
        """It is held no longer; nothing happens if it was not."""
        if (held := self._held.pop(seq, None)) is not None:
            for unit, part in held.parts.items():
                self.known.add(part, -1)
                self._seqs.pop(unit, None)
            if held.whole is not None:
                del self._seqs[held.whole]
                self._whole.remove(seq)
            self.size -= held.size

    def touch(self, seq: int, when: int) -> None:
        """It was of use."""
        if (held := self._held.get(seq)) is not None:
            held.when = when

    # -- letting go

    def settle(self, window: Set[int]) -> None:
        """Before anything goes: seqs of items that may not be shortened for now."""
        if self.abridge:
            for seq in self._whole - window:
                held = self._held[seq]
                assert held.whole is not None
                del self._seqs[held.whole]
                held.whole = None
                self._offer(held.parts, seq)
            self._whole &= window
        if self._came > self._refreshed + self._refreshed // REFRESH:
            self._units.refresh(list(self._seqs))
            if self._items is not None:
                self._items.refresh(list(self._held))
            self._refreshed = self._came
        else:
            self._units.push([unit for unit in self._new if unit in self._seqs])
        self._new = []

    def let_go(self, whole: bool = False) -> None:
        """The unit that is worth least by now goes, `whole`: the item. There must be one."""
        if whole and self.abridge:
            if self._items is None:
                self._items = _Least(self._values_of_items, self._held.__contains__)
                self._items.refresh(list(self._held))
            unit, seq = None, self._items.least()
        else:
            unit = self._units.least()
            seq = self._seqs[unit]
        held = self._held[seq]
        self._before.setdefault(seq, list(held.parts))
        if unit not in held.parts or len(held.parts) == 1:
            self.drop(seq)
            return
        ends = next(iter(held.parts)), next(reversed(held.parts))
        lost = held.parts[unit].size - (0 if unit in ends else ROOM)
        self.known.add(held.parts.pop(unit), -1)
        del self._seqs[unit]
        held.size -= lost
        self.size -= lost

    def went(self) -> dict[int, list[int]]:
        """What was let go since this was last asked: of each item, by seq, the parts that are left; []: none."""
        left: dict[int, list[int]] = {}
        for seq, before in self._before.items():
            held = self._held[seq].parts if seq in self._held else {}
            left[seq] = [number for number, unit in enumerate(before) if unit in held]
        self._before = {}
        return left

    # -- values: logarithms

    def _values(self, units: list[int]) -> Values:
        found = [(self._held[self._seqs[unit]], unit) for unit in units]
        return self._valued([(held, held.parts.get(unit)) for held, unit in found])

    def _values_of_items(self, seqs: list[int]) -> Values:
        return self._valued([(self._held[seq], None) for seq in seqs])

    def _valued(self, found: list[tuple[_Held, Impression | None]]) -> Values:
        """Of parts; None: of all. Fading is alike for all that is held, so what came later stands that much higher."""
        said = [part or together(list(held.parts.values()), held.size) for held, part in found]
        values = self.known.values(said, self._bytes / max(1, self._came))
        return np.asarray(np.log(values + 1e-12) + self.fading * np.array([held.when for held, _ in found], np.float64))


class _Least:
    """Which of many is worth least, while values drift.

    Args:
        values: of keys that are there.
        there: whether a key still is.
    """

    def __init__(self, values: Callable[[list[int]], Values], there: Callable[[int], bool]) -> None:
        self._values, self._there = values, there
        self._heap: list[tuple[float, int]] = []

    def push(self, keys: list[int]) -> None:
        for entry in zip(self._values(keys).tolist(), keys, strict=True):
            heapq.heappush(self._heap, entry)

    def refresh(self, keys: list[int]) -> None:
        """These are all there are, valued anew."""
        self._heap = list(zip(self._values(keys).tolist(), keys, strict=True))
        heapq.heapify(self._heap)

    def least(self) -> int:
        """By now. There must be one."""
        while True:
            value, key = self._heap[0]
            if not self._there(key):
                heapq.heappop(self._heap)
                continue
            now = float(self._values([key])[0])
            if now <= value:
                return key
            heapq.heapreplace(self._heap, (now, key))
