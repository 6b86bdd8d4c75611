"""The figures of a diagnosis, drawn from plain data: what `to_dict` of one gives.

Each comes as a PNG on white, and as an SVG for a page, in the page's colours: light or dark as the reader has it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

# name -> (light, dark). In an SVG the light one is replaced by the page's variable of that name.
COLOURS = {
    "ink": ("#1c1b19", "#efece6"),
    "soft": ("#5f5b55", "#aaa49a"),
    "line": ("#dedad3", "#3a3733"),
    "evidence": ("#b4530a", "#f0a463"),
    "question": ("#3f67a3", "#8fb4ea"),
    "answer": ("#14692f", "#74cf8f"),
    "filler": ("#87827a", "#a8a299"),
    "prose": ("#7b4a9e", "#c39be3"),
    "sixth": ("#a3231c", "#ff9a90"),
}
_INK, _SOFT, _LINE = (COLOURS[name][0] for name in ("ink", "soft", "line"))
_SERIES = ("question", "evidence", "answer", "prose", "sixth", "filler")
_SIZE = (3.9, 2.8)  # inches: a phone's width shows it at its own size
_NAMED = 12  # layers up to which a map's cells tell their number

Found = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A panel: file name, section, title, what it shows in words; `draw` says whether there was something to draw."""

    name: str
    section: str
    title: str
    caption: str
    draw: Callable[[Any, Found], bool]


def drawn(figure: Figure, found: Found) -> tuple[bytes, str] | None:
    """A figure as PNG and as SVG; None: there is nothing to draw.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'memory-titan[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.5,
        "svg.fonttype": "none", "svg.hashsalt": figure.name,
        "text.color": _INK, "axes.labelcolor": _SOFT, "axes.edgecolor": _SOFT, "xtick.color": _SOFT,
        "ytick.color": _SOFT, "axes.titlecolor": _INK, "axes.titlesize": 10.5, "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "grid.color": _LINE,
        "legend.frameon": False, "legend.fontsize": 8.5,
    }  # fmt: skip
    with plt.rc_context(style):
        panel, axes = plt.subplots(figsize=_SIZE, layout="constrained")
        try:
            if not figure.draw(axes, found):
                return None
            axes.set_title(figure.title)
            png, svg = io.BytesIO(), io.StringIO()
            panel.savefig(png, format="png", dpi=200, facecolor="white")
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            panel.savefig(svg, format="svg", transparent=True, metadata=nothing)
        finally:
            plt.close(panel)
    return png.getvalue(), _inline(svg.getvalue(), figure)


def _inline(svg: str, figure: Figure) -> str:
    """An SVG for the page: no header and no addresses, names of its own, and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{figure.name}-", svg)
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{escape(figure.title)}">', svg
    )
    for name, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{name})")
    return svg.strip()


# Panels.


def _by(
    axes: Any,
    found: Found,
    values: Callable[[dict[str, Any]], dict[str, float | None]],
    tops: list[float] | None = None,
) -> bool:
    """Numbers by name and layer: bars where there is one layer, with a stroke at `tops`, else a map."""
    layers = found["layers"]
    names = list(values(layers[0]))
    table = [[values(layer).get(name) for name in names] for layer in layers]
    if len(layers) == 1:
        numbers = [value or 0.0 for value in table[0]]
        colours = [COLOURS.get(name, COLOURS["question"])[0] for name in names]
        axes.barh(names, numbers, color=colours, height=0.62)
        axes.invert_yaxis()
        if tops is not None:
            axes.plot(tops, range(len(tops)), "|", color=_INK, markersize=11, markeredgewidth=1.5)
        for row, value in enumerate(table[0]):
            at = max(0.0, numbers[row], *([] if tops is None else tops[row : row + 1]))
            beside = {"xytext": (4, 0), "textcoords": "offset points"}  # spaces in front would be lost in an SVG
            told = _number(value) if tops is None else f"{_number(value)} | {_number(tops[row])}"
            axes.annotate(told, (at, row), **beside, va="center", fontsize=8.5, color=_INK)
        low, high = min(0.0, *numbers), max(0.0, *numbers)
        axes.set_xlim(low * 1.1, high * 1.2 or 1.0)
        axes.tick_params(axis="y", length=0)
        return True
    axes.figure.set_figheight(max(_SIZE[1], 0.9 + 0.19 * len(layers)))
    cells = [[float("nan") if value is None else value for value in row] for row in table]
    known = [value for row in cells for value in row if math.isfinite(value)]
    low, high = min(0.0, *known), max(known) or 1.0  # from 0, so that small differences look small
    colours = axes.pcolormesh(cells, cmap="YlOrBr", edgecolors="none", vmin=low, vmax=high)
    axes.set_xticks([i + 0.5 for i in range(len(names))], names, fontsize=8)
    axes.set_yticks([i + 0.5 for i in range(len(layers))], [str(layer["layer"]) for layer in layers], fontsize=8)
    axes.set_ylabel("layer")
    axes.tick_params(length=0)
    if len(layers) > _NAMED:
        axes.figure.colorbar(colours, ax=axes)
        return True
    for row, line in enumerate(cells):
        for column, value in enumerate(line):
            ink = "#fefefe" if value > low + 0.65 * (high - low) else "#111111"
            axes.text(column + 0.5, row + 0.5, _number(value), ha="center", va="center", fontsize=7, color=ink)
    return True


