"""What a `MultiHeadMemoryBank` is: slots, and a switch for every policy of reading, writing and forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from memory_titan.memory.convolution import checked_context

Write = Literal["delta", "erase", "add"]
Decay = Literal["written", "all", "none"]
Allocation = Literal["lru", "dnc", "gumbel", "none"]
Staleness = Literal["age", "usage"]


@dataclass
class MemoryBankConfig:
    """All of it is part of the function that a bank computes, `chunk_size` too. What cannot be raises ValueError."""

    dim: int  # width of x and y; a multiple of heads
    heads: int = 4  # each with slots, addresses and gates of its own
    slots: int = 64  # N, a head; each holds a key and a content of dim / heads
    top_k: int = 4  # slots that a read looks at, and a write that finds what it knows
    # tokens between two looks at which slots are stale, and at whether a key is known already; 1: at every token
    chunk_size: int = 32

    sharpness: float = 10.0  # of the softmax over the top k cosines, at the start; learned, a head
    familiarity: float = 0.5  # cosine from which a key counts as known, at the start; learned, a head

    write: Write = "delta"  # the difference to what is read; "erase": NTM's erase and add; "add": nothing is taken out
    write_gate: bool = True  # whether to write is learned, a token and head; False: every token is written
    erase: bool = True  # how much of the old goes is learned, a token and head; False: all of it
    gates: Literal["sigmoid", "hard"] = "hard"  # hard gates reach 0 and 1 exactly
    decay: Decay = "written"  # of slots: where written, at every token, never; learned, a token and slot
    bottleneck: int | None = None  # width of the MLP that values pass before they are written; None: there is none

    # where what is new goes: the stalest slot; DNC's allocation by usage, beginning there; one of the top_k stalest by
    # straight-through Gumbel softmax (noise in training only); "none": slots keep learned keys, and nothing is new
    allocation: Allocation = "lru"
    staleness: Staleness = "age"  # tokens since last used; or how little it was used of late. "dnc", "gumbel": usage
    usage_decay: float = 0.99  # of usage, a token
    gumbel_temperature: float = 0.1  # of the softmax over usage

    projections: bool = True  # own ones, of x to q, k, v and of what the heads read to y; False: the caller brings them
    input_dim: int | None = None  # width of x, which then makes the gates alone; None: dim
    gating: bool = True  # gates of its own, made of x; False: the caller brings them
    conv_size: int = 4  # taps of the causal depthwise convolution on q, k, v; 0: none
    # where training starts, a value is written under the token so many before it, and asked for as it was written: so
    # the bank answers with what came after the last place like this one, as an induction head does. None: nothing of it
    context: int | None = 1
    qkv_activation: bool = False  # SiLU on q, k, v
    output_norm: bool = True  # RMS norm per head on what was read
    output_gate: bool = True  # times a sigmoid gate of x

    nonfinite: Literal["raise", "skip", "ignore"] = "raise"  # on NaN and infinity in x, or in what they would make
    max_state_bytes: int = 4 << 30  # a state that would be larger is refused before it is made

    def __post_init__(self) -> None:
        if self.dim < 1 or self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"dim must be a positive multiple of heads; got dim={self.dim}, heads={self.heads}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.top_k > self.slots:
            raise ValueError(f"top_k must be at most slots={self.slots}; got {self.top_k}")
        if self.bottleneck is not None and self.bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1, or None; got {self.bottleneck}")
        self.context = checked_context(self.context, self.conv_size)
        if not 0.0 < self.usage_decay <= 1.0:
            raise ValueError(f"usage_decay must be above 0 and at most 1; got {self.usage_decay}")
        if self.gumbel_temperature <= 0:
            raise ValueError(f"gumbel_temperature must be positive; got {self.gumbel_temperature}")
        if self.projections and self.input_dim not in (None, self.dim):
            raise ValueError(f"input_dim={self.input_dim} other than dim={self.dim} is for projections=False")
        if not self.projections and self.output_gate:
            raise ValueError("output_gate needs projections=True: without them the caller makes y of what is read")

    @property
    def input_width(self) -> int:
        """Of x."""
        return self.dim if self.input_dim is None else self.input_dim

    @property
    def step_bound(self) -> float:
        """The largest amount that a token writes."""
        return 1.0

    @property
    def by_usage(self) -> bool:
        """Whether the order of staleness is that of usage."""
        return self.staleness == "usage" or self.allocation in ("dnc", "gumbel")


CHOICES: dict[str, tuple[str, ...]] = {
    "write": get_args(Write),
    "decay": get_args(Decay),
    "allocation": get_args(Allocation),
    "staleness": get_args(Staleness),
    "gates": ("sigmoid", "hard"),
    "nonfinite": ("raise", "skip", "ignore"),
}
LEAST = {"slots": 1, "top_k": 1, "chunk_size": 1, "conv_size": 0, "max_state_bytes": 1}
