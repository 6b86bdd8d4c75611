"""MemNet: a transformer that decides what to read from slots, what to write into them, and what to forget.

tokens -- embedding -- TransformerController --+-- queries --> read (top k) ------+
             ^           (causal, a window)    +-- keys, values --> bottleneck ---|--> MultiHeadMemoryBank
             |                                 +-- write, erase, decay -----------+         |
             |                                 +-- h ----------> ResidualFusion <-- what was read
             |                                                        |
             +------------- the next block, or norm -- head -- logits +
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutputWithPast
from transformers.utils import can_return_tuple

from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryState
from memory_titan.memory.slots.gating import SlotGating
from memory_titan.memory.slots.layer import MemoryBankState, MultiHeadMemoryBank
from memory_titan.memory.slots.losses import pressure_loss, sharpness_loss, utilization_loss
from memory_titan.memory.slots.rule import SlotGates
from memory_titan.memory.sparse.layer import SparseDeltaBank, SparseDeltaBankState
from memory_titan.memory.state import MemoryState
from memory_titan.memory.trace import trace
from memory_titan.models.attention import AttentionState
from memory_titan.models.cache import StateCache
from memory_titan.models.config import MemoryModelConfig
from memory_titan.models.language_model import IGNORE, MemoryLanguageModel, with_forward_signature
from memory_titan.models.layers import TransformerBlock

MEMORIES = ("slots", "sparse", "neural")
MEMORY_STATES = (NeuralMemoryState, MemoryBankState, SparseDeltaBankState)
LOSSES = {"utilization": utilization_loss, "pressure": pressure_loss, "sharpness": sharpness_loss}


class MemNetConfig(MemoryModelConfig):
    """Of a `MemNet`.

    Args:
        memory_layers: the blocks that have a memory, from 0; None: the first.
        memory: "slots", a `MultiHeadMemoryBank`; or "sparse", a `SparseDeltaBank`; or "neural", a `NeuralMemory`.
        bank: options of the memory, those of its configuration: slots, top_k, chunk_size, ...
        utilization_weight, pressure_weight, sharpness_weight: of the losses in `memory.slots.losses`, added to the
            model's own in training.
        persist: what was read into the memories stays there from call to call, detached, until `reset_memory`.
        **kwargs: the fields of `MemoryModelConfig`; window is 64 unless it is given.

    Raises:
        ValueError: these cannot be.
    """

    model_type = "memory_titan_memnet"
    attends = True

    def __init__(
        self,
        memory_layers: Sequence[int] | None = None,
        memory: str = "slots",
        bank: dict[str, Any] | None = None,
        utilization_weight: float = 0.0,
        pressure_weight: float = 0.0,
        sharpness_weight: float = 0.0,
        persist: bool = False,
        window: int | None = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(window=window, **kwargs)
        self.memory_layers = [0] if memory_layers is None else sorted({int(layer) for layer in memory_layers})
        self.memory, self.bank, self.persist = memory, dict(bank or {}), persist
        self.utilization_weight, self.pressure_weight = utilization_weight, pressure_weight
        self.sharpness_weight = sharpness_weight
        if memory not in MEMORIES:
            raise ValueError(f"memory must be one of {', '.join(MEMORIES)}; got {memory!r}")
        outside = [layer for layer in self.memory_layers if not 0 <= layer < self.num_hidden_layers]
        if outside:
            raise ValueError(f"there are {self.num_hidden_layers} layers, from 0; memory_layers asks for {outside}")
        taken = {"dim", "projections", "gating", "input_dim", "output_gate"}
        if clash := sorted(taken & set(self.bank)):
            raise ValueError(f"bank must not set {', '.join(clash)}: the controller does")
        if memory != "slots" and any(self.loss_weights().values()):
            raise ValueError("the losses on slots need memory='slots'")

    def loss_weights(self) -> dict[str, float]:
        """By the loss's name."""
        return {name: getattr(self, f"{name}_weight") for name in LOSSES}


@dataclass(frozen=True)
class Interface:
    """What a controller tells its memory.

    Attributes:
        hidden: `[B, T, hidden]`.
        qkv: `[B, T, 3 * hidden]`: what to look for, under what to write, and what.
        gates: `[B, T, H]` each: how much to write, to erase, to let decay; None: the memory makes its own of hidden.
    """

    hidden: Tensor
    qkv: Tensor
    gates: SlotGates | None


