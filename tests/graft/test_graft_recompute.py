"""Segments run again in the backward pass: the same gradients and sessions, and less kept meanwhile."""

from __future__ import annotations

import weakref
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grafts import ARCHITECTURES, ids, loud
from memory_titan.graft.lower import lower_states, skipping
from memory_titan.memory.trace import trace, writing_price

DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(0))


def gradients(model, tokens, mask, recompute, lower=False, watch=False):
    """Two calls with one session; the gradients, and what else came of it. Backward when all contexts are left."""
    model.zero_grad()
    states = lower_states(model, tokens, mask) if lower else None
    session, parts = model.new_session(len(tokens)), []
    with skipping(model) if lower else nullcontext(), trace(model) if watch else nullcontext({}) as traces:
        for part in (slice(9), slice(9, None)):
            known = None if states is None else states[:, part]
            parts.append(model.hidden(tokens[:, part], mask[:, part], session, known, recompute=recompute))
    hidden, gates = (torch.cat(part, axis) for part, axis in zip(zip(*parts, strict=True), (1, 2), strict=True))
    loss = (hidden[mask] @ DIRECTION).sum() + gates[:, mask].square().sum()
    if watch:
        loss = loss + 50 * writing_price(traces)
    (loss + sum(m.weights[0].sum() for m in session.state.memories)).backward()
    found = {name: p.grad.clone() for name, p in model.branches.named_parameters() if p.grad is not None}
    return found, hidden, session.state.tensors(), [len(calls) for calls in traces.values()]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize(
    "how", [{"window": 5, "segment": 4}, {"segment": 7, "layers": [1, 2], "lower": True, "watch": True}], ids=str
)
def test_recomputed_segments_give_the_same(kind, how):
    asked = {name: how[name] for name in ("lower", "watch") if name in how}
    model, tokens = loud(kind, **{k: v for k, v in how.items() if k not in asked}), ids()
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[1, 19:] = False
    expected, whole, state, calls = gradients(model, tokens, mask, False, **asked)
    found, again, other, told = gradients(model, tokens, mask, True, **asked)
    assert torch.equal(again, whole) and calls == told
    assert all(torch.equal(other[name], x) for name, x in state.items())
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 2e-3 * gradient.norm() + 1e-6, name


class Live(TorchDispatchMode):
    """The most bytes alive at once of tensors made within."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and (storage := x.untyped_storage()) not in self.known:
                self.known[storage] = None
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return out

    def _count(self, size):
        self.now += size
        self.most = max(self.most, self.now)


def test_of_one_segment_at_a_time_activations_are_kept():
    model = loud(window=8, segment=8, layers=[1])
    most = {}
    for recompute in (False, True):
        for length in (32, 128):
            model.zero_grad()
            with Live() as live:
                model.hidden(ids(2, length), recompute=recompute)[0].sum().backward()
            most[recompute, length] = live.most
    assert most[True, 128] < 0.5 * most[False, 128]
    assert most[True, 128] - most[True, 32] < 0.3 * (most[False, 128] - most[False, 32])


def test_nothing_is_run_again_without_gradients():
    model, runs = loud(segment=8), []
    model.graft.decoder.register_forward_hook(lambda *args: runs.append(1))
    with torch.no_grad():
        model.hidden(ids(), recompute=True)
    assert len(runs) == 3
    model.hidden(ids(), recompute=True)[0].sum().backward()
    assert len(runs) == 9
