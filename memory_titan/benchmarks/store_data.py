"""What the benchmark of the store is filled with: texts, metadata, vectors, and queries.

Texts are the sentences of the standard library's docstrings, real English of 4 to 60 words; where these run out they
come again with a number behind them. Vectors are rows of a file (real embeddings, one hopes), or made up: unit vectors
in clusters, of few directions as embeddings are. Text and vector of an item have nothing to do with each other, which
costs no contender anything: what is timed does not look at both.
"""

from __future__ import annotations

import ast
import json
import re
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

SINGLE, QUERIES = 300, 200  # items that are added one by one, and queries
USERS, PAGES = 50, 400  # different values of the metadata that is filtered by
FILTERS: dict[str, dict[str, Any]] = {"1 in 50": {"user": "u7"}, "1 in 2": {"page": {"$lt": PAGES // 2}}}
_LATENT = 64  # directions that made-up vectors mostly lie in
_SEED = 0


def write_data(folder: Path, size: int, dim: int, vectors: Path | None) -> None:
    """Write texts, vectors and queries for a store of `size` items, and `SINGLE` more, into a folder.

    Raises ValueError where the file holds too few vectors, or none.
    """
    count, random = size + SINGLE, np.random.default_rng(_SEED)
    rows = made_up(count + QUERIES, dim) if vectors is None else _rows(vectors, count + QUERIES)
    np.save(folder / "vectors.npy", rows[:count])
    np.save(folder / "queries.npy", rows[count:])
    sentences = docstring_sentences()
    texts = [
        sentences[n % len(sentences)] + (f" ({n // len(sentences)})" * (n >= len(sentences))) for n in range(count)
    ]
    asked = [random.permutation(sentences[n].split())[:6] for n in random.integers(0, len(sentences), QUERIES)]
    (folder / "texts.json").write_text(json.dumps(texts))
    (folder / "queries.json").write_text(json.dumps([" ".join(words) for words in asked]))


@lru_cache(1)
def docstring_sentences() -> list[str]:
    """Different sentences of the standard library's docstrings, about twenty thousand."""
    found: dict[str, None] = {}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"site-packages", "dist-packages", "test", "tests", "idlelib"} & set(file.parts):
            continue
        try:
            tree = ast.parse(file.read_text("utf-8"))
        except (SyntaxError, ValueError, OSError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", ast.get_docstring(node) or ""):
                    words = part.split()
                    if 4 <= len(words) <= 60:
                        found[" ".join(words)] = None
    return list(found)


def made_up(count: int, dim: int) -> Vectors:
    """`[count, dim]`, unit vectors in clusters of about fifty."""
    random = np.random.default_rng(_SEED)
    latent = min(_LATENT, dim)
    directions = random.normal(size=(latent, dim)).astype(np.float32) / np.float32(np.sqrt(latent))
    centres = random.normal(size=(count // 50 + 1, latent)).astype(np.float32)
    rows = np.empty((count, dim), np.float32)
    for begin in range(0, count, 8192):
        part = slice(begin, min(begin + 8192, count))
        n = part.stop - part.start
        near = centres[random.integers(0, len(centres), n)] + random.normal(size=(n, latent)).astype(np.float32)
        rows[part] = near @ directions + 0.3 * random.normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _rows(file: Path, count: int) -> Vectors:
    rows = np.load(file, mmap_mode="r", allow_pickle=False)
    if rows.ndim != 2 or len(rows) < count:
        raise ValueError(f"{file} must hold at least {count} vectors, one a row; it has shape {list(rows.shape)}")
    taken = np.array(rows[:count], np.float32)
    return taken / np.linalg.norm(taken, axis=1, keepdims=True)
