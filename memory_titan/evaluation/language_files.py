"""Language models and their tokenizers from folders, those of `memory_titan.models` among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import memory_titan.models  # noqa: F401 - tells transformers of the models here
from memory_titan.evaluation.language import vocabulary_of
from memory_titan.tasks.byte_tokenizer import ByteTokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model", "tokenizer.model")


def load_language_model(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """A causal language model of Hugging Face, in eval mode, and what makes tokens of text for it.

    Args:
        name: "smollm2", or a folder (or a training's output folder, of which its `model/` or `best/`), or a name.
        dtype: of the weights, "float32" or "bfloat16".

    Returns:
        `(model, tokenizer)`; a `ByteTokenizer` where there is no tokenizer and the vocabulary is that of bytes, None
        where there is none and it is not.

    Raises:
        ValueError: there is no such model there.
    """
    from memory_titan.hybrid.frozen import DEFAULT_MODEL, load_frozen

    if name == DEFAULT_MODEL:
        frozen = load_frozen(name)
        return frozen.model.to(getattr(torch, dtype)).eval(), frozen.tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = _folder(Path(name)) if Path(name).exists() else None
    place = name if folder is None else str(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype)).eval()
    except (OSError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"cannot load a causal language model from {name!r}: {reason}") from error
    if folder is None or any((folder / file).exists() for file in _TOKENIZER_FILES):
        return model, AutoTokenizer.from_pretrained(place)
    return model, ByteTokenizer() if vocabulary_of(model) == 256 else None


def _folder(path: Path) -> Path:
    for folder in (path, path / "model", path / "best"):
        if (folder / "adapter_config.json").exists():
            raise ValueError(f"{folder} is a graft, not a whole model: `memory-titan evaluate needle` asks those")
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"{path} holds no model: there is no config.json in it")
