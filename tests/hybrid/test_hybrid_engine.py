"""The engine, on models too small to know anything: all of it runs, and only the memory changes."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

import tiny
from memory_titan.hybrid.address import Addresser
from memory_titan.hybrid.answer import answer_bare
from memory_titan.hybrid.engine import HybridEngine
from memory_titan.hybrid.memory import RecollectionConfig
from memory_titan.memory.files import MemoryFileError, load_tensors
from test_hybrid_memory_file import traces

pytestmark = pytest.mark.usefixtures("cache")

SENTENCES = [*tiny.FACTS, *tiny.ORDINARY]
QUESTION = "Where does Marguerite leave her key?"
ALWAYS, NEVER = -1e9, 1e9  # thresholds: random weights weigh nothing that means anything
CONFIG = {"slots": 32, "features": 4096, "width": 128}


def build(frozen, memory=None, threshold: float = ALWAYS, **options) -> HybridEngine:
    return HybridEngine(frozen, memory, RecollectionConfig(**{**CONFIG, **options}), threshold, keep=0.0)


def held(engine: HybridEngine) -> list[str]:
    slots = sorted(engine.memory.used.tolist(), key=lambda slot: int(engine.memory.names[slot]))
    return [engine.frozen.decode(engine.memory.read(slot).ids).strip() for slot in slots]


def test_read_ask_forget_save_load(frozen, tmp_path):
    engine = build(frozen, tmp_path / "notes.mem")
    readings = engine.read(" ".join(SENTENCES), everything=True)
    assert [reading.text for reading in readings] == SENTENCES == held(engine)
    for reading in readings:
        assert reading.written and set(reading.surprise) == {1.0}
        assert "".join(reading.tokens) == f" {reading.text}"

    answer = engine.ask(QUESTION, max_tokens=8)
    assert answer.spoke and 1 <= len(answer.used) <= 2
    assert {each.text for each in answer.considered} == set(SENTENCES)
    assert answer.used == answer.considered[: len(answer.used)]
    evidence = [each.evidence for each in answer.considered]
    assert evidence == sorted(evidence, reverse=True)
    assert answer.familiarity == max(each.familiarity for each in answer.considered)
    assert all(0 < each.clarity <= 1 for each in answer.considered)

    engine.forget([each for each in engine.recall(QUESTION) if "key" in each.text])
    left = [sentence for sentence in SENTENCES if "key" not in sentence]
    assert held(engine) == left
    engine.save()

    again = build(frozen, tmp_path / "notes.mem")
    assert held(again) == left
    for use_memory in (True, False):
        one, other = (each.ask(QUESTION, use_memory, 8) for each in (engine, again))
        assert one.text == other.text
        assert [each.slot for each in one.considered] == [each.slot for each in other.considered]


def test_reading_again_writes_nothing(frozen, tmp_path):
    engine = build(frozen, tmp_path / "notes.mem")
    engine.read("\n\n".join(SENTENCES), everything=True)
    engine.save()
    for each in (engine, build(frozen, tmp_path / "notes.mem")):
        before = each.memory.content.weights.clone()
        readings = each.read("\n\n".join(reversed(SENTENCES)), everything=True)
        assert not any(reading.written for reading in readings)
        assert max(max(reading.surprise) for reading in readings) < 0.2
        assert torch.equal(each.memory.content.weights, before)


def test_the_model_does_not_change(frozen):
    before = {name: tensor.clone() for name, tensor in frozen.model.state_dict().items()}
    engine = build(frozen)
    engine.read(" ".join(SENTENCES), everything=True)
    engine.ask(QUESTION, max_tokens=4)
    engine.ask(QUESTION, use_memory=False, max_tokens=4)
    engine.model_surprise(SENTENCES[0])
    after = frozen.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())


def test_a_silent_memory_answers_as_the_bare_model(frozen):
    bare = answer_bare(frozen, QUESTION, 8)
    empty, quiet, off = build(frozen), build(frozen, threshold=NEVER), build(frozen)
    quiet.read(" ".join(SENTENCES), everything=True)
    off.read(" ".join(SENTENCES), everything=True)
    for answer in (empty.ask(QUESTION, max_tokens=8), quiet.ask(QUESTION, max_tokens=8), off.ask(QUESTION, False, 8)):
        assert (answer.text, answer.spoke, answer.used) == (bare, False, [])
    assert empty.ask(QUESTION, max_tokens=1).familiarity == 0
    assert quiet.find(QUESTION) == []


def test_the_bare_answer_is_what_generate_says(llama):
    prompt = f"<|user|>{QUESTION}<|end|>\n<|assistant|>\n"
    ids = llama.tokenizer(prompt, add_special_tokens=False).input_ids
    said: list[int] = []
    for _ in range(8):
        with torch.no_grad():
            token = int(llama.model(torch.tensor([ids + said])).logits[0, -1].argmax())
        if token == llama.tokenizer.eos_token_id:
            break
        said.append(token)
    assert answer_bare(llama, QUESTION, 8) == llama.decode(said).strip()


def test_what_was_recalled_is_touched_and_nothing_else_changes(llama, tmp_path):
    engine = build(llama)
    engine.read(" ".join(SENTENCES), everything=True)
    engine.save(tmp_path / "before.mem")
    engine.recall(QUESTION)
    engine.find(QUESTION)
    engine.ask(QUESTION, use_memory=False, max_tokens=1)
    engine.save(tmp_path / "after.mem")
    assert (tmp_path / "before.mem").read_bytes() == (tmp_path / "after.mem").read_bytes()
    touched = engine.memory.touched.clone()
    used = {each.slot for each in engine.ask(QUESTION, max_tokens=1).used}
    assert set((engine.memory.touched != touched).nonzero()[:, 0].tolist()) == used


@pytest.mark.parametrize("nothing", ["", "  \n\t "])
def test_an_empty_question(llama, nothing):
    with pytest.raises(ValueError, match="question is empty"):
        build(llama).ask(nothing)
    with pytest.raises(ValueError, match="nothing was named"):
        build(llama).find(nothing)


def test_the_model_s_own_surprise(llama):
    words, surprise = build(llama).model_surprise(SENTENCES[0])
    ids = llama.encode(f" {SENTENCES[0]}")
    with torch.no_grad():
        logits = llama.model(torch.tensor([[llama.first_token, *ids]])).logits[0, :-1]
    assert "".join(words) == f" {SENTENCES[0]}"
    torch.testing.assert_close(surprise, torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none"))


@pytest.mark.parametrize("longest", [8, 13, 48])
def test_long_sentences_are_cut_and_nothing_is_lost(llama, longest):
    engine = build(llama, longest=longest, features=8192)
    text = " and ".join(sentence[:-1] for sentence in SENTENCES)
    readings = engine.read(text, everything=True)
    assert " ".join(reading.text for reading in readings) == text
    assert all(1 <= len(reading.tokens) <= longest for reading in readings)
    assert len(readings) <= 3 * len(llama.encode(text)) / longest + 1
    assert held(engine) == [reading.text for reading in readings]


@pytest.mark.parametrize("word", ["x" * 3000, "7" * 1000, "🙂" * 100, "https://example.org/" + "a1b2/" * 100])
def test_an_endless_word(llama, word):
    engine = build(llama, slots=2048)
    readings = engine.read(f"The word is {word} and no other.")
    assert "".join(reading.text for reading in readings).replace(" ", "") == f"Thewordis{word}andnoother."
    assert all(1 <= len(reading.tokens) <= 48 for reading in readings)


def test_a_character_of_many_tokens(llama):
    engine = build(llama, longest=3)
    assert "".join(islice(engine.learner.fit("A 🙂 smiles"), 20)).replace(" ", "") == "A🙂smiles"


def test_it_reads_a_stream_as_it_comes(llama):
    seen = 0

    def endless():
        nonlocal seen
        while True:
            seen += 1
            yield f"Here is sentence number {seen}."

    engine = build(llama)
    first = list(islice(engine.read_stream(endless(), everything=True), 40))
    assert [reading.text for reading in first] == [f"Here is sentence number {n}." for n in range(1, 41)]
    assert seen < 60
    assert len(engine.memory.used) == 32


def test_no_text_is_in_the_file(llama, tmp_path):
    engine = build(llama, tmp_path / "notes.mem")
    engine.read(" ".join(SENTENCES), everything=True)
    engine.ask(QUESTION, max_tokens=1)
    engine.save()
    raw = (tmp_path / "notes.mem").read_bytes().lower()
    header = str(load_tensors(tmp_path / "notes.mem")[1]).lower()
    words = {word.strip(".").lower() for sentence in SENTENCES for word in sentence.split()}
    for word in {word for word in words if len(word) > 3} | {"7319"}:
        for encoding in ("utf-8", "utf-16-le", "utf-32-le"):
            assert word.encode(encoding) not in raw
        assert word not in header
    for sentence in SENTENCES:
        assert traces(tmp_path / "notes.mem", llama.encode(f" {sentence}")) == []


def test_a_file_of_another_model(loaded, tmp_path):
    build(loaded("llama"), tmp_path / "notes.mem").save()
    with pytest.raises(MemoryFileError, match=r"notes\.mem was made with the model llama"):
        build(loaded("gpt2"), tmp_path / "notes.mem")


def test_a_memory_without_a_file(llama, tmp_path):
    with pytest.raises(ValueError, match=r"save\(path\)"):
        build(llama).save()
    with pytest.raises(OSError, match="nowhere"):
        build(llama, tmp_path / "nowhere" / "x.mem").save()


def test_addresses(frozen, cache):
    addresser = Addresser(frozen)
    ids = [frozen.encode(f" {sentence}") for sentence in SENTENCES]
    together = addresser(ids)
    assert together.shape == (6, addresser.dim)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(6))
    torch.testing.assert_close(together, torch.cat([addresser([each]) for each in ids]), rtol=1e-3, atol=1e-4)
    (kept,) = cache.rglob(f"addresses-{addresser.fingerprint}.safetensors")
    kept.write_bytes(b"damaged")
    torch.testing.assert_close(Addresser(frozen)(ids), together)
    assert load_tensors(kept)
