"""Settings: a dataclass out of a YAML file, and what is wrong with the file in one line."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

Settings = TypeVar("Settings")
_PLAIN = (int, float, bool, str, type(None))


def load_settings(kind: type[Settings], path: str | os.PathLike[str]) -> Settings:
    """A dataclass of settings from a YAML file; what the file does not name keeps its default.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML, no mapping, names what there is not, or a value cannot be.
    """
    import yaml

    try:
        values: Any = yaml.safe_load(Path(path).read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text") from None
    return settings_from(kind, {} if values is None else values, str(path))


def settings_from(kind: type[Settings], values: Any, where: str) -> Settings:
    """A dataclass of settings from names and values. A number that YAML took for text (1e-3) is a number.

    Args:
        kind: the dataclass.
        values: a mapping.
        where: it was found, for messages.

    Raises:
        ValueError: it is no mapping, names what there is not, lacks what has no default, or a value cannot be.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected names and values; got {type(values).__name__}")
    own = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = {each.name for each in own}
    if unknown := sorted(str(name) for name in set(values) - known):
        raise ValueError(f"{where}: there is no setting {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    none = dataclasses.MISSING
    needed = [each.name for each in own if each.default is none and each.default_factory is none]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where}: {', '.join(missing)} must be given")
    hints = typing.get_type_hints(kind)
    try:
        return kind(**{name: _plain(name, value, hints[name]) for name, value in values.items()})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _plain(name: str, value: Any, hint: Any) -> Any:
    """The value as the field's type has it; only plain types are looked at."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    if not all(kind in _PLAIN for kind in kinds) or type(value) in kinds:
        return value
    if float in kinds and type(value) in (int, str):
        try:
            return float(value)
        except ValueError:
            pass
    wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ValueError(f"{name} must be {wanted}; got {value!r}")
