"""Sinks that stay near: the scores are those of a query at min(t, sink_distance), and nothing else changes."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from grafts import SIZES, bare, graft, ids, loud, same
from memory_titan import MAGConfig, MemoryModel, get_memory_model
from memory_titan.graft.architectures import layer_window
from memory_titan.graft.lower import lower_states, skipping

rotary = pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3"])
NEAR = {"window": 4, "sinks": 3, "sink_distance": 7}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}


def naive(model, window, sinks, distance):
    """The bare model; attention turns every query to every key by the angle between them, in complex numbers.

    Of the layers, those with a window of their own that is no wider have no sinks.
    """
    embedding = model.model.rotary_emb

    def attend(own, hidden_states, **_):
        kind = getattr(own, "layer_type", "")
        frequencies = embedding.inv_freq if hasattr(embedding, "inv_freq") else getattr(embedding, f"{kind}_inv_freq")
        (B, T, _), D = hidden_states.shape, own.head_dim
        q, k, v = (getattr(own, f"{name}_proj")(hidden_states).view(B, T, -1, D) for name in "qkv")
        q, k = (getattr(own, f"{name}_norm", torch.nn.Identity())(x) for name, x in (("q", q), ("k", k)))
        k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
        q, k = (torch.complex(*x.double().chunk(2, -1)) for x in (q, k))
        limit = layer_window(model.config, own.layer_idx)
        seen = sinks if limit is None or limit > window else 0
        out = torch.zeros(B, T, q.shape[2], D)
        for t in range(T):
            visible = [s for s in range(t + 1) if t - s < min(window, limit or window) or s < seen]
            angles = torch.tensor([(min(t, distance) if s < seen else t) - s for s in visible])[:, None] * frequencies
            turned = q[:, t, None] * torch.polar(torch.ones_like(angles), angles).to(q.dtype)[:, None]
            scores = (turned * k[:, visible].conj()).real.sum(-1) * own.scaling
            weights = (scores * getattr(embedding, "attention_scaling", 1.0) ** 2).softmax(1)
            out[:, t] = (weights[..., None] * v[:, visible]).sum(1)
        return own.o_proj(out.flatten(2)), None

    for layer in model.model.layers:
        layer.self_attn.forward = MethodType(attend, layer.self_attn)
    return model


@rotary
@pytest.mark.parametrize("window", [4, 7])  # 7: two of Gemma's layers have a narrower one, and no sinks
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_as_if_by_hand(kind, window, attention):
    tokens = ids(length=40)
    expected = naive(bare(kind), window, 3, 9)(tokens).logits
    model = graft(kind, **{**NEAR, "window": window, "sink_distance": 9})
    model.base_model.set_attn_implementation(attention)
    same(model(tokens).logits, expected)  # gates are shut
    with model.disable_memory(keep_window=True):
        same(model(tokens).logits, expected)
        for sizes in ([1] * 40, [12, 1, 20, 7]):
            session = model.new_session(2)
            same(torch.cat([model(part, memory=session).logits for part in tokens.split(sizes, 1)], 1), expected)
    assert not torch.allclose(naive(bare(kind), window, 3, 40)(tokens).logits, expected, atol=1e-2)
    with model.disable_memory():
        bare_model = bare(kind)
        bare_model.set_attn_implementation(attention)
        same(model(tokens).logits, bare_model(tokens).logits, 0.0)


def test_positions_with_an_attention_scaling():
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**{**SIZES, "max_position_embeddings": 256}, rope_parameters=YARN)).eval()
    assert base.model.rotary_emb.attention_scaling > 1.1
    expected = naive(copy.deepcopy(base), 4, 3, 7)(ids()).logits
    model = get_memory_model(base, MAGConfig(**NEAR))
    same(model(ids()).logits, expected)
    session = model.new_session(2)
    same(torch.cat([model(part, memory=session).logits for part in ids().split(1, 1)], 1), expected)


@rotary
def test_nearer_than_that_nothing_changes(kind):
    plain, near = loud(kind, window=4, sinks=3), loud(kind, **{**NEAR, "sink_distance": 14})
    one, other = plain(ids()).logits, near(ids()).logits
    same(other[:, :15], one[:, :15], 1e-5)
    assert not torch.allclose(other[:, 15:], one[:, 15:], atol=1e-3)
    same(near(ids(length=15)).logits, plain(ids(length=15)).logits, 0.0)


@rotary
@pytest.mark.parametrize("window", [4, 12])  # 12: a row beyond the distance has padding in front of its sinks
def test_rows_of_other_lengths_read_on_token_by_token(kind, window):
    """Two rows are beyond the distance, one has fewer tokens than sinks."""
    model, tokens = loud(kind, **{**NEAR, "window": window}), ids(3, 14)
    mask = torch.ones(3, 14, dtype=torch.long)
    mask[1, :5], mask[2, 2:] = 0, 0
    session, more = model.new_session(3), ids(3, 9, seed=5)
    model(tokens, attention_mask=mask, memory=session)
    found = torch.cat([model(part, memory=session).logits for part in more.split([1, 1, 3, 1, 1, 1, 1], 1)], 1)
    for row in range(3):
        text = torch.cat([tokens[row, mask[row].bool()], more[row]])[None]
        same(found[row : row + 1], model(text).logits[:, -9:])


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_gradients_are_those_of_one_call(kind):
    """With a LoRA they go through queries, keys and sinks of the layers above."""
    found = []
    for size, recompute in ((40, False), (5, False), (5, True)):
        torch.manual_seed(0)
        model = loud(kind, segment=size, lora={"r": 2}, **NEAR)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.lora.parameters().values():
                parameter.normal_(std=0.1)
        model.logits(model.hidden(ids(length=20), recompute=recompute)[0]).log_softmax(-1)[..., 5].sum().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for gradients in found[1:]:
        for one, other in zip(found[0], gradients, strict=True):
            same(other / one.abs().max(), one / one.abs().max(), 2e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16(autocast):
    """As near to float32 as without the distance, whole and token by token."""
    errors = {}
    for distance in (None, 7):
        model = graft(**{**NEAR, "sink_distance": distance})
        with torch.no_grad():
            expected = model(ids(length=30)).logits
        if not autocast:
            model.base_model.bfloat16()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            session = model.new_session(2)
            by_one = torch.cat([model(part, memory=session).logits for part in ids(length=30).split(1, 1)], 1)
            errors[distance] = [float((y.float() - expected).std()) for y in (model(ids(length=30)).logits, by_one)]
    assert max(errors[7]) < 1.3 * max(errors[None])


def test_lower_layers_are_skipped():
    model = loud(layers=[2], **NEAR)
    tokens = ids(length=30)
    expected = model.hidden(tokens)[0]
    lower = lower_states(model, tokens)
    with skipping(model):
        same(model.hidden(tokens, lower=lower)[0], expected, 1e-6)


def test_it_is_saved_and_older_grafts_have_none(tmp_path):
    model = loud(**NEAR)
    model.save_pretrained(str(tmp_path))
    session = model.read(ids(), model.new_session(2))
    session.save(tmp_path / "session.safetensors")
    expected = model(ids(), memory=session).logits
    again = MemoryModel.from_pretrained(bare(), str(tmp_path))
    assert again.graft_config.sink_distance == 7
    same(again(ids(), memory=again.load_session(str(tmp_path / "session.safetensors"))).logits, expected, 0.0)
    for changes in ({"sink_distance": None}, {"sinks": 0, "window": None}):
        other = MemoryModel.from_pretrained(bare(), str(tmp_path), **changes)
        assert not torch.allclose(other(ids()).logits, model(ids()).logits, atol=1e-3)
    file = tmp_path / "adapter_config.json"
    text = file.read_text("utf-8")
    file.write_text(text.replace('    "sink_distance": 7,\n', ""), "utf-8")
    assert file.read_text("utf-8") != text
    assert MemoryModel.from_pretrained(bare(), str(tmp_path)).graft_config.sink_distance is None


def test_nothing_of_it_stays():
    model = graft(**NEAR)
    config = model.base_model.config
    attentions = [layer.self_attn for layer in model.base_model.model.layers]
    assert config._attn_implementation == "sdpa" and all(x.config is not config for x in attentions)
    base = model.unload()
    assert all(x.config is config for x in attentions)
    same(base(ids()).logits, bare()(ids()).logits, 0.0)


def test_refused():
    with pytest.raises(ValueError, match="sink_distance must be at least 1 and sinks=3; got 2"):
        MAGConfig(window=4, sinks=3, sink_distance=2)
    with pytest.raises(ValueError, match="learned"):
        get_memory_model(bare("gpt2"), MAGConfig(**NEAR))
    parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    base = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=parameters))
    with pytest.raises(ValueError, match="rope_type 'dynamic'"):
        get_memory_model(base, MAGConfig(**NEAR))
    get_memory_model(base, MAGConfig(window=4, sinks=3))  # nothing was left behind
