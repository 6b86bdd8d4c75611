"""The fused form against a token-by-token oracle of its own, whose inner gradients come from autograd."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from memory_titan.memory.neural.fused.node import SLAB, can_fuse, fused_chunks

DTYPE = torch.float64


def fused(**inputs):
    made = fused_chunks(**inputs)
    return made.y, made.loss, made.gradient, made.weights, made.momentum


def oracle(q, k, v, step, log_keep, log_momentum, weights, momentum, *, chunk_size, exact, **options):
    """Same signature and results as `fused_chunks`; nothing of its derivation."""
    act = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}[options.get("activation", "silu")]
    W, S, ys, losses, norms = list(weights), list(momentum), [], [], []

    def forward(ws, x):
        for w in ws[:-1]:
            x = act(x @ w)
        return x, x @ ws[-1]

    for t in range(k.shape[2]):
        if t % chunk_size == 0:
            anchor = list(W)
        k_t, v_t = k[:, :, t : t + 1], v[:, :, t : t + 1]
        at = [a * 1.0 for a in anchor]  # leaves of the inner gradient, still in the outer graph
        h, out = forward(at, k_t)
        top = W[-1] if exact else anchor[-1]
        error = h @ top - v_t
        below = list(torch.autograd.grad(out, at[:-1], error, create_graph=True)) if len(W) > 1 else []
        inner = [*below, h.mT @ error]
        losses.append(error.square().sum((-1, -2)))
        norms.append(sum(g.square().sum((-1, -2)) for g in inner))
        theta = step[:, :, t, None, None]
        if options.get("step_norm", True):
            theta = theta / (1 + h.square().sum(-1, keepdim=True))
        for i, g in enumerate(inner):
            move = -theta * g * (1.0 if i == len(W) - 1 else options.get("lower_step", 0.1))
            if log_momentum is not None:
                S[i] = move = log_momentum[:, :, t, None, None].clamp(min=-60).exp() * S[i] + move
            W[i] = log_keep[:, :, t, None, None].clamp(min=-60).exp() * W[i] + move
        if q is not None:
            ys.append(forward(W, q[:, :, t : t + 1])[1])
    y = torch.cat(ys, 2) if ys else None
    return y, torch.stack(losses, 2), torch.stack(norms, 2), tuple(W), tuple(S)


def case(depth=2, momentum=True, read=True, B=2, H=2, T=15, d=3, hidden=5, d_v=4, dtype=DTYPE, seed=0):
    """Inputs by name, all leaves that require gradients."""
    torch.manual_seed(seed)
    sizes = [d, *[hidden] * (depth - 1), d_v]
    shapes = [(B, H, a, b) for a, b in pairwise(sizes)]

    def leaf(x):
        return x.to(dtype).requires_grad_()

    tensors = {
        "q": leaf(torch.randn(B, H, T, d)) if read else None,
        "k": leaf(torch.randn(B, H, T, d)),
        "v": leaf(torch.randn(B, H, T, d_v)),
        "step": leaf(torch.rand(B, H, T)),
        "log_keep": leaf(-torch.rand(B, H, T)),
        "log_momentum": leaf(-torch.rand(B, H, T)) if momentum else None,
    }
    weights = tuple(leaf(torch.randn(s) / s[2] ** 0.5) for s in shapes)
    start = tuple(leaf(torch.randn(s)) for s in shapes) if momentum else ()
    return {**tensors, "weights": weights, "momentum": start}


def flat(inputs):
    """Name -> tensor, None left out."""
    named = {}
    for name, value in inputs.items():
        parts = {name: value} if not isinstance(value, tuple) else {f"{name}.{i}": x for i, x in enumerate(value)}
        named.update({key: x for key, x in parts.items() if x is not None})
    return named


def results(y, loss, norm, weights, momentum):
    return flat({"y": y, "loss": loss, "norm": norm, "weights": weights, "momentum": momentum})


def gradients(outputs, inputs):
    """Of a fixed random projection of all outputs."""
    torch.manual_seed(1)
    total = sum((x * torch.randn(x.shape, dtype=DTYPE).to(x)).sum() for x in outputs.values())
    named = flat(inputs)
    return dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


def assert_equal(found, expected, tolerance=1e-9):
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert x.shape == expected[name].shape, name
        error = (x.double() - expected[name].double()).abs().max() / (1 + expected[name].abs().max())
        assert error < tolerance, f"{name}: {error:.1e}"


def check(inputs, tolerance=1e-9, **options):
    found = results(*fused(**inputs, **options))
    options.pop("checkpoint", None)
    expected = results(*oracle(**inputs, **options))
    assert_equal(found, expected, tolerance)
    assert_equal(gradients(found, inputs), gradients(expected, inputs), tolerance)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "anchored"])
@pytest.mark.parametrize("momentum", [True, False], ids=["momentum", "plain"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_equals_the_oracle(depth, momentum, exact):
    check(case(depth, momentum), chunk_size=5, exact=exact)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "anchored"])
@pytest.mark.parametrize("options", [
    {"activation": "gelu"},
    {"activation": "relu"},
    {"lower_step": 0.0},
    {"lower_step": 1.0, "step_norm": False},
    {"chunk_size": 1},
    {"chunk_size": 15},
    {"checkpoint": 1},
    {"checkpoint": 2},
    {"checkpoint": 9},
], ids=str)  # fmt: skip
def test_every_option(options, exact):
    inputs = case(3, True)
    if not options.get("step_norm", True):
        with torch.no_grad():
            inputs["step"].mul_(0.05)  # a full step does not converge then
    check(inputs, **{"chunk_size": 3, "exact": exact, **options})


@pytest.mark.parametrize("checkpoint", [0, 2])
@pytest.mark.parametrize("depth", [1, 2])
def test_write_only(depth, checkpoint):
    check(case(depth, read=False), chunk_size=5, exact=True, checkpoint=checkpoint)


@pytest.mark.parametrize("sizes", [{"d": 6, "hidden": 4}, {"d": 4, "hidden": 4, "d_v": 4}, {"B": 1, "H": 1}], ids=str)
def test_other_shapes(sizes):
    check(case(3, **sizes), chunk_size=5, exact=True)


@pytest.mark.parametrize("momentum", [True, False], ids=["momentum", "plain"])
def test_gates_shut_and_wide_open(momentum):
    inputs = case(2, momentum)
    with torch.no_grad():
        inputs["log_keep"][..., 3:7] = 0
        inputs["log_keep"][..., [8, 12, 13]] = -60
        inputs["log_keep"][0, 0, 10] = -100
        inputs["step"][..., [2, 9]] = 0
        if momentum:
            inputs["log_momentum"][..., [0, 5, 6]] = 0
            inputs["log_momentum"][..., [4, 8, 14]] = -60
            inputs["log_momentum"][1, 0, 3] = -1000
    check(inputs, chunk_size=5, exact=True)


@pytest.mark.parametrize("wanted", ["y", "loss", "norm", "weights.0", "momentum.1"])
def test_one_result_alone(wanted):
    inputs = case(2)
    found, expected = (f(**inputs, chunk_size=5, exact=True) for f in (fused, oracle))
    named = flat(inputs)
    g, g_expected = (
        torch.autograd.grad(results(*x)[wanted].square().sum(), list(named.values()), allow_unused=True)
        for x in (found, expected)
    )
    for name, a, b in zip(named, g, g_expected, strict=True):
        zero = torch.zeros_like(named[name])
        assert_equal({name: zero if a is None else a}, {name: zero if b is None else b})


def test_gradcheck():
    inputs = case(2, B=1, H=2, T=4, d=2, hidden=3, d_v=2)
    named = flat(inputs)

    def f(*tensors):
        new = dict(zip(named, tensors, strict=True))
        grouped = {name: tuple(x for key, x in new.items() if key.startswith(name)) for name in ("weights", "momentum")}
        plain = {name: x for name, x in new.items() if "." not in name}
        return tuple(results(*fused(**plain, **grouped, chunk_size=2, exact=True)).values())

    assert torch.autograd.gradcheck(f, tuple(named.values()), fast_mode=True)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "anchored"])
def test_single_precision_is_near_double(exact):
    double = case(2, T=128, d=16, hidden=32, d_v=16, B=1)
    with torch.no_grad():
        double["log_keep"] *= 0.05
        double["step"] *= 1.0 if exact else 0.05
    single = {
        name: tuple(x.detach().float().requires_grad_() for x in value)
        if isinstance(value, tuple)
        else value.detach().float().requires_grad_()
        for name, value in double.items()
    }
    options = {"chunk_size": 64, "exact": exact}
    found, expected = (results(*fused(**x, **options)) for x in (single, double))
    assert_equal(found, expected, 1e-5)
    assert_equal(gradients(found, single), gradients(expected, double), 1e-4)


@pytest.mark.parametrize("momentum", [True, False], ids=["momentum", "plain"])
def test_one_key_over_and_over_at_full_step(momentum):
    """The hardest triangular system: every entry near its largest, nothing decays."""
    double = case(1, momentum, B=1, H=1, T=64, d=8, d_v=8)
    with torch.no_grad():
        double["k"].copy_(F.normalize(double["k"][:, :, :1], dim=-1) + 1e-3 * double["k"])
        double["log_keep"].zero_()
        double["step"].fill_(1)
        if momentum:
            double["log_momentum"].fill_(-3)
    single = {
        name: tuple(x.detach().float() for x in value) if isinstance(value, tuple) else value.detach().float()
        for name, value in double.items()
        if value is not None
    }
    single.setdefault("log_momentum", None)
    options = {"chunk_size": 64, "exact": True, "step_norm": False}
    with torch.no_grad():
        assert_equal(results(*fused(**single, **options)), results(*fused(**double, **options)), 2e-5)


def test_without_gradients_nothing_is_kept_and_nothing_differs():
    """Also across the pieces in which the gates are prepared then."""
    inputs = case(2, B=1, T=2 * (2 * SLAB + 1))
    expected = results(*fused(**inputs, chunk_size=2, exact=True))
    with torch.no_grad():
        found = results(*fused(**inputs, chunk_size=2, exact=True))
    assert_equal(found, expected, 1e-13)
    assert all(x.grad_fn is None for x in found.values())


def test_inputs_as_a_layer_lays_them_out():
    inputs = case(2)
    options = {"chunk_size": 5, "exact": True}
    expected = results(*fused(**inputs, **options))
    strided = {
        **inputs,
        **{name: inputs[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("q", "k", "v", "step")},
        "weights": tuple(w.mT.contiguous().mT for w in inputs["weights"]),
    }
    found = results(*fused(**strided, **options))
    assert_equal(found, expected, 1e-13)
    assert_equal(gradients(found, inputs), gradients(expected, inputs), 1e-12)


def test_a_second_pass_backwards_finds_all_as_it_was():
    inputs = case(2)
    named = flat(inputs)
    y = fused(**inputs, chunk_size=5, exact=True)[0]
    first = torch.autograd.grad(y.sum(), list(named.values()), retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(y.sum(), list(named.values()), allow_unused=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None)


def test_second_derivatives_are_refused():
    inputs = case(1, T=2)
    y = fused(**inputs, chunk_size=2, exact=True)[0]
    (g,) = torch.autograd.grad(y.square().sum(), inputs["k"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_no_tokens():
    inputs = case(2, T=0)
    found = results(*fused(**inputs, chunk_size=5, exact=True))
    assert found["y"].shape == (2, 2, 0, 4) and found["loss"].shape == (2, 2, 0)
    assert_equal(
        {k: found[k] for k in ("weights.0", "momentum.1")}, {k: flat(inputs)[k] for k in ("weights.0", "momentum.1")}
    )
    (g,) = torch.autograd.grad(found["weights.1"].sum(), inputs["weights"][1])
    assert torch.equal(g, torch.ones_like(g))


def test_part_of_a_chunk_is_refused():
    with pytest.raises(ValueError, match="whole chunks of 4 tokens; got 15"):
        fused(**case(1), chunk_size=4, exact=True)


def test_decayed_numbers_become_zero():
    """Neither the state nor its gradients stay among the denormal numbers."""
    inputs = case(2, T=400, B=1, H=1, dtype=torch.float32)
    with torch.no_grad():
        inputs["step"].zero_()
        inputs["log_keep"].fill_(-0.25)
        inputs["log_momentum"].fill_(-0.25)
    found = results(*fused(**inputs, chunk_size=4, exact=True))
    first = torch.autograd.grad(found["weights.0"].sum(), inputs["weights"][0])[0]
    for x in (found["weights.0"], found["momentum.1"], first):
        assert torch.equal(x, torch.zeros_like(x))


def test_says_where_it_cannot_go():
    x = torch.ones(3)
    assert can_fuse(x, None, x)
    assert not can_fuse(x, x.double())
    seen = []

    def f(x):
        seen.append(can_fuse(x))
        return x.sum()

    torch.func.grad(f)(x)
    torch.func.vmap(f)(x)
    torch.func.jvp(f, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        f(torch.autograd.forward_ad.make_dual(x, x))
    assert seen == [False] * 4


@pytest.mark.parametrize("threads", [2, 3])
def test_heads_side_by_side(threads):
    """Shared out over threads, in and out of inference mode and autograd, the results are those of one thread."""
    inputs = case(2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results(*fused(**inputs, chunk_size=5, exact=True))
        loss = sum(x.square().sum() for x in expected.values())
        wanted = torch.autograd.grad(loss, list(flat(inputs).values()))
        torch.set_num_threads(threads)
        found = results(*fused(**inputs, chunk_size=5, exact=True))
        loss = sum(x.square().sum() for x in found.values())
        got = torch.autograd.grad(loss, list(flat(inputs).values()))
        with torch.inference_mode():
            read = results(*fused(**inputs, chunk_size=5, exact=True))
    finally:
        torch.set_num_threads(before)
    assert_equal(found, expected)
    assert_equal(read, expected)
    assert_equal(dict(enumerate(got)), dict(enumerate(wanted)))
