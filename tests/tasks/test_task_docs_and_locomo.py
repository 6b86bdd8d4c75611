"""Sets that are read: LoCoMo's layout, crooked as it may be; docstrings of a folder of sources."""

import json

import pytest

from memory_titan.tasks.conversations import write_conversations
from memory_titan.tasks.locomo import read_any, read_locomo
from memory_titan.tasks.python_docs import python_docs


def said(dia_id, text, speaker="Ann"):
    return {"speaker": speaker, "dia_id": dia_id, "text": text, "blip_caption": "a photo of a cat"}


SAMPLE = {
    "sample_id": "conv-9",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Bob",
        "session_10": [said("D10:1", "Last."), said("D10:2", "")],
        "session_10_date_time": "10:05 am on 1 June, 2023",
        "session_2_date_time": "some time",
        "session_2": [{"speaker": "Bob", "text": "No id."}, said("D2:02", "Zero.")],
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [said("D1:1", "Hi!"), said("D1:2", "A cat.", "Bob"), said("D1:3", "A dog.")],
        "session_3_date_time": "12:30 am on 9 May, 2023",
    },
    "qa": [
        {"question": "plain", "evidence": ["D1:3"], "answer": 7, "category": 2},
        {"question": "several", "evidence": ["D1:1; D1:2", "D2:1 D10:1"], "answer": "x", "category": 1},
        {"question": "crooked", "evidence": ["D:1:2", "D", "(d2:2", "D1:2"], "adversarial_answer": "y"},
        {"question": "nowhere", "evidence": ["D9:9", "D"], "answer": "x"},
        {"question": "of an empty turn", "evidence": ["D10:2"], "answer": "x"},
        {"question": "none", "evidence": [], "answer": "x"},
        {"question": "nothing"},
    ],
}


def written(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data), "utf-8")
    return path


def test_locomo_is_read(tmp_path):
    (found,) = read_any(written(tmp_path / "l.json", [SAMPLE]))
    assert found.id == "conv-9" and [session.id for session in found.sessions] == [
        "session_1",
        "session_2",
        "session_10",
    ]
    assert [session.time for session in found.sessions] == ["2023-05-08T13:56:00", None, "2023-06-01T10:05:00"]
    turns = {turn.id: turn for turn in found.turns()}
    assert list(turns) == ["D1:1", "D1:2", "D1:3", "D2:1", "D2:2", "D10:1", "D10:2"]
    assert turns["D1:2"].text == "A cat." and turns["D1:2"].speaker == "Bob"
    asked = {question.question: question for question in found.questions}
    assert {name: asked[name].evidence for name in asked} == {
        "plain": ("D1:3",),
        "several": ("D1:1", "D1:2", "D2:1", "D10:1"),
        "crooked": ("D1:2", "D2:2"),
    }
    assert asked["plain"].answers == ("7",) and asked["plain"].category == "2"
    assert asked["crooked"].answers == () and asked["crooked"].category is None
    write_conversations(tmp_path / "l.jsonl", [found])
    assert read_any(tmp_path / "l.jsonl") == [found]  # categories and all


@pytest.mark.parametrize(
    "wrong", ["[", "[]", "{}", '[{"qa": []}]', '[{"conversation": {"session_1": [{}]}, "qa": []}]']
)
def test_what_is_not_locomo(tmp_path, wrong):
    with pytest.raises(ValueError, match="LoCoMo's layout"):
        read_locomo(written(tmp_path / "wrong.json", wrong))


SOURCE = '''
def count(things):
    """Say how many things there are.

    Everything that things yields is looked at once, and count raises TypeError for what cannot be iterated.
    """

def _hidden():
    """Say how many things are not there.

    Everything that is hidden stays out of it, however long the explanation of it may be here.
    """

def short():
    """Say what it takes to be short. Very little."""

def signed(x):
    """signed(x) -> what it is not.

    A signature is no summary, and the one who asks with it would have the name of the function.
    """

class Box:
    """Hold what is put in

    until it is taken out again, by whoever comes first, in the order in which it was put in there."""

    def take(self):
        """Take out what came first
        of all things. An empty box raises LookupError, and so does a box closed by somebody in the meantime."""

def twin():
    """One summary of two.

    The first of the two functions that say the same in their first sentence, which is then not asked.
    """

def other():
    """One summary of two.

    The second of the two functions that say the same in their first sentence, which is then not asked.
    """
'''


def test_docstrings_are_items_and_summaries_questions(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "empty").mkdir()
    written(tmp_path / "tests" / "a.py", SOURCE)
    written(tmp_path / "broken.py", "def (")
    written(tmp_path / "b.py", SOURCE)
    found = python_docs(root=tmp_path)
    turns = {turn.id: turn.text for turn in found.turns()}
    assert list(turns) == ["b.count", "b.Box", "b.Box.take", "b.twin", "b.other"]
    assert "and this raises TypeError" in turns["b.count"] and "Say" not in turns["b.count"]
    asked = {question.question: question.evidence for question in found.questions}
    assert asked == {
        "Say how many things there are.": ("b.count",),
        "Hold what is put in": ("b.Box",),
        "Take out what came first of all things.": ("b.Box.take",),
    }
    assert all(len(session.turns) == 1 for session in found.sessions)
    with pytest.raises(ValueError, match="no docstrings"):
        python_docs(root=tmp_path / "empty")


def test_the_standard_library_is_a_set():
    found = python_docs(questions=50)
    assert found == python_docs(questions=50) and len(found.questions) == 50 and len(found.sessions) > 500
    assert set(found.questions) != set(python_docs(seed=1, questions=50).questions)
    with pytest.raises(ValueError, match="questions must be at least 1"):
        python_docs(questions=0)
