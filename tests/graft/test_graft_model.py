"""What a user does with a grafted model: train it, save it, share it, take it off; and what they are told."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from grafts import ARCHITECTURES, SIZES, VOCABULARY, bare, graft, ids, loud, same
from memory_titan import MAGConfig, MemoryModel, Qwen3MAGConfig, get_memory_model, patch_qwen3_with_mag
from memory_titan.graft.calibrate import calibrate
from memory_titan.memory.files import MemoryFileError

each = pytest.mark.parametrize("kind", ARCHITECTURES)


@each
@pytest.mark.parametrize("source", ["learned", "frozen", "tokens"])
def test_only_the_graft_is_trained_and_all_of_it(kind, source):
    model = loud(kind, source=source, window=6, memory={"gates": "sigmoid"})
    model.train()
    before = {name: tensor.clone() for name, tensor in model.base_model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(12):
        loss = model(ids(), labels=ids(), use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        missing = [n for n, p in model.branches.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not missing, missing
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert all(p.grad is None for p in model.base_model.parameters())
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model.count_trainable_parameters() == sum(p.numel() for p in model.branches.parameters())


@each
def test_calibrated(kind):
    """Keys are white and without mean on what was read, queries are keys, and an answer is a state again."""
    model, texts = graft(kind, window=6), [ids(2, 40, seed=i) for i in range(3)]
    assert calibrate(model, texts) == 240
    seen = {}
    hooks = [
        attention.register_forward_pre_hook(
            lambda m, args, kwargs, i=i: seen.setdefault(i, []).append(kwargs.get("hidden_states", *args[:1])),
            with_kwargs=True,
        )
        for i, attention in model.graft.attention.items()
    ]
    with model.disable_memory(keep_window=True):
        for text in texts:
            model.hidden(text)
    for hook in hooks:
        hook.remove()
    for layer in range(3):
        branch, h = model.branches[str(layer)], torch.cat(seen[layer]).flatten(0, 1)
        k, v = branch.key(h), branch.value(h)
        same(branch.query.query(h), k, 1e-4)
        assert k.mean(0).abs().max() < 1e-3
        spread = torch.linalg.eigvalsh(k.mT @ k / len(k))
        assert 0.9 < spread[-1] < 1.01 and (spread > 0.1).float().mean() > 0.6
        assert torch.nn.functional.cosine_similarity(branch.out(v), h - h.mean(0)).min() > 0.99
    with pytest.raises(ValueError, match="more than 32 tokens"):
        calibrate(graft(kind), [ids(1, 20)])


def test_calibrated_with_frozen_projections():
    model = graft(source="frozen")
    calibrate(model, [ids(2, 60)])
    assert model.branches["1"].memory.conv.bias[:32].abs().max() > 0
    assert not model.branches["1"].memory.conv.bias[64:].any()
    same(model(ids()).logits, bare()(ids()).logits, 1e-5)


def _chains(seed):
    """Facts `2 a 3 b` and `2 b 3 c` of four chains, shuffled, then `2 a 3` of the first chain; and that chain."""
    generator = torch.Generator().manual_seed(seed)
    names = (torch.randperm(VOCABULARY - 4, generator=generator) + 4).tolist()
    chains = [names[3 * i : 3 * i + 3] for i in range(4)]
    facts = [(2, a, 3, b) for chain in chains for a, b in pairwise(chain)]
    order = torch.randperm(len(facts), generator=generator).tolist()
    return torch.tensor([[token for i in order for token in facts[i]] + [2, chains[0][0], 3]]), chains[0]


@pytest.mark.parametrize("refined", [True, False])
def test_an_untrained_graft_takes_two_hops_in_two_layers(refined):
    """The first memory answers b and, knowing that, the second c."""
    torch.manual_seed(0)
    wide = LlamaForCausalLM(LlamaConfig(**{**SIZES, "hidden_size": 256}))
    config = MAGConfig(
        layers=[0, 2], source="tokens", ngram=3, memory_layers=1, memory_dim=512, memory_heads=1,
        n_persistent_tokens=0, memory={"algorithm": "descent", "retention": "none"}, query_refinement=refined,
    )  # fmt: skip
    model, answers = get_memory_model(wide, config), []
    calibrate(model, [_chains(seed)[0] for seed in range(100, 140)])
    for branch in model.branches.values():
        branch.register_forward_hook(lambda module, args, out: answers.append(out[1][0, -1].detach()))
    embeddings = model.get_input_embeddings().weight.detach()
    embeddings = torch.nn.functional.normalize(embeddings[4:] - embeddings[4:].mean(0), dim=-1)
    right = torch.zeros(3)
    for seed in range(20):
        text, (_, first, second) = _chains(seed)
        answers.clear()
        model(text)
        told = [4 + int((embeddings @ answer).argmax()) for answer in answers]
        right += torch.tensor([told[0] == first, told[1] == first, told[1] == second]) / 20
    assert right[0] > 0.9
    assert (right[2] > 0.3 and right[1] < 0.3) if refined else right[1] > 0.9  # chance: 1 in 57


def test_from_shut_gates_training_gets_away():
    model = graft(window=3)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(25):
        loss = model(ids(), labels=ids(), use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5


@each
def test_gradients_go_through_a_session(kind):
    """Segments with the state carried give the gradients of one call; detached, those of the last segment."""
    model = loud(kind, window=4)
    whole = torch.autograd.grad(model(ids(), use_cache=False).logits.square().mean(), list(model.branches.parameters()))
    session = model.new_session(2)
    parts = torch.cat([model(part, memory=session).logits for part in ids().split(7, 1)], 1)
    split = torch.autograd.grad(parts.square().mean(), list(model.branches.parameters()))
    for one, other in zip(whole, split, strict=True):
        assert (one - other).norm() <= 2e-3 * one.norm() + 1e-6
    session.detach()
    assert not any(t.requires_grad for t in session.state.tensors().values())


@each
def test_gradient_checkpointing(kind):
    """Transformers' own recomputes layers: the same gradients without a session, a clear error with one."""
    model = loud(kind, window=4).train()
    plain = torch.autograd.grad(model(ids(), use_cache=False).logits.square().mean(), list(model.branches.parameters()))
    model.base_model.gradient_checkpointing_enable()
    model.base_model.train()
    logits = model(ids(), use_cache=False).logits
    for one, other in zip(
        plain, torch.autograd.grad(logits.square().mean(), list(model.branches.parameters())), strict=True
    ):
        assert (one - other).norm() <= 2e-3 * one.norm() + 1e-6
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(ids(), memory=model.new_session(2))


