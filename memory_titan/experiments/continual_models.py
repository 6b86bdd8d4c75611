"""The models of the experiment on continual learning: readers of examples, and the examples that a replay keeps.

A reader that has a memory reads one stream, item, label, item, label, ...: at an item it is asked for the label, and
the label comes after that. So the bank writes labels under the item before them. The others get each item by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_titan.experiments.continual_streams import Examples, Stream, as_numbers
from memory_titan.memory.slots.layer import MemoryBankState, MultiHeadMemoryBank
from memory_titan.models import (
    MemNet,
    MemNetConfig,
    MemoryLanguageModel,
    RecurrentConfig,
    RecurrentForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
    parameter_count,
    width_of_size,
)
from memory_titan.models.language_model import IGNORE
from memory_titan.models.memnet import MemNetLayer

KINDS = ("transformer", "lstm", "memnet")


@dataclass(frozen=True)
class Size:
    """Of the models; the others take the width that gives them as many parameters as MemNet has.

    Attributes:
        width, layers, heads: of MemNet.
        slots: a head of its bank.
        top_k: slots that a read looks at.
        familiarity: cosine from which an item counts as known.
        slope: of the sigmoid around it.
        staleness: "age" or "usage": what goes first when the slots are full.
        keys: "fixed": what makes keys and values of tokens stays as it was drawn; "learned": it is trained too.
    """

    width: int = 64
    layers: int = 1
    heads: int = 2
    slots: int = 512
    top_k: int = 4
    familiarity: float = 0.75
    slope: float = 50.0
    staleness: str = "age"
    keys: str = "fixed"

    def __post_init__(self) -> None:
        if self.keys not in ("fixed", "learned"):
            raise ValueError(f"keys must be fixed or learned; got {self.keys!r}")


class ItemEncoder(nn.Module):
    """A picture times a random matrix that stays as it was drawn, or the embeddings of dictionary and word, added.

    Args:
        stream: whose items are to be read.
        width: of what comes out.
    """

    def __init__(self, stream: Stream, width: int) -> None:
        super().__init__()
        self.words = stream.words
        if stream.words:
            self.names = nn.Embedding(len(stream.train), width)
            self.meanings = nn.Embedding(stream.words, width)
        else:
            pixels = stream.train[0].items.shape[1]
            self.matrix = nn.Parameter(torch.randn(pixels, width) / pixels**0.5, requires_grad=False)

    def forward(self, items: Tensor) -> Tensor:
        """`[n, k]`, uint8, to `[n, width]`."""
        if self.words:
            one: Tensor = self.names(items[:, 0].long()) + self.meanings(items[:, 1].long())
            return one
        return as_numbers(items) @ self.matrix


class Reader(nn.Module):
    """A language model that reads examples, and says the label of an item.

    Args:
        model: one of the kinds; with slots it reads one stream.
        encoder: items to embeddings.
    """

    def __init__(self, model: MemoryLanguageModel, encoder: ItemEncoder) -> None:
        super().__init__()
        self.model, self.encoder = model, encoder
        nn.init.normal_(model.embed_tokens.weight)  # as large as the items: frozen, they would stay small otherwise

    @property
    def layer(self) -> MemNetLayer | None:
        """The first, if it has a memory."""
        first = self.model.layers[0]
        return first if isinstance(first, MemNetLayer) else None

    def forward(self, items: Tensor, labels: Tensor) -> Any:
        """Read examples in turn, items `[n, k]`, labels `[n]`; the output's loss is that of saying the labels."""
        x = self.encoder(items)
        if self.layer is None:
            return self.model(inputs_embeds=x[:, None], labels=labels[:, None], use_cache=False)
        x = torch.stack([x, self.model.embed_tokens(labels)], 1).flatten(0, 1)
        asked = torch.stack([labels, torch.full_like(labels, IGNORE)], 1).flatten()
        return self.model(inputs_embeds=x[None], labels=asked[None], use_cache=False)

    @torch.no_grad()
    def say(self, items: Tensor, *, forgetful: bool = False) -> Tensor:
        """The labels `[n]` of items `[n, k]`, each by itself. Nothing is written: the memory is read as it stands.

        Args:
            forgetful: with an empty memory.
        """
        self.eval()
        x = self.encoder(items)[:, None]
        layer = self.layer
        if layer is None:
            said: Tensor = self.model(inputs_embeds=x, use_cache=False).logits
            return said[:, 0].argmax(-1)
        assert isinstance(self.model, MemNet) and isinstance(layer.memory, MultiHeadMemoryBank)
        held = layer.memory.initial_state(1) if forgetful or self.model.held is None else self.model.held[0]
        assert isinstance(held, MemoryBankState)
        h, _ = layer.controller(x, None)
        query = layer.controller.emit(h).qkv.chunk(3, -1)[0]
        # In one row, which spares a copy of the state an item: before each stands what the bank's convolution over two
        # tokens last saw, so that none sees another.
        last = held.tail[:, -1:, : query.shape[-1]].expand(len(x), -1, -1)
        read = layer.memory.recall(torch.cat([last, query], 1).flatten(0, 1)[None], held)
        h = layer.fusion(h, read[0, 1::2, None])
        for after in self.model.layers[1:]:
            h, _ = after(h, None, None)
        logits: Tensor = self.model.lm_head(self.model.norm(h))
        return logits[:, 0].argmax(-1)


