"""What happened in a neural memory over a stream, as arrays: what the pictures of it are drawn from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryState
from memory_titan.memory.trace import Trace, trace
from memory_titan.viz.record_file import RecordFile

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

OF_TOKENS = ("step", "keep", "momentum", "loss", "gradient", "write")
OF_WEIGHTS = ("norm", "moved", "away")


@dataclass(frozen=True)
class NeuralRecord(RecordFile):
    """One batch row of one `NeuralMemory`: T tokens, H heads, M matrices a head, L looks at them; float32.

    The first look is before the first token. Norms are Frobenius'.

    Attributes:
        step, keep, momentum: `[T, H]`, the gates: theta, 1 - alpha, eta; see `Trace`.
        loss, gradient, write: `[T, H]`, the surprise; see `Surprise`.
        norm: `[L, H, M]`, of each matrix.
        moved: `[L, H, M]`, norm of the difference to the look before; 0 at the first.
        away: `[L, H, M]`, norm of the difference to the first look.
        looked_at: `[L]`, int64, tokens written by then, 0 at the first.
    """

    KIND = "record of a neural memory"

    step: Floats
    keep: Floats
    momentum: Floats
    loss: Floats
    gradient: Floats
    write: Floats
    norm: Floats
    moved: Floats
    away: Floats
    looked_at: Integers

    def __post_init__(self) -> None:
        if self.step.ndim != 2:
            raise ValueError(f"step must be [T, H]; got {self.step.shape}")
        if self.norm.ndim != 3 or self.norm.shape[:2] != (len(self.looked_at), self.step.shape[1]):
            raise ValueError(f"norm must be [{len(self.looked_at)}, {self.step.shape[1]}, M]; got {self.norm.shape}")
        for names, shape in ((OF_TOKENS, self.step.shape), (OF_WEIGHTS, self.norm.shape)):
            for name in names:
                if getattr(self, name).shape != shape:
                    raise ValueError(f"{name} must be {shape}; got {getattr(self, name).shape}")

    @property
    def tokens(self) -> int:
        """T."""
        return self.step.shape[0]

    @property
    def heads(self) -> int:
        """H."""
        return self.step.shape[1]

    @property
    def matrices(self) -> int:
        """M."""
        return self.norm.shape[2]

    def left(self) -> Floats:
        """`[T, H]`, what decay leaves of a write after 0, 1, ... tokens: of the later keep gates, their product.

        It is the mean over all tokens that have so many after them. Later writes on top are not in it, and where
        decay is channel-wise each gate is a mean.
        """
        total = np.zeros((self.tokens, self.heads))
        there = np.ones((self.tokens, self.heads))  # of the writes of tokens 0 to T - 1 - lag
        for lag in range(self.tokens):
            if lag:
                there = there[:-1] * self.keep[lag:]
            total[lag] = there.mean(0)
        return total.astype(np.float32)

    def by_kind(self, kinds: Sequence[str]) -> tuple[list[str], dict[str, Floats]]:
        """What each head makes of kinds of token.

        Args:
            kinds: T, what kind each token is.

        Returns:
            The K kinds in the order of their first token; `[H, K]`, the mean over a kind's tokens, of each of "step",
            "keep", "momentum", "loss", "gradient", "write".

        Raises:
            ValueError: not T kinds.
        """
        if len(kinds) != self.tokens:
            raise ValueError(f"the record has {self.tokens} tokens; got {len(kinds)} kinds")
        names, kind = list(dict.fromkeys(kinds)), np.array(list(kinds))
        return names, {of: np.stack([getattr(self, of)[kind == name].mean(0) for name in names], 1) for of in OF_TOKENS}


def record_neural(module: nn.Module, run: Callable[[], Any], row: int = 0, every: int = 1) -> dict[str, NeuralRecord]:
    """A record of every `NeuralMemory` inside `module`, by its name, of what `run` makes it read.

        records = record_neural(model, lambda: model(input_ids))

    Each call of a memory is written a second time, `every` tokens after `every` tokens, to look at the weights between;
    a memory is the same at any split, so that these are its weights. Tokens that its mask excludes are left out.

    Args:
        module: that has neural memories in it, or is one.
        run: called once, without gradients. What it gives a memory is taken as one stream, in the order of the calls.
        row: of the batch.
        every: tokens between two looks at the weights; 1: what each token writes is seen by itself.

    Raises:
        ValueError: there is no neural memory in it, `run` did not call one, or there is no such row.
    """
    memories = {name: part for name, part in module.named_modules() if isinstance(part, NeuralMemory)}
    if not memories:
        raise ValueError("there is no NeuralMemory in the module")
    if every < 1:
        raise ValueError(f"every must be at least 1; got {every}")
    watchers = {name: _Watcher(memory, row, every) for name, memory in memories.items()}
    handles = [memories[name].register_forward_hook(each.see, with_kwargs=True) for name, each in watchers.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    if idle := [name or type(module).__name__ for name, each in watchers.items() if not each.calls]:
        raise ValueError(f"run did not write any token into {', '.join(idle)}")
    return {name: each.record() for name, each in watchers.items()}


class _Watcher:
    """Writes again what a memory was given, and looks between."""

    def __init__(self, memory: NeuralMemory, row: int, every: int) -> None:
        self.memory, self.row, self.every = memory, row, every
        self.calls: list[Trace] = []
        self.first: list[Tensor] = []  # [H, in, out] a matrix
        self.last: list[Tensor] = []
        self.norms: list[list[Tensor]] = []  # a look: norm, moved, away, [H, M] each
        self.at: list[int] = []

    def see(self, memory: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """The hook on the memory."""
        given = inspect.signature(NeuralMemory.forward).bind(memory, *args, **kwargs).arguments
        x, state, mask, qkv = given["x"], given.get("state"), given.get("mask"), given.get("qkv")
        if not 0 <= self.row < len(x):
            raise ValueError(f"row must be 0 to {len(x) - 1}; got {self.row}")
        there = slice(None) if mask is None else mask[self.row].bool()
        x, qkv = x[self.row, there][None], None if qkv is None else qkv[self.row, there][None]
        state = self.memory.initial_state(1) if state is None else state.select([self.row])
        if not self.at:
            self.look(state, 0)
        with torch.no_grad(), trace(self.memory) as traces:
            for begin in range(0, x.shape[1], self.every):
                part = slice(begin, min(begin + self.every, x.shape[1]))
                state, _ = self.memory.memorize(x[:, part], state, qkv=None if qkv is None else qkv[:, part])
                self.look(state, self.at[-1] + part.stop - begin)
        self.calls += traces[""]

    def look(self, state: NeuralMemoryState, tokens: int) -> None:
        """At the weights as they are now; only their norms are kept."""
        now = [matrix[0].detach().float() for matrix in self.memory.present_weights(state)]
        if not self.at:
            self.first = self.last = now
        others = [[torch.zeros_like(matrix) for matrix in now], self.last, self.first]
        self.norms.append([_distances(now, other) for other in others])
        self.last = now
        self.at.append(tokens)

    def record(self) -> NeuralRecord:
        """Of all calls."""

        def joined(parts: list[Tensor]) -> Floats:
            return np.ascontiguousarray(torch.cat([part[0].detach().float().cpu() for part in parts]).numpy())

        told = {name: joined([getattr(call, name) for call in self.calls]) for name in OF_TOKENS[:3]}
        told |= {name: joined([getattr(call.surprise, name) for call in self.calls]) for name in OF_TOKENS[3:]}
        norms = {name: torch.stack([look[i] for look in self.norms]).numpy() for i, name in enumerate(OF_WEIGHTS)}
        return NeuralRecord(**told, **norms, looked_at=np.array(self.at, np.int64))


def _distances(weights: list[Tensor], others: list[Tensor]) -> Tensor:
    """`[H, M]`, Frobenius' norm of each difference."""
    return torch.stack([(a - b).flatten(1).norm(dim=1) for a, b in zip(weights, others, strict=True)], 1).cpu()
