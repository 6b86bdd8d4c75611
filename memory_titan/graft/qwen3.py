"""Qwen3 with a memory, in one call."""

from __future__ import annotations

from typing import Any

import torch

from memory_titan.graft.config import MAGConfig, Qwen3MAGConfig
from memory_titan.graft.model import MemoryModel


def patch_qwen3_with_mag(
    model_name_or_path: Any,
    config: MAGConfig | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
) -> MemoryModel:
    """Load a Qwen3 and graft memories beside its attention.

    Args:
        model_name_or_path: as `AutoModelForCausalLM.from_pretrained` takes it, or a loaded model.
        config: of the graft; None: `Qwen3MAGConfig()`.
        device: "auto": cuda, else mps, else cpu.
        dtype: of the frozen model; None: as it was saved. The graft is float32.

    Raises:
        ValueError: it is no Qwen3; `get_memory_model` takes others.
    """
    model = model_name_or_path
    if isinstance(model, str):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(model, dtype="auto" if dtype is None else dtype)
    elif dtype is not None:
        model = model.to(dtype)
    if (kind := model.config.model_type) != "qwen3":
        raise ValueError(f"{kind} is no Qwen3; get_memory_model(model, MAGConfig(...)) takes other architectures")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return MemoryModel(model.to(device), Qwen3MAGConfig() if config is None else config)
