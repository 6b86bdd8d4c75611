"""Language models on streams and text: a memory made by hand knows everything, spoilt it does not."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from byte_tokens import byte_tokenizer
from memory_titan import MultiHeadMemoryBank, NeuralMemory
from memory_titan.cli import main
from memory_titan.evaluation.language import ask_streams, hash_hop, mqar, niah, report, save
from memory_titan.evaluation.language_text import ask_texts, bits_per_byte, front_token, read_text
from memory_titan.evaluation.probes import PROBES, probes_of, probing
from memory_titan.evaluation.reading import say, speak
from memory_titan.models import (
    MemoryLanguageModel,
    MemoryModelConfig,
    RecurrentConfig,
    RecurrentForCausalLM,
    StateCache,
    TransformerConfig,
    TransformerForCausalLM,
)
from memory_titan.tasks.byte_tokenizer import ByteTokenizer
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.hop_stream import HopTask
from memory_titan.tasks.mqar import MQARTask
from memory_titan.tasks.needle_stream import StreamTask
from memory_titan.tasks.stream import Piece, Stream
from memory_titan.tasks.token_tasks import settings

TASK = StreamTask(length=64, pairs=4, keys=8, values=8, filler=8)


class ByHandConfig(MemoryModelConfig):
    model_type = "test_by_hand"

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)


class ByHand(MemoryLanguageModel):
    """One memory of one matrix, all written by hand: under each token stands what followed it the last time."""

    config_class = ByHandConfig

    def make_layer(self, index: int) -> nn.Module:
        width = self.config.hidden_size
        memory = NeuralMemory(
            width, heads=1, depth=1, retention="none", algorithm="descent", step="fixed", max_step=1.0, step_norm=False,
            conv_size=2, qkv_activation=False, output_norm=False, output_gate=False, init="zero", chunk_size=16,
        )  # fmt: skip
        with torch.no_grad():
            memory.qkv.weight.copy_(torch.eye(width).repeat(3, 1))
            memory.out.weight.copy_(torch.eye(width))
            memory.conv.bias.zero_()
            memory.conv.weight[:, 0] = torch.tensor([0.0, 1.0])  # queries and values: the token itself
            memory.conv.weight[width : 2 * width, 0] = torch.tensor([1.0, 0.0])  # keys: the one before
        return memory


AutoConfig.register("test_by_hand", ByHandConfig, exist_ok=True)
AutoModelForCausalLM.register(ByHandConfig, ByHand, exist_ok=True)


def by_hand(tokens: int = 24, **options) -> ByHand:
    model = ByHand(ByHandConfig(vocab_size=tokens, hidden_size=tokens, num_hidden_layers=1, **options)).eval()
    with torch.no_grad():
        model.embed_tokens.weight.copy_(torch.eye(tokens))
    return model


def shares(cells):
    return {(c.way, c.length, c.depth): c.share.exact for c in cells}


def test_knows_everything_at_every_depth_and_spoilt_nothing():
    ways = ["model", "off", "flipped", "q_for_k", "silent"]
    found = shares(niah(by_hand(), [64, 500], [0, 0.5, 1], task=TASK, samples=6, ways=ways))
    assert len(found) == 30
    for (way, *_), share in found.items():
        assert share == 1 if way == "model" else share < 0.3
    assert shares(niah(by_hand(), [64], task=TASK, samples=3)) == {("model", 64, None): 1}
    assert set(shares(mqar(by_hand(), [(32, 4), (64, 5)], task=MQARTask(vocabulary=24, noise="none"))).values()) == {1}
    hops = [HopTask(length=64, pairs=4, hops=n, symbols=8, filler=8) for n in (1, 2)]
    one, two = (shares(hash_hop(by_hand(), [64], [0.5], task=task))["model", 64, 0.5] for task in hops)
    assert one == 1 and two < 0.3, "it looks up once"


@pytest.mark.parametrize("shift", [True, False])
def test_a_trained_model_is_right_and_the_memory_is_why(shift):
    """The labels' convention changes nothing: what is said at the question is the answer."""
    from memory_titan.tasks.stream import shifted

    torch.manual_seed(0)
    task = StreamTask(length=16, pairs=1, keys=2, values=2, filler=2)
    model = by_hand(6, shift_labels=shift)
    with torch.no_grad():
        model.embed_tokens.weight.add_(0.4 * torch.randn(6, 6))  # now it has to learn
    generator = torch.Generator().manual_seed(0)
    before = niah(model, [16], task=task, samples=64)[0].share.exact
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        x, y = task.batch(16, generator)
        loss = model.train()(x, labels=shifted(y) if shift else y).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    found = [c.share.exact for c in niah(model, [16], task=task, samples=64, ways=["model", "off", "q_for_k"])]
    assert before < 0.95 and found[0] == 1 and max(found[1:]) < 0.8


