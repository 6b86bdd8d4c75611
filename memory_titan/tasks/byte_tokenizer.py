"""Text as bytes, for a model without a tokenizer: token n is byte n of UTF-8."""

from __future__ import annotations

from typing import Any


class ByteTokenizer:
    """Called as a fast tokenizer of Hugging Face is, as far as tasks and evaluations call one; no special tokens."""

    bos_token_id = None
    eos_token_id = None

    def __call__(self, text: str, **options: Any) -> dict[str, list[Any]]:
        """`input_ids`, and `offset_mapping`: of each byte the character, from and to, that it belongs to."""
        ids = list(text.encode("utf-8", "surrogatepass"))
        if len(ids) == len(text):
            offsets = [(i, i + 1) for i in range(len(ids))]
        else:
            offsets = [(i, i + 1) for i, one in enumerate(text) for _ in one.encode("utf-8", "surrogatepass")]
        return {"input_ids": ids, "offset_mapping": offsets}

    def decode(self, ids: Any, **options: Any) -> str:
        """Back to text; bytes that are no UTF-8 come as U+FFFD, and tokens past 255 are left out."""
        return bytes(i for i in map(int, ids) if i < 256).decode("utf-8", "replace")
