"""Models of a few thousand random weights, with tokenizers made on the spot: what the tests of the hybrid run on."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FACTS = (
    "The access code of the north laboratory is 7319.",
    "Marguerite keeps the spare key under the third flowerpot.",
    "The ferry to Brindlemoor leaves at twenty to six.",
)
ORDINARY = (
    "Nobody would rather lose money than break a promise.",
    "Copper is a soft metal that conducts electricity very well.",
    "The bakery on the corner sells out of rye bread by noon.",
)


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte pairs, with all bytes among them, learned from a few sentences."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=[END, "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(
        [*FACTS, *ORDINARY, "Answer each question from what you remember: what, who, where?"], trainer
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=END, eos_token=END)
    wrapped.chat_template = template
    return wrapped


def save_llama(folder: Path, template: str | None = TEMPLATE, seed: int = 0) -> Path:
    """A Llama of four layers in `folder`, as `load_frozen` takes it."""
    torch.manual_seed(seed)
    words = tokenizer(template)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_gpt2(folder: Path) -> Path:
    """A GPT-2 of four layers: learned positions, tied embeddings, no chat template."""
    torch.manual_seed(0)
    words = tokenizer(None)
    config = GPT2Config(
        vocab_size=len(words),
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_positions=2048,
        initializer_range=0.2,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