def _number(value: float | None) -> str:
    """Short enough for a bar's end."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _gates(axes: Any, found: Found) -> bool:
    first = found["layers"][0]["gate"].values()
    _by(
        axes,
        found,
        lambda layer: {kind: each["mean"] for kind, each in layer["gate"].items()},
        [each["top"] for each in first],
    )
    if len(found["layers"]) == 1:
        axes.set_xlim(min(0.0, axes.get_xlim()[0]), max(1.35, axes.get_xlim()[1]))
        axes.set_xlabel("bar its mean | stroke its largest")
    return True


def _change(axes: Any, found: Found) -> bool:
    return _by(axes, found, lambda layer: layer["change"])


def _writing(name: str) -> Callable[[Any, Found], bool]:
    return lambda axes, found: _by(axes, found, lambda layer: layer["writing"][name])


def _contrast(noise: str) -> Callable[[Any, Found], bool]:
    def draw(axes: Any, found: Found) -> bool:
        if noise not in found["layers"][0]["contrast"]:
            return False
        _by(axes, found, lambda layer: {name: each["auc"] for name, each in layer["contrast"][noise].items()})
        if len(found["layers"]) == 1:
            axes.set_xlim(0, 1.15)
            axes.axvline(0.5, color=_INK, linewidth=1, linestyle=":")
            axes.set_xlabel("share of pairs; dotted: chance")
        return True

    return draw


def _agreement(axes: Any, found: Found) -> bool:
    asked = [layer for layer in found["layers"] if layer["agreement"] is not None]
    if not asked:
        return False
    layer = max(asked, key=lambda one: one["agreement"]["wins"])
    pairs = layer["agreement"]["pairs"]
    right, other = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    low, high = min(*right, *other) - 0.04, 1.04
    axes.plot([low, high], [low, high], color=_SOFT, linewidth=1, linestyle=":")
    axes.plot(other, right, "o", color=COLOURS["answer"][0], alpha=0.45, markersize=4, markeredgewidth=0)
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="nearest other key, cosine", ylabel="right key, cosine")
    told = {"transform": axes.transAxes, "ha": "right", "fontsize": 8.5}
    axes.text(0.86, 0.97, f"right key wins: {layer['agreement']['wins']:.0%}", va="top", **told)
    axes.text(0.98, 0.03, "another wins", **told)
    if len(found["layers"]) > 1:
        axes.set_xlabel(f"nearest other key, cosine; layer {layer['layer']}, the best")
    return True


def _lines(axes: Any, found: Found, points: Callable[[dict[str, Any]], list[tuple[float, float | None]]]) -> None:
    """One line a layer; where there are more than there are colours, from faint to strong as they lie in the model."""
    layers = found["layers"]
    for row, layer in enumerate(layers):
        known = [(x, y) for x, y in points(layer) if y is not None]
        few = len(layers) <= len(_SERIES)
        colour = COLOURS[_SERIES[row] if few else "evidence"][0]
        strong = 1.0 if few else 0.15 + 0.85 * row / (len(layers) - 1)
        label = f"layer {layer['layer']}" if few or row in (0, len(layers) - 1) else None
        axes.plot(*zip(*known, strict=True) if known else ([], []), "o-", color=colour, alpha=strong, label=label,
                  markersize=3.5, linewidth=1.5)  # fmt: skip
    axes.grid(axis="y", linewidth=0.7)
    axes.set_ylim(bottom=0)
    if len(layers) > 1:
        axes.legend()


def _norm(axes: Any, found: Found) -> bool:
    _lines(axes, found, lambda layer: [(level["tokens"], level["written"]) for level in layer["growth"]])
    axes.set(xlabel="tokens read", ylabel="norm of what was written")
    last = found["layers"][0]["growth"][-1]
    if len(found["layers"]) == 1 and last["tokens"] and last["written"]:
        xs = [last["tokens"] * i / 32 for i in range(33)]
        axes.plot(xs, [last["written"] * (x / last["tokens"]) ** 0.5 for x in xs], ":", color=_SOFT, linewidth=1,
                  label="as the root of length")  # fmt: skip
        axes.legend()
    return True


def _rank(axes: Any, found: Found) -> bool:
    _lines(axes, found, lambda layer: [(level["tokens"], level["rank"]) for level in layer["growth"]])
    axes.set(xlabel="tokens read", ylabel=f"effective rank, of {found['layers'][0]['width']}")
    return True


def _recall(name: str) -> Callable[[Any, Found], bool]:
    def draw(axes: Any, found: Found) -> bool:
        if not any(layer["recall"] for layer in found["layers"]):
            return False
        bins = max((layer["recall"] for layer in found["layers"]), key=len)
        _lines(axes, found, lambda layer: [(at, each[name]) for at, each in enumerate(layer["recall"])])
        labels = [f"< {each['until']}" if not each["since"] else f"{each['since']} +" for each in bins]
        axes.set_xticks(range(len(bins)), labels)
        axes.set(xlabel="tokens since the needle was written", ylim=(min(0.0, axes.get_ylim()[0]), 1.05))
        return True

    return draw


def _loss(axes: Any, found: Found) -> bool:
    points = [(step, loss) for step, loss in found["losses"] if loss is not None]
    if len(points) < 2:
        return False
    steps, losses = zip(*points, strict=True)
    wide = max(1, len(losses) // 40)
    means = [sum(losses[max(0, i - wide) : i + 1]) / len(losses[max(0, i - wide) : i + 1]) for i in range(len(losses))]
    axes.plot(steps, losses, color=COLOURS["filler"][0], linewidth=0.7, alpha=0.6)
    axes.plot(steps, means, color=COLOURS["question"][0], linewidth=1.6, label=f"mean of {wide + 1} steps")
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.grid(axis="y", linewidth=0.7)
    axes.set(xlabel="step", ylabel="loss of answers' tokens, nats")
    axes.legend()
    return True


FIGURES = (
    Figure(
        "gate", "Gates", "How far gates open",
        "At tokens before an answer's (answer), at tokens of what it rests on (evidence), of questions, of other "
        "text around them (filler), and of prose, where there is nothing to recall. 0 is attention alone, 1 the "
        "memory alone.",
        _gates,
    ),
    Figure(
        "change", "Gates", "What the graft moves",
        "Length of g (answer - attention) over that of the residual it is added to.",
        _change,
    ),
    Figure(
        "step", "Writing", "Step of the write",
        "Theta, by the token's own kind. A memory that has learned what matters takes larger steps on evidence.",
        _writing("step"),
    ),
    Figure(
        "loss", "Writing", "Surprise",
        "The memory's own loss just before a token is written.",
        _writing("loss"),
    ),
    Figure(
        "write", "Writing", "How much is written",
        "Norm of what the token adds to the weights: its step times its surprise.",
        _writing("write"),
    ),
    Figure(
        "contrast", "Writing", "Needles against filler",
        "Of all pairs of a token of evidence and one of filler, the share in which the needle's is larger: the area "
        "under the curve. 0.5 is chance.",
        _contrast("filler"),
    ),
    Figure(
        "contrast_prose", "Writing", "Needles against prose",
        "The same against tokens of prose.",
        _contrast("prose"),
    ),
    Figure(
        "agreement", "Queries and keys", "Does the right key win?",
        "A point is a token of an answer. Up: cosine of the query from which it is said with the key under which "
        "the evidence's token was written. Across: with the nearest of all other keys read so far.",
        _agreement,
    ),
    Figure(
        "norm", "Filling up", "Norm over length",
        "Norm of the weights' difference to those before the first token, as prose with needles in it is read.",
        _norm,
    ),
    Figure(
        "rank", "Filling up", "Rank over length",
        "How many directions the difference uses: exp of the entropy of its singular values.",
        _rank,
    ),
    Figure(
        "nearest", "Filling up", "Needles that come back",
        "Share of needles' tokens whose stored key is answered with a value that is nearer to theirs than to any "
        "other token's of the stream.",
        _recall("nearest"),
    ),
    Figure(
        "cosine", "Filling up", "How well they come back",
        "Cosine between the memory's answer to a needle's stored key and its stored value.",
        _recall("cosine"),
    ),
    Figure(
        "training", "Training", "Loss in training",
        "As the checkpoint's progress.json has it.",
        _loss,
    ),
)  # fmt: skip