MODELS = {
    "memory": by_hand,
    "window": lambda: TransformerForCausalLM(
        TransformerConfig(vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, window=8)
    ),
    "lstm": lambda: RecurrentForCausalLM(RecurrentConfig(vocab_size=24, hidden_size=16, num_hidden_layers=1)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=24, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=2, max_position_embeddings=128)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_any_piece_says_the_same(kind):
    """Streamed or whole, in pieces of any size: the logits are those of one call on all the tokens."""
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    stream = TASK.stream(3, torch.Generator().manual_seed(0))
    x, y = TASK.batch(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x, use_cache=False).logits[y != -100]
        for piece in (None, 1, 7, 64):
            told = list(speak(model, stream, piece))
            order = torch.cat([spoken.rows * 1000 + spoken.begin + spoken.columns for spoken in told]).argsort()
            torch.testing.assert_close(torch.cat([s.logits for s in told])[order], expected, atol=1e-4, rtol=1e-4)
            assert torch.equal(torch.cat([s.labels for s in told])[order], y[y != -100])
    right = [say(model, stream, piece).right for piece in (None, 5)]
    assert torch.equal(*right) and right[0].shape == (3, 4)


def test_a_long_stream_is_read_in_pieces_with_a_bounded_state(monkeypatch):
    model, seen = by_hand(), []
    forward = model.forward

    def watched(*args, **options):
        out = forward(*args, **options)
        seen.append((options["input_ids"].shape[1], out.logits.shape[1], options["past_key_values"].nbytes))
        return out

    monkeypatch.setattr(model, "forward", watched)
    cells = niah(model, [20_000], [0, 1], task=TASK, samples=1, piece=512)
    assert [cell.share.exact for cell in cells] == [1, 1] and sum(cell.total for cell in cells) == 4
    assert sum(n for n, _, _ in seen) == 20_000 and max(n for n, _, _ in seen) == 512
    assert {size for _, _, size in seen} == {cell.state_bytes for cell in cells}, "the state grows"
    assert sum(n for _, n, _ in seen) == 4, "the head speaks only where something is asked"


def test_an_answer_is_all_its_tokens_and_numbers():
    class Says(nn.Module):
        config = LlamaConfig(vocab_size=8)
        device = torch.device("cpu")

        def forward(self, input_ids, use_cache):
            logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3, 4], [1, 2, 5, 4]]), 8).float()
            logits[1, 3] = torch.nan
            return type("Out", (), {"logits": logits})

    labels = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    answers = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 2]])
    stream = Stream(4, torch.full((2, 3), math.nan), lambda size: iter([Piece(labels, labels, answers)]))
    said = say(Says(), stream)
    assert said.right.tolist() == [[True, True, True], [True, False, False]]
    assert said.finite.tolist() == [[True] * 3, [True, True, False]] and said.asked.all()


def test_what_is_too_long_is_not_asked():
    model = MODELS["llama"]().eval()
    cells = niah(model, [64, 256], [0.5], task=TASK, samples=2)
    assert [cell.total for cell in cells] == [8, 0]
    with pytest.raises(ValueError, match="256 tokens; this model reads at most 128"):
        next(speak(model, StreamTask(length=256, pairs=1).stream(1)))
    with pytest.raises(ValueError, match="128 different tokens and the model knows 24"):
        niah(model, [64])


