"""The operation of the sparse bank: the fast form is its reference, product keys find the best of all slots."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import laws
from memory_titan.memory.sparse.chunk import chunk_bank, read_bank
from memory_titan.memory.sparse.naive import Address, SlotGates, naive_bank
from memory_titan.memory.sparse.product_keys import choose


def problem(B=2, H=3, T=13, N=9, m=3, r=2, d=4, few=False, seed=0):
    """Addresses, values, gates and a content, all leaves; `few`: the same m slots for all, so that all collide."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, dtype=torch.float64, generator=random)

    def address(count):
        slots = draw(B, H, T, max(m, r) if few else N).argsort(-1)[..., :count]
        return Address(slots, torch.nn.functional.normalize(draw(B, H, T, count), dim=-1).requires_grad_())

    write, read = address(m), address(r)
    v, content = (draw(B, H, n, d).sub(0.5).requires_grad_() for n in (T, N))
    return write, read, v, SlotGates(*(draw(B, H, T).requires_grad_() for _ in range(3))), content


@pytest.mark.parametrize("few", [False, True], ids=["spread", "colliding"])
@pytest.mark.parametrize("decay", [True, False], ids=["decay", "no-decay"])
@pytest.mark.parametrize("erase", [True, False], ids=["erasing", "not-erasing"])
@pytest.mark.parametrize("rule", ["delta", "erase", "add"])
def test_fast_is_naive(rule, erase, decay, few):
    """Outputs, surprise, final content and all gradients, at any chunk length; each output's gradients alone too."""
    for T in (0, 1, 13, 33):
        write, read, v, gates, content = problem(T=T, few=few)
        gates = gates._replace(erase=gates.erase if erase else None, decay=gates.decay if decay else None)
        y, told, new = naive_bank(write, read, v, gates, content, rule=rule)
        expected = [y, *told, new]
        leaves = [x for x in (write.weights, read.weights, v, *gates, content) if x is not None]
        directions = [torch.randn_like(x) for x in expected]
        parts = [range(5), [0], [4]] if T else [[4]]

        def slopes(results, part):
            total = sum((results[i] * directions[i]).sum() for i in part)  # noqa: B023
            return torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)  # noqa: B023

        for C in (1, 5, 64):
            options = {"slots": 9, "rule": rule, "chunk_size": C}
            y, told, new = chunk_bank(write, read, v, gates, content, surprise=True, **options)
            for one, other in zip([y, *told, new], expected, strict=True):
                laws.same(one, other)
            for part in parts:
                for one, other in zip(slopes([y, *told, new], part), slopes(expected, part), strict=True):
                    zero = torch.zeros((), dtype=torch.float64)
                    one, other = (zero if x is None else x for x in (one, other))
                    laws.same(*torch.broadcast_tensors(one, other), 1e-9)
            with torch.no_grad():
                laws.same(chunk_bank(write, read, v, gates, content, **options)[0], expected[0])
                unread = chunk_bank(write, None, v, gates, content, **options)
            assert unread[:2] == (None, None)
            laws.same(unread[2], expected[4])


def test_from_an_empty_content():
    """Without a state the content is zeros that are not there yet."""
    write, read, v, gates, _ = problem(T=17)
    expected = naive_bank(write, read, v, gates, v.new_zeros(2, 3, 9, 4))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y, _, content = chunk_bank(write, read, v, gates, None, slots=9, chunk_size=4)
        laws.same(y, expected[0])
        laws.same(content, expected[2])


@pytest.mark.parametrize("rule", ["delta", "erase"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slots_that_are_emptied_at_once(rule, dtype):
    """Decay and erasing of exactly 1, on one slot a token: nothing is divided by the 0 that is left."""
    write, read, v, _, content = problem(T=70, N=4, m=1, r=1, few=False)
    one, half = torch.ones(2, 3, 70, dtype=torch.float64), torch.full((2, 3, 70), 0.5, dtype=torch.float64)
    for gates in (SlotGates(one, one, one), SlotGates(half, one, one), SlotGates(one, one, half)):
        expected = naive_bank(write, read, v, gates, content, rule=rule)
        held = [x.to(dtype).detach().requires_grad_() for x in (write.weights, read.weights, v, *gates, content)]
        w, rho, value, *opened, start = held
        write_to, read_from = Address(write.slots, w), Address(read.slots, rho)
        y, _, new = chunk_bank(write_to, read_from, value, SlotGates(*opened), start, slots=4, rule=rule)
        laws.same(y.double(), expected[0], 1e-10 if dtype == torch.float64 else 1e-5)
        laws.same(new.double(), expected[2], 1e-10 if dtype == torch.float64 else 1e-5)
        (y.sum() + new.sum()).backward()
        assert all(x.grad.isfinite().all() for x in held)


def test_a_second_derivative_is_refused():
    write, read, v, gates, content = problem()
    y, _, _ = chunk_bank(write, read, v, gates, content, slots=9)
    (slope,) = torch.autograd.grad(y.square().sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@settings(max_examples=25)
@given(
    side=st.integers(1, 6),
    count=st.integers(1, 36),
    seed=st.integers(0, 100),
)
def test_product_keys_find_the_best_of_all(side, count, seed):
    """The m best sums of all n * n, and their softmax at unit length."""
    count = min(count, side * side)
    logits = torch.randn(2, 2, 1, 3, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    slots, weights = choose(logits, count)
    every = (logits[0][..., :, None] + logits[1][..., None, :]).flatten(-2)
    best, at = every.topk(count, -1)
    assert torch.equal(slots, at)
    laws.same(weights, torch.nn.functional.normalize(best.softmax(-1), dim=-1))


@pytest.mark.parametrize("kind", ["random", "ties", "nan"])
def test_many_queries_choose_as_one_does(kind):
    """Many rows go another way; values, places and gradients are those of a row alone."""
    logits = torch.randn(2, 2, 2, 200, 96, dtype=torch.float64)
    if kind == "ties":
        logits[0, 0, 0, 7, 3:60] = 9.0
    elif kind == "nan":
        logits[1, 1, 1, 8] = math.nan
    logits.requires_grad_()
    slots, weights = choose(logits, 5)
    first = choose(logits[:, :1, :1, 5:9], 5)
    assert torch.equal(slots[:1, :1, 5:9], first.slots)
    laws.same(weights[:1, :1, 5:9], first.weights)
    direction = torch.randn(4, 5)
    (slope,) = torch.autograd.grad((weights[0, 0, 5:9] * direction).sum(), logits, retain_graph=True)
    expected = torch.autograd.grad((first.weights[0, 0] * direction).sum(), logits)[0]
    laws.same(slope[:, 0], expected[:, 0])


def test_reading_alone():
    """A token that writes nothing reads the content as it is."""
    write, read, v, gates, content = problem()
    shut = SlotGates(0 * gates.write, None, None)
    laws.same(read_bank(read, content), naive_bank(write, read, v, shut, content)[0])