class TransformerController(TransformerBlock):
    """A causal transformer block that also manages a memory: its keys, its values, its gates.

    Args:
        config: of the model.
        bank: of the memory it manages; None: one that makes its gates itself.
    """

    def __init__(self, config: MemNetConfig, bank: MultiHeadMemoryBank | None) -> None:
        super().__init__(**config.block_options())
        self.interface_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.interface = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.gating = None if bank is None else SlotGating(bank.config)

    def emit(self, h: Tensor) -> Interface:
        """What is to be read and written at each token, of the block's output `[B, T, hidden]`."""
        x = self.interface_norm(h)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return Interface(x, self.interface(x), None if self.gating is None else self.gating(x, dtype))


class ResidualFusion(nn.Module):
    """y = h + sigmoid(W_g [h, r]) * W_r LayerNorm(read), r the norm's output: what was read joins what is at hand.

    Args:
        dim: width of h and of what was read.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(2 * dim, dim)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, h: Tensor, read: Tensor) -> Tensor:
        """h, read: `[B, T, dim]`."""
        read = self.norm(read)
        y: Tensor = h + torch.sigmoid(self.gate(torch.cat([h, read], -1))) * self.out(read)
        return y


@dataclass(frozen=True)
class MemNetLayerState(MemoryState):
    """Of a `MemNetLayer`: the controller's attention, and the memory, of whichever kind; one of each."""

    controller: tuple[AttentionState, ...] = field(metadata={"of": AttentionState})
    memory: tuple[Any, ...] = field(metadata={"of": MEMORY_STATES})


Memory = MultiHeadMemoryBank | SparseDeltaBank | NeuralMemory


class MemNetLayer(nn.Module):
    """A controller, its memory, and the fusion of both; called as a memory is.

    Args:
        config: of the model.
    """

    def __init__(self, config: MemNetConfig) -> None:
        super().__init__()
        width, given = config.hidden_size, {"projections": False, "output_gate": False}
        options = {"output_norm": False, **config.bank, **given}
        self.memory: Memory
        if config.memory == "slots":
            self.memory = MultiHeadMemoryBank(width, **options, gating=False)
            self.memory.reports = any(config.loss_weights().values())
        elif config.memory == "sparse":
            self.memory = SparseDeltaBank(width, **options)
        else:
            self.memory = NeuralMemory(width, **options)
        self.controller = TransformerController(
            config, self.memory if isinstance(self.memory, MultiHeadMemoryBank) else None
        )
        self.fusion = ResidualFusion(width)

    def initial_state(self, batch_size: int) -> MemNetLayerState:
        """The state before the first token, for `batch_size` rows."""
        return MemNetLayerState((self.controller.initial_state(batch_size),), (self.memory.initial_state(batch_size),))

    def forward(
        self, x: Tensor, state: MemNetLayerState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, MemNetLayerState]:
        """Think, write, read, fuse.

        Args:
            x: `[B, T, hidden]`.
            state: where to go on; None: at the beginning.
            mask: `[B, T]`, bool or 0/1; tokens at False change nothing and have y = 0.
        """
        h, controller = self.controller(x, None if state is None else state.controller[0], mask)
        told = self.controller.emit(h)
        gates = {} if told.gates is None else {"gates": told.gates}
        read, memory = self.memory(told.hidden, None if state is None else state.memory[0], mask, qkv=told.qkv, **gates)
        y = self.fusion(h, read)
        return y if mask is None else torch.where(mask.bool()[..., None], y, 0.0), MemNetLayerState(
            (controller,), (memory,)
        )


@dataclass
class MemNetOutput(CausalLMOutputWithPast):
    """As `CausalLMOutputWithPast`, and what the losses on slots were, before their weights; None where not in use."""

    utilization: Tensor | None = None
    pressure: Tensor | None = None
    sharpness: Tensor | None = None


