"""Two pictures of what a memory answers: over length and depth of the text, and over the distance to the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory_titan.viz.plotting import STYLES, pyplot, save

Point = tuple[float, float, float, float]  # tokens, share, and the share's interval from and to
Rows = Sequence[Sequence[float | None]]  # [depths, lengths], shares from 0 to 1; None: nothing was asked there

_DARK = 0.45  # cells from here on are so light that what is written in them is dark


def draw_heat(
    path: Path, maps: Mapping[str, Rows], lengths: Sequence[int], depths: Sequence[float], title: str
) -> Path:
    """A map a way of asking, side by side: length to the right, depth downwards, colour and number the share.

    Args:
        path: of the picture, by its ending; its folder is there.
        maps: rows by depth, by name.
        lengths: tokens, a column each.
        depths: from 0, the start of the text, to 1, its end; a row each.
        title: above them.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: there is no map, or one of another shape.
    """
    if not maps:
        raise ValueError("there is no map to draw")
    for name, rows in maps.items():
        if len(rows) != len(depths) or any(len(row) != len(lengths) for row in rows):
            raise ValueError(f"{name}: a map needs {len(depths)} rows of {len(lengths)} numbers")
    plt = pyplot()
    wide, high = max(2.6, 0.62 * len(lengths)), max(1.6, 0.45 * len(depths))
    size = max(wide * len(maps) + 1.6, 0.09 * len(title)), high + 1.5  # no narrower than the title
    figure, axes = plt.subplots(1, len(maps), figsize=size, sharey=True, squeeze=False, layout="constrained")
    picture: Any = None
    for axis, (name, rows) in zip(axes[0], maps.items(), strict=True):
        shares = [[float("nan") if share is None else share for share in row] for row in rows]
        picture = axis.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for row, depth_shares in enumerate(rows):
            for column, share in enumerate(depth_shares):
                colour = "black" if share is None or share > _DARK else "white"
                told = "" if share is None else f"{share:.2f}"
                axis.text(column, row, told, ha="center", va="center", color=colour, fontsize=9)
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], rotation=45 if len(lengths) > 4 else 0)
        axis.set_yticks(range(len(depths)), [f"{100 * depth:g}%" for depth in depths])
        axis.set_xlabel("tokens in the text")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    axes[0][0].set_ylabel("depth of the evidence")
    figure.colorbar(picture, ax=list(axes[0]), label="share said right", fraction=0.05)
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)


def draw_distance(path: Path, curves: Mapping[str, Sequence[Point]], window: int | None, title: str) -> Path:
    """Shares over the tokens from the evidence to the answer, with their intervals, and where attention's window ends.

    Args:
        path: of the picture, by its ending; its folder is there.
        curves: points by name, at most six curves.
        window: tokens; None: attention sees everything, and no line is drawn.
        title: above them.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
        ValueError: there is no curve, or there are more than six.
    """
    if not 0 < len(curves) <= len(STYLES):
        raise ValueError(f"there must be 1 to {len(STYLES)} curves; got {len(curves)}")
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for number, ((name, points), (colour, mark, line)) in enumerate(zip(curves.items(), STYLES, strict=False)):
        aside = 1.025 ** (number - (len(curves) - 1) / 2)  # so that intervals do not hide each other
        at = [point[0] * aside for point in points]
        middle = [point[1] for point in points]
        spread = [
            [max(0.0, p[1] - p[2]) for p in points],
            [max(0.0, p[3] - p[1]) for p in points],
        ]
        axis.errorbar(at, middle, yerr=spread, color=colour, marker=mark, linestyle=line, markersize=5,
                      linewidth=1.4, elinewidth=0.9, capsize=2, label=name)  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda x, position: f"{x:,.0f}")
    if window is not None:
        left, right = axis.get_xlim()
        axis.set_xlim(min(left, window * 0.8), max(right, window * 1.25))
        axis.axvline(window, color="black", linewidth=1, linestyle="--")
        axis.annotate(f" window: {window:,} tokens", (window, 1.0), xycoords=("data", "axes fraction"),
                      xytext=(2, -4), textcoords="offset points", va="top", fontsize=9)  # fmt: skip
    axis.set(ylim=(-0.04, 1.12), xlabel="tokens from the nearest evidence to the answer", ylabel="share said right")
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(3, len(curves)), fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return save(plt, figure, path)
