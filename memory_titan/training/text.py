"""Text files as tokens: bytes, or those of a tokenizer; and some of the files held out."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memory_titan.tasks.code_source import library_files

BOUNDARIES = ("reset", "read_on")
_BYTES = 256
_LOOKED_AT = 8192  # bytes of a file, to see whether it is text


@dataclass
class TextConfig:
    """Which text, and how it is read.

    Attributes:
        files: files, folders (all text files within, but hidden ones), patterns (`texts/**/*.txt`), or one of
            `SOURCES`, which are on any machine with Python.
        tokenizer: a Hugging Face tokenizer, as a folder or as its tokenizer.json; None: bytes.
        separator: the token in front of each file; None: the tokenizer's eos_token or bos_token, of bytes the byte 0.
        held_out: share of the files that is not trained on. Each file's path below what was named says whether it is
            among them, by a hash: more files change nothing for those that were there.
        held_out_files: held out instead, named as `files` are; then all of `files` is trained on, but these.
        boundaries: what becomes of the state where a file ends. "reset": the next file begins with a fresh one, at the
            next segment's start, so that on average half a segment a file is padding. "read_on": it is carried on,
            and the separator alone tells; for many files that are shorter than a segment.
        eval_bytes: how much of the held-out text is read at an evaluation; None: all. Whole files, in the order of
            their hashes, the last one cut.
    """

    files: list[str]
    tokenizer: str | None = None
    separator: str | None = None
    held_out: float = 0.1
    held_out_files: list[str] = field(default_factory=list)
    boundaries: str = "reset"
    eval_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("files", "held_out_files"):
            given = getattr(self, name)
            setattr(self, name, [given] if isinstance(given, str) else given)
            if not isinstance(getattr(self, name), list) or not all(isinstance(x, str) for x in getattr(self, name)):
                raise ValueError(f"{name} must be a list of files, folders or patterns; got {given!r}")
        if not self.files:
            raise ValueError("files must name at least one file, folder or pattern")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be at least 0 and below 1, a share of the files; got {self.held_out}")
        if self.boundaries not in BOUNDARIES:
            raise ValueError(f"boundaries must be one of {', '.join(BOUNDARIES)}; got {self.boundaries!r}")
        if self.eval_bytes is not None and self.eval_bytes < 1:
            raise ValueError(f"eval_bytes must be at least 1, or null for all; got {self.eval_bytes}")


@dataclass(frozen=True)
class Document:
    """A file's text.

    Attributes:
        name: its path below what was named.
        tokens: `[1 + n]`, uint8 for bytes, else int32; first the separator.
        size: bytes of the text.
    """

    name: str
    tokens: Tensor
    size: int


@dataclass(frozen=True)
class Corpus:
    """Text to train on, and text held out.

    Attributes:
        train, held_out: neither has an empty file, nor two of the same contents (the first of them counts).
        vocab_size: of the tokens.
        separator: the token in front of each file.
        tokenizer: None for bytes.
        skipped: files in folders that are no text.
    """

    train: list[Document]
    held_out: list[Document]
    vocab_size: int
    separator: int
    tokenizer: Any
    skipped: int

    def fingerprint(self) -> str:
        """Of what is trained on: names, lengths, and the kind of tokens."""
        told = [(each.name, each.size, len(each.tokens)) for each in self.train]
        return hashlib.sha256(repr((self.vocab_size, self.separator, told)).encode("utf-8", "replace")).hexdigest()


def read_text(config: TextConfig) -> Corpus:
    """Read the files. All of it is held in memory: a byte a token for bytes, else four.

    Raises:
        ValueError: a name stands for nothing, no text is left, or a tokenizer cannot do it; the message says which.
    """
    tokens = _Tokens(config.tokenizer, config.separator)
    seen: set[bytes] = set()
    held_out: list[tuple[str, bytes]] = []
    train: list[tuple[str, bytes]] = []
    skipped = 0
    sides = [(config.held_out_files, held_out), (config.files, None)]
    for names, side in sides:  # what is held out first: then its copies are not trained on
        for name, content in (pair for each in names for pair in _named(each)):
            if content is None:
                skipped += 1
                continue
            digest = hashlib.sha256(content).digest()
            if not content or digest in seen:
                continue
            seen.add(digest)
            share = 0.0 if config.held_out_files else config.held_out
            (side if side is not None else held_out if place_of(name) < share else train).append((name, content))
    if held_out and not train:
        raise ValueError(f"there is no text to train on: all {len(held_out)} files are among those held out")
    if not train:
        raise ValueError(f"there is no text to train on in {', '.join(config.files)}")
    if config.held_out and not held_out:
        raise ValueError(
            f"of {len(train)} files none fell to the {config.held_out:g} held out: raise held_out, name "
            "held_out_files, or do without evaluation by held_out: 0"
        )
    asked = _first_bytes(sorted(held_out, key=lambda pair: place_of(pair[0])), config.eval_bytes)
    return Corpus(
        [tokens.document(*pair) for pair in train],
        [tokens.document(*pair) for pair in asked],
        tokens.vocab_size, tokens.separator, tokens.tokenizer, skipped,
    )  # fmt: skip


def place_of(name: str) -> float:
    """From 0 up to 1, of a file's name alone; those below the share are held out."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def _first_bytes(files: list[tuple[str, bytes]], most: int | None) -> list[tuple[str, bytes]]:
    if most is None:
        return files
    found = []
    for name, content in files:
        if most > 0:
            found.append((name, content[:most]))
        most -= len(content)
    return found


