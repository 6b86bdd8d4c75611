"""Token tasks: a dictionary answers every question, and streams are the same however they are cut."""

from collections import Counter

import pytest
import torch

from memory_titan.tasks.byte_tokenizer import ByteTokenizer
from memory_titan.tasks.examples import encode
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.hop_stream import HopTask
from memory_titan.tasks.mqar import TEST, TRAIN, MQARTask
from memory_titan.tasks.needle_stream import StreamTask
from memory_titan.tasks.recall import NO_LABEL
from memory_titan.tasks.ruler import HuggingFace
from memory_titan.tasks.stream import shifted, stream_of_batch, stream_of_examples
from memory_titan.tasks.token_tasks import from_settings, settings


def chances(seed=0):
    return torch.Generator().manual_seed(seed)


def whole(stream, size=10**9):
    return tuple(
        torch.cat(parts, 1) for parts in zip(*((p.ids, p.labels, p.answers) for p in stream.pieces(size)), strict=True)
    )


@pytest.mark.parametrize(("length", "pairs"), sorted({*TRAIN, *TEST}))
def test_mqar_is_answered_by_its_pairs(length, pairs):
    task = MQARTask(length, pairs, 1024)
    x, y = task.batch(4, chances())
    assert x.shape == y.shape == (4, length) and ((x >= 0) & (x < 1024)).all()
    for tokens, labels in zip(x.tolist(), y.tolist(), strict=True):
        known = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        assert len(known) == pairs and all(0 < k <= task.keys < v for k, v in known.items())
        asked = {tokens[i]: label for i, label in enumerate(labels) if label != NO_LABEL}
        assert asked == known, "each key once, with its value"
        assert all(label == NO_LABEL for label in labels[: 2 * pairs])


def test_mqar_gaps_follow_the_power_law():
    """The first question's place: p(gap) ~ gap^(a - 1), all but 1/gap at a = 0.01."""
    first = (MQARTask(64, 1, 64, noise="none").batch(4000, chances())[1] != NO_LABEL).float().argmax(1)
    gaps = (first - 2) // 2 + 1
    shares = torch.bincount(gaps, minlength=32)[1:].float() / 4000
    law = torch.arange(1, 32) ** (0.01 - 1)
    torch.testing.assert_close(shares, law / law.sum(), atol=0.03, rtol=0)
    even = (MQARTask(64, 1, 64, power=1.0).batch(4000, chances())[1] != NO_LABEL).float().argmax(1)
    assert 28 < even.float().mean() < 36


