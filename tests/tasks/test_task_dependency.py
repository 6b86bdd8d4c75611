"""Dependency tracing: answers follow from all facts and from no single one; spoiled samples are seen."""

import itertools
import re
from collections import Counter

import pytest

from memory_titan.tasks import dependency
from memory_titan.tasks.dependency import DependencyTask
from memory_titan.tasks.ruler import BYTES, WORDS
from memory_titan.tasks.sample import Sample
from mutations import ALWAYS_SEEN, Pairs, first, told_twice, with_text

TASKS = [
    DependencyTask(context_len=400, form="reaches"),
    DependencyTask(context_len=700, form="reaches", hops=4, questions=3),
    DependencyTask(context_len=400, form="responsible", hops=3, chains=5, questions=2),
    DependencyTask(context_len=300, chains=2, questions=2, filler="topics"),
    DependencyTask(context_len=300, form="chain", chains=5, questions=3),
    DependencyTask(context_len=300, form="chain", hops=3, chains=3, questions=3),
]
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.form}-h{t.hops}-c{t.chains}-q{t.questions}")


@each_task
@pytest.mark.parametrize("ruler", [WORDS, BYTES, Pairs()], ids=lambda r: r.name)
def test_right_and_of_its_length(task, ruler):
    task = DependencyTask(**{**vars(task), "context_len": task.context_len * (1 if ruler is WORDS else 8)})
    for sample in task.samples(10, ruler=ruler):
        assert not dependency.check(sample, ruler)
        assert 0.97 * task.context_len <= sample.length <= task.context_len
        assert Sample.from_json(sample.to_json()) == sample
        yes = [a for a in sample.answers if sample.cut(a.span) != " no"]
        assert all(len(a.evidence) == task.hops for a in yes)


@each_task
def test_a_spoiled_sample_is_seen(task):
    for sample, spoil in itertools.product(task.samples(6), ALWAYS_SEEN):
        assert dependency.check(spoil(sample), WORDS), spoil.__name__
    if task.form in ("responsible", "chain"):
        assert all(dependency.check(told_twice(sample)) for sample in task.samples(6))


def test_plain_names_stand_nowhere_in_the_prose():
    """Nor are they made of several words: then the second hop would have to be told from a part of a name."""
    task = DependencyTask(context_len=3000, form="chain")
    for sample in task.samples(20):
        names = re.findall(r"odule (\w+) depends on (\w+)", sample.text)
        prose = re.sub(r".*odule \w+ depends on .*", "", sample.text)
        assert not {name for pair in names for name in pair} & set(re.findall(r"\w+", prose.lower()))


def test_a_broken_chain_is_seen():
    """For every piece of evidence: left out of the list, or another module's name in it."""
    for task in TASKS[:3]:
        for sample in task.samples(6):
            answer = sample.answers[0]
            for i, (start, end) in enumerate(answer.evidence):
                fewer = first(
                    sample,
                    evidence=answer.evidence[:i] + answer.evidence[i + 1 :],
                    distances=answer.distances[:i] + answer.distances[i + 1 :],
                )
                assert dependency.check(fewer)
                name = re.search(r"\w+(?=\.$)", sample.text[start:end])
                renamed = with_text(sample, (start + name.start(), start + name.end()), "q" * len(name[0]))
                # What a "no" ends at may have any name.
                assert dependency.check(renamed) or sample.answer == " no"


def asked(sample):
    """Start, target and answer of the first question; who depends on whom in the whole text."""
    question = sample.cut(sample.answers[0].question)
    start, end = re.search(r"module (\w+) depend.* module (\w+)\?", question).groups()
    return start, end, sample.answer.strip(), dict(re.findall(r"Module (\w+) depends on module (\w+)\.", sample.text))


def test_halves_are_exact_and_no_single_fact_tells():
    task = DependencyTask(context_len=200, hops=2, form="reaches", filler="none")
    samples = list(task.samples(400))
    assert Counter(sample.answer for sample in samples) == {" yes": 200, " no": 200}
    ways = Counter()
    for sample in samples:
        start, end, answer, on = asked(sample)
        # The first fact and the last are there whatever the answer.
        assert start in on and end in on.values()
        assert len(on) == task.chains * task.hops
        way = [start]
        while way[-1] in on:
            way.append(on[way[-1]])
        ways[answer, len(way) - 1] += 1
        assert sample.meta["single_fact"] == 0.5
    # A no is one of two kinds: the way goes on to another end, or breaks off.
    assert min(ways["no", 1], ways["no", 2]) > 50 and ways["yes", 2] == 200


def test_every_place_and_several_answers():
    task = DependencyTask(context_len=400, hops=3, form="reaches", chains=6, questions=4)
    said = Counter()
    for sample in task.samples(200):
        said.update((i, sample.cut(a.span)) for i, a in enumerate(sample.answers))
        targets = re.findall(r"on module (\w+)\?", sample.text)
        assert len(targets) == 4
    assert all(70 <= said[i, " yes"] <= 130 for i in range(4))
    order = [
        a.evidence == tuple(sorted(a.evidence)) for s in task.samples(200) for a in s.answers if len(a.evidence) == 3
    ]
    assert 0.08 < sum(order) / len(order) < 0.3  # of three facts, one order in six is the reasoning's


def test_teams_are_guessed_once_in_chains():
    task = DependencyTask(context_len=200, form="responsible", chains=5)
    for sample in task.samples(20):
        teams = re.findall(r"by team (\w+)\.", sample.text)
        assert len(set(teams)) == 5 and sample.answer.strip() in teams and sample.meta["single_fact"] == 0.2


def test_seed_and_index_decide():
    task = TASKS[3]
    samples = list(task.samples(6))
    assert list(task.samples(2, start=4)) == samples[4:]
    assert not {s.text for s in samples} & {s.text for s in task.samples(6, seed=1)}


def test_depth():
    for sample in DependencyTask(context_len=3000, depth=0.3).samples(4):
        asked_at = sample.answers[0].question[0]
        assert all(abs(start / asked_at - 0.3) < 0.05 for start, _ in sample.answers[0].evidence)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hops": 1}, "hops must be from 2 to 4"),
        ({"hops": 5}, "hops must be from 2 to 4"),
        ({"chains": 1}, "chains must be from 2"),
        ({"questions": 5}, "number of chains, 4"),
        ({"form": "maybe"}, "form must be one of"),
        ({"depth": -1}, "from 0 to 1"),
    ],
)
def test_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        DependencyTask(**options)


def test_a_context_too_short_says_how_long():
    with pytest.raises(ValueError, match=r"at least \d+ words for 4 chains of 4 facts"):
        DependencyTask(context_len=30, hops=4).samples(1)
