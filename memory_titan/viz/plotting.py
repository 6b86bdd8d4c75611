"""What pictures have in common: matplotlib, colours, and how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Colours of Okabe and Ito: told apart by the colour-blind, and by their marks in print.
STYLES = (
    ("#0072b2", "o", "-"),
    ("#555555", "s", "-"),
    ("#e69f00", "^", "-"),
    ("#d55e00", "v", ":"),
    ("#009e73", "D", ":"),
    ("#cc79a7", "x", ":"),
)


def pyplot() -> Any:
    """matplotlib.pyplot, without a window.

    Raises:
        ImportError: matplotlib is missing (extra: plot).
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "memory-titan[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(plt: Any, figure: Any, path: Path) -> Path:
    """Write and close it."""
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
