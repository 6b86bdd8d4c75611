"""The frozen model speaks: `generate` of its own, greedily, the text handed on piece by piece as it comes.

What was computed of a conversation is kept, so that the next turn computes what is new in it and no more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

import torch
from torch import Tensor

from memory_titan.hybrid.frozen import FrozenModel

Vote = Callable[[list[int], Tensor], Tensor]  # what was said, the next token's logits [V] -> logits [V]


@dataclass
class Said:
    """An answer while it grows.

    Attributes:
        ids: its tokens so far.
        text: what was handed on so far.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""


class Kept:
    """Keys and values of a conversation that was read, and the tokens they are of."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.cache: Any = None

    def matching(self, ids: list[int]) -> Any:
        """A cache that holds a beginning of `ids` and leaves at least one to read; None: there is none."""
        cache, held = self.cache, self.ids
        self.cache, self.ids = None, []
        if cache is None:
            return None
        same = next(
            (place for place, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), min(len(held), len(ids))
        )
        same = min(same, len(ids) - 1)
        if same < 1 or any(getattr(layer, "is_sliding", False) for layer in cache.layers):
            return None
        cache.crop(same - cache.get_seq_length())
        return cache


def speak(
    frozen: FrozenModel,
    prompt: list[int] | Tensor,
    max_tokens: int,
    kept: Kept | None = None,
    vote: Vote | None = None,
    done: Callable[[list[int]], bool] | None = None,
    said: Said | None = None,
) -> Generator[str, None, None]:
    """The pieces of an answer, as they come. Closing the iterator stops the model.

    Args:
        frozen: the model.
        prompt: token ids, or `[T, hidden]` embeddings where soft prompts are among them.
        max_tokens: of the answer.
        kept: of the same conversation's last turn; takes this one's.
        vote: changes the logits before each choice.
        done: whether what was said is enough.
        said: filled as it goes.
    """
    from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList
    from transformers.generation.streamers import BaseStreamer

    said = Said() if said is None else said
    queue: Queue[list[int] | BaseException | None] = Queue()
    halt = threading.Event()
    soft = isinstance(prompt, Tensor)

    class Hand(BaseStreamer):
        """Hands every token on; the prompt, which comes first where it is ids, not."""

        def __init__(self) -> None:
            self.prompt = not soft

        def put(self, value: Tensor) -> None:
            if self.prompt:
                self.prompt = False
            else:
                queue.put(value.flatten().tolist())

        def end(self) -> None:
            pass

    spoken: list[int] = []

    def voted(ids: Tensor, scores: Tensor) -> Tensor:
        start = 0 if soft else len(prompt)
        return vote(ids[0, start:].tolist(), scores[0].float().cpu())[None].to(scores) if vote else scores

    def enough(ids: Tensor, scores: Any, **ignored: Any) -> Tensor:
        start = 0 if soft else len(prompt)
        spoken[:] = ids[0, start:].tolist()
        stop = halt.is_set() or (done is not None and done(spoken))
        return torch.full((len(ids),), stop, device=ids.device)

    cache = None if kept is None or isinstance(prompt, Tensor) else kept.matching(prompt)
    cache = DynamicCache(config=frozen.model.config) if cache is None else cache
    if isinstance(prompt, Tensor):
        given = {"inputs_embeds": prompt[None].to(frozen.device)}
    else:
        given = {"input_ids": torch.tensor([prompt], device=frozen.device)}
    pad = frozen.tokenizer.pad_token_id

    def work() -> None:
        try:
            frozen.model.generate(
                **given,
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=frozen.device),
                past_key_values=cache,
                max_new_tokens=max_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=frozen.first_token if pad is None else pad,
                streamer=Hand(),
                logits_processor=LogitsProcessorList([voted] if vote else []),
                stopping_criteria=StoppingCriteriaList([enough]),
            )
            queue.put(None)
        except BaseException as error:
            queue.put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (arrived := queue.get()) is not None:
            if isinstance(arrived, BaseException):
                raise arrived
            said.ids += [token for token in arrived if token not in frozen.stops]
            text = frozen.decode(said.ids)
            # Half a character decodes to U+FFFD; the next token completes it.
            if len(text) > len(said.text) and not text.endswith("\ufffd"):
                piece = text[len(said.text) :]
                said.text = text
                yield piece
        text = frozen.decode(said.ids)
        if len(text) > len(said.text):
            piece, said.text = text[len(said.text) :], text
            yield piece
    finally:
        halt.set()
        worker.join()
        if kept is not None and not isinstance(prompt, Tensor):
            kept.cache, kept.ids = cache, [*prompt, *spoken][: cache.get_seq_length()]