class _Tokens:
    """From a file's bytes to tokens."""

    def __init__(self, path: str | None, separator: str | None) -> None:
        self.tokenizer: Any = None
        if path is None:
            if separator is not None and len(separator.encode()) != 1:
                raise ValueError(f"separator must be one byte where there is no tokenizer; got {separator!r}")
            self.vocab_size, self.separator = _BYTES, 0 if separator is None else separator.encode()[0]
            return
        self.tokenizer = load_tokenizer(path)
        self.vocab_size = len(self.tokenizer)
        given = separator or self.tokenizer.eos_token or self.tokenizer.bos_token
        if given is None:
            raise ValueError(f"{path} has no eos_token and no bos_token to stand between files: name a separator")
        if given not in self.tokenizer.get_vocab():
            raise ValueError(f"separator {given!r} is no token of {path}")
        self.separator = self.tokenizer.convert_tokens_to_ids(given)

    def document(self, name: str, content: bytes) -> Document:
        if self.tokenizer is None:
            tokens = torch.frombuffer(bytearray([self.separator]) + content, dtype=torch.uint8)
            return Document(name, tokens, len(content))
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.end < len(content):  # else it is a character that was cut
                raise ValueError(f"{name} is not UTF-8, which a tokenizer needs: convert it, or leave it out") from None
            content = content[: error.start]
            text = content.decode("utf-8")
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return Document(name, torch.tensor([self.separator, *ids], dtype=torch.int32), len(content))


def load_tokenizer(path: str) -> Any:
    """A Hugging Face tokenizer from a folder, or from its tokenizer.json.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = Path(path)
    if not place.exists():
        raise ValueError(f"tokenizer: no such file or folder: {path}")
    try:
        if place.is_dir():
            return AutoTokenizer.from_pretrained(path, local_files_only=True)
        return PreTrainedTokenizerFast(tokenizer_file=path)
    except Exception as error:  # whatever transformers and tokenizers come to
        raise ValueError(f"tokenizer: {path} is none: {str(error).strip().splitlines()[0]}") from error


def _python_sources() -> Iterator[tuple[str, bytes | None]]:
    for name, path in library_files():
        if not name.startswith("pydoc_data/"):  # python-help's own
            yield name, path.read_bytes()


def _python_help() -> Iterator[tuple[str, bytes | None]]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield name, topics[name].encode()


SOURCES = {
    "python-sources": _python_sources,  # the standard library of the Python that runs this, without its tests
    "python-help": _python_help,  # what its help() says about the language, a topic a file
}


def _named(given: str) -> Iterator[tuple[str, bytes | None]]:
    """Names and contents of what one name stands for; None: no text."""
    if given in SOURCES:
        yield from SOURCES[given]()
        return
    path = Path(given).expanduser()
    if path.is_file():
        yield path.name, path.read_bytes()
    elif path.is_dir():
        yield from _in_folder(path)
    else:
        fixed = re.split(r"[*?\[]", str(path), maxsplit=1)[0]
        base = Path(fixed if fixed.endswith(os.sep) else os.path.dirname(fixed))
        found = [Path(each) for each in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(each)]
        if not found:
            raise ValueError(f"files: {given} is no file, folder or pattern that fits one, nor {', '.join(SOURCES)}")
        for each in found:
            yield each.relative_to(base).as_posix(), each.read_bytes()


def _in_folder(root: Path) -> Iterator[tuple[str, bytes | None]]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if name.startswith(".") or not file.is_file():
                continue
            content = file.read_bytes()
            yield file.relative_to(root).as_posix(), None if b"\0" in content[:_LOOKED_AT] else content
