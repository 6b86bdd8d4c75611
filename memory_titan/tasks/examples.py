"""Samples as tokens: what a model reads, and which of its tokens it is trained to say.

ids      <bos>  a1 f - > 9 c2 ... Follow : a1 f - > 9 c2
said        .   .  . . . .  .        .   .  .  . . . 1  1      <- the answer's tokens, predicted from those before
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from memory_titan.tasks.sample import Sample, SampleError, read_samples

TooLong = Literal["refuse", "truncate", "skip"]


@dataclass(frozen=True)
class Example:
    """One text as tokens.

    Attributes:
        ids: `[T]`, int64.
        answers: of each answer its first token and the one after its last.
        distances: of each answer, tokens back to its farthest evidence.
        nearest: of each answer, tokens back to its nearest evidence.
        name: where it comes from, for messages.
        lower: `[T, hidden]`, what enters the first grafted layer, where it is known.
    """

    ids: Tensor
    answers: tuple[tuple[int, int], ...]
    distances: tuple[int, ...]
    nearest: tuple[int, ...]
    name: str
    lower: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Examples of one step, padded on the right.

    Attributes:
        ids: `[B, T]`, int64.
        mask: `[B, T]`, bool, False for padding.
        said: `[B, T]`, int64: 1 + the index of the answer a token belongs to, 0 outside answers.
        examples: the same, as they were.
        lower: `[B, T, hidden]`, if all examples have theirs.
    """

    ids: Tensor
    mask: Tensor
    said: Tensor
    examples: tuple[Example, ...]
    lower: Tensor | None = None


