"""What a graft costs beside the model it sits on, and beside the same model with full attention.

Ways:  graft    memory and window         window    the window alone, equal        full    the bare model, all in view

Times are medians of turns taken one after the other, so that what slows the machine slows all; the ratios are of
neighbours. A kept length is filled with random keys and values: the time of a token does not depend on what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from memory_titan.benchmarks.measure import Spread, timed
from memory_titan.graft.model import MemoryModel


@dataclass(frozen=True)
class Cost:
    """One line of the table."""

    what: str  # "reading", "training", "decoding"
    tokens: int  # read in a turn, or kept when one is decoded
    way: str  # "graft", "window", "full"
    seconds: float  # a token, median
    ratio: float  # graft over this way, median of neighbours
    low: float
    high: float
    kept: int | None = None  # bytes carried on from token to token


def reading(model: MemoryModel, length: int, turns: int, ways: Sequence[str]) -> list[Cost]:
    """A text of so many tokens, without gradients."""
    ids = _ids(model, length)

    def read(way: str) -> Callable[[], Any]:
        if way == "full":
            return lambda: model.graft.decoder(input_ids=ids, use_cache=True, past_key_values=DynamicCache())
        return lambda: model.read(ids, model.new_session())

    return _compare("reading", length, length, model, ways, turns, read)


def training(model: MemoryModel, length: int, turns: int) -> list[Cost]:
    """Forward and backward. The window alone: back to the embeddings, as whatever is trained below or in it must go."""
    ids = _ids(model, length)
    weight = torch.randn(length, 1)

    def step(way: str) -> Callable[[], Any]:
        def run() -> None:
            if way == "graft":
                hidden, _ = model.hidden(ids, None, model.new_session())
                (hidden.float() * weight).mean().backward()
                model.zero_grad()
                return
            embedded = model.graft.decoder.get_input_embeddings()(ids).detach().requires_grad_()
            out = model.graft.decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
            (out.float() * weight).mean().backward()

        return run

    with torch.enable_grad():
        return _compare("training", length, length, model, ["graft", "window"], turns, step)


def decoding(model: MemoryModel, kept: int, turns: int, ways: Sequence[str], tokens: int = 8) -> list[Cost]:
    """One token after so many, so many times."""
    ids = _ids(model, tokens)
    size: dict[str, int] = {}
    read = model.read(_ids(model, min(kept, 512)), model.new_session())  # its size does not depend on the length
    size["graft"] = read.nbytes
    size["window"] = sum(x.numel() * x.element_size() for x in (*read.state.keys, *read.state.values))
    full = _filled(model, kept) if "full" in ways else None
    if full is not None:
        size["full"] = sum(x.numel() * x.element_size() for layer in full.layers for x in (layer.keys, layer.values))

    def decode(way: str) -> Callable[[], Any]:
        def run() -> None:
            if way == "full":
                assert full is not None
                for token in ids.split(1, 1):
                    model.graft.decoder(input_ids=token, use_cache=True, past_key_values=full)
                full.crop(-tokens)
                return
            session = read.copy()
            for token in ids.split(1, 1):
                model.hidden(token, None, session)

        return run

    return _compare("decoding", kept, tokens, model, ways, turns, decode, size)


def _compare(
    what: str,
    tokens: int,
    count: int,
    model: MemoryModel,
    ways: Sequence[str],
    turns: int,
    make: Callable[[str], Callable[[], Any]],
    kept: dict[str, int] | None = None,
) -> list[Cost]:
    """Turns of all ways, one after the other; the first is thrown away."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way in ways:
            with _as(model, way):
                seconds = timed(make(way))[0] / count
            if turn:
                taken[way].append(seconds)
    found = []
    for way in ways:
        ratio = Spread.of_ratios(taken["graft"], taken[way])
        assert ratio is not None
        median = Spread.of(taken[way]).median
        found.append(
            Cost(what, tokens, way, median, ratio.median, ratio.low, ratio.high, None if kept is None else kept[way])
        )
    return found


@contextmanager
def _as(model: MemoryModel, way: str) -> Iterator[None]:
    off: AbstractContextManager[Any] = nullcontext()
    if way != "graft":
        off = model.disable_memory(keep_window=way == "window")
    with off:
        yield


def _ids(model: MemoryModel, length: int) -> torch.Tensor:
    vocabulary = model.base_model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(100 % vocabulary, vocabulary, (1, length), generator=generator).to(model.device)


def _filled(model: MemoryModel, kept: int) -> DynamicCache:
    heads, width = model.graft.shape[1:]
    cache = DynamicCache()
    for layer in range(len(model.graft.own_windows)):
        keys, values = torch.randn(2, 1, heads, kept, width, dtype=model.dtype, device=model.device)
        cache.update(keys, values, layer)
    return cache


def table(costs: Sequence[Cost]) -> str:
    """As Markdown."""
    lines = ["| | tokens | way | ms a token | graft over it | carried on |", "|---|---|---|---|---|---|"]
    names = {"graft": "memory and window", "window": "window alone", "full": "bare, full attention"}
    for cost in costs:
        ratio = "" if cost.way == "graft" else f"{cost.ratio:.2f} ({cost.low:.2f} to {cost.high:.2f})"
        kept = "" if cost.kept is None else f"{cost.kept / 1e6:,.1f} MB"
        lines.append(
            f"| {cost.what} | {cost.tokens:,} | {names[cost.way]} | {1e3 * cost.seconds:.2f} | {ratio} | {kept} |"
        )
    return "\n".join(lines) + "\n"


def records(costs: Sequence[Cost]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(cost) for cost in costs]
