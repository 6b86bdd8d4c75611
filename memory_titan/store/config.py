"""How a long-term memory decides what to keep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LongTermMemoryConfig:
    """How the long-term memory writes, fades and forgets. Values that cannot work raise ValueError."""

    surprise_threshold: float = 0.05  # 0 to 1; what surprises less is not admitted
    forget_rate: float = 0.05  # 0 to 1: strength that what is not used loses each time the memory's capacity passes by
    momentum_factor: float = 0.8  # 0 to <1: of the neural memory's updates, the surprise of what came before
    memory_depth: int = 2  # 1 to 4 matrices of the neural memory
    max_bytes: int | None = None  # a budget for the texts held, UTF-8, beside the number of items; None: no such limit
    abridge: bool = False  # with max_bytes: what is worth least goes sentence by sentence, not only whole items
    recall_weight: float = 0.1  # of what the neural memory recalls, beside the query itself

    def __post_init__(self) -> None:
        for name in ("surprise_threshold", "forget_rate", "recall_weight"):
            if not 0.0 <= (value := getattr(self, name)) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1; got {value}")
        if not 0.0 <= self.momentum_factor < 1.0:
            raise ValueError(f"momentum_factor must be at least 0 and less than 1; got {self.momentum_factor}")
        if self.memory_depth not in (1, 2, 3, 4):
            raise ValueError(f"memory_depth must be 1, 2, 3 or 4; got {self.memory_depth}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, or None; got {self.max_bytes}")
