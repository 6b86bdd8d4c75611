"""A graft as files, adapter_config.json and adapter_model.safetensors, and what it may be put on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from memory_titan.graft import config as configs
from memory_titan.graft.config import FORMAT_VERSION, MAGConfig
from memory_titan.memory.files import MemoryFileError, load_tensors

if TYPE_CHECKING:
    from memory_titan.graft.model import MemoryModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_CLASSES = {cls.__name__: cls for cls in (MAGConfig, configs.Qwen3MAGConfig)}


def fingerprint(model: MemoryModel) -> dict[str, Any]:
    """What tells one base model, and one shape of graft, from another."""
    text = model.base_model.config.get_text_config()
    weight = model.base_model.get_input_embeddings().weight
    probe = weight[: min(4, weight.shape[0]), : min(8, weight.shape[1])].detach().float().cpu().flatten()
    return {
        "model_type": text.model_type,
        "hidden_size": text.hidden_size,
        "layers": len(model.graft.own_windows),
        "vocabulary": text.vocab_size,
        "embeddings": [round(value, 6) for value in probe.tolist()],
        "grafted": model.graft.layers,
        "chunk_size": model.graft_config.chunk_size,
    }


def check_fingerprint(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    """Refuse what belongs to another model, naming the difference.

    Raises:
        ValueError: it does.
    """
    for name, value in expected.items():
        other = found.get(name)
        if name == "embeddings":
            close = other is not None and len(other) == len(value)
            # a base model in bfloat16 has the same weights to 3 digits
            if not close or not torch.allclose(torch.tensor(other), torch.tensor(value), rtol=2e-2, atol=1e-4):
                raise ValueError(f"{what} was made with another base model: its embeddings are different ones")
        elif other != value:
            raise ValueError(f"{what} was made with {name} {other}; this model has {value}")


def session_fingerprint(path: str) -> dict[str, Any]:
    """Of the model that a session file was saved from."""
    return dict(load_tensors(path, "cpu")[1].get("graft") or {})


def weights(model: MemoryModel) -> dict[str, Tensor]:
    """All that is saved, not copied and without gradients: the branches', and the LoRA's under `lora.`."""
    lora = {} if model.lora is None else model.lora.parameters()
    return {**model.branches.state_dict(), **{f"lora.{name}": x.detach() for name, x in lora.items()}}


def put(model: MemoryModel, tensors: dict[str, Tensor]) -> None:
    """Set all of `weights`.

    Raises:
        ValueError: names or shapes differ; nothing was set.
    """
    own = weights(model)
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [name for name, x in own.items() if name in tensors and tensors[name].shape != x.shape]
    if wrong:
        raise ValueError(f"weights and configuration do not belong together ({wrong[0]}, ...)")
    lora = {name: own[name] for name in own if name.startswith("lora.")}
    model.branches.load_state_dict({name: x for name, x in tensors.items() if name not in lora})
    for name, x in lora.items():
        x.copy_(tensors[name])


def save(model: MemoryModel, folder: str, dtype: torch.dtype | None = None) -> None:
    """Write the graft. Existing files of it are replaced, the weights first."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.cpu().contiguous() for name, x in weights(model).items()}
    if dtype is not None:
        tensors = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    text = {
        "format": "memory-titan graft",
        "version": FORMAT_VERSION,
        "base_model_name_or_path": model.base_model.config._name_or_path or None,
        "base": fingerprint(model),
        "config_class": type(model.graft_config).__name__,
        "config": model.graft_config.to_dict(),
    }
    (path / CONFIG).write_text(json.dumps(text, indent=2) + "\n", "utf-8")


def load(cls: type[MemoryModel], base_model: Any, folder: str, changes: dict[str, Any]) -> MemoryModel:
    """The graft of `folder` on `base_model`; see `MemoryModel.from_pretrained`."""
    path = _folder(folder)
    try:
        text = json.loads((path / CONFIG).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / CONFIG} is not JSON: {error}") from error
    if not isinstance(text, dict) or text.get("format") != "memory-titan graft":
        raise ValueError(f"{path / CONFIG} is not the configuration of a memory-titan graft")
    if text.get("version") != FORMAT_VERSION:
        raise ValueError(f"{folder} has format version {text.get('version')}; this is version {FORMAT_VERSION}")
    # what was saved before gates could shut says nothing of them
    config = _CLASSES.get(str(text.get("config_class")), MAGConfig).from_dict(
        {"gate": "sigmoid", **text["config"], **changes}
    )
    model = cls(base_model, config)
    try:
        expected = fingerprint(model)
        expected.pop("chunk_size")  # another one only warns: it is in the weights too
        check_fingerprint(text["base"], expected, f"the adapter {folder}")
        try:
            tensors = load_file(path / WEIGHTS)
        except Exception as error:  # safetensors has an error class of its own
            raise MemoryFileError(f"{path / WEIGHTS} is damaged: {error}") from error
        if text["config"].get("lora") is None:  # one that is new starts as it is made
            tensors |= {name: x for name, x in weights(model).items() if name.startswith("lora.")}
        try:
            put(model, tensors)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
    except BaseException:
        model.unload()
        raise
    return model


def _folder(folder: str) -> Path:
    """A local folder, or a repository on the hub, downloaded."""
    path = Path(folder)
    if path.is_dir():
        if not (path / CONFIG).exists():
            raise FileNotFoundError(f"{path} has no {CONFIG}")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(folder, allow_patterns=[CONFIG, WEIGHTS]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"no such folder, and no such repository: {folder}") from error
