"""Drawn conversations pass their checker, which can tell; files come back as they were."""

import json
from dataclasses import replace

import pytest

from memory_titan.tasks.conversations import (
    Conversation,
    ConversationTask,
    check,
    read_conversations,
    write_conversations,
)

TASKS = [ConversationTask(), ConversationTask(sessions=2, blocks=1, subjects=16, updates=1.0)]


@pytest.mark.parametrize("task", TASKS, ids=["usual", "dense"])
def test_drawn_conversations_are_right(task):
    for index in range(20):
        assert not check(task.draw(3, index))


def test_a_seed_is_a_conversation():
    task = ConversationTask()
    assert task.draw(1, 2) == task.draw(1, 2)
    assert len({task.draw(seed, index).to_json() for seed in (1, 2) for index in (0, 1)}) == 4


def test_updates_name_what_is_stale():
    never, always = (ConversationTask(updates=share).draw(0) for share in (0.0, 1.0))
    assert not any(question.stale for question in never.questions)
    assert len([question for question in always.questions if question.stale]) == 2 * 12
    assert len(always.questions) == 4 * 12  # and what it was before


def swapped(conversation, number, **changes):
    questions = list(conversation.questions)
    questions[number] = replace(questions[number], **changes)
    return replace(conversation, questions=tuple(questions))


def test_the_checker_can_tell():
    good = ConversationTask(updates=1.0).draw(0)
    question = good.questions[0]
    other = next(turn for turn in good.turns() if turn.speaker not in question.question)
    assert "no answer stands" in check(swapped(good, 0, answers=("nowhere",)))[0]
    assert any("is about" in each for each in check(swapped(good, 0, evidence=(other.id,))))
    assert any("older" in each for each in check(swapped(good, 0, evidence=question.stale, stale=question.evidence)))
    assert any("is stale" in each for each in check(swapped(good, 0, stale=question.evidence)))
    told = f"{question.question} {question.answers[0]}"
    assert any("holds its answer" in each for each in check(swapped(good, 0, question=told)))
    assert any("ascend" in each for each in check(replace(good, sessions=good.sessions[::-1])))


def test_files(tmp_path):
    drawn = [ConversationTask(subjects=2).draw(0, index) for index in range(3)]
    path = tmp_path / "drawn.jsonl"
    write_conversations(path, drawn)
    assert read_conversations(path) == drawn
    assert set(json.loads(path.read_text("utf-8").splitlines()[0])) == {"id", "sessions", "questions"}


def test_the_plain_form_needs_no_times():
    turn = {"id": "t", "speaker": "Ann", "text": "Yes."}
    plain = {
        "id": "c",
        "sessions": [{"id": "s", "turns": [turn]}],
        "questions": [{"question": "Well?", "evidence": ["t"], "answers": []}],
    }
    assert json.loads(Conversation.from_json(json.dumps(plain)).to_json()) == plain


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "one line of JSON"),
        ("[]", "one line of JSON"),
        ('{"id": "c", "sessions": []}', "questions"),
        ('{"id": 1, "sessions": [], "questions": []}', "no text"),
        ('{"id": "c", "sessions": [], "questions": [{"question": "?", "evidence": ["t"]}]}', "ids of turns"),
        ('{"id": "c", "sessions": [], "questions": [{"question": "?", "evidence": "t"}]}', "no list"),
    ],
)
def test_what_is_no_conversation(tmp_path, line, reason):
    path = tmp_path / "wrong.jsonl"
    path.write_text(f"\n{line}\n", "utf-8")
    with pytest.raises(ValueError, match=rf"line 2: .*{reason}"):
        read_conversations(path)


def test_shapes_that_cannot_be():
    with pytest.raises(ValueError, match="subjects from 1 to 16"):
        ConversationTask(subjects=17)
