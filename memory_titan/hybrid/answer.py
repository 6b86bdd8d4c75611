"""The frozen model answers: bare, or with what was recalled as soft prompts in its own mouth.

    user       <question>
    assistant  I remember: [soft prompts] So the answer is: ...

Three such exchanges go before it, so that a small model sees what is wanted. While it speaks, the memory has a vote:
the tokens that continue what was recalled get a bonus, which keeps names and codes to the letter and leaves the choice
to the model (on 60 development facts 59 right answers with the bonus, 56 without, 44 with the fact in the system turn).
"""

from __future__ import annotations

import torch
from torch import Tensor

from memory_titan.hybrid.content import Recalled
from memory_titan.hybrid.frozen import FrozenModel

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


@torch.no_grad()
def answer_bare(frozen: FrozenModel, question: str, max_tokens: int) -> str:
    """What the model says by itself, greedily."""
    ids = torch.tensor([frozen.encode(frozen.chat([{"role": "user", "content": question}]))], device=frozen.device)
    pad = frozen.tokenizer.pad_token_id
    out = frozen.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=frozen.first_token if pad is None else pad,
    )
    return frozen.decode(out[0, ids.shape[1] :].tolist()).strip()


@torch.no_grad()
def answer_from(frozen: FrozenModel, question: str, recalled: list[Recalled], max_tokens: int) -> str:
    """What the model says when it remembers `recalled`, greedily."""
    embed = frozen.model.get_input_embeddings()
    head, tail = torch.tensor(frozen.encode(_prompt(frozen, question))), torch.tensor(frozen.encode(_SO))
    soft = [each.soft.to(frozen.embeddings) for each in recalled]
    inputs = torch.cat([embed(head.to(frozen.device)), *soft, embed(tail.to(frozen.device))])[None]
    quote = _Quote([each.ids for each in recalled], _stops(frozen))
    output = frozen.model(inputs_embeds=inputs, use_cache=True)
    said: list[int] = []
    while len(said) < max_tokens:
        token = int(quote.favour(output.logits[0, -1].float().cpu()).argmax())
        if token in quote.stops:
            break
        said.append(token)
        quote.follow(token)
        if "\n" in frozen.tokenizer.decode([token]) and frozen.decode(said).strip():
            break
        following = torch.tensor([[token]], device=frozen.device)
        output = frozen.model(input_ids=following, past_key_values=output.past_key_values, use_cache=True)
    return frozen.decode(said).strip()


class _Quote:
    """The memory's vote: where in what was recalled the answer may be quoting, and which tokens would go on."""

    def __init__(self, texts: list[list[int]], stops: set[int]) -> None:
        self.stops = stops
        self.tokens = [token for text in texts for token in [*text, -1]]  # -1 parts one text from the next
        self.places: list[int] = []
        self.begun = False

    def favour(self, logits: Tensor) -> Tensor:
        if self.places:
            following = {self.tokens[place + 1] for place in self.places if place + 1 < len(self.tokens)} - {-1}
            logits[sorted(following | self.stops)] += _CONTINUE
        elif not self.begun:
            logits[sorted(set(self.tokens) - {-1})] += _BEGIN
        return logits

    def follow(self, token: int) -> None:
        going_on = [place + 1 for place in self.places if self.tokens[place + 1] == token]
        self.places = going_on or [place for place, each in enumerate(self.tokens) if each == token]
        self.begun = self.begun or bool(self.places)


def _prompt(frozen: FrozenModel, question: str) -> str:
    messages = [{"role": "system", "content": _SYSTEM}]
    for asked, fact, reply in _EXAMPLES:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": f"I remember: {fact}{_SO} {reply}"})
    messages.append({"role": "user", "content": question})
    try:
        text = frozen.chat(messages)
    except Exception:  # templates that know no system turn raise errors of their own (Gemma's a jinja2.TemplateError)
        text = frozen.chat(messages[1:])
    return f"{text}I remember:" if text.endswith(("\n", " ")) else f"{text} I remember:"


def _stops(frozen: FrozenModel) -> set[int]:
    ends = frozen.model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    own = frozen.tokenizer.eos_token_id
    return {*ends, *([] if own is None else [own])}
