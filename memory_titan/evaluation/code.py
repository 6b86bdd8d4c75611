"""Code completion: what a graft writes where only a definition far back can tell, and how near it comes to the truth.

KEEN_LOOM_BUDGET = 31877                       <- evidence, in the window or past it
...
assert keen_loom.KEEN_LOOM_BUDGET == 31877     <- truth
                                     31871        said: not exact, similarity 0.8
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from memory_titan.evaluation.compare import Share, in_way
from memory_titan.graft.model import MemoryModel
from memory_titan.graft.session import MemorySession
from memory_titan.tasks.examples import Example


@dataclass(frozen=True)
class Said:
    """What the model said to one question, after the true answers before it.

    Attributes:
        text: greedy generation, cut to the truth's tokens and lines, without space around it.
        exact: each of the truth's tokens is the most likely one after those before it.
        free: free generation gave the truth's tokens. Other than `exact` only by rounding.
        similarity: see `edit_similarity`.
    """

    text: str
    exact: bool
    free: bool
    similarity: float


@dataclass(frozen=True)
class Completion:
    """One question, asked in every way.

    Attributes:
        name: of the text.
        truth: the answer, without space around it.
        distance, nearest: tokens back to the farthest and to the nearest evidence.
        said: by way.
    """

    name: str
    truth: str
    distance: int
    nearest: int
    said: dict[str, Said]


def edit_similarity(a: str, b: str) -> float:
    """1 - Levenshtein distance / length of the longer: 1 for equal texts, 0 where nothing is shared."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return 1 - row[-1] / max(len(a), len(b), 1)


@torch.no_grad()
def complete(
    model: MemoryModel, example: Example, tokenizer: Any, on_read: Callable[[int], None] = lambda tokens: None
) -> list[Said]:
    """Ask the questions of one text: read on to each answer, generate, then read what should have been said.

    Args:
        model: in eval mode; memory on or off. The text is read in its segments, and nothing of them is kept.
        example: the text.
        tokenizer: the model's.
        on_read: told how many tokens were read.

    Returns:
        one an answer, in their order.
    """
    ids, session, at, found = example.ids.to(model.device)[None], model.new_session(), 0, []
    size = model.graft_config.segment
    for begin, end in example.answers:
        for first in range(at, begin - 1, size):
            model.read(ids[:, first : min(first + size, begin - 1)], session)
            on_read(min(first + size, begin - 1) - first)
        said = _generate(model, ids[:, begin - 1 : begin], session.copy(), end - begin)
        hidden, _ = model.hidden(ids[:, begin - 1 : end - 1], None, session)
        best, tokens = model.logits(hidden[0]).max(-1)
        truth = ids[0, begin:end]
        exact = bool((tokens == truth).all() and best.isfinite().all())
        wanted = tokenizer.decode(truth).strip()
        lines = tokenizer.decode(said, skip_special_tokens=True).split("\n")[: wanted.count("\n") + 1]
        text = "\n".join(lines).strip()
        found.append(Said(text, exact, said.tolist() == truth.tolist(), edit_similarity(text, wanted)))
        on_read(end - begin)
        at = end - 1
    return found


def _generate(model: MemoryModel, last: Tensor, session: MemorySession, tokens: int) -> Tensor:
    """`[at most tokens]`, what greedy decoding says after `last`, `[1, 1]`; whatever else the model's defaults are."""
    ends = model.base_model.generation_config.eos_token_id
    fill = ends[0] if isinstance(ends, list) else ends
    plain: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    plain |= {} if fill is None else {"pad_token_id": fill}
    out = model.generate(last, memory=session, max_new_tokens=tokens, **plain)
    assert isinstance(out, Tensor)
    return out[0, 1:]


def evaluate_code(
    model: MemoryModel,
    examples: Iterable[Example],
    tokenizer: Any,
    ways: Sequence[str],
    on_read: Callable[[str, int], None] = lambda way, tokens: None,
) -> list[Completion]:
    """Ask the questions of all examples in all ways (see `compare.in_way`), a text at a time."""
    was, found = model.training, []
    model.eval()
    try:
        for example in examples:
            said: dict[str, list[Said]] = {}
            for way in ways:
                with in_way(model, way):
                    said[way] = complete(model, example, tokenizer, lambda tokens: on_read(way, tokens))  # noqa: B023
            for number, (begin, end) in enumerate(example.answers):
                found.append(
                    Completion(
                        name=example.name,
                        truth=tokenizer.decode(example.ids[begin:end]).strip(),
                        distance=example.distances[number],
                        nearest=example.nearest[number],
                        said={way: said[way][number] for way in ways},
                    )
                )
    finally:
        model.train(was)
    return found


def by_reach(completions: Sequence[Completion], window: int | None) -> dict[str, list[Completion]]:
    """Those of whose evidence attention sees something at the answer ("within"), and the others ("past").

    Args:
        completions: to sort; a kind of which there is none is left out.
        window: tokens that attention sees, see `compare.attention_window`; None: all, so that all are "within".
    """
    found: dict[str, list[Completion]] = {}
    for one in sorted(completions, key=lambda one: window is not None and one.nearest > window):
        found.setdefault("within" if window is None or one.nearest <= window else "past", []).append(one)
    return found


def summary(completions: Sequence[Completion], way: str) -> dict[str, Any]:
    """Of one way: the share of exact answers as in `Share`; similarity, its mean; disagreed: answers whose free
    generation and `exact` tell different things (by rounding)."""
    said = [one.said[way] for one in completions]
    return {
        **asdict(Share(sum(each.exact for each in said), len(said))),
        "similarity": sum(each.similarity for each in said) / len(said),
        "disagreed": sum(each.exact != each.free for each in said),
    }
