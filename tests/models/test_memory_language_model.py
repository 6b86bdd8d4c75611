"""Whole models keep the laws of their layers, and are Hugging Face models: saved, loaded, generating, refusing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import laws
from memory_titan.memory.files import MemoryFileError
from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.models import (
    MemNet,
    MemNetConfig,
    MemoryLanguageModel,
    MemoryModelConfig,
    RecurrentConfig,
    RecurrentForCausalLM,
    StateCache,
    TitansConfig,
    TitansForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
    parameter_count,
    width_of_size,
)

SIZE = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}


class Residual(nn.Module):
    """A memory as a layer: the smallest thing that the contract asks for."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.memory = NeuralMemory(dim, heads=2, chunk_size=4)

    def initial_state(self, batch_size):
        return self.memory.initial_state(batch_size)

    def forward(self, x, state=None, mask=None):
        y, state = self.memory(x, state, mask)
        return (x + y) if mask is None else (x + y) * mask[..., None], state


class ToyConfig(MemoryModelConfig):
    model_type = "memory_titan_toy"

    def __init__(self, **options):
        super().__init__(**options)


class ToyForCausalLM(MemoryLanguageModel):
    config_class = ToyConfig

    def make_layer(self, index):
        return Residual(self.config.hidden_size)


TITANS = {"memory_options": {"chunk_size": 4}, "persistent": 3, "segment": 5, "window": 6}
MODELS = {
    "window": lambda **more: TransformerForCausalLM(TransformerConfig(**SIZE, window=4, **more)),
    "full": lambda **more: TransformerForCausalLM(TransformerConfig(**SIZE, feed_forward="gelu", **more)),
    "lstm": lambda **more: RecurrentForCausalLM(RecurrentConfig(**SIZE, **more)),
    "memnet": lambda **more: MemNet(
        MemNetConfig(**SIZE, window=4, bank={"slots": 8, "top_k": 3, "chunk_size": 4}, **more)
    ),
    "gru": lambda **more: RecurrentForCausalLM(RecurrentConfig(**SIZE, cell="gru", **more)),
    "memory": lambda **more: ToyForCausalLM(ToyConfig(**SIZE, **more)),
    # a window, a segment and a chunk that divide neither each other nor the texts
    **{
        f"titans-{one}": lambda one=one, **more: TitansForCausalLM(TitansConfig(one, **SIZE, **TITANS, **more))
        for one in ("lmm", "mac", "mag", "mal")
    },
}


def build(name: str, **options) -> MemoryLanguageModel:
    torch.manual_seed(0)
    return MODELS[name](**options).double().eval()


@pytest.fixture(params=MODELS)
def model(request) -> MemoryLanguageModel:
    return build(request.param)


