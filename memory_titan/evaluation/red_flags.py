"""What a diagnosis warns of: each flag with the number that raised it, the limit it passed, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean

from memory_titan.evaluation.diagnosis import Diagnosis, Layer
from memory_titan.evaluation.filling import Level

# A gate this far open moves the residual a twentieth of the way from attention to the memory: as good as shut.
SHUT = 0.05
# On prose there is nothing to recall: a memory that has more say there than attention replaces reading.
STUCK_OPEN = 0.5
# Gates that open no further for answers than for prose, by as much as counts as shut, tell nothing apart.
BLIND_GATE = 0.05
# At half of the stream: a norm that grew with the root of what was read would be at 0.71 of its end, one that decays
# as fast as it is written to at 1. From here on what is written replaces what was.
FULL = 0.97
# Of needles' tokens, of those that were just written and of those in the first half of the stream: below, more of them
# are lost than kept.
KEPT = 0.5
# The power of length that the norm grows with over the second half. Even writes that all go the same way grow with
# power 1; the rest is room for needles that do not stand quite evenly.
EXPLODING = 1.1
# Share of pairs in which a needle's token has more than filler's: 0.5 is chance, and under 0.6 most of a memory's room
# goes to noise.
SURPRISE_BLIND = 0.6
# Below, what is read is more often dominated by a wrong key than by the right one.
QUERY_BLIND = 0.5
# 2^-8: a change of the residual that bfloat16 rounds away.
DEAD = 2.0**-8
# Of the query's norm: a refinement this short cannot turn it by a degree.
UNUSED = 0.01
# Of the first tenth of the steps' mean loss: what the last tenth must fall below. And the steps that it takes to tell.
NOT_FALLING, STEPS_TO_TELL = 0.9, 20


@dataclass(frozen=True)
class RedFlag:
    """A warning.

    Attributes:
        name: what is wrong.
        value: the number that raised it.
        limit: what it should have kept to.
        layers: where; empty: nowhere in particular.
        says: the number in a sentence.
        advice: what to do about it.
    """

    name: str
    value: float
    limit: float
    layers: tuple[int, ...]
    says: str
    advice: str


def red_flags(found: Diagnosis) -> list[RedFlag]:
    """All warnings that a diagnosis gives rise to, in the order of the measures."""
    checks = (_gates, _writing, _queries, _dead, _refinement, _filling, _training)
    return [flag for check in checks for flag in check(found)]


def _worst(layers: list[Layer], value: Callable[[Layer], float], bad: Callable[[float], bool]) -> tuple[int, ...]:
    return tuple(layer.layer for layer in layers if bad(value(layer)))


def _gates(found: Diagnosis) -> Iterator[RedFlag]:
    layers = found.layers
    top = max(layer.gate["answer"].top for layer in layers)
    if top <= SHUT:
        yield RedFlag(
            "gates stuck shut", top, SHUT, tuple(layer.layer for layer in layers),
            f"no gate opens beyond {top:.3f} where answers are said",
            "the graft says nothing: train on, at a higher rate or with gate_bias nearer to 0; calibrate it first",
        )  # fmt: skip
    if wide := _worst(layers, lambda one: one.gate["prose"].mean, lambda x: x > STUCK_OPEN):
        worst = max(layer.gate["prose"].mean for layer in layers)
        yield RedFlag(
            "gates stuck open", worst, STUCK_OPEN, wide,
            f"on prose, where there is nothing to recall, the mean gate is {worst:.2f}",
            "train with --gate_price, and with texts that have more prose between needles and questions",
        )  # fmt: skip
    open_ones = [layer for layer in layers if layer.gate["answer"].top > SHUT]
    if blind := _worst(open_ones, _telling, lambda x: x < BLIND_GATE):
        least = min(open_ones, key=_telling)
        said, read = least.gate["answer"].mean, least.gate["prose"].mean
        yield RedFlag(
            "gates blind", said - read, BLIND_GATE, blind,
            f"the mean gate is {said:.2f} where answers are said, and {read:.2f} on prose (layer {least.layer}, worst)",
            "they have not learned when to open: train with --gate_price, and with prose in the texts; a later layer "
            "knows better whether an answer is due",
        )  # fmt: skip


def _telling(layer: Layer) -> float:
    return layer.gate["answer"].mean - layer.gate["prose"].mean


def _writing(found: Diagnosis) -> Iterator[RedFlag]:
    best = {
        noise: max(max(layer.contrast[noise][name].auc for name in ("loss", "write")) for layer in found.layers)
        for noise in found.layers[0].contrast
    }
    noise = min(best, key=lambda name: best[name])
    if best[noise] < SURPRISE_BLIND:
        yield RedFlag(
            "surprise blind", best[noise], SURPRISE_BLIND, tuple(layer.layer for layer in found.layers),
            f"a needle's token surprises, or is written, more than one of {noise} in {best[noise]:.0%} of pairs at the "
            "best",
            "what is written does not depend on what matters: hard gates, which can close, a price on writing, and "
            f"texts to train on with more {noise} in them",
        )  # fmt: skip


def _queries(found: Diagnosis) -> Iterator[RedFlag]:
    asked = [(layer.agreement.wins, layer.layer) for layer in found.layers if layer.agreement is not None]
    if asked and max(asked)[0] < QUERY_BLIND:
        best, where = max(asked)
        yield RedFlag(
            "queries blind", best, QUERY_BLIND, tuple(layer for _, layer in asked),
            f"the right key is the nearest to the query for {best:.0%} of answers' tokens (layer {where}, best)",
            "queries and keys do not stand for the same thing: calibrate before training, keys of tokens (--source "
            "tokens), --ngram as long as what a question repeats of its evidence",
        )  # fmt: skip


def _dead(found: Diagnosis) -> Iterator[RedFlag]:
    def change(layer: Layer) -> float:
        return max(layer.change.values())

    if dead := _worst(found.layers, change, lambda x: x < DEAD):
        worst = min(map(change, found.layers))
        yield RedFlag(
            "layer dead", worst, DEAD, dead,
            f"the memory changes the residual by {worst:.2%} of its length at the most",
            "leave the layer out (--layers), or train on: it costs time and says nothing",
        )  # fmt: skip


def _refinement(found: Diagnosis) -> Iterator[RedFlag]:
    refined = [(layer.refinement, layer.layer) for layer in found.layers if layer.refinement is not None]
    if refined and max(refined)[0] < UNUSED:
        best = max(refined)[0]
        yield RedFlag(
            "query refinement unused", best, UNUSED, tuple(layer for _, layer in refined),
            f"what the layer below answered is {best:.2%} of a query at the most",
            "questions of one hop do not need it; train on several hops, or switch it off (query_refinement=False)",
        )  # fmt: skip


def _filling(found: Diagnosis) -> Iterator[RedFlag]:
    layers = found.layers
    unbounded = tuple(layer.layer for layer in layers if not layer.finite)
    if unbounded:
        last = max(layer.growth[-1].tokens for layer in layers)
        yield RedFlag(
            "memory exploding", math.inf, EXPLODING, unbounded,
            f"weights are not finite after {last} tokens of {found.length}",
            "lower max_step, leave step_norm and qk_norm on, or give the memory a decay",
        )  # fmt: skip
    grown = [layer for layer in layers if layer.finite and _half(layer.growth) and layer.growth[-1].written > 0]
    if fast := _worst(grown, lambda one: _power(one.growth), lambda x: x > EXPLODING):
        worst = max(_power(layer.growth) for layer in grown)
        yield RedFlag(
            "memory exploding", worst, EXPLODING, fast,
            f"its norm grows with power {worst:.2f} of the length over the second half of the stream",
            "lower max_step, leave step_norm and qk_norm on, or give the memory a decay",
        )  # fmt: skip
    if full := _worst(grown, lambda one: _half(one.growth) / one.growth[-1].written, lambda x: x > FULL):
        worst = max(_half(layer.growth) / layer.growth[-1].written for layer in grown)
        yield RedFlag(
            "memory saturated", worst, FULL, full,
            f"after half of {found.length} tokens its norm is {worst:.0%} of what it comes to",
            "new writes replace old ones: less decay, a wider or deeper memory, or fewer writes (hard gates)",
        )  # fmt: skip
    yield from _recall(found)


def _recall(found: Diagnosis) -> Iterator[RedFlag]:
    known = [layer for layer in found.layers if layer.recall]
    if not known:
        return
    first = max(known, key=lambda layer: layer.recall[0].nearest)
    if first.recall[0].nearest < KEPT:
        yield RedFlag(
            "nothing stored", first.recall[0].nearest, KEPT, tuple(layer.layer for layer in known),
            f"{first.recall[0].nearest:.0%} of needles' tokens come back within {first.recall[0].until} tokens "
            f"(layer {first.layer}, best)",
            "keys are too much alike, or steps too small: calibrate before training, fewer and wider heads, keys that "
            "stand for more tokens (--ngram)",
        )  # fmt: skip
        return
    old = [layer for layer in known if layer.recall[-1].since >= found.length // 2]
    best = max(old, key=lambda layer: layer.recall[-1].nearest, default=None)
    if best is not None and best.recall[-1].nearest < KEPT:
        yield RedFlag(
            "memory saturated", best.recall[-1].nearest, KEPT, tuple(layer.layer for layer in old),
            f"{best.recall[-1].nearest:.0%} of needles' tokens still come back after {best.recall[-1].since} tokens "
            f"and more, of {best.recall[0].nearest:.0%} within {best.recall[0].until} (layer {best.layer}, best)",
            "the memory is full, or writes too much that is no needle: a wider memory, hard gates, or longer texts to "
            "train on",
        )  # fmt: skip


def _half(growth: list[Level]) -> float:
    """What was written after half of the stream; 0 where that is not known."""
    end = growth[-1].tokens
    return next((level.written for level in growth if level.tokens and abs(2 * level.tokens - end) <= 1), 0.0)


def _power(growth: list[Level]) -> float:
    return math.log2(growth[-1].written / _half(growth))


def _training(found: Diagnosis) -> Iterator[RedFlag]:
    bad = [step for step, loss in found.losses if not math.isfinite(loss)]
    if bad:
        yield RedFlag(
            "loss not finite", float(len(bad)), 0.0, (),
            f"{len(bad)} of {len(found.losses)} recorded losses are no number, the first at step {bad[0]}",
            "lower the learning rate or clip; begin again from the last checkpoint before it",
        )  # fmt: skip
    losses = [loss for _, loss in found.losses if math.isfinite(loss)]
    if len(losses) < STEPS_TO_TELL:
        return
    tenth = max(1, len(losses) // 10)
    first, last = mean(losses[:tenth]), mean(losses[-tenth:])
    if last > NOT_FALLING * first:
        yield RedFlag(
            "loss not falling", last / first, NOT_FALLING, (),
            f"over the last tenth of {len(losses)} steps the mean loss is {last:.3f}, over the first {first:.3f}",
            "calibrate before training, another learning rate, or an easier task to begin with",
        )  # fmt: skip
