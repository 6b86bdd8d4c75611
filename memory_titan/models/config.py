"""What the configurations of all models here share."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

FEED_FORWARD = ("swiglu", "gelu")


class MemoryModelConfig(PretrainedConfig):
    """Base of every model's configuration: a Hugging Face one, saved and loaded as those are.

    Args:
        vocab_size: of the embedding and the head; 256: bytes.
        hidden_size: width of the model.
        num_hidden_layers: its depth.
        num_attention_heads: of a layer with attention; they divide hidden_size into even widths.
        intermediate_size: width of the feed-forward; None: about 8/3 of hidden_size, a multiple of 8.
        feed_forward: "swiglu" or "gelu".
        window: tokens that attention sees; None: all.
        rotary_base: of the positions, see `WindowAttention`.
        rms_norm_eps: of the norms.
        initializer_range: standard deviation of fresh weights.
        tie_word_embeddings: the head's weights are the embedding's.
        shift_labels: labels are the tokens themselves, and each is compared with what was said one before it; False:
            labels stand where they are to be said.
        use_cache: a call in eval mode returns a `StateCache`.
        **kwargs: those of `PretrainedConfig`: pad_token_id, eos_token_id, ...

    Raises:
        ValueError: these cannot be.
    """

    model_type = "memory_titan"
    attends = False  # whether all such models have a `WindowAttention`, and so heads to divide the width by
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 256,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        intermediate_size: int | None = None,
        feed_forward: str = "swiglu",
        window: int | None = None,
        rotary_base: float = 10_000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = True,
        shift_labels: bool = True,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = 8 * -(-hidden_size // 3) if intermediate_size is None else intermediate_size
        self.feed_forward, self.window, self.rotary_base = feed_forward, window, rotary_base
        self.rms_norm_eps, self.initializer_range = rms_norm_eps, initializer_range
        self.shift_labels, self.use_cache = shift_labels, use_cache
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1, or None for full attention; got {window}")
        if feed_forward not in FEED_FORWARD:
            raise ValueError(f"feed_forward must be one of {', '.join(FEED_FORWARD)}; got {feed_forward!r}")
        if not rotary_base >= 1:
            raise ValueError(f"rotary_base must be at least 1; got {rotary_base}")
        if self.attends and (hidden_size % num_attention_heads or (hidden_size // num_attention_heads) % 2):
            raise ValueError(
                "hidden_size / num_attention_heads must be an even number (rotary positions turn pairs); got "
                f"{hidden_size} / {num_attention_heads}"
            )
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def block_options(self) -> dict[str, Any]:
        """Of a `TransformerBlock` of this model."""
        return {
            "dim": self.hidden_size,
            "heads": self.num_attention_heads,
            "inner": self.intermediate_size,
            "window": self.window,
            "rotary_base": self.rotary_base,
            "feed_forward": self.feed_forward,
            "eps": self.rms_norm_eps,
        }