def text(batch: int = 3, length: int = 17, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 31, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: list[torch.Tensor], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for row, tokens in enumerate(rows):
        where = slice(length - len(tokens), length) if left else slice(0, len(tokens))
        ids[row, where], mask[row, where] = tokens, 1
    return ids, mask


@torch.no_grad()
def greedy(model: MemoryLanguageModel, tokens: torch.Tensor, new: int) -> torch.Tensor:
    """One row, everything computed again for each token."""
    for _ in range(new):
        tokens = torch.cat([tokens, model(tokens[None], use_cache=False).logits[0, -1:].argmax(-1)])
    return tokens


# The laws.


@pytest.mark.parametrize("cuts", [list(range(1, 17)), [3, 4, 11]], ids=["single", "odd"])
def test_any_split(model, cuts):
    ids, cache, pieces = text(), StateCache(), []
    for begin, end in zip([0, *cuts], [*cuts, 17], strict=True):
        out = model(ids[:, begin:end], past_key_values=cache)
        assert out.past_key_values is cache and cache.get_seq_length() == end
        pieces.append(out.logits)
    whole = model(ids)
    laws.same(torch.cat(pieces, 1), whole.logits)
    for state, expected in zip(cache.states, whole.past_key_values.states, strict=True):
        laws.same_state(state, expected)


def test_causal_and_rows_alone(model):
    ids = text()
    other = ids.clone()
    other[:, 9] = ids[:, 9] % 30 + 1
    logits, changed = model(ids).logits, model(other).logits
    laws.same(changed[:, :9], logits[:, :9], 1e-12)
    assert not torch.allclose(changed[:, 9:], logits[:, 9:])
    laws.same(model(ids[1:2]).logits, logits[1:2])


@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_nothing(model, left):
    rows = [text()[0], text()[1, :6], text()[2, :11]]
    ids, mask = padded(rows, left)
    out = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
    more = model(text(seed=2), past_key_values=out.past_key_values).logits
    total, count = 0.0, 0
    for row, tokens in enumerate(rows):
        alone = model(tokens[None], labels=tokens[None])
        laws.same(out.logits[row, mask[row] == 1], alone.logits[0])
        laws.same(more[row], model(text(seed=2)[row : row + 1], past_key_values=alone.past_key_values).logits[0])
        total, count = total + alone.loss * (len(tokens) - 1), count + len(tokens) - 1
    torch.testing.assert_close(out.loss, total / count)  # it is made in float32


def test_gradient_through_a_stream(model):
    """Two calls with one stream have the gradients of one call, of the embedding at the first too."""
    ids = text()
    grads = []
    for cuts in ([17], [6, 17]):
        model.zero_grad()
        cache, begin, loss = StateCache(), 0, 0.0
        for end in cuts:
            loss = loss + model(ids[:, begin:end], past_key_values=cache).logits.square().sum()
            begin = end
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, two in zip(*grads, strict=True):
        laws.same(one, two, 1e-8)
    assert not any(t.requires_grad for state in cache.detach().states for t in state.tensors().values())


# The stream.


def test_rows_of_a_stream(model):
    ids, cache = text(), StateCache()
    model(ids, past_key_values=cache)
    whole, expected = cache.copy(), model(ids, past_key_values=cache.copy()).logits
    order = torch.tensor([2, 0, 0])
    cache.reorder_cache(order)
    laws.same(model(ids[order], past_key_values=cache).logits, expected[order])
    cache = whole.copy()
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    laws.same(model(ids[:2], past_key_values=cache).logits, expected[:2])
    assert whole.get_seq_length() == 17 and whole.batch_size == 3
    one = whole.copy()
    one.reset_rows([1], model.initial_states(3))
    logits = model(ids, past_key_values=one).logits
    laws.same(logits[[0, 2]], expected[[0, 2]])
    laws.same(logits[1], model(ids).logits[1])
    whole.reset()
    laws.same(model(ids, past_key_values=whole).logits, model(ids).logits)


@pytest.mark.parametrize("at", [1, 3], ids=["first", "third"])
def test_a_failed_call_leaves_the_stream(model, at):
    cache, calls = model(text()).past_key_values, []
    before = cache.states

    def fail(*_):
        calls.append(1)
        if len(calls) == at:
            raise RuntimeError("stop")

    model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        model.generate(text(), memory=cache, max_new_tokens=5)
    assert cache.states is before and cache.tokens == 17 and cache.offset == 0
    if at == 1:
        calls.clear()
        with pytest.raises(RuntimeError, match="stop"):
            model(text(), past_key_values=cache)
        assert cache.states is before and cache.tokens == 17


GO_ON = """
import sys, torch
from memory_titan.models import TransformerForCausalLM
model = TransformerForCausalLM.from_pretrained(sys.argv[1]).double()
cache = model.load_cache(sys.argv[2])
torch.save(model(torch.load(sys.argv[3]), past_key_values=cache).logits, sys.argv[4])
"""


def test_a_stream_goes_on_in_another_process(tmp_path):
    model, ids = build("window").float(), text()
    model.save_pretrained(tmp_path / "model")
    cache = StateCache()
    model.double()(ids, past_key_values=cache)
    cache.save(tmp_path / "stream.safetensors")
    torch.save(ids, tmp_path / "ids.pt")
    files = [tmp_path / name for name in ("model", "stream.safetensors", "ids.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", GO_ON, *map(str, files)], check=True)
    laws.same(torch.load(tmp_path / "logits.pt"), model(ids, past_key_values=cache).logits, 1e-12)


def test_streams_are_saved_and_told_apart(model, tmp_path):
    path, cache = tmp_path / "stream.safetensors", StateCache()
    cache.save(path)
    assert model.load_cache(path).states == ()  # at the beginning
    model(text(), past_key_values=cache)
    cache.save(path)
    loaded = model.load_cache(path)
    assert loaded.tokens == 17
    for state, expected in zip(loaded.states, cache.states, strict=True):
        laws.same_state(state, expected, 0.0)
    stranger = build("gru" if isinstance(model, TransformerForCausalLM) else "full")
    if type(stranger) is not type(model):
        with pytest.raises(MemoryFileError, match="another model"):
            stranger.load_cache(path)
    cache.states[0].save(path)
    with pytest.raises(MemoryFileError, match="not a memory-titan cache"):
        model.load_cache(path)


# Generation.


def test_generate_is_recomputation(model):
    ids = text()
    out = model.generate(ids, max_new_tokens=7, do_sample=False)
    for row in range(3):
        assert torch.equal(out[row], greedy(model, ids[row], 7))
    assert torch.equal(model.generate(ids, max_new_tokens=7, do_sample=False, use_cache=False), out)


def test_generate_with_left_padding(model):
    rows = [text()[0], text()[1, :6], text()[2, :1]]
    ids, mask = padded(rows, left=True)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    for row, tokens in enumerate(rows):
        assert torch.equal(out[row, -6:], greedy(model, tokens, 6)[-6:])


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"do_sample": True, "top_k": 5}, {"num_beams": 4, "do_sample": True, "num_return_sequences": 2}],
    ids=["beams", "sampling", "sampled-beams"],
)
def test_beams_and_sampling_with_and_without_a_cache(model, options):
    ids, mask = padded([text()[0, :9], text()[1, :5]], left=True)
    out = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        given = {"attention_mask": mask, "max_new_tokens": 6, "pad_token_id": 0, "use_cache": use_cache}
        out.append(model.generate(ids, **given, **options))
    assert torch.equal(*out)


