"""What a memory carries from call to call: a dataclass of tensors, the batch first in every one of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from memory_titan.memory.files import MemoryFileError, load_tensors, save_tensors

FORMAT = "memory-titan state"
VERSION = 1

State = TypeVar("State", bound="MemoryState")


@dataclass(frozen=True)
class MemoryState:
    """Base of every memory's state.

    A subclass is a frozen dataclass whose fields are tensors of shape `[batch, ...]`, tuples of such tensors, or
    tuples of states (then the field's metadata name their class: `field(metadata={"of": NeuralMemoryState})`, or those
    that they may be of, a tuple).
    It holds everything that the future needs, and its size does not depend on how much was read. All methods
    return a new state and leave this one as it is.
    """

    def map(self: State, function: Callable[[Tensor], Tensor]) -> State:
        """Apply `function` to every tensor."""
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                changed[field.name] = tuple(_mapped(x, function) for x in value)
            else:
                changed[field.name] = function(value)
        return dataclasses.replace(self, **changed)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; those of a tuple as `name.0`, `name.1`, ..., of a state in it `name.0.weights.0`."""
        named: dict[str, Tensor] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                for index, item in enumerate(value):
                    inner = item.tensors() if isinstance(item, MemoryState) else {"": item}
                    named.update({f"{field.name}.{index}.{name}".rstrip("."): x for name, x in inner.items()})
            else:
                named[field.name] = value
        return named

    @property
    def batch_size(self) -> int:
        return next(iter(self.tensors().values())).shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def select(self: State, rows: Tensor | Sequence[int] | slice) -> State:
        """The given batch rows, in the given order; rows may repeat (as in beam search)."""
        index = rows if isinstance(rows, (slice, Tensor)) else torch.tensor(list(rows), dtype=torch.long)
        return self.map(lambda x: x[index.to(x.device) if isinstance(index, Tensor) else index])

    def reorder(self: State, beam_idx: Tensor) -> State:
        """`select` under the name that beam search uses; `beam_idx`: `[batch]`, integer."""
        return self.select(beam_idx)

    def reset(self: State, rows: Tensor | Sequence[int], initial: State) -> State:
        """The state with `rows` put back to `initial` (a state of the same batch size; see `initial_state`)."""
        chosen = torch.zeros(self.batch_size, dtype=torch.bool)
        chosen[rows.cpu() if isinstance(rows, Tensor) else list(rows)] = True
        fresh = initial.tensors()
        taken = iter(fresh.values())

        def choose(x: Tensor) -> Tensor:
            mask = chosen.to(x.device).view(-1, *[1] * (x.dim() - 1))
            return torch.where(mask, next(taken).to(x), x)

        return self.map(choose)

    def detach(self: State) -> State:
        """The same numbers, cut from the autograd graph (truncated backpropagation)."""
        return self.map(Tensor.detach)

    def clone(self: State) -> State:
        return self.map(Tensor.clone)

    def to(self: State, device: Any = None, dtype: torch.dtype | None = None) -> State:
        """Moved to `device`, and floating point tensors to `dtype`; integers keep theirs."""
        return self.map(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))

    def save(self, path: str | os.PathLike[str], header: dict[str, Any] | None = None) -> None:
        """Write the state to `path` (safetensors with a JSON header), whole or not at all."""
        own = {"format": FORMAT, "version": VERSION, "type": type(self).__name__}
        save_tensors(path, self.tensors(), {**(header or {}), **own})

    @classmethod
    def load(cls: type[State], path: str | os.PathLike[str], device: str = "cpu") -> State:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            MemoryFileError: it is damaged, of another kind, or of a newer version.
        """
        tensors, header = load_tensors(path, device)
        if header.get("format") != FORMAT or header.get("type") != cls.__name__:
            raise MemoryFileError(f"{path} holds {header.get('type', 'something else')}, not a {cls.__name__}")
        if header.get("version") != VERSION:
            raise MemoryFileError(f"{path} has format version {header.get('version')}; this is version {VERSION}")
        return cls._from_tensors(tensors)

    @classmethod
    def _from_tensors(cls: type[State], tensors: dict[str, Tensor]) -> State:
        """What `tensors` returned, back."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name in tensors:
                values[field.name] = tensors[field.name]
                continue
            items: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"{field.name}."):
                    index, _, rest = name.removeprefix(f"{field.name}.").partition(".")
                    items.setdefault(int(index), {})[rest] = tensor
            of = field.metadata.get("of")
            ordered = [items[index] for index in sorted(items)]
            values[field.name] = tuple(
                item[""] if of is None else _class_of(item, of)._from_tensors(item) for item in ordered
            )
        return cls(**values)


def _class_of(tensors: dict[str, Tensor], of: Any) -> Any:
    """The class of states whose fields these tensors are; of several, that with the fewest others."""
    if not isinstance(of, tuple):
        return of
    names = {name.partition(".")[0] for name in tensors}
    fields = {one: {field.name for field in dataclasses.fields(one)} for one in of}
    fitting = [one for one in of if names <= fields[one]]
    if not fitting:
        raise MemoryFileError(f"a state with {', '.join(sorted(names))} is none of {', '.join(c.__name__ for c in of)}")
    return min(fitting, key=lambda one: len(fields[one]))


def _mapped(item: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return item.map(function) if isinstance(item, MemoryState) else function(item)
