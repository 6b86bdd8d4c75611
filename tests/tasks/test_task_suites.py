"""RULER's and BABILong's tasks: solvable from the evidence alone, of their length, and spoiled samples are seen."""

import itertools
import re
from dataclasses import replace

import pytest

from memory_titan.tasks import babi, variables
from memory_titan.tasks.babi import BabiTask
from memory_titan.tasks.checking import UnsolvableError
from memory_titan.tasks.checks import check
from memory_titan.tasks.common_words import CommonWordsTask
from memory_titan.tasks.needle import NeedleTask
from memory_titan.tasks.ruler import BYTES, WORDS
from memory_titan.tasks.sample import Sample
from memory_titan.tasks.suites import SUITES, suite_task
from memory_titan.tasks.variables import VariablesTask
from mutations import ALWAYS_SEEN, Pairs, first, told_twice

NAMES = [(suite, name) for suite in SUITES for name in SUITES[suite]]
each_task = pytest.mark.parametrize(("suite", "name"), NAMES)


def draw(suite, name, number=4, length=400, ruler=WORDS, seed=0, **options):
    return list(suite_task(suite, name, length, **options).samples(number, ruler=ruler, seed=seed))


def without(sample, left_out):
    answer = sample.answers[0]
    kept = [i for i in range(len(answer.evidence)) if i != left_out]
    return first(
        sample,
        evidence=tuple(answer.evidence[i] for i in kept),
        distances=tuple(answer.distances[i] for i in kept),
    )


@each_task
@pytest.mark.parametrize("ruler", [WORDS, BYTES, Pairs()], ids=lambda r: r.name)
def test_right_and_of_its_length(suite, name, ruler):
    length = 400 * (1 if ruler is WORDS else 8)
    for sample in draw(suite, name, length=length, ruler=ruler):
        assert not check(sample, ruler)
        # Needles and words of a list are not cut: one line may be missing.
        assert 0.97 * length - 90 * (ruler is not WORDS) <= sample.length <= length
        assert Sample.from_json(sample.to_json()) == sample
        assert sample.text.endswith(sample.cut(sample.answers[-1].span))


@each_task
def test_a_spoiled_sample_is_seen(suite, name):
    for sample, spoil in itertools.product(draw(suite, name, 2), [*ALWAYS_SEEN, told_twice]):
        if spoil is told_twice and suite == "babilong":  # a place alone is no event; the filler must not speak of it
            assert any("speaks of" in problem for problem in check(spoil(sample)))
        assert check(spoil(sample), WORDS), spoil.__name__


@each_task
def test_seed_and_index_decide(suite, name):
    samples = draw(suite, name)
    assert list(suite_task(suite, name, 400).samples(2, start=2)) == samples[2:]
    assert not {s.text for s in samples} & {s.text for s in draw(suite, name, seed=1)}


@pytest.mark.parametrize(("suite", "name"), [(s, n) for s, n in NAMES if not n.startswith("niah_single")])
def test_all_of_the_evidence_is_needed(suite, name):
    sample = draw(suite, name, 1)[0]
    for left_out in range(len(sample.answers[0].evidence) * (len(sample.answers[0].evidence) > 1)):
        assert check(without(sample, left_out)), left_out


@each_task
@pytest.mark.parametrize("depth", [0, 0.5, 1])
def test_depth_is_where_the_evidence_stands(suite, name, depth):
    for sample in draw(suite, name, 2, length=3000, depth=depth, filler="topics"):
        assert not check(sample, WORDS)
        asked = sample.answers[0].question[0]
        for start, end in sample.answers[0].evidence:
            assert abs((start + end) / 2 / asked - depth) < 0.12
        assert sample.meta["filler"] in ("topics", "noise", "needles", "words")


def test_more_questions():
    for suite, name in NAMES:
        if name == "cwe":
            with pytest.raises(ValueError, match="cwe has one question"):
                suite_task(suite, name, 400, questions=2)
            continue
        for sample in draw(suite, name, 2, length=600, questions=3):
            assert not check(sample, WORDS) and len(sample.answers) == (4 if name == "niah_multiquery" else 3)
            assert len({sample.cut(answer.question) for answer in sample.answers}) == len(sample.answers)


def test_names_of_the_suites():
    with pytest.raises(ValueError, match=r"a task of ruler must be one of niah_single_1, .*; got 'qa1'"):
        suite_task("ruler", "qa1", 400)
    with pytest.raises(ValueError, match="suite must be one of ruler, babilong"):
        suite_task("longbench", "qa1", 400)
    assert suite_task("ruler", "cwe", 1024).frequency == 7 and suite_task("ruler", "cwe", 4096).frequency == 30


# What the world of bAbi tells.


