"""What a language model's training is told: a YAML file as `LMConfig`, and the model that it asks for."""

from __future__ import annotations

import inspect
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import memory_titan.models
from memory_titan.models.config import MemoryModelConfig
from memory_titan.models.language_model import MemoryLanguageModel
from memory_titan.training.settings import load_settings, settings_from
from memory_titan.training.text import Corpus, TextConfig

PREFIX = "memory_titan_"
PRECISIONS = ("fp32", "bf16")
# What may change while a run is interrupted; all else would make it another run.
FREE = ("steps", "gradient_checkpointing", "eval_every", "save_every", "log_dir", "output")


@dataclass
class LMConfig:
    """How a language model is trained.

    Attributes:
        model: `type` (titans, transformer, recurrent, memnet) and the fields of that model's configuration. vocab_size
            is the tokenizer's where it is not given.
        data: fields of `TextConfig`.
        output: folder for everything; None: the command line says.
        rows: of a batch, over all processes; each is a stream of text.
        length: tokens of a row in a step.
        segment: tokens of a row that the gradient goes back through; it divides length.
        carry: whether states go on from step to step; a number: for so many steps, then afresh.
        steps: of the optimizer.
        learning_rate: the highest.
        warmup: share of the steps in which it rises; it then falls as a cosine to a tenth.
        weight_decay: of weights with two dimensions or more.
        clip: largest gradient norm.
        precision: "fp32", or "bf16": autocast; weights and states stay float32.
        gradient_checkpointing: run each layer again in the backward pass: less memory, more time.
        seed: of the model's start and of the text's order.
        eval_every: steps between two evaluations on the held-out files; the last step always has one.
        save_every: steps between two checkpoints.
        log_dir: folder for TensorBoard; None: no log.

    Raises:
        ValueError: these cannot be.
    """

    model: dict[str, Any]
    data: TextConfig
    output: str | None = None
    rows: int = 8
    length: int = 1024
    segment: int = 256
    carry: bool | int = True
    steps: int = 1000
    learning_rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    seed: int = 0
    eval_every: int = 100
    save_every: int = 100
    log_dir: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.data, TextConfig):
            self.data = settings_from(TextConfig, self.data, "data")
        for name in ("rows", "length", "segment", "steps", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.length % self.segment:
            raise ValueError(f"length must be a multiple of segment; got {self.length} and {self.segment}")
        if self.carry is not True and self.carry < 0:
            raise ValueError(f"carry must be true, false or a number of steps; got {self.carry}")
        if not self.learning_rate > 0 or not self.clip > 0:
            raise ValueError(f"learning_rate and clip must be positive; got {self.learning_rate} and {self.clip}")
        if not 0 <= self.warmup <= 1 or not self.weight_decay >= 0:
            raise ValueError(
                f"warmup must be 0 to 1, weight_decay not negative; got {self.warmup}, {self.weight_decay}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative; got {self.seed}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if not isinstance(self.model, dict) or "type" not in self.model:
            raise ValueError(f"model must have a type ({', '.join(model_types())}) and its fields; got {self.model!r}")

    def told(self) -> dict[str, Any]:
        """As it is written into checkpoints."""
        return asdict(self)


def load_config(path: str | os.PathLike[str]) -> LMConfig:
    """From a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it says what cannot be; the message names the field.
    """
    return load_settings(LMConfig, path)


def model_types() -> list[str]:
    """What `type` may be."""
    found: dict[str, type] = {}
    for one in vars(memory_titan.models).values():
        if isinstance(one, type) and issubclass(one, MemoryModelConfig) and one is not MemoryModelConfig:
            found[one.model_type.removeprefix(PREFIX)] = one
    return sorted(found)


def make_model(given: dict[str, Any], corpus: Corpus, seed: int) -> MemoryLanguageModel:
    """A fresh model for the tokens of a corpus, which ends a text with the separator.

    Args:
        given: `LMConfig.model`.
        corpus: that it is to read.
        seed: of its weights.

    Raises:
        ValueError: there is no such model, or no such field, or a value cannot be.
    """
    fields = dict(given)
    kind = str(fields.pop("type")).removeprefix(PREFIX)
    if kind not in model_types():
        raise ValueError(f"model: there is no type {kind!r}; there are {', '.join(model_types())}")
    config_class = type(AutoConfig.for_model(PREFIX + kind))
    own, common = _fields(config_class)
    if unknown := sorted(set(map(str, fields)) - own - common):
        raise ValueError(f"model: {kind} has no field {', '.join(unknown)}; it has {', '.join(sorted(own))}")
    fields.setdefault("vocab_size", corpus.vocab_size)
    for name in ("bos_token_id", "eos_token_id"):
        fields.setdefault(name, corpus.separator)
    try:
        config = AutoConfig.for_model(PREFIX + kind, **fields)
        if config.vocab_size < corpus.vocab_size:
            raise ValueError(f"vocab_size is {config.vocab_size}, and the text's tokens are {corpus.vocab_size}")
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model: {error}") from None


def _fields(config_class: type) -> tuple[set[str], set[str]]:
    """Names that the configuration takes: the model's own, and those of every Hugging Face model."""
    own: set[str] = set()
    for one in config_class.__mro__:
        if issubclass(one, MemoryModelConfig):
            parameters = inspect.signature(one.__init__).parameters.values()
            own |= {each.name for each in parameters if each.kind == each.POSITIONAL_OR_KEYWORD} - {"self"}
    common = set(AutoConfig.for_model(PREFIX + "transformer").to_dict()) - own
    return own, common | {"bos_token_id", "eos_token_id", "pad_token_id"}
