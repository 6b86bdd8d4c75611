"""The graft on a model: hooks that prepare each call of the decoder, and mix each grafted layer's memory in.

The model's own modules stay where they are. The decoder's hook makes a `Call` (what is padding, where the window ends,
the memories so far) and hands it down to the layers as a keyword argument, which they all pass on; each grafted
attention's hook runs its branch and mixes. Whoever calls the bare model, `generate` among them, calls the grafted one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from memory_titan.graft.architectures import architecture_of, attention_shape, frozen_qkv, layer_window
from memory_titan.graft.branch import MemoryBranch, State
from memory_titan.graft.config import MAGConfig
from memory_titan.graft.session import CALL, SESSIONS, Call, MemorySession, SessionState, attention_mask
from memory_titan.graft.sinks import NearSinks, check, put_on, take_off

LOWER = "memory_lower"  # the keyword under which the decoder is given what its lower layers would compute


class Graft:
    """Branches, and where they hang.

    Args:
        base_model: a Hugging Face causal LM.
        config: what to graft.
        fingerprint: of the whole, for sessions.
    """

    def __init__(self, base_model: Any, config: MAGConfig, fingerprint: Callable[[], dict[str, Any]]) -> None:
        self.architecture = architecture_of(base_model)
        self.decoder = base_model.get_submodule(self.architecture.decoder)
        self.config, self._fingerprint = config, fingerprint
        layers = self.decoder.get_submodule(self.architecture.layers)
        self.layers: list[int] = list(range(len(layers))) if config.layers == "all" else list(config.layers)
        if bad := [layer for layer in self.layers if not 0 <= layer < len(layers)]:
            raise ValueError(f"the model has layers 0 to {len(layers) - 1}; layers asks for {bad}")
        if getattr(self.decoder, "_memory_titan", False):
            raise ValueError("this model has a memory already; unload() takes it off")
        if (implementation := self.decoder.config._attn_implementation) not in ("sdpa", "eager"):
            raise ValueError(f'attn_implementation must be "sdpa" or "eager"; the model has {implementation!r}')
        if config.sink_distance is not None:
            check(self.decoder, self.architecture)
        text = self.decoder.config
        self.shape = attention_shape(text)
        self.own_windows: list[int | None] = [layer_window(text, layer) for layer in range(len(layers))]
        self._limit = text.max_position_embeddings if self.architecture.learned_positions else None
        self._signature = inspect.signature(self.decoder.forward)
        self.with_memory = self.with_window = True
        self.attention = {i: layers[i].get_submodule(self.architecture.attention) for i in self.layers}
        self.branches = self._make_branches(text.hidden_size)

        self._handles = [
            self.decoder.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.decoder.register_forward_hook(self._leave, with_kwargs=True),
        ]
        for below, layer in zip([None, *self.layers], self.layers, strict=False):
            hook = partial(self._mix, layer, below)
            self._handles.append(self.attention[layer].register_forward_hook(hook, with_kwargs=True))
            if self.architecture.norm_after:
                norm = layers[layer].get_submodule(self.architecture.norm_after)
                self._handles.append(norm.register_forward_hook(_mix_after_norm))
        # all layers have sinks, grafted or not
        near = list(layers) if config.sink_distance is not None and config.sinks else []
        self._near = [layer.get_submodule(self.architecture.attention) for layer in near]
        put_on(self._near)
        self.decoder._memory_titan = True

    def _make_branches(self, hidden: int) -> nn.ModuleDict:
        config, (heads, _, width) = self.config, self.shape
        dim = heads * width
        if config.source != "frozen":
            dim = config.memory_dim or hidden
            heads = config.memory_heads or next(n for n in range(heads, 0, -1) if dim % n == 0)
        branches = nn.ModuleDict()
        for place, layer in enumerate(self.layers):
            branch = MemoryBranch(config, hidden, heads, dim, first=place == 0)
            branches[str(layer)] = branch.to(self.output(layer).weight.device)
        return branches

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        take_off(self._near)
        self._near.clear()
        if getattr(self.decoder, "_memory_titan", False):
            del self.decoder._memory_titan

    def output(self, layer: int) -> Any:
        """A grafted attention's output projection."""
        return self.attention[layer].get_submodule(self.architecture.output)

    def windows(self) -> list[int | None]:
        """Of each layer: the narrower of its own and the graft's."""
        imposed = self.config.window if self.with_window else None
        return [min((w for w in (own, imposed) if w is not None), default=None) for own in self.own_windows]

    def sinks(self) -> list[int]:
        """Of each layer: the first tokens of a text that it sees beside the window; none with a window of its own."""
        seen = self.config.sinks if self.with_window else 0
        return [seen if own is None or own > (self.config.window or 0) else 0 for own in self.own_windows]

    def start(self, layer: int, batch_size: int) -> State:
        """The memory of a grafted layer before the first token."""
        return self._branch(layer).start(batch_size, self.frozen(layer))

    def new_session(self, batch_size: int) -> MemorySession:
        """A stream of which nothing was read yet."""
        weight, (_, key_heads, width) = self.output(self.layers[0]).weight, self.shape
        count = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        # not weight.new_zeros: shared out over processes, the weight would make another of its kind
        nothing = torch.zeros(batch_size, key_heads, 0, width, dtype=weight.dtype, device=weight.device)
        state = SESSIONS[self.config.memory_kind](
            tokens=count,
            columns=count.clone(),
            positions=count.new_zeros(batch_size, 0),
            keys=tuple(nothing for _ in self.own_windows),
            values=tuple(nothing for _ in self.own_windows),
            memories=tuple(self.start(layer, batch_size) for layer in self.layers),
        )
        return self.session(state)

    def session(self, state: SessionState) -> MemorySession:
        """A session that stands at `state`."""
        return MemorySession(state, self.windows(), self.sinks(), self.layers, self._fingerprint())

    def _branch(self, layer: int) -> MemoryBranch:
        branch = self.branches[str(layer)]
        assert isinstance(branch, MemoryBranch)
        return branch

    def frozen(self, layer: int) -> Callable[[Tensor], Tensor] | None:
        """What makes the attention's own q, k, v."""
        if self.config.source != "frozen":
            return None
        attention = self.attention[layer]
        dtype = self.output(layer).weight.dtype
        return lambda h: frozen_qkv(attention, self.architecture, h.to(dtype), self.shape)

    def _enter(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the decoder: the call, positions, masks, and a session where a cache is wanted."""
        given = {**self._signature.bind_partial(*args).arguments, **kwargs}
        bare = not self.with_memory and not self.with_window
        if bare and not isinstance(given.get("past_key_values"), MemorySession):
            return None
        tokens = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
        if tokens is None:
            return None  # the decoder says what is wrong
        B, T = tokens.shape[:2]
        cache, config = given.get("past_key_values"), self.decoder.config
        if cache is not None and not isinstance(cache, MemorySession):
            if type(cache) is not DynamicCache or cache.get_seq_length():
                raise ValueError(
                    f"a model with a memory goes on from a MemorySession (model.new_session()), not from a "
                    f"{type(cache).__name__} that others have filled"
                )
            cache = None
            given["use_cache"] = True
        uses = given.get("use_cache")
        if cache is None and (config.use_cache if uses is None else uses):
            cache = self.new_session(B)
        if cache is not None and cache.batch_size != B:
            raise ValueError(f"the session has {cache.batch_size} rows and the input has {B}")
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= T:
            mask = mask[:, mask.shape[1] - T :].to(tokens.device, torch.bool)
        elif mask is None:
            mask = torch.ones(B, T, dtype=torch.bool, device=tokens.device)
        else:
            raise ValueError(f"attention_mask must be [batch, at least {T}], 0 for padding; got {mask!r:.80}")
        lower = given.pop(LOWER, None)
        before = None if cache is None else cache.state
        start = 0 if before is None else before.tokens[:, None]
        positions = torch.where(mask, start + mask.long().cumsum(1) - 1, -1)
        padded = not bool(mask.all())
        gaps = padded or (before is not None and bool((before.positions < 0).any()))
        call = Call(before, mask, positions, padded, gaps, cache, lower=lower)
        if self.config.uses_tokens and self.with_memory:
            embedded = given.get("inputs_embeds")
            call.tokens = self.decoder.get_input_embeddings()(tokens) if embedded is None else embedded
        if cache is not None:
            cache.begin(call)
        if self._limit is not None and int(positions.max()) >= self._limit:
            raise ValueError(f"the model has learned positions up to {self._limit}; this text is longer")
        given["position_ids"] = positions.clamp(min=0)
        given |= {"attention_mask": self._masks(call, config), "past_key_values": cache}
        return (), {**given, CALL: call}

    def _masks(self, call: Call, config: Any) -> Any:
        """A mask for every layer, by the type of layer where the decoder takes them so; also, how sinks are scored."""
        eager = self.decoder.dtype if config._attn_implementation == "eager" else None
        windows, sinks = self.windows(), self.sinks()
        if call.session is not None:
            windows, sinks = call.session.windows, call.session.sinks
        distance = self.config.sink_distance
        if distance is not None and any(sinks) and int(call.positions.max()) > distance:
            call.near = NearSinks(call, sinks, distance, self.decoder, self.architecture)
        types = config.layer_types if self.architecture.masks_by_type else [""] * len(windows)
        masks: dict[str, Tensor | None] = {}
        run = self.layers[0] if call.lower is not None else 0  # the layers below keep nothing then
        for layer in [*range(run, len(windows)), *range(run)]:
            if (kind := types[layer]) not in masks:
                kept = 0 if call.before is None else call.before.keys[layer].shape[2]
                masks[kind] = attention_mask(call, windows[layer], sinks[layer], kept, eager)
        return masks if self.architecture.masks_by_type else masks[""]

    def _leave(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the decoder: the session goes on."""
        call = kwargs.get(CALL)
        if call is not None and call.session is not None:
            call.session.commit(call)

    def _mix(
        self,
        layer: int,
        below: int | None,
        attention: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Any:
        """After a grafted attention: read and write the layer's memory, and mix."""
        call = kwargs.get(CALL)
        if call is None or not self.with_memory:
            return None
        if call.session is not None and kwargs.get("past_key_values") is None:
            raise ValueError(
                "the layers were not given the session: gradient checkpointing of transformers drops it. Turn that off."
            )
        h = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if call.before is None:
            state = self.start(layer, h.shape[0])
        else:
            state = call.before.memories[self.layers.index(layer)]
        project = self.output(layer)
        gate, answer, state = self._branch(layer)(
            h,
            None if below is None else call.answers[below],
            state,
            call.mask if call.padded else None,
            call.tokens,
            self.frozen(layer),
            lambda y: project(y.to(h.dtype).contiguous()),
        )
        call.memories.setdefault(layer, state)
        call.answers[layer], call.gates[layer] = answer, gate
        attended = output[0]
        mixed = gate.to(attended.dtype), answer.to(attended.dtype)
        if self.architecture.norm_after:
            attended.memory_titan = mixed  # the norm is given this very tensor
            return None
        return torch.lerp(attended, mixed[1], mixed[0]), *output[1:]


def _mix_after_norm(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """After the norm that follows a grafted attention."""
    mixed = getattr(args[0], "memory_titan", None)
    return None if mixed is None else torch.lerp(output, mixed[1], mixed[0])
