"""Tiny random models of every supported architecture, and grafts on them that can be heard."""

from __future__ import annotations

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from memory_titan import MAGConfig, MemoryModel, get_memory_model

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
ARCHITECTURES = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=12)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=9)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=96,
            bos_token_id=1, eos_token_id=None, pad_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    ),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **GEMMA, layer_types=TYPES)),
}  # fmt: skip


def bare(kind: str = "llama", seed: int = 0):
    torch.manual_seed(seed)
    model = ARCHITECTURES[kind]().eval()
    with torch.no_grad():  # as they are made, attention hardly matters
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name and "wte" not in name:
                parameter.mul_(6)
    return model


def graft(kind: str = "llama", seed: int = 0, **options) -> MemoryModel:
    """As a user makes it: shut."""
    options = {"chunk_size": 4, "n_persistent_tokens": 3, "expansion": 2, **options}
    if kind == "gpt2":
        options.pop("sink_distance", None)  # it refuses
    model = bare(kind, seed)
    torch.manual_seed(seed + 1)
    return get_memory_model(model, MAGConfig(**options)).eval()


def loud(kind: str = "llama", seed: int = 0, **options) -> MemoryModel:
    """With gates open, each token's otherwise, and a refinement that matters."""
    model = graft(kind, seed, **{"gate_bias": 0.0, **options})
    torch.manual_seed(seed + 2)
    with torch.no_grad():
        for name, parameter in model.branches.named_parameters():
            if name.endswith("gate.weight"):
                parameter.normal_(std=0.3)
            elif name.endswith("gate.bias"):
                parameter.fill_(1.0)
            elif "refine" in name or "gating.linear.weight" in name:
                parameter.normal_(std=0.3)
            elif "out.weight" in name:
                parameter.mul_(3)
    return model


def ids(batch: int = 2, length: int = 23, seed: int = 3) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 5e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