def ask(events, question):
    name = question.removeprefix("Where is ")
    said = "It was" if "before" in question else f"{name[0].upper()}{name[1:]} is"
    return babi.solve([f"{event}." for event in events], f"{question}? {said} in the")


def test_the_world():
    took, went, back = "Ida took the ladle", "Ida went to the office", "Ida headed for the stable"
    assert ask([went], "Where is Ida") == "office"
    assert ask([took, went], "Where is the ladle") == ask([went, took], "Where is the ladle") == "office"
    assert ask([went, "Ida left the ladle"], "Where is the ladle") == "office"
    assert ask([took, went, back], "Where was the ladle before the stable") == "office"
    for events, question in [
        ([took], "Where is the ladle"),
        ([went, back], "Where is the ladle"),
        ([took, "Otto went to the office"], "Where is the ladle"),
        ([took, went, back], "Where was the ladle before the office"),
        ([took, went, back, went], "Where was the ladle before the office"),
        ([took, went], "Where is Ida"),
        ([went, "Ida sang"], "Where is Ida"),
    ]:
        with pytest.raises(UnsolvableError):
            ask(events, question)


@pytest.mark.parametrize("supports", [1, 2, 3])
def test_something_misleads(supports):
    """Whom or what is asked for was elsewhere before; and the last place told is the answer less than half the time."""
    last = 0
    samples = list(BabiTask(context_len=300, supports=supports).samples(200))
    for sample in samples:
        lines = sample.text[: sample.answers[0].question[0]].splitlines()
        events = [line for line in lines if re.fullmatch(babi._EVENT, line)]
        asked = re.fullmatch(babi._ASKED, sample.cut(sample.answers[0].question))
        right = sample.cut(sample.answers[0].span).strip()
        _, trail = babi._after(events)
        if supports == 1:
            moves = [line for line in events if line.startswith(asked["who"]) and re.search(" (to|for) the", line)]
            assert moves[-1].endswith(f"{right}.") and not moves[-2].endswith(f"{right}.")
        elif supports == 2:
            assert trail[asked["what"]][-2] != trail[asked["what"]][-1] == right
        else:
            assert trail[asked["which"]].index(asked["to"]) >= 2
        last += [e for e in events if e.rstrip(".").split()[-1] in babi.PLACES][-1].endswith(f"{right}.")
    assert last < 0.5 * len(samples)


def test_the_world_changes_under_a_sample():
    """An event more, after the evidence, that moves whom is asked for."""
    sample = draw("babilong", "qa1", 1)[0]
    answer = sample.answers[0]
    who, right = sample.cut(answer.evidence[0]).split()[0], sample.cut(answer.span).strip()
    told = f"{who} went to the {next(place for place in babi.PLACES if place != right)}.\n"
    at, moved = answer.question[0] - 1, len(told)
    changed = first(
        replace(sample, text=sample.text[:at] + told + sample.text[at:]),
        question=(answer.question[0] + moved, answer.question[1] + moved),
        span=(answer.span[0] + moved, answer.span[1] + moved),
    )
    assert any("the whole text says" in problem for problem in check(changed))


def test_variables_are_run_in_order():
    question = "Which variables hold the value 12, in the order they were assigned? The variables are"
    assert variables.solve(["VAR A = 12", "VAR C = VAR A", "VAR B = VAR C"], question) == "A, C, B"
    for lines in (["VAR C = VAR A", "VAR A = 12"], ["VAR A = 13"], ["VAR A = 12", "VAR A = 12"], ["A = 12"]):
        with pytest.raises(UnsolvableError):
            variables.solve(lines, question)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (NeedleTask, {"keys": "words"}, "keys must be one of names, uuids"),
        (NeedleTask, {"codes_each": 0}, "at least 1"),
        (NeedleTask, {"filler": "needles", "digits": 3}, "tokens of filler needles"),
        (NeedleTask, {"codes_each": 5, "digits": 1, "needles": 2}, "for 1 needles; got 2"),
        (VariablesTask, {"hops": 0}, "at least 1"),
        (VariablesTask, {"questions": 2}, "need as many chains"),
        (VariablesTask, {"depth": 2}, "from 0 to 1"),
        (CommonWordsTask, {"frequency": 3}, "frequency must be above rare=3"),
        (CommonWordsTask, {"context_len": 10**6}, "raise rare"),
        (BabiTask, {"supports": 4}, "supports must be 1, 2 or 3"),
        (BabiTask, {"questions": 5}, "questions must be from 1 to 4"),
        (BabiTask, {"places": 2}, "places must be from 3"),
        (BabiTask, {"events": 10}, "events must be at least 16"),
        (BabiTask, {"filler": "needles"}, "filler must be one of"),
    ],
)
def test_a_suite_refuses_what_cannot_be(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
