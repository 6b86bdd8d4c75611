"""Lower layers computed once: the same outputs, gradients and sessions as with all layers run."""

from __future__ import annotations

import pytest
import torch

from grafts import ARCHITECTURES, ids, loud, same
from memory_titan.graft.lower import lower_states, skipping


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("options", [{"window": 5, "sinks": 1}, {"source": "tokens", "segment": 7}], ids=str)
def test_the_same_from_the_first_memory_on(kind, options):
    model, tokens = loud(kind, layers=[1, 2], **options), ids()
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[1, 20:] = False
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    whole, gates = model.hidden(tokens, mask)
    (whole[mask] @ direction).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.branches.named_parameters() if p.grad is not None}
    model.zero_grad()
    lower = lower_states(model, tokens, mask)
    ran = []
    layer = model.graft.decoder.get_submodule(model.graft.architecture.layers)[0]
    handle = layer.register_forward_hook(lambda module, args, output: ran.append(args[0] is output))
    with skipping(model):
        session = model.new_session(2)
        parts = [model.hidden(tokens[:, p], mask[:, p], session, lower[:, p]) for p in (slice(9), slice(9, 23))]
        plain, _ = model.hidden(tokens, mask)
    handle.remove()
    again, opened = (torch.cat(part, axis) for part, axis in zip(zip(*parts, strict=True), (1, 2), strict=True))
    same(again[mask], whole[mask])
    same(opened[:, mask], gates[:, mask])
    same(plain[mask], whole[mask])
    (again[mask] @ direction).sum().backward()
    for name, gradient in expected.items():
        found = dict(model.branches.named_parameters())[name].grad
        assert (found - gradient).norm() <= 2e-3 * gradient.norm() + 1e-6, name
    assert "forward" not in vars(layer) and not all(ran)
    same(model.hidden(tokens, mask)[0][mask], whole[mask])


def test_a_memory_at_the_first_layer_has_nothing_below():
    model, tokens = loud(layers=[0], window=4), ids()
    with skipping(model):
        same(model.hidden(tokens, lower=lower_states(model, tokens))[0], model.hidden(tokens)[0])
