"""Pictures of a neural memory, as a paper prints them: surprise, gates, weights over time, decay, kinds of token.

All of them take a `NeuralRecord` and write one file, whose ending says its kind (.png, .pdf, .svg).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_titan.viz.neural_record import NeuralRecord
from memory_titan.viz.plotting import STYLES, pyplot, save
from memory_titan.viz.slots import check_tokens, name_tokens

SURPRISE = (("loss", "loss before the write"), ("gradient", "norm of its gradient"), ("write", "norm of the write"))
GATES = (("step", "step θ"), ("decay", "decay α"), ("momentum", "momentum η"))
_MARKED = 128  # tokens up to which each has a mark
_DARK = 0.6  # cells from here on, of the largest, are so dark that what is written in them is light


def draw_surprise(path: Path, record: NeuralRecord, title: str, tokens: Sequence[str] | None = None) -> Path:
    """Surprise over the stream, of each head: loss, gradient and write below each other; beside them, their spread.

    Args:
        path: of the picture; its folder is there.
        record: of one memory.
        title: above it.
        tokens: T names; shown along the time if there are at most 64.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: not T names; no token was read; more than six heads.
    """
    return _over_time(path, record, SURPRISE, title, tokens)


def draw_gates(path: Path, record: NeuralRecord, title: str, tokens: Sequence[str] | None = None) -> Path:
    """The gates over the stream, as `draw_surprise`: step, decay, and momentum where the memory has one."""
    return _over_time(path, record, GATES if record.momentum.any() else GATES[:2], title, tokens)


def draw_weights(path: Path, record: NeuralRecord, title: str, names: Sequence[str] | None = None) -> Path:
    """The weights over the stream, a column a matrix: norm; distance from the start; what each look found moved.

    Args:
        path: of the picture; its folder is there.
        record: of one memory.
        title: above it.
        names: of the M matrices; None: "matrix 0" and so on.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: not M names; no token was read; more than six heads.
    """
    _check(record, None)
    M = record.matrices
    if names is not None and len(names) != M:
        raise ValueError(f"the memory has {M} matrices; got {len(names)} names")
    plt = pyplot()
    figure, axes = plt.subplots(3, M, figsize=(2.7 * M + 1.2, 4.8), sharex=True, squeeze=False, layout="constrained")
    rows = (("norm", "norm"), ("away", "distance from\nthe start"), ("moved", "moved since\nthe look before"))
    for row, (name, label) in enumerate(rows):
        values = getattr(record, name)
        for matrix, axis in enumerate(axes[row]):
            for head in range(record.heads):
                colour, _, line = STYLES[head]
                seen = slice(1, None) if name == "moved" else slice(None)  # nothing moved before the first token
                axis.plot(record.looked_at[seen], values[seen, head, matrix], color=colour, linestyle=line,
                          linewidth=1.2, label=f"head {head}")  # fmt: skip
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
            if row == 0:
                axis.set_title(f"matrix {matrix}" if names is None else names[matrix], fontsize=10)
        axes[row][0].set_ylabel(label)
    for axis in axes[-1]:
        axis.set_xlabel("tokens written")
    _legend(figure, axes[0][0])
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def draw_decay(path: Path, record: NeuralRecord, title: str) -> Path:
    """What decay alone leaves of a write, over the tokens that follow it; a dot at the half-life (`half_life`).

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: no token was read; more than six heads.
    """
    _check(record, None)
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    left, halves = record.left(), half_life(record)
    for head, half in enumerate(halves):
        colour, _, line = STYLES[head]
        told = "not reached" if half is None else f"{half:,} tokens"
        axis.plot(left[:, head], color=colour, linestyle=line, linewidth=1.6, label=f"head {head} (half-life: {told})")
        if half is not None:
            axis.plot([half], [left[half, head]], "o", color=colour, markersize=5)
    axis.axhline(0.5, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
    axis.set(ylim=(-0.02, 1.04), xlabel="tokens since the write", ylabel="share that decay leaves")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8.5, frameon=False)
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def half_life(record: NeuralRecord) -> list[int | None]:
    """A head, the tokens after which decay leaves half of a write or less; None: it never does within the stream."""
    below = record.left() <= 0.5
    return [int(column.argmax()) if column.any() else None for column in below.T]


def draw_kinds(path: Path, record: NeuralRecord, kinds: Sequence[str], title: str) -> Path:
    """What each head makes of kinds of token, three tables: mean step, mean loss, mean norm of the write.

    A table is coloured up to its largest number.

    Args:
        path: of the picture; its folder is there.
        record: of one memory.
        kinds: T, what kind each token is.
        title: above it.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: not T kinds; no token was read.
    """
    check_tokens(record.tokens, kinds)
    names, means = record.by_kind(kinds)
    plt = pyplot()
    wide, high = max(2.4, 0.66 * len(names)), max(1.0, 0.45 * record.heads)
    figure, axes = plt.subplots(1, 3, figsize=(3 * wide + 0.9, high + 1.9), sharey=True, layout="constrained")
    tables = (("step", "step θ", "Greens"), ("loss", "loss", "Oranges"), ("write", "norm of the write", "Blues"))
    for axis, (of, name, colours) in zip(axes, tables, strict=True):
        values = means[of]
        top = float(values.max()) or 1.0
        axis.imshow(values, vmin=0, vmax=top, cmap=colours, aspect="auto")
        for (head, column), value in np.ndenumerate(values):
            axis.text(column, head, f"{value:.2g}", ha="center", va="center", fontsize=9,
                      color="white" if value > _DARK * top else "black")  # fmt: skip
        axis.set_title(f"{name}, mean", fontsize=9)
        axis.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0)
        axis.set_yticks(range(record.heads), [f"head {head}" for head in range(record.heads)])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def _over_time(
    path: Path,
    record: NeuralRecord,
    measures: Sequence[tuple[str, str]],
    title: str,
    tokens: Sequence[str] | None,
) -> Path:
    _check(record, tokens)
    plt = pyplot()
    figure, axes = plt.subplots(
        len(measures), 2, figsize=(7.0, 1.3 * len(measures) + 0.9), sharex="col", sharey="row", width_ratios=(4, 1),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for (over_time, spread), (name, label) in zip(axes, measures, strict=True):
        values: NDArray[Any] = 1 - record.keep if name == "decay" else getattr(record, name)
        top = float(values.max()) or 1.0
        for head in range(record.heads):
            colour, mark, line = STYLES[head]
            over_time.plot(values[:, head], color=colour, linestyle=line, linewidth=1, markersize=3,
                           marker=mark if record.tokens <= _MARKED else None, label=f"head {head}")  # fmt: skip
            spread.hist(values[:, head], np.linspace(0, 1.0001 * top, 21), orientation="horizontal", histtype="step",
                        color=colour, linestyle=line, linewidth=1.4)  # fmt: skip
        over_time.set(ylabel=label, ylim=(-0.03 * top, 1.08 * top))
        for axis in (over_time, spread):
            axis.spines[["top", "right"]].set_visible(False)
    axes[-1][1].set_xlabel("tokens")
    name_tokens(axes[-1][0], tokens)
    _legend(figure, axes[0][0])
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9, frameon=False)


def _check(record: NeuralRecord, tokens: Sequence[str] | None) -> None:
    check_tokens(record.tokens, tokens)
    if record.heads > len(STYLES):
        raise ValueError(f"at most {len(STYLES)} heads can be told apart; got {record.heads}")
