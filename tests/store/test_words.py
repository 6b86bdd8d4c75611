"""Words found by BM25: the textbook's scores, whatever was added and removed, and beside a writer too."""

from __future__ import annotations

import math
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_titan.store import terms as terms_module
from memory_titan.store import words as module
from memory_titan.store.terms import STOP_WORDS, pack, term_ids, tokenize, unpack
from memory_titan.store.words import WordIndex


def textbook(held: dict[int, list[int]], query: list[int], weights=None, k1=1.2, b=0.75) -> dict[int, float]:
    mean = sum(map(len, held.values())) / max(len(held), 1)
    scores = dict.fromkeys(held, 0.0)
    for term, weight in zip(query, weights or [1.0] * len(query), strict=True):
        df = sum(term in item for item in held.values())
        idf = math.log(1 + (len(held) - df + 0.5) / (df + 0.5))
        for seq, item in held.items():
            if tf := Counter(item)[term]:
                scores[seq] += weight * idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(item) / mean))
    return scores


def agrees(index: WordIndex, held: dict[int, list[int]], query: list[int], k: int, allowed=None, weights=None) -> None:
    seqs, scores = index.search(query, k, None if allowed is None else np.array(sorted(allowed), np.int64), weights)
    assert (seqs.dtype, scores.dtype) == (np.int64, np.float64)
    expected = textbook(held, query, weights, index.k1, index.b)
    matching = {seq: score for seq, score in expected.items() if score > 0 and (allowed is None or seq in allowed)}
    assert len(seqs) == min(k, len(matching))
    assert scores.tolist() == pytest.approx(sorted(matching.values(), reverse=True)[:k], rel=1e-5)
    assert scores.tolist() == pytest.approx([matching[seq] for seq in seqs.tolist()], rel=1e-5)
    assert list(zip(-scores, -seqs, strict=True)) == sorted(zip(-scores, -seqs, strict=True))
    asked = [*held, 10**6]
    assert index.scores(query, asked, weights).tolist() == pytest.approx([*expected.values(), 0.0], rel=1e-5)
    assert index.df(query).tolist() == [sum(term in item for item in held.values()) for term in query]


item = st.lists(st.integers(0, 9), max_size=8)
step = st.one_of(
    st.tuples(st.just("add"), st.lists(item, min_size=1, max_size=12)),
    st.tuples(st.just("remove"), st.lists(st.integers(0, 60), max_size=8)),
    st.tuples(st.just("cut"), st.dictionaries(st.integers(0, 60), st.integers(0, 7), max_size=8)),
    st.tuples(
        st.just("search"),
        st.lists(st.tuples(st.integers(0, 11), st.floats(0.1, 3)), max_size=5),
        st.integers(1, 30),
        st.none() | st.sets(st.integers(0, 80)),
        st.booleans(),
    ),
)


@given(st.lists(step, max_size=25), st.integers(1, 3), st.sampled_from([0, 20, 1 << 16]))
@settings(max_examples=150)
def test_any_history(steps, gap, tail):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TAIL", tail)
        index, held, last = WordIndex(), {}, 0
        for kind, *rest in steps:
            if kind == "add":
                seqs = [last + gap * (1 + at) for at in range(len(rest[0]))]
                index.add(seqs, [np.array(tokens, np.uint32) for tokens in rest[0]])
                held |= dict(zip(seqs, rest[0], strict=True))
                last = seqs[-1]
            elif kind == "remove":
                index.remove(rest[0])
                held = {seq: tokens for seq, tokens in held.items() if seq not in rest[0]}
            elif kind == "cut":
                left = {seq: held.get(seq, [])[at:] for seq, at in rest[0].items()}
                index.reword({seq: np.array(tokens, np.uint32) for seq, tokens in left.items()})
                held |= {seq: tokens for seq, tokens in left.items() if seq in held}
                same = index.same_words([np.array(tokens, np.uint32) for tokens in held.values()])
                sets = [set(tokens) for tokens in held.values()]
                assert [len(found) for found in same] == [sets.count(each) for each in sets]
            else:
                query, k, allowed, weighted = rest
                agrees(
                    index, held, [term for term, _ in query], k, allowed, [w for _, w in query] if weighted else None
                )
            assert len(index) == len(held)


