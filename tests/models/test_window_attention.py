"""Attention over a window keeps the laws of a memory, and is what its definition, token by token, says."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

import laws
from memory_titan.models import TransformerBlock, WindowAttention

DIM, HEADS = 8, 2
WINDOWS = [1, 2, 5, 8, 40, None]
CUTS = [list(range(1, 23)), [0, 4, 4, 17, 23], [5, 10]]


def build(window: int | None, kind: type = WindowAttention) -> torch.nn.Module:
    torch.manual_seed(0)
    extra = {"inner": 12} if kind is TransformerBlock else {}
    return kind(DIM, HEADS, window=window, rotary_base=50.0, **extra).double()


def tokens(batch: int = 3, length: int = 23, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[(WindowAttention, w) for w in WINDOWS] + [(TransformerBlock, 5)], ids=str)
def attention(request) -> torch.nn.Module:
    kind, window = request.param
    return build(window, kind)


def by_definition(attention: WindowAttention, x: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
    """One row, one token and one head at a time; positions as complex numbers."""
    width = DIM // HEADS
    q, k, v = attention.qkv(x).view(*x.shape[:2], 3, HEADS, width).unbind(2)
    speed = 50.0 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)

    def turned(vector: torch.Tensor, position: int) -> torch.Tensor:
        pair = torch.complex(vector[: width // 2], vector[width // 2 :])
        pair = pair * torch.exp(1j * position * speed)
        return torch.cat([pair.real, pair.imag])

    y = torch.zeros_like(q)
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            first = 0 if attention.window is None else max(0, t - attention.window + 1)
            for head in range(HEADS):
                scores = [turned(q[row, t, head], t) @ turned(k[row, s, head], s) for s in range(first, t + 1)]
                values = list(v[row, first : t + 1, head])
                if prefix is not None:
                    own = prefix[row % len(prefix)]
                    _, keys, more = attention.qkv(own).view(-1, 3, HEADS, width).unbind(1)
                    scores += [q[row, t, head] @ key for key in keys[:, head]]
                    values += list(more[:, head])
                share = F.softmax(torch.stack(scores) / math.sqrt(width), 0)
                y[row, t, head] = share @ torch.stack(values)
    return attention.out(y.flatten(2))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("prefixes", [0, 1, 3])
def test_is_its_definition(window, prefixes):
    attention, x = build(window), tokens()
    prefix = torch.randn(prefixes, 2, DIM, dtype=torch.float64) if prefixes else None
    expected = by_definition(attention, x, prefix)
    laws.same(attention(x, prefix=prefix)[0], expected)
    y, state = attention(x[:, :6], attention.initial_state(3), prefix=prefix)
    laws.same(torch.cat([y, attention(x[:, 6:], state, prefix=prefix)[0]], 1), expected)


def test_causal(attention):
    laws.causal(attention, tokens(), at=9)


def test_rows_alone(attention):
    laws.rows_alone(attention, tokens())


@pytest.mark.parametrize("cuts", CUTS, ids=["single", "odd", "chunks"])
def test_any_split(attention, cuts):
    laws.any_split(attention, tokens(), cuts)


def some_mask(length: int = 23) -> torch.Tensor:
    """Padding on the left, on the right, and within; in one row nothing but padding."""
    mask = torch.ones(4, length, dtype=torch.bool)
    mask[0, :9], mask[1, 14:], mask[2, [2, 3, 11, 12, 13, 20]], mask[3] = False, False, False, False
    return mask


@pytest.mark.parametrize("before", [0, 6])
def test_padding_changes_nothing(attention, before):
    x, mask = tokens(4), some_mask()
    if getattr(attention, "window", 5) is not None:
        kept = mask.clone()
        kept[3, 10:] = True  # the law wants a token a row
        laws.padding_changes_nothing(attention, x, kept, before)
    state = attention(x[:, :before])[1] if before else None
    rest = mask[:, before:]
    garbage = torch.where(rest[..., None], x[:, before:], float("nan"))
    y, after = attention(torch.where(rest[..., None], garbage, 1e4), state, rest)
    assert (y[~rest] == 0).all()
    more, _ = attention(x[:, :5], after)
    for row in range(4):
        valid = torch.cat([x[row, :before], x[row, before:][rest[row]], x[row, :5]])
        alone = attention(valid[None])[0][0]
        laws.same(y[row, rest[row]], alone[before:-5])
        laws.same(more[row], alone[-5:])
        assert after.tokens[row] == len(valid) - 5


def test_nan_at_padding_goes_nowhere():
    attention, x, mask = build(5), tokens(4).requires_grad_(), some_mask()
    y, state = attention(torch.where(mask[..., None], x, float("nan")), None, mask)
    (y.sum() + state.keys.sum()).backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())
    assert x.grad.isfinite().all()


def test_state_round_trip(attention, tmp_path):
    if getattr(attention, "window", 5) is not None:
        laws.state_round_trip(attention, tokens(), tmp_path / "state.safetensors")
        return
    _, state = attention(tokens())
    fresh = state.reset([1], attention.initial_state(3))
    laws.same(attention(tokens(), fresh)[0][1], attention(tokens())[0][1])
    laws.same(attention(tokens(), fresh)[0][0], attention(tokens(), state)[0][0])
    assert attention(tokens(), state)[1].keys.shape[2] == 2 * 23  # full attention forgets nothing


@pytest.mark.parametrize("window", [3, None])
def test_gradients_are_true(window):
    laws.gradients_are_true(build(window), tokens(2, 8))


def test_gradients_of_the_prefix_are_true():
    attention, x = build(3), tokens(2, 8)
    prefix = torch.randn(2, 2, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: attention(x, prefix=p)[0], prefix, fast_mode=True)


def test_causal_with_a_prefix():
    attention, prefix = build(4), torch.randn(1, 3, DIM, dtype=torch.float64)
    laws.causal(lambda x: attention(x, prefix=prefix), tokens(), at=9)
    laws.any_split(lambda x, state=None: attention(x, state, prefix=prefix), tokens(), [1, 2, 3, 11])


@pytest.mark.parametrize("window", [4, None])
def test_low_precision(window):
    attention, x = build(window).float(), tokens().float()
    exact, _ = attention(x)
    y, state = attention.bfloat16()(x.bfloat16())
    assert y.dtype == state.keys.dtype == torch.bfloat16  # a cache, not a sum: in the dtype of the weights
    assert (y.float() - exact).norm() < 0.03 * exact.norm()


def test_long_stream():
    laws.stays_finite(build(16), tokens(1, 64), 20_000)


def at(attention: WindowAttention, position: int):
    return dataclasses.replace(attention.initial_state(3), tokens=torch.full((3,), position))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ten_million_tokens_on_only_distances_count(dtype):
    attention, x = build(5).to(dtype), tokens().to(dtype)
    prefix = torch.randn(1, 2, DIM, dtype=dtype)
    near, far = (attention(x, at(attention, position), prefix=prefix)[0] for position in (5, 10_000_000))
    laws.same(near, far, 2e-6 if dtype == torch.float32 else 1e-10)


def test_angles_are_exact_ten_million_tokens_on():
    """Against fractions: pi to 50 digits, and the speed of each pair as the float64 that it is."""
    turn = 2 * Fraction("3.14159265358979323846264338327950288419716939937511")
    attention = WindowAttention(32, 2, window=4)
    q = torch.zeros(1, 2, 1, 16)
    q[..., :8] = 1.0
    (turned,) = attention._rotate(torch.tensor([10_000_000]), q)
    for pair in range(8):
        angle = float(Fraction(10_000.0 ** (-2 * pair / 16)) * 10_000_000 % turn)
        assert turned[0, 0, 0, pair].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert turned[0, 0, 0, 8 + pair].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_a_window_costs_no_square():
    """The largest tensor of a call grows with T * window, not T * T."""
    attention, largest = WindowAttention(8, 1, window=16), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            parts = out if isinstance(out, (tuple, list)) else [out]
            largest = max([largest, *(x.numel() for x in parts if isinstance(x, torch.Tensor))])
            return out

    with torch.no_grad(), Watch():
        attention(torch.randn(1, 4096, 8))
    assert largest <= 4096 * 2 * 16 * 2


def test_refuses_what_cannot_work():
    for options, said in (
        ({"dim": 9, "heads": 2}, "even number"),
        ({"dim": 6, "heads": 2}, "even number"),
        ({"dim": 8, "heads": 2, "window": 0}, "at least 1, or None"),
        ({"dim": 8, "heads": 2, "rotary_base": 0.5}, "rotary_base"),
    ):
        with pytest.raises(ValueError, match=said):
            WindowAttention(**options)
    attention, x = build(5), tokens()
    for call, said in (
        (lambda: attention(x[..., :4]), r"\[batch, time, 8\]"),
        (lambda: attention(x, attention.initial_state(2)), "2 rows"),
        (lambda: attention(x, build(6).initial_state(3)), "another layer"),
        (lambda: attention(x, mask=torch.ones(3, 4)), "mask must be"),
        (lambda: attention(x, prefix=torch.zeros(2, 1, DIM)), "prefix"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