# Probes.


def test_probes_put_everything_back():
    model, x = by_hand(), torch.randint(0, 24, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(x).logits
        for way in ("off", "flipped", "q_for_k", "silent", *PROBES):
            with probing(model, way):
                assert not torch.allclose(model(x).logits, before)
            assert torch.equal(model(x).logits, before), way
        for way in (None, "model"):
            with probing(model, way):
                assert torch.equal(model(x).logits, before)
    memory = model.layers[0]
    assert "recall" not in memory.__dict__ and not memory._forward_hooks and not memory.gating._forward_hooks


def test_off_is_nothing_written_and_silent_nothing_read():
    torch.manual_seed(0)
    memory, x = NeuralMemory(16, heads=2), torch.randn(2, 30, 16)
    start, q = memory.initial_state(2), torch.randn(2, 5, 16)
    with torch.no_grad():
        with probing(memory, "off"):
            y, state = memory(x)
            assert y.abs().max() > 0, "the weights that it starts with still answer"
        kept, begun = (
            [w / w.norm(dim=(-2, -1), keepdim=True) for w in memory.present_weights(s)] for s in (state, start)
        )
        torch.testing.assert_close(kept, begun, msg="they decayed, and that is all")
        with probing(memory, "silent"):
            y, state = memory(x)
            assert y.abs().max() == 0 == memory.recall(q, state).abs().max()
        written, expected = memory.present_weights(state), memory.present_weights(memory(x)[1])
        torch.testing.assert_close(written, expected)


def test_probes_of_slots_and_of_nothing():
    bank, x = MultiHeadMemoryBank(16, heads=2, slots=8), torch.randn(1, 20, 16)
    assert probes_of(bank) == ("off",) and probes_of(nn.Linear(2, 2)) == ()
    assert probes_of(by_hand()) == ("off", "flipped", "q_for_k")
    with torch.no_grad(), probing(bank, "off"):
        assert bank(x)[1].content.abs().max() == 0
    for model, way, message in [
        (bank, "flipped", "neural memories; there is a MultiHeadMemoryBank"),
        (nn.Linear(2, 2), "off", "no memory in this Linear"),
        (bank, "of", "off, flipped, q_for_k"),
    ]:
        with pytest.raises(ValueError, match=message), probing(model, way):
            pass


# Text.


def test_bits_per_byte_is_what_plain_cross_entropy_says():
    torch.manual_seed(0)
    model = RecurrentForCausalLM(RecurrentConfig(vocab_size=256, hidden_size=16, num_hidden_layers=1)).eval()
    tokenizer = ByteTokenizer()
    text = "the quick brown fox jümps over the lazy dog. " * 5
    whole, ids = read_text(text, tokenizer, 0), torch.tensor([[0, *text.encode()]])
    with torch.no_grad():
        cost = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="none")
    size = len(text.encode())
    found = bits_per_byte(model, [whole, read_text("short", tokenizer, 0)], [50, 400], piece=17)
    assert [one.bytes for one in found] == [size + 5] * 2, "every byte once, at each context"
    (low, high, bits, count), *_ = bits_per_byte(model, [whole], [400, 50])[0].places
    assert (low, high, count) == (0, 50, 50) and bits == pytest.approx(cost[:50].mean().item() / math.log(2))
    assert bits_per_byte(model, [whole], [400])[0].bits_per_byte == pytest.approx(cost.mean().item() / math.log(2))
    again = torch.cat([model(ids[:, b : b + 50]).logits[0] for b in range(0, size, 50)])[:size].double()
    short = torch.nn.functional.cross_entropy(again, ids[0, 1:])
    assert bits_per_byte(model, [whole], [50])[0].bits_per_byte == pytest.approx(short.item() / math.log(2))


