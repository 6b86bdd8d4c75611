"""The long-term memory: what surprises is admitted and written to the neural weights; when it is full, the least goes.

offered -> surprise: how badly the weights knew it -> admitted, or let go
        -> value: what it would be missed for      -> written to the weights, in order
        -> while there is too much: what is worth least goes, where bytes are short sentence by sentence
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memory_titan.store.abridging import abridge, shortened
from memory_titan.store.backend import Backend
from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.item import LONG, PENDING, SHORT, Item, Report, Vector
from memory_titan.store.keeping import Keeper
from memory_titan.store.neural import CHUNK, NeuralRecall
from memory_titan.store.surprise import TWIN, novelties

CHECKPOINT = 2048  # vectors in the log after which the weights are written down
HORIZON = 8192  # newest items that the weights are made of anew after something was forgotten
ALIKE = 256  # newest items of the same words that a new one is compared with
NOTHING = {"offered": 0, "admitted": 0, "evicted": 0, "abridged": 0, "forgotten": 0}
STATE = "neural"  # name of the checkpoint among the blobs


class LongTermMemory:
    """Up to `size` items, and `max_bytes` of text, with the weights that read them.

    Args:
        backend: the store.
        size: items.
        dim: of the embeddings.
        config: how it decides.
        let_go: told of the items that the memory deletes.
    """

    def __init__(
        self,
        backend: Backend,
        size: int,
        dim: int,
        config: LongTermMemoryConfig,
        let_go: Callable[[list[Item]], object] = len,
    ) -> None:
        self._let_go = let_go
        self.backend, self.size, self.config = backend, size, config
        self.neural = NeuralRecall(dim, config, size)
        # What is not used loses `forget_rate` of its value with every `size` items that come by.
        self._fading = -math.log(max(1e-6, 1.0 - config.forget_rate)) / size
        self._abridge = config.abridge and config.max_bytes is not None
        self._epoch: int | None = None  # of the weights in the database; they are made anew with every epoch
        self._saved = 0  # what the checkpoint covers
        self._keeper: Keeper | None = None
        self._at_most = size + 1  # so many are held; more: they have to be counted
        self._stamp: dict[str, int] = {}  # the counts that it stands at
        self._void = False  # they have to be made anew
        self._unreadable = False  # the checkpoint is of other settings
        self._lock = threading.RLock()  # of the weights; taken after the backend's, never before
        self._follow()

    @property
    def due(self) -> bool:
        """Whether there is a chunk to consolidate."""
        return self.backend.count(PENDING) >= CHUNK

    # -- writing, within a transaction

    def consolidate(self, written: Sequence[Item] = ()) -> Report:
        """Decide on everything that is pending; `written`: items as they were just inserted, not to be read again."""
        report = Report()
        self.catch_up()
        pending = self.backend.select(places=PENDING).tolist()
        known = {item.seq: item for item in written}
        for start in range(0, len(pending), CHUNK):
            part = pending[start : start + CHUNK]
            read = [seq for seq in part if seq not in known]
            items = known | {item.seq: item for item in self.backend.get(read, full=True)} if read else known
            self._admit([items[seq] for seq in part if seq in items], report)
        self._evict(report)
        if self.neural.written - self._saved >= CHECKPOINT:
            self.checkpoint()
        return report

    def _admit(self, items: list[Item], report: Report) -> None:
        vectors = np.stack([item.vector for item in items])
        new = novelties(vectors, self.neural, self._twins(items, vectors))
        counts = self._counts()
        rows, lost, admitted = [], [], []
        for item, surprise in zip(items, new.tolist(), strict=True):
            counts["offered"] += 1
            item.surprise, item.value = surprise, float(counts["offered"])
            if surprise >= self.config.surprise_threshold:
                item.places = item.places & ~PENDING | LONG
                admitted.append(item)
            else:
                item.places &= ~PENDING
                report.rejected.append(item.id)
            if item.places:
                rows.append((item.seq, item.places, surprise, item.value))
            else:
                lost.append(item)
        self.backend.update(rows)
        if lost:
            self._delete(lost)
        if admitted:
            written = np.stack([item.vector for item in admitted])
            self.backend.append_log(self.neural.written, written)
            self.neural.write(written)
            report.admitted += [item.id for item in admitted]
        counts["admitted"] += len(admitted)
        if self._keeper is not None:
            for item in admitted:
                self._keeper.hold(item)
        self._keep_counts(counts)

    def _delete(self, items: list[Item]) -> None:
        self._let_go(items)
        self.backend.delete([item.seq for item in items])

    def _twins(self, items: list[Item], vectors: Vector) -> list[bool]:
        """Whether each item says, in the same words, what an item before it says that is held."""
        found = [False] * len(items)
        for n, at in np.argwhere(np.tril(vectors @ vectors.T, -1) >= TWIN).tolist():
            found[n] = found[n] or set(items[n].terms.tolist()) == set(items[at].terms.tolist())
        for n, others in enumerate(self.backend.same_words(items)):
            before = others[others < items[n].seq][-ALIKE:]
            if len(before) and not found[n]:
                found[n] = bool((self.backend.vectors_of(before) @ vectors[n] >= TWIN).any())
        return found

    def _evict(self, report: Report) -> None:
        """While there is too much, what is worth least goes; what is in the window as well stays there, and whole."""
        limit = self.config.max_bytes
        if limit is None and self._keeper is None and not self._overfull(len(report.admitted)):
            return
        keeper = self._keeping()
        if len(keeper) <= self.size and (limit is None or keeper.size <= limit):
            return
        keeper.settle(set(self.backend.select(places=SHORT).tolist()) if self._abridge else frozenset())
        while len(keeper) > self.size:
            keeper.let_go(whole=True)
        while limit is not None and keeper.size > limit and len(keeper):
            keeper.let_go()
        went = keeper.went()
        victims = self.backend.get([seq for seq, left in went.items() if not left])
        self.backend.update((i.seq, i.places & ~LONG, i.surprise, i.value) for i in victims if i.places & ~LONG)
        self._delete([item for item in victims if not item.places & ~LONG])
        report.evicted += [item.id for item in victims]
        shorter = self.backend.get([seq for seq, left in went.items() if left])
        self._let_go(shorter)
        for item in shorter:
            abridge(item, shortened(item.content, item.speaker, went[item.seq]))
            keeper.shortened(item)
        self.backend.shorten(shorter)
        report.abridged += [item.id for item in shorter]
        counts = self._counts()
        counts["evicted"] += len(victims)
        counts["abridged"] += len(shorter)
        self._keep_counts(counts)

    def _overfull(self, admitted: int) -> bool:
        """Whether more than `size` are held. They are counted only when there may be."""
        self._at_most = self._at_most + admitted if self.backend.exclusive else self.size + 1
        if self._at_most > self.size:
            self._at_most = self.backend.count(LONG)
        return self._at_most > self.size

    def _keeping(self) -> Keeper:
        """What is held, by value; made when it is first needed, and when another process has written."""
        if self._keeper is None or self._stamp != self._counts():
            self._keeper = Keeper(self._fading, self._abridge)
            held = self.backend.select(places=LONG)
            for start in range(0, len(held), 1024):
                for item in self.backend.get(held[start : start + 1024]):
                    self._keeper.hold(item)
            self._stamp = self._counts()
        return self._keeper

    def _counts(self) -> dict[str, int]:
        return {**NOTHING, **self.backend.meta("counts", {})}

    def _keep_counts(self, counts: dict[str, int]) -> None:
        self.backend.set_meta("counts", counts)
        self._stamp = counts

    def used(self, uses: dict[int, int]) -> None:
        """Queries found these items, by seq so many times: they fade from now on."""
        now = self._counts()["offered"]
        self.backend.count_use(uses, float(now))
        if self._keeper is not None:
            for seq in uses:
                self._keeper.touch(seq, now)

    def forget(self, items: Sequence[Item]) -> None:
        """Items are about to be deleted. If the weights have read one of them, they are void from now on."""
        if self._keeper is not None:
            for item in items:
                self._keeper.drop(item.seq)
        if all(item.surprise is None for item in items):
            return  # never offered
        counts = self._counts()
        counts["forgotten"] += len(items)
        self._keep_counts(counts)
        self._begin_epoch(None)
        self._void = True

    def checkpoint(self) -> None:
        """Write the weights down, and drop the log that they cover."""
        self.catch_up()
        if self.neural.written != self._saved:
            self._save()

    def _save(self) -> None:
        self._saved = self.neural.written
        self.backend.set_meta("epoch", [self.backend.meta("epoch", [0])[0], False, self._saved])
        self.backend.set_blob(STATE, self.neural.to_bytes())
        self.backend.clear_log()

    def _begin_epoch(self, data: bytes | None) -> None:
        """From now on the weights are `data`; None: they have to be made anew."""
        saved = 0 if data is None else self.neural.written
        self.backend.set_meta("epoch", [self.backend.meta("epoch", [0])[0] + 1, data is None, saved])
        self.backend.set_blob(STATE, data)
        self.backend.clear_log()

    # -- the weights

    def recall(self, vector: Vector) -> Vector:
        """What the weights answer to `[dim]`."""
        self._follow_asking()
        if self._void and not self.backend.read_only:
            with self.backend.transaction():
                self.catch_up()
        return self.neural.recall(vector)

    def _follow_asking(self) -> None:
        """For a reader. While this process alone writes, its weights are ahead of the database, and left alone."""
        if not self.backend.exclusive:
            self._follow()
        elif self._epoch is None:  # the transaction first: whoever writes takes the locks in this order
            with self.backend.transaction():
                self._follow()

    def lost_track(self) -> None:
        """A transaction was rolled back: the weights may have read what the database does not hold."""
        self._epoch = self._keeper = None
        self._at_most = self.size + 1

    def catch_up(self) -> None:
        """Within a transaction: bring the weights to where the database stands; anew where they are void."""
        with self._lock:
            self._follow()
            if self._void:
                self._rebuild()

    def _follow(self) -> None:
        """To the database's checkpoint, then along its log. Void weights are empty until a writer makes them anew."""
        with self._lock:
            epoch, void, saved = self.backend.meta("epoch", [0, False, 0])
            if epoch != self._epoch or (saved > self.neural.written and not self._void):
                self.neural.reset()
                blob = self.backend.blob(STATE)
                # they may have been written with other settings than today's
                self._unreadable = saved > 0 and (blob is None or not self.neural.load_bytes(blob))
                self._epoch = epoch
            self._saved, self._void = saved, void or self._unreadable
            if self._void:
                return
            positions, vectors = self.backend.log(self.neural.written)
            if positions and positions[0] == self.neural.written:
                self.neural.write(vectors)

    def _rebuild(self) -> None:
        """Read what is held anew, in its order."""
        self.neural.reset()
        seqs = self.backend.select(places=LONG, order="-seq", limit=HORIZON)[::-1]
        if len(seqs):
            self.neural.write(self.backend.vectors_of(seqs))
        self._begin_epoch(self.neural.to_bytes())
        self._epoch, self._saved = self.backend.meta("epoch")[0], self.neural.written
        self._void = self._unreadable = False

    def stats(self) -> dict[str, Any]:
        """JSON."""
        counts = self._counts()
        self._follow_asking()
        return {
            "items": self.backend.count(LONG),
            "size": self.size,
            "bytes": self.backend.nbytes(LONG),
            "max_bytes": self.config.max_bytes,
            "pending": self.backend.count(PENDING),
            **counts,
            "weights": {"written": self.neural.written, "norm": round(self.neural.norm, 4), **self.neural.identity},
        }
