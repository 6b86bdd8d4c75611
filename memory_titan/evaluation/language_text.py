"""Language models on text: needles and hash hop written out, and bits per byte by the length of what was seen.

tokenizer = load_tokenizer(folder) or ByteTokenizer()
cells = ask_texts(model, tokenizer, make, lengths=[512, 2048], depths=[0, 0.5, 1], samples=8)
found = bits_per_byte(model, tokenizer, texts, contexts=[512, 2048, 8192])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.evaluation.language import Cell, OnRead
from memory_titan.evaluation.needle import lay_out
from memory_titan.evaluation.probes import AS_IT_IS, probing
from memory_titan.evaluation.reading import reading_limit, say, speak
from memory_titan.tasks.byte_tokenizer import ByteTokenizer
from memory_titan.tasks.examples import encode
from memory_titan.tasks.recall import NO_LABEL
from memory_titan.tasks.stream import Piece, Stream, stream_of_examples
from memory_titan.tasks.text_task import TextTask

_SIDE = 1 << 15  # tokens of texts side by side, at most, unless one alone is longer
_MOST = 16


def _nobody(what: str, tokens: int) -> None:
    return


def ask_texts(
    model: Any,
    tokenizer: Any,
    make: Callable[[int, float], TextTask],
    lengths: Sequence[int],
    depths: Sequence[float],
    samples: int = 8,
    ways: Sequence[str] = (AS_IT_IS,),
    seed: int = 0,
    piece: int | None = None,
    on_read: OnRead = _nobody,
) -> list[Cell]:
    """Ask the questions of texts; an answer is right if greedy decoding says it to its last token.

    Args:
        model: a causal language model of Hugging Face.
        tokenizer: its own, a fast one, or a `ByteTokenizer`.
        make: a task of a length in tokens and a depth.
        lengths, depths: of the cells.
        samples: texts of each cell.
        ways: see `probes.probing`.
        seed: other texts.
        piece: see `reading.speak`.
        on_read: told which length, depth and way, and how many tokens were read.

    Raises:
        ValueError: a length is too short for what has to stand in it.
    """
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    limit, found = reading_limit(model), []
    for cell in lay_out(make, lengths, depths, samples, tokenizer, name, seed):
        where = f"{cell.length} tokens, depth {cell.depth:g}"
        first = 0 if tokenizer.bos_token_id is None else 1  # it stands in front of the text
        too_long = limit is not None and cell.length + first > limit
        encoded = [encode(sample, tokenizer, where) for sample in cell.samples] if not too_long else []
        examples = [example for example in encoded if example is not None]
        asked = max((len(example.answers) for example in examples), default=0)
        side = max(1, min(_MOST, _SIDE // cell.length))
        for way in ways:
            right = total = overflowed = held = 0
            for begin in range(0, len(examples), side):
                group = examples[begin : begin + side]
                stream = stream_of_examples(group, [cell.depth] * len(group))
                with probing(model, way):
                    said = say(model, stream, piece, lambda tokens: on_read(f"{where}, {way}", tokens))  # noqa: B023
                right, total = right + int(said.right.sum()), total + int(said.asked.sum())
                overflowed += int((said.asked & ~said.finite).sum())
                held = max(held, said.state_bytes)
            found.append(Cell(way, cell.length, asked, cell.depth, right, total, overflowed, held))
    return found


@dataclass(frozen=True)
class Text:
    """A text as tokens.

    Attributes:
        ids: `[T]`, int64.
        width: `[T]`, int64, bytes of UTF-8 that each token stands for; their sum is the text's. A token that is put in
            front stands for none.
    """

    ids: Tensor
    width: Tensor


def front_token(model: Any, tokenizer: Any) -> int | None:
    """The token in front of a text: what the model's configuration begins with, or its tokenizer; None: there is none.

    Models that `train lm` makes have there what stood before every file.
    """
    config = model.config.get_text_config()
    for token in (getattr(config, "bos_token_id", None), tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return None


def read_text(text: str | bytes, tokenizer: Any, front: int | None = None) -> Text:
    """A text's tokens, without any that the tokenizer adds.

    Args:
        text: what to read; as bytes it need not be UTF-8 where tokens are bytes.
        tokenizer: a fast one of Hugging Face, or a `ByteTokenizer`.
        front: the token in front, see `front_token`.

    Raises:
        ValueError: bytes that are no UTF-8, for a tokenizer.
    """
    begin = [] if front is None else [front]
    if isinstance(tokenizer, ByteTokenizer):
        content = list(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
        return Text(torch.tensor(begin + content), torch.tensor([0] * len(begin) + [1] * len(content)))
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise ValueError(f"a tokenizer needs UTF-8, and byte {error.start} is none") from None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = torch.tensor([0, *(len(one.encode("utf-8", "surrogatepass")) for one in text)]).cumsum(0)
    # Of tokens that share a character the first has its bytes; what a tokenizer leaves out goes to the next token.
    offsets = torch.tensor([0, *(end for _, end in encoded["offset_mapping"])])
    width = ends[offsets].cummax(0).values.diff()
    return Text(torch.tensor(begin + list(encoded["input_ids"])), torch.cat([width.new_zeros(len(begin)), width]))


@dataclass(frozen=True)
class Bits:
    """What a text costs in one way, at one context.

    Attributes:
        way: "model", as it is, or a probe.
        context: tokens after which the model begins anew.
        bits_per_byte: over all that was predicted; NaN: the model reads less than that.
        bytes: that were predicted.
        places: (from, to, bits per byte, bytes) of tokens with so many before them, from included, to not.
    """

    way: str
    context: int
    bits_per_byte: float
    bytes: int
    places: tuple[tuple[int, int, float, int], ...] = ()


@torch.no_grad()
def bits_per_byte(
    model: Any,
    texts: Sequence[Text],
    contexts: Sequence[int],
    ways: Sequence[str] = (AS_IT_IS,),
    piece: int | None = None,
    on_read: OnRead = _nobody,
) -> list[Bits]:
    """Cross entropy in bits, over the bytes of UTF-8 that the tokens stand for.

    A text is cut into stretches of a context's length, each read from the beginning. The last token of one is the first
    of the next, so that at every context the same tokens are predicted: all but each text's first. With a longer
    context more of them have more before them, which `Bits.places` shows by the contexts' lengths.

    Args:
        model: a causal language model of Hugging Face.
        texts: of `read_text`.
        contexts: lengths in tokens, at least 1.
        ways: see `probes.probing`.
        piece: see `reading.speak`.
        on_read: told which context and way, and how many tokens were read.

    Raises:
        ValueError: no context or one below 1, or no text of at least two tokens.
    """
    if not contexts or min(contexts) < 1:
        raise ValueError(f"contexts must be lengths of at least 1; got {list(contexts)}")
    texts = [text for text in texts if len(text.ids) > 1]
    if not texts:
        raise ValueError("there is no text of at least two tokens")
    edges = torch.tensor([0, *sorted(set(contexts))])
    limit, found = reading_limit(model), []
    was = model.training
    model.eval()
    try:
        for way in ways:
            for context in contexts:
                if limit is not None and context > limit:
                    found.append(Bits(way, context, math.nan, 0))
                    continue
                bits, width = torch.zeros(2, len(edges), dtype=torch.float64)
                with probing(model, way):
                    for stretches in _side_by_side(texts, context):
                        stream, widths = _as_stream(stretches)
                        for spoken in speak(model, stream, piece, lambda n: on_read(f"context {context:,}, {way}", n)):  # noqa: B023
                            cost = F.cross_entropy(spoken.logits.double(), spoken.labels, reduction="none")
                            place = spoken.begin + spoken.columns
                            bucket = torch.bucketize(place, edges, right=True) - 1
                            bits.index_add_(0, bucket, cost / math.log(2))
                            width.index_add_(0, bucket, widths[spoken.rows, place].double())
                places = tuple(
                    (int(low), int(high), float(b / w), int(w))
                    for low, high, b, w in zip(edges[:-1], edges[1:], bits[:-1], width[:-1], strict=True)
                    if w
                )
                found.append(Bits(way, context, float(bits.sum() / width.sum()), int(width.sum()), places))
    finally:
        model.train(was)
    return found


Stretch = tuple[Tensor, Tensor, Tensor]  # ids, what follows, and its bytes; [t] each


def _side_by_side(texts: Sequence[Text], context: int) -> Iterator[list[Stretch]]:
    """Stretches of nearly the same length, longest first."""
    cut = [
        (text.ids[begin:end], text.ids[begin + 1 : end + 1], text.width[begin + 1 : end + 1])
        for text in texts
        for begin in range(0, len(text.ids) - 1, context)
        for end in [min(begin + context, len(text.ids) - 1)]
    ]
    cut.sort(key=lambda stretch: -len(stretch[0]))
    begin = 0
    while begin < len(cut):
        side = max(1, min(_MOST, _SIDE // len(cut[begin][0])))
        yield cut[begin : begin + side]
        begin += side


def _as_stream(stretches: list[Stretch]) -> tuple[Stream, Tensor]:
    """Padded on the right, where what is said does not count and changes nothing before it; and the bytes `[B, T]`."""
    shape = len(stretches), len(stretches[0][0])
    ids, widths = torch.zeros(2, *shape, dtype=torch.long)
    labels = torch.full(shape, NO_LABEL)
    for row, parts in enumerate(stretches):
        for whole, part in zip((ids, labels, widths), parts, strict=True):
            whole[row, : len(part)] = part

    def pieces(size: int) -> Iterator[Piece]:
        for begin in range(0, shape[1], size):
            part = slice(begin, begin + size)
            yield Piece(ids[:, part], labels[:, part], torch.zeros_like(ids[:, part]))

    return Stream(shape[1], torch.full((shape[0], 1), torch.nan), pieces), widths