def encode(
    sample: Sample, tokenizer: Any, name: str = "", max_length: int | None = None, too_long: TooLong = "refuse"
) -> Example | None:
    """A sample's tokens, after the tokenizer's first token if it has one.

    Args:
        sample: what to encode.
        tokenizer: a fast one of Hugging Face: it has to say where its tokens stand.
        name: for messages, such as "train.jsonl, line 3".
        max_length: tokens at most; None: any.
        too_long: what to do with more: "refuse", "truncate" (the front goes, and with it the answers whose evidence
            stood there), or "skip" (None comes back).

    Raises:
        SampleError: it is too long and to be refused, an answer falls within a token, or nothing is left to ask.
    """
    encoded = tokenizer(sample.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    starts = [start for start, _ in offsets]
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    where = {start: index for index, start in enumerate(starts)}
    where[len(sample.text)] = len(starts)
    answers = []
    for answer in sample.answers:
        begin, end = answer.span
        if begin not in where or end not in where:
            raise SampleError(f"{name}: the answer {sample.cut(answer.span)!r} begins or ends within a token")
        answers.append((where[begin], where[end], answer))
    cut = 0
    if max_length is not None and len(ids) + len(first) > max_length:
        told = f"{name}: {len(ids) + len(first)} tokens, and at most {max_length} are allowed"
        if too_long == "refuse":
            raise SampleError(f'{told}; "truncate" or "skip" is the other choice')
        if too_long == "skip":
            return None
        cut = len(ids) + len(first) - max_length
        kept = starts[cut]
        answers = [a for a in answers if a[0] > cut and all(start >= kept for start, _ in a[2].evidence)]
        if not answers:
            raise SampleError(f"{told}; truncated, no answer is left whose evidence is there")
    shift = len(first) - cut
    return Example(
        ids=torch.tensor(first + ids[cut:]),
        answers=tuple((begin + shift, end + shift) for begin, end, _ in answers),
        distances=tuple(a.distance for _, _, a in answers),
        nearest=tuple(a.nearest for _, _, a in answers),
        name=name,
    )


def load_examples(
    path: Path, tokenizer: Any, max_length: int | None = None, too_long: TooLong = "refuse", limit: int | None = None
) -> list[Example]:
    """The examples of a file of samples; see `encode`.

    Raises:
        SampleError: a line is no sample, or cannot be used; it names the file and the line.
    """
    found: list[Example] = []
    for number, sample in enumerate(read_samples(path), 1):
        example = encode(sample, tokenizer, f"{path.name}, line {number}", max_length, too_long)
        found += [] if example is None else [example]
        if limit is not None and len(found) == limit:
            break
    if not found:
        raise SampleError(f"{path} has no sample of at most {max_length} tokens")
    return found


def load_prose(source: str | Path, tokenizer: Any, length: int, number: int) -> list[Example]:
    """Pieces of a text in which nothing is asked, evenly over it.

    Args:
        source: a UTF-8 file, or "topics": the first half of the running Python's help on its language.
        tokenizer: of Hugging Face.
        length: tokens of a piece.
        number: of pieces, at most.

    Raises:
        SampleError: the text is shorter than one piece.
    """
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    text = first_half_of_topics() if str(source) == "topics" else Path(source).read_text("utf-8")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    size, name = length - len(first), Path(source).name
    if len(ids) < size:
        raise SampleError(f"{source} has {len(ids)} tokens; a piece has {size}")
    number = min(number, len(ids) // size)
    begins = [round(i * (len(ids) - size) / max(1, number - 1)) for i in range(number)]
    return [Example(torch.tensor(first + ids[b : b + size]), (), (), (), f"{name}, token {b}") for b in begins]


def first_half_of_topics() -> str:
    """Of Python's help. `evaluation.prose` measures perplexity on the second half."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return text[: len(text) // 2]


def collate(examples: Sequence[Example]) -> Batch:
    """Examples side by side."""
    length = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    mask, said = torch.zeros(len(examples), length, dtype=torch.bool), torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        mask[row, : len(example.ids)] = True
        for index, (begin, end) in enumerate(example.answers, 1):
            said[row, begin:end] = index
    lower = None
    if all(example.lower is not None for example in examples):
        lower = pad_sequence([example.lower for example in examples if example.lower is not None], batch_first=True)
    return Batch(ids, mask, said, tuple(examples), lower)


def batches(
    examples: Sequence[Example], size: int, seed: int, epoch: int, shuffle: bool = True
) -> Iterable[list[Example]]:
    """An epoch's batches, the last one too if it is smaller; the order depends on nothing but seed and epoch."""
    order: list[int] = list(range(len(examples)))
    if shuffle:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(examples), generator=generator).tolist()
    for begin in range(0, len(order), size):
        yield [examples[index] for index in order[begin : begin + size]]


@dataclass(frozen=True)
class Stretch:
    """Some tokens of a batch, and what should come after each of them.

    Attributes:
        ids, mask: `[B, T]`, as in `Batch`.
        follows: `[B, T]`, int64, the token after.
        said: `[B, T]`, int64, the answer that token belongs to, from 1; 0: none.
        lower: `[B, T, hidden]`, what enters the first grafted layer, where it is known.
    """

    ids: Tensor
    mask: Tensor
    follows: Tensor
    said: Tensor
    lower: Tensor | None = None

    def to(self, device: torch.device) -> Stretch:
        """On a device."""
        return replace(self, **{name: x.to(device) for name, x in vars(self).items() if x is not None})


def stretches(batch: Batch, length: int) -> list[Stretch]:
    """The batch in pieces of `length` tokens: what is backpropagated through at a time."""
    follows, said = (F.pad(x[:, 1:], (0, 1)) for x in (batch.ids, batch.said))
    return [
        Stretch(
            batch.ids[:, part],
            batch.mask[:, part],
            follows[:, part],
            said[:, part],
            None if batch.lower is None else batch.lower[:, part],
        )
        for part in (slice(begin, begin + length) for begin in range(0, batch.ids.shape[1], length))
    ]


def exact(batch: Batch, right: Tensor) -> list[list[bool]]:
    """Of each example's answers, whether every token was the most likely one: greedy decoding would have said it.

    Args:
        batch: what was read.
        right: `[B, T]`, where the following token was right.
    """
    return [
        [bool(right[row, begin - 1 : end - 1].all()) for begin, end in example.answers]
        for row, example in enumerate(batch.examples)
    ]
