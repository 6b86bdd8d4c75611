"""A LoRA on the frozen model of a graft, through PEFT: W x + (alpha / r) B A x, with B = 0 where training starts.

PEFT puts layers of its own in the places of the projections it adapts (arXiv 2106.09685); the projections stay inside
them, untouched. All else of the model stays what and where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from memory_titan.graft.architectures import Architecture

# Of peft.LoraConfig. What else it has changes the frozen weights, trains some of them, or starts with another model.
OPTIONS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
)
_NAME = "default"  # PEFT's, of the only adapter there is


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a LoRA as JSON would give them back.

    Args:
        options: fields of `peft.LoraConfig`, those of `OPTIONS`.

    Raises:
        ValueError: they are none of these, or would not start as the bare model.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f'lora must be None or a dict such as {{"r": 8}}; got {options!r}')
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"lora has no option {', '.join(unknown)}; it has, of peft.LoraConfig, {', '.join(OPTIONS)}")
    rank, start, targets = (
        options.get(name, default) for name, default in (("r", 8), ("init_lora_weights", True), ("target_modules", []))
    )
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"r, the rank of a LoRA, must be at least 1; got {rank!r}")
    if start not in (True, "gaussian"):
        raise ValueError(f'init_lora_weights must be True or "gaussian", which start as no change; got {start!r}')
    if isinstance(targets, str):
        raise ValueError(f"target_modules must be a list of modules' names; got {targets!r}")
    plain = {name: list(x) if isinstance(x, (set, tuple, range)) else x for name, x in options.items()}
    if isinstance(plain.get("layers_to_transform"), int):
        plain["layers_to_transform"] = [plain["layers_to_transform"]]
    return plain


class Lora:
    """LoRA layers in a model, and what is done with them.

    Args:
        base_model: a Hugging Face causal LM, frozen; changed in place.
        architecture: its description.
        options: of `checked`. Without `target_modules` the attention's query and value projections are adapted, without
            `layers_to_transform` the layers from `first` up.
        first: the first grafted layer.

    Attributes:
        layers: PEFT's layers by the names of the modules in whose places they are.
        lowest: the lowest layer of the decoder that has one.
        on: whether they add anything.

    Raises:
        ValueError: PEFT is missing; it, or this model, does not take the options; the model has PEFT's layers already.
            The model is then as it was.
    """

    def __init__(self, base_model: nn.Module, architecture: Architecture, options: dict[str, Any], first: int) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
            from peft.tuners.tuners_utils import BaseTunerLayer
        except ImportError as error:
            raise ValueError(f"a LoRA needs PEFT ({error}): pip install 'memory-titan[lora]'") from error
        if any(isinstance(module, BaseTunerLayer) for module in base_model.modules()):
            raise ValueError("this model has layers of PEFT already; merge_and_unload() takes them in, unload() off")
        path = f"{architecture.decoder}.{architecture.layers}"
        count = len(base_model.get_submodule(path))  # type: ignore[arg-type]
        usual = {
            "target_modules": [f"{architecture.attention}.{name}" for name in architecture.lora],
            "layers_to_transform": list(range(first, count)),
        }
        given = {**usual, **{name: x for name, x in options.items() if x is not None}}
        if bad := [layer for layer in given["layers_to_transform"] if not 0 <= layer < count]:
            raise ValueError(f"the model has layers 0 to {count - 1}; layers_to_transform asks for {bad}")
        transposed = any(isinstance(module, Conv1D) for module in base_model.modules())  # GPT-2's linear layers
        self._base: Any = base_model
        self.layers: dict[str, Any] = {}
        self.on = True
        try:
            inject_adapter_in_model(LoraConfig(**given, fan_in_fan_out=transposed), base_model, _NAME)
            self.layers = {name: x for name, x in base_model.named_modules() if isinstance(x, BaseTunerLayer)}
            self.lowest = min(_layer(name, path) for name in self.layers)
            self._check_targets(given["target_modules"])
        except BaseException:
            # those that were put in before it failed, too
            self.layers = {name: x for name, x in base_model.named_modules() if isinstance(x, BaseTunerLayer)}
            self.remove()
            raise
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()  # of a model in bfloat16, too: small steps would round to none

    def _check_targets(self, targets: list[str]) -> None:
        """PEFT leaves out what it does not find; here that is an error."""
        if missing := [x for x in targets if not any(f".{name}".endswith(f".{x}") for name in self.layers)]:
            raise ValueError(f"target_modules: no {', '.join(missing)} in the layers that the LoRA is for")

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name as PEFT's files have them: `model.layers.0.self_attn.q_proj.lora_A.weight`."""
        return {
            f"{name}.{own.replace(f'.{_NAME}.', '.')}": parameter
            for name, layer in self.layers.items()
            for own, parameter in layer.named_parameters()
            if not own.startswith("base_layer.")
        }

    def enable(self, on: bool) -> None:
        """Whether the layers add anything; off, they are the projections they hold, to the bit."""
        trained = {parameter: parameter.requires_grad for parameter in self.parameters().values()}
        for layer in self.layers.values():
            layer.enable_adapters(on)
        for parameter, flag in trained.items():  # PEFT takes what is off for frozen
            parameter.requires_grad_(flag)
        self.on = on

    def train(self, mode: bool) -> None:
        """Dropout on or off."""
        for layer in self.layers.values():
            layer.lora_dropout.train(mode)

    def remove(self) -> None:
        """Put the projections back in their places; the layers, and so the parameters, are kept here."""
        there = {name: layer for name, layer in self.layers.items() if self._base.get_submodule(name) is layer}
        for name, layer in there.items():
            parent, _, child = name.rpartition(".")
            setattr(self._base.get_submodule(parent), child, layer.get_base_layer())
        if there and "peft_config" in vars(self._base):
            del self._base.peft_config


def _layer(name: str, path: str) -> int:
    """The number of the decoder's layer that a module belongs to."""
    if not name.startswith(f"{path}."):
        raise ValueError(f"a LoRA is for the decoder's layers; {name} is in none of them")
    return int(name.removeprefix(f"{path}.").partition(".")[0])
