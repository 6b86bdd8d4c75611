"""One file for tensors and what they mean: safetensors with a JSON header, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class MemoryFileError(ValueError):
    """A file that is no memory, is damaged, or was written for something else. The message names the file."""


def save_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write `tensors` and `header` to `path` as one safetensors file.

    The file is written beside its destination, flushed to disk and then renamed over it, so that a reader (or
    a crash, a full disk, Ctrl-C) sees either the old file whole or the new one whole.

    Args:
        path: destination; its folder must exist.
        tensors: any shapes and dtypes; copied where they share storage.
        header: anything JSON can hold, kept as text in the safetensors metadata.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    # What safetensors refuses is one storage under two names: copy only then.
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    try:
        try:
            save_file(plain, temporary, metadata={"header": _padded(json.dumps(header))})
        except SafetensorError as error:  # safetensors reports a full disk as its own kind of error
            raise OSError(f"could not write {path}: {error}") from error
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def load_tensors(path: str | os.PathLike[str], device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: `(tensors, header)`.

    Raises:
        FileNotFoundError: there is no such file.
        MemoryFileError: the file is not one of these, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such memory file: {path}")
    try:
        with safe_open(str(path), framework="pt", device=device) as file:
            header = json.loads((file.metadata() or {})["header"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise MemoryFileError(f"not a memory file, or damaged: {path} ({error})") from error
    if not isinstance(header, dict):
        raise MemoryFileError(f"not a memory file: {path} (its header is no JSON object)")
    return tensors, header


def _padded(text: str) -> str:
    """With spaces up to a full kilobyte, so that a counter's digits do not change the size of the file."""
    return text.ljust(-(-len(text) // 1024) * 1024)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
