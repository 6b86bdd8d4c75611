"""What a trained graft does: where its gates open, what it writes, whether its queries find what was written, and how
its memories fill up. Figures by layer and by kind of token; `red_flags` says what is wrong with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.evaluation.filling import LEVELS, SEED, Filling, Level, Recall, fill, needle_stream, pairs
from memory_titan.evaluation.prose import python_help
from memory_titan.evaluation.watching import KINDS, NOTHING, Marked, Watched, mark, watch
from memory_titan.graft.model import MemoryModel
from memory_titan.tasks.ruler import HuggingFace
from memory_titan.tasks.sample import Sample
from memory_titan.tasks.text_task import TooShortError

WRITING = ("step", "loss", "gradient", "write")
OPEN = 0.5  # a gate above it lets more of the memory through than of attention


@dataclass(frozen=True)
class Spread:
    """A gate over tokens of one kind: its mean, its largest, and the share of tokens where it is above `OPEN`."""

    mean: float
    top: float
    open: float
    tokens: int


@dataclass(frozen=True)
class Contrast:
    """Needles against noise: mean over mean, and the share of pairs in which the needle has more (a tie is a half)."""

    ratio: float
    auc: float


@dataclass(frozen=True)
class Agreement:
    """Cosines between queries that should find something and the keys written before them, each head's mean.

    Attributes:
        asked: answers' tokens that stand in their evidence too; the query is where that token is to be said.
        right: mean cosine with the key under which the evidence's token was written.
        others, best_other: mean over all other tokens read so far, and the largest of them, means over the asked.
        wins: share of the asked whose right key is nearer than every other.
        wins_first: the same, of each answer's first such token alone.
        wins_head: the same as `wins`, of the head that has most.
        pairs: of each asked `(right, best other)`.
    """

    asked: int
    right: float
    others: float
    best_other: float
    wins: float
    wins_first: float
    wins_head: float
    pairs: list[tuple[float, float]]


@dataclass(frozen=True)
class Layer:
    """One grafted layer. Dicts go by the kinds of tokens that there were; gates and change count at tokens before an
    answer's as "answer", writing at the answer's own tokens.

    Attributes:
        gate: by kind.
        writing: of step, loss, gradient and write, by kind, means.
        contrast: by noise (filler, where there is any, and prose), of the same: evidence against it.
        agreement: None: no answer's token stands in its evidence.
        change: `|g (answer - attention)|` over the norm of the residual, by kind, means.
        refinement: `|R answer below|` over `|q|`, mean; None: the layer has none.
        width: of the last matrix, the largest rank it can have.
        growth: at each level of the stream, up to where a memory was no longer finite.
        recall: by distance, near first.
        finite: whether the stream was read to its end with finite weights.
    """

    layer: int
    gate: dict[str, Spread]
    writing: dict[str, dict[str, float]]
    contrast: dict[str, dict[str, Contrast]]
    agreement: Agreement | None
    change: dict[str, float]
    refinement: float | None
    width: int
    growth: list[Level]
    recall: list[Recall]
    finite: bool


@dataclass(frozen=True)
class Reading:
    """One sample token by token, for whoever wants to look: its words, and of each layer gate and write."""

    words: list[str]
    gates: dict[int, list[float]]
    writes: dict[int, list[float]]


@dataclass(frozen=True)
class Diagnosis:
    """All that was measured.

    Attributes:
        tokens: read, by kind (of the token itself).
        length: tokens of the stream.
        needles: in it.
        layers: the grafted ones, from the lowest.
        reading: of the first sample.
        losses: of training, `(step, loss)`; empty: not known.
    """

    tokens: dict[str, int]
    length: int
    needles: int
    layers: list[Layer]
    reading: Reading
    losses: list[tuple[int, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        return _plain(asdict(self))


@torch.no_grad()
def diagnose(
    model: MemoryModel,
    tokenizer: Any,
    samples: Sequence[Sample],
    *,
    prose: int = 1024,
    length: int = 2048,
    history: Sequence[dict[str, Any]] = (),
    on_step: Callable[[str], None] = lambda label: None,
) -> Diagnosis:
    """Watch a graft read samples, prose, and a long stream with needles in it.

    Args:
        model: grafted, with its memory on; left as it was.
        tokenizer: its own, a fast one.
        samples: with answers and evidence.
        prose: tokens of Python's help to read, at least 1.
        length: tokens of the stream, at least 64. A model with learned positions reads no further than those.
        history: records of training with "step" and "loss".
        on_step: called at most `steps_of(samples)` times, with the name of the part that was read.

    Raises:
        ValueError: the memory is disabled, the adapter's weights are not finite, a text cannot be read, or there is
            nothing to read.
    """
    if not model.graft.with_memory:
        raise ValueError("the memory is disabled; diagnose the model outside of disable_memory()")
    if not samples or prose < 1 or length < 64:
        raise ValueError(
            f"diagnosis needs samples, prose and a stream of at least 64 tokens; got {len(samples)}, {prose}, {length}"
        )
    for name, parameter in model.branches.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"the adapter's weights are not finite: {name}")
    limit = position_limit(model)
    prose, length = (min(wanted, limit or wanted) for wanted in (prose, length))
    was = model.training
    model.eval()
    try:
        tallies = {layer: _Tally() for layer in model.graft.layers}
        reading: Reading | None = None
        counts = torch.zeros(len(KINDS), dtype=torch.long)
        for number, sample in enumerate(samples):
            marked = mark(sample, tokenizer, f"sample {number}")
            counts += torch.bincount(marked.read[marked.read != NOTHING], minlength=len(KINDS))
            seen = _watch(model, marked.ids, f"sample {number}")
            for layer, one in seen.items():
                tallies[layer].add(one, marked.read, marked.saying)
                tallies[layer].ask(one, marked)
            reading = reading or Reading(
                list(marked.words),
                {layer: one.gate.tolist() for layer, one in seen.items()},
                {layer: one.write.tolist() for layer, one in seen.items()},
            )
            on_step("samples")
        ids = python_help(tokenizer, prose)
        kinds = torch.full((len(ids),), KINDS.index("prose"))
        counts[KINDS.index("prose")] = len(ids)
        for layer, one in _watch(model, ids, "the prose").items():
            tallies[layer].add(one, kinds, kinds)
        on_step("prose")
        stream, places = needle_stream(tokenizer, length)
        fillings = fill(model, stream, places, on_step)
    finally:
        model.train(was)
    assert reading is not None
    return Diagnosis(
        tokens={kind: int(count) for kind, count in zip(KINDS, counts, strict=True) if count},
        length=len(stream),
        needles=len(places),
        layers=[tallies[layer].told(model, layer, fillings[layer]) for layer in model.graft.layers],
        reading=reading,
        losses=[(int(record["step"]), float(record["loss"])) for record in history if "loss" in record],
    )


def summary(found: Diagnosis) -> tuple[list[str], list[list[str]]]:
    """Headings and, of each layer, what matters most, as text."""
    columns = [
        "layer", "gate at answers", "gate on prose", "write AUC, filler", "write AUC, prose", "right key wins",
        "residual moved at answers", "norm", "rank", "old needles back",
    ]  # fmt: skip
    rows = []
    for layer in found.layers:
        asked, last = layer.agreement, layer.growth[-1]
        rows.append([
            str(layer.layer),
            f"{layer.gate['answer'].mean:.2f}",
            f"{layer.gate['prose'].mean:.2f}",
            *(f"{layer.contrast[k]['write'].auc:.2f}" if k in layer.contrast else "-" for k in ("filler", "prose")),
            "-" if asked is None else f"{asked.wins:.0%}",
            f"{layer.change['answer']:.0%}",
            f"{last.norm:.3g}" if layer.finite else "not finite",
            f"{last.rank:.0f} of {layer.width}",
            f"{layer.recall[-1].nearest:.0%}" if layer.recall else "-",
        ])  # fmt: skip
    return columns, rows


def steps_of(samples: Sequence[Sample]) -> int:
    """How often `diagnose` calls `on_step`."""
    return len(samples) + 1 + LEVELS


def position_limit(model: MemoryModel) -> int | None:
    """Tokens that the base model has positions for; None: any number."""
    if not model.graft.architecture.learned_positions:
        return None
    return int(model.config.get_text_config().max_position_embeddings)


def hash_hop_samples(tokenizer: Any, number: int, window: int | None = None, limit: int | None = None) -> list[Sample]:
    """Samples to diagnose on where there are no others: six pairs of hashes among made-up prose, all asked for.

    Args:
        tokenizer: measures their length, 256 tokens, or twice the window, or as much as the pairs need.
        number: how many.
        window: of attention.
        limit: tokens at most.

    Raises:
        ValueError: `limit` is too short for the pairs.
    """
    ruler = HuggingFace(tokenizer, type(tokenizer).__name__)
    length = max(256, 2 * (window or 0))
    try:
        return list(pairs(min(length, limit or length), 6).samples(number, seed=SEED, ruler=ruler))
    except TooShortError as error:
        length = min(2 * error.needed, limit or 2 * error.needed)
        return list(pairs(length, 6).samples(number, seed=SEED, ruler=ruler))


def _watch(model: MemoryModel, ids: Tensor, what: str) -> dict[int, Watched]:
    try:
        return watch(model, ids, model.new_session())
    except FloatingPointError as error:
        raise ValueError(f"a memory broke down while it read {what}: {error}") from error


class _Tally:
    """What is gathered of one layer over texts."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []  # [T, 2 kinds, gate, change, refinement, writing]
        self.cosines: list[tuple[Tensor, bool]] = []  # of each asked [H + 1, 3], right, mean and best other; if first
        self.refined = False

    def add(self, one: Watched, read: Tensor, saying: Tensor) -> None:
        self.refined = one.refinement is not None
        refinement = torch.zeros_like(one.gate) if one.refinement is None else one.refinement
        columns = [read, saying, one.gate, one.change, refinement, *(getattr(one, name) for name in WRITING)]
        self.rows.append(torch.stack([column.double() for column in columns], 1))

    def ask(self, one: Watched, marked: Marked) -> None:
        """Compare the query at each token before an answer's with all keys up to there."""
        q, k = F.normalize(one.q, dim=-1), F.normalize(one.k, dim=-1)
        for places in marked.places:
            for number, (token, place) in enumerate(places):
                cosine = torch.einsum("hd,htd->ht", q[:, token - 1], k[:, :token])
                cosine = torch.cat([cosine, cosine.mean(0, keepdim=True)])
                other = torch.cat([cosine[:, :place], cosine[:, place + 1 :]], 1)
                found = torch.stack([cosine[:, place], other.mean(1), other.amax(1)], 1)
                self.cosines.append((found, number == 0))

    def told(self, model: MemoryModel, layer: int, filling: Filling) -> Layer:
        rows = torch.cat(self.rows)
        read, saying, gate, change, refinement = rows[:, :5].unbind(1)
        writing = dict(zip(WRITING, rows[:, 5:].unbind(1), strict=True))
        here, spoken = (
            {name: kinds == index for index, name in enumerate(KINDS) if bool((kinds == index).any())}
            for kinds in (read, saying)
        )
        return Layer(
            layer=layer,
            gate={kind: _spread(gate[where]) for kind, where in spoken.items()},
            writing={
                name: {kind: float(x[where].mean()) for kind, where in here.items()} for name, x in writing.items()
            },
            contrast={
                noise: {name: contrast(x[here["evidence"]], x[here[noise]]) for name, x in writing.items()}
                for noise in ("filler", "prose")
                if noise in here
            },
            agreement=self._agreement(),
            change={kind: float(change[where].mean()) for kind, where in spoken.items()},
            refinement=float(refinement.mean()) if self.refined else None,
            width=filling.width,
            growth=filling.growth,
            recall=filling.recall(),
            finite=filling.finite,
        )

    def _agreement(self) -> Agreement | None:
        if not self.cosines:
            return None
        found = torch.stack([one for one, _ in self.cosines])  # [asked, H + 1, 3], the mean over heads last
        won = (found[..., 0] > found[..., 2]).double()
        first = torch.tensor([is_first for _, is_first in self.cosines])
        right, others, best = found[:, -1].mean(0).tolist()
        return Agreement(
            asked=len(found),
            right=right,
            others=others,
            best_other=best,
            wins=float(won[:, -1].mean()),
            wins_first=float(won[first, -1].mean()),
            wins_head=float(won[:, :-1].mean(0).max()),
            pairs=[(one, other) for one, _, other in found[:, -1].tolist()],
        )


def _spread(x: Tensor) -> Spread:
    return Spread(float(x.mean()), float(x.max()), float((x > OPEN).double().mean()), len(x))


def contrast(needles: Tensor, noise: Tensor) -> Contrast:
    """Needles `[n]` against noise `[m]`."""
    ordered = noise.sort().values
    below, upto = (torch.searchsorted(ordered, needles, right=right).double() for right in (False, True))
    mean = float(noise.mean())
    ratio = float(needles.mean()) / mean if mean else math.inf if float(needles.mean()) else 1.0
    return Contrast(ratio, float((below + upto).mean()) / (2 * len(noise)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
