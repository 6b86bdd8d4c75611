"""What a text says, in terms: its content words, each weighted by the kind of sentence and of word it stands in.

What is asked for later is often a name, a number or a date; a question, an exclamation and what is said to "you" are
rarely the answer. The weights are round numbers, in the direction (not the size) of a Poisson regression of where the
evidence lies, on two sets of conversations. The word lists are English; in another language most of it changes nothing.
"""

from __future__ import annotations

import re

QUESTION = 0.5  # a term in a sentence that ends in "?"
EXCLAMATION = 0.75
ADDRESS = 0.75  # a sentence that speaks to "you"
NUMBER = 2.0  # a term with a digit, a month, a day
NAME = 1.5  # a capital letter inside a sentence

_BREAK = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|\n\s*")
_SHORT = re.compile(r"(?<!\w)(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e)\.$")  # its full stop ends no sentence
_WORD = re.compile(r"\w+(?:['’]\w+)?")
_YOUR = "you you're you've you'd you'll your yours yourself"
_YOU = frozenset(_YOUR.split())
_CALENDAR = """
january february march april may june july august september october november december monday tuesday wednesday
thursday friday saturday sunday today tomorrow yesterday tonight morning week weekend month year
"""
_DATES = frozenset(_CALENDAR.split())
# Function words, what contractions leave, and the small change of talk.
_SAYS_NOTHING = """
a about above after again against ain all am an and any are aren as at be because been before being below between both
but by can cannot could couldn d did didn do does doesn doing don down during each few for from further get go gon
good got had hadn has hasn have haven having he hello her here hers herself hey hi him himself his hmm how i if in
into is isn it its itself just know let like ll m me mm more most mustn my myself no nor not of off oh ok okay on once
one only or other ought our ours ourselves out over own re really right s said same say shan she should shouldn so
some such t tell than that the their theirs them themselves then there these they thing think this those through to
too uh um under until up ve very wan was wasn we well were weren what when where which while who whom why will with
won would wouldn yeah yes you your yours yourself yourselves
"""
_EMPTY = frozenset(_SAYS_NOTHING.split())
_ENDINGS = (
    ("sses", "ss"),
    ("ies", "y"),
    ("ied", "y"),
    ("ing", ""),
    ("edly", ""),
    ("ed", ""),
    ("ly", ""),
    ("es", ""),
    ("s", ""),
)


def weighted_terms(text: str) -> dict[str, float]:
    """The distinct terms of a text, in order, each with the largest weight it has in any of its sentences.

    A term is a word in lower case without its ending; words that say nothing by themselves are no terms.
    """
    terms: dict[str, float] = {}
    for sentence in sentences(text):
        words = _WORD.findall(sentence)
        lower = [word.lower().replace("’", "'") for word in words]
        kind = _sentence_weight(sentence, lower)
        for place, (word, plain) in enumerate(zip(words, lower, strict=True)):
            bare = plain.split("'")[0]
            if bare in _EMPTY:
                continue
            weight = kind
            if plain in _DATES or any(c.isdigit() for c in plain):
                weight *= NUMBER
            elif place and word[0].isupper():
                weight *= NAME
            term = _stem(bare)
            terms[term] = max(weight, terms.get(term, 0.0))
    return terms


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with the space after it; joined they are the text, and some of them split alike."""
    pieces, start = [], 0
    for gap in _BREAK.finditer(text):
        near = max(start, gap.start() - 8)  # longer than any of _SHORT; a text of "Mr. Mr. Mr." is not read again whole
        if gap.start() > start and ("\n" in gap[0] or not _SHORT.search(text, near, gap.start())):
            pieces.append(text[start : gap.end()])
            start = gap.end()
    return [*pieces, text[start:]] if start < len(text) else pieces


def _sentence_weight(sentence: str, words: list[str]) -> float:
    end = sentence.rstrip(" \n\t'\")]")[-1:]
    weight = QUESTION if end == "?" else EXCLAMATION if end == "!" else 1.0
    if not _YOU.isdisjoint(words):
        weight *= ADDRESS
    return weight


def _stem(word: str) -> str:
    """Without its ending: enough for "hike" and "hiked", "baby" and "babies" to be one term."""
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not (ending == "s" and word.endswith("ss")):
            word = word[: len(word) - len(ending)] + instead
            if ending in ("ing", "ed") and len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word
