"""The recall task: its answers are right, they are in the row itself and nowhere else, and its places are random."""

import pytest
import torch

from memory_titan.tasks.recall import NO_LABEL, RecallTask, accuracy

TASKS = [
    RecallTask(),
    RecallTask(length=20, pairs=3, repeats=2),
    RecallTask(length=48, pairs=4, repeats=3, keys=16, values=16, filler=16),
    RecallTask(length=8, pairs=2, keys=2, values=1, filler=0),  # no room for filler
    RecallTask(length=11, pairs=1, keys=1, values=5, filler=1),
]
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda t: f"T{t.length}-n{t.pairs}-r{t.repeats}")


def batch(task, rows=64, seed=0):
    return task.batch(rows, torch.Generator().manual_seed(seed))


def oracle(task, x):
    """What a dictionary answers: the value that followed the key when it last came up."""
    answers = torch.full_like(x, NO_LABEL)
    for row, tokens in enumerate(x.tolist()):
        known, before = {}, None
        for place, token in enumerate(tokens):
            if token < task.keys:
                answers[row, place] = known.get(token, NO_LABEL)
            elif before is not None and before < task.keys:
                known[before] = token
            before = token
    return answers


@each_task
def test_a_dictionary_answers_everything(task):
    x, y = batch(task)
    assert accuracy(oracle(task, x), y) == 1


@each_task
def test_what_stands_in_a_sequence(task):
    x, y = batch(task)
    assert x.shape == y.shape == (64, task.length)
    assert ((y != NO_LABEL).sum(1) == task.pairs).all()
    for tokens, labels in zip(x.tolist(), y.tolist(), strict=True):
        places = [i for i, token in enumerate(tokens) if token < task.keys]
        pairs = [(tokens[i], tokens[i + 1]) for i in places]
        body = [pair for i, pair in zip(places, pairs, strict=True) if i < task.body]
        asked = [pair for i, pair in zip(places, pairs, strict=True) if i >= task.body]
        assert sorted(body) == sorted(asked * task.repeats)
        assert len(dict(asked)) == task.pairs, "a key twice"
        assert all(task.keys <= value < task.keys + task.values for _, value in pairs)
        assert [label for label in labels if label != NO_LABEL] == [value for _, value in asked]
        filler = [t for t in tokens if t >= task.keys + task.values]
        assert len(filler) == task.length - 2 * (task.writes + task.pairs)
        assert all(t < task.vocabulary for t in filler)


def test_guessing_scores_low():
    task = RecallTask(length=48, pairs=4, keys=16, values=16, filler=16)
    x, y = batch(task, 256)
    guesses = torch.randint(task.keys, task.keys + task.values, x.shape, generator=torch.Generator().manual_seed(1))
    assert accuracy(guesses, y) < 2 / task.values
    # Another row's pairs do not help either.
    assert accuracy(oracle(task, x.roll(1, 0)), y) < 2 / task.values


def test_the_generator_decides():
    task = TASKS[2]
    again = [torch.equal(a, b) for a, b in zip(batch(task), batch(task), strict=True)]
    other = [torch.equal(a, b) for a, b in zip(batch(task), batch(task, seed=1), strict=True)]
    assert all(again) and not any(other)


def test_pairs_stand_anywhere():
    """Every place of the body can hold a key, odd ones too; the questions come in any order."""
    task = RecallTask(length=24, pairs=2, keys=4, values=4, filler=4)
    x, _ = batch(task, 2000)
    share = (x[:, : task.body] < task.keys).float().mean(0)
    assert (share[:-1] > 0.05).all() and share[-1] == 0  # a value has to follow
    first = torch.tensor([next(t for t in row if t < task.keys) for row in x.tolist()])
    assert 0.4 < (first == x[:, task.body]).float().mean() < 0.6


def test_accuracy_by_model():
    y = torch.tensor([[3, NO_LABEL, 4], [NO_LABEL, 5, 6]])
    answers = torch.stack([torch.where(y < 0, 0, y), torch.zeros_like(y), torch.full_like(y, 5)])
    assert accuracy(answers, y.expand(3, 2, 3)).tolist() == [1, 0, 0.25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0}, "at least 1"),
        ({"pairs": 40, "length": 400}, "needs as many keys"),
        ({"pairs": 4, "repeats": 8, "length": 64}, "at least 72"),
        ({"filler": 0}, "filler must be at least 1"),
    ],
)
def test_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        RecallTask(**options)
