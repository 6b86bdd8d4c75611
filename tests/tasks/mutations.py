"""Ways to spoil a sample, which a checker has to see; and texts to measure in tokens that are not words."""

import re
from dataclasses import replace

from memory_titan.tasks.sample import Answer, Sample


class Pairs:
    """A ruler unlike the package's own: words and the rest, at most two characters a token."""

    name = "pairs"

    def starts(self, text):
        return [match.start() for match in re.finditer(r"\w{1,2}|[^\w\s]{1,2}|\s+", text)]


def first(sample, **changes):
    """The sample with its first answer changed."""
    return replace(sample, answers=(replace(sample.answers[0], **changes), *sample.answers[1:]))


def with_text(sample, span, text):
    """The sample with the characters of a span replaced by as many others."""
    assert len(text) == span[1] - span[0]
    return replace(sample, text=sample.text[: span[0]] + text + sample.text[span[1] :])


def swapped_answer(sample: Sample) -> Sample:
    start, end = sample.answers[0].span
    said = sample.text[start:end]
    other = {" yes": " no", " no": " yes"}.get(said, said[:-2] + said[-1] + said[-2])
    if other == said:
        other = said[:-1] + ("x" if said[-1] != "x" else "y")
    text = sample.text[:start] + other + sample.text[end:]
    return replace(first(sample, span=(start, start + len(other))), text=text)


def moved_span(sample):
    start, end = sample.answers[0].evidence[-1]
    move = 1 if end < sample.answers[0].question[0] else -1
    return first(sample, evidence=(*sample.answers[0].evidence[:-1], (start + move, end + move)))


def moved_answer(sample):
    answer = sample.answers[0]
    return first(
        sample, span=(answer.span[0] + 1, answer.span[1]), question=(answer.question[0], answer.question[1] + 1)
    )


def spoiled_evidence(sample):
    """Evidence that says something else."""
    start, end = sample.answers[0].evidence[-1]
    return with_text(sample, (start, end), re.sub(r"\w", "z", sample.text[start:end]))


def wrong_length(sample):
    return replace(sample, length=sample.length - 1)


def wrong_distance(sample):
    distances = sample.answers[0].distances
    return first(sample, distances=(distances[0] + 1, *distances[1:]))


def told_twice(sample):
    """The answer stands in the filler, too."""
    word = sample.cut(sample.answers[0].span).split()[-1]
    moved = len(word) + 1

    def on(span):
        return span[0] + moved, span[1] + moved

    answers = tuple(Answer(on(a.span), on(a.question), tuple(map(on, a.evidence)), a.distances) for a in sample.answers)
    return replace(sample, text=f"{word}\n{sample.text}", answers=answers)


ALWAYS_SEEN = [swapped_answer, moved_span, moved_answer, spoiled_evidence, wrong_length, wrong_distance]
