"""Records of arrays as files."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

Record = TypeVar("Record", bound="RecordFile")


class RecordFile:
    """Base of a dataclass of arrays that is saved and loaded; `KIND` is what it is called in a message."""

    KIND: ClassVar[str]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """As .npz, compressed.

        Raises:
            OSError: it cannot be written.
        """
        own: Any = self
        with open(path, "wb") as file:
            np.savez_compressed(file, **{one.name: getattr(self, one.name) for one in fields(own)})
        return Path(path)

    @classmethod
    def load(cls: type[Record], path: str | os.PathLike[str]) -> Record:
        """What `save` wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not such a file.
        """
        own: Any = cls
        with np.load(path, allow_pickle=False) as file:
            names = {one.name for one in fields(own)}
            if not isinstance(file, np.lib.npyio.NpzFile) or set(file.files) != names:
                raise ValueError(f"{path}: no {cls.KIND}, which has {', '.join(sorted(names))}")
            return cls(**{name: file[name] for name in names})
