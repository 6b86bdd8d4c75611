"""What every memory must keep, whatever it is made of. A memory's test module calls these on its own configurations.

A memory here is a module with `memory(x, state=None, mask=None) -> (y, state)`, `initial_state(batch)`,
`memorize` and `recall`, and a state that is a `MemoryState`.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-10  # in float64


def same(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def same_state(a, b, tolerance: float = TOLERANCE) -> None:
    left, right = a.tensors(), b.tensors()
    assert left.keys() == right.keys()
    for name in left:
        same(left[name], right[name], tolerance)


def causal(memory, x: Tensor, at: int) -> None:
    """A change at token `at` leaves everything before it as it was, and does change something from there on."""
    other = x.clone()
    other[:, at:] = torch.randn_like(other[:, at:])
    y, y_other = memory(x)[0], memory(other)[0]
    same(y[:, :at], y_other[:, :at], 1e-12)
    assert not torch.allclose(y[:, at:], y_other[:, at:])


def rows_alone(memory, x: Tensor) -> None:
    """Each batch row gives what it gives by itself."""
    y, state = memory(x)
    for row in range(x.shape[0]):
        alone, alone_state = memory(x[row : row + 1])
        same(y[row : row + 1], alone)
        same_state(state.select([row]), alone_state)


def any_split(memory, x: Tensor, cuts: list[int]) -> None:
    """Read in the pieces between `cuts`, the outputs and the state are those of one call."""
    whole, whole_state = memory(x)
    pieces, state = [], None
    for begin, end in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        y, state = memory(x[:, begin:end], state)
        pieces.append(y)
    same(torch.cat(pieces, 1), whole)
    same_state(state, whole_state)


def padding_changes_nothing(memory, x: Tensor, mask: Tensor, before: int = 0) -> None:
    """With tokens masked out, each row gives what it gives without them, whatever stood there; also on going on.

    The first `before` tokens are read without a mask, so that rows then stand inside a chunk.
    """
    state = memory(x[:, :before])[1] if before else None
    rest, rest_mask = x[:, before:], mask[:, before:]
    garbage = torch.where(rest_mask[..., None], rest, 1e4)
    y, after = memory(garbage, state, mask=rest_mask)
    assert (y[~rest_mask] == 0).all()
    more = torch.randn_like(x[:, :5])
    y_more, _ = memory(more, after)
    for row in range(x.shape[0]):
        kept = rest[row : row + 1, rest_mask[row]]
        own = None if state is None else state.select([row])
        alone, alone_after = memory(kept, own)
        same(y[row : row + 1, rest_mask[row]], alone)
        same_state(after.select([row]), alone_after)
        same(y_more[row : row + 1], memory(more[row : row + 1], alone_after)[0])


def state_round_trip(memory, x: Tensor, path) -> None:
    """Saves and loads bit for bit; selects, reorders, resets and detaches."""
    _, state = memory(x)
    state.save(path)
    loaded = type(state).load(path)
    for name, tensor in state.tensors().items():
        assert torch.equal(loaded.tensors()[name], tensor) and loaded.tensors()[name].dtype == tensor.dtype
    same(memory(x, loaded)[0], memory(x, state)[0], 1e-12)  # strides, and so the order of sums, may differ

    order = torch.tensor([2, 0, 0])
    same(memory(x[order], state.reorder(order))[0], memory(x, state)[0][order])

    fresh = state.reset([1], memory.initial_state(x.shape[0]))
    same(memory(x, fresh)[0][1], memory(x)[0][1])
    same(memory(x, fresh)[0][0], memory(x, state)[0][0])

    assert any(t.requires_grad for t in state.tensors().values())
    assert not any(t.requires_grad for t in state.detach().tensors().values())
    assert state.nbytes == memory(torch.cat([x, x, x], 1))[1].nbytes


def reading_changes_nothing(memory, x: Tensor, q: Tensor) -> None:
    _, state = memory(x)
    before = state.clone()
    first, second = memory.recall(q, state), memory.recall(q, state)
    same(first, second, 0.0)
    same_state(state, before, 0.0)


def writing_alone_writes_the_same(memory, x: Tensor) -> None:
    state, surprise = memory.memorize(x)
    same_state(state, memory(x)[1])
    for part in surprise:
        assert part.shape[:2] == x.shape[:2] and part.isfinite().all()
    assert (surprise.gradient >= 0).all() and (surprise.write >= 0).all()


def gradients_are_true(memory, x: Tensor, before: int = 3) -> None:
    """float64 gradcheck through every write, for the input, the parameters and the state after `before` tokens."""
    parameters = [p for p in memory.parameters() if p.requires_grad]
    names = [n for n, p in memory.named_parameters() if p.requires_grad]
    _, state = memory(x[:, :before])
    floating = {
        n: t.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        for n, t in state.tensors().items()
        if t.is_floating_point() and t.numel()
    }

    def run(x, *rest):
        held = iter(rest[: len(floating)])
        start = state.detach().map(lambda t: next(held) if t.is_floating_point() and t.numel() else t)
        weights = dict(zip(names, rest[len(floating) :], strict=True))
        y, new = torch.func.functional_call(memory, weights, (x, start))
        # gradcheck counts only outputs with a gradient, and what a state begins a chunk with may be a constant
        return y, *[t + 0 * y.sum() for t in new.tensors().values() if t.is_floating_point() and t.numel()]

    inputs = (x.detach().requires_grad_(), *floating.values(), *parameters)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def low_precision(memory, x: Tensor, tolerance: float = 0.08) -> None:
    """bfloat16 in, bfloat16 out, close to float32; the state stays in float32."""
    exact, _ = memory.float()(x.float())
    y, state = memory.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in state.tensors().values() if t.is_floating_point())
    assert (y.float() - exact).norm() < tolerance * exact.norm()


@torch.no_grad()
def stays_finite(memory, tokens: Tensor, length: int, piece: int = 4096) -> None:
    """`length` tokens, `tokens` over and over; ends finite, and of the size that it began with."""
    state = memory.initial_state(tokens.shape[0])
    size = state.nbytes
    stretch = tokens.repeat(1, -(-piece // tokens.shape[1]), 1)[:, :piece]
    for begin in range(0, length, piece):
        y, state = memory(stretch[:, : min(piece, length - begin)], state)
    assert y.isfinite().all() and all(t.isfinite().all() for t in state.tensors().values() if t.is_floating_point())
    assert state.nbytes == size
