"""What a memory file holds: addresses in slots, content in fast weights, and no text.

write:  address -> a free slot (or the one longest untouched);   (slot, position) -> token, by the delta rule
find:   address -> the nearest slots
read:   slot -> tokens, out of the weights
forget: slot -> its keys projected out of the weights, then freed
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memory_titan.hybrid.content import Content, Recalled
from memory_titan.memory.files import MemoryFileError, load_tensors, save_tensors

FORMAT, VERSION = "memory-titan recollections", 2
_UNDOABLE = 20  # changes that can be taken back
_SLOTS = ("names", "lengths", "touched", "surprises", "addresses")


@dataclass
class RecollectionConfig:
    """Sizes of a memory; they fix the size of its file."""

    slots: int = 2048  # texts that can be addressed
    features: int = 16384  # rows of the fast weights
    width: int = 256  # columns, a multiple of 64
    longest: int = 48  # tokens of one text
    known: float = 0.9  # cosine of addresses above which a text may be one already held

    def __post_init__(self) -> None:
        if self.slots < 1 or self.features < 64 or self.longest < 1:
            raise ValueError(f"slots, features and longest must be at least 1, 64 and 1; got {self}")
        if self.width < 64 or self.width % 64:
            raise ValueError(f"width must be a multiple of 64; got {self.width}")


class RecollectionMemory:
    """Texts written by surprise, found by address, read out of fast weights.

    Args:
        config: sizes.
        dim: width of an address.
        embeddings: `[V, hidden]`, the frozen model's input embeddings.
        identity: the model's, as a file records it.
    """

    def __init__(self, config: RecollectionConfig, dim: int, embeddings: Tensor, identity: dict[str, Any]) -> None:
        self.config, self.identity = config, identity
        self.content = Content(config.features, config.width, embeddings)
        self.addresses = torch.zeros(config.slots, dim)
        self.names = torch.full((config.slots,), -1)  # -1: free. A name is given once and never again.
        self.lengths = torch.zeros(config.slots, dtype=torch.long)
        self.touched = torch.zeros(config.slots, dtype=torch.long)  # the time it was last written or recalled
        self.surprises = torch.zeros(config.slots)  # mean surprise of its tokens when it was written
        self.counts = {"time": 0, "texts": 0, "written": 0, "known": 0, "evicted": 0, "forgotten": 0}
        self._steps: deque[_Step] = deque(maxlen=_UNDOABLE)

    @property
    def used(self) -> Tensor:
        """`[held]`, int64: the slots in use."""
        return (self.names >= 0).nonzero()[:, 0]

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _SLOTS} | {"weights": self.content.weights}

    @property
    def load(self) -> float:
        """Tokens held over features, N/F: the power of the noise under every token that is read."""
        return float(self.lengths.sum()) / self.config.features

    @property
    def strength(self) -> float:
        """What every text held is worth when read: 1 while the memory is empty, falling as it fills."""
        return 1.0 / (1.0 + self.load)

    @contextlib.contextmanager
    def step(self) -> Iterator[list[str]]:
        """What changes inside is one step to `undo`; yields a list to say in words what that was. Steps do not nest."""
        what: list[str] = []
        before, counts = {name: tensor.clone() for name, tensor in self._tensors.items()}, dict(self.counts)
        try:
            yield what
        finally:
            changed = {}
            for name, tensor in self._tensors.items():
                rows = (before[name] != tensor).view(len(tensor), -1).any(-1).nonzero()[:, 0]
                changed[name] = (rows, before[name][rows])
            if any(len(rows) for name, (rows, _) in changed.items() if name != "touched"):
                self._steps.append(_Step(what, changed, counts))

    def undo(self) -> list[str]:
        """Take back the last step, to the bit; what it was, in words, or [] if there is none. `counts` go back too."""
        if not self._steps:
            return []
        last = self._steps.pop()
        for name, tensor in self._tensors.items():
            rows, values = last.changed[name]
            tensor[rows] = values
        # A name that is given out again would find the traces of what it named before; and what was recalled since,
        # outside of any step, is not later than what comes now.
        time = max(last.counts["time"], int(self.touched.max()))
        self.counts = {**last.counts, "time": time, "written": self.counts["written"]}
        return last.what

    @property
    def file_bytes(self) -> int:
        """Size of its file, but for a header of about a kilobyte."""
        a, b = self.addresses, self.content.weights
        return a.numel() + b.numel() + 4 * (len(a) + len(b)) + sum(getattr(self, name).nbytes for name in _SLOTS[:-1])

    def write(self, addresses: Tensor, tokens: list[list[int]]) -> list[Tensor]:
        """Write texts; what the memory already says at a text's address is not written again.

        Args:
            addresses: `[texts, dim]`.
            tokens: token ids of each, at most `config.longest`.

        Returns:
            the surprise of every token before the write, one `[T]` tensor a text: 1 for what is new, 0 for known.
        """
        surprises: list[Tensor] = []
        names: list[int] = []
        fresh: list[list[int]] = []
        for address, ids in zip(addresses, tokens, strict=True):
            self.counts["time"] += 1
            self.counts["texts"] += 1
            surprise, known = self._surprise(address, ids, dict(zip(names, fresh, strict=True)))
            surprises.append(surprise)
            if known is not None:
                self.counts["known"] += 1
                self.touched[known] = self.counts["time"]
                continue
            slot = self._free_slot()
            self.addresses[slot], self.names[slot] = address, self.counts["written"]
            self.lengths[slot], self.touched[slot] = len(ids), self.counts["time"]
            self.surprises[slot] = surprise.mean()
            names.append(self.counts["written"])
            fresh.append(ids)
            self.counts["written"] += 1
        if names:
            self.content.write(names, fresh, self.strength)
        return surprises

    def surprise(self, address: Tensor, ids: list[int]) -> Tensor:
        """`[T]`, of a text that is not written: 1 for tokens that are new at this address, 0 for known ones."""
        return self._surprise(address, ids, {})[0]

    def find(self, address: Tensor, count: int) -> list[tuple[int, float]]:
        """The `count` nearest slots in use: `(slot, cosine)`, nearest first."""
        used = self.used
        if not len(used):
            return []
        scores, best = (self.addresses[used] @ address).topk(min(count, len(used)))
        return list(zip(used[best].tolist(), scores.tolist(), strict=True))

    def read(self, slot: int) -> Recalled:
        """What the weights say at a slot."""
        return self.content.read(int(self.names[slot]), int(self.lengths[slot]))

    def touch(self, slot: int) -> None:
        """Note that a slot was recalled: it is then not the first to go."""
        self.counts["time"] += 1
        self.touched[slot] = self.counts["time"]

    def forget(self, slots: list[int]) -> None:
        """Erase the content of slots from the weights, and free them; those that are free already stay as they are."""
        slots = [slot for slot in slots if self.names[slot] >= 0]
        if not slots:
            return
        self.content.erase([int(self.names[s]) for s in slots], [int(self.lengths[s]) for s in slots])
        for slot in slots:
            self._clear(slot)
        self.counts["forgotten"] += len(slots)

    def save(self, path: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Write the memory to a file, whole or not at all; its size depends on the config alone."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.identity,
            "config": dataclasses.asdict(self.config),
            "counts": self.counts,
            **(extra or {}),
        }
        tensors = {name: getattr(self, name) for name in _SLOTS if name != "addresses"}
        for name, numbers in (("addresses", self.addresses), ("weights", self.content.weights)):
            tensors[name], tensors[f"{name}_scale"] = _to_int8(numbers)
        save_tensors(path, tensors, header)

    @classmethod
    def load_file(
        cls, path: str | os.PathLike[str], dim: int, embeddings: Tensor, identity: dict[str, Any]
    ) -> RecollectionMemory:
        """Read a memory file made with the same model.

        Raises:
            FileNotFoundError: there is no such file.
            MemoryFileError: not a memory, damaged, of another version, or made with another model.
        """
        tensors, header = load_header(path)
        made = header["model"]
        if made.get("fingerprint") != identity["fingerprint"] or made.get("addresses") != identity["addresses"]:
            raise MemoryFileError(
                f"{path} was made with the model {made.get('name')} ({made.get('architecture')}, "
                f"{made.get('fingerprint')}), not with {identity['name']} ({identity['fingerprint']})"
            )
        try:
            config = RecollectionConfig(**header["config"])
            if (config.slots, config.features) != (len(tensors["names"]), len(tensors["weights"])):
                # Before anything of that size is made. A tensor that does not fit is named below.
                _check_shape("names", tensors["names"], [config.slots])
                _check_shape("weights", tensors["weights"], [config.features, config.width])
            memory = cls(config, dim, embeddings, identity)
            shapes = {"addresses": memory.addresses, "weights": memory.content.weights}
            for name, own in shapes.items():
                _check_shape(name, tensors[name], list(own.shape))
                _check_shape(f"{name}_scale", tensors[f"{name}_scale"], [len(own), 1])
                tensors[name] = tensors[name].float() * tensors[f"{name}_scale"]
            for name in _SLOTS:
                own = getattr(memory, name)
                _check_shape(name, tensors[name], list(own.shape))
                own.copy_(tensors[name])
            for name in ("addresses", "weights", "surprises"):
                if not tensors[name].isfinite().all():
                    raise ValueError(f"{name} holds numbers that are none")
            if not ((memory.lengths >= 0) & (memory.lengths <= max(1, config.longest) * 4)).all():
                raise ValueError("lengths out of range")
            memory.content.weights = tensors["weights"]
            memory.counts.update({key: int(header["counts"][key]) for key in memory.counts})
        except (KeyError, TypeError, ValueError) as error:
            raise MemoryFileError(f"{path} is damaged: {error}") from error
        return memory

    def _surprise(self, address: Tensor, ids: list[int], pending: dict[int, list[int]]) -> tuple[Tensor, int | None]:
        """Surprise of each token, and the slot that says all of them already, if one does.

        1 for every token of a text that the memory knows nothing of; the error of what the slot says that says most of
        it. Some token's is 1 unless one slot says all.
        `pending`: what is addressed but not yet in the weights, by name.
        """
        surprise = torch.ones(len(ids))
        for slot, cosine in self.find(address, 3):
            name = int(self.names[slot])
            if cosine < self.config.known or int(self.lengths[slot]) != len(ids):
                continue
            said = pending[name] if name in pending else self.read(slot).ids
            if name in pending:
                error = torch.zeros(len(ids))
            else:
                error = self.content.surprise(name, ids, self.strength)
            right = torch.tensor(said) == torch.tensor(ids)
            # A token that reads right is known, whatever the noise beside it.
            each = torch.where(right, 0.5 * error.clamp(max=0.9), 1.0)
            if right.all():
                return each, slot
            # One slot's word: tokens that several know one by one are no text that any of them knows.
            surprise = each if each.sum() < surprise.sum() else surprise
        return surprise, None

    def _free_slot(self) -> int:
        free = (self.names < 0).nonzero()[:, 0]
        if len(free):
            return int(free[0])
        slot = int(self.touched.argmin())
        # Its content is left to fade under later writes: erasing it here would wear down everything else.
        self._clear(slot)
        self.counts["evicted"] += 1
        return slot

    def _clear(self, slot: int) -> None:
        self.addresses[slot], self.names[slot] = 0.0, -1
        self.lengths[slot], self.touched[slot], self.surprises[slot] = 0, 0, 0.0


@dataclass
class _Step:
    """What a step found before it: of each tensor the rows that it changed, and their values."""

    what: list[str]
    changed: dict[str, tuple[Tensor, Tensor]]
    counts: dict[str, int]


def _to_int8(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in int8, and the scale of each, float32. What half precision takes for zero is zero: see `Content.erase`."""
    numbers = numbers * (numbers.half() != 0)
    scale = numbers.abs().amax(-1, keepdim=True) / 127
    return (numbers / scale.clamp(min=1e-12)).round().to(torch.int8), scale


def _check_shape(name: str, tensor: Tensor, expected: list[int]) -> None:
    if list(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not {expected}")


def load_header(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A memory file's tensors and header, whatever model it belongs to."""
    tensors, header = load_tensors(path)
    if header.get("format") != FORMAT or not isinstance(header.get("model"), dict):
        raise MemoryFileError(f"not a memory file: {path}")
    if header.get("version") != VERSION:
        raise MemoryFileError(f"{path} has format version {header.get('version')}; this program reads {VERSION}")
    return tensors, header
