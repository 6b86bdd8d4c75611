"""The words of `data/words.txt`, that tasks make their sentences and names of. No digit is among them."""

from __future__ import annotations

from importlib.resources import files


def _lists() -> dict[str, tuple[str, ...]]:
    text = files("memory_titan.tasks").joinpath("data", "words.txt").read_text("utf-8")
    found: dict[str, list[str]] = {}
    entries: list[str] = []
    for line in text.splitlines():
        if line.startswith("["):
            entries = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            entries += (entry.strip() for entry in line.split("|"))
    return {name: tuple(entries) for name, entries in found.items()}


_LISTS = _lists()


def words(name: str) -> tuple[str, ...]:
    """The entries of one list, in its order."""
    return _LISTS[name]


# Names of modules, services and files are an adjective and a thing joined by "_", which prose never has.
ADJECTIVES, THINGS, TEAMS = words("adjectives"), words("things"), words("teams")
PLAIN = words("plain")  # common ones: each is one token, with the space in front, in most vocabularies
FIRST_NAMES, LAST_NAMES = words("first_names"), words("last_names")
