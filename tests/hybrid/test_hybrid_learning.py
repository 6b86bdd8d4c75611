"""What of a text is written, what is taken for a correction, and of what: with the model's judgements given."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from memory_titan.hybrid import learning as module
from memory_titan.hybrid.address import KINDS, Looked
from memory_titan.hybrid.engine import HybridEngine
from memory_titan.hybrid.learning import leans
from test_hybrid_engine import build, held

pytestmark = pytest.mark.usefixtures("cache")


class Scripted:
    """An addresser that judges as it is told: a text is of the kind of the first key that is in it.

    Attributes:
        correcting: texts (parts of them) that sound like a correction.
        near: cosine with the first axis of the address of texts, by a part of them; others stand apart.
    """

    def __init__(self, engine: HybridEngine, monkeypatch, kinds: dict[str, str] | None = None) -> None:
        self.engine, self.kinds = engine, kinds or {}
        self.correcting: tuple[str, ...] = ()
        self.near: dict[str, float] = {}
        self.axes: dict[str, int] = {}
        monkeypatch.setattr(engine.addresser, "look", self.look)

    def look(self, ids: list[list[int]]) -> Looked:
        texts = [self.engine.frozen.decode(each) for each in ids]
        addresses = torch.stack([self.address(text) for text in texts])
        kinds = torch.zeros(len(texts), len(KINDS))
        for row, text in enumerate(texts):
            kinds[row, KINDS.index(next((kind for key, kind in self.kinds.items() if key in text), "keep"))] = 1
        ring = torch.tensor([1.0 if any(key in text for key in self.correcting) else -1.0 for text in texts])
        return Looked(addresses, kinds, ring)

    def address(self, text: str) -> torch.Tensor:
        own = self.axes.setdefault(text, 1 + len(self.axes))
        cosine = next((value for key, value in self.near.items() if key in text), 0.0)
        axes = torch.eye(self.engine.addresser.dim)[[0, own]]
        return F.normalize(cosine * axes[0] + (1 - cosine**2) ** 0.5 * axes[1], dim=0)


def scripted(llama, monkeypatch, kinds=None, keep: float = 0.3, **options) -> tuple[HybridEngine, Scripted]:
    engine = build(llama, **options)
    engine.learner.keep = keep
    return engine, Scripted(engine, monkeypatch, kinds)


@pytest.mark.parametrize(
    ("sentence", "does"),
    [
        ("It is called Pepper.", True),
        ("it's blue", True),
        ("- His name is Tom.", True),
        ("The other one is green.", True),
        ("Apparently she left.", True),
        ("Italy is warm.", False),
        ("The ferry is late.", False),
        ("Items are sold.", False),
        ("I like it.", False),
        ("Theirry moved.", False),
    ],
)
def test_leaning(sentence, does):
    assert leans(sentence) is does


def test_sentences_that_lean_are_one_text_with_what_they_lean_on(llama):
    engine = build(llama)
    readings = engine.read("It rains. We have a dog. It is called Pepper. She is old. The cat is grey.")
    assert [reading.text for reading in readings] == [
        "It rains.",
        "We have a dog. It is called Pepper. She is old.",
        "The cat is grey.",
    ]
    assert held(engine) == [reading.text for reading in readings]
    apart = build(llama).read("We have a dog. It is called Pepper.", everything=True)
    assert [reading.text for reading in apart] == ["We have a dog.", "It is called Pepper."]


def test_they_are_joined_as_far_as_the_memory_takes_a_text(llama):
    one, two = "We have a dog.", "It is called Pepper."
    whole = len(llama.encode(f" {one} {two}"))
    for longest, wanted in ((whole, [f"{one} {two}"]), (whole - 1, [one, two])):
        assert [reading.text for reading in build(llama, longest=longest).read(f"{one} {two}")] == wanted


KINDS_OF = {"Hello": "small talk", "Who": "question", "capital": "general"}
TEXTS = "Hello to you. Who keeps the key? The capital is asked. The key is red."


def test_small_talk_and_questions_are_not_written(llama, monkeypatch):
    engine, _ = scripted(llama, monkeypatch, KINDS_OF)
    readings = engine.read(TEXTS)
    assert [(each.written, each.reason) for each in readings] == [
        (False, "small talk"),
        (False, "question"),
        (False, "question"),
        (True, "new"),
    ]
    assert [each.worth for each in readings] == [0, 0, 0, 1]
    assert all(set(each.surprise) == {1.0} and each.replaced == [] for each in readings)
    assert held(engine) == ["The key is red."]
    assert engine.memory.counts["texts"] == 1


def test_everything_writes_all_but_what_is_known(llama, monkeypatch):
    engine, script = scripted(llama, monkeypatch, KINDS_OF)
    script.correcting, script.near = ("red",), {"red": 1.0, "key": 0.9}
    assert [(each.written, each.reason) for each in engine.read(TEXTS, everything=True)] == [(True, "new")] * 4
    assert len(held(engine)) == 4  # none is taken for a correction
    again = engine.read(TEXTS, everything=True)
    assert [(each.written, each.reason) for each in again] == [(False, "known")] * 4
    assert max(max(each.surprise) for each in again) < 0.5
    once_more = engine.read(TEXTS)
    assert {each.reason for each in once_more} == {"known"}
    assert len(held(engine)) == 4


def test_a_text_of_which_others_know_a_token_each_is_new(llama, monkeypatch):
    engine, script = scripted(llama, monkeypatch)
    script.near = {"number": 0.97}  # all within the cosine from which a text may be known
    texts = ["Take number 20.", "Take number 12.", "Take number 22."]
    for text in texts:
        (reading,) = engine.read(text)
        assert (reading.written, reading.reason) == (True, "new") and max(reading.surprise) == 1
    assert held(engine) == texts
    assert sum(reading.surprise) < 2  # the nearest knows all but a token
    for text in texts:
        (reading,) = engine.read(text)
        assert (reading.written, reading.reason) == (False, "known") and max(reading.surprise) < 0.5
    assert engine.memory.counts["written"] == 3


@pytest.mark.parametrize(("keep", "kept"), [(0.0, True), (0.4, True), (0.41, False), (1.0, False)])
def test_keep_is_the_worth_from_which_a_text_is_written(llama, monkeypatch, keep, kept):
    engine, script = scripted(llama, monkeypatch, keep=keep)
    look = script.look

    def doubtful(ids):
        looked = look(ids)
        looked.kinds[:] = torch.tensor([0.4, 0.3, 0.2, 0.1])
        return looked

    monkeypatch.setattr(engine.addresser, "look", doubtful)
    (reading,) = engine.read("The key is red.")
    assert reading.worth == pytest.approx(0.4)
    assert reading.written is kept and bool(held(engine)) is kept
    assert reading.reason == ("new" if kept else "small talk")


OLD, NEW = "The concert is on Monday evening.", "The concert has moved to Friday evening."


@pytest.mark.parametrize(
    ("cosine", "sounds", "everything", "gone"),
    [
        (0.56, True, False, True),
        (0.54, True, False, False),
        (0.56, False, False, False),
        (0.56, True, True, False),
    ],
)
def test_a_correction_erases_what_it_corrects_if_it_is_close_and_sounds_like_one(
    llama, monkeypatch, cosine, sounds, everything, gone
):
    engine, script = scripted(llama, monkeypatch)
    script.near = {"Monday": 1.0, "Friday": cosine}
    script.correcting = ("Friday",) if sounds else ()
    engine.read(f"{OLD} Ada has a grey cat.")
    (reading,) = engine.read(NEW, everything)
    assert held(engine) == ([] if gone else [OLD]) + ["Ada has a grey cat.", NEW]
    assert (reading.written, reading.reason) == (True, "correction" if gone else "new")
    assert reading.replaced == ([OLD] if gone else [])
    assert engine.memory.counts["forgotten"] == gone


def test_a_correction_read_again_erases_nothing(llama, monkeypatch):
    engine, script = scripted(llama, monkeypatch)
    script.near, script.correcting = {"Monday": 1.0, "Friday": 0.8}, ("Friday",)
    engine.read(OLD)
    engine.read(NEW)
    (again,) = engine.read(NEW)
    assert (again.written, again.reason, again.replaced) == (False, "known", [])
    assert held(engine) == [NEW]


SHORT = "no wait, Friday"


def amending(llama, monkeypatch):
    """An engine in which short corrections become what they should, and a note of what they were asked about."""
    engine, script = scripted(llama, monkeypatch)
    script.correcting = ("Friday",)
    asked: list[tuple[str, str]] = []

    def amended(frozen, old, correction):
        asked.append((old, correction))
        return old.replace("Monday", "Friday")

    monkeypatch.setattr(module, "amended", amended)
    return engine, asked


def test_a_short_correction_amends_what_was_written_just_before(llama, monkeypatch):
    engine, asked = amending(llama, monkeypatch)
    engine.read(f"Ada has a grey cat. {OLD}")
    (reading,) = engine.read(SHORT)
    changed = OLD.replace("Monday", "Friday")
    assert asked == [(OLD, SHORT)]
    assert held(engine) == ["Ada has a grey cat.", changed]
    assert (reading.text, reading.written, reading.reason, reading.replaced) == (changed, True, "correction", [OLD])
    assert "".join(reading.tokens) == f" {changed}" and len(reading.surprise) == len(reading.tokens)
    assert engine.undo() == [f"wrote: {changed}", f"erased: {OLD}"]
    assert held(engine) == ["Ada has a grey cat.", OLD]


def test_in_one_breath(llama, monkeypatch):
    engine, asked = amending(llama, monkeypatch)
    readings = engine.read(f"{OLD} {SHORT}")
    assert asked == [(OLD, SHORT)]
    assert [each.reason for each in readings] == ["new", "correction"]
    assert held(engine) == [OLD.replace("Monday", "Friday")]


@pytest.mark.parametrize(("between", "reached"), [(0, True), (1, True), (2, False)])
def test_what_was_written_long_ago_is_not_amended(llama, monkeypatch, between, reached):
    engine, asked = amending(llama, monkeypatch)
    engine.read(OLD)
    engine.addresser.look.__self__.kinds = {"Hello": "small talk"}
    for _ in range(between):
        engine.read("Hello to you.")
    engine.read(SHORT)
    assert bool(asked) is reached
    assert held(engine) == ([OLD.replace("Monday", "Friday")] if reached else [OLD, SHORT])


def test_what_was_forgotten_or_taken_back_is_not_amended(llama, monkeypatch):
    for take_away in (lambda engine: engine.forget(engine.held()), lambda engine: engine.undo()):
        engine, asked = amending(llama, monkeypatch)
        engine.read(OLD)
        take_away(engine)
        engine.read(SHORT)
        assert asked == [] and held(engine) == [SHORT]


@pytest.mark.parametrize("why", ["no ring", "a question", "not worth it", "a document", "long"])
def test_what_only_looks_like_a_short_correction(llama, monkeypatch, why):
    engine, asked = amending(llama, monkeypatch)
    script = engine.addresser.look.__self__
    engine.read(OLD)
    if why == "no ring":
        script.correcting = ()
    if why == "not worth it":
        script.kinds = {"Friday": "small talk"}
    text = {"a question": "no wait, Friday?", "long": "no wait, it is Friday" + " or so" * 7}.get(why, SHORT)
    engine.read(text, everything=why == "a document")
    assert asked == []
    assert OLD in held(engine)


def test_one_that_makes_no_sense_is_written_as_it_is(llama, monkeypatch):
    engine, _ = amending(llama, monkeypatch)
    monkeypatch.setattr(module, "amended", lambda *given: None)
    engine.read(OLD)
    (reading,) = engine.read(SHORT)
    assert (reading.reason, reading.replaced) == ("new", [])
    assert held(engine) == [OLD, SHORT]