def test_an_adapter_from_before_gates_could_shut_keeps_its_gates(tmp_path):
    loud(window=6, gate="sigmoid").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    told = json.loads(path.read_text())
    del told["config"]["gate"]
    path.write_text(json.dumps(told))
    assert MemoryModel.from_pretrained(bare(), tmp_path).graft_config.gate == "sigmoid"


def test_half_the_file(tmp_path):
    model = loud(window=6)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    sizes = [(tmp_path / name / "adapter_model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = MemoryModel.from_pretrained(bare(), tmp_path / "half")
    for name, p in loaded.branches.named_parameters():
        assert p.dtype == torch.float32
        same(p, model.branches.get_parameter(name), 1e-2)


@each
@pytest.mark.parametrize("source", ["learned", "frozen", "tokens"])
def test_saved_and_loaded(kind, source, tmp_path):
    model = loud(kind, source=source, window=6)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    again = MemoryModel.from_pretrained(bare(kind), tmp_path)
    assert again.graft_config == model.graft_config
    same(again(ids()).logits, model(ids()).logits, 0.0)
    wider = MemoryModel.from_pretrained(bare(kind), tmp_path, window=None)
    assert not torch.allclose(wider(ids()).logits, model(ids()).logits)


@each
def test_taken_off(kind):
    """The bare model comes back, its weights bit for bit, with nothing of the graft on it."""
    other, tokens = bare(kind), ids()
    expected, state = other(tokens).logits, {k: v.clone() for k, v in other.state_dict().items()}
    model = get_memory_model(other, MAGConfig(chunk_size=4, window=3, gate_bias=0.0))
    with torch.no_grad():
        for parameter in model.branches.parameters():
            parameter.add_(0.3)
    assert not torch.allclose(model(tokens).logits, expected)
    with model.disable_memory():
        same(model(tokens).logits, expected, 0.0)
        session = model.new_session(2)
        same(torch.cat([model(part, memory=session).logits for part in tokens.split(6, 1)], 1), expected)
    assert not torch.allclose(model(tokens).logits, expected)
    assert model.unload() is other
    same(other(tokens).logits, expected, 0.0)
    assert other.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())
    get_memory_model(other)  # and another one may be put on


def test_bfloat16_base():
    model = loud()
    expected = model(ids()).logits
    model.base_model.bfloat16()
    y = model(ids()).logits
    assert y.dtype == torch.bfloat16 and next(model.branches.parameters()).dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(y.float().flatten(), expected.flatten(), 0) > 0.98
    assert model.generate(ids(1, 5), max_new_tokens=3).shape == (1, 8)


def test_the_seeds_call(tmp_path, capsys):
    bare("qwen3").save_pretrained(tmp_path / "base")
    config = Qwen3MAGConfig(memory_layers=2, n_persistent_tokens=16, chunk_size=64)
    model = patch_qwen3_with_mag(
        model_name_or_path=str(tmp_path / "base"), config=config, device="auto", dtype=torch.bfloat16
    )
    trainable = model.count_trainable_parameters()
    assert trainable == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    model.print_trainable_parameters()
    assert f"{trainable:,}" in capsys.readouterr().out
    assert model.base_model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "adapter")
    assert isinstance(MemoryModel.from_pretrained(bare("qwen3"), tmp_path / "adapter").graft_config, Qwen3MAGConfig)
    with pytest.raises(ValueError, match="llama is no Qwen3"):
        patch_qwen3_with_mag(bare("llama"))