class MemNet(MemoryLanguageModel):
    """A causal language model around explicit slots.

    model = MemNet(MemNetConfig(vocab_size=256, hidden_size=128, window=32, bank={"slots": 128, "top_k": 4}))
    model(input_ids, labels=input_ids).loss.backward()
    model.generate(input_ids, max_new_tokens=20)
    model.save_pretrained(folder); model = MemNet.from_pretrained(folder)
    """

    config_class = MemNetConfig
    config: MemNetConfig
    _held: tuple[MemoryState, ...] | None = None

    def make_layer(self, index: int) -> nn.Module:
        """A block with a memory, or one without."""
        config = self.config
        if index in config.memory_layers:
            return MemNetLayer(config)
        return TransformerBlock(**config.block_options())

    def __init__(self, config: MemNetConfig) -> None:
        super().__init__(config)
        # What Hugging Face's start of linear layers has undone.
        for layer in self.layers:
            if isinstance(layer, MemNetLayer):
                if layer.controller.gating is not None:
                    layer.controller.gating.start()
                if config.bank.get("context", 1) is not None:
                    with torch.no_grad():  # what is looked for is what it was written under
                        q, k, _ = layer.controller.interface.weight.chunk(3)
                        k.copy_(q)

    @property
    def memories(self) -> list[Memory]:
        """One a layer of `memory_layers`."""
        return [layer.memory for layer in self.layers if isinstance(layer, MemNetLayer)]

    @property
    def held(self) -> tuple[MemoryState, ...] | None:
        """With `persist`: what the memories hold, one state each; None: nothing was read since the last reset."""
        return self._held

    def reset_memory(self) -> None:
        """With `persist`: the next call begins with empty memories."""
        self._held = None

    @with_forward_signature
    @can_return_tuple
    def forward(self, *args: Any, **kwargs: Any) -> MemNetOutput:
        """As `MemoryLanguageModel.forward`. With `persist` and no stream given, memories go on from the last call."""
        weights = self.config.loss_weights() if self.training else {}
        kept = self.config.persist and kwargs.get("past_key_values") is None
        asked = kwargs.get("use_cache")
        if kept:
            kwargs |= {"past_key_values": self._stream(*args, **kwargs), "use_cache": None}
        traces: dict[str, list[Any]] = {}
        with ExitStack() as watching:
            if any(weights.values()):
                traces = watching.enter_context(trace(self))
            out = super().forward(*args, **kwargs, return_dict=True)
        cache, loss = out.past_key_values, out.loss
        if kept:
            states = [state for state in cache.states if isinstance(state, MemNetLayerState)]
            self._held = tuple(state.memory[0].detach() for state in states)
            if not (self.config.use_cache and not self.training if asked is None else asked):
                cache = None
        losses = {name: LOSSES[name](traces) for name, weight in weights.items() if weight}
        if loss is not None and losses:
            loss = loss + sum(weights[name] * part for name, part in losses.items())
        return MemNetOutput(
            loss=loss, logits=out.logits, past_key_values=cache, hidden_states=out.hidden_states, **losses
        )

    def _stream(self, *args: Any, **kwargs: Any) -> StateCache:
        """Empty windows, and the memories as they were left."""
        given = args[0] if args else kwargs.get("input_ids")
        rows = len(kwargs["inputs_embeds"] if given is None else given)
        states = list(self.initial_states(rows))
        if self._held is not None:
            if self._held[0].batch_size != rows:
                raise ValueError(
                    f"the memories hold {self._held[0].batch_size} rows and the input has {rows}: with persist=True "
                    "every call has the same rows, or reset_memory() comes before"
                )
            held = iter(self._held)
            for index, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
                if isinstance(layer, MemNetLayer):
                    assert isinstance(state, MemNetLayerState)
                    states[index] = MemNetLayerState(state.controller, (next(held),))
        return StateCache(states)


class MemNetForSequenceClassification(MemNet):
    """A class for each sequence, from its last token that is no padding. `config.num_labels` says how many.

    labels: `[B]`, int64, -100 where none; logits `[B, num_labels]`.
    """

    _tied_weights_keys: dict[str, str] = {}

    def __init__(self, config: MemNetConfig) -> None:
        config.tie_word_embeddings = False
        super().__init__(config)

    def make_head(self) -> nn.Module:
        """To classes."""
        return nn.Linear(self.config.hidden_size, self.config.num_labels)

    @with_forward_signature
    @can_return_tuple
    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> SequenceClassifierOutputWithPast:
        """As `MemNet.forward`, with labels of sequences."""
        out = super().forward(*args, **kwargs, return_dict=True)
        mask = kwargs.get("attention_mask")
        if mask is None:
            logits = out.logits[:, -1]
        else:
            mask = mask[:, -out.logits.shape[1] :].to(out.logits.device, torch.bool)
            place = torch.arange(mask.shape[1], device=mask.device)
            last = torch.where(mask, place, 0).amax(1)
            logits = out.logits[torch.arange(len(last), device=last.device), last]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE)
            weights = self.config.loss_weights()
            for name, weight in weights.items():
                if (part := getattr(out, name)) is not None:
                    loss = loss + weight * part
        return SequenceClassifierOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )
