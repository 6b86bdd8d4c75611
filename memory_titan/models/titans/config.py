"""What a Titans model is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_titan.memory.neural.config import NeuralMemoryConfig
from memory_titan.memory.neural.presets import PRESETS
from memory_titan.memory.slots.config import MemoryBankConfig
from memory_titan.memory.sparse.config import SparseDeltaBankConfig
from memory_titan.models.config import MemoryModelConfig
from memory_titan.models.titans.fusion import FUSIONS

ARCHITECTURES = ("lmm", "mac", "mag", "mal")
MEMORIES = {"neural": NeuralMemoryConfig, "slots": MemoryBankConfig, "sparse": SparseDeltaBankConfig}


class TitansConfig(MemoryModelConfig):
    """Of a `TitansForCausalLM` (Behrouz et al. 2024, arXiv 2501.00663).

    What the paper leaves open has a default here, and is an option.

    Args:
        architecture: "lmm", the memory alone; "mac", memory as a context of attention (section 4.1); "mag", memory
            and attention side by side (4.2); "mal", memory as a layer before attention (4.3).
        memory: "neural", a `NeuralMemory`; "slots", a `MultiHeadMemoryBank`; "sparse", a `SparseDeltaBank`.
        preset: one of `memory_titan.memory.neural.presets.PRESETS`; None: the defaults of `NeuralMemoryConfig`,
            which are Titans' memory with the exact gradient in its last matrix.
        memory_options: fields of the memory's own configuration; heads is num_attention_heads unless given here.
        persistent: learned tokens in front of the sequence, a block's own: seen by attention from everywhere, and
            read by the memory before the first token. The paper does not say how many.
        segment: "mac": tokens of a segment, within which attention is causal and full. A multiple of the memory's
            chunk_size is the fastest. The paper does not say.
        mac_residual: "mac": the memory reads the tokens plus what attention says of them; False: the latter alone, as
            the paper has it.
        window: "mag" and "mal": tokens that attention sees.
        memory_layers: the blocks that have a memory, from 0; None: all. The others are transformer blocks, with the
            segment's length for a window in "mac".
        fusion: "mac" and "mag": how both branches become one, see `Fusion`.
        write_price: in training, times the mean step size of all writes, added to the loss: what teaches hard gates
            (`memory_options={"gates": "hard"}`) to close on filler. "neural" only. May be changed between stages of
            training: `model.config.write_price`.
        **kwargs: the fields of `MemoryModelConfig`.

    Raises:
        ValueError: these cannot be; the message names the field.
    """

    model_type = "memory_titan_titans"
    attends = True

    def __init__(
        self,
        architecture: str = "mag",
        memory: str = "neural",
        preset: str | None = None,
        memory_options: dict[str, Any] | None = None,
        persistent: int = 4,
        segment: int = 64,
        mac_residual: bool = True,
        window: int | None = 64,
        memory_layers: Sequence[int] | None = None,
        fusion: str = "convex",
        write_price: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(window=window, **kwargs)
        self.architecture, self.memory, self.preset = architecture, memory, preset
        self.memory_options, self.persistent, self.segment = dict(memory_options or {}), persistent, segment
        self.memory_layers = None if memory_layers is None else sorted({int(layer) for layer in memory_layers})
        self.fusion, self.write_price, self.mac_residual = fusion, write_price, mac_residual
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}; got {architecture!r}")
        if memory not in MEMORIES:
            raise ValueError(f"memory must be one of {', '.join(MEMORIES)}; got {memory!r}")
        if preset is not None and (memory != "neural" or preset not in PRESETS):
            raise ValueError(f"preset is for memory='neural' and one of {', '.join(PRESETS)}; got {preset!r}")
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}; got {fusion!r}")
        if persistent < 0:
            raise ValueError(f"persistent must not be negative; got {persistent}")
        if segment < 1:
            raise ValueError(f"segment must be at least 1; got {segment}")
        if wrong := [layer for layer in self.memory_layers or () if not 0 <= layer < self.num_hidden_layers]:
            last = self.num_hidden_layers - 1
            raise ValueError(f"memory_layers must be blocks 0 to {last} of num_hidden_layers; got {wrong[0]}")
        if not write_price >= 0 or (write_price and memory != "neural"):
            raise ValueError(f"write_price must not be negative, and is for memory='neural'; got {write_price}")
        if taken := sorted({"dim", "projections", "input_dim"} & set(self.memory_options)):
            raise ValueError(f"memory_options must not set {', '.join(taken)}: the model does")
        try:
            MEMORIES[memory](**self.memory_arguments())
        except (TypeError, ValueError) as error:
            raise ValueError(f"memory_options: {error}") from None

    def block_options(self) -> dict[str, Any]:
        """Of a block without a memory."""
        options = super().block_options()
        return options | {"window": self.segment} if self.architecture == "mac" else options

    def memory_arguments(self) -> dict[str, Any]:
        """Those of the memory's configuration."""
        preset = PRESETS[self.preset].options if self.preset is not None else {}
        return {"dim": self.hidden_size, "heads": self.num_attention_heads, **preset, **self.memory_options}
