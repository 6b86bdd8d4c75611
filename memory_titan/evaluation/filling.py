"""How memories fill up while a long stream of prose with needles is read: their norm and rank, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.evaluation.watching import answer_to, branch_of, mark, watch
from memory_titan.graft.model import MemoryModel
from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.ruler import HuggingFace

LEVELS = 8  # lengths at which the stream's memories are looked at, evenly spaced
EVERY = 128  # tokens of the stream to one needle
SEED = 1_000_003  # of samples made here: none that a recipe would train on


@dataclass(frozen=True)
class Level:
    """A memory after some tokens of the stream.

    Attributes:
        tokens: read.
        norm: of its present weights, all matrices and heads together.
        written: norm of the difference between them and those before the first token.
        rank: effective rank of that difference in the last matrix, mean over heads: the exponential of the entropy of
            its singular values over their sum (Roy & Vetterli 2007).
    """

    tokens: int
    norm: float
    written: float
    rank: float


@dataclass(frozen=True)
class Recall:
    """How needles come back, by how many tokens ago they were written.

    Attributes:
        since, until: tokens ago, from and below.
        cosine: between what the memory answers to a needle's stored key and its stored value, mean.
        nearest: share of them where no value of the stream, of another token, is nearer to that answer.
        asked: how many.
    """

    since: int
    until: int
    cosine: float
    nearest: float
    asked: int


def needle_stream(tokenizer: Any, length: int) -> tuple[Tensor, list[list[int]]]:
    """Made-up prose with a pair of hashes every `EVERY` tokens or so, without questions.

    Args:
        tokenizer: a fast one.
        length: tokens at most.

    Returns:
        `(ids, places)`: `[T]`, int64, and of each needle the tokens of what it tells, its second hash.
    """
    number = max(2, length // EVERY)
    whole = pairs(length + 40 * number, number)  # a question and its answer are at most 40 tokens, at the end
    (sample,) = whole.samples(1, seed=SEED, ruler=HuggingFace(tokenizer, type(tokenizer).__name__))
    marked = mark(sample, tokenizer, "the stream")
    end = min(length, marked.questions[0])
    found = [[place for _, place in places] for places in marked.places]
    return marked.ids[:end], [places for places in found if places and max(places) < end]


def pairs(length: int, number: int) -> HashHopTask:
    """So many pairs of short hashes among made-up prose, all asked for at the end; length in tokens."""
    return HashHopTask(context_len=length, needles=number, questions=number, hash_len=4)


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values over their sum, mean over heads; matrix: `[H, in, out]`, finite."""
    values = torch.linalg.svdvals(matrix.double())
    share = values / values.sum(-1, keepdim=True).clamp(min=1e-30)
    return float(torch.special.entr(share).sum(-1).exp().mean()) if bool(values.any()) else 0.0


class Filling:
    """One layer's memory while the stream is read."""

    def __init__(self, model: MemoryModel, layer: int, length: int) -> None:
        self.memory, self.finite, self.length = branch_of(model, layer).memory, True, length
        self.start: list[Tensor] = []
        self.width = 0
        self.growth: list[Level] = []
        self.points: list[tuple[int, float, bool]] = []  # tokens ago, cosine, nearest

    def look(self, state: Any, tokens: int) -> None:
        """Weigh it as it stands."""
        weights = [w[0].float().cpu() for w in self.memory.present_weights(state)]
        if not self.start:
            self.start, self.width = weights, min(weights[-1].shape[-2:])
        written = [now - before for now, before in zip(weights, self.start, strict=True)]
        norm, change = (math.sqrt(sum(float(w.double().square().sum()) for w in ws)) for ws in (weights, written))
        self.finite = self.finite and math.isfinite(norm)
        self.growth.append(
            Level(tokens, norm, change, effective_rank(written[-1]) if math.isfinite(change) else math.nan)
        )

    def ask(self, state: Any, k: Tensor, v: Tensor, ids: Tensor, places: list[int]) -> None:
        """Ask for needles; k, v `[H, T, d]` and ids `[T]` of all read so far, places of the needles' tokens."""
        assert isinstance(self.memory, NeuralMemory)  # `watching` has refused others
        answer = F.normalize(answer_to(self.memory, k[:, places], state), dim=-1)
        near = torch.einsum("hnd,htd->nt", answer, F.normalize(v, dim=-1)) / len(k)
        best = ids[near.argmax(1)]
        for row, place in enumerate(places):
            self.points.append((len(ids) - place, float(near[row, place]), bool(best[row] == ids[place])))

    def recall(self) -> list[Recall]:
        edges = [0, *(self.length // 2**power for power in range(4, 0, -1)), self.length + 1]
        found = []
        for since, until in pairwise(edges):
            here = [point for point in self.points if since <= point[0] < until]
            if here:
                cosine, nearest = (sum(point[i] for point in here) / len(here) for i in (1, 2))
                found.append(Recall(since, until, cosine, nearest, len(here)))
        return found


def fill(
    model: MemoryModel, ids: Tensor, needles: list[list[int]], on_step: Callable[[str], None]
) -> dict[int, Filling]:
    """Read the stream, and look at every memory at each level.

    Args:
        model: with its memory on, in eval mode.
        ids: `[T]`, int64.
        needles: of each the tokens to ask for.
        on_step: called at most `LEVELS` times.

    Returns:
        by layer; up to where a memory's weights would not have been finite.
    """
    layers = model.graft.layers
    fillings = {layer: Filling(model, layer, len(ids)) for layer in layers}
    session = model.new_session()
    for layer, state in zip(layers, session.state.memories, strict=True):
        fillings[layer].look(state, 0)
    keys: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    values: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    ends = [round(len(ids) * level / LEVELS) for level in range(1, LEVELS + 1)]
    for begin, end in pairwise([0, *ends]):
        try:
            seen = watch(model, ids[begin:end], session)
        except FloatingPointError:
            for filling in fillings.values():  # which of them it was is not told; their last norms are
                filling.finite = False
            break
        on_step("the stream")
        places = [place for needle in needles if max(needle) < end for place in needle]
        for layer, state in zip(layers, session.state.memories, strict=True):
            keys[layer].append(seen[layer].k)
            values[layer].append(seen[layer].v)
            fillings[layer].look(state, end)
            if places:
                k, v = (torch.cat(kept[layer], 1) for kept in (keys, values))
                fillings[layer].ask(state, k, v, ids[:end], places)
    return fillings
