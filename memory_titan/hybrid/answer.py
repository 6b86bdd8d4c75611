"""The frozen model answers: bare, or with what was recalled as soft prompts in its own mouth.

    user       <question>
    assistant  I remember: [soft prompts] So the answer is: ...

Three such exchanges go before it, so that a small model sees what is wanted. While it speaks, the memory has a vote:
the tokens that continue what was recalled get a bonus, which keeps names and codes to the letter and leaves the choice
to the model (on 60 development facts 59 right answers with the bonus, 56 without, 44 with the fact in the system turn).
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from memory_titan.hybrid.content import Recalled
from memory_titan.hybrid.frozen import FrozenModel
from memory_titan.hybrid.speaking import Said, speak

_EXAMPLES = (
    (
        "With whom can Lena pick up what was delivered?",
        "Because of the roadworks, parcels for Lena are left with Mr Okoro next door.",
        "Mr Okoro",
    ),
    ("What do I type to log in on the old laptop?", "The password of the old laptop is tulip-4471.", "tulip-4471"),
    (
        "What does the parrot get to eat?",
        "Nobody but Greta may feed the parrot, and only with apple slices.",
        "apple slices",
    ),
)
_SYSTEM = "You are a helpful AI assistant with a memory. Answer each question from what you remember."
_SO = " So the answer is:"
_BEGIN, _CONTINUE = 2.0, 4.0  # bonuses in nats: for any recalled token at first, for the next one while quoting


def answer_bare(frozen: FrozenModel, question: str, max_tokens: int) -> str:
    """What the model says by itself, greedily."""
    return "".join(speak(frozen, frozen.prompt([{"role": "user", "content": question}]), max_tokens)).strip()


def answer_from(frozen: FrozenModel, question: str, recalled: list[Recalled], max_tokens: int) -> str:
    """What the model says when it remembers `recalled`, greedily."""
    return "".join(speak_from(frozen, question, recalled, max_tokens)).strip()


def speak_from(
    frozen: FrozenModel, question: str, recalled: list[Recalled], max_tokens: int, said: Said | None = None
) -> Generator[str, None, None]:
    """The pieces of `answer_from`, as they come."""
    embed = frozen.model.get_input_embeddings()
    head, tail = (torch.tensor(ids, device=frozen.device) for ids in (_prompt(frozen, question), frozen.encode(_SO)))
    soft = [each.soft.to(frozen.embeddings) for each in recalled]
    with torch.no_grad():
        inputs = torch.cat([embed(head), *soft, embed(tail)])
    vote = _Quote([each.ids for each in recalled], frozen.stops)

    def line_ended(said: list[int]) -> bool:
        return "\n" in frozen.tokenizer.decode(said[-1:]) and bool(frozen.decode(said).strip())

    return speak(frozen, inputs, max_tokens, vote=vote, done=line_ended, said=said)


class _Quote:
    """The memory's vote: where in what was recalled the answer may be quoting, and which tokens would go on."""

    def __init__(self, texts: list[list[int]], stops: set[int]) -> None:
        self.stops = stops
        self.tokens = [token for text in texts for token in [*text, -1]]  # -1 parts one text from the next
        self.places: list[int] = []
        self.begun = False

    def __call__(self, said: list[int], logits: Tensor) -> Tensor:
        if said:
            self._follow(said[-1])
        if self.places:
            following = {self.tokens[place + 1] for place in self.places if place + 1 < len(self.tokens)} - {-1}
            logits[sorted(following | self.stops)] += _CONTINUE
        elif not self.begun:
            logits[sorted(set(self.tokens) - {-1})] += _BEGIN
        return logits

    def _follow(self, token: int) -> None:
        going_on = [place + 1 for place in self.places if self.tokens[place + 1] == token]
        self.places = going_on or [place for place, each in enumerate(self.tokens) if each == token]
        self.begun = self.begun or bool(self.places)


def _prompt(frozen: FrozenModel, question: str) -> list[int]:
    messages = [{"role": "system", "content": _SYSTEM}]
    for asked, fact, reply in _EXAMPLES:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": f"I remember: {fact}{_SO} {reply}"})
    messages.append({"role": "user", "content": question})
    return frozen.prompt(messages, "I remember:")
