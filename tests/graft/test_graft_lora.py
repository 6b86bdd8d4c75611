"""A LoRA on the frozen model of a graft: nothing at first, then trained, saved and taken off with it."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grafts import ARCHITECTURES, bare, graft, ids, loud, same
from memory_titan import MAGConfig, MemoryModel, get_memory_model
from memory_titan.cli import main
from memory_titan.graft.lower import lower_states, skipping
from memory_titan.tasks.examples import Example
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.ruler import HuggingFace
from memory_titan.training.lower_cache import with_lower
from memory_titan.training.mag import TrainConfig, train

pytest.importorskip("peft")
each = pytest.mark.parametrize("kind", ARCHITECTURES)
LORA = {"r": 3, "lora_alpha": 6}
QKV = {"gpt2": ["c_attn", "c_proj"]}  # and projections that source "frozen" uses


def adapted(kind="llama", **options) -> MemoryModel:
    """Loud, its LoRA too."""
    targets = QKV.get(kind, ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"])
    model = loud(kind, **{"lora": {**LORA, "target_modules": targets}, **options})
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.lora.parameters().values():
            parameter.normal_(std=0.3)
    return model


def optimizer_of(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)


@each
@pytest.mark.parametrize("source", ["learned", "frozen"])
def test_where_training_starts_nothing_is_changed(kind, source):
    model, other = graft(kind, source=source, lora=LORA), bare(kind)
    assert type(model.base_model) is type(other) and model.lora.layers
    same(model(ids()).logits, other(ids()).logits, 1e-5)
    half = bare(kind).bfloat16()
    expected = half(ids()).logits
    assert torch.equal(get_memory_model(half, MAGConfig(lora=LORA, chunk_size=4))(ids()).logits, expected)


@each
def test_the_branches_start_as_without_it(kind):
    plain, model = graft(kind), graft(kind, lora=LORA)
    for name, x in plain.branches.state_dict().items():
        assert torch.equal(model.branches.state_dict()[name], x)


@each
def test_what_is_trained(kind):
    model = graft(kind, layers=[1, 2], lora=LORA)
    branches = {f"branches.{name}" for name, _ in model.branches.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    added = trained - branches
    assert branches <= trained and all(name.startswith("base_model.") and ".lora_" in name for name in added)
    assert len(added) == 2 * 2 * (1 if kind == "gpt2" else 2) and not any(".0." in name for name in added)
    lora = sum(p.numel() for p in model.lora.parameters().values())
    assert model.count_trainable_parameters() == lora + sum(p.numel() for p in model.branches.parameters())
    assert all(p.dtype == torch.float32 for p in get_memory_model(bare(kind).bfloat16(), MAGConfig(lora=LORA))
               .lora.parameters().values())  # fmt: skip


@each
@pytest.mark.parametrize("source", ["learned", "frozen"])
def test_training_changes_it_and_the_branches_alone(kind, source):
    model = loud(kind, source=source, window=6, lora=LORA).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    optimizer, losses = optimizer_of(model), []
    for _ in range(6):
        loss = model(ids(), labels=ids(), use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == trained
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name]) != (name in trained), name


@each
@pytest.mark.parametrize("options", [{"window": 5, "sinks": 2}, {"source": "frozen", "window": 5}], ids=str)
def test_the_laws_of_a_graft_hold(kind, options):
    """Causal, any split, padding, generation, gradients through a session."""
    model, tokens = adapted(kind, **options), ids()
    whole = model(tokens).logits
    other = tokens.clone()
    other[:, 12] = (other[:, 12] + 1) % 50 + 2
    same(model(other).logits[:, :12], whole[:, :12], 1e-6)
    for cuts in ([4, 8, 9, 20], [1, 2, 3, 4, 5, 6, 7, 15]):
        session = model.new_session(2)
        parts = [
            model(tokens[:, begin:end], memory=session).logits
            for begin, end in zip([0, *cuts], [*cuts, 23], strict=True)
        ]
        same(torch.cat(parts, 1), whole)
    mask = torch.ones_like(tokens)
    mask[0, :6] = mask[1, 17:] = 0
    masked = model(torch.where(mask.bool(), tokens, 7), attention_mask=mask).logits
    same(masked[:1, 6:], model(tokens[:1, 6:]).logits)
    same(masked[1:, :17], whole[1:, :17])
    out = model.generate(tokens[:, :9], max_new_tokens=5, do_sample=False)
    assert torch.equal(out[:, 9:], model(out, use_cache=False).logits[:, 8:-1].argmax(-1))
    trained = [p for p in model.parameters() if p.requires_grad]
    one = torch.autograd.grad(whole.square().mean(), trained)
    for x, y in zip(one, torch.autograd.grad(torch.cat(parts, 1).square().mean(), trained), strict=True):
        assert (x - y).norm() <= 2e-3 * x.norm() + 1e-6


@each
def test_saved_and_loaded(kind, tmp_path):
    model = adapted(kind, source="frozen", layers=[1, 2])
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert sum(name.startswith("lora.") and ".default" not in name for name in names) == len(model.lora.parameters())
    again = MemoryModel.from_pretrained(bare(kind), tmp_path)
    assert again.graft_config == model.graft_config
    same(again(ids()).logits, model(ids()).logits, 0.0)
    for change in (None, {**model.graft_config.lora, "r": 2}):
        with pytest.raises(ValueError, match=r"do not belong together \(lora\."):
            MemoryModel.from_pretrained(other := bare(kind), tmp_path, lora=change)
        assert not any(m._forward_hooks or hasattr(m, "lora_A") for m in other.modules())


def test_a_new_one_on_a_trained_graft(tmp_path):
    model = loud(window=5)
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(bare(), tmp_path, lora=LORA)
    same(again(ids()).logits, model(ids()).logits, 1e-6)
    assert again.lora.layers and json.loads((tmp_path / "adapter_config.json").read_text())["config"]["lora"] is None


@each
def test_off_with_the_memory(kind):
    model = adapted(kind, window=5)
    expected, count = model(ids()).logits, model.count_trainable_parameters()
    with model.disable_memory():
        same(model(ids()).logits, bare(kind)(ids()).logits, 0.0)
        with model.disable_memory(keep_window=True):
            same(model(ids()).logits, _windowed(kind), 0.0)
        same(model(ids()).logits, bare(kind)(ids()).logits, 0.0)
        assert model.count_trainable_parameters() == count
    assert model.count_trainable_parameters() == count
    same(model(ids()).logits, expected, 0.0)


def _windowed(kind):
    model = graft(kind, window=5)
    with model.disable_memory(keep_window=True):
        return model(ids()).logits


@each
def test_taken_off(kind):
    """Modules, their attributes and their order as they were, weights bit for bit."""
    other, never = bare(kind), bare(kind).requires_grad_(False)
    model = get_memory_model(other, MAGConfig(chunk_size=4, lora=LORA))
    before = model(ids()).logits
    with torch.no_grad():
        for parameter in model.lora.parameters().values():
            parameter.add_(0.3)
    assert not torch.allclose(model(ids()).logits, before)
    assert model.unload() is other
    _as(other, never)
    same(other(ids()).logits, never(ids()).logits, 0.0)
    again = get_memory_model(other, MAGConfig(chunk_size=4, lora=LORA))
    model.unload()  # a second time: it does not take off what is not its own
    assert again.lora.layers.keys() <= dict(other.named_modules()).keys()
    assert all(hasattr(other.get_submodule(name), "lora_A") for name in again.lora.layers)


def _as(model, never):
    modules, expected = list(model.named_modules()), list(never.named_modules())
    assert [(name, type(m), vars(m).keys()) for name, m in modules] == [
        (name, type(m), vars(m).keys()) for name, m in expected
    ]
    for (name, x), (other, y) in zip(model.state_dict().items(), never.state_dict().items(), strict=True):
        assert name == other and torch.equal(x, y)
    assert not any(p.requires_grad for p in model.parameters())


@each
def test_lower_states(kind, tmp_path):
    """Kept where it leaves the lower layers alone, as by default; else refused."""
    model, tokens = adapted(kind, layers=[1, 2], window=5), ids()
    assert model.lora.lowest == 1
    with skipping(model):
        found = model.hidden(tokens, lower=lower_states(model, tokens))[0]
    same(found, model.hidden(tokens)[0])
    low = graft(kind, layers=[1, 2], lora={**LORA, "layers_to_transform": [0, 2]})
    assert low.lora.lowest == 0
    for use in (lambda: lower_states(low, tokens), skipping(low).__enter__, lambda: with_lower(low, [], tmp_path)):
        with pytest.raises(ValueError, match=r"LoRA changes layer 0, so what enters layer 1.*from 1 up"):
            use()


def _examples():
    rows = [ids(1, 20, seed=i)[0] for i in range(6)]
    return [Example(row, ((12, 15), (17, 20)), (9, 9), (4, 4), f"text {i}") for i, row in enumerate(rows)]


def test_a_run_goes_on_exactly(tmp_path):
    config = TrainConfig(learning_rate=1e-2, num_epochs=2, batch_size=2, backprop=12, save_every=1)
    whole = graft(window=4, lora={**LORA, "lora_dropout": 0.2})
    train(whole, _examples(), [], config, tmp_path / "whole")

    def stop(record):
        if record["step"] == 4:
            raise KeyboardInterrupt

    parts = graft(window=4, lora={**LORA, "lora_dropout": 0.2})
    with pytest.raises(KeyboardInterrupt):
        train(parts, _examples(), [], config, tmp_path / "parts", report=stop)
    again = MemoryModel.from_pretrained(bare(), tmp_path / "whole/best")  # other weights, which must all be replaced
    train(again, _examples(), [], config, tmp_path / "parts", resume=tmp_path / "parts/latest")
    found, expected = again.lora.parameters(), whole.lora.parameters()
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    assert any(x.abs().sum() > 0 for name, x in expected.items() if "lora_B" in name)


def test_dropout_is_for_training_alone():
    model, tokens = get_memory_model(bare(), MAGConfig(lora={**LORA, "lora_dropout": 0.5})), ids()
    for name, parameter in model.lora.parameters().items():
        parameter.data.fill_(0.1 if "lora_B" in name else parameter.data.mean())
    assert torch.equal(model(tokens).logits, model(tokens).logits)  # as made
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model.eval()
    assert torch.equal(model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 8}, "no option rank"),
        ({"use_dora": True}, "no option use_dora"),
        ({"r": 0}, "at least 1; got 0"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"target_modules": "all-linear"}, "a list of modules' names"),
        ({"target_modules": ["q_proj", "query"]}, "no query in the layers"),
        ({"target_modules": ["q_proj", "input_layernorm"]}, "RMSNorm"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["model.layers.0.self_attn.q_proj", "lm_head"]}, "lm_head is in none"),
        ({"layers_to_transform": [3]}, r"layers 0 to 2; .*\[3\]"),
        ([8], "a dict such as"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options, words):
    model = bare()
    with pytest.raises(ValueError, match=words):
        get_memory_model(model, MAGConfig(lora=options))
    _as(model.requires_grad_(False), bare().requires_grad_(False))


def test_one_at_a_time():
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), bare())
    with pytest.raises(ValueError, match="layers of PEFT already"):
        get_memory_model(model, MAGConfig(lora=LORA))
    assert hasattr(model.model.layers[0].self_attn.q_proj, "lora_A")


def test_without_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = bare()
    with pytest.raises(ValueError, match=r"pip install 'memory-titan\[lora\]'"):
        get_memory_model(model, MAGConfig(lora=LORA))
    assert not any(m._forward_hooks for m in model.modules())
    get_memory_model(model)  # without one it is not needed


def test_the_command(tmp_path):
    """A phase without, and the next one with it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<s>", *alphabet])}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    for part in (LlamaForCausalLM(LlamaConfig(vocab_size=257, bos_token_id=0, eos_token_id=None, **sizes)), tokenizer):
        part.save_pretrained(tmp_path / "base")
    task = HashHopTask(context_len=90, needles=2, questions=2, hash_len=2, filler="none")
    made = task.samples(5, seed=0, ruler=HuggingFace(tokenizer, "bytes"))
    (tmp_path / "hop.jsonl").write_text("".join(sample.to_json() + "\n" for sample in made))
    common = ["train", "mag", "--model_name", str(tmp_path / "base"), "--data_path", str(tmp_path / "hop.jsonl")]
    common += ["--num_epochs", "1", "--save_every", "1", "--output_dir"]
    small = ["--window", "8", "--layers", "1", "--chunk_size", "8"]
    more = ["--lora", "2", "--resume_from", str(tmp_path / "one/best")]
    for options in ([str(tmp_path / "one"), *small], [str(tmp_path / "two"), *more]):
        result = CliRunner().invoke(main, [*common, *options])
        assert result.exit_code == 0, result.output
    found = MemoryModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "two/best")
    assert found.graft_config.lora == {"r": 2, "lora_alpha": 2} and found.graft_config.window == 8
    assert all(x.abs().sum() > 0 for x in found.lora.parameters().values())