TASKS = [
    StreamTask(length=97, pairs=4, depths=(0, 0.5, 1), keys=8, values=8, filler=5),
    StreamTask(length=32, pairs=8, keys=8, values=3, filler=1),  # as full as it can be
    StreamTask(length=200, pairs=3, keys=4, values=4, filler=256, text="topics"),
    HopTask(length=80, pairs=6, hops=3, depths=(0.2, 0.9), symbols=16, filler=3),
    HopTask(length=24, pairs=6, hops=1, symbols=12, filler=3),
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_pieces_are_one_stream(task, size):
    stream = task.stream(3, chances())
    for one, other in zip(whole(stream, size), whole(stream), strict=True):
        assert torch.equal(one, other)
    assert max(piece.ids.shape[1] for piece in stream.pieces(size)) <= size
    x, y = task.batch(3, chances())
    assert torch.equal(x, whole(stream)[0]) and torch.equal(y, whole(stream)[1])
    assert not torch.equal(task.batch(3, chances(1))[0], x)


@pytest.mark.parametrize("task", TASKS)
def test_a_dictionary_answers_a_stream(task):
    stream = task.stream(5, chances())
    x, y, answers = whole(stream)
    hops, symbols = getattr(task, "hops", 1), getattr(task, "keys", None) or task.symbols
    questions = task.pairs // hops
    body = task.length - 2 * questions
    for row in range(5):
        tokens, follows, place = x[row].tolist(), {}, 0
        where = {}
        while place < body:
            if tokens[place] < symbols:
                assert tokens[place] not in follows, "a key twice"
                follows[tokens[place]] = tokens[place + 1]
                where[tokens[place]] = place
                place += 1
            place += 1
        assert len(follows) == task.pairs
        asked = [i for i in range(task.length) if y[row, i] != NO_LABEL]
        assert asked == list(range(body, task.length, 2)) and answers[row, asked].tolist() == list(range(questions))
        for number, i in enumerate(asked):
            token = first = tokens[i]
            for _ in range(hops):
                token = follows[token]
            assert token == y[row, i] == tokens[i + 1]
            at = stream.depths[row, number] * (body - 2 * task.pairs)
            if task.depths:
                assert any(abs(stream.depths[row, number] - depth) < 1e-6 for depth in task.depths)
                assert -1 <= where[first] - at <= 2 * task.pairs


def test_depths_take_turns():
    task = StreamTask(length=64, pairs=2, depths=(0, 0.25, 0.5, 0.75, 1))
    depths = torch.cat([task.stream(2, chances(), first).depths for first in (0, 2, 4)])[:5].flatten()
    assert Counter(depths.tolist()) == dict.fromkeys([0, 0.25, 0.5, 0.75, 1], 2)


def test_ten_million_tokens_take_no_room():
    """Numbers held by what is yielded: pieces and no more; the plan is as small as that of a short stream."""
    task = StreamTask(length=10_000_000, pairs=8, depths=(0.0, 1.0))
    stream, tokens, labelled, widest = task.stream(1, chances()), 0, 0, 0
    for piece in stream.pieces(1 << 14):
        assert piece.ids.untyped_storage().nbytes() <= 8 * (1 << 14)
        tokens, labelled = tokens + piece.ids.shape[1], labelled + int((piece.labels != NO_LABEL).sum())
        widest = max(widest, piece.ids.shape[1])
    assert (tokens, labelled, widest) == (10_000_000, 8, 1 << 14)
    held = [c.cell_contents for c in stream.pieces.__closure__ if isinstance(c.cell_contents, torch.Tensor)]
    assert held and sum(t.numel() for t in held) < 200


def test_text_filler_is_prose_in_two_splits():
    parts = {
        split: StreamTask(length=4000, pairs=1, keys=2, values=2, filler=256, text="topics", split=split)
        for split in ("train", "test")
    }
    texts = {}
    for split, task in parts.items():
        ids = task.batch(1, chances())[0][0] - 4
        texts[split] = bytes(i for i in ids.tolist() if i >= 0).decode("utf-8", "replace")
        assert " the " in texts[split]
    assert texts["train"][2000:2060] not in texts["test"]


def test_labels_for_models_that_shift():
    y = torch.tensor([[NO_LABEL, 3, NO_LABEL, 5]])
    assert shifted(y).tolist() == [[NO_LABEL, NO_LABEL, 3, NO_LABEL]]
    x, y = StreamTask(length=32, pairs=2).batch(2, chances())
    asked = shifted(y) != NO_LABEL
    assert torch.equal(shifted(y)[asked], x[asked]), "the value follows its question"


def test_a_batch_and_texts_as_streams():
    x, y = MQARTask(32, 4, 64).batch(3, chances())
    ids, labels, answers = whole(stream_of_batch(x, y), 5)
    assert torch.equal(ids, x) and torch.equal(labels, y) and answers.max() == 3
    tokenizer = ByteTokenizer()
    drawn = HashHopTask(context_len=200, hash_len=4).samples(2, ruler=HuggingFace(tokenizer, "bytes"))
    examples = [encode(sample, tokenizer) for sample in drawn]
    ids, labels, answers = whole(stream_of_examples(examples, [0.5, 0.7]), 33)
    for row, example in enumerate(examples):
        begin, end = example.answers[0]
        assert labels[row, begin - 1 : end - 1].tolist() == example.ids[begin:end].tolist()
        assert (labels[row] != NO_LABEL).sum() == end - begin == (answers[row] == 0).sum()


def test_settings_come_back():
    for task in (*TASKS, MQARTask(128, 8)):
        assert from_settings(settings(task)) == task
    assert from_settings(settings(TASKS[0]), length=64).length == 64
    for bad, message in [({"name": "nih"}, "mqar, niah"), ({"name": "niah", "hops": 2}, "has no hops")]:
        with pytest.raises(ValueError, match=message):
            from_settings(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MQARTask(64, 17), "at least 68"),
        (lambda: MQARTask(64, 16, 32), "vocabulary of at least 34"),
        (lambda: MQARTask(power=0), "power"),
        (lambda: MQARTask(noise="some"), "random, none"),
        (lambda: StreamTask(length=31, pairs=8), "at least 32"),
        (lambda: StreamTask(pairs=33), "as many keys"),
        (lambda: StreamTask(depths=(0.5, 1.5)), "from 0 to 1; got 1.5"),
        (lambda: StreamTask(text="docs"), "256"),
        (lambda: StreamTask(text="novel", filler=256).batch(1), "docs or topics"),
        (lambda: StreamTask(split="dev"), "train"),
        (lambda: HopTask(pairs=7), "multiple of hops=2"),
        (lambda: HopTask(symbols=11), "symbols=12"),
    ],
)
def test_refuses_tokens_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
