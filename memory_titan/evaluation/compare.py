"""The same questions with the memory, without it, by the bare model, and with the memory spoilt by a probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from memory_titan.evaluation.answers import evaluate
from memory_titan.evaluation.probes import PROBES
from memory_titan.graft.model import MemoryModel
from memory_titan.tasks.examples import Example

WAYS = ("memory", "window", "bare")
_ROW = 8192  # tokens of texts read side by side
_MOST = 8


def in_way(model: MemoryModel, way: str) -> AbstractContextManager[Any]:
    """The model as `way` says while the context is open.

    Args:
        model: a graft.
        way: "memory": as it is; "window": without the memory, attention seeing the graft's window; "bare": without
            both, so that it sees everything; or a probe of `PROBES`, with the memory.

    Raises:
        ValueError: there is no such way.
    """
    if way in PROBES:
        return PROBES[way](model)
    if way not in WAYS:
        raise ValueError(f"there is no way {way!r}; there are {', '.join([*WAYS, *PROBES])}")
    return nullcontext() if way == "memory" else model.disable_memory(keep_window=way == "window")


def attention_window(model: MemoryModel) -> int | None:
    """Tokens that the widest layer's attention sees with the graft on, its own included; None: all."""
    windows = model.graft.windows()
    return None if any(w is None for w in windows) else max(w for w in windows if w is not None)


@dataclass(frozen=True)
class Asked:
    """One answer, and in which ways it was said right.

    Attributes:
        name: of the text.
        distance, nearest: tokens back to the farthest and to the nearest evidence.
        right: by way.
        overflowed: ways in which the model's logits were no numbers there; such an answer is wrong.
    """

    name: str
    distance: int
    nearest: int
    right: dict[str, bool]
    overflowed: tuple[str, ...] = ()


def ask(
    model: MemoryModel,
    examples: Sequence[Example],
    ways: Iterable[str],
    on_read: Callable[[str, int], None] = lambda way, tokens: None,
) -> list[Asked]:
    """Ask the questions of all examples in all ways, by greedy decoding; see `evaluate`.

    Args:
        model: a graft.
        examples: what to ask; read side by side as long as that is little.
        ways: see `in_way`.
        on_read: told, after each stretch, the way and how many tokens were read.

    Returns:
        one an answer, ordered by the texts' lengths, then as given.
    """
    size = max(1, min(_MOST, _ROW // max(len(example.ids) for example in examples)))
    found: dict[str, list[dict[str, Any]]] = {}
    for way in ways:
        with in_way(model, way):
            found[way] = evaluate(model, examples, size, lambda tokens: on_read(way, tokens))["answers"]  # noqa: B023
    return [
        Asked(
            name=row[0]["name"],
            distance=row[0]["distance"],
            nearest=row[0]["nearest"],
            right={way: each["right"] for way, each in zip(found, row, strict=True)},
            overflowed=tuple(way for way, each in zip(found, row, strict=True) if not each["finite"]),
        )
        for row in zip(*found.values(), strict=True)
    ]


@dataclass(frozen=True)
class Share:
    """How many of how many, and how sure that is.

    The interval takes answers for independent. Several of one text are not quite: it is then too narrow.
    """

    right: int
    total: int
    exact: float = field(init=False)  # right / total; NaN of none
    low: float = field(init=False)  # Wilson's 95% interval for the share of all such answers (JASA 22, 1927)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        low, high = wilson(self.right, self.total)
        exact = self.right / self.total if self.total else math.nan
        for name, value in (("exact", exact), ("low", low), ("high", high)):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return f"{self.exact:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.total else "-"


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share, 95% by default; of nothing it is everything, (0, 1).

    Raises:
        ValueError: right is not from 0 to total.
    """
    if not 0 <= right <= total:
        raise ValueError(f"right must be from 0 to total; got {right} of {total}")
    if not total:
        return 0.0, 1.0
    share, square = right / total, z * z / total
    middle, half = share + square / 2, z * math.sqrt(share * (1 - share) / total + square / (4 * total))
    # exactly 0 and 1 at the ends, where rounding would miss them
    low = (middle - half) / (1 + square) if right else 0.0
    return low, (middle + half) / (1 + square) if right < total else 1.0


def shares(asked: Sequence[Asked]) -> dict[str, Share]:
    """By way, of some answers that were asked in the same ways."""
    ways = asked[0].right if asked else {}
    return {way: Share(sum(each.right[way] for each in asked), len(asked)) for way in ways}


def label(way: str, window: int | None) -> str:
    """A way in words; window: tokens that attention sees, None: all."""
    alone = "memory off" if window is None else f"window of {window} alone"
    words = {"memory": "with memory", "window": alone, "bare": "bare model, sees everything"}
    words |= {"flipped_sign": "writes of flipped sign", "queries_for_keys": "stored under queries"}
    return {**words, "no_writes": "nothing written"}.get(way, way)
