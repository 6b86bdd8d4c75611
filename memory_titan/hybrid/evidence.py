"""Does a recollection bear on a question? The frozen model says: by how much does each make the other less surprising.

    evidence = log p(question | recollection) - log p(question)
             + 1/4 (log p(recollection | question) - log p(recollection))          in nats

Both halves estimate the same pointwise mutual information; the second, dearer one is asked only of the best few. It
ranks what the addresses found, and it is the gate: under the threshold the memory stays silent, and the prompt is the
bare model's own.
"""

from __future__ import annotations

from memory_titan.hybrid.frozen import FrozenModel

_BACKWARD = 0.25  # weight of the second half
_BEST = 3  # recollections for which it is asked
_NOTHING = "Hello."  # a question that says nothing, to compare with


def weigh(frozen: FrozenModel, question: str, recollections: list[list[int]]) -> list[float]:
    """The evidence of each recollection (token ids) for a question, in nats; comparable among the best three.

    Those that drop out after the first half keep that half alone.
    """
    if not recollections:
        return []
    opening, closing = frozen.user_turn
    newline, asked = frozen.encode("\n"), [*frozen.encode(question), *closing]
    forward = frozen.log_likelihood(
        [[*opening, *ids, *newline] for ids in recollections] + [opening],
        [asked] * (len(recollections) + 1),
    )
    alone = float(forward.pop().sum())
    scores = [float(each.sum()) - alone for each in forward]
    best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:_BEST]
    texts = [recollections[index] for index in best]
    unasked = [*opening, *frozen.encode(_NOTHING), *closing]
    backward = frozen.log_likelihood([[*opening, *asked]] * len(best) + [unasked] * len(best), texts + texts)
    for place, index in enumerate(best):
        scores[index] += _BACKWARD * float(backward[place].sum() - backward[place + len(best)].sum())
    return scores
