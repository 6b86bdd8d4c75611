"""Titans' four models: the paper's equations, the laws with every memory, generation at every boundary, refusals."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

import laws
from memory_titan.memory.neural.presets import PRESETS
from memory_titan.memory.trace import trace, writing_price
from memory_titan.models import StateCache, TitansConfig, TitansForCausalLM
from memory_titan.models.layers import TransformerBlock
from memory_titan.models.titans import naive
from memory_titan.models.titans.fusion import FUSIONS
from memory_titan.models.titans.model import BLOCKS

ARCHITECTURES = list(BLOCKS)
SIZE = {"vocab_size": 31, "hidden_size": 16, "num_attention_heads": 2, "initializer_range": 0.3}
CHUNK = {"chunk_size": 4}
# a window, a segment and a chunk that divide neither each other nor the texts
BOUNDS = {"persistent": 3, "segment": 6, "window": 5}


def block(architecture: str, memory_options=None, **options):
    torch.manual_seed(0)
    config = TitansConfig(architecture, memory_options={**CHUNK, **(memory_options or {})}, **(SIZE | BOUNDS | options))
    return BLOCKS[architecture](config).double()


def model(architecture: str, layers: int = 2, memory_options=None, **options) -> TitansForCausalLM:
    torch.manual_seed(0)
    options = SIZE | BOUNDS | {"num_hidden_layers": layers} | options
    config = TitansConfig(architecture, memory_options={**CHUNK, **(memory_options or {})}, **options)
    return TitansForCausalLM(config).double().eval()


def vectors(batch: int = 2, length: int = 17) -> torch.Tensor:
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def text(batch: int = 2, length: int = 17) -> torch.Tensor:
    return torch.randint(1, 31, (batch, length), generator=torch.Generator().manual_seed(1))


# The paper's equations.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("options", [{}, {"persistent": 0}, {"fusion": "product"}, {"mac_residual": False}], ids=str)
def test_the_equations(architecture, options):
    one, x = block(architecture, **options), vectors(1).requires_grad_()
    probe = torch.randn_like(x)
    weights = [w for w in one.parameters() if w.requires_grad]
    results = []
    for y in (one(x)[0], getattr(naive, architecture)(one, x)):
        results.append((y, torch.autograd.grad((y * probe).sum(), [x, *weights], allow_unused=True)))
    (fast, fast_gradients), (slow, slow_gradients) = results
    laws.same(fast, slow)
    for a, b in zip(fast_gradients, slow_gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            laws.same(a, b, 1e-8)


@pytest.mark.parametrize("architecture", ["lmm", "mag", "mal"])
def test_the_memory_has_read_the_persistent_tokens(architecture):
    """M([p, x]), not M(x)."""
    one, bare = block(architecture), block(architecture, persistent=0)
    bare.load_state_dict({name: weight for name, weight in one.state_dict().items() if name != "persistent"})
    held, empty = (b.initial_state(1).memory[0].tensors() for b in (one, bare))
    assert held["tokens"].item() == 3 and empty["tokens"].item() == 0
    assert not torch.allclose(one(vectors())[0], bare(vectors())[0])


def test_a_segment_asks_the_memory_as_the_last_one_left_it():
    """What the memory learns within a segment is not in what is recalled for it (eq. 21)."""
    one, asked = block("mac"), []
    plain = one.memory.recall
    one.memory.recall = lambda q, state, **options: (asked.append(int(state.tokens[0])), plain(q, state, **options))[1]
    one(vectors(length=17))
    assert asked == [0, 6, 12]
    state, asked[:] = None, []
    for token in vectors(length=13).split(1, 1):
        state = one(token, state)[1]
    assert asked == [0] * 6 + [6] * 6 + [12]


def test_mac_attention_ends_with_the_segment():
    """Two segments back, only the memory knows: with writes of nothing, a token there changes nothing here."""
    one = block("mac")
    with torch.no_grad():
        one.memory.gating.linear.weight.zero_()
        one.memory.gating.linear.bias.fill_(-1e4)  # steps, decay and momentum of 0
    x, other = vectors(), vectors()
    other[:, 2] += 1.0
    a, b = one(x)[0], one(other)[0]
    assert not torch.allclose(a[:, 2:6], b[:, 2:6])
    laws.same(a[:, 6 + 3 :], b[:, 6 + 3 :], 1e-9)  # three more: the convolution of the memory


# The laws.


MEMORIES = {
    "hard": {"memory_options": {"gates": "hard", "depth": 1}},
    "slots": {"memory": "slots", "memory_options": {"slots": 8, "top_k": 3}},
    "sparse": {"memory": "sparse", "memory_options": {"slots": 16, "reads": 2, "writes": 2}},
    **{f"preset-{name}": {"preset": name} for name in PRESETS},
}
SHORT = {"lact": {"chunk_size": 4}, "ttt_linear": {"chunk_size": 4}, "ttt_mlp": {"chunk_size": 4}}


def of(architecture: str, kind: str):
    options = dict(MEMORIES[kind])
    memory_options = dict(options.pop("memory_options", {}))
    if kind.removeprefix("preset-") in ("omeganet", "atlas"):
        memory_options["window"] = 3
    return block(architecture, memory_options, **options).eval()


@pytest.mark.parametrize("kind", MEMORIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_laws_with_every_memory(architecture, kind):
    one, x = of(architecture, kind), vectors()
    with torch.no_grad():
        laws.any_split(one, x, [3, 4, 11])
        laws.any_split(one, x[:, :14], list(range(1, 14)))
        mask = torch.rand(2, 17, generator=torch.Generator().manual_seed(2)) < 0.6
        mask[0, :9] = False
        laws.padding_changes_nothing(one, x, mask, before=4)
        laws.rows_alone(one, x)
        laws.causal(one, x, 9)


@pytest.mark.parametrize("kind", ["hard", "slots", "sparse"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_kept(architecture, kind, tmp_path):
    one = of(architecture, kind)
    laws.state_round_trip(one, vectors(3), tmp_path / "state.safetensors")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_at_other_places_of_a_segment(architecture):
    """After padding, rows stand at different tokens of their segments; a long read then crosses several."""
    one = block(architecture).eval()
    x, more = vectors(3, 11), vectors(3, 20)
    mask = torch.arange(11) < torch.tensor([[1], [11], [6]])
    with torch.no_grad():
        _, state = one(x, None, mask)
        y, _ = one(more, state)
        for row, n in enumerate((1, 11, 6)):
            alone = one(torch.cat([x[row : row + 1, :n], more[row : row + 1]], 1))[0][:, n:]
            laws.same(y[row : row + 1], alone)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prompt", [1, 4, 5, 6, 7, 11, 12, 13])
def test_generation_at_every_boundary(architecture, prompt):
    """At prompts below, at and above window, segment and chunk: the cache gives what reading everything anew gives."""
    lm, ids = model(architecture), text(2, prompt)
    options = {"max_new_tokens": 8, "pad_token_id": 0}
    for more in ({"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}):
        out = []
        for use_cache in (True, False):
            torch.manual_seed(3)
            out.append(lm.generate(ids, use_cache=use_cache, **options, **more))
        assert torch.equal(*out)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cache_does_not_grow(architecture):
    lm = model(architecture)
    sizes = []
    for length in (1, 30, 200):
        cache = StateCache()
        with torch.no_grad():
            lm(text(1, length), past_key_values=cache)
        sizes.append(cache.nbytes)
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_and_float32(architecture):
    ids = text(2, 40)
    lm = model(architecture, initializer_range=0.02)
    exact = lm(ids).logits
    single = lm.float()(ids).logits
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-3)
    half = lm.bfloat16()(ids).logits
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).norm() < 0.1 * exact.norm()


# Some blocks without a memory.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_without_a_memory(architecture, tmp_path):
    lm, ids = model(architecture, layers=3, memory_layers=[1]), text()
    kinds = [type(layer) for layer in lm.layers]
    assert kinds == [TransformerBlock, BLOCKS[architecture], TransformerBlock]
    assert lm.layers[0].attention.window == (6 if architecture == "mac" else 5)
    cache, pieces = StateCache(), []
    with torch.no_grad():
        for part in ids.split([4, 1, 12], 1):
            pieces.append(lm(part, past_key_values=cache).logits)
        laws.same(torch.cat(pieces, 1), lm(ids).logits)
    lm.save_pretrained(tmp_path)
    again = TitansForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert again.config.memory_layers == [1]
    laws.same(again(ids).logits, lm(ids).logits)


# Training.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_weights_get_a_gradient(architecture):
    lm = model(architecture).train()
    lm(text(), labels=text()).loss.backward()
    assert [name for name, w in lm.named_parameters() if w.grad is None or not w.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("price", [0.0, 0.7])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing(architecture, price):
    gradients = []
    for kept in (False, True):
        lm = model(architecture, write_price=price).train()
        if kept:
            lm.gradient_checkpointing_enable()
        lm(text(), labels=text()).loss.backward()
        gradients.append([w.grad for w in lm.parameters()])
    for a, b in zip(*gradients, strict=True):
        laws.same(a, b)


def test_the_price_on_writing():
    """It is the mean step of the tokens' writes: persistent tokens are not billed, and nothing outside of training."""
    lm = model("mag", write_price=0.5).train()
    with trace(lm) as traces:
        priced = lm(text(), labels=text()).loss
    assert all(one.step.shape[1] == 17 for calls in traces.values() for one in calls)
    lm.config.write_price = 0.0
    bare = lm(text(), labels=text()).loss
    laws.same(priced - bare, 0.5 * writing_price(traces))
    assert bare < priced
    lm.config.write_price = 0.5
    laws.same(lm.eval()(text(), labels=text()).loss, bare)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusions(fusion):
    one = block("mag", fusion=fusion)
    a, m = vectors(1, 3), vectors(1, 3).flip(1)
    y = one.fusion(a, m)
    normed = [t / (t.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() for t in (a, m)]
    if fusion == "product":
        laws.same(y, normed[0] * torch.nn.functional.silu(normed[1]))
    elif fusion == "sum":
        laws.same(y, normed[0] + normed[1])
    else:
        gate = torch.sigmoid(one.fusion.gate(torch.cat(normed, -1)))
        laws.same(y, gate * normed[0] + (1 - gate) * normed[1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trainer(architecture, tmp_path):
    lm = model(architecture, layers=1).float()
    data = [{"input_ids": row, "labels": row} for row in text(8)]
    options = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=4, **options)
    before = lm.layers[0].memory.qkv.weight.clone()
    assert 0 < Trainer(lm, arguments, train_dataset=data).train().training_loss < 10
    assert not torch.equal(lm.layers[0].memory.qkv.weight, before)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled(architecture):
    lm = model(architecture, layers=1).float()
    with torch.no_grad():
        compiled = torch.compile(lm, backend="aot_eager")(text(), use_cache=False).logits
        torch.testing.assert_close(compiled, lm(text(), use_cache=False).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_to_read(architecture):
    lm = model(architecture)
    with torch.no_grad():
        assert lm(text()[:0]).logits.shape == (0, 17, 31)
        cache = lm(text()).past_key_values
        assert lm(text()[:, :0], past_key_values=cache).logits.shape == (2, 0, 31)
        laws.same(lm(text(), past_key_values=cache).logits, lm(torch.cat([text(), text()], 1)).logits[:, 17:])


# What cannot be.


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"architecture": "mace"}, "architecture"),
        ({"memory": "disk"}, "memory"),
        ({"preset": "titan"}, "preset"),
        ({"memory": "slots", "preset": "titans"}, "preset"),
        ({"fusion": "glue"}, "fusion"),
        ({"memory_layers": [0, 4]}, "memory_layers"),
        ({"memory_layers": [-1]}, "memory_layers"),
        ({"window": 0}, "window"),
        ({"segment": 0}, "segment"),
        ({"persistent": -1}, "persistent"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"hidden_size": 6, "num_attention_heads": 2}, "num_attention_heads"),
        ({"write_price": -1.0}, "write_price"),
        ({"memory": "slots", "write_price": 1.0}, "write_price"),
        ({"memory_options": {"chunk_size": 0}}, "memory_options: chunk_size"),
        ({"memory_options": {"chunk": 4}}, "memory_options.*chunk"),
        ({"memory_options": {"dim": 4}}, "memory_options"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"feed_forward": "big"}, "feed_forward"),
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["mac", "mag"])
def test_refused_at_construction(architecture, options, field):
    with pytest.raises(ValueError, match=field):
        TitansConfig(**{"architecture": architecture, "hidden_size": 16, "num_attention_heads": 2, **options})
