"""Documentation that is on any machine with Python: docstrings of the standard library, and what they are about.

    item       the docstring without its first sentence, the function's own name replaced by "this"
    question   the first sentence: "Return a new array of bytes from the string."

A search has to find the explanation by the summary. Every item is a session of its own: what stands beside it in a list
tells nothing of it. Sources are parsed, not imported, so that the set is the same wherever the same Python is.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from memory_titan.tasks.conversations import Conversation, Question, Session, Turn

# Not everywhere installed, about to go, or tests.
_LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "turtle", "turtledemo", "lib2to3", "distutils", "ensurepip", "pip"}
_SUMMARY = re.compile(r".+?\.(?=\s|$)", re.DOTALL)
_LEAST_SUMMARY, _LEAST_BODY = 4, 12  # words


def python_docs(seed: int = 0, questions: int = 500, root: str | Path | None = None) -> Conversation:
    """All items, and some of their summaries as questions.

    Args:
        seed: of which are asked.
        questions: at most.
        root: folder of Python sources; None: the standard library of the Python that runs this.

    Raises:
        ValueError: questions is below 1, or there are no docstrings to ask about.
    """
    if questions < 1:
        raise ValueError(f"questions must be at least 1; got {questions}")
    folder = Path(sysconfig.get_path("stdlib") if root is None else root)
    found = _found(folder, root is None)
    bodies = Counter(body for _, _, body in found)
    found = [entry for entry in found if bodies[entry[2]] == 1]  # of what is said twice none is the evidence
    summaries = Counter(summary for _, summary, _ in found)
    if not found:
        raise ValueError(f"there are no docstrings to ask about in {folder}")
    sessions = tuple(Session(name, (Turn(name, "", body),)) for name, _, body in found)
    asked = [Question(summary, (name,)) for name, summary, _ in found if summaries[summary] == 1]
    asked = Random(f"python docs {seed}").sample(asked, min(questions, len(asked)))
    return Conversation("python docs", sessions, tuple(asked))


@cache
def _found(folder: Path, only_standard: bool) -> list[tuple[str, str, str]]:
    """Name, summary and body of each."""
    return [(name, *parts) for name, doc in _docstrings(folder, only_standard) if (parts := _parts(name, doc))]


def _docstrings(folder: Path, only_standard: bool) -> Iterator[tuple[str, str]]:
    """Full names of public classes and functions, and their docstrings."""
    tops = [path for path in sorted(folder.iterdir()) if not only_standard or path.stem in sys.stdlib_module_names]
    for path in (path for top in tops for path in (sorted(top.rglob("*.py")) if top.is_dir() else [top])):
        parts = path.relative_to(folder).with_suffix("").parts
        if path.suffix != ".py":
            continue
        if any(part in _LEFT_OUT or (part.startswith("_") and part != "__init__") for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, ValueError, OSError):
            continue
        yield from _documented(tree, ".".join(part for part in parts if part != "__init__"))


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    seen = set()
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or child.name in seen:
            continue
        seen.add(child.name)  # a property's setter bears its name
        if not child.name.startswith("_"):
            if doc := ast.get_docstring(child):
                yield f"{name}.{child.name}", doc
            if isinstance(child, ast.ClassDef):
                yield from _documented(child, f"{name}.{child.name}")


def _parts(name: str, doc: str) -> tuple[str, str] | None:
    """Summary and body; None where one of them is no text to speak of, or the summary is a signature."""
    paragraph = doc.split("\n\n")[0]
    found = _SUMMARY.match(paragraph)
    first = found[0] if found else paragraph
    own = name.rpartition(".")[2]
    body = re.sub(rf"(?<!\w){re.escape(own)}(?!\w)", "this", doc[len(first) :]).strip()
    summary = " ".join(first.split())
    if "->" in summary or f"{own}(" in summary:
        return None
    if len(summary.split()) < _LEAST_SUMMARY or len(body.split()) < _LEAST_BODY:
        return None
    return summary, body
