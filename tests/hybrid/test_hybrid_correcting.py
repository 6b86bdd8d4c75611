"""Which short texts put right what was said before, and what then stands."""

from __future__ import annotations

import pytest
import torch

from memory_titan.hybrid import correcting as module
from memory_titan.hybrid.correcting import amended, is_elliptical

ELLIPTICAL = """
no wait, it moved to Friday
No, Friday.
nope, 55
no, not the red one, the blue one
no sorry, the scout hall
oh no, the other Tom
not Monday, Tuesday
not to Leeds, to York
sorry, Friday I mean
sorry, to York
Sorry. Half past seven.
sorry I meant the green one
wait, she said Hull
wait a minute, it was Hull
hang on, by the fountain
hold on, the 6th
oh, 24
ah no, 5236
argh, limes
oops, Tom
correction, quarter past six
actually, Friday
Actually it's on Friday, not on Monday, she said
actually, make that three
Actually the one by the river on the left
or rather Whitby
rather Whitby
i mean the blue one
I mean Friday
I mean it's Friday
I meant Tom
make that four
scratch that, Tom got it
my mistake, it's Ada
my bad, 12
I take that back, it's Ada
the 28th I mean
Friday, I meant!
9043 sorry
to Whitby rather
"No, Friday."
... no, Friday
no wait, it’s Friday
oh right, Friday
oh god, it was 24
sorry, about 24 I mean
sorry, for Friday
no, more like 12
sorry, I was told Friday
"""

OTHERS = """
no way
No way!
No problem, thanks
no problem
No idea.
no thanks
No, thanks.
no worries at all
no need
No more questions
no, no problem
oh no, no worries
Sorry, no idea
no long lists please
not bad
Not much, just reading.
Not sure.
not really
not yet
oh nice
Oh, nice!
oh wow
Oh, I see.
Oh dear
ah, thanks
ah okay
Oh yes
Sorry to hear that
sorry to bother you
sorry for the delay
sorry about that
nope, thank you
I'm so sorry
I am sorry
I'm sorry!
we felt sorry
I mean it
I mean it!
I mean, really?
you know what I mean
That is what I meant.
I'd rather
wait for me
wait until Tuesday
Hold on to your hat
Actually my sister lives in Leeds.
Actually, the concert is on the 9th of May, not the 2nd.
Actually Tom has two brothers and a cat.
Actually I’d like to visit my aunt
The concert is on Friday.
Nobody came.
Notes are due.
Ohio is far.
Waiter, the bill
It is rather cold today
She said sorry to Tom
I know what you mean by that
Friday
"""


@pytest.mark.parametrize("text", ELLIPTICAL.strip().splitlines())
def test_elliptical(text):
    assert is_elliptical(text)
    assert is_elliptical(f"  {text.upper()} ")


@pytest.mark.parametrize("text", OTHERS.strip().splitlines())
def test_not_elliptical(text):
    assert not is_elliptical(text)
    assert not is_elliptical(f"  {text.upper()} ")


def test_only_short_ones_are():
    words = "no wait it is" + " so" * 6
    assert len(words.split()) == 10
    assert is_elliptical(words) and not is_elliptical(words + " so")
    assert not is_elliptical("")


OLD = "The ferry to Brindlemoor leaves on Monday."


def parts(new: str, old: str) -> tuple[list[str], list[str]]:
    """What stands in `new` in the place of what in `old`, between what both begin and end with."""
    one, other = new.split(), old.split()
    front = 0
    while front < min(len(one), len(other)) and one[front] == other[front]:
        front += 1
    back = 0
    while back < min(len(one), len(other)) - front and one[-1 - back] == other[-1 - back]:
        back += 1
    return one[front : len(one) - back], other[front : len(other) - back]


@pytest.fixture
def sense(monkeypatch):
    """What a model of random weights finds likely says nothing about sense."""
    monkeypatch.setattr(module, "_SENSE", 1e9)


