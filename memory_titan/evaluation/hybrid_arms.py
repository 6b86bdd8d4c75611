"""Ways to answer a question about an earlier chat, the memory among them.

memory      what the memory recalls, if it has something to say
bare        nothing: what can be guessed
context     everything the user said, in the prompt
retrieval   the three turns nearest to the question by a sentence embedding, in the prompt
soft        the two nearest turns, in the memory's own answering prompt: the memory's reading, another's finding
oracle      the texts that answer it, in the memory's own answering prompt: the ceiling of its reading
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from memory_titan.embedders.base import BaseEmbedder
from memory_titan.evaluation.hybrid_talk import Question
from memory_titan.evaluation.recall import MAX_TOKENS
from memory_titan.hybrid.answer import answer_bare, answer_from
from memory_titan.hybrid.content import Recalled
from memory_titan.hybrid.frozen import FrozenModel
from memory_titan.hybrid.speaking import Kept, speak

ARMS = ("memory", "bare", "context", "retrieval", "soft", "oracle")
EMBEDDER = "all-MiniLM-L6-v2"
RETRIEVED, SOFT = 3, 2  # turns that go into the prompt; the memory itself uses at most two recollections
_NOTES = "Answer from these notes."


@dataclass
class Said:
    """An answer, what was found for it, what of that went into the prompt, and whether anything did."""

    text: str
    spoke: bool = False
    found: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)


Arm = Callable[[Question], Said]


def memory_arm(engine: Any) -> Arm:
    """A `HybridEngine` that has read."""

    def answer(question: Question) -> Said:
        said = engine.ask(question.text, max_tokens=MAX_TOKENS)
        found, used = [each.text for each in said.considered], [each.text for each in said.used]
        return Said(said.text, said.spoke, found, used)

    return answer


def bare_arm(frozen: FrozenModel) -> Arm:
    """The model alone, its context empty."""
    return lambda question: Said(answer_bare(frozen, question.text, MAX_TOKENS))


def context_arm(frozen: FrozenModel, texts: Sequence[str]) -> Arm:
    """All texts in the prompt; what was computed of them serves every question."""
    kept = Kept()

    def answer(question: Question) -> Said:
        said = "".join(speak(frozen, notes_prompt(frozen, texts, question.text), MAX_TOKENS, kept))
        return Said(said.strip(), True, list(question.told), list(question.told))

    return answer


def context_length(frozen: FrozenModel, texts: Sequence[str], questions: Sequence[Question]) -> int:
    """Positions that `context_arm` takes at the most, the answer included."""
    longest = max((question.text for question in questions), key=len, default="")
    return len(notes_prompt(frozen, texts, longest)) + 2 * MAX_TOKENS  # the longest in letters may not be it in tokens


def positions(frozen: FrozenModel) -> int | None:
    """How many positions the model was made for; None: it does not say."""
    config = frozen.model.config.get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    return int(found) if found else None


def retrieval_arm(frozen: FrozenModel, index: Index, soft: bool = False) -> Arm:
    """The nearest turns, as notes in the order they were told; `soft`: as if the memory had found them."""

    def answer(question: Question) -> Said:
        places = index.nearest(question.text, SOFT if soft else RETRIEVED)
        found, told = ([index.texts[place] for place in order] for order in (places, sorted(places)))
        if soft:
            said = answer_from(frozen, question.text, [as_recalled(frozen, text) for text in found], MAX_TOKENS)
        else:
            said = "".join(speak(frozen, notes_prompt(frozen, told, question.text), MAX_TOKENS))
        return Said(said.strip(), True, found, found if soft else told)

    return answer


def oracle_arm(frozen: FrozenModel) -> Arm:
    """The texts that answer the question, as if the memory had recalled them and nothing else."""

    def answer(question: Question) -> Said:
        recalled = [as_recalled(frozen, text) for text in question.told]
        told = list(question.told)
        return Said(answer_from(frozen, question.text, recalled, MAX_TOKENS), True, told, told)

    return answer


class Index:
    """Raw text and its embeddings, in as many bytes as the memory's file has; what is oldest goes first.

    Attributes:
        texts: what is held, in the order it was told.
        bytes: of these texts in UTF-8 and their vectors in float32.
    """

    def __init__(self, embedder: BaseEmbedder, texts: Sequence[str], budget: int) -> None:
        self.embedder = embedder
        rows = embedder.embed(list(texts))
        sizes = [len(text.encode()) + row.nbytes for text, row in zip(texts, rows, strict=True)]
        first, total = len(texts), 0
        while first and total + sizes[first - 1] <= budget:
            first -= 1
            total += sizes[first]
        self.texts, self.rows, self.bytes, self.left_out = list(texts[first:]), rows[first:], total, first

    def nearest(self, question: str, count: int) -> list[int]:
        """Places of the nearest texts by cosine, nearest first."""
        scores = self.rows @ self.embedder.embed_query(question)
        return np.argsort(-scores, kind="stable")[:count].tolist()


def notes_prompt(frozen: FrozenModel, notes: Sequence[str], question: str) -> list[int]:
    """Token ids: the notes, a line each, and the question; up to where the answer begins."""
    told = "\n".join(" ".join(note.split()) for note in notes)
    return frozen.prompt(
        [{"role": "system", "content": _NOTES}, {"role": "user", "content": f"{told}\n\n{question}"}]
    )  # fmt: skip


def as_recalled(frozen: FrozenModel, text: str) -> Recalled:
    """A text as the memory would give it back if it came out of the weights to the letter."""
    ids = frozen.encode(f" {text}")
    soft = frozen.embeddings[torch.tensor(ids, device=frozen.device)].float().cpu()
    return Recalled(ids, soft, 1.0)
