"""What a language model is trained for, and how it is judged: the loss of a segment, bits per byte of held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_titan.memory.state import MemoryState
from memory_titan.models.cache import StateCache
from memory_titan.models.language_model import IGNORE, MemoryLanguageModel
from memory_titan.training.lm_watch import MemoryWatch
from memory_titan.training.streams import Piece, read_beside
from memory_titan.training.text import Document


class SegmentLoss(nn.Module):
    """Reads a segment; a module, so that DDP and FSDP can wrap it.

    Labels are given where they are to be said, `shift_labels=False`: so the last token of a segment is trained, too,
    on the first of the next. The model's configuration says again what it said, once it was called.

    Args:
        model: the language model.
        bf16: whether to autocast.
    """

    def __init__(self, model: MemoryLanguageModel, bf16: bool = False) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16
        self._no_split_modules = _units(model)

    def forward(self, piece: Piece, cache: StateCache | None) -> tuple[Tensor, StateCache]:
        """One segment.

        Args:
            piece: of this process's rows.
            cache: the stream so far; None: rows begin.

        Returns:
            the model's loss, 0-d, the mean over labels, with whatever the model adds to it; and the stream.
        """
        with autocast(piece.ids.device, self.bf16):
            cache = begin(self.model, piece, cache, None)
            config, shift = self.model.config, self.model.config.shift_labels
            config.shift_labels = False
            try:
                out = self.model(
                    input_ids=piece.ids, attention_mask=piece.mask, labels=piece.labels, past_key_values=cache
                )
            finally:
                config.shift_labels = shift
        return out.loss, out.past_key_values


def _units(model: MemoryLanguageModel) -> list[str]:
    """The classes of layers that FSDP shares out one by one; others are shared out with the embedding and the head.

    Accelerate finds them by class, and so within layers too, where a part's weights may be used outside of its call.
    """
    kinds = {type(layer) for layer in model.layers}
    within = [part for layer in model.layers for part in layer.modules() if part is not layer]
    return sorted(kind.__name__ for kind in kinds if not any(isinstance(part, kind) for part in within))


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    """To bfloat16, or not at all."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def begin(
    model: MemoryLanguageModel, piece: Piece, cache: StateCache | None, initial: Sequence[MemoryState] | None
) -> StateCache:
    """The stream that a segment goes on with, in which rows that begin stand at their beginning.

    Args:
        model: whose stream it is.
        piece: says which rows begin.
        cache: the stream so far; None: all begin.
        initial: the initial states, of as many rows; None: the model is asked, so that they have their gradient.
    """
    starts = piece.begins[:, 0]
    if cache is None or bool(starts.all()):
        return StateCache()
    if bool(starts.any()):
        cache = cache.copy()
        cache.reset_rows(starts.nonzero()[:, 0], model.initial_states(len(starts)) if initial is None else initial)
    return cache


@torch.no_grad()
def evaluate(
    model: MemoryLanguageModel,
    documents: Sequence[Document],
    rows: int,
    unit: int,
    *,
    carry: bool = True,
    bf16: bool = False,
    share: tuple[int, int] = (0, 1),
    total: Callable[[Tensor], Tensor] = lambda x: x,
    watch: MemoryWatch | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """How well held-out text is predicted, every file from its first token to its last.

    Args:
        model: put into eval mode meanwhile.
        documents: the text.
        rows: read beside each other.
        unit: tokens read at once.
        carry: whether a file's state goes on through all of it; else it begins afresh with every `unit`.
        bf16: whether to autocast.
        share: this process's number, and of how many, which divide rows; all call this alike.
        total: adds up over processes.
        watch: looks at the memories meanwhile.
        stopped: asked between units; if so, None is returned.

    Returns:
        bits_per_byte, nats_per_token, tokens, bytes; and what was watched.
    """
    training = model.training
    model.eval()
    own = min(rows // share[1], -(-len(documents) // share[1]))  # rows for more files than there are would idle
    chosen = slice(share[0] * own, (share[0] + 1) * own)
    device = model.device
    nats = torch.zeros(2, dtype=torch.float64)
    try:
        with watch or nullcontext(), autocast(device, bf16):
            initial = model.initial_states(own) if carry else None
            cache: StateCache | None = None
            for whole in read_beside(documents, own * share[1], unit):
                if stopped():
                    return None
                piece = whole.rows(chosen).to(device)
                cache = begin(model, piece, cache if carry else None, initial)
                logits = model(piece.ids, attention_mask=piece.mask, past_key_values=cache).logits
                said, labels = logits.float().flatten(0, 1), piece.labels.flatten()
                found = F.cross_entropy(said, labels, ignore_index=IGNORE, reduction="sum")
                nats += torch.tensor([float(found), float((labels != IGNORE).sum())], dtype=torch.float64)
                if watch is not None:
                    watch.look(cache, piece.ids.shape, piece.mask)
    finally:
        model.train(training)
    all_nats, tokens = total(nats).tolist()
    size = sum(document.size for document in documents)
    return {
        "bits_per_byte": all_nats / math.log(2) / size,
        "nats_per_token": all_nats / max(1.0, tokens),
        "tokens": int(tokens),
        "bytes": size,
        **({} if watch is None else watch.take()),
    }


@torch.no_grad()
def grows(model: MemoryLanguageModel) -> bool:
    """Whether the state gets larger with every token, as full attention's does."""
    training, cache, sizes = model.training, StateCache(), []
    model.eval()
    for _ in range(4):
        model(input_ids=torch.zeros(1, 256, dtype=torch.long, device=model.device), past_key_values=cache)
        sizes.append(cache.nbytes)
    model.train(training)
    return all(one < other for one, other in pairwise(sizes))
