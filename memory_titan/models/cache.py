"""`StateCache`: what Hugging Face's `generate` carries from call to call for a model whose layers are memories."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from memory_titan.memory.files import MemoryFileError, load_tensors, save_tensors
from memory_titan.memory.state import MemoryState

FORMAT = "memory-titan cache"
VERSION = 1


class StateCache(Cache):
    """A stream that goes on from call to call: the state of every layer, and the tokens read.

        cache = StateCache()                            # at the beginning
        model(input_ids, past_key_values=cache)         # moves it on; the next call reads what comes next
        model.generate(input_ids, memory=cache)
        cache.save("stream.safetensors"); cache = model.load_cache("stream.safetensors")

    The states are never changed, only replaced, all of them at a call's end: a call that fails leaves those from
    before, and `copy` costs nothing.

    Args:
        states: one a layer; none: the next call begins at the layers' initial states.
        tokens: read so far, padding counted (`get_seq_length`).

    Attributes:
        states, tokens: the same.
        offset: tokens of which `generate` is not told, see `MemoryGenerationMixin.generate`.
    """

    def __init__(self, states: Sequence[MemoryState] = (), tokens: int = 0) -> None:
        super().__init__(layers=[])
        self.states, self.tokens = tuple(states), tokens
        self.offset = 0

    def __repr__(self) -> str:
        kinds = ", ".join(sorted({type(state).__name__ for state in self.states})) or "empty"
        return f"StateCache({kinds}; layers={len(self)}, rows={self.batch_size}, tokens={self.tokens})"

    def __len__(self) -> int:
        return len(self.states)

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first call."""
        return self.states[0].batch_size if self.states else -1

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(state.nbytes for state in self.states)

    def copy(self) -> StateCache:
        """One that goes on by itself from here."""
        return StateCache(self.states, self.tokens)

    def advance(self, states: Sequence[MemoryState], tokens: int) -> None:
        """A call has come to its end: go on after it.

        Args:
            states: one a layer.
            tokens: that the call read, padding counted.
        """
        self.states, self.tokens = tuple(states), self.tokens + tokens

    def map(self, function: Callable[[MemoryState], MemoryState]) -> None:
        """Put `function` of every state in its place."""
        self.states = tuple(function(state) for state in self.states)

    def reset_rows(self, rows: Tensor | Sequence[int], initial: Sequence[MemoryState]) -> None:
        """Put `rows` back to the beginning, where other rows go on.

        Args:
            rows: their numbers.
            initial: `model.initial_states(batch_size)`.
        """
        self.states = tuple(state.reset(rows, first) for state, first in zip(self.states, initial, strict=True))

    def detach(self) -> StateCache:
        """Cut the gradient, for truncated backpropagation; returns itself."""
        self.map(lambda state: state.detach())
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as one safetensors file, whole or not at all. `MemoryLanguageModel.load_cache` reads it."""
        named = [state.tensors().items() for state in self.states]
        tensors = {f"{layer}.{name}": tensor for layer, items in enumerate(named) for name, tensor in items}
        kinds = [type(state).__name__ for state in self.states]
        save_tensors(path, tensors, {"format": FORMAT, "version": VERSION, "layers": kinds, "tokens": self.tokens})

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], kinds: Sequence[type[MemoryState]], device: str | torch.device = "cpu"
    ) -> StateCache:
        """Read what `save` wrote.

        Args:
            path: of the file.
            kinds: the class of each layer's state.
            device: to put the states on.

        Raises:
            FileNotFoundError: there is no such file.
            MemoryFileError: it is damaged, no cache, of a newer version, or of a model with other layers.
        """
        tensors, header = load_tensors(path, str(device))
        if header.get("format") != FORMAT:
            raise MemoryFileError(f"{path} holds {header.get('format', 'something else')}, not a {FORMAT}")
        if header.get("version") != VERSION:
            raise MemoryFileError(f"{path} has format version {header.get('version')}; this is version {VERSION}")
        found, expected = header["layers"], [kind.__name__ for kind in kinds]
        if found and found != expected:
            raise MemoryFileError(f"{path} is of another model: its layers' states are {found}, not {expected}")
        layers: list[dict[str, Tensor]] = [{} for _ in found]
        for name, tensor in tensors.items():
            layer, _, rest = name.partition(".")
            layers[int(layer)][rest] = tensor
        states = [kind._from_tensors(own) for kind, own in zip(kinds, layers, strict=False)]
        return cls(states, header["tokens"])

    # What transformers asks of a cache.

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refused: the layers of this model keep their own states."""
        raise ValueError("a StateCache holds states, not keys and values; it goes with a MemoryLanguageModel only")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read since `offset`."""
        return self.tokens - self.offset

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length of the keys, and the column of the first."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No limit."""
        return -1

    @property
    def is_initialized(self) -> bool:
        """Whether anything was read."""
        return bool(self.states)

    @property
    def is_compileable(self) -> bool:
        """No: its states are replaced."""
        return False

    @property
    def is_croppable(self) -> bool:
        """No: see `crop`."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, but for 0: a memory cannot unread. Keep a `copy` to go back to."""
        if tokens_to_remove:
            raise ValueError(
                "a memory cannot unread: what was read has changed its state. Assisted and contrastive decoding, which "
                "take tokens back, do not work with it; keep cache.copy() to go back to."
            )

    def reset(self) -> None:
        """At the beginning again."""
        self.states, self.tokens, self.offset = (), 0, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in the order `beam_idx`, `[B]`."""
        self.map(lambda state: state.reorder(beam_idx))

    def batch_select_indices(self, indices: Tensor) -> None:
        """These rows only."""
        self.map(lambda state: state.select(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        self.map(lambda state: state.select(torch.arange(state.batch_size).repeat_interleave(repeats)))