def test_generate_goes_on_from_a_stream(model):
    first, second = text()[:, :10], text()[:, 10:]
    whole = model.generate(text(), max_new_tokens=5, do_sample=False)
    cache = model(first).past_key_values
    out = model.generate(second, memory=cache, max_new_tokens=5, do_sample=False)
    assert torch.equal(out, whole[:, 10:])
    laws.same(model(first, past_key_values=cache).logits, model(torch.cat([whole, first], 1)).logits[:, -10:])

    theirs = model(first).past_key_values  # in Hugging Face's own way, the whole text is given
    assert torch.equal(model.generate(text(), past_key_values=theirs, max_new_tokens=5, do_sample=False), whole)
    cache = model(first[:1]).past_key_values
    one = model.generate(
        second[:1], memory=cache, max_new_tokens=5, do_sample=False
    )  # one row alone: a path of its own
    assert torch.equal(one, whole[:1, 10:]) and cache.tokens == 22
    laws.same(
        model(first[:1], past_key_values=cache).logits, model(torch.cat([whole[:1], first[:1]], 1)).logits[:, -10:]
    )

    cache = model(first[:1]).past_key_values
    beams = model.generate(text()[:1], num_beams=3, max_new_tokens=5)
    assert torch.equal(model.generate(second[:1], memory=cache, num_beams=3, max_new_tokens=5), beams[:, 10:])
    laws.same(model(first[:1], past_key_values=cache).logits, model(torch.cat([beams, first[:1]], 1)).logits[:, -10:])


def test_a_stream_reads_each_answer_to_its_end(model):
    """Rows that end early are filled up by `generate`; that is no text."""
    ids = text()
    free = model.generate(ids, max_new_tokens=8, do_sample=False)
    end = free[0, 18].item()  # the first row's second token ends it
    cache = StateCache()
    out = model.generate(ids, memory=cache, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=0)
    after = model(ids, past_key_values=cache).logits
    for row in range(3):
        new = out[row, 17:].tolist()
        kept = out[row, : 17 + (new.index(end) + 1 if end in new else len(new))]
        laws.same(after[row], model(torch.cat([kept, ids[row]])[None]).logits[0, -17:])


# Hugging Face.


def test_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if not isinstance(model, ToyForCausalLM) else ToyForCausalLM
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and loaded.config.to_diff_dict() == model.config.to_diff_dict()
    laws.same(loaded.double()(text()).logits, model(text()).logits, 1e-12)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    half = auto.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(text()).logits.dtype == torch.bfloat16


def test_untied_embeddings(tmp_path):
    model = build("window", tie_word_embeddings=False)
    assert model.lm_head.weight is not model.embed_tokens.weight
    assert parameter_count(model) == parameter_count(build("window")) + 31 * 16
    model.save_pretrained(tmp_path)
    laws.same(AutoModelForCausalLM.from_pretrained(tmp_path)(text()).logits, model(text()).logits, 1e-12)


