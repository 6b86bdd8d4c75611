"""The lines of a data file: what is no sample is refused, and the message says where and why. The filler, too."""

import json
import re
from itertools import islice
from random import Random

import pytest

from memory_titan.tasks import filler, words
from memory_titan.tasks.checks import check
from memory_titan.tasks.needle import NeedleTask
from memory_titan.tasks.ruler import BYTES, WORDS, distance
from memory_titan.tasks.sample import Sample, SampleError, read_samples

GOOD = json.loads(next(NeedleTask(context_len=80, needles=2, questions=2).samples(1)).to_json())
FIRST = GOOD["answers"][0]


def answer(**changes):
    return {"answers": [{**FIRST, **changes}, GOOD["answers"][1]]}


BAD = [
    ({"text": 3}, "text must be a string; got a whole number"),
    ({"text": " "}, "text is empty"),
    ({"length": 2.5}, "length must be a whole number; got float"),
    ({"length": True}, "length must be a whole number; got true"),
    ({"length": 0}, "length must be at least 1"),
    ({"seed": -1}, "seed must be a whole number, at least 0"),
    ({"index": None}, "index must be a whole number; got null"),
    ({"meta": []}, "meta must be an object; got a list"),
    ({"answers": []}, "answers is empty"),
    ({"answers": [3]}, r"answers\[0\] must be an object"),
    (answer(evidence=[]), r"answers\[0\].evidence is empty"),
    (answer(evidence=[[5, 5]]), r"answers\[0\].evidence\[0\] \[5, 5\] is no span of a text"),
    (answer(evidence=[[0, 10**9]]), "is no span of a text of"),
    (answer(evidence=[[-1, 4]]), "is no span"),
    (answer(evidence=[[1.0, 4]]), r"must be \[start, end\]"),
    (answer(evidence=[[1, 4, 5]]), r"must be \[start, end\]"),
    (answer(evidence=[FIRST["question"]]), "reaches into its question"),
    (answer(distances=[]), "1 pieces of evidence and 0 distances"),
    (answer(distances=["far"]), "distances must be a whole number"),
    (answer(span=[FIRST["span"][0] + 1, FIRST["span"][1]]), "must be the same"),
    ({"answers": [FIRST, FIRST]}, r"answers\[1\].question begins at \d+, inside answers\[0\]"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_no_sample(changes, message):
    with pytest.raises(SampleError, match=f"^notes.jsonl, line 7: .*{message}"):
        Sample.from_json(json.dumps({**GOOD, **changes}), 7, "notes.jsonl")


@pytest.mark.parametrize("name", GOOD)
def test_every_field_is_needed(name):
    fields = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(SampleError, match=f"line 1: {name} is missing"):
        Sample.from_json(json.dumps(fields))


@pytest.mark.parametrize("name", FIRST)
def test_every_field_of_an_answer_is_needed(name):
    cut = {key: value for key, value in FIRST.items() if key != name}
    with pytest.raises(SampleError, match=rf"answers\[0\].{name} is missing"):
        Sample.from_json(json.dumps({**GOOD, "answers": [cut]}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the line is empty"),
        ("{", "not JSON"),
        ("[1]", "a sample is a JSON object; got a list"),
        ("NaN", "NaN is no number"),
        ('{"length": NaN}', "NaN is no number"),
        (json.dumps({**GOOD, "meta": {"a": [1e999]}}).replace("Infinity", "1e999"), "meta.a.0 holds inf"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_no_line(line, message):
    with pytest.raises(SampleError, match=f"line 1: .*{message}"):
        Sample.from_json(line)


def test_a_file_is_read_line_by_line(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + b'{"text": "caf\xe9"}\n')
    lines = read_samples(path)
    sample = next(lines)
    assert sample.answers[0].distance == FIRST["distances"][0] == sample.answers[0].nearest
    with pytest.raises(SampleError, match=r"some.jsonl, line 2: not UTF-8"):
        next(lines)
    path.write_bytes(b"")
    with pytest.raises(SampleError, match="is empty"):
        next(read_samples(path))
    assert check(Sample(**{**vars(sample), "task": "riddle"})) == [
        "task must be one of hash-hop, needle, dependency, code-retrieval, variables, common-words, babi; got 'riddle'"
    ]


def test_rulers():
    assert list(WORDS.starts(" ab  c\n")) == [1, 5]
    assert list(BYTES.starts("añb")) == [0, 1, 1, 2] and list(BYTES.starts("abc")) == [0, 1, 2]
    assert distance([0, 2, 5, 9], 2, 9) == 2


def test_filler_cannot_answer():
    """No digit, no underscore, nothing that reads as a fact; and it hardly repeats itself."""
    lines = list(islice(filler.prose(Random(0)), 3000))
    text = "".join(lines)
    assert not re.search(r"[\d_:>]|secret code|depends on|maintained|Module", text)
    assert not set(re.findall(r"\w+", text)) & {*words.TEAMS, *words.FIRST_NAMES, *words.LAST_NAMES}
    assert len(set(lines)) > 2980
    assert all(line.endswith(".\n") and line.count("\n") == 1 for line in lines)
    topics = filler.python_topics().paragraphs
    assert len(topics) > 500 and not any(re.search(r"\d", line) for line in topics)


def test_names_are_different():
    for names in (words.ADJECTIVES, words.THINGS, words.TEAMS, words.FIRST_NAMES, words.LAST_NAMES):
        assert len(set(names)) == len(names) > 60 and all(name.isalpha() for name in names)


def test_passages_of_a_file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("One  two\nthree.\n\n" + "Long and dull. " * 100 + "\n\n" + "x" * 700)
    passages = filler.read_passages(path)
    assert passages.paragraphs[0] == "One two three." and max(map(len, passages.paragraphs)) <= 600
    assert "dull" not in "".join(islice(passages.lines(Random(0), frozenset({"dull"})), 20))
    with pytest.raises(ValueError, match="every paragraph"):
        next(filler.Passages("x", ("a b",)).lines(Random(0), frozenset({"b"})))
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no paragraph"):
        filler.read_passages(path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="not UTF-8"):
        filler.read_passages(path)
