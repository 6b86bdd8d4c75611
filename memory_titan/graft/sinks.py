"""Sinks that stay near: a query scores them as from no further than `MAGConfig.sink_distance`.

Sinks stand at a text's first positions, so their distance grows with the text, beyond what a model with rotary
positions (RoPE, arXiv 2104.09864) was trained for. A query at position t scores a sink as if it stood at
c = min(t, sink_distance) instead. Both come here rotated, and rotations add up: R(c) q . k = R(t) q . R(t - c) k. As
t - c is each query's own, the scores of the few sinks are made by hand and ride along: query and key get some columns
more, in which query t has its score of sink s, and the key of sink s a 1, with zeros in place of itself. All else
transformers' own attention does.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from memory_titan.graft.architectures import Architecture
from memory_titan.graft.session import CALL, Call

_NAME = "memory_titan"  # of the attention function, in transformers' table of them
_MOVING = ("dynamic", "longrope")  # their frequencies depend on how long a text is
_WIDTH = 8  # kernels like heads whose width is a multiple of it

Turn = tuple[Tensor, Tensor]  # cos and sin of t - c, [B, 1, T, width], float32


def check(decoder: nn.Module, architecture: Architecture) -> None:
    """Refuse a model whose sinks cannot be brought nearer.

    Raises:
        ValueError: it has no rotary positions, or their frequencies change with the length.
    """
    if architecture.rotary is None:
        raise ValueError("sink_distance is for rotary positions; this model has learned ones: leave it None")
    kinds = _kinds(decoder.get_submodule(architecture.rotary))
    if moving := sorted(set(kinds) & set(_MOVING)):
        raise ValueError(
            f"sink_distance is for rotary positions of fixed frequencies; rope_type {moving[0]!r} changes them with "
            f"the length of a text"
        )


def _kinds(rotary: Any) -> list[str]:
    return list(rotary.rope_type.values()) if isinstance(rotary.rope_type, dict) else [rotary.rope_type]


def put_on(attentions: Iterable[Any]) -> None:
    """Have these attentions look up the function of this module; `take_off` undoes it.

    They get a copy of their configuration that names it. The model's own still says which function computes.
    """
    AttentionInterface.register(_NAME, _attend)
    for attention in attentions:
        own, attention.config = attention.config, copy.copy(attention.config)
        attention.config._attn_implementation = _NAME
        attention.config.memory_titan_own = own


def take_off(attentions: Iterable[Any]) -> None:
    """Give these attentions their own configuration back."""
    for attention in attentions:
        attention.config = getattr(attention.config, "memory_titan_own", attention.config)


class NearSinks:
    """How the layers of one call score the sinks; at least one of its queries stands beyond the distance.

    Args:
        call: the call.
        sinks: of each layer.
        distance: `MAGConfig.sink_distance`.
        decoder: it has the rotary embedding.
        architecture: it says where.
    """

    def __init__(self, call: Call, sinks: list[int], distance: int, decoder: Any, architecture: Architecture) -> None:
        assert architecture.rotary is not None
        self.call, self.sinks = call, sinks
        rotary = decoder.get_submodule(architecture.rotary)
        by_type = isinstance(rotary.rope_type, dict)  # Gemma 3: other frequencies for each type of layer
        self._types: list[str] = list(decoder.config.layer_types) if by_type else [""] * len(sinks)
        now = call.positions.clamp(min=0)
        places = torch.cat([now, now.clamp(max=distance)], 1)
        like = torch.empty(0, device=now.device)  # device and dtype of what the embedding gives
        self._turns: dict[str, Turn] = {}
        for kind in {kind for kind, count in zip(self._types, sinks, strict=True) if count}:
            cos, sin = rotary(like, places, *([kind] if by_type else []))
            (cos, near_cos), (sin, near_sin) = (x[:, None].chunk(2, 2) for x in (cos, sin))
            scale = near_cos.square() + near_sin.square()  # 1, or the square of an attention scaling
            self._turns[kind] = (
                (cos * near_cos + sin * near_sin) / scale,
                (sin * near_cos - cos * near_sin) / scale,
            )
        self._columns: dict[tuple[int, int], Tensor] = {}
        self._near: dict[int, Tensor] = {}  # by layer, the sinks' keys as the one query sees them
        if call.before is not None and now.shape[1] == 1 and not call.gaps:  # they stand in front: turn them instead
            for kind, turn in self._turns.items():
                layers = [i for i, count in enumerate(sinks) if count and self._types[i] == kind]
                layers = [i for i in layers if call.before.keys[i].shape[2]]  # those that are skipped keep nothing
                if not layers:
                    continue
                keys = torch.stack([call.before.keys[i][:, :, : sinks[i]] for i in layers])  # all at once
                self._near |= zip(layers, _turned(keys.to(turn[0].dtype), turn).to(keys.dtype), strict=True)

    def bring(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What gives, in plain attention, sinks their scores from nearer by.

        Args:
            layer: its number.
            query: `[B, heads, T, width]`, rotated.
            key: `[B, key heads, kept + T, width]`, rotated.
            value: as the key.

        Returns:
            The same, wider by some columns where a call has several queries. The values' further ones are 0.
        """
        sinks, turn = self.sinks[layer], self._turns[self._types[layer]]
        if layer in self._near:
            return query, torch.cat([self._near[layer], key[:, :, sinks:]], 2), value
        at = self._at(sinks, key)
        scores = _scores(query, at @ key, turn)
        # two parts, the second what bfloat16 loses of the first
        high = scores.bfloat16().to(scores.dtype)
        extra = torch.cat([high, scores - high], -1).to(query.dtype)
        fill = -2 * sinks % _WIDTH
        ones = at.mT.expand(-1, key.shape[1], -1, -1)
        key = torch.cat([key * (1 - at.sum(2)[..., None]), ones, ones], -1)
        query = torch.cat([query, extra], -1)
        return F.pad(query, (0, fill)), F.pad(key, (0, fill)), F.pad(value, (0, 2 * sinks + fill))

    def _at(self, sinks: int, key: Tensor) -> Tensor:
        """`[B, 1, sinks, kept + T]`, in the key's dtype: 1 where a column is that sink."""
        length, new = key.shape[2], self.call.positions.shape[1]
        if (sinks, length) not in self._columns:
            seen = self.call.seen(length - new)
            at = seen[:, None] == torch.arange(sinks, device=seen.device)[:, None]
            self._columns[sinks, length] = at[:, None].to(key.dtype)
        return self._columns[sinks, length].to(key.dtype)


