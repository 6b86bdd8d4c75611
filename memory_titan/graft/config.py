"""What a graft is: which layers get a memory, what the memory is, how the two are mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from memory_titan.graft.lora import checked
from memory_titan.memory.neural.config import NeuralMemoryConfig
from memory_titan.memory.slots.config import MemoryBankConfig

FORMAT_VERSION = 1
KINDS: dict[str, type[NeuralMemoryConfig] | type[MemoryBankConfig]] = {
    "neural": NeuralMemoryConfig,
    "slots": MemoryBankConfig,
}


@dataclass
class MAGConfig:
    """A memory beside the attention of a frozen decoder (MAG, Titans section 4.2, in the convex form of the graft).

    h_out = residual + (1 - g) attn + g memory,    g = max(0, (sigmoid(w h + b) - sigmoid(b)) / (1 - sigmoid(b)))

    so that with w = 0, where training starts, the gate is exactly shut and the model exactly what it was; and where it
    is shut later, exactly so too. What would open it still gets through to w.
    """

    layers: Literal["all"] | list[int] = "all"  # the decoder layers that get a memory, from 0
    window: int | None = None  # tokens that attention may see, its own included; None: as the model has it
    # the first tokens of a text, which attention sees beside the window (arXiv 2309.17453)
    sinks: int = 0
    # a token at position t sees the sinks as one at min(t, sink_distance) would: they never get further away than the
    # model was trained for. None: they do; a text should not be much longer than the model's positions
    sink_distance: int | None = None
    segment: int = 1024  # tokens a call that is longer is read in; of no influence on the result

    memory_kind: Literal["neural", "slots"] = "neural"  # what each memory is: `NeuralMemory` or `MultiHeadMemoryBank`
    memory_layers: int = 2  # matrices of each neural memory, its depth: 1 to 4
    n_persistent_tokens: int = 16  # learned tokens that every memory has read before the first one; 0: none
    chunk_size: int = 64  # tokens between two anchors of the memory's inner gradient; of slots, see there
    expansion: int = 4  # width of a neural memory's hidden layers over that of a head
    # what q, k, v are made of: projections of what attention is given, the attention's own q, k and v, or projections
    # of the tokens' embeddings
    source: Literal["learned", "frozen", "tokens"] = "learned"
    values: Literal["states", "tokens"] | None = None  # of v alone; None: as source says
    ngram: int | None = None  # tokens that a key stands for at the start, those before the value; None: 1, "frozen" 0
    memory_dim: int | None = None  # width of q, k, v; None: the model's. With "frozen" it is that of all heads
    memory_heads: int | None = None  # of the memory; None: as many as attention has. With "frozen" it is as many
    query_refinement: bool = True  # the query knows what the memory of the layer before has answered
    gate: Literal["hard", "sigmoid"] = "hard"  # "sigmoid": g may be slightly negative
    gate_bias: float = -2.0  # b above: how far the gate leans to attention; it opens at about w h = -b
    memory: dict[str, Any] = field(default_factory=dict)  # other fields of its configuration
    lora: dict[str, Any] | None = None  # fields of `peft.LoraConfig`, of a LoRA on the frozen model; None: no LoRA

    def __post_init__(self) -> None:
        if self.layers != "all":
            if isinstance(self.layers, str) or not self.layers:
                raise ValueError(f'layers must be "all" or a list of layer numbers; got {self.layers!r}')
            self.layers = sorted({int(layer) for layer in self.layers})
        for name, least in {"segment": 1, "memory_layers": 1, "n_persistent_tokens": 0, "chunk_size": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, the token itself; got {self.window}. None leaves it as it is")
        if self.sinks < 0 or (self.sinks and self.window is None):
            raise ValueError(f"sinks must be at least 0, and are for attention with a window; got {self.sinks}")
        if self.sink_distance is not None and self.sink_distance < max(1, self.sinks):
            raise ValueError(f"sink_distance must be at least 1 and sinks={self.sinks}; got {self.sink_distance}")
        if self.source not in ("learned", "frozen", "tokens"):
            raise ValueError(f'source must be "learned", "frozen" or "tokens"; got {self.source!r}')
        if self.gate not in ("hard", "sigmoid"):
            raise ValueError(f'gate must be "hard" or "sigmoid"; got {self.gate!r}')
        if self.values not in (None, "states", "tokens") or (self.values and self.source == "frozen"):
            raise ValueError(f'values must be "states" or "tokens", and with source="frozen" None; got {self.values!r}')
        if self.source == "frozen" and (self.memory_dim is not None or self.memory_heads is not None):
            raise ValueError('memory_dim and memory_heads are the attention\'s own with source="frozen"')
        if self.ngram is not None and not 0 <= self.ngram < max(1, self.conv_size):
            raise ValueError(f"ngram must be at least 0 and less than conv_size={self.conv_size}; got {self.ngram}")
        taken = {"dim", "heads", "depth", "chunk_size", "expansion", "projections", "input_dim", "output_gate"}
        if clash := sorted(taken & set(self.memory)):
            raise ValueError(f"memory must not set {', '.join(clash)}: the graft does")
        if self.memory_kind not in KINDS:
            raise ValueError(f"memory_kind must be one of {', '.join(KINDS)}; got {self.memory_kind!r}")
        known = {f.name for f in fields(KINDS[self.memory_kind])}
        if unknown := sorted(set(self.memory) - known):
            raise ValueError(
                f"memory has no option {', '.join(unknown)}; it has those of {KINDS[self.memory_kind].__name__}"
            )
        if self.lora is not None:
            self.lora = checked(self.lora)

    @property
    def conv_size(self) -> int:
        """Taps of the memories' convolutions: what `memory` says, or enough for `ngram`."""
        return int(self.memory.get("conv_size", max(4, (self.ngram or 0) + 1)))

    @property
    def context(self) -> int:
        """`ngram`, decided."""
        if self.ngram is not None:
            return self.ngram
        return int(self.source != "frozen" and self.conv_size > 1)

    @property
    def uses_tokens(self) -> bool:
        """Whether anything is made of the tokens' embeddings."""
        return "tokens" in (self.source, self.values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MAGConfig:
        """What `to_dict` gave.

        Raises:
            ValueError: it has fields that this version does not know.
        """
        if unknown := sorted(set(values) - {f.name for f in fields(cls)}):
            raise ValueError(f"the configuration has fields this version does not know: {', '.join(unknown)}")
        return cls(**values)


@dataclass
class Qwen3MAGConfig(MAGConfig):
    """`MAGConfig` for `patch_qwen3_with_mag`, which refuses other models."""