@pytest.mark.usefixtures("sense")
@pytest.mark.parametrize(
    ("old", "correction"),
    [
        (OLD, "no wait, Friday"),
        (OLD, "sorry, Tuesday evening I mean"),
        ("The code is 7319, they said!", "no, 4471"),
        ("Marguerite keeps the key: under a flowerpot?", "oops, Ada"),
        ("Моя собака Рекс.", "no, Пират"),
    ],
)
def test_one_span_of_the_old_text_gives_way_to_one_of_the_correction(frozen, old, correction):
    new = amended(frozen, old, correction)
    assert new is not None and new != old
    put, gone = parts(new, old)
    bare = [word.strip(".,:;!?") for word in put]
    words = [word.strip(".,:;!?") for word in correction.split()]
    assert bare and 1 <= len(gone) <= 4
    assert any(words[a : a + len(bare)] == bare for a in range(len(words)))
    assert not {"no", "wait", "sorry", "mean", "oops"} & set(bare)
    marks = [gone[-1][len(gone[-1].rstrip(".,:;!?")) :], put[-1][len(put[-1].rstrip(".,:;!?")) :]]
    assert marks[0] == marks[1]
    assert new[-1] == old[-1]


@pytest.mark.usefixtures("sense")
def test_what_is_alike_is_replaced(llama, monkeypatch):
    """With every text as likely as any other, digits take the place of digits, and names of names."""
    monkeypatch.setattr(llama, "log_likelihood", lambda contexts, targets: [torch.zeros(len(each)) for each in targets])
    monkeypatch.setattr(module, "_ALIKE", 0.0)
    code = "Ada opens the cellar with 7319 every day."
    assert amended(llama, code, "no, 4471") == "Ada opens the cellar with 4471 every day."
    assert amended(llama, "Yesterday some grey cat bit Marguerite badly.", "no, Ada") == (
        "Yesterday some grey cat bit Ada badly."
    )


@pytest.mark.usefixtures("sense")
def test_the_model_chooses_among_spans(llama, monkeypatch):
    wanted = "The ferry to Whitby leaves on Monday."
    ids = llama.encode(f" {wanted}")

    def likely(contexts, targets):
        return [torch.zeros(len(each)) if each == ids else torch.full((len(each),), -50.0) for each in targets]

    monkeypatch.setattr(llama, "log_likelihood", likely)
    assert amended(llama, OLD, "oh, Whitby") == wanted


@pytest.mark.usefixtures("sense")
@pytest.mark.parametrize("correction", ["no", "no wait, sorry", "sorry, on Monday I mean", "oops, the ferry", "!", ""])
def test_none_where_nothing_new_is_said(llama, correction):
    assert amended(llama, OLD, correction) is None


@pytest.mark.parametrize("old", ["It is.", "", "..."])
def test_none_where_there_is_nothing_to_replace(llama, old):
    assert amended(llama, old, "no, Friday") is None


def test_none_where_it_makes_no_sense(llama, monkeypatch):
    likelihood = llama.log_likelihood
    first = llama.encode(f" {OLD}")

    def unlikely(loss):
        return lambda c, t: [
            torch.zeros(len(ids)) if ids == first else each * 0 - loss / len(ids)
            for ids, each in zip(t, likelihood(c, t), strict=True)
        ]

    monkeypatch.setattr(llama, "log_likelihood", unlikely(14.9))
    assert amended(llama, OLD, "no, Friday") is not None
    monkeypatch.setattr(llama, "log_likelihood", unlikely(15.1))
    assert amended(llama, OLD, "no, Friday") is None


def test_a_long_text_is_tried_in_reasonable_many_ways(llama, monkeypatch):
    asked: list[int] = []
    likelihood = llama.log_likelihood
    monkeypatch.setattr(llama, "log_likelihood", lambda c, t: asked.append(len(t)) or likelihood(c, t))
    amended(llama, " ".join(f"word{n}" for n in range(30)), "no, Ada Quill, Tom Birch and Sue Hart")
    assert asked == [33]
