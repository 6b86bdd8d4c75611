"""What stands before a memory: its gates, and the short convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_titan.memory.gates import opening
from memory_titan.memory.neural.config import NeuralMemoryConfig
from memory_titan.memory.neural.rule import LOG_FLOOR, Gates


class Gating(nn.Module):
    """x to `Gates`. A gate that the configuration does not have takes no parameters.

    They start at a middling step, little decay, little momentum, a Huber threshold of 1 and windows that count half.

    Args:
        config: of the memory.
        inputs: inputs of all its matrices together, for channel-wise decay.
    """

    def __init__(self, config: NeuralMemoryConfig, inputs: int) -> None:
        super().__init__()
        self.config = config
        hard = config.gates == "hard"
        # name -> (numbers a head, bias at the start)
        columns: dict[str, tuple[int, float]] = {}
        if config.step == "learned":
            columns["step"] = (1, 0.0)
        if config.decay:
            columns["decay"] = (inputs if config.retention == "channel" else 1, -2.94 if hard else -6.0)
        if config.momentum:
            columns["momentum"] = (1, -3.0)
        if config.bias == "huber":
            columns["threshold"] = (1, 0.54)
        if config.window > 1:
            columns["context"] = (1, 0.0)
        self.columns = {name: count for name, (count, _) in columns.items()}
        if columns:
            self.linear = nn.Linear(config.input_width, config.heads * sum(self.columns.values()))
            starts = [torch.full((config.heads * count,), start) for count, start in columns.values()]
            with torch.no_grad():
                self.linear.bias.copy_(torch.cat(starts))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Gates:
        """x: `[B, T, input_width]`; the gates come in `dtype`, `[B, H, T]`."""
        config, raw = self.config, {}
        if self.columns:
            parts = self.linear(x).to(dtype).split([config.heads * count for count in self.columns.values()], -1)
            for (name, count), part in zip(self.columns.items(), parts, strict=True):
                part = part.unflatten(-1, (config.heads, count)).transpose(1, 2)  # [B, H, T, count]
                raw[name] = part if name == "decay" and config.retention == "channel" else part[..., 0]
        flat = x.new_ones(x.shape[0], config.heads, x.shape[1], dtype=dtype)
        step = (
            opening(raw["step"], config.gates == "hard") * config.step_bound
            if "step" in raw
            else flat * config.step_bound
        )
        log_momentum = None
        if "momentum" in raw:
            # What is written moves the weights again at every later token, 1 / (1 - eta) times in all.
            log_momentum = F.logsigmoid(raw["momentum"]).clamp(min=LOG_FLOOR)
            step = step * torch.sigmoid(-raw["momentum"])
        return Gates(
            step,
            self._log_keep(raw, flat),
            log_momentum,
            F.softplus(raw["threshold"]) if "threshold" in raw else None,
            torch.sigmoid(raw["context"]) if "context" in raw else None,
        )

    def _log_keep(self, raw: dict[str, Tensor], flat: Tensor) -> Tensor:
        if self.config.retention == "fixed":  # RetNet: from 1/32 a token, halved from head to head
            heads = torch.arange(self.config.heads, device=flat.device, dtype=flat.dtype)
            return flat * torch.log1p(-torch.exp2(-5 - heads))[:, None]
        if "decay" not in raw:
            return torch.zeros_like(flat)
        if self.config.gates == "hard":
            return torch.log1p(-opening(raw["decay"], True, 0.05).clamp(max=0.999))
        return F.logsigmoid(-raw["decay"])
