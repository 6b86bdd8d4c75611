"""What `memory-titan bench model` found: tables, the point at which full attention becomes slower, a plot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from memory_titan.benchmarks.measure import Spread
from memory_titan.benchmarks.model import ARCHITECTURES, a_token, against, slope


def markdown(record: dict[str, Any]) -> str:
    """The record as tables."""
    blocks = [_training(part, record["settings"]["tokens"]) for part in record["training"]]
    if record["decoding"] is not None:
        blocks += [_decoding(record["decoding"], record["settings"]["contexts"]), _crossings(record["decoding"])]
    return "\n\n".join(blocks) + "\n"


def crossing(told: dict[str, Any], other: dict[str, Any]) -> tuple[float, bool] | None:
    """The context from which on `other` takes longer a token than `told`.

    Contexts that both have are compared; between two of them the ratio is a straight line in logarithms.

    Returns:
        The context, and whether it lies between two that were measured (False: the first is beyond it already);
        None where `other` is nowhere slower.
    """
    lengths = sorted(set(_lengths(told)) & set(_lengths(other)))
    points = []
    for length in lengths:
        ours, theirs = a_token(told, length), a_token(other, length)
        assert ours is not None and theirs is not None
        points.append((math.log(length), math.log(theirs.median / ours.median)))
    if not points or points[-1][1] <= 0:
        return None
    if all(ratio > 0 for _, ratio in points):
        return float(lengths[0]), False
    last = max(at for at, (_, ratio) in enumerate(points) if ratio <= 0)
    (a, low), (b, high) = points[last], points[last + 1]
    return math.exp(a + (b - a) * -low / (high - low)), True


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw milliseconds a token over the context. Raises ImportError where matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'memory-titan[plot]'") from error
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, told in record["decoding"].items():
        if not told["samples"]:
            continue
        lengths = _lengths(told)
        spreads = [a_token(told, length) for length in lengths]
        found = [spread for spread in spreads if spread is not None]
        style = "o-" if name in ARCHITECTURES else ("s--" if name.startswith(("full", "peer")) else "x:")
        (line,) = axes.plot(lengths, [1e3 * s.median for s in found], style, ms=4, label=name)
        axes.fill_between(
            lengths, [1e3 * s.low for s in found], [1e3 * s.high for s in found], color=line.get_color(), alpha=0.15
        )
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel="tokens of context", ylabel="CPU ms a token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _training(part: dict[str, Any], tokens: int) -> str:
    told = part["contenders"]
    lines = [
        f"A training step, batch {part['batch']} x {tokens}:\n",
        "| contender | parameters | CPU s | range | tokens a CPU s | wall s | peak MiB | of these the step's "
        "| takes, of the window-only one's time | its peak, of that one's | speed, of the peer's |",
        "| --- |" + " --: |" * 10,
    ]
    for name, each in told.items():
        if not each["samples"]:
            lines.append(f"| {name} | {each.get('error', 'no sample')} ||||||||||")
            continue
        cpu, wall = (Spread.of([sample["times"][clock] for sample in each["samples"]]) for clock in (1, 0))
        window = f"window, as {name}"
        slower = against(told, name, window) if window in told else None
        faster = against(told, "peer", name) if name.startswith("mac") and "peer" in told else None
        high, growth = each["samples"][-1]["peak"], each["samples"][-1]["growth"]
        share = "-"
        if window in told and told[window]["samples"] and growth and told[window]["samples"][-1]["growth"]:
            share = f"{growth / told[window]['samples'][-1]['growth']:.2f}x"
        cells = [
            name,
            f"{each['parameters']:,}",
            f"{cpu.median:.2f}",
            f"{cpu.low:.2f} to {cpu.high:.2f}",
            f"{part['batch'] * tokens / cpu.median:,.0f}",
            f"{wall.median:.2f}",
            *("-" if size is None else f"{size / 2**20:.0f}" for size in (high, growth)),
            _times(slower),
            share,
            _times(faster),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _decoding(told: dict[str, Any], contexts: list[int]) -> str:
    header = ["contender", "parameters", *(f"{length:,}" for length in contexts), "last over first", "state, first"]
    header += ["state, last"]
    lines = [
        "CPU milliseconds a token, by tokens of context:\n",
        f"| {' | '.join(header)} |",
        "| --- |" + " --: |" * (len(header) - 1),
    ]
    for name, each in told.items():
        if not each["samples"]:
            lines.append(f"| {name} | {each.get('error', 'no sample')} |" + "|" * (len(header) - 2))
            continue
        cells = [name, f"{each['parameters']:,}"]
        for length in contexts:
            spread = a_token(each, length)
            cells.append("-" if spread is None else f"{1e3 * spread.median:.3g}")
        lengths = _lengths(each)
        cells.append(_times(slope(each, lengths[-1], lengths[0])))
        held = each.get("bytes") or {}
        cells += [f"{held[str(length)]:,}" if held else "-" for length in (lengths[0], lengths[-1])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _crossings(told: dict[str, Any]) -> str:
    lines = ["Full attention of equal size is slower than:\n"]
    for name in ARCHITECTURES:
        if not told[name]["samples"] or not told["full"]["samples"]:
            continue
        found = crossing(told[name], told["full"])
        if found is None:
            lines.append(f"- {name}: nowhere that was measured")
        else:
            lines.append(f"- {name}: from about {found[0]:,.0f} tokens on{'' if found[1] else ', or fewer'}")
    return "\n".join(lines)


def _lengths(told: dict[str, Any]) -> list[int]:
    return sorted(int(length) for length in told["samples"][0]["times"]) if told["samples"] else []


def _times(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.2f}x ({spread.low:.2f} to {spread.high:.2f})"
