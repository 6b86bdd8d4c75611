"""Where attention is in each supported decoder, and what stands around it. One description an architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """A decoder's parts by their attribute paths, and how its residual is made.

    Every layer computes `h = residual + norm_after(attention(norm(h)))`; most have no `norm_after`.
    """

    decoder: str  # from the causal LM: what takes ids, masks and a cache
    layers: str  # from the decoder: its list of layers
    attention: str  # from a layer; it returns a tuple whose first part is its output, [B, T, hidden]
    output: str = "o_proj"  # from the attention: the projection of its heads to the hidden width
    norm_after: str | None = None  # from a layer: a norm between attention and residual; the memory is mixed after it
    fused_qkv: str | None = None  # from the attention: one projection to q, k and v; None: q_proj, k_proj and v_proj
    masks_by_type: bool = False  # whether the decoder takes a mask for each of its `config.layer_types`
    learned_positions: bool = False  # whether positions end at `config.max_position_embeddings`
    rotary: str | None = "rotary_emb"  # from the decoder: what gives cos and sin of positions; None: there is none
    lora: tuple[str, ...] = ("q_proj", "v_proj")  # from the attention: what a LoRA adapts unless it says otherwise


ARCHITECTURES = {
    "qwen3": Architecture("model", "layers", "self_attn", masks_by_type=True),
    "llama": Architecture("model", "layers", "self_attn"),
    "mistral": Architecture("model", "layers", "self_attn"),
    "gpt2": Architecture(
        "transformer",
        "h",
        "attn",
        "c_proj",
        fused_qkv="c_attn",
        learned_positions=True,
        rotary=None,
        lora=("c_attn",),
    ),
    "gemma3_text": Architecture(
        "model", "layers", "self_attn", norm_after="post_attention_layernorm", masks_by_type=True
    ),
}


def architecture_of(model: nn.Module) -> Architecture:
    """The description of a Hugging Face causal LM.

    Raises:
        ValueError: there is none; the message lists what one needs.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in ARCHITECTURES:
        wanted = "; ".join(
            (
                "decoder (from the causal LM to the module that takes ids, masks and a cache)",
                "layers (from there to its list of layers)",
                "attention (from a layer)",
                "output (from the attention to its output projection)",
                "norm_after (from a layer to a norm between attention and residual, if there is one)",
                "fused_qkv (if q, k and v are one projection)",
                "masks_by_type, learned_positions, rotary, lora",
            )
        )
        raise ValueError(
            f"no description of the architecture {kind!r}; there are {', '.join(ARCHITECTURES)}. For another one, add "
            f"an `Architecture` to memory_titan.graft.architectures.ARCHITECTURES under its model_type, with: {wanted}."
        )
    return ARCHITECTURES[kind]


def layer_window(config: Any, layer: int) -> int | None:
    """Tokens that a layer's own attention sees, its own included; None: all."""
    types = getattr(config, "layer_types", None)
    if types is not None:
        return config.sliding_window if types[layer] == "sliding_attention" else None
    # Mistral's window is for all layers; models without one have no such field, or say that it is off.
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def attention_shape(config: Any) -> tuple[int, int, int]:
    """Query heads, key heads, and the width of a head."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, width


def frozen_qkv(attention: nn.Module, architecture: Architecture, h: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The attention's own q, k, v before rotation, each key head repeated for its query heads.

    Args:
        attention: the layer's.
        architecture: the model's.
        h: `[B, T, hidden]`, what the attention is given.
        shape: `attention_shape`.

    Returns:
        `[B, T, 3 * heads * width]`, with the norms on q and k that the attention has.
    """
    heads, key_heads, width = shape
    if architecture.fused_qkv:
        q, k, v = attention.get_submodule(architecture.fused_qkv)(h.contiguous()).split(
            [heads * width, key_heads * width, key_heads * width], -1
        )
    else:
        q, k, v = (attention.get_submodule(f"{name}_proj")(h) for name in "qkv")
    q, k, v = (x.unflatten(-1, (-1, width)) for x in (q, k, v))
    q, k = (getattr(attention, f"{name}_norm", nn.Identity())(x) for name, x in (("q", q), ("k", k)))
    k, v = (x.repeat_interleave(heads // key_heads, -2) for x in (k, v))
    return torch.cat([x.flatten(-2) for x in (q, k, v)], -1)