def test_what_is_in_a_memory_keeps_its_start(tmp_path):
    torch.manual_seed(0)
    model = ToyForCausalLM(ToyConfig(**{**SIZE, "vocab_size": 1, "num_hidden_layers": 1}))
    torch.manual_seed(0)
    nn.Embedding(1, 16)  # is made first
    expected = NeuralMemory(16, heads=2, chunk_size=4)
    for (name, one), two in zip(expected.named_parameters(), model.layers[0].memory.parameters(), strict=True):
        assert torch.equal(one, two), name

    weights = model.state_dict()
    del weights["layers.0.memory.qkv.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match="lacks weights of a memory: weight"):
        ToyForCausalLM.from_pretrained(tmp_path)


def test_recurrent_cells_start_as_usual():
    cell = RecurrentForCausalLM(RecurrentConfig(**SIZE)).layers[0].cell
    assert cell.bias_ih_l0.view(4, 16)[1].eq(1).all() and cell.bias_ih_l0.sum() == 16 and not cell.bias_hh_l0.any()
    gate = cell.weight_hh_l0[:16]
    laws.same(gate @ gate.T, torch.eye(16), 1e-5)


def test_outputs(model):
    ids = text()
    out = model(ids, output_hidden_states=True, use_cache=False)
    assert out.past_key_values is None and len(out.hidden_states) == 3
    laws.same(model.lm_head(out.hidden_states[-1]), out.logits, 1e-12)
    laws.same(model(inputs_embeds=model.embed_tokens(ids)).logits, out.logits, 1e-12)
    laws.same(model(ids, logits_to_keep=2).logits, out.logits[:, -2:])
    laws.same(model(ids, logits_to_keep=torch.tensor([3, 5])).logits, out.logits[:, [3, 5]])
    assert isinstance(model(ids, return_dict=False), tuple)
    assert model.train()(ids).past_key_values is None


def test_loss(model):
    ids, logits = text(), model(text()).logits.float()
    shifted = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(model(ids, labels=ids).loss, shifted)
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.5, -100)
    model.config.shift_labels = False
    torch.testing.assert_close(
        model(ids, labels=labels).loss, nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    )
    torch.testing.assert_close(
        model(ids, labels=ids, num_items_in_batch=10).loss * 10 / ids.numel(), model(ids, labels=ids).loss
    )
    assert model(ids, labels=torch.full_like(ids, -100)).loss == 0


def test_another_head():
    class Judge(TransformerForCausalLM):
        _tied_weights_keys = {}

        def make_head(self):
            return nn.Linear(16, 3)

        def compute_loss(self, logits, labels, mask=None, num_items_in_batch=None):
            return nn.functional.cross_entropy(logits[:, -1], labels[:, -1])

    judge = Judge(TransformerConfig(**SIZE, window=4, tie_word_embeddings=False))
    out = judge(text(), labels=text() % 3)
    assert out.logits.shape == (3, 17, 3) and out.loss.isfinite()


def test_equal_size():
    other = build("window")
    width = width_of_size(
        lambda n: RecurrentForCausalLM(RecurrentConfig(**{**SIZE, "hidden_size": n})), parameter_count(other), 2
    )
    sizes = {
        n: parameter_count(RecurrentForCausalLM(RecurrentConfig(**{**SIZE, "hidden_size": n}))) for n in range(2, 30, 2)
    }
    assert width == min(sizes, key=lambda n: abs(sizes[n] - parameter_count(other)))
    with pytest.raises(ValueError, match="at least 1"):
        width_of_size(nn.Identity, 0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m(), "either"),
        (lambda m: m(text() + 10), "0 to 30; got 11 to 40"),
        (lambda m: m(text().float()), "must be integers"),
        (lambda m: m(text(), attention_mask=torch.ones(3, 4)), "attention_mask"),
        (lambda m: m(text(), labels=text()[:, 1:]), "labels must be"),
        (lambda m: m(text(), labels=text(), logits_to_keep=1), "logits_to_keep"),
        (lambda m: m(text(), past_key_values=((),)), "must be a StateCache"),
        (lambda m: m(text(), past_key_values=m(text()).past_key_values, use_cache=False), "contradict"),
        (lambda m: m(text(2), past_key_values=m(text()).past_key_values), "3 rows and the input 2"),
        (lambda m: m(text(), past_key_values=StateCache(m.initial_states(3)[:1])), "1 layers"),
        (lambda m: m(inputs_embeds=torch.zeros(3, 4, 5)), "embeddings"),
        (lambda m: m(text()).past_key_values.crop(-1), "cannot unread"),
        (lambda m: m.generate(text()[:, :5], past_key_values=m(text()).past_key_values), "memory=cache"),
        (lambda m: m.generate(text(), memory=StateCache(), past_key_values=StateCache()), "no past_key_values"),
        (lambda m: m.generate(text(), memory=5), "must be a StateCache"),
        (lambda m: m.generate(text()[:1], assistant_model=build("window"), max_new_tokens=3), "stateful"),
        (lambda m: TransformerConfig(hidden_size=0), "hidden_size must be at least 1"),
        (lambda m: RecurrentConfig(cell="rnn"), "there are lstm, gru"),
        (lambda m: RecurrentConfig(window=4), "no window"),
        (lambda m: build("window", feed_forward="relu"), "feed_forward must be one of swiglu, gelu"),
        (lambda m: build("window", rotary_base=0.1), "rotary_base"),
        (lambda m: MemoryLanguageModel(MemoryModelConfig(**SIZE)), "make_layer"),
    ],
)
def test_refuses_what_cannot_work(call, said):
    with pytest.raises((ValueError, NotImplementedError), match=said):
        call(build("window"))
