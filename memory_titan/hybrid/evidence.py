"""Does a recollection bear on a question? The frozen model says: by how much does each make the other less surprising.

    evidence = log p(question | recollection) - log p(question)
             - 1/2 (the same for sentences that have nothing to do with it, if they help)
             + 1/4 (log p(recollection | question) - log p(recollection))
             + 40 (cosine of the addresses)                                        in nats

The first two logs and the last two estimate the same pointwise mutual information; the dearer second is asked only of
the best few. The middle takes off what any sentence would do for the question ("How are you today?" is likelier after
whatever is said). Evidence ranks what the addresses found, and it is the gate: under the threshold the memory stays
silent, and the prompt is the bare model's own.
"""

from __future__ import annotations

from memory_titan.hybrid.frozen import FrozenModel

_BACKWARD, _CONTROL = 0.25, 0.5  # weights of the recollection's part and of the control
_NEAR = 40.0  # nats for a cosine of 1
_BEST = 3  # recollections of which the last part is asked
_NOTHING = "Hello."  # a question that says nothing, to compare with
_UNRELATED = (
    "The report was printed on both sides.",
    "A cold wind blew over the empty square.",
    "Most of the visitors arrived by bicycle.",
)


def weigh(frozen: FrozenModel, question: str, recollections: list[list[int]], cosines: list[float]) -> list[float]:
    """The evidence of each recollection (token ids, and the cosine of its address) for a question, in nats.

    Comparable among the best three; those that drop out after the first half keep that half alone.
    """
    if not recollections:
        return []
    opening, closing = frozen.user_turn
    newline, asked = frozen.encode("\n"), [*frozen.encode(question), *closing]
    controls = [frozen.encode(f" {text}") for text in _UNRELATED]
    contexts = [[*opening, *ids, *newline] for ids in [*recollections, *controls]] + [opening]
    *forward, alone = [float(each.sum()) for each in frozen.log_likelihood(contexts, [asked] * len(contexts))]
    control = sum(forward[len(recollections) :]) / len(controls) - alone
    taken = alone + _CONTROL * max(0.0, control)
    scores = [each - taken + _NEAR * near for each, near in zip(forward[: len(cosines)], cosines, strict=True)]
    best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:_BEST]
    texts = [recollections[index] for index in best]
    unasked = [*opening, *frozen.encode(_NOTHING), *closing]
    backward = frozen.log_likelihood([[*opening, *asked]] * len(best) + [unasked] * len(best), texts + texts)
    for place, index in enumerate(best):
        scores[index] += _BACKWARD * float(backward[place].sum() - backward[place + len(best)].sum())
    return scores
