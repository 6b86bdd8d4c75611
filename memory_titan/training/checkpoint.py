"""Checkpoints of a training run: the model as it is shared, and beside it what training needs to go on exactly.

    output/latest/   adapter_config.json, adapter_model.safetensors, trainer.pt, progress.json
    output/best/     the same, of a graft's best evaluation so far

Of a language model config.json and model.safetensors in place of the graft's two.

A checkpoint is written beside its place and then renamed: there is always a whole one, whenever a run is killed.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, load_model
from torch import nn

from memory_titan.graft.adapter import WEIGHTS, put
from memory_titan.graft.model import MemoryModel

TRAINER, PROGRESS = "trainer.pt", "progress.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which file and why."""


class Saves(Protocol):
    """What has a `save_pretrained`."""

    def save_pretrained(self, folder: str, /) -> Any:
        """Write all into a folder."""


def save_checkpoint(folder: Path, model: Saves, trainer: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write a checkpoint whole, in the place of what was there.

    Args:
        folder: its place.
        model: a grafted one, whose graft is saved, or a language model.
        trainer: tensors and numbers for `torch.save`: optimizer, schedule, random numbers.
        progress: for JSON.
    """
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(str(new))
    torch.save(trainer, new / TRAINER)
    (new / PROGRESS).write_text(json.dumps(progress, indent=2) + "\n", "utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path) -> Path:
    """The folder; a checkpoint that a run killed between two renames has left beside it is put there.

    Raises:
        CheckpointError: there is none.
    """
    for place in (folder, folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")):
        if (place / PROGRESS).exists():
            if place != folder and not folder.exists():
                with suppress(FileNotFoundError):  # another process was faster
                    os.rename(place, folder)
                return folder
            return place
    raise CheckpointError(f"{folder} holds no checkpoint: {PROGRESS} is missing")


def load_weights(folder: Path, model: MemoryModel) -> None:
    """The graft's weights into a model of the same configuration.

    Raises:
        CheckpointError: they are missing, damaged, or of another shape.
    """
    path = folder / WEIGHTS
    try:
        put(model, load_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except Exception as error:  # of safetensors, or names and shapes that differ
        raise CheckpointError(f"{path} does not fit: {str(error).strip().splitlines()[-1].strip()}") from error


def load_language_model(folder: Path, model: nn.Module) -> None:
    """The weights of a whole model into one of the same configuration.

    Raises:
        CheckpointError: they are missing, damaged, or of another shape.
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    try:
        load_model(model, path)
    except Exception as error:  # of safetensors, or names and shapes that differ
        raise CheckpointError(f"{path} does not fit: {str(error).strip().splitlines()[-1].strip()}") from error


def load_trainer(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `save_checkpoint` was given: trainer and progress.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        progress = json.loads((folder / PROGRESS).read_text("utf-8"))
        return torch.load(folder / TRAINER, map_location="cpu", weights_only=True), progress
    except (OSError, json.JSONDecodeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
