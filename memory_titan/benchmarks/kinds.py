"""What is timed: a sequence forward, with backward, token by token, and one long stream.

Each kind prepares itself, unmeasured, and gives what there is to know beforehand and a turn to take: a function that
times its parts once. Whoever calls it interleaves the turns of several processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memory_titan.benchmarks import ours
from memory_titan.benchmarks.measure import HighWater, Times, release, resident, timed
from memory_titan.benchmarks.work import CHUNK, Subject
from memory_titan.memory.neural.layer import NeuralMemory

Sample = dict[str, Any]  # {"times": {part: (wall, cpu)}, "finite": bool, "peak": bytes, in the first one}
Turn = Callable[[], Sample]
Prepared = tuple[dict[str, Any], Turn]

PIECE = 4096  # tokens a call, where a long text is read
_WARM_UP = 4 * CHUNK  # enough to pass everywhere once; too short to raise the high-water mark
_EDGE = 157 * CHUNK  # tokens at either end of a stream, about 10,000
SHORT = 16  # the short prefix of a token benchmark is this part of the long one


def sequence(subject: Subject, dim: int, tokens: int, grad: bool) -> Prepared:
    """`tokens` in one call, with the backward pass if `grad`: parts "layer" and, for ours, "op"."""
    x = torch.randn(1, tokens, dim, requires_grad=grad)
    op: list[Callable[[], Tensor]] = []
    out: list[Tensor] = []

    def run(call: Callable[[], Tensor]) -> Callable[[], None]:
        def inner() -> None:
            with torch.set_grad_enabled(grad):
                y = call()
                if grad:
                    y.square().mean().backward()
            out.append(y.detach())

        return inner

    def layer() -> Tensor:
        return subject.call(x, None)[0]

    def clear() -> None:
        out.clear()
        x.grad = None
        subject.module.zero_grad(set_to_none=True)

    run(lambda: subject.call(x[:, :_WARM_UP], None)[0])()
    clear()
    release()
    first = True

    def turn() -> Sample:
        nonlocal first
        water = HighWater() if first else None
        times: dict[str, Times] = {"layer": timed(run(layer))}
        sample: Sample = {"times": times, "finite": bool(out[-1].isfinite().all())}
        if water is not None:
            # Before the op's arguments are kept below: they would count as memory of the layer.
            sample["peak"] = water.growth()
        if isinstance(subject.module, NeuralMemory):
            clear()
            release()
            if first and (alone := ours.op_alone(subject.module, x, grad)) is not None:
                op.append(alone)
            if op:
                times["op"] = timed(run(op[0]))
        first = False
        # So that those who wait do not fill the machine together. Every turn then begins as the first one did.
        clear()
        release()
        return sample

    return {}, turn


def token(subject: Subject, dim: int, tokens: int) -> Prepared:
    """One token a call, a chunk of them a turn, after a short and after a long text: a part for each, by its length."""
    lengths, state, read = (tokens // SHORT, tokens), None, 0
    states = {}
    with torch.no_grad():
        for length in lengths:
            while read < length:
                size = min(PIECE, length - read)
                state = subject.call(torch.randn(1, size, dim), state)[1]
                read += size
            states[str(length)] = state
        x = torch.randn(1, CHUNK, dim)
        subject.call(x[:, :1], state)

    def turn() -> Sample:
        times, finite = {}, True
        for name in states:

            def chunk(name: str = name) -> None:
                nonlocal finite
                for i in range(CHUNK):
                    y, states[name] = subject.call(x[:, i : i + 1], states[name])
                finite &= bool(y.isfinite().all())

            with torch.no_grad():
                wall, cpu = timed(chunk)
            times[name] = (wall / CHUNK, cpu / CHUNK)
        return {"times": times, "finite": finite}

    return {}, turn


def stream(subject: Subject, dim: int, tokens: int, dtype: torch.dtype, on_progress: Callable[[int], None]) -> Prepared:
    """`tokens` in one stream, read while preparing; a turn reads its first and its last 10,000 once more.

    Each from the state at which it began, as the parts "first" and "last": minutes lie between the two in the stream,
    during which the machine's speed changes, and moments here. Both are whole chunks and begin with one, since a call
    that begins within a chunk has one chunk more to work on: up to a chunk of `tokens` is left out for that.
    """
    if tokens < 2 * CHUNK:
        raise ValueError(f"a stream needs at least {2 * CHUNK} tokens; got {tokens}")
    module = subject.module.to(dtype)
    edge = min(_EDGE, tokens // 2 // CHUNK * CHUNK)
    middle = (tokens - 2 * edge) // CHUNK * CHUNK
    sizes = {"first": _pieces(edge), "middle": _pieces(middle), "last": _pieces(edge)}
    begun: dict[str, tuple[Any, int]] = {}  # each part's state and count of tokens at its beginning
    facts: dict[str, Any] = {"finite": True, "resident": []}
    state: Any = None
    read, wall, cpu = 0, 0.0, 0.0

    def piece(start: int, size: int) -> Tensor:
        """Made anew when it is wanted, so that nothing is kept that would grow."""
        return torch.randn(1, size, dim, generator=torch.Generator().manual_seed(start)).to(dtype)

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        with torch.no_grad():
            return subject.call(x, state)

    step(torch.randn(1, _WARM_UP, dim, dtype=dtype), None)
    for part, pieces in sizes.items():
        begun[part] = (state, read)
        total = (0.0, 0.0)
        for size in pieces:
            x = piece(read, size)
            done: list[tuple[Tensor, Any]] = []

            def call(x: Tensor = x, state: Any = state, done: list[tuple[Tensor, Any]] = done) -> None:
                done.append(step(x, state))

            times = timed(call)
            total = (total[0] + times[0], total[1] + times[1])
            y, state = done[0]
            facts["finite"] &= bool(y.isfinite().all())
            read += size
            facts["resident"].append((read, resident()))
            on_progress(read)
        facts[part], wall, cpu = total, wall + total[0], cpu + total[1]
        if part == "first":
            water = HighWater()
    finite = all(bool(t.isfinite().all()) for t in state.tensors().values() if t.is_floating_point())
    facts["finite"] &= finite
    numbers = sum(tensor.numel() for tensor in state.tensors().values())
    facts |= {"growth": water.growth(), "state_numbers": numbers}
    facts |= {"wall": wall, "cpu": cpu, "parameters": sum(p.numel() for p in module.parameters())}

    def turn() -> Sample:
        times = {}
        for part in ("first", "last"):
            state, start = begun[part]
            parts = [piece(start + at, size) for at, size in zip(range(0, edge, PIECE), sizes[part], strict=True)]

            def again(state: Any = state, parts: list[Tensor] = parts) -> None:
                for x in parts:
                    _, state = step(x, state)

            times[part] = timed(again)
        return {"times": times, "finite": facts["finite"]}

    return facts, turn


def _pieces(tokens: int) -> list[int]:
    return [min(PIECE, tokens - start) for start in range(0, tokens, PIECE)]
