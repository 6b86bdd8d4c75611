"""The fast form of every rule is its token-by-token reference: outputs, surprise, weights, and every gradient."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import laws
from memory_titan.memory.neural.carry import present_weights
from memory_titan.memory.neural.chunk import chunk_memory
from memory_titan.memory.neural.naive import naive_memory
from memory_titan.memory.neural.rule import FastWeights, Gates, Rule, refusal
from memory_titan.memory.neural.structure import Structure

B, H, C, T = 2, 2, 5, 13
RULES: dict[str, tuple[Rule, int, bool]] = {}  # name -> rule, depth, momentum


def add(name: str, depth: int = 2, momentum: bool = True, structure: str = "mlp", activation: str = "silu", **options):
    made = Structure(structure, activation)
    RULES[name] = (Rule(structure=made, chunk_size=C, **options), depth, momentum)


for gradient in ("exact", "anchored", "token"):
    for depth in (1, 2, 3, 4):
        for momentum in (True, False):
            add(f"{gradient}-depth{depth}{'-momentum' * momentum}", depth, momentum, gradient=gradient)
    add(f"{gradient}-gated", structure="gated", gradient=gradient)
    add(f"{gradient}-dot", bias="dot", gradient=gradient)
    add(f"{gradient}-lq", retention="lq", gradient=gradient)
    for depth in (1, 2):
        add(f"{gradient}-channel-depth{depth}", depth, momentum=False, retention="channel", gradient=gradient)
    add(f"{gradient}-read at the chunk's start", read="chunk", gradient=gradient)
    add(f"{gradient}-reset", reset_every=10, gradient=gradient)
    add(f"{gradient}-plain step", step_norm=False, lower_step=1.0, gradient=gradient)
for depth in (1, 2):
    for momentum in (True, False):
        add(f"decay first-depth{depth}{'-momentum' * momentum}", depth, momentum, decay_first=True)
    add(f"decay first-channel-depth{depth}", depth, momentum=False, decay_first=True, retention="channel")
for gradient in ("anchored", "token"):
    for depth in (1, 2):
        add(f"{gradient}-residual-depth{depth}", depth, structure="residual", activation="gelu", gradient=gradient)
    add(f"{gradient}-lp", bias="lp", gradient=gradient)
    add(f"{gradient}-huber", bias="huber", gradient=gradient)
    add(f"{gradient}-relu", activation="relu", gradient=gradient)
for momentum in (True, False):
    add(f"window{'-momentum' * momentum}", momentum=momentum, window=3, gradient="anchored")
add("softmax", momentum=False, retention="kl", read="chunk", gradient="anchored")
add("column norms", retention="norm", read="chunk", gradient="anchored")
add("muon", muon=True, read="chunk", gradient="anchored")
add("muon-window", muon=True, window=3, read="chunk", gradient="anchored")
add("muon-column norms-gated", structure="gated", muon=True, retention="norm", read="chunk", gradient="anchored")


def material(name: str, width: int, length: int = T):
    """Random everything for a rule; the leaves that gradients are asked for."""
    rule, depth, momentum = RULES[name]
    generator = torch.Generator().manual_seed(len(name) + width)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = Structure.sizes(rule.structure.kind, width, 2 * width, width, depth)
    if rule.structure.kind == "residual":
        scale, shift = 1 + random(H, width) / 4, random(H, width) / 4
        rule = Rule(**{**rule.__dict__, "structure": Structure("residual", "gelu", scale, shift)})
    q, k = (F.normalize(random(B, H, length, width), dim=-1) for _ in "qk")
    keep = random(B, H, length, sum(i for i, _ in sizes)) if rule.retention == "channel" else random(B, H, length)
    gates = Gates(
        torch.sigmoid(random(B, H, length)) * (1 if rule.step_norm else 0.1),
        F.logsigmoid(keep + 2),
        F.logsigmoid(random(B, H, length)) if momentum else None,
        F.softplus(random(B, H, length) - 1) if rule.bias == "huber" else None,
        torch.sigmoid(random(B, H, length)) if rule.window > 1 else None,
    )
    weights = tuple(random(B, H, i, o) / i**0.5 for i, o in sizes)
    pushed = tuple(random(B, H, i, o) / 10 for i, o in sizes) if momentum else ()
    back = tuple(random(B, H, i, o) / i**0.5 for i, o in sizes) if rule.reset_every else ()
    extra = [x for x in (rule.structure.scale, rule.structure.shift) if x is not None]
    gate_list = [x for x in vars(gates).values() if x is not None]
    leaves = [q, k, random(B, H, length, width), *gate_list, *weights, *pushed, *back, *extra]
    for leaf in leaves:
        leaf.requires_grad_()
    return rule, (q, k, leaves[2]), gates, weights, pushed, back, leaves


def compared(y, surprise, weights, momentum):
    return [y, *surprise, *weights, *momentum]


def fast(rule, qkv, gates, weights, momentum, back, valid=None, cuts=()):
    state = FastWeights.start(weights, bool(momentum), rule)
    state = FastWeights(**{**state.__dict__, "momentum": momentum})
    ys, told, edges = [], [], [0, *cuts, qkv[0].shape[2]]
    for begin, end in pairwise(edges):
        part = slice(begin, end)
        y, surprise, state = chunk_memory(
            *(x[:, :, part] for x in qkv),
            gates.map(lambda x: x[:, :, part]),  # noqa: B023
            state,
            rule,
            initial=back,
            valid=None if valid is None else valid[:, part],
            surprise=True,
        )
        ys.append(y)
        told.append(surprise)
    joined = [torch.cat(parts, 2) for parts in zip(*told, strict=True)]
    return compared(torch.cat(ys, 2), joined, *present_weights(state, rule)), bool(state.anchor)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("width", [2, 12])
@pytest.mark.parametrize("name", RULES)
def test_fast_form_is_the_reference(name, width, padded):
    """In two calls that meet inside a chunk. Narrow memories keep weights in an open chunk, wide ones its tokens."""
    rule, qkv, gates, weights, momentum, back, leaves = material(name, width)
    valid = torch.rand(B, T, generator=torch.Generator().manual_seed(5)) > 0.3 if padded else None
    slow = compared(*naive_memory(*qkv, gates, weights, momentum, rule, initial=back, valid=valid))
    quick, merged = fast(rule, qkv, gates, weights, momentum, back, valid, cuts=(8,))
    assert merged == (width == 2 and rule.window == 1 and rule.gradient != "token")
    generator = torch.Generator().manual_seed(6)
    directions = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in slow]
    gradients = []
    for results in (slow, quick):
        for a, b in zip(results, slow, strict=True):
            laws.same(a, b, 1e-10)
        loss = sum((x * d).sum() for x, d in zip(results, directions, strict=True))
        gradients.append(torch.autograd.grad(loss, leaves, allow_unused=True))
    for leaf, a, b in zip(leaves, *gradients, strict=True):
        zero = torch.zeros_like(leaf)
        laws.same(zero if a is None else a, zero if b is None else b, 1e-8 if rule.muon else 1e-9)


@pytest.mark.parametrize("name", RULES)
def test_rules_tested_are_rules_allowed(name):
    assert refusal(RULES[name][0], RULES[name][2]) is None


@pytest.mark.parametrize("name", ["exact-depth2-momentum", "anchored-depth2-momentum"])
def test_float32_is_near(name):
    rule, qkv, gates, weights, momentum, back, _ = material(name, 12, length=40)
    wide, _ = fast(rule, qkv, gates, weights, momentum, back)
    single = [[x.detach().float() for x in group] for group in (qkv, weights, momentum)]
    near, _ = fast(rule, single[0], gates.map(lambda x: x.detach().float()), tuple(single[1]), tuple(single[2]), back)
    for a, b in zip(wide, near, strict=True):
        laws.same(a.detach().float(), b, 1e-3)


def test_a_shut_gate_among_open_ones_loses_no_digits():
    """Decay and momentum at exactly 0 and 1 in turn."""
    rule, qkv, gates, weights, momentum, back, _ = material("exact-depth2-momentum", 12)
    shut = torch.zeros(B, H, T, dtype=torch.float64)
    shut[:, :, ::3] = -torch.inf
    gates = Gates(gates.step.round(), shut, shut.roll(1, -1))
    slow = compared(*naive_memory(*qkv, gates, weights, momentum, rule))
    quick, _ = fast(rule, qkv, gates, weights, momentum, back)
    for a, b in zip(quick, slow, strict=True):
        laws.same(a, b, 1e-10)


@pytest.mark.parametrize(
    ("options", "momentum", "words"),
    [
        ({"bias": "huber"}, True, "linear in the error"),
        ({"bias": "lp"}, True, "linear in the error"),
        ({"structure": Structure("residual")}, True, "linear in the last matrix"),
        ({"window": 2}, True, "every step of the window"),
        ({"window": 2, "gradient": "token"}, True, "a chunk of one"),
        ({"retention": "channel"}, True, "does not separate"),
        ({"retention": "channel", "window": 2, "gradient": "anchored"}, False, "no form"),
        ({"retention": "kl", "gradient": "anchored"}, False, 'read="chunk"'),
        ({"retention": "kl", "read": "chunk"}, False, "linear in what was written"),
        ({"muon": True, "gradient": "anchored"}, True, "one orthogonal step"),
        ({"decay_first": True, "gradient": "anchored"}, True, "present weights"),
        ({"reset_every": 7}, True, "multiple"),
    ],
)
def test_what_mathematics_forbids_says_why(options, momentum, words):
    assert words in (refusal(Rule(**{"chunk_size": C, **options}), momentum) or "")
