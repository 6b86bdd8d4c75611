"""What a causal language model says in the places of a stream where something is to be said.

A `MemoryLanguageModel` reads the stream piece by piece and keeps a `StateCache`, whose size is bounded if its layers'
states are: the length costs time, not room. Any other model of Hugging Face reads the whole at once, up to its limit.

A label stands where it is to be said: at the last token of the question. There models trained with
`shift_labels=False` say it, and so does one that was trained to say the next token, for the answer would come next.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.models import MemoryLanguageModel, StateCache
from memory_titan.tasks.recall import NO_LABEL
from memory_titan.tasks.stream import Stream

PIECE = 4096  # tokens read at a time, all rows together


def is_streamed(model: nn.Module) -> bool:
    """Whether it carries a state, and so reads streams of any length in pieces."""
    return isinstance(model, MemoryLanguageModel)


def reading_limit(model: Any) -> int | None:
    """Tokens of a text at most; None: no limit is known."""
    if is_streamed(model):
        return None
    names = "max_position_embeddings", "n_positions", "max_sequence_length"
    config = getattr(model.config, "text_config", model.config)
    return next((int(limit) for name in names if (limit := getattr(config, name, None))), None)


@dataclass(frozen=True)
class Spoken:
    """What was said in the labelled places of a piece, N of them, row by row.

    Attributes:
        begin: tokens of a row before the piece.
        rows, columns: `[N]`, int64, where in the piece.
        labels, answers: `[N]`, see `Piece`.
        logits: `[N, vocabulary]`.
        state_bytes: of the state after the piece, all rows together; 0 where there is none.
    """

    begin: int
    rows: Tensor
    columns: Tensor
    labels: Tensor
    answers: Tensor
    logits: Tensor
    state_bytes: int


def speak(
    model: Any, stream: Stream, piece: int | None = None, on_read: Callable[[int], None] = lambda tokens: None
) -> Iterator[Spoken]:
    """Read a stream from the beginning; see the module. The model's mode, and whether gradients are kept, is yours.

    Args:
        model: a causal language model of Hugging Face.
        stream: what to read.
        piece: tokens of a row at a time where the model carries a state; None: `PIECE`, all rows together.
        on_read: told after each piece how many tokens it had, all rows together.

    Raises:
        ValueError: the stream is longer than the model's limit, or has tokens that the model does not know.
    """
    if piece is not None and piece < 1:
        raise ValueError(f"piece must be at least 1; got {piece}")
    streamed, limit, begin = is_streamed(model), reading_limit(model), 0
    if limit is not None and stream.length > limit:
        raise ValueError(f"the stream has {stream.length} tokens; this model reads at most {limit}")
    size = (piece or max(64, PIECE // stream.rows // 64 * 64)) if streamed else stream.length
    selects = streamed or "logits_to_keep" in inspect.signature(model.forward).parameters
    cache = StateCache() if streamed else None
    for part in stream.pieces(size):
        ids = part.ids.to(model.device)
        labelled = part.labels != NO_LABEL
        columns = labelled.any(0).nonzero()[:, 0]  # only there is the head of use
        options: dict[str, Any] = {"past_key_values": cache} if streamed else {"use_cache": False}
        if selects:
            options["logits_to_keep"] = columns.to(model.device)
        try:
            logits = model(input_ids=ids, **options).logits
        except IndexError:
            known = model.config.get_text_config().vocab_size
            raise ValueError(f"this model has {known} tokens; the stream's go up to {int(part.ids.max())}") from None
        logits = logits if selects else logits[:, columns.to(model.device)]
        rows, kept = labelled[:, columns].nonzero(as_tuple=True)
        where = rows, columns[kept]
        held = cache.nbytes if cache is not None else 0
        yield Spoken(begin, *where, part.labels[where], part.answers[where], logits[rows, kept].cpu(), held)
        begin += part.ids.shape[1]
        on_read(part.ids.numel())


@dataclass(frozen=True)
class Said:
    """What became of the answers of a stream.

    Attributes:
        asked: `[B, answers]`, bool; a row may have fewer answers than another.
        right: `[B, answers]`, bool, greedy decoding says all of the answer's tokens, given the true ones before each.
        finite: `[B, answers]`, bool, the logits there were numbers. What is not finite is not right.
        state_bytes: of a row's state at the end; 0 where there is none.
    """

    asked: Tensor
    right: Tensor
    finite: Tensor
    state_bytes: int


@torch.no_grad()
def say(
    model: Any, stream: Stream, piece: int | None = None, on_read: Callable[[int], None] = lambda tokens: None
) -> Said:
    """Read a stream in eval mode and judge the answers. Arguments and errors as in `speak`."""
    asked = torch.zeros(stream.depths.shape, dtype=torch.bool)
    wrong, broken, held = asked.clone(), asked.clone(), 0
    was = model.training
    model.eval()
    try:
        for spoken in speak(model, stream, piece, on_read):
            best, token = spoken.logits.max(-1)
            finite, held = best.isfinite(), spoken.state_bytes
            bad = (token != spoken.labels) | ~finite
            asked[spoken.rows, spoken.answers] = True
            wrong[spoken.rows[bad], spoken.answers[bad]] = True  # one wrong token spoils an answer
            broken[spoken.rows[~finite], spoken.answers[~finite]] = True
    finally:
        model.train(was)
    return Said(asked, asked & ~wrong, ~broken, held // stream.rows)