def _turned(x: Tensor, turn: Turn) -> Tensor:
    """x, `[..., width]`, rotated on by the angle."""
    return x * turn[0] + _half_turned(x) * turn[1]


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _scores(query: Tensor, sinks: Tensor, turn: Turn) -> Tensor:
    """`[B, heads, T, sinks]`, in float32 at least: of sinks `[B, key heads, sinks, width]`, not yet scaled."""
    (B, heads, T, _), key_heads = query.shape, sinks.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        dtype = torch.promote_types(query.dtype, turn[0].dtype)
        sinks = sinks.to(dtype)
        both = torch.cat([sinks, _half_turned(sinks)], -1)
        asked = torch.cat([query * turn[0], query * turn[1]], -1)
        scores = asked.reshape(B, key_heads, heads // key_heads * T, -1) @ both.mT
    return scores.view(B, heads, T, -1)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers: the model's own, with sinks from nearer by where a `Call` says so."""
    eager: Callable[..., Any] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    implementation = module.config.memory_titan_own._attn_implementation
    plain = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    call, width = kwargs.get(CALL), value.shape[-1]
    if call is not None and call.near is not None and call.near.sinks[module.layer_idx]:
        query, key, value = call.near.bring(module.layer_idx, query, key, value)
    out, weights = plain(module, query, key, value, attention_mask, *args, **kwargs)
    return out[..., :width], weights