def test_a_tokenizer_s_bytes_are_counted_whole():
    tokenizer, text = byte_tokenizer(), "naïve café ¹ 日本"
    for front in (None, 0):
        read = read_text(text, tokenizer, front)
        assert read.width.sum() == len(text.encode()) and len(read.ids) == len(text.encode()) + (front is not None)
    assert front_token(MODELS["llama"](), tokenizer) == 1 and front_token(by_hand(), tokenizer) == 0
    with pytest.raises(ValueError, match="byte 1 is none"):
        read_text(b"a\xff", tokenizer)
    assert read_text(b"a\xff", ByteTokenizer()).ids.tolist() == [97, 255]
    for contexts, texts, message in [([], [], "contexts"), ([0], [], "contexts"), ([8], [read], "two tokens")]:
        with pytest.raises(ValueError, match=message):
            bits_per_byte(by_hand(), [one for one in texts if not one], contexts)


def test_texts_are_asked_in_any_model_s_tokens():
    """A model that repeats what followed the last eight bytes completes a hash; one that saw too little does not."""

    class Repeats(nn.Module):
        config = LlamaConfig(vocab_size=256, max_position_embeddings=400)
        device = torch.device("cpu")
        reach = 400

        def forward(self, input_ids, use_cache, logits_to_keep):
            logits = torch.zeros(*input_ids.shape, 256)
            for row, ids in enumerate(input_ids.tolist()):
                for i in range(8, len(ids)):
                    seen = [j for j in range(max(8, i - self.reach), i) if ids[j - 8 : j] == ids[i - 7 : i + 1]]
                    logits[row, i, ids[seen[-1]] if seen else 0] = 1
            return type("Out", (), {"logits": logits[:, logits_to_keep]})

    def make(length, depth):
        return HashHopTask(context_len=length, depth=depth, hash_len=5, needles=2)

    model = Repeats()
    cells = ask_texts(model, ByteTokenizer(), make, [200, 300, 500], [0, 1], 6)
    assert [(c.length, c.depth, c.total) for c in cells] == [
        (200, 0, 6), (200, 1, 6), (300, 0, 6), (300, 1, 6), (500, 0, 0), (500, 1, 0)
    ]  # fmt: skip
    assert min(cell.share.exact for cell in cells[:4]) >= 0.8
    model.reach = 100
    near = ask_texts(model, ByteTokenizer(), make, [200], [0, 1], 6)
    assert near[0].right == 0 and near[1].right >= 5


# The command.


def run(*args, code=0):
    result = CliRunner().invoke(main, ["evaluate", *map(str, args)])
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("by_hand")
    model = by_hand()
    model.config.task = settings(TASK)
    model.save_pretrained(path)
    return path


def test_niah_command(folder, tmp_path):
    told = json.loads(run("niah", folder, "--depths", "0,1", "--samples", 3, "--output", tmp_path / "out", "--json"))
    assert told["task"]["keys"] == 8 and told["form"] == "tokens" and told["streamed"]
    assert [c["length"] for c in told["cells"] if c["way"] == "model" and c["depth"] == 0] == [64, 256, 1024]
    by_way = {way: [c["share"] for c in told["cells"] if c["way"] == way] for way in told["ways"]}
    assert list(by_way) == ["model", "off", "flipped", "q_for_k"]
    assert set(by_way.pop("model")) == {1} and max(max(shares) for shares in by_way.values()) < 0.4
    assert told["tokens"] == 4 * 3 * (64 + 256 + 1024)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["cells"] == told["cells"]
    assert (tmp_path / "out" / "heat.png").stat().st_size > 5000
    table = run("niah", folder, "--lengths", "64", "--pairs", 2, "--no-probes")
    assert "1.00" in table and "tokens in" in table and "nothing written" not in table


