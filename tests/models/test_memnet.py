"""MemNet keeps the laws, learns what no window can, and is a Hugging Face model."""

from __future__ import annotations

import pytest
import torch

import laws
from memory_titan import MemNet, MemNetConfig, MemNetForSequenceClassification, MultiHeadMemoryBank, trace
from memory_titan.models import StateCache, TransformerConfig, TransformerForCausalLM
from memory_titan.models.memnet import MemNetLayer
from memory_titan.tasks.recall import RecallTask, accuracy

BANKS = {
    "slots": {"heads": 2, "slots": 6, "top_k": 2, "chunk_size": 4},
    "sparse": {"heads": 2, "slots": 16, "reads": 3, "writes": 3, "chunk_size": 4},
    "neural": {"heads": 2, "chunk_size": 4, "expansion": 1},
}


def config(memory: str = "slots", **options) -> MemNetConfig:
    given = {"vocab_size": 19, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window": 5}
    return MemNetConfig(**{**given, "memory": memory, "bank": BANKS[memory], **options})


def build(memory: str = "slots", **options) -> MemNet:
    torch.manual_seed(0)
    return MemNet(config(memory, initializer_range=0.3, **options)).eval()


def ids(rows: int = 3, length: int = 17) -> torch.Tensor:
    return torch.randint(0, 19, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=BANKS)
def memory(request) -> str:
    return request.param


@pytest.fixture
def layer(memory) -> MemNetLayer:
    return build(memory).double().layers[0]


def tokens() -> torch.Tensor:
    return torch.randn(3, 17, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_layer_causal(layer):
    laws.causal(layer, tokens(), at=9)


def test_layer_rows_alone(layer):
    laws.rows_alone(layer, tokens())


@pytest.mark.parametrize("cuts", [list(range(1, 17)), [0, 4, 4, 13, 17]], ids=["single", "odd"])
def test_layer_any_split(layer, cuts):
    laws.any_split(layer, tokens(), cuts)


@pytest.mark.parametrize("before", [0, 3])
def test_layer_padding(layer, before):
    mask = torch.rand(3, 17, generator=torch.Generator().manual_seed(3)) > 0.3
    laws.padding_changes_nothing(layer, tokens(), mask, before)


def test_layer_state_round_trip(layer, tmp_path):
    laws.state_round_trip(layer, tokens(), tmp_path / "state")


def test_generate_is_what_a_call_says(memory):
    """Token by token, with left padding, in a batch: the greedy answer is that of whole calls."""
    model, x = build(memory), ids(2, 9)
    mask = torch.ones_like(x)
    mask[1, :4] = 0
    out = model.generate(x, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for row, begin in ((0, 0), (1, 4)):
        text = x[row : row + 1, begin:]
        for _ in range(6):
            text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert out[row, begin:].tolist() == text[0].tolist()


def test_round_trip_and_streams(memory, tmp_path):
    from transformers import AutoModelForCausalLM

    model, x = build(memory), ids()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(again, MemNet)
    cache = StateCache()
    model(x[:, :8], past_key_values=cache)
    cache.save(tmp_path / "stream")
    rest = again(x[:, 8:], past_key_values=again.load_cache(tmp_path / "stream")).logits
    torch.testing.assert_close(rest, model(x).logits[:, 8:], atol=1e-5, rtol=1e-4)
    assert cache.nbytes == model(x.repeat(1, 9)).past_key_values.nbytes  # of a fixed size


def test_the_memory_reaches_past_the_window():
    """Pairs are asked for when the window has left them behind: MemNet learns them, its window alone does not."""
    task, found = RecallTask(length=48, pairs=4), {}
    shape = {"vocab_size": task.vocabulary, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    shape |= {"window": 8, "shift_labels": False, "tie_word_embeddings": False}
    bank = {"heads": 2, "slots": 32, "top_k": 4, "chunk_size": 16}
    for name, make in (
        ("memnet", lambda: MemNet(MemNetConfig(**shape, bank=bank))),
        ("window", lambda: TransformerForCausalLM(TransformerConfig(**shape))),
    ):
        torch.manual_seed(0)
        model, draw = make(), torch.Generator().manual_seed(3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.99), weight_decay=0.0)
        for step in range(100):
            optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, (step + 1) / 15)
            x, y = task.batch(16, draw)
            loss = model(x, labels=y).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        x, y = task.batch(64, torch.Generator().manual_seed(4))
        found[name] = float(accuracy(model.eval()(x).logits.argmax(-1), y))
    assert found["memnet"] > 0.9 > 0.4 > found["window"], found


def test_what_is_read_matters(memory):
    """Another content of the memory gives other logits, and the fusion's share of it can be shut."""
    model, x = build(memory), ids()
    cache = StateCache()
    model(x, past_key_values=cache)
    fresh = model(x[:, -3:]).logits
    after = model(x[:, -3:], past_key_values=cache.copy()).logits
    assert not torch.allclose(fresh, after, atol=1e-3)
    torch.nn.init.zeros_(model.layers[0].fusion.out.weight)
    shut = model(x, use_cache=False).logits
    plain = model.layers[0].controller
    h, _ = plain(model.embed_tokens(x))
    torch.testing.assert_close(model.lm_head(model.norm(model.layers[1](h)[0])), shut)


def test_the_controller_emits_keys_and_gates():
    model = build()
    controller = model.layers[0].controller
    told = controller.emit(torch.randn(2, 5, 16))
    assert told.qkv.shape == (2, 5, 48)
    assert told.gates.write.shape == told.gates.erase.shape == told.gates.decay.shape == (2, 5, 2)
    assert ((told.gates.write >= 0) & (told.gates.write <= 1)).all()
    q, k, _ = controller.interface.weight.chunk(3)
    torch.manual_seed(0)
    assert torch.equal(*MemNet(config()).layers[0].controller.interface.weight.chunk(3)[:2])  # at the start
    assert torch.equal(q, k)
    write, erase, decay = controller.gating.linear.bias.view(3, 2)  # half, over what was there, hardly any
    assert (write == 0).all() and (erase == 3).all() and (decay == -4).all()


def test_memory_persists_when_asked_to():
    """From call to call the slots go on; windows do not; gradients are cut; and only until the reset."""
    model, x = build(persist=True), ids()
    assert model.held is None
    first, second = model(x).logits, model(x).logits
    assert not torch.allclose(first, second, atol=1e-4)
    assert model.held[0].tokens.tolist() == [34, 34, 34]
    model.reset_memory()
    torch.testing.assert_close(model(x).logits, first)
    model.train()
    model(x, labels=x).loss.backward()
    model(x, labels=x).loss.backward()  # the first call's graph is gone: nothing may lead there
    assert not any(t.requires_grad for t in model.held[0].tensors().values())
    assert model(x, use_cache=False).past_key_values is None
    with pytest.raises(ValueError, match="reset_memory"):
        model(ids(2))
    plain = build().eval()
    torch.testing.assert_close(plain(x).logits, plain(x).logits)
    assert plain.held is None


def test_losses_are_told_and_added():
    """Each loss on slots is in the output as it is, and in the loss with its weight; in training only."""
    weights = {"utilization_weight": 0.3, "pressure_weight": 0.2, "sharpness_weight": 0.1}
    x = ids()
    plain, weighted = build().train()(x, labels=x), build(**weights).train()
    out = weighted(x, labels=x)
    total = plain.loss + 0.3 * out.utilization + 0.2 * out.pressure + 0.1 * out.sharpness
    torch.testing.assert_close(out.loss, total)
    assert plain.utilization is None and 0 < float(out.pressure.detach()) < 1
    out.loss.backward()
    assert weighted.layers[0].controller.gating.linear.weight.grad.abs().sum() > 0
    torch.testing.assert_close(weighted.eval()(x, labels=x).loss, plain.loss)
    with trace(weighted.train()) as traces:  # who watches sees as much as without
        weighted(x, labels=x)
    assert [len(calls) for calls in traces.values()] == [1]
    assert weighted.memories[0].traces is None


def test_checkpointing_changes_nothing():
    x, gradients = ids(), []
    for recompute in (False, True):
        model = build(utilization_weight=0.1).train()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(x, labels=x).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast():
    model, x = build().train(), ids()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, labels=x)
    out.loss.backward()
    exact = model(x, labels=x).loss
    torch.testing.assert_close(out.loss.detach(), exact.detach(), rtol=0.05, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_classes():
    """A class a sequence, from the last token that counts; padding changes nothing; it learns."""
    torch.manual_seed(0)
    model = MemNetForSequenceClassification(config(num_labels=3))
    x, labels = ids(12, 9), torch.arange(12) % 3
    x[:, 0] = labels  # beyond the window when the class is told
    out = model(x, labels=labels)
    assert out.logits.shape == (12, 3)
    mask = torch.ones(12, 14)
    mask[:, 9:] = 0
    padded = torch.nn.functional.pad(x, (0, 5))
    torch.testing.assert_close(model(padded, attention_mask=mask, labels=labels).loss, out.loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(x, labels=labels).loss.backward()
        optimizer.step()
    assert (model.eval()(x).logits.argmax(-1) == labels).float().mean() > 0.9


def test_bank_is_shut_out_of_the_graph_of_nobody():
    """Every parameter takes part: what a distributed run would complain about."""
    model, x = build().train(), ids()
    model(x, labels=x).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert isinstance(model.memories[0], MultiHeadMemoryBank)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"memory": "heap", "bank": {}}, "memory must be one of"),
        ({"memory_layers": [2], "num_hidden_layers": 2}, "there are 2 layers"),
        ({"bank": {"projections": True}}, "bank must not set projections"),
        ({"memory": "neural", "bank": {}, "pressure_weight": 0.1}, "losses on slots"),
    ],
)
def test_what_cannot_be_a_memnet(options, told):
    with pytest.raises(ValueError, match=told):
        MemNetConfig(**options)
