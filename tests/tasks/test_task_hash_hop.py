"""Hash hop and the needle: solvable from the evidence alone, of the right length, and spoiled samples are seen."""

import itertools
import re

import pytest

from memory_titan.tasks import hash_hop, needle
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.needle import NeedleTask
from memory_titan.tasks.ruler import BYTES, WORDS
from memory_titan.tasks.sample import Sample
from mutations import ALWAYS_SEEN, Pairs, first, told_twice

TASKS = {
    "one": (HashHopTask(context_len=300), hash_hop.check),
    "eight": (HashHopTask(context_len=600, needles=8, questions=8), hash_hop.check),
    "chain": (HashHopTask(context_len=500, needles=3, hops=3, questions=2), hash_hop.check),
    "skip": (HashHopTask(context_len=500, needles=3, hops=4, skip=True, questions=2), hash_hop.check),
    "pairs": (HashHopTask(context_len=600, hops=2, filler="pairs", hash_len=8), hash_hop.check),
    "topics": (HashHopTask(context_len=600, needles=2, filler="topics", alphabet="xyz01"), hash_hop.check),
    "needle": (NeedleTask(context_len=300), needle.check),
    "needles": (NeedleTask(context_len=700, needles=12, questions=3, filler="topics"), needle.check),
}
each_task = pytest.mark.parametrize("name", TASKS)


def draw(name, number=6, ruler=WORDS, seed=0):
    return list(TASKS[name][0].samples(number, ruler=ruler, seed=seed))


@each_task
@pytest.mark.parametrize("ruler", [WORDS, BYTES, Pairs()], ids=lambda r: r.name)
def test_right_and_of_its_length(name, ruler):
    task, check = TASKS[name]
    task = type(task)(**{**vars(task), "context_len": task.context_len * (1 if ruler is WORDS else 6)})
    for sample in task.samples(6, ruler=ruler):
        assert not check(sample, ruler)
        # A pair of hashes is not cut: one line may be missing.
        slack = 0.03 * task.context_len + (25 if name == "pairs" else 0)
        assert task.context_len - slack <= sample.length <= task.context_len
        assert sample.prompt + sample.answer == sample.text[: sample.answers[0].span[1]]
        assert len(sample.answers) == task.questions and sample.text.endswith(sample.cut(sample.answers[-1].span))
        assert Sample.from_json(sample.to_json()) == sample


@each_task
def test_a_spoiled_sample_is_seen(name):
    for sample, spoil in itertools.product(draw(name, 3), [*ALWAYS_SEEN, told_twice]):
        assert TASKS[name][1](spoil(sample), WORDS), spoil.__name__


def test_a_broken_chain_is_seen():
    sample = draw("chain", 1)[0]
    evidence, distances = sample.answers[0].evidence, sample.answers[0].distances
    for left_out in range(3):
        cut = first(
            sample,
            evidence=evidence[:left_out] + evidence[left_out + 1 :],
            distances=distances[:left_out] + distances[left_out + 1 :],
        )
        assert any("the chain breaks" in problem for problem in hash_hop.check(cut))
    other = sample.answers[1].evidence[1]
    replaced = first(sample, evidence=(evidence[0], other, evidence[2]))
    assert any("the chain breaks" in problem for problem in hash_hop.check(replaced))


def test_a_second_pair_for_a_hash_is_seen():
    sample = draw("pairs", 1)[0]
    start, end = sample.answers[0].evidence[0]
    told = next(m for m in re.finditer(r"^\w+(?= -> )", sample.text, re.M) if not start <= m.start() < end)
    text = sample.text[: told.start()] + sample.text[start : start + 8] + sample.text[told.end() :]
    spoiled = Sample(**{**vars(sample), "text": text})
    assert any("must be one" in problem for problem in hash_hop.check(spoiled))


@each_task
def test_seed_and_index_decide(name):
    task, samples = TASKS[name][0], draw(name)
    assert list(task.samples(3)) == samples[:3]
    assert list(task.samples(2, start=3)) == samples[3:5]
    other = draw(name, seed=1)
    assert not {s.text for s in samples} & {s.text for s in other}
    assert not {s.answer for s in samples} & {s.answer for s in other}


@pytest.mark.parametrize("depth", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("name", ["one", "skip", "pairs", "needle"])
def test_depth_is_where_the_evidence_stands(name, depth):
    task = TASKS[name][0]
    for sample in type(task)(**{**vars(task), "context_len": 2000, "depth": depth}).samples(4):
        asked = sample.answers[0].question[0]
        for start, end in sample.answers[0].evidence:
            assert abs((start + end) / 2 / asked - depth) < 0.05
        assert sample.answers[0].distance >= sample.answers[0].nearest >= 0


def test_evidence_stands_anywhere():
    depths = [sample.meta["depth"] for sample in HashHopTask(context_len=400).samples(300)]
    counts = [sum(low <= depth < low + 0.25 for depth in depths) for low in (0, 0.25, 0.5, 0.75)]
    assert min(counts) > 45 and max(counts) < 105, counts


def test_tokens_of_a_language_model(tmp_path):
    """Prompt and answer fall apart into the tokens of the whole, and the length is theirs."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    from memory_titan.tasks.ruler import HuggingFace

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [sample.text for sample in draw("eight", 20)]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    ruler = HuggingFace(tokenizer, "small")
    for sample in HashHopTask(context_len=1500, needles=4, questions=2).samples(4, ruler=ruler):
        assert not hash_hop.check(sample, ruler)
        whole = tokenizer(sample.text).input_ids
        assert 1450 <= len(whole) == sample.length <= 1500
        last = sample.answers[-1].span[0]
        assert tokenizer(sample.text[:last]).input_ids + tokenizer(sample.text[last:]).input_ids == whole
    with pytest.raises(ValueError, match="a fast one"):
        HuggingFace(lambda text, **options: {"input_ids": [1]}, "slow")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (HashHopTask, {"needles": 2, "questions": 3}, "need as many needles"),
        (HashHopTask, {"hops": 0}, "at least 1"),
        (HashHopTask, {"hash_len": 2, "filler": "pairs"}, "lengthen hash_len"),
        (HashHopTask, {"alphabet": "abc"}, "must hold a digit"),
        (HashHopTask, {"alphabet": "aa1"}, "different ASCII"),
        (HashHopTask, {"filler": "nonsense"}, "filler must be one of"),
        (HashHopTask, {"depth": 1.5}, "from 0 to 1"),
        (NeedleTask, {"needles": 10, "digits": 1}, "for 9 needles"),
        (NeedleTask, {"needles": 2, "questions": 3}, "need as many needles"),
    ],
)
def test_refuses_what_cannot_be(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_a_context_too_short_says_how_long():
    with pytest.raises(ValueError, match=r"at least (\d+) words") as caught:
        HashHopTask(context_len=20, needles=8).samples(1)
    needed = int(re.search(r"at least (\d+)", str(caught.value))[1])
    assert not hash_hop.check(next(HashHopTask(context_len=needed, needles=8).samples(1)), WORDS)


def test_no_filler():
    sample = next(HashHopTask(needles=3, filler="none").samples(1))
    assert not hash_hop.check(sample, WORDS) and sample.length == 3 * 3 + 6
