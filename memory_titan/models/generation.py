"""`generate` for models whose layers are memories: from a text, or on from where a stream stands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from memory_titan.models.cache import StateCache


class MemoryGenerationMixin(GenerationMixin):
    """Hugging Face's `generate`, with a stream to go on with. A model's second base class."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No: the first call makes the cache."""
        return False

    def generate(self, inputs: Tensor | None = None, *, memory: StateCache | None = None, **options: Any) -> Any:
        """`generate` of Hugging Face, with all its options but those that take tokens back (assisted decoding).

        Args:
            inputs: `[B, T]`, token ids; with `memory` only what is new. Also as `input_ids`.
            memory: a stream to go on with. Afterwards it has read the prompt and the answer, each row up to its end
                (with several answers a row: the prompt but for its last token).
            options: `attention_mask` `[B, T]`, 0 for padding on the left; `max_new_tokens`, `num_beams`, ... With
                Hugging Face's own `past_key_values` in place of `memory`, inputs are the whole text, what the cache has
                read included, and the answer's last token is not read.

        Returns:
            `[B, T + new]`, or a dict with `sequences`.

        Raises:
            ValueError: options that contradict each other.
        """
        ids = options.pop("input_ids", None) if inputs is None else inputs
        if memory is None:
            cache, mask = options.get("past_key_values"), options.get("attention_mask")
            whole = ids is not None and (mask is None or mask.shape[1] <= ids.shape[1])
            if isinstance(cache, StateCache) and whole and ids.shape[1] <= cache.tokens:
                raise ValueError(
                    f"past_key_values has read {cache.tokens} tokens, and the input has {ids.shape[1]}: it must begin "
                    "with those that were read. If it is what comes next, pass memory=cache instead."
                )
            return super().generate(ids, **options)
        if not isinstance(memory, StateCache):
            raise ValueError(f"memory must be a StateCache; got {type(memory).__name__}")
        if ids is None or options.pop("past_key_values", None) is not None:
            raise ValueError("with memory, generate takes token ids, and no past_key_values")
        if options.pop("use_cache", True) is False:
            raise ValueError("use_cache=False and memory contradict each other")
        mask = options.pop("attention_mask", None)
        mask = torch.ones_like(ids) if mask is None else mask[:, -ids.shape[1] :]
        stream = memory.copy()
        if ids.shape[1] > 1:
            self._read(ids[:, :-1], mask[:, :-1], stream)
        # Of what was read before, generate need not know: to it, this prompt is the text.
        work = stream.copy()
        work.offset = work.tokens - (ids.shape[1] - 1)
        defaults = options.get("generation_config") or self.generation_config
        width, answers, ends = (
            options.get(name, getattr(defaults, name, None))
            for name in ("num_beams", "num_return_sequences", "eos_token_id")
        )
        work.batch_repeat_interleave(max(width or 1, answers or 1))
        out = super().generate(ids, attention_mask=mask, past_key_values=work, use_cache=True, **options)
        if (answers or 1) == 1:
            new = (out if isinstance(out, Tensor) else out.sequences)[:, ids.shape[1] - 1 :]
            mask = torch.cat([mask[:, -1:], _until_end(new[:, 1:], ends).to(mask)], 1)
            if (width or 1) == 1 and ids.shape[0] == 1:  # it has read all of this but the last token
                seen = work.tokens - stream.tokens
                stream, new, mask = work, new[:, seen:], mask[:, seen:]
            if new.shape[1]:
                self._read(new, mask, stream)
        memory.advance(stream.states, stream.tokens - memory.tokens)
        return out

    @torch.no_grad()
    def _read(self, ids: Tensor, mask: Tensor, memory: StateCache) -> None:
        self(input_ids=ids.to(self.device), attention_mask=mask, past_key_values=memory, logits_to_keep=1)


def _until_end(tokens: Tensor, ends: int | list[int] | None) -> Tensor:
    """`[B, T]`, bool: up to each row's first end token, and it; behind it stands padding."""
    if ends is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    is_end = torch.isin(tokens, torch.as_tensor(ends, device=tokens.device)).long()
    return is_end.cumsum(1) - is_end == 0