def build(kind: str, stream: Stream, size: Size) -> Reader:
    """A fresh reader, by torch's own seed.

    Raises:
        ValueError: there is no such kind.
    """

    def memnet() -> Reader:
        bank: dict[str, Any] = {
            "heads": size.heads,
            "slots": size.slots,
            "top_k": size.top_k,
            "staleness": size.staleness,
            "familiarity": size.familiarity,
            "chunk_size": 32,
            "conv_size": 2,
            "write_gate": False,
            "decay": "none",
        }
        # A window of one: an item's key is the item's alone, whatever stood before it.
        shape: dict[str, Any] = {
            "hidden_size": size.width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
        }
        model = MemNet(MemNetConfig(**shape, **common, window=1, persist=True, bank=bank))
        return Reader(model, ItemEncoder(stream, size.width))

    common: dict[str, Any] = {"vocab_size": stream.classes, "tie_word_embeddings": False, "shift_labels": False}
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if kind == "memnet":
        reader = memnet()
        fix(reader, size)
        return reader

    def other(width: int) -> Reader:
        shape: dict[str, Any] = {
            "hidden_size": width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
        }
        if kind == "lstm":
            return Reader(RecurrentForCausalLM(RecurrentConfig(**shape, **common)), ItemEncoder(stream, width))
        return Reader(TransformerForCausalLM(TransformerConfig(**shape, **common)), ItemEncoder(stream, width))

    with torch.device("meta"):
        wanted = parameter_count(memnet())
    return other(width_of_size(other, wanted, 2 * size.heads))


def fix(reader: Reader, size: Size) -> None:
    """Let what makes the keys stay as it was drawn, if they are to be fixed; and the bank's idea of the familiar."""
    layer = reader.layer
    assert layer is not None and isinstance(layer.memory, MultiHeadMemoryBank)
    with torch.no_grad():
        layer.memory.familiarity[0] = size.slope
    layer.memory.familiarity.requires_grad_(False)
    if size.keys == "fixed":
        controller = layer.controller
        for part in (reader.encoder, reader.model.embed_tokens, controller, layer.memory.conv):
            part.requires_grad_(False)
        if controller.gating is not None:
            controller.gating.requires_grad_(True)


def lesson(stream: Stream, seed: int, *, items: int = 16, noise: float = 0.25) -> Examples:
    """What teaches to read and nothing of the tasks: random items with random labels, each twice, the second time near.

    Args:
        stream: of whose shape items and labels are.
        seed: of all of it.
        items: of which there are two readings each.
        noise: part of the pixels that are others at the second reading; a dictionary's words come as they are.

    Returns:
        All first readings, then all second ones in another order.
    """
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(stream.classes, (items,), generator=draw)
    if stream.words:
        known = len(stream.train) * stream.words
        chosen = torch.randperm(known, generator=draw)[:items]
        first = torch.stack([chosen // stream.words, chosen % stream.words], 1).to(torch.uint8)
        again = first
    else:
        first, other = (torch.randint(17, (2, items, 64), generator=draw)).to(torch.uint8)
        again = torch.where(torch.rand(items, 64, generator=draw) < noise, other, first)
    order = torch.randperm(len(labels), generator=draw)
    return Examples(first, labels).join(Examples(again, labels).take(order))


class Replay:
    """Examples kept by reservoir sampling (Vitter 1985): each that came has the same chance to be among them.

    Args:
        capacity: how many.
        seed: of what is kept and what is drawn.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity, self.seen, self.generator = capacity, 0, torch.Generator().manual_seed(seed)
        self.kept: Examples | None = None

    def add(self, examples: Examples) -> None:
        """Let these come, one after the other."""
        if self.capacity < 1:
            return
        for index in range(len(examples)):
            one = examples.take(torch.tensor([index]))
            self.seen += 1
            if self.kept is None or len(self.kept) < self.capacity:
                self.kept = one if self.kept is None else self.kept.join(one)
                continue
            place = int(torch.randint(self.seen, (1,), generator=self.generator))
            if place < self.capacity:
                self.kept.items[place], self.kept.labels[place] = one.items[0], one.labels[0]

    def draw(self, count: int) -> Examples | None:
        """So many of them, with repetition; None: there are none yet."""
        if self.kept is None:
            return None
        return self.kept.take(torch.randint(len(self.kept), (count,), generator=self.generator))


def nearest(kept: Examples, items: Tensor, encoder: ItemEncoder, k: int, sharpness: float = 10.0) -> Tensor:
    """The labels `[n]` that the k nearest of the kept examples give to items: nothing is trained.

    Args:
        kept: to look among.
        items: `[n, k]`.
        encoder: the cosine is that of what it makes.
        k: neighbours.
        sharpness: of the softmax over their cosines.
    """
    with torch.no_grad():
        cosines = F.normalize(encoder(items), dim=-1) @ F.normalize(encoder(kept.items), dim=-1).mT
    best, index = cosines.topk(min(k, len(kept)), -1)
    votes = torch.zeros(len(items), int(kept.labels.max()) + 1)
    return votes.scatter_add(-1, kept.labels[index], torch.softmax(sharpness * best, -1)).argmax(-1)