def test_it_passes_for_its_base():
    model = graft()
    assert model.config is model.base_model.config and model.device.type == "cpu"
    with pytest.raises(AttributeError):
        _ = model.no_such_thing
    assert not model.train().base_model.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window"),
        ({"segment": 0}, "segment"),
        ({"layers": []}, "layers"),
        ({"layers": "some"}, "layers"),
        ({"layers": [7]}, "0 to 2"),
        ({"source": "other"}, "source"),
        ({"source": "frozen", "memory_dim": 8}, "frozen"),
        ({"source": "frozen", "values": "tokens"}, "values"),
        ({"ngram": 5, "memory": {"conv_size": 4}}, "ngram"),
        ({"memory": {"dim": 3}}, "the graft does"),
        ({"memory": {"nonsense": 3}}, "nonsense"),
        ({"memory_layers": 9}, "1 to 4"),
        ({"memory_dim": 10, "memory_heads": 4}, "multiple of heads"),
    ],
)
def test_configurations_that_cannot_work(options, words):
    with pytest.raises(ValueError, match=words):
        graft(**options)


def test_an_unknown_architecture_is_told_what_a_description_needs():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    with pytest.raises(ValueError, match=r"'bert'.*qwen3.*decoder .*layers .*attention .*norm_after"):
        get_memory_model(BertLMHeadModel(BertConfig(**sizes, vocab_size=9, is_decoder=True)))


def test_two_grafts_are_one_too_many():
    model = graft()
    with pytest.raises(ValueError, match="already"):
        get_memory_model(model.base_model)


def test_caches_of_others():
    model = graft()
    filled = DynamicCache(config=model.config)
    with model.disable_memory():
        model.base_model(ids(), past_key_values=filled)
    with pytest.raises(ValueError, match="MemorySession"):
        model.base_model(ids(), past_key_values=filled)
    with pytest.raises(ValueError, match="StaticCache"):
        model.base_model(ids(), past_key_values=StaticCache(config=model.config, max_cache_len=64))
    session = model.base_model(ids()).past_key_values  # the default cache of a call is a session
    assert session.columns == 23 and session.batch_size == 2
    with pytest.raises(ValueError, match="2 rows and the input has 3"):
        model(ids(3), memory=session)
    with pytest.raises(ValueError, match="cannot be cropped"):
        session.crop(-1)
    with pytest.raises(ValueError, match="new_session"):
        session.reset()


def test_a_call_that_fails_leaves_the_session_as_it_was():
    model = loud(window=4)
    session = model.read(ids(), model.new_session(2))
    before = session.state
    with torch.no_grad():
        kept = model.branches["2"].query.query.weight[0, 0].clone()
        model.branches["2"].query.query.weight[0, 0] = torch.nan
        with pytest.raises(ValueError, match="NaN"):  # in the last layer: the others have been through
            model(ids(2, 3), memory=session)
        model.branches["2"].query.query.weight[0, 0] = kept
    assert session.state is before
    same(model(ids(2, 3), memory=session.copy()).logits, model(ids(2, 3), memory=session).logits, 0.0)


def test_learned_positions_end():
    with pytest.raises(ValueError, match="positions up to 96"):
        graft("gpt2", window=5)(ids(1, 97))


def _damage(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:40])


def test_adapters_that_do_not_fit(tmp_path):
    loud().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="embeddings are different"):
        MemoryModel.from_pretrained(bare(seed=5), tmp_path)
    with pytest.raises(ValueError, match="model_type llama; this model has mistral"):
        MemoryModel.from_pretrained(bare("mistral"), tmp_path)
    with pytest.warns(UserWarning, match="chunk_size=4"):
        MemoryModel.from_pretrained(bare(), tmp_path, chunk_size=8)
    with pytest.raises(ValueError, match="do not belong together"):
        MemoryModel.from_pretrained(bare(), tmp_path, n_persistent_tokens=0)
    text = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, words in (
        ({"version": 99}, "version 99"),
        ({"format": "lora"}, "not the configuration"),
        ({"config": {**text["config"], "tomorrow": 1}}, "tomorrow"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**text, **change}))
        with pytest.raises(ValueError, match=words):
            MemoryModel.from_pretrained(bare(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(text))
    other = bare()
    _damage(tmp_path, "adapter_model.safetensors")
    with pytest.raises(MemoryFileError, match="damaged"):
        MemoryModel.from_pretrained(other, tmp_path)
    assert not any(m._forward_hooks for m in other.modules())  # and the model is left as it was
    _damage(tmp_path, "adapter_config.json")
    with pytest.raises(ValueError, match="not JSON"):
        MemoryModel.from_pretrained(bare(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        MemoryModel.from_pretrained(bare(), tmp_path / "..")


def test_a_session_of_another_model(tmp_path):
    path = tmp_path / "session.safetensors"
    model = graft()
    model.read(ids(), model.new_session(2)).save(path)
    with pytest.raises(ValueError, match="grafted"):
        graft(layers=[1]).load_session(path)
    with pytest.raises(ValueError, match="chunk_size 4; this model has 8"):
        graft(chunk_size=8).load_session(path)
    _damage(tmp_path, "session.safetensors")
    with pytest.raises(MemoryFileError):
        model.load_session(path)
