"""Python modules made up: definitions whose names and values occur nowhere else, and the uses that need them.

# file: plant/amber_lantern.py                  AMBER_LANTERN_LIMIT = 48213             constant
class AmberLantern: ...     capacity = 48213    def reset_amber_lantern(): return 48213 returned
def open_amber_lantern(path, retries=48213):    AMBER_LANTERN_PORTS = {"main": 48213}   entry
def tune_amber_lantern(source, *, peak_flow_bar):                                       keyword
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from memory_titan.tasks.text_task import Fact, Question
from memory_titan.tasks.words import ADJECTIVES, THINGS, words

KINDS = ("constant", "attribute", "returned", "default", "entry", "keyword")

_PACKAGES, _LIMITS, _ATTRIBUTES, _KEYS = map(words, ("packages", "limits", "attributes", "keys"))
_PREFIXES, _QUANTITIES, _UNITS, _PURPOSES = map(words, ("prefixes", "quantities", "units", "purposes"))
_HELPERS = (
    '''def merge_{s}(left, right):
    """{p}"""
    merged = dict(left)
    for key, entries in right.items():
        merged.setdefault(key, []).extend(entries)
    return merged''',
    '''def first_of_{s}(rows, wanted):
    """{p}"""
    for row in rows:
        if row.get(wanted) is not None:
            return row
    return None''',
    '''def drain_{s}(queue):
    """{p}"""
    taken = []
    while queue:
        taken.append(queue.pop())
    taken.reverse()
    return taken''',
    '''def describe_{s}(entry, verbose=False):
    """{p}"""
    parts = [str(entry)]
    if verbose:
        parts.append(type(entry).__name__)
    return ", ".join(parts)''',
    '''def clamp_{s}(number, low, high):
    """{p}"""
    if low > high:
        raise ValueError("low must not exceed high")
    return max(low, min(high, number))''',
)


class Stock:
    """What a sample has used: subjects, numbers and parameter names, none given out twice.

    Args:
        rng: where the chances come from.
    """

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self._used: set[str] = set()

    def _new(self, drawn: Sequence[Sequence[str]]) -> str:
        while True:
            name = "_".join(self.rng.choice(each) for each in drawn)
            if name not in self._used:
                self._used.add(name)
                return name

    def subject(self) -> str:
        """amber_lantern; after most of eight thousand have been used, amber_lantern_valve."""
        crowded = len(self._used) > len(ADJECTIVES) * len(THINGS) // 2
        return self._new([ADJECTIVES, THINGS, THINGS] if crowded else [ADJECTIVES, THINGS])

    def parameter(self) -> str:
        """peak_flow_bar, for a question."""
        return self._new([_PREFIXES, _QUANTITIES, _UNITS])

    def other_parameter(self) -> str:
        """As `parameter`, but may come again, and is none that a question asks for."""
        while True:
            name = "_".join(self.rng.choice(each) for each in (_PREFIXES, _QUANTITIES, _UNITS))
            if name not in self._used:
                return name

    def number(self) -> str:
        """Five digits, for a question."""
        while True:
            drawn = str(self.rng.randint(10000, 99999))
            if drawn not in self._used:
                self._used.add(drawn)
                return drawn

    def other_number(self) -> str:
        """Five digits that no question asks for; may come again."""
        while True:
            drawn = str(self.rng.randint(10000, 99999))
            if drawn not in self._used:
                return drawn


@dataclass(frozen=True)
class _Definition:
    text: str
    marks: tuple[tuple[int, int], ...]  # its parts that answer a question
    imported: str
    use: str  # a line that the answer completes
    after: str = ""


def _define(kind: str, subject: str, value: str, stock: Stock) -> _Definition:
    """The source of a definition that holds `value`: a number, or a parameter's name for "keyword"."""
    rng = stock.rng
    purpose = f'    """{rng.choice(_PURPOSES)}"""\n'
    upper, camel = subject.upper(), subject.title().replace("_", "")
    if kind == "constant":
        name = f"{upper}_{rng.choice(_LIMITS)}"
        text = f"{name} = {value}"
        return _Definition(text, ((0, len(text)),), name, f"assert {name} ==")
    if kind == "attribute":
        name = rng.choice(_ATTRIBUTES)
        head, line = f"class {camel}:", f"    {name} = {value}"
        before = f"{head}\n{purpose}\n    ready = True\n"
        method = f"\n\n    def room(self, taken):\n        return max(0, self.{name} - taken)"
        marks = (0, len(head)), (len(before), len(before) + len(line))
        return _Definition(before + line + method, marks, camel, f"assert {camel}.{name} ==")
    if kind == "returned":
        name = f"{rng.choice(['reset', 'pause', 'expiry', 'rate'])}_of_{subject}"
        text = f"def {name}():\n{purpose}    return {value}"
        return _Definition(text, ((0, len(text)),), name, f"assert {name}() ==")
    if kind == "default":
        name, option = f"open_{subject}", rng.choice(["retries", "size", "delay", "depth"])
        head = f"def {name}(path, {option}={value}):"
        text = f"{head}\n{purpose}    return [path] + [{option}] if path else []"
        return _Definition(
            text, ((0, len(head)),), name, f'assert inspect.signature({name}).parameters["{option}"].default =='
        )
    if kind == "entry":
        name, keys = f"{upper}_PORTS", rng.sample(_KEYS, 3)
        values = [value, stock.other_number(), stock.other_number()]
        order = rng.sample(range(3), 3)
        text = f"{name} = {{{', '.join(f'{keys[i]!r}: {values[i]}' for i in order)}}}".replace("'", '"')
        return _Definition(text, ((0, len(text)),), name, f'assert {name}["{keys[0]}"] ==')
    name = f"tune_{subject}"
    text = f"def {name}(source, *, {value}):\n{purpose}    return [each * {value} for each in source]"
    return _Definition(text, ((0, len(text)),), name, f"{name}(readings,", "=2)")