@pytest.mark.parametrize(("k1", "b"), [(0.0, 0.75), (2.0, 0.0), (0.9, 1.0)])
def test_many_items(k1, b):
    random = np.random.default_rng(0)
    items = [random.zipf(1.3, size).astype(np.uint32) for size in random.integers(0, 30, 4000)]
    index = WordIndex(k1, b)
    index.add(np.arange(3000), items[:3000])
    for seq in range(3000, 4000):
        index.add([seq], items[seq : seq + 1])
    held = {seq: tokens.tolist() for seq, tokens in enumerate(items)}
    agrees(index, held, [1, 2, 7, 40, 2**32 - 1], 25)
    index.remove(np.arange(0, 4000, 3))
    agrees(index, {seq: tokens for seq, tokens in held.items() if seq % 3}, [1, 2, 7, 40], 25)


def test_the_rows_of_a_term_ascend_through_merges(monkeypatch):
    monkeypatch.setattr(module, "_TAIL", 30)
    index = WordIndex()
    for seq in range(200):
        index.add([seq], [np.array([seq % 3, 50 - seq % 7, 1000 - seq], np.uint32)])
    assert index._now.matching(1)[0].tolist() == list(range(1, 200, 3))
    assert index._now.matching(50)[0].tolist() == list(range(0, 200, 7))


def test_equal_items_come_newest_first():
    index = WordIndex()
    index.add(np.arange(5000), [np.array([1, 2, 2], np.uint32)] * 5000)
    index.add([5000], [np.array([1], np.uint32)])
    assert index.search([2], 4)[0].tolist() == [4999, 4998, 4997, 4996]
    index.add([5001], [np.array([1, 2, 2], np.uint32)])  # in the tail
    seqs, scores = index.search([1, 2], 4)
    assert seqs.tolist() == [5001, 4999, 4998, 4997]
    assert len(set(scores.tolist())) == 1


def test_terms_count_by_their_weight():
    index = WordIndex()
    index.add([1, 2], [np.array([5], np.uint32), np.array([6], np.uint32)])
    assert index.search([5, 6], 2, weights=[1, 2])[0].tolist() == [2, 1]
    assert index.search([5, 6], 2, weights=[1, 0])[0].tolist() == [1]
    assert index.search([5, 5], 1)[1] == pytest.approx(2 * index.search([5], 1)[1])
    assert index.idf([5, 9]).tolist() == pytest.approx([math.log(1 + 1.5 / 1.5), math.log(1 + 2.5 / 0.5)])


def test_removed_terms_leave_memory():
    index = WordIndex()
    index.add(np.arange(8), [np.array([100 + seq], np.uint32) for seq in range(8)])
    index.remove([2])
    assert index.df([102]).tolist() == [0]
    index.remove([3])
    now = index._now
    kept = np.concatenate([now.bulk.terms, now.tail.term])
    assert sorted(kept.tolist()) == [100, 101, 104, 105, 106, 107]


def test_nothing_in_it():
    index = WordIndex()
    assert [len(part) for part in index.search([1], 5)] == [0, 0]
    assert (index.scores([1], [4]).tolist(), index.df([1]).tolist(), len(index)) == ([0.0], [0], 0)
    index.add([], [])
    index.remove([3])
    index.add([7], [np.empty(0, np.uint32)])  # a text of no words
    assert len(index) == 1
    assert [len(part) for part in index.search([1], 5)] == [0, 0]
    assert [len(part) for part in index.search([], 5, np.array([7]))] == [0, 0]
    index.remove([7])
    assert len(index) == 0
    index.add([8], [np.array([1], np.uint32)])
    assert index.search([1], 5)[0].tolist() == [8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.add([5], [np.array([1], np.uint32)]), "increase strictly"),
        (lambda index: index.add([7, 8], [np.array([1], np.uint32)]), "as many seqs"),
        (lambda index: index.search([1, 2], 3, weights=[1]), "one weight"),
        (lambda index: index.search([1, 2], 3, weights=[1, -1]), "one weight"),
        (lambda _: WordIndex(k1=-1), "k1 must"),
        (lambda _: WordIndex(b=1.5), "b within"),
        (lambda _: unpack(b"abc"), "multiple of element size"),
    ],
)
def test_what_cannot_be(call, message):
    index = WordIndex()
    index.add([5], [np.array([1], np.uint32)])
    with pytest.raises(ValueError, match=message):
        call(index)
    assert len(index) == 1