def test_other_commands(folder, tmp_path):
    told = json.loads(run("mqar", folder, "--lengths", "32,64", "--pairs", "4,10", "--noise", "none", "--json",
                          "--samples", 8))  # fmt: skip
    assert {(c["length"], c["pairs"]): c["share"] for c in told["cells"] if c["way"] == "model"} == {
        (32, 4): 1, (64, 4): 1, (64, 10): 1
    }  # fmt: skip
    options = "--form", "tokens", "--symbols", 8, "--filler", 8, "--pairs", 4, "--hops", 1, "--no-probes"
    told = json.loads(run("hashhop", folder, *options, "--lengths", "100", "--depths", "0.5", "--json"))
    assert [c["share"] for c in told["cells"]] == [1]
    told = json.loads(run("niah", folder, "--lengths", 90, "--depths", "any", "--no-probes", "--json"))
    assert [(c["depth"], c["total"], c["share"]) for c in told["cells"]] == [(None, 32, 1)]
    model = RecurrentForCausalLM(RecurrentConfig(vocab_size=256, hidden_size=16, num_hidden_layers=1))
    model.save_pretrained(tmp_path / "bytes")
    text = tmp_path / "text.txt"
    text.write_text("Some text. " * 50)
    told = json.loads(run("lm", tmp_path / "bytes", text, "--lengths", "64,256", "--json"))
    assert [one["bytes"] for one in told["bits"]] == [549] * 2 and 6 < told["bits"][0]["bits_per_byte"] < 10
    assert "64 to 255" in run("lm", tmp_path / "bytes", text, "--lengths", "64,256")
    told = json.loads(run("niah", tmp_path / "bytes", "--lengths", "256", "--depths", "0,1", "--samples", 1, "--json"))
    assert told["form"] == "text" and told["ways"] == ["model"], "no memory, no probes"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["niah", "{folder}", "--form", "text"], "no tokenizer"),
        (["niah", "{folder}", "--lengths", "16", "--pairs", "8"], "at least 32"),
        (["niah", "smollm2", "--depths", "0,2"], "not from 0 to 1"),
        (["niah", "{folder}", "--keys", "40"], "the model knows 24"),
        (["niah", "{folder}/nowhere"], "cannot load"),
        (["niah", "{empty}"], "no config.json"),
        (["mqar", "{folder}", "--lengths", "64"], "go together"),
        (["mqar", "{folder}", "--lengths", "64", "--pairs", "20"], "4 tokens a pair"),
        (["hashhop", "{folder}", "--form", "tokens", "--pairs", "3", "--symbols", "8"], "multiple of hops"),
        (["lm", "{folder}", "{folder}/config.json"], "cannot read text"),
        (["lm", "{folder}", "{folder}/nothing.txt"], "No such file"),
    ],
)
def test_commands_refuse_in_one_line(args, message, folder, tmp_path):
    output = run(*[arg.format(folder=folder, empty=tmp_path) for arg in args], code=2)
    assert message in output and "Traceback" not in output


def test_a_report_of_nothing_asked(tmp_path):
    told = report(ask_streams(MODELS["llama"]().eval(), TASK.stream, 256, 4, 2, depths=[0, 1]))
    assert [cell["total"] for cell in told["cells"]] == [0, 0] and "share" not in told["cells"][0]
    assert [path.name for path in save(told, tmp_path)] == ["report.json", "heat.png"]


def test_the_cache_is_a_stream_of_its_own():
    """Reading starts at the beginning each time: one evaluation does not help the next."""
    model, stream = by_hand(), TASK.stream(2, torch.Generator().manual_seed(0))
    assert torch.equal(say(model, stream).right, say(model, stream).right)
    x, y = TASK.batch(2, torch.Generator().manual_seed(0))
    cache = StateCache()
    model(x, past_key_values=cache)
    assert (model(x[:, -8:-7], past_key_values=cache).logits[:, 0].argmax(-1) == y[:, -8]).all()
    assert (model(x[:, -8:-7]).logits[:, 0].argmax(-1) != y[:, -8]).all()


def test_the_page_s_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "evaluate-models.md").read_text("utf-8")
    space: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, space)
    assert len(space["cells"]) == 6
    told = json.loads(run("niah", "checkpoints/window", "--depths", "0,1", "--samples", 1, "--json"))
    assert [c["length"] for c in told["cells"]] == [256, 256, 1024, 1024, 4096, 4096] and told["ways"] == ["model"]
