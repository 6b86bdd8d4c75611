"""What a memory takes back, to the bit; how full it is; and what it holds."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

import tiny
from memory_titan.hybrid.engine import HybridEngine
from test_hybrid_engine import SENTENCES, build, held
from test_hybrid_learning import Scripted

pytestmark = pytest.mark.usefixtures("cache")


def state(engine: HybridEngine) -> dict[str, object]:
    """Everything that `undo` restores: bytes of every tensor, and the counts but for the names given out."""
    memory = engine.memory
    tensors = {name: getattr(memory, name) for name in ("names", "lengths", "touched", "surprises", "addresses")}
    tensors["weights"] = memory.content.weights
    counts = {name: count for name, count in memory.counts.items() if name != "written"}
    return {**{name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, **counts}


def lines(texts: Iterable[str]) -> str:
    return "\n\n".join(texts)


def names(engine: HybridEngine) -> list[int]:
    return sorted(engine.memory.names[engine.memory.used].tolist())


CHANGES = {
    "read": lambda engine: engine.read("The boat is called Ada. The cat sleeps."),
    "forget one": lambda engine: engine.forget(engine.held(1)),
    "forget all": lambda engine: engine.forget(engine.held()),
    "document": lambda engine: engine.read("Item one. Item two. Item three.", everything=True),
    "chat": lambda engine: list(engine.chat("The boat is called Ada.", 2, use_memory=False)),
    "evictions": lambda engine: engine.read(lines(f"Here is sentence number {n}." for n in range(20)), True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("slots", [8, 32], ids=["full", "half-empty"])
def test_a_change_is_taken_back_to_the_bit(llama, change, slots):
    engine = build(llama, slots=slots)
    engine.read(lines([*SENTENCES, "Ada has a cat.", "It rains.", "We had soup."]), everything=True)
    engine.undo()
    engine.read(lines([*SENTENCES, "Ada has a cat.", "It rains.", "We had soup."]), everything=True)
    before, said = state(engine), held(engine)
    CHANGES[change](engine)
    assert state(engine) != before
    assert engine.undo()
    assert state(engine) == before and held(engine) == said
    assert engine.undo()
    assert held(engine) == [] and engine.undo() == []


def test_corrections_are_taken_back_with_what_they_erased(llama, monkeypatch):
    engine = build(llama)
    script = Scripted(engine, monkeypatch)
    script.near, script.correcting = {"Monday": 1.0, "Friday": 0.8}, ("Friday",)
    engine.read(lines(["The concert is on Monday.", "Ada has a cat."]))
    before = state(engine)
    engine.read("The concert has moved to Friday.")
    assert held(engine) == ["Ada has a cat.", "The concert has moved to Friday."]
    assert engine.undo() == ["wrote: The concert has moved to Friday.", "erased: The concert is on Monday."]
    assert state(engine) == before
    assert held(engine) == ["The concert is on Monday.", "Ada has a cat."]


def test_many_steps_and_the_last_twenty_of_them(llama):
    engine = build(llama)
    states = []
    for number in range(24):
        states.append(state(engine))
        if number % 5 == 4:
            engine.forget(engine.held(1))
        else:
            engine.read(f"Here is sentence number {number}.", everything=True)
    for number in reversed(range(4, 24)):
        words = "forgot" if number % 5 == 4 else f"wrote: Here is sentence number {number}."
        assert engine.undo()[0].startswith(words)
        assert state(engine) == states[number]
    assert engine.undo() == []
    assert state(engine) == states[4]


def test_nothing_to_take_back(llama):
    engine = build(llama)
    assert engine.undo() == []
    engine.read("Copper is soft.")
    engine.read("Copper is soft.")  # known: no step
    engine.forget([])
    engine.recall("Copper?")
    engine.ask("Copper?", max_tokens=1)  # touches
    assert engine.undo() == ["wrote: Copper is soft."]
    assert engine.undo() == [] and held(engine) == []


def test_what_is_written_after_an_undo_has_no_ghosts(llama, tmp_path):
    engine, clean = build(llama, tmp_path / "one.mem"), build(llama)
    seen: set[int] = set()
    for number in range(6):
        engine.read(f"The boat is called Ada {number}.")
        assert not seen & set(names(engine))  # a name is given once
        seen |= set(names(engine))
        assert engine.undo()
        assert not engine.memory.content.weights.any()
    engine.save()
    again = build(llama, tmp_path / "one.mem")
    for each in (engine, clean, again):
        (reading,) = each.read(tiny.FACTS[0])
        assert reading.written and set(reading.surprise) == {1.0}
        assert held(each) == [tiny.FACTS[0]]
        assert each.held()[0].clarity == pytest.approx(1, abs=0.9)
    assert not seen & set(names(again))
    assert again.undo() and again.undo() == []  # what was taken back is not in the file, nor are the steps


def test_time_goes_on_after_an_undo(llama):
    engine = build(llama, slots=3)
    engine.read(lines(["It is one.", "Here is two."]), everything=True)
    engine.read("There are three.")
    for _ in range(3):
        engine.memory.touch(0)  # as recalling does, outside of any step
    engine.undo()
    engine.read("We are four.")
    assert engine.memory.touched.argmax() == engine.memory.names.argmax()
    engine.read("You are five.")  # two goes, the longest untouched
    engine.read("All are six.")  # then one, which was recalled before four and five were written
    assert held(engine) == ["We are four.", "You are five.", "All are six."]


def test_a_step_in_words(llama):
    engine = build(llama)
    engine.read(lines(SENTENCES[:2]))
    engine.forget(engine.held())
    assert engine.undo() == [f"forgot: {text}" for text in reversed(SENTENCES[:2])]
    assert engine.undo() == [f"wrote: {text}" for text in SENTENCES[:2]]
    many = [f"Here is sentence number {number}." for number in range(12)]
    engine.read(lines(many), everything=True)
    assert engine.undo() == [*(f"wrote: {text}" for text in many[:8]), "wrote 12 texts in all"]


@pytest.mark.parametrize("read", [3, 20])
def test_a_reading_that_fails_can_be_taken_back(llama, read):
    engine = build(llama)
    engine.read("Copper is soft.")
    before = state(engine)

    def torn():
        yield from (f"Here is sentence number {number}." for number in range(read))
        raise OSError("torn")

    with pytest.raises(OSError, match="torn"):
        list(engine.read_stream(torn(), everything=True))
    if read > 16:  # texts go through the model in sixteens
        assert len(held(engine)) == 17
        words = engine.undo()
        assert words[0] == "wrote: Here is sentence number 0." and len(words) >= 8
    assert state(engine) == before
    assert engine.undo() == ["wrote: Copper is soft."]


def test_a_reading_that_is_left_can_be_taken_back(llama):
    engine = build(llama)
    before = state(engine)
    stream = engine.read_stream(SENTENCES)
    assert [next(stream).written for _ in range(3)] == [True] * 3
    stream.close()
    assert held(engine) == SENTENCES[:3]
    assert engine.undo() == [f"wrote: {text}" for text in SENTENCES[:3]]
    assert state(engine) == before


def test_forgetting_what_is_gone_erases_nothing(llama):
    engine = build(llama)
    engine.read(lines(SENTENCES))
    found = engine.held(2)
    engine.forget(found)
    before, said = state(engine), held(engine)
    engine.forget(found)
    assert state(engine) == before and held(engine) == said
    assert engine.capacity.forgotten == 2


def test_capacity(llama, tmp_path):
    engine = build(llama, slots=40, features=2048)
    assert vars(engine.capacity) | {"bytes": 0} == {
        "held": 0,
        "slots": 40,
        "load": 0.0,
        "strength": 1.0,
        "written": 0,
        "known": 0,
        "evicted": 0,
        "forgotten": 0,
        "bytes": 0,
    }
    sizes = {engine.capacity.bytes}
    for change in (
        lambda: engine.read(lines(SENTENCES)),
        lambda: engine.read(lines(SENTENCES[:2])),
        lambda: engine.forget(engine.held(3)),
    ):
        change()
        path = tmp_path / "x.mem"
        engine.save(path)
        sizes.add(engine.capacity.bytes)
        assert 0 <= path.stat().st_size - engine.capacity.bytes <= 2048
    assert len(sizes) == 1
    it = engine.capacity
    assert (it.held, it.written, it.known, it.forgotten, it.evicted) == (3, 6, 2, 3, 0)
    tokens = sum(len(engine.encode(text)) for text in SENTENCES[:3])
    assert it.load == pytest.approx(tokens / 2048) and it.strength == pytest.approx(1 / (1 + it.load))


@pytest.mark.parametrize(("slots", "features", "width"), [(1, 64, 64), (100, 1000, 64), (7, 4096, 192)])
def test_the_bytes_are_the_file_s(llama, tmp_path, slots, features, width):
    engine = build(llama, slots=slots, features=features, width=width)
    engine.save(tmp_path / "x.mem")
    assert 0 <= (tmp_path / "x.mem").stat().st_size - engine.capacity.bytes <= 2048


def test_a_full_memory_lets_the_longest_untouched_go(llama):
    engine = build(llama, slots=4)
    engine.read(lines(SENTENCES[:4]), everything=True)
    assert engine.capacity.evicted == 0
    engine.memory.touch(next(each.slot for each in engine.held() if each.text == SENTENCES[0]))
    engine.read(lines(SENTENCES[4:]), everything=True)
    assert held(engine) == [SENTENCES[0], *SENTENCES[3:]]
    it = engine.capacity
    assert (it.held, it.slots, it.evicted, it.written, it.forgotten) == (4, 4, 2, 6, 0)
    engine.undo()
    assert engine.capacity.evicted == 0 and engine.capacity.held == 4
    assert held(engine) == SENTENCES[:4]


def test_what_an_answer_used_is_not_the_first_to_go(llama, monkeypatch):
    engine = build(llama, slots=3)
    script = Scripted(engine, monkeypatch, {"?": "question"})
    script.near = {"ferry": 1.0}
    engine.read(lines([tiny.FACTS[2], *tiny.FACTS[:2]]))
    monkeypatch.setattr("memory_titan.hybrid.engine.weigh", lambda frozen, question, ids, near: [99 * n for n in near])
    engine.threshold = 50
    assert [each.text for each in engine.ask("When does the ferry leave?", max_tokens=1).used] == [tiny.FACTS[2]]
    engine.read("Copper is soft.")
    assert held(engine) == [tiny.FACTS[2], tiny.FACTS[1], "Copper is soft."]


def test_held_is_newest_first_and_no_more_than_asked(llama):
    engine = build(llama)
    assert engine.held() == []
    engine.read(lines(SENTENCES), everything=True)
    engine.forget([each for each in engine.held() if each.text == SENTENCES[1]])
    engine.read("Copper is soft.")  # into the slot that was freed
    order = ["Copper is soft.", *reversed(SENTENCES[2:]), SENTENCES[0]]
    assert [each.text for each in engine.held()] == order
    assert [each.text for each in engine.held(2)] == order[:2]
    assert engine.held(0) == []
    for each in engine.held():
        assert (each.familiarity, each.evidence) == (0, 0) and 0 < each.clarity <= 1
        assert engine.frozen.decode(engine.memory.read(each.slot).ids).strip() == each.text
    before = state(engine)
    engine.held()
    assert state(engine) == before
    assert torch.equal(engine.memory.used, torch.arange(6))
