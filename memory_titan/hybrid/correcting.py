"""Corrections: which earlier text a text corrects, and what stands after "no wait, it moved to Friday".

A text that corrects is close to what it corrects, and has the ring of a correction (the log odds that it is one):

    cosine of the addresses from 0.55 on, ring above 0       what it corrects is erased
    cosine from 0.45 on, ring above -2, evidence in reach    both are kept, and the newer is believed
    cosine from 0.55 on, as much evidence                    the same

One that is too short to say what it is about ("sorry, Friday I mean") goes with what was written just before. Some
words of the one take the place of some of the other: those that the frozen model finds to fit best, among spans alike.
"""

from __future__ import annotations

import re
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.hybrid.frozen import FrozenModel

ERASE, DOUBT = 0.55, 0.45  # cosines
RING = -2.0  # log odds of being a correction, of one that is believed
IN_REACH, AS_MUCH = 8.0, 2.0  # nats of evidence by which the older text may lead, with a ring and without
_SHORT = 10  # words of a correction that does not say what it corrects
_ALIKE, _LENGTH, _KIND, _LATE = 15.0, 1.0, 3.0, 4.0  # nats: for the cosine of two spans, a word more or less, ...
_TRIED = 32  # replacements that the model is asked about
_SPAN = 4  # words
_SENSE = 15.0  # nats that the amended text may be less likely than the old one
_PLAINLY = re.compile(  # how one puts oneself right
    r"^\W*(no,? wait|wait,? no|wait|sorry,|hang on|hold on|correction|make that|scratch that|i mean|i meant|my mistake|"
    r"my bad|oops|argh|nope,|or rather|oh,? hold on)(?! to hear)(?!\w)|\b(i mean|i meant)\W*$",
    re.IGNORECASE,
)
_BEGINS = re.compile(
    r"^\W*(no|nope|not|sorry|wait|oh|ah|eh|argh|oops|ouch|hang on|hold on|actually|correction|rather|or rather|"
    r"i mean|i meant|make that|scratch that|my mistake|my bad|i take that back)\b|"
    r"\b(?<!what )(i mean|i meant)\W*$|\b(?<!'d )(?<!would )rather\W*$|"
    r"\b(?<!'m )(?<!'re )(?<!am )(?<!are )(?<!so )(?<!very )(?<!really )(?<!feel )(?<!felt )(?<!say )(?<!said )"
    r"sorry\W*$",
    re.IGNORECASE,
)
_POLITE = re.compile(  # what begins in the same words and puts nothing right
    r"^\W*((oh|ah|eh|well|sorry|wait|no|nope|actually)\W+)*("
    r"no (way|problems?|ideas?|worries|doubt|need|rush|hurry|chance|kidding|offen[cs]e|pressure|matter|wonder|more|"
    r"longer|big deal|(?:\w+ ){1,2}please)\b|no(pe)?,? thank|"
    r"not (bad|much|many|really|sure|yet|at all|quite|only|too|so|again|even|a lot|necessarily|everyone|everybody)\b|"
    r"(oh|ah|eh),? (nice|wow|good|great|cool|lovely|thank|perfect|wonderful|brilliant|come on|what an?\b)|"
    r"(oh|ah|eh),? (dear|right|ok|okay|yes|yeah|yep|really|sure|god|gosh|boy|man|i see|of course|please)\W*$|"
    r"sorry (to (hear|say|ask|bother|disturb|interrupt|keep|see|learn)|for|about|if|everyone)\b|"
    r"i mean it\W*$|i mean,? (no|what|why|how|who|really|seriously|honestly|come on|you know)\b|"
    r"wait (for|until|till|and see)\b|(hang|hold) on to\b)|"
    # a sentence of its own behind "actually" says what it is about; "it's Friday" does not
    r"^\W*actually,? (?!(it|its|it's|that|that's|this|these|those|they|they're|he|he's|she|she's|make|no|not|sorry|"
    r"wait|i mean|i meant|the one|the other)\b)(\S+ ){4,}\S",
    re.IGNORECASE,
)
_EMPTY = frozenset(  # words that a value does not begin or end with
    re.findall(
        r"\S+",
        """a ah again always an and are argh at be been called checked correction eh for full gone hang has he he's hold
        i i've in is it it's its just looked make mean meant mistake my no nope not now of off oh on one only oops or
        other rather read said says she she's sorry texted that that's the them they they're this those to up wait was
        we were what wrong you""",
    )
)
_MARKS = ".,;:!?\"'()"


