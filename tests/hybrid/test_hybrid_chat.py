"""A conversation: what is streamed, what is kept in view, what is learned, and that it goes on after anything."""

from __future__ import annotations

import pytest
import torch

import tiny
from memory_titan.hybrid import engine as module
from memory_titan.hybrid.engine import HybridEngine
from test_hybrid_engine import NEVER, SENTENCES, build, held
from test_hybrid_learning import Scripted

pytestmark = pytest.mark.usefixtures("cache")

TURNS = ("Marguerite keeps the key.", "What leaves at six?", "Nobody would rather lose money, or?", "Copper?")


def say(engine: HybridEngine, message: str, max_tokens: int = 6, **options) -> str:
    return "".join(engine.chat(message, max_tokens, **options))


def roles(engine: HybridEngine) -> list[str]:
    return [message["role"] for message in engine.context]


def test_the_pieces_are_the_answer_and_the_turn_says_what_happened(frozen):
    engine = build(frozen)
    engine.read(" ".join(SENTENCES))
    began = []
    pieces = engine.chat("The dog of my sister is called Pepper. Who keeps the spare key?", 24)
    for piece in pieces:
        began.append(engine.turn.answer.text)
        assert [reading.text for reading in engine.turn.readings] == [
            "The dog of my sister is called Pepper.",
            "Who keeps the spare key?",
        ]
        assert engine.turn.answer.used and engine.turn.answer.text.endswith(piece)
    turn = engine.turn
    assert began[-1] == turn.answer.text == engine.context[-1]["content"]
    assert turn.answer.spoke and {each.text for each in turn.answer.considered} >= set(tiny.FACTS)
    assert list(turn.seconds) == ["reading", "recall", "first", "answer"]
    assert turn.seconds["reading"] > 0 and turn.seconds["first"] <= turn.seconds["answer"]
    assert "The dog of my sister is called Pepper." in held(engine)


def test_the_sum_of_the_pieces_has_no_space_around_it(llama, monkeypatch):
    def padded(*ignored, **also):
        yield from ("\n", " Six", " ", "", "\n\n", "o'clock", ".", " ", "\n")

    monkeypatch.setattr(module, "speak", padded)
    engine = build(llama)
    pieces = list(engine.chat("When?", use_memory=False))
    assert "".join(pieces) == engine.turn.answer.text == engine.context[-1]["content"] == "Six \n\no'clock."
    assert all(pieces)


@pytest.mark.parametrize("nothing", ["", " \n\t "])
def test_an_empty_message(llama, nothing):
    engine = build(llama)
    with pytest.raises(ValueError, match="message is empty"):
        engine.chat(nothing)
    assert engine.context == [] and engine.turn is None


def test_the_context_grows_and_is_cleared_but_the_memory_stays(frozen):
    engine = build(frozen)
    said = [say(engine, message) for message in TURNS[:2]]
    assert [message["content"] for message in engine.context] == [TURNS[0], said[0], TURNS[1], said[1]]
    assert roles(engine) == ["user", "assistant"] * 2
    engine.clear_context()
    assert engine.context == []
    say(engine, TURNS[1])
    assert engine.turn.answer.spoke
    assert TURNS[0] in [each.text for each in engine.turn.answer.considered]
    assert roles(engine) == ["user", "assistant"]


def test_clearing_while_it_speaks(llama):
    engine = build(llama)
    pieces = engine.chat(TURNS[1], 24)
    next(pieces)
    engine.clear_context()
    pieces.close()
    assert engine.context == []


def test_without_memory_and_without_learning(frozen):
    engine = build(frozen)
    engine.read(" ".join(SENTENCES))
    weights = engine.memory.content.weights.clone()
    say(engine, "My sister is called Ada. What leaves at six?", learn=False)
    assert torch.equal(engine.memory.content.weights, weights)
    assert engine.turn.readings == [] and "reading" not in engine.turn.seconds
    assert engine.turn.answer.spoke
    say(engine, "My sister is called Ada. What leaves at six?", use_memory=False)
    assert not engine.turn.answer.spoke and engine.turn.answer.considered == []
    assert "My sister is called Ada." in held(engine)


def test_what_asks_nothing_is_not_looked_up_and_gets_a_sentence(llama, monkeypatch):
    engine = build(llama)
    engine.read(" ".join(SENTENCES))
    Scripted(engine, monkeypatch, {"asks": "question", "world": "general", "hello": "small talk", "dog": "keep"})
    first: list[str] = []
    prompt = llama.prompt
    monkeypatch.setattr(llama, "prompt", lambda said, *more: first.append(said[0]["content"]) or prompt(said, *more))
    asking = {"hello": False, "a dog": False, "He asks": True, "the world": True, "hello?": True}
    for message, spoke in asking.items():
        engine.clear_context()
        say(engine, message, 2)
        assert engine.turn.answer.spoke is spoke
        assert (first[-1] == "Reply in one short, friendly sentence.") is not spoke
    say(engine, "the world", 2, use_memory=False)
    assert first[-1] == "hello?"


