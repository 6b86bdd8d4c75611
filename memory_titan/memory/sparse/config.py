"""What a `SparseDeltaBank` is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from memory_titan.memory.convolution import checked_context

WriteKind = Literal["delta", "erase", "add"]
QueryNormKind = Literal["batch", "unit", "none"]


@dataclass
class SparseDeltaBankConfig:
    """Everything but `chunk_size`, `nonfinite` and `max_state_bytes` is part of the function that a bank computes.

    What cannot be raises ValueError, with the reason.
    """

    dim: int  # width of x and y; heads times an even number
    heads: int = 4
    slots: int = 16_384  # a head; a square number, for product keys
    reads: int = 16  # slots that a query reads
    writes: int = 16  # slots that a token writes

    share_keys: bool = True  # one pair of sub-key tables for writing and reading, or one for each
    # of keys and queries before they choose slots: "batch" statistics (of what was seen in training, when evaluated),
    # "unit" length, "none"
    query_norm: QueryNormKind = "batch"
    sharpness: float = 4.0  # what scores are multiplied by before the softmax, at the start; learned, one a head

    write: WriteKind = "delta"  # the difference to what is there; "erase" slot by slot, then add; "add" alone
    decay: Literal["written", "none"] = "written"  # slots that are written fade; the others never do
    gates: Literal["sigmoid", "hard"] = "sigmoid"  # hard gates reach 0 and 1 exactly
    chunk_size: int = 32  # tokens done at a time; for speed only, any length gives the same

    projections: bool = True  # own ones, of x to q, k, v and of what the heads read to y; False: the caller brings them
    input_dim: int | None = None  # width of x, which then makes the gates alone; None: dim
    conv_size: int = 4  # taps of the causal depthwise convolution on q, k, v; 0: none
    # where training starts, a value is written under the token so many before it, and asked for as it was written: so
    # the bank answers with what came after the last place like this one, as an induction head does. None: nothing of it
    context: int | None = 1
    qkv_activation: bool = False  # SiLU on q, k, v
    output_norm: bool = True  # RMS norm per head on what was read
    output_gate: bool = True  # times a sigmoid gate of x

    nonfinite: Literal["raise", "skip", "ignore"] = "raise"  # on NaN and infinity in x, or in what they would make
    max_state_bytes: int = 4 * 2**30  # the largest content that a call may begin; more is refused before it is there

    def __post_init__(self) -> None:
        if self.dim < 1 or self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"dim must be a positive multiple of heads; got dim={self.dim}, heads={self.heads}")
        if self.width % 2:
            raise ValueError(
                f"a head's width is halved for the two sub-keys, so dim / heads must be even; got {self.dim} / "
                f"{self.heads} = {self.width}"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.side**2 != self.slots:
            near = [side**2 for side in (self.side, self.side + 1) if side]
            raise ValueError(
                f"slots must be a square number, n sub-keys times n; got {self.slots}, near it are "
                f"{' and '.join(map(str, near))}"
            )
        for name in ("reads", "writes"):
            if getattr(self, name) > self.slots:
                raise ValueError(f"{name} is at most slots={self.slots}; got {getattr(self, name)}")
        if not self.sharpness > 0 or not math.isfinite(self.sharpness):
            raise ValueError(f"sharpness must be positive; got {self.sharpness}")
        self.context = checked_context(self.context, self.conv_size)
        if self.projections and self.input_dim not in (None, self.dim):
            raise ValueError(f"input_dim={self.input_dim} other than dim={self.dim} is for projections=False")
        if not self.projections and self.output_gate:
            raise ValueError("output_gate needs projections=True: without them the caller makes y of what is read")

    @property
    def input_width(self) -> int:
        """Of x."""
        return self.dim if self.input_dim is None else self.input_dim

    @property
    def width(self) -> int:
        """Of a head."""
        return self.dim // self.heads

    @property
    def side(self) -> int:
        """Sub-keys in each of the two tables, n of slots = n * n."""
        return math.isqrt(self.slots)

    def check_bytes(self, batch_size: int, itemsize: int) -> None:
        """Refuse a content that is larger than `max_state_bytes`.

        Raises:
            ValueError: with all sizes in it.
        """
        wanted = batch_size * self.heads * self.slots * self.width * itemsize
        if wanted > self.max_state_bytes:
            raise ValueError(
                f"the content would take {wanted:,} bytes: batch {batch_size} x heads {self.heads} x slots "
                f"{self.slots} x width {self.width} x {itemsize} bytes; max_state_bytes is {self.max_state_bytes:,}. "
                "Lower the batch, slots or dim, or raise max_state_bytes if there is room."
            )


CHOICES: dict[str, tuple[str, ...]] = {
    "query_norm": get_args(QueryNormKind),
    "write": get_args(WriteKind),
    "decay": ("written", "none"),
    "gates": ("sigmoid", "hard"),
    "nonfinite": ("raise", "skip", "ignore"),
}
LEAST = {"slots": 1, "reads": 1, "writes": 1, "chunk_size": 1, "conv_size": 0, "max_state_bytes": 1}
