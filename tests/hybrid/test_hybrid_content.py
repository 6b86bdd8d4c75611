"""Fast weights give back to the letter what was written, and a file of them stays readable for ever."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_titan.hybrid.content import Content
from memory_titan.memory.neural.naive import naive_memory
from memory_titan.memory.neural.rule import Gates, Rule

VOCABULARY, HIDDEN = 500, 8

# What the hashes gave when files were first written.
KEY_3_0 = [64, 99, 154, 157, 163, 226, 280, 314, 324, 374, 399, 415, 437, 444, 462, 483]
KEY_3_1 = [40, 79, 113, 120, 124, 130, 134, 140, 178, 187, 198, 276, 277, 349, 390, 465]
KEY_FAR = [1407, 2022, 3264, 3585, 4566, 6077, 7534, 7556, 9533, 10851, 11225, 11610, 12315, 13525, 14449, 16351]
CODE_0 = "++-++-++++++--+++-+-+--+---+--+-+-+---+-++---------++++--+--+---"
CODE_499 = "---+-++++----++--++--++-----+--++-+-+-+-+-+--+----+++-+--+--+--+"
CODES_256, CODES_64 = "a2d2d66ed86e1654", "58ebfd84eb0c3a94"
SIGNS_3 = ["++--++-++++++++--+----+----+-+++", "--++--+--+-+--+++-+--+-++-++++++"]


def build(features: int = 1024, width: int = 256) -> Content:
    embeddings = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(7))
    return Content(features, width, embeddings)


def texts(count: int, length: int = 8, seed: int = 0) -> list[list[int]]:
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()


def filled(said: list[list[int]], features: int = 1024, width: int = 256) -> Content:
    """Each text under its number, at the step that keeps all of them equally strong."""
    content, held = build(features, width), 0
    for name, ids in enumerate(said):
        held += len(ids)
        content.write([name], [ids], 1 / (1 + held / features))
    return content


def right(content: Content, said: list[list[int]]) -> list[bool]:
    return [content.read(name, len(ids)).ids == ids for name, ids in enumerate(said)]


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20), min_size=1, max_size=6),
    st.integers(0, 2**40),
)
def test_what_is_written_is_read(said, first):
    content = build()
    names = [first + place for place in range(len(said))]
    content.write(names, said, 0.9)
    recalled = [content.read(name, len(ids)) for name, ids in zip(names, said, strict=True)]
    assert [each.ids for each in recalled] == said
    for each in recalled:
        assert (each.soft - content.embeddings[each.ids]).abs().max() < 0.05
        assert 0.4 < each.clarity <= 1


def test_many_slots():
    said = texts(128)
    assert all(right(filled(said), said))  # 1,024 tokens in as many features


@pytest.mark.parametrize(("part", "least", "most"), [(0.25, 1.0, 1.0), (0.5, 0.98, 1.0), (8.0, 0.0, 0.4)])
def test_capacity_is_as_the_docstring_says(part, least, most):
    """Tokens are read while N/F < d / (4 ln V), and no longer far beyond."""
    features, width = 512, 128
    limit = features * width / (4 * math.log(VOCABULARY))
    said = texts(int(part * limit / 8))
    content = filled(said, features, width)
    good = [a == b for name, ids in enumerate(said) for a, b in zip(content.read(name, 8).ids, ids, strict=True)]
    assert least <= sum(good) / len(good) <= most


def test_all_that_is_held_is_equally_strong():
    said = texts(200)
    content = filled(said)
    strength = 1 / (1 + 200 * 8 / 1024)
    codes = [content.codes[ids] for ids in said]
    found = torch.tensor([float((content._read(name, 8) * codes[name]).sum(-1).mean()) for name in range(200)])
    for part in (found[:50], found[-50:]):
        assert abs(part.mean() - strength) < 0.1 * strength


def test_the_rest_of_a_vocabulary_is_no_part_of_it():
    """A text reads the same whichever texts of other lengths were read before."""
    said = [[1], [2, 3], [4] * 20, [499]]
    content = build()
    content.write([0, 1, 2, 3], said, 1.0)
    assert all(right(content, said))
    assert content.read(2, 5).ids == [4] * 5


class Spied(Content):
    """Keeps the keys and values of its last write."""

    def _update(self, keys: torch.Tensor, values: torch.Tensor, step: float) -> None:
        self.last = keys, values
        super()._update(keys, values, step)


@pytest.mark.parametrize("writes", [1, 5])
def test_writing_is_the_neural_memory_token_by_token(writes):
    content = Spied(128, 64, build().embeddings)
    expected = torch.zeros(128, 64)
    for turn in range(writes):
        said, step = texts(3, 5, seed=turn), 1 / (1 + turn)
        content.write([3 * turn, 3 * turn + 1, 3 * turn + 2], said, step)
        keys, values = (each[None, None] for each in content.last)
        gates = Gates(step=torch.full((1, 1, 15), step), log_keep=torch.zeros(1, 1, 15))
        _, _, (weights,), _ = naive_memory(keys, keys, values, gates, [expected[None, None]], [], Rule())
        expected = weights[0, 0]
        torch.testing.assert_close(content.weights, expected, rtol=1e-4, atol=1e-8)


def test_surprise():
    content, said = build(), texts(2)
    assert content.surprise(0, said[0], 1.0).tolist() == [1.0] * 8
    content.write([0], [said[0]], 0.5)
    assert content.surprise(0, said[0], 0.5).max() < 0.15
    changed = [*said[0][:3], (said[0][3] + 1) % VOCABULARY, *said[0][4:]]
    surprise = content.surprise(0, changed, 0.5)
    assert surprise[3] == 1.0
    assert surprise[[0, 1, 2, 4, 5, 6, 7]].max() < 0.15


def test_reading_changes_nothing():
    said = texts(20)
    content = filled(said)
    before = content.weights.clone()
    first = content.read(3, 8)
    content.surprise(4, said[4], 1.0)
    again = content.read(3, 8)
    assert torch.equal(content.weights, before)
    assert first.ids == again.ids and first.clarity == again.clarity and torch.equal(first.soft, again.soft)


def test_erasing_silences_one_text_and_no_other():
    said = texts(40)
    content = filled(said)
    loud = content._read(5, 8).norm(dim=-1)
    content.erase([5, 17], [8, 8])
    assert (content._read(5, 8).norm(dim=-1) < 0.3 * loud).all()
    assert [name for name, good in enumerate(right(content, said)) if not good and name not in (5, 17)] == []


@pytest.mark.parametrize("others", [0, 40])
def test_what_was_erased_cannot_be_read(others):
    said = texts(1 + others, 20)
    content = filled(said, features=16384)
    content.erase([0], [20])
    ids = content.read(0, 20).ids
    assert sum(a == b for a, b in zip(ids, said[0], strict=True)) <= 1


def test_an_erased_text_is_silent():
    content = filled(texts(40))
    content.erase([5], [8])
    assert content._read(5, 8).abs().max() < 1e-3  # of codes that read 1/16


def test_keys_stay_what_they_are():
    """Literal values: with other keys, every memory file of today would read as noise."""
    keys = build(features=512, width=64)._keys(3, 2)
    assert keys.shape == (2, 512)
    assert set(keys.unique().tolist()) == {0.0, 8.0}
    assert keys[0].nonzero()[:, 0].tolist() == KEY_3_0
    assert keys[1].nonzero()[:, 0].tolist() == KEY_3_1
    assert build(16384)._keys(123_456_789, 48)[47].nonzero()[:, 0].tolist() == KEY_FAR


def test_codes_stay_what_they_are():
    codes = build(width=256).codes
    assert set(codes.unique().tolist()) == {-1 / 16, 1 / 16}
    assert bits(codes[0, :64]) == CODE_0
    assert bits(codes[499, 192:]) == CODE_499
    assert hashlib.sha256((codes > 0).numpy().tobytes()).hexdigest()[:16] == CODES_256
    assert hashlib.sha256((build(width=64).codes > 0).numpy().tobytes()).hexdigest()[:16] == CODES_64


def test_the_signs_of_a_place_stay_what_they_are():
    signs = build(width=128)._signs(3, 2)
    assert signs.shape == (2, 128)
    assert [bits(signs[0, :32]), bits(signs[1, 96:])] == SIGNS_3


def test_codes_do_not_depend_on_the_size_of_the_vocabulary():
    small = Content(64, 128, torch.zeros(10, HIDDEN)).codes
    assert torch.equal(small, build(width=128).codes[:10])


def test_codes_and_keys_are_far_apart():
    codes = build().codes
    alike = (codes @ codes.T).fill_diagonal_(0).abs().max()
    assert alike < 0.4
    keys = torch.cat([build(16384)._keys(name, 10) for name in range(20)])
    assert ((keys @ keys.T) / 64).fill_diagonal_(0).max() <= 4  # of 16 features


def bits(code: torch.Tensor) -> str:
    return "".join("+" if value > 0 else "-" for value in code.tolist())