def _module(subject: str, definitions: list[str], stock: Stock) -> tuple[str, list[int]]:
    """A file with these definitions, and where each starts in it."""
    rng = stock.rng
    parts = [f"# file: {rng.choice(_PACKAGES)}/{subject}.py\n"]
    starts = []
    at = len(parts[0])
    helpers = rng.sample(_HELPERS, rng.randint(1, 2))
    for place, text in enumerate([*definitions, *helpers]):
        if place >= len(definitions):
            text = text.replace("{s}", subject).replace("{p}", rng.choice(_PURPOSES))
        else:
            starts.append(at)
        parts.append(f"{text}\n\n\n")
        at += len(parts[-1])
    return "".join(parts).rstrip("\n"), starts


def asked(kind: str, at: float, number: int, stock: Stock) -> tuple[Fact, Question]:
    """A module that stands at `at`, and the question about one of its definitions; the module is fact `number`."""
    rng, subject = stock.rng, stock.subject()
    value = stock.parameter() if kind == "keyword" else stock.number()
    wanted = _define(kind, subject, value, stock)
    others = rng.sample([each for each in KINDS if each != kind], 2)
    texts = [_other(each, subject, stock) for each in others]
    place = rng.randint(0, 2)
    texts.insert(place, wanted.text)
    text, starts = _module(subject, texts, stock)
    marks = tuple((starts[place] + low, starts[place] + high) for low, high in wanted.marks)
    package = text.split("/", 1)[0].removeprefix("# file: ")
    needs = "import inspect\n\n" if kind == "default" else ""
    use = (
        f"# file: tests/test_{subject}.py\n{needs}from {package}.{subject} import {wanted.imported}\n\n\n"
        f"def test_{subject}(readings):\n    {wanted.use}"
    )
    evidence = tuple((number, mark) for mark in range(len(marks)))
    return Fact(text + "\n\n", at, marks), Question(use, value, evidence, f"{wanted.after}\n\n")


def _other(kind: str, subject: str, stock: Stock) -> str:
    value = stock.other_parameter() if kind == "keyword" else stock.other_number()
    return _define(kind, subject, value, stock).text


def modules(stock: Stock) -> Iterator[str]:
    """Files of the same form about other subjects, without end; their values are none that a question asks for."""
    while True:
        subject = stock.subject()
        kinds = stock.rng.sample(KINDS, 3)
        yield _module(subject, [_other(kind, subject, stock) for kind in kinds], stock)[0] + "\n\n\n"
