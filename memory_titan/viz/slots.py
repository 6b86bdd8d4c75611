"""Pictures of a bank of slots, as a paper prints them: access and content over time, survival, usage, entropy, heads.

All of them take a `SlotRecord` and write one file, whose ending says its kind (.png, .pdf, .svg).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_titan.viz.plotting import STYLES, pyplot, save
from memory_titan.viz.slots_record import SlotRecord
from memory_titan.viz.survival import Survival

_NAMED = 64  # tokens up to which each tells its name
_DARK = 0.6  # cells from here on are so dark that what is written in them is light
_WRITE, _READ = STYLES[0][0], STYLES[3][0]


def draw_access(path: Path, record: SlotRecord, title: str, tokens: Sequence[str] | None = None) -> Path:
    """Where each token wrote and read: a row of pictures a head, time to the right, slots downwards.

    A triangle stands where a token took a slot.

    Args:
        path: of the picture; its folder is there.
        record: of one bank.
        title: above it.
        tokens: T names; shown along the time if there are at most 64.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: not T names; no token was read.
    """
    check_tokens(record.tokens, tokens)
    plt = pyplot()
    H, T = record.heads, record.tokens
    wide, high = max(3.2, min(7.0, 0.1 * T)), max(1.6, min(3.4, 0.05 * record.slots))
    size = 2 * wide + 1.4, high * H + 1.2
    figure, axes = plt.subplots(H, 2, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    for column, (name, weights, colours) in enumerate(
        (("writes", record.writes, "Blues"), ("reads", record.reads, "Oranges"))
    ):
        for head in range(H):
            axis = axes[head][column]
            picture = axis.imshow(weights[:, head].T, vmin=0, vmax=1, cmap=colours, aspect="auto", interpolation="none")
            axis.set_title(f"{name}, head {head}", fontsize=10)
            if name == "writes":
                at = np.nonzero(record.took[:, head] >= 0)[0]
                axis.plot(at, record.took[at, head], "v", color="black", markersize=2.5, linestyle="none")
            if column == 0:
                axis.set_ylabel("slot")
        figure.colorbar(picture, ax=list(axes[:, column]), label=f"weight of {name}", fraction=0.05)
        name_tokens(axes[-1][column], tokens)
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def draw_content(path: Path, record: SlotRecord, title: str, reference: NDArray[Any] | None = None) -> Path:
    """What the slots held as the stream went on: the norm of each content, or its cosine to a reference.

    Args:
        path: of the picture; its folder is there.
        record: with contents (`record_slots` looks at them after each call of the bank).
        title: above it.
        reference: `[d]` or `[H, d]`, what contents are compared with; None: their norms are drawn.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: the record has no contents; the reference does not fit.
    """
    if not len(record.content):
        raise ValueError("the record has no contents: make it with record_slots, or give SlotRecord.of states")
    values = record.content_norm() if reference is None else record.content_cosine(reference)
    plt = pyplot()
    wide, high = max(2.6, min(6.0, 0.18 * len(values))), max(1.8, min(4.0, 0.07 * record.slots))
    size = wide * record.heads + 1.5, high + 1.2
    figure, axes = plt.subplots(1, record.heads, figsize=size, sharey=True, squeeze=False, layout="constrained")
    top = 1.0 if reference is not None else float(values.max()) or 1.0
    low, colours = (-1.0, "PuOr") if reference is not None else (0.0, "viridis")
    marks = np.unique(np.linspace(0, len(values) - 1, min(6, len(values))).astype(int))
    for head, axis in enumerate(axes[0]):
        picture = axis.imshow(values[:, head].T, vmin=low, vmax=top, cmap=colours, aspect="auto", interpolation="none")
        axis.set_title(f"head {head}", fontsize=10)
        axis.set_xticks(marks, [f"{record.content_at[mark]:,}" for mark in marks])
        axis.set_xlabel("tokens read")
    axes[0][0].set_ylabel("slot")
    label = "norm of the content" if reference is None else "cosine to the reference"
    figure.colorbar(picture, ax=list(axes[0]), label=label, fraction=0.05)
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def draw_survival(path: Path, curves: Mapping[str, Survival], title: str) -> Path:
    """The share of slots still held, over tokens since they were taken; below, how many were still watched.

    The band is the 95% interval; a tick stands where the stream ended on a slot that was held; a dot at the half-life.

    Args:
        path: of the picture; its folder is there.
        curves: by name, 1 to 6.
        title: above them.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: there is no curve, or there are more than six.
    """
    if not 0 < len(curves) <= len(STYLES):
        raise ValueError(f"there must be 1 to {len(STYLES)} curves; got {len(curves)}")
    plt = pyplot()
    figure, (axis, table) = plt.subplots(
        2, 1, figsize=(6.5, 3.8 + 0.22 * len(curves)), sharex=True, layout="constrained",
        height_ratios=(1, 0.06 + 0.07 * len(curves)),
    )  # fmt: skip
    end = max(max([0.0, *curve.times, *curve.censored]) for curve in curves.values()) or 1.0
    ticks = _ticks(end)
    for number, ((name, curve), (colour, _, line)) in enumerate(zip(curves.items(), STYLES, strict=False)):
        last = max([0.0, *curve.times, *curve.censored])
        times, steps = [0.0, *curve.times, last], [1.0, *curve.survival]
        half = "not reached" if curve.median is None else f"{curve.median:g} tokens"
        axis.step(times, [*steps, steps[-1]], where="post", color=colour, linestyle=line, linewidth=1.6,
                  label=f"{name} (half-life: {half})")  # fmt: skip
        low, high = [1.0, *curve.low], [1.0, *curve.high]
        axis.fill_between(times, [*low, low[-1]], [*high, high[-1]], step="post", color=colour, alpha=0.15, linewidth=0)
        seen = np.unique(curve.censored)
        axis.plot(seen, curve.at(seen), "|", color=colour, markersize=7, markeredgewidth=1.0)
        if curve.median is not None:
            axis.plot([curve.median], [0.5], "o", color=colour, markersize=5, zorder=4)
        for tick, count in zip(ticks, curve.risk_at(ticks), strict=True):
            table.text(tick, -number, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
    axis.axhline(0.5, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
    axis.set(ylim=(-0.02, 1.04), xlim=(-0.03 * end, 1.03 * end), ylabel="share of slots still held")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8.5, frameon=False, loc="lower left" if _high_left(curves, end) else "upper right")
    table.set(ylim=(0.6 - len(curves), 0.6), xlabel="tokens since the slot was taken")
    axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    table.set_yticks([-number for number in range(len(curves))], list(curves), fontsize=8)
    table.set_title("still watched", fontsize=8.5, loc="left", pad=2)
    table.spines[:].set_visible(False)
    table.tick_params(length=0)
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def draw_usage(path: Path, record: SlotRecord, title: str) -> Path:
    """Where reads (up) and writes (down) go on average, a slot a bar, a head a row; effective slots beside them.

    Args:
        path: of the picture; its folder is there.
        record: of one bank.
        title: above it.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    plt = pyplot()
    H = record.heads
    size = max(4.5, min(9.0, 0.1 * record.slots + 2)), 1.5 * H + 1.2
    figure, axes = plt.subplots(H, 1, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    slots = np.arange(record.slots)
    for head, axis in enumerate(axes[:, 0]):
        shares = []
        for name, sign, colour, hatch in (("reads", 1, _READ, ""), ("writes", -1, _WRITE, "////")):
            axis.bar(slots, sign * record.usage(name)[head], width=0.9, color=colour, hatch=hatch, edgecolor="white",
                     linewidth=0, label=name)  # fmt: skip
            shares.append(f"{name} {100 * record.effective_slots(name)[head]:.0f}%")
        axis.axhline(0, color="black", linewidth=0.8)
        for even in (1 / record.slots, -1 / record.slots):
            axis.axhline(even, color="#888888", linewidth=0.8, linestyle=":")
        axis.set_title(f"head {head}: effective slots of {', of '.join(shares)}", fontsize=9.5, loc="left")
        axis.yaxis.set_major_formatter(lambda y, position: f"{100 * abs(y):g}%")
        axis.set_ylabel("share")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1][0].set_xlabel("slot (dotted: all alike)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def draw_read_entropy(path: Path, record: SlotRecord, title: str, tokens: Sequence[str] | None = None) -> Path:
    """How sharp reads are: their entropy over the stream, and how it is spread; 0: a read looks at one slot.

    Args:
        path: of the picture; its folder is there.
        record: of one bank.
        title: above it.
        tokens: T names; shown along the time if there are at most 64.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: not T names; more than six heads; nothing was ever read.
    """
    check_tokens(record.tokens, tokens)
    if record.heads > len(STYLES):
        raise ValueError(f"at most {len(STYLES)} heads can be told apart; got {record.heads}")
    entropies = record.read_entropy()
    if np.isnan(entropies).all():
        raise ValueError("nothing was ever read")
    plt = pyplot()
    figure, (over_time, spread) = plt.subplots(
        1, 2, figsize=(8.4, 3.2), sharey=True, width_ratios=(3, 1), layout="constrained"
    )
    top = max(float(np.nanmax(entropies)), math.log(2))
    bins = np.linspace(0, top, 21)
    for head in range(record.heads):
        colour, mark, line = STYLES[head]
        mean = float(np.nanmean(entropies[:, head])) if (~np.isnan(entropies[:, head])).any() else math.nan
        over_time.plot(entropies[:, head], color=colour, linestyle=line, marker=mark if record.tokens <= 128 else None,
                       markersize=3, linewidth=1, label=f"head {head}, mean {mean:.2f}")  # fmt: skip
        there = entropies[:, head][~np.isnan(entropies[:, head])]
        spread.hist(there, bins, orientation="horizontal", histtype="step", color=colour, linestyle=line, linewidth=1.4)
    for count in (2, 4, 8, 16):
        if math.log(count) <= top * 1.01:
            for axis in (over_time, spread):
                axis.axhline(math.log(count), color="#999999", linewidth=0.7, linestyle="--", zorder=0)
            spread.annotate(f"{count} slots alike", (1.02, math.log(count)), xycoords=("axes fraction", "data"),
                            ha="left", va="center", fontsize=7.5, color="#555555")  # fmt: skip
    over_time.set(ylabel="entropy of a read, nats", ylim=(-0.03 * top, 1.1 * top))
    spread.set(xlabel="reads")
    name_tokens(over_time, tokens)
    for axis in (over_time, spread):
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def head_specialisation(
    record: SlotRecord, kinds: Sequence[str], at: str | None = None
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """What each head writes and reads, by kinds of token.

    Args:
        record: of one bank.
        kinds: T, what kind each token is.
        at: only reads at tokens of this kind count; None: all.

    Returns:
        `(names, writes, reads)`: the K kinds in the order of their first token; `[H, K]`, how much a token of a kind
        writes on average; `[H, K]`, what share of the reads goes to slots that a token of a kind holds. What the
        reads have left for 1 goes to slots that no token took by more than half. NaN where there was no read.

    Raises:
        ValueError: not T kinds; no token is of the kind `at`.
    """
    check_tokens(record.tokens, kinds)
    names, kind = list(dict.fromkeys(kinds)), np.array(list(kinds))
    if at is not None and at not in names:
        raise ValueError(f"no token is of the kind {at!r}; there are {', '.join(names)}")
    written = record.writes.sum(-1)
    writes = np.stack([written[kind == name].mean(0) for name in names], 1).astype(np.float64)
    asking = record.reads[np.full(len(kind), True) if at is None else kind == at]
    held = record.holders()[np.full(len(kind), True) if at is None else kind == at]
    of = np.where(held >= 0, kind[held], "\0")  # the kind of the token that holds the slot; none: no kind
    with np.errstate(invalid="ignore"):
        total = asking.sum((0, 2))
        reads = np.stack([(asking * (of == name)).sum((0, 2)) / total for name in names], 1).astype(np.float64)
    return names, writes, reads


def draw_heads(path: Path, record: SlotRecord, kinds: Sequence[str], title: str, at: str | None = None) -> Path:
    """`head_specialisation` as two tables: what kinds of token a head writes, and whose slots it reads.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: as `head_specialisation`.
    """
    names, writes, reads = head_specialisation(record, kinds, at)
    plt = pyplot()
    wide, high = max(2.8, 0.75 * len(names)), max(1.0, 0.45 * record.heads)
    figure, axes = plt.subplots(1, 2, figsize=(2 * wide + 1.4, high + 1.9), sharey=True, layout="constrained")
    asked = "" if at is None else f" at {at} tokens"
    for axis, values, colours, name in (
        (axes[0], writes, "Blues", "written by a token of the kind, mean"),
        (axes[1], reads, "Oranges", f"read{asked}: share from slots the kind holds"),
    ):
        axis.imshow(values, vmin=0, vmax=1, cmap=colours, aspect="auto")
        for (head, column), value in np.ndenumerate(values):
            told = "" if np.isnan(value) else f"{value:.2f}"
            axis.text(column, head, told, ha="center", va="center", fontsize=9,
                      color="white" if value > _DARK else "black")  # fmt: skip
        axis.set_title(name, fontsize=9)
        axis.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0)
        axis.set_yticks(range(record.heads), [f"head {head}" for head in range(record.heads)])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def check_tokens(count: int, tokens: Sequence[str] | None) -> None:
    """A name for each of `count` tokens, and at least one token.

    Raises:
        ValueError: it is not so.
    """
    if not count:
        raise ValueError("the record has no tokens")
    if tokens is not None and len(tokens) != count:
        raise ValueError(f"the record has {count} tokens; got {len(tokens)} names")


def name_tokens(axis: Any, tokens: Sequence[str] | None) -> None:
    """Label the time, with the tokens' names if there are at most 64."""
    if tokens is not None and len(tokens) <= _NAMED:
        axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
    axis.set_xlabel("token")


def _high_left(curves: Mapping[str, Survival], end: float) -> bool:
    """Whether the curves stay so high that a legend fits below them."""
    return all(curve.at([end])[0] > 0.45 for curve in curves.values())


def _ticks(end: float) -> list[float]:
    """About six round numbers from 0 to `end`."""
    step = 10 ** math.floor(math.log10(end / 2))
    step *= next(part for part in (1, 2, 5, 10) if end / (part * step) <= 8)
    return [number * step for number in range(int(end / step) + 1)]
