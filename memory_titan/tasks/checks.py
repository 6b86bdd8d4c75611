"""Checking a sample of any text task."""

from __future__ import annotations

from collections.abc import Callable

from memory_titan.tasks import babi, code_retrieval, common_words, dependency, hash_hop, needle, variables
from memory_titan.tasks.ruler import Ruler
from memory_titan.tasks.sample import Sample

CHECKS: dict[str, Callable[[Sample, Ruler | None], list[str]]] = {
    "hash-hop": hash_hop.check,
    "needle": needle.check,
    "dependency": dependency.check,
    "code-retrieval": code_retrieval.check,
    "variables": variables.check,
    "common-words": common_words.check,
    "babi": babi.check,
}


def check(sample: Sample, ruler: Ruler | None = None) -> list[str]:
    """What is wrong with a sample, by the checker of its task; empty if nothing is.

    Args:
        sample: of any task here.
        ruler: measures length and distances anew; None: they are not looked at.
    """
    if sample.task not in CHECKS:
        return [f"task must be one of {', '.join(CHECKS)}; got {sample.task!r}"]
    return CHECKS[sample.task](sample, ruler)
