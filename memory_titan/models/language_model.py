"""`MemoryLanguageModel`: a causal language model whose layers are called as memories are. A Hugging Face model.

tokens -- embedding -- layer -- ... -- layer -- norm -- head -- logits
                         |               |
                       state           state          a `StateCache` carries them from call to call
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from memory_titan.memory.state import MemoryState
from memory_titan.memory.trace import Traceable
from memory_titan.models.cache import StateCache
from memory_titan.models.config import MemoryModelConfig
from memory_titan.models.generation import MemoryGenerationMixin

IGNORE = -100  # a label that counts for nothing
Function = TypeVar("Function", bound=Callable[..., Any])
OF_A_MEMORY = "_of_a_memory"  # marks modules that begin as their constructors made them


class MemoryLanguageModel(PreTrainedModel, MemoryGenerationMixin):
    """Base of the models here. A model says what its layers are:

        class MyConfig(MemoryModelConfig):
            model_type = "memory_titan_my"

        class MyForCausalLM(MemoryLanguageModel):
            config_class = MyConfig

            def make_layer(self, index: int) -> nn.Module:
                return MyLayer(self.config.hidden_size)

    A layer is a module with

        layer(x, state, mask) -> (y, state)       x, y: [B, T, hidden]; state may be None: the initial one; mask too
        layer.initial_state(batch_size) -> MemoryState

    that keeps the laws of a memory: causal, rows by themselves, any split the same as one call, and tokens that the
    mask excludes change nothing and have y = 0. Then the model keeps them too. The residual sum is the layer's own
    affair.

    `_init_weights` gives linear layers, convolutions, embeddings and norms a fresh start of Hugging Face's kind, and
    recurrent cells the usual one; what is inside a memory (a `Traceable`) stays as its constructor made it. A layer
    with parameters of its own kind overrides it in its model.

    Args:
        config: of the class's `config_class`.
    """

    config_class: type[MemoryModelConfig] = MemoryModelConfig
    config: MemoryModelConfig
    _gradient_checkpointing_func: Callable[..., tuple[Tensor, MemoryState]]
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}
    _input_embed_layer = "embed_tokens"
    _is_stateful = True  # transformers then refuses what takes tokens back
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # num_items_in_batch, of Trainer

    def __init__(self, config: MemoryModelConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(self.make_layer(index) for index in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = self.make_head()
        self.gradient_checkpointing = False
        self._no_split_modules = sorted({type(layer).__name__ for layer in self.layers})
        for memory in [part for part in self.modules() if isinstance(part, Traceable)]:
            for part in memory.modules():
                part.__dict__[OF_A_MEMORY] = True
        self._made = False
        self.post_init()
        self._made = True

    def make_layer(self, index: int) -> nn.Module:
        """Layer `index`, from 0, of `self.config`; see the class."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its layers are: override make_layer")

    def make_head(self) -> nn.Module:
        """From hidden states `[B, T, hidden]` to logits. Tied to the embedding unless the config says otherwise."""
        return nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: StateCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Read tokens and predict what follows each.

        Args:
            input_ids: `[B, T]`.
            attention_mask: `[B, T]`, 0 for padding, on either side or within; longer, as `generate` gives it: its last
                T count. Padding changes nothing and has logits of the head at 0.
            past_key_values: a stream to go on with; it is moved on at the call's end.
            inputs_embeds: `[B, T, hidden]`, in place of input_ids.
            labels: `[B, T]`, -100 where nothing is to be predicted; see `shift_labels` of the configuration.
            use_cache: return a new stream where none is given; None: in eval mode, as the configuration says.
            output_hidden_states: return the embeddings and what each layer made of them, the last after the norm.
            logits_to_keep: 0: logits of all tokens; n: of the last n; a tensor: of these indices in time.
            num_items_in_batch: labels by which the loss's sum is divided; None: as many as there are.

        Returns:
            loss (float32), logits `[B, T, vocab]`, past_key_values, hidden_states.

        Raises:
            ValueError: arguments that cannot be, or that contradict each other. The stream stays as it was.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
        if x.dim() != 3 or x.shape[2] != self.config.hidden_size:
            width = self.config.hidden_size
            raise ValueError(
                f"expected token ids [batch, time] or embeddings [batch, time, {width}]; embedded: {list(x.shape)}"
            )
        if labels is not None and not isinstance(logits_to_keep, Tensor) and logits_to_keep == 0:
            if labels.shape != x.shape[:2]:
                raise ValueError(f"labels must be [batch, time] = {list(x.shape[:2])}; got {list(labels.shape)}")
        elif labels is not None:
            raise ValueError("labels need the logits of all tokens: leave logits_to_keep at 0")
        mask = _last_columns(attention_mask, x)
        cache = self._cache(past_key_values, use_cache, x.shape[0])
        before = cache.states if cache is not None and cache.states else (None,) * len(self.layers)

        seen, after = [x], []
        for layer, state in zip(self.layers, before, strict=True):
            x, state = self._call(layer, x, state, mask)
            seen.append(x)
            after.append(state)
        seen[-1] = x = self.norm(x)
        kept = x[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else x[:, logits_to_keep]
        logits = self.lm_head(kept)
        loss = None if labels is None else self.compute_loss(logits, labels, mask, num_items_in_batch)
        if cache is not None:
            cache.advance(after, x.shape[1])
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=cache, hidden_states=tuple(seen) if wanted else None
        )

    def compute_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy in float32; 0 where no label counts.

        Args:
            logits: `[B, T, vocab]`.
            labels: `[B, T]`.
            mask: `[B, T]`, bool; what stands at padding predicts nothing.
            num_items_in_batch: see `forward`.
        """
        labels = labels.to(logits.device)
        if self.config.shift_labels:
            labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        if mask is not None:
            labels = labels.masked_fill(~mask, IGNORE)
        total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        count = (labels != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
        return total / (count.to(total.device).clamp(min=1) if isinstance(count, Tensor) else max(1, count))

    def initial_states(self, batch_size: int) -> tuple[MemoryState, ...]:
        """Each layer's state before the first token."""
        layers: Iterable[Any] = self.layers
        return tuple(layer.initial_state(batch_size) for layer in layers)

    def load_cache(self, path: str | os.PathLike[str]) -> StateCache:
        """What `StateCache.save` wrote, on this model's device.

        Raises:
            FileNotFoundError: there is no such file.
            MemoryFileError: it is damaged, no cache, or one of a model with other layers.
        """
        return StateCache.load(path, [type(state) for state in self.initial_states(1)], self.device)

    def _embed(self, input_ids: Tensor | None) -> Tensor:
        assert input_ids is not None
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise ValueError(f"input_ids must be integers; got {input_ids.dtype}")
        try:
            return self.embed_tokens(input_ids)
        except IndexError:
            said = f"{int(input_ids.min())} to {int(input_ids.max())}"
            raise ValueError(f"input_ids must be 0 to {self.config.vocab_size - 1}; got {said}") from None

    def _call(
        self, layer: nn.Module, x: Tensor, state: MemoryState | None, mask: Tensor | None
    ) -> tuple[Tensor, MemoryState]:
        if not (self.gradient_checkpointing and self.training):
            return layer(x, state, mask)
        if getattr(self._gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ValueError("a state carries gradients: gradient checkpointing needs use_reentrant=False here")
        watched = [part for part in layer.modules() if isinstance(part, Traceable) and part.traces is not None]

        def call(*args: Any) -> tuple[Tensor, MemoryState]:
            # When it is computed again, in the backward pass, nobody watches any more; it must report all the same.
            unwatched = [memory for memory in watched if memory.traces is None]
            for memory in unwatched:
                memory.traces = []
            try:
                return layer(*args)
            finally:
                for memory in unwatched:
                    memory.traces = None

        return self._gradient_checkpointing_func(call, x, state, mask)

    def _cache(self, given: StateCache | None, use_cache: bool | None, batch_size: int) -> StateCache | None:
        """The stream that the call is to move on."""
        if given is None:
            wanted = self.config.use_cache and not self.training if use_cache is None else use_cache
            return StateCache() if wanted else None
        if not isinstance(given, StateCache):
            raise ValueError(f"past_key_values must be a StateCache; got {type(given).__name__}")
        if use_cache is False:
            raise ValueError("use_cache=False, and past_key_values to go on with, contradict each other")
        if given.states and len(given) != len(self.layers):
            raise ValueError(f"the cache is of a model with {len(given)} layers; this one has {len(self.layers)}")
        if given.states and given.batch_size != batch_size:
            raise ValueError(
                f"the cache has {given.batch_size} rows and the input {batch_size}; for several beams or answers a row "
                "use cache.batch_repeat_interleave first, or generate(..., memory=cache)"
            )
        return given

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        own = list(module.named_parameters(recurse=False))
        fresh = [(name, weight) for name, weight in own if not getattr(weight, "_is_hf_initialized", False)]
        if OF_A_MEMORY in module.__dict__:
            if fresh and self._made:  # by from_pretrained, which has put nothing in them
                raise ValueError(f"the checkpoint lacks weights of a memory: {', '.join(name for name, _ in fresh)}")
        elif isinstance(module, (nn.LSTM, nn.GRU)):
            for name, weight in fresh:
                if "bias" in name:
                    weight.zero_()
                    if isinstance(module, nn.LSTM) and "bias_ih" in name:
                        weight[module.hidden_size : 2 * module.hidden_size] = 1.0  # the forget gate begins open
                else:
                    for gate in weight.chunk(4 if isinstance(module, nn.LSTM) else 3):
                        (nn.init.orthogonal_ if "hh" in name else nn.init.xavier_uniform_)(gate)
        else:
            super()._init_weights(module)


def _last_columns(attention_mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask of x `[B, T, hidden]`, `[B, T]`, bool; None where it excludes nothing."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[0] != x.shape[0] or attention_mask.shape[1] < x.shape[1]:
        raise ValueError(
            f"attention_mask must be [batch, time] = {list(x.shape[:2])}, or longer in time; got "
            f"{list(attention_mask.shape)}"
        )
    mask = attention_mask[:, -x.shape[1] :].to(x.device, torch.bool)
    return None if bool(mask.all()) else mask


def with_forward_signature(function: Function) -> Function:
    """For an override of `forward` that hands its arguments on: `generate` and `Trainer` read its signature."""
    function.__wrapped__ = MemoryLanguageModel.forward  # type: ignore[attr-defined]
    return function
