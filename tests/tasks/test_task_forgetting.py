"""The forgetting task: its answers are right, in the row itself, and what is of use is told rightly."""

import pytest
import torch

from memory_titan.tasks.forgetting import ASK, GONE, KINDS, ROLES, ForgettingTask
from memory_titan.tasks.recall import NO_LABEL

TASKS = [
    ForgettingTask(),
    ForgettingTask(length=56, expiring=2, overwritten=1, staying=2),
    ForgettingTask(length=36, expiring=1, overwritten=1, staying=1, lifetime=8, keys=3, values=2, filler=1),
    ForgettingTask(length=30, expiring=0, overwritten=0, staying=5, keys=5),  # no room for filler
    ForgettingTask(length=60, expiring=4, overwritten=0, staying=0),
]
each_task = pytest.mark.parametrize(
    "task", TASKS, ids=lambda t: f"T{t.length}-{t.expiring}-{t.overwritten}-{t.staying}"
)


def batch(task, rows=64, seed=0):
    return task.batch(rows, torch.Generator().manual_seed(seed))


@each_task
def test_a_dictionary_answers_everything(task):
    x, y, facts = batch(task)
    assert torch.equal(task.solve(x), y)
    assert ((y != NO_LABEL).sum(1) == task.asked).all()
    n = task.asked
    assert torch.equal(y.gather(1, facts.asked[:, :n]), facts.answer[:, :n])
    said = x.gather(1, facts.asked[:, :n] + 1)
    assert torch.equal(said, facts.answer[:, :n]), "the answer does not follow"
    assert int(x.min()) >= 0
    assert int(x.max()) < task.vocabulary


@each_task
def test_the_parser_and_the_facts_agree(task):
    x, y, facts = batch(task, rows=16)
    n = task.asked
    for row in range(16):
        for fact in range(n):
            at, asked = int(facts.written[row, fact]), int(facts.asked[row, fact])
            assert x[row, at - 1] == x[row, asked], "written under another key than asked for"
            assert x[row, at - 2] == facts.kind[row, fact]
            assert x[row, asked - 1] == ASK
            assert at < asked
            assert ROLES[facts.roles[row, at]] == KINDS[facts.kind[row, fact]]
            assert facts.fact[row, at] == facts.fact[row, asked] == fact
            late = asked - at > task.lifetime and facts.kind[row, fact] == 0
            assert (y[row, asked] == GONE) == late == (not facts.needed[row, fact])
            assert facts.ends[row, fact] == (at + task.lifetime if late else asked)
        for fact in range(n, task.writes):
            later = task.expiring + fact - n
            first, second = int(facts.written[row, fact]), int(facts.written[row, later])
            assert first < second
            assert x[row, first - 1] == x[row, second - 1]
            assert x[row, first] != x[row, second]
            assert not facts.needed[row, fact]
            assert facts.ends[row, fact] == second - 1


def test_kinds_are_as_described():
    task = ForgettingTask()
    x, _, facts = batch(task, rows=400)
    gone = facts.answer[:, : task.expiring] == GONE
    assert 0.42 < gone.float().mean() < 0.6, "half of the expiring facts are asked for too late"
    far = facts.asked[:, : task.asked] - facts.written[:, : task.asked]
    assert far[:, -task.staying :].max() > 100, "staying facts are asked for at any distance"
    assert (x == ASK).sum() == 400 * task.asked


def test_the_seed_decides():
    task = ForgettingTask()
    first, again, other = batch(task, 4, 3)[0], batch(task, 4, 3)[0], batch(task, 4, 4)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_wrong_answer_is_seen():
    task = ForgettingTask(length=36, expiring=1, overwritten=1, staying=1, lifetime=8)
    x, y, facts = batch(task, 8)
    place = facts.written[:, 2:3]  # of the staying fact
    x.scatter_(1, place, x.gather(1, place) + 1)
    assert not torch.equal(task.solve(x), y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": 5}, "need as many keys"),
        ({"length": 90}, "length must be at least"),
        ({"lifetime": 64}, "twice lifetime"),
        ({"staying": -1}, "at least 0 of each kind"),
        ({"values": 1}, "values at least 2"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ForgettingTask(**options)


def test_a_question_of_the_unsaid_is_refused():
    with pytest.raises(ValueError, match="no fact has said"):
        ForgettingTask().solve(torch.tensor([[ASK, 6, 30]]))
