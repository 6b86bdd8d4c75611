"""Real Python trees, one split of them, and what can be asked about their files; see code_uses.py for the questions."""

from __future__ import annotations

import hashlib
import os
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from memory_titan.tasks.code_uses import (
    Definition,
    Item,
    SourceFile,
    Use,
    find_definitions,
    find_items,
    find_uses,
    parse,
)

SPLITS = ("train", "test", "all")

_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "node_modules", "build", "dist"}
_TESTS = {"test", "tests", "idle_test"}  # of the standard library: not everywhere installed
_MOST_BYTES = 1_000_000


@dataclass
class Corpus:
    """Files of a tree, one split of them, and what can be asked about them.

    Attributes:
        files: those that parse, by path.
        items: in the order of their files.
        skipped: Python files that could not be read.
    """

    name: str
    split: str
    files: list[SourceFile] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    skipped: int = 0


def standard_library() -> Path:
    """Where the running Python keeps its own modules."""
    return Path(os.__file__).parent


def library_files() -> Iterator[tuple[str, Path]]:
    """Paths below the standard library, and the files: Python sources, without tests."""
    root = standard_library()
    for file in _files(root, _SKIPPED | _TESTS):
        yield file.relative_to(root).as_posix(), file


def split_of(path: str) -> str:
    """ "train" or "test", a fifth; by the path within the tree alone."""
    return "test" if hashlib.sha256(path.encode("utf-8", "surrogatepass")).digest()[0] % 5 == 0 else "train"


def read_corpus(source: Path | None = None, split: str = "train") -> Corpus:
    """Read a tree of Python files and find what can be asked about it.

    Definition, use and filler of a sample are all of one split. Some five to ten seconds for the standard library,
    whose text is kept in memory (9 MB).

    Args:
        source: a folder; None: the standard library of the running Python, without its tests.
        split: "train", "test" or "all".

    Raises:
        ValueError: no folder, or nothing in it that can be asked about.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    root = standard_library() if source is None else source
    if not root.is_dir():
        raise ValueError(f"no such folder: {root}")
    corpus = Corpus("standard library" if source is None else root.resolve().name, split)
    definitions: dict[str, Definition | None] = {}
    uses: list[Use] = []
    for file in _files(root, _SKIPPED | (_TESTS if source is None else set())):
        path = file.relative_to(root).as_posix()
        if not path.isprintable() or split not in ("all", split_of(path)):
            continue
        text = _read(file)
        tree = None if text is None else parse(text)
        if text is None or tree is None:
            corpus.skipped += 1
            continue
        number, module = len(corpus.files), _module_name(file, root)
        corpus.files.append(SourceFile(path, text.split("\n")))
        for name, definition in find_definitions(tree, text, number):
            # The same module name twice: which one is imported cannot be told.
            full = f"{module}.{name}"
            definitions[full] = None if full in definitions else definition
        uses += find_uses(tree, text, number, module, file.name == "__init__.py")
    for use in uses:
        corpus.items += find_items(use, definitions, corpus.files)
    if not corpus.items:
        raise ValueError(
            f"{corpus.name}: nothing to ask about in {len(corpus.files)} Python files of split {split!r} "
            f"({corpus.skipped} could not be read): no definition is used in another one, or far off in its own"
        )
    return corpus


def _files(root: Path, skipped: set[str]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(each for each in folders if each not in skipped and not each.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if name.endswith(".py") and file.is_file() and file.stat().st_size <= _MOST_BYTES:
                yield file


def _read(file: Path) -> str | None:
    """The text, by the encoding that the file declares; None: it cannot be read."""
    try:
        with tokenize.open(file) as opened:
            return opened.read().removeprefix("\ufeff")
    except (OSError, SyntaxError, UnicodeError, LookupError):
        return None


def _module_name(file: Path, root: Path) -> str:
    """As it is imported: from the outermost package around it."""
    parts = [] if file.name == "__init__.py" else [file.stem]
    folder = file.parent
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    if folder != root and root in folder.parents and not (folder / "setup.py").exists() and len(parts) == 1:
        parts = [*folder.relative_to(root).parts, *parts]  # a script in a plain folder
    return ".".join(parts)