def test_readers_beside_a_writer(monkeypatch):
    monkeypatch.setattr(module, "_TAIL", 500)
    random = np.random.default_rng(0)
    items = [random.integers(0, 40, 6).astype(np.uint32) for _ in range(6000)]
    index, gone, failures, done = WordIndex(), set(), [], threading.Event()
    index.add(np.arange(1000), items[:1000])

    def read(term: int) -> None:
        try:
            while not done.is_set():
                before = set(gone)
                seqs, scores = index.search([term, term + 1], 10)
                assert len(seqs) == 10
                assert not before & set(seqs.tolist())
                assert all({term, term + 1} & set(items[seq].tolist()) for seq in seqs)
                assert (np.diff(scores) <= 0).all()
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read, args=(term,)) for term in range(4)]
    for reader in readers:
        reader.start()
    for begin in range(1000, 6000, 20):
        index.add(np.arange(begin, begin + 20), items[begin : begin + 20])
        chosen = random.choice(begin + 20, 10, replace=False)
        index.remove(chosen)
        gone.update(chosen.tolist())
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    agrees(index, {seq: items[seq].tolist() for seq in range(6000) if seq not in gone}, [3, 8, 9], 20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The runner's dogs were RUNNING", ["runner", "dog", "run"]),
        ("It’s John's, they'll say; we've 2 dogs", ["john", "say", "2", "dog"]),
        ("don't, won’t, isn't", ["dont", "wont", "isnt"]),  # function words, but there is nothing else
        ("I don't know", ["know"]),
        ("O'Neill met l'amie", ["o", "neill", "met", "l", "ami"]),
        ("Café NAÏVE Straße ﬁne Ｆｕｌｌ", ["cafe", "naiv", "strass", "fine", "full"]),
        ("snake_case v3.14 2024-05-01", ["snake", "case", "v3", "14", "2024", "05", "01"]),
        ("to be", ["to", "be"]),
        ("私は学生です。東", ["私は", "は学", "学生", "生で", "です", "東"]),
        ("서울 2024", ["서울", "2024"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # with vowel signs, which are no letters
        ("ครับ ok", ["คร", "รั", "ับ", "ok"]),
        ("Й и ё", ["и", "и", "е"]),
        ("", []),
        (" ... _ -- ", []),
    ],
)
def test_tokenize(text, expected):
    assert tokenize(text) == expected


@given(st.text(max_size=40))
def test_any_text(text):
    words = tokenize(text)
    assert len(term_ids(text)) == len(words)
    assert tokenize(text.replace("'", "’")) == words
    assert all(words)
    packed = pack(term_ids(text))
    assert len(packed) == 4 * len(words)
    assert unpack(packed).tolist() == term_ids(text).tolist()


def test_term_ids_stay_what_they_are():
    # stored ones have to be made anew when these change: then _RULES is raised
    assert term_ids("Alice bought 3 apples, apples!").tolist() == [
        *term_ids("alice").tolist(),
        *term_ids("buying bought")[1:].tolist(),
        *term_ids("3 apple apple").tolist(),
    ]
    assert pack(term_ids("Alice bought 3 apples")).hex() == "329d9783ef36a9049b8ed26daf73149d"
    assert terms_module.rules().startswith("1-")
    assert all(word.isalpha() for word in STOP_WORDS)
