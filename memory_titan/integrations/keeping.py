"""The options with which a manager keeps all it is given, as a vector store or a key-value store must.

A `TitansManager` of default options is a memory: it lets go of what surprises it little, and of the least when it is
full. Three things can lose an item, and each has an option that rules it out: nothing is rejected at a surprise
threshold of 0, nothing is evicted while fewer items are held than the long-term memory's size, and there is no budget
of bytes.
"""

from __future__ import annotations

from typing import Any

from memory_titan.store.config import LongTermMemoryConfig
from memory_titan.store.manager import TitansManager

EVERYTHING = 10**9  # items; more than a store can hold


def keeping(**options: Any) -> dict[str, Any]:
    """Options of a `TitansManager` that forgets only what it is told to; what is given goes before."""
    config = LongTermMemoryConfig(surprise_threshold=0.0)
    return {"long_term_size": EVERYTHING, "long_term_config": config, **options}


def losing(manager: TitansManager) -> str | None:
    """By which option of its own a manager may let go of items, as text; None: it keeps all."""
    if manager.backend.read_only:
        return None
    if manager.config.surprise_threshold > 0:
        return f"surprise_threshold is {manager.config.surprise_threshold}: what surprises less is not kept"
    if manager.config.max_bytes is not None:
        return f"max_bytes is {manager.config.max_bytes}: beyond that items are shortened or evicted"
    if manager.long_term.size < EVERYTHING:
        return f"long_term_size is {manager.long_term.size}: beyond that items are evicted"
    return None