def test_a_question_that_leans_is_asked_with_what_was_said_before(llama, monkeypatch):
    engine = build(llama)
    Scripted(engine, monkeypatch, {"?": "question", "": "keep"})
    assert engine._asked("We met Ada. She has a dog. What is it called?") == "What is it called?"
    assert engine._asked("We met Ada. Is she nice?") == "Is she nice?"
    assert engine._asked("I have a dog. Its name, is it Pepper?") == "I have a dog. Its name, is it Pepper?"
    assert engine._asked("I have a dog.") == ""
    say(engine, "I have a dog.")
    assert engine._asked("Its name, is it Pepper?") == "I have a dog. Its name, is it Pepper?"


@pytest.mark.parametrize("use_memory", [True, False])
def test_closing_early_keeps_what_was_learned_and_said(frozen, use_memory):
    engine = build(frozen)
    pieces = engine.chat("The ferry is called Daisy. What is its name?", 200, use_memory)
    first = next(pieces)
    pieces.close()
    assert engine.turn.answer.text == first.strip() == engine.context[-1]["content"]
    assert roles(engine) == ["user", "assistant"]
    assert "The ferry is called Daisy." in " ".join(held(engine))
    say(engine, TURNS[1], use_memory=use_memory)
    assert roles(engine) == ["user", "assistant"] * 2
    assert engine.turn.answer.text == engine.context[-1]["content"]
    assert engine.undo() and engine.undo() and held(engine) == []


def test_a_failing_model_leaves_a_conversation(llama, monkeypatch):
    engine = build(llama)
    with monkeypatch.context() as broken:
        broken.setattr(llama.model, "generate", lambda **ignored: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            say(engine, TURNS[1])
        with pytest.raises(ZeroDivisionError):
            say(engine, TURNS[1], use_memory=False)
    assert roles(engine) == ["user", "assistant"] * 2
    assert say(engine, TURNS[1], use_memory=False) == engine.turn.answer.text


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("word", ["copper ", "🙂"])
def test_a_message_longer_than_the_model_takes(loaded, monkeypatch, name, word):
    frozen = loaded(name)
    shown = watch(frozen, monkeypatch)
    monkeypatch.setattr(frozen.model.config, "n_positions" if name == "gpt2" else "max_position_embeddings", 96)
    engine = build(frozen, threshold=NEVER)
    message = "It begins here. " + word * 200 + " And the end?"
    say(engine, message, 8)
    assert 60 < len(shown[-1]) <= 96 - 8
    assert "And the end?" in frozen.decode(shown[-1]) and "begins" not in frozen.decode(shown[-1])
    assert engine.context[0]["content"] == message
    assert any("begins" in text for text in held(engine))


def test_a_question_longer_than_the_model_takes(loaded):
    engine = build(loaded("gpt2"))
    engine.read(" ".join(SENTENCES))
    endless = "so " * 2500
    for question in (f"Who, {endless}, keeps the key?", f"Copper. {endless}. Is it so?", "It is so?"):
        say(engine, question, 4, learn=False)
        assert engine.turn.answer.spoke
        assert engine.ask(question, max_tokens=4).spoke
        assert not engine.ask(question, use_memory=False, max_tokens=4).spoke


def test_the_view_is_of_the_last_turns(llama, monkeypatch):
    shown = watch(llama, monkeypatch)
    monkeypatch.setattr(module, "_VIEW", 120)
    engine = build(llama, threshold=NEVER)
    for number in range(12):
        say(engine, f"Does the ferry number {number} leave?", 8)
        assert len(shown[-1]) <= 120
        assert f"number {number} " in llama.decode(shown[-1])
        assert roles(engine) == ["user", "assistant"] * (len(engine.context) // 2)
    assert 2 < len(engine.context) < 16
    assert "number 10 " in llama.decode(shown[-1]) and "number 0 " not in llama.decode(shown[-1])


def watch(frozen, monkeypatch) -> list[list[int]]:
    """The token ids that `generate` is given, as they come."""
    shown: list[list[int]] = []
    generate = frozen.model.generate

    def watched(**given):
        if "input_ids" in given:
            shown.append(given["input_ids"][0].tolist())
        return generate(**given)

    monkeypatch.setattr(frozen.model, "generate", watched)
    return shown


@pytest.mark.parametrize(
    "message",
    [
        "Моя собака Рекс. Где ключ?",
        "我的狗叫小白。钥匙在哪里？",
        "🙂🙃",
        "👩‍👩‍👧 ?",
        "كلبي اسمه ريكس. أين المفتاح؟",
        "?!",
        "\u200b",
        "e\u0301 ?",
    ],
)
def test_other_scripts(frozen, message):
    engine = build(frozen)
    engine.read(" ".join(SENTENCES))
    assert say(engine, message) == engine.turn.answer.text
    assert engine.context[0]["content"] == message
    read = "".join(reading.text for reading in engine.turn.readings)
    assert "".join(read.split()) in ("".join(message.split()), "")


def test_a_fork_shares_the_model_and_not_the_memory(llama, tmp_path):
    engine = build(llama)
    say(engine, "The ferry is called Daisy.")
    other = engine.fork(tmp_path / "other.mem")
    assert other.frozen is engine.frozen and other.addresser is engine.addresser
    assert (other.threshold, other.learner.keep, other.memory.config) == (
        engine.threshold,
        engine.learner.keep,
        engine.memory.config,
    )
    assert held(other) == [] and other.context == [] and other.undo() == []
    say(other, "The boat is called Ada.")
    other.save()
    assert held(engine) == ["The ferry is called Daisy."]
    assert held(engine.fork(tmp_path / "other.mem")) == ["The boat is called Ada."]