def is_elliptical(text: str, worth: float = 1.0, keep: float = 0.3) -> bool:
    """Whether a text corrects without saying what: short, and beginning or ending as one puts oneself right.

    "No way!" and "sorry to hear that" do not; nor does a sentence of its own behind "actually". English only.

    Args:
        text: one text.
        worth: the odds that it is worth keeping: less is asked where its words leave no doubt.
        keep: the odds asked of the others.
    """
    text = " ".join(text.replace("\u2019", "'").split())
    if len(text.split()) > _SHORT or "?" in text or not _BEGINS.search(text) or _POLITE.search(text):
        return False
    return worth >= (keep / 3 if _PLAINLY.search(text) else keep)


@torch.no_grad()
def amended(frozen: FrozenModel, old: str, correction: str) -> str | None:
    """The old text with what an elliptical correction changes in it; None if nothing fits, or makes no sense.

    Every span of at most four words that is new in the correction is tried in the place of every such span of the old
    text. Score of a replacement, in nats: log p of the text that results, less that of what was not replaced, and how
    alike the two spans are (embeddings, digits, capitals, length).
    """
    words, said = old.split(), correction.split()
    known = {_bare(word) for word in words}
    fresh = [
        said[a:b]
        for a, b in _spans(said)
        if not _empty(said[a]) and not _empty(said[b - 1]) and not any(_bare(word) in known for word in said[a:b])
    ]
    places = [(a, b) for a, b in _spans(words) if not _empty(words[b - 1]) and not _empty(words[a])]
    table = frozen.embeddings.float()
    centre = table.mean(0)

    def meaning(span: list[str]) -> Tensor:
        ids = frozen.encode(" " + " ".join(span).rstrip(_MARKS))
        return F.normalize((table[ids] - centre).mean(0), dim=-1)

    olds = {place: meaning(words[slice(*place)]) for place in places}
    tried: list[tuple[float, tuple[int, int], str]] = []
    for span in fresh:
        own = meaning(span)
        for a, b in places:
            tail = words[b - 1][len(words[b - 1].rstrip(_MARKS)) :]
            text = " ".join([*words[:a], *span[:-1], span[-1].rstrip(_MARKS) + tail, *words[b:]])
            alike = _ALIKE * float(own @ olds[a, b]) - _LENGTH * abs((b - a) - len(span)) + _LATE * a / len(words)
            tried.append((alike + _kinds(span, words[a:b], a == 0), (a, b), text))
    if not tried:
        return None
    tried = sorted(tried, reverse=True)[:_TRIED]
    ids = [frozen.encode(f" {text}") for text in [old, *(text for _, _, text in tried)]]
    before, *after = frozen.log_likelihood([[frozen.first_token]] * len(ids), ids)
    starts = [len(frozen.encode(" " + " ".join(words[:count]))) if count else 0 for count in range(len(words) + 1)]
    scores = [
        alike + float(scores.sum()) + float(before[starts[a] : starts[b]].sum())
        for (alike, (a, b), _), scores in zip(tried, after, strict=True)
    ]
    best = max(range(len(scores)), key=scores.__getitem__)
    return tried[best][2] if float(after[best].sum()) >= float(before.sum()) - _SENSE else None


def _spans(words: list[str]) -> list[tuple[int, int]]:
    """Stretches of up to four words with no mark inside."""
    pairs = combinations(range(len(words) + 1), 2)
    return [(a, b) for a, b in pairs if b - a <= _SPAN and not any(word[-1] in _MARKS for word in words[a : b - 1])]


def _kinds(new: list[str], old: list[str], first: bool) -> float:
    digits = [any(letter.isdigit() for word in span for letter in word) for span in (new, old)]
    capital = any(word[:1].isupper() for word in new)
    was = any(word[:1].isupper() for place, word in enumerate(old) if not (first and place == 0))
    score = 2 * _KIND * (1 if all(digits) else -1 if any(digits) else 0)
    return score + (_KIND if capital and was else -_KIND if capital != was else 0.0)


def _bare(word: str) -> str:
    return word.strip(_MARKS).lower()


def _empty(word: str) -> bool:
    return _bare(word) in _EMPTY or not _bare(word)
