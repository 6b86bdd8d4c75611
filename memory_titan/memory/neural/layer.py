"""`NeuralMemory`: the Titans long-term memory as a layer (arXiv 2501.00663, section 3.1).

x --+-- W_K --- conv --- SiLU --- l2 norm --> k --+
    +-- W_V --- conv --- SiLU ---------------> v --+--> write by surprise, token by token
    +-- W_gates --> step, decay, momentum --------+          |
    +-- W_Q --- conv --- SiLU --- l2 norm --> q ------> read the fast weights --> norm * gate --> W_O --> y
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_titan.memory.neural.chunk import chunk_memory
from memory_titan.memory.neural.naive import naive_memory, read_memory
from memory_titan.memory.neural.rule import ACTIVATIONS, LOG_FLOOR, FastWeights, Rule
from memory_titan.memory.state import MemoryState


@dataclass
class NeuralMemoryConfig:
    """What a `NeuralMemory` is. Everything here is part of the function that it computes, `chunk_size` included."""

    dim: int  # width of x and y; a multiple of heads
    heads: int = 4
    depth: int = 2  # layers of the memory, 1 to 4; 1 is a matrix
    expansion: int = 4  # width of the memory's hidden layers over that of a head
    chunk_size: int = 64  # tokens between two anchors of the inner gradient
    rule: Rule = "exact"  # the inner gradient's place: "exact" in the last layer, or "anchored" as in the paper
    momentum: bool = True
    decay: bool = True
    gates: Literal["sigmoid", "hard"] = "sigmoid"  # hard gates reach 0 and 1 exactly
    max_step: float | None = None  # largest theta; None: 1 for "exact", 1/chunk_size for "anchored"
    lower_step: float = 0.1  # step of the layers below the last, relative to its own
    activation: str = "silu"  # between the memory's layers: silu, gelu, relu
    conv_size: int = 4  # taps of the causal depthwise convolution on q, k, v; 0: none
    qkv_activation: bool = True  # SiLU on q, k, v
    qk_norm: bool = True  # l2-normalise q and k
    output_norm: bool = True  # RMS norm per head on what was read
    output_gate: bool = True  # times a sigmoid gate of x
    learned_init: bool = True  # the weights at the start of a stream are trained (False: fixed)
    implementation: Literal["chunk", "naive"] = "chunk"

    def __post_init__(self) -> None:
        if self.dim < 1 or self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"dim must be a positive multiple of heads; got dim={self.dim}, heads={self.heads}")
        if not 1 <= self.depth <= 4:
            raise ValueError(f"depth must be 1 to 4; got {self.depth}")
        if self.expansion < 1 or self.chunk_size < 1:
            raise ValueError(f"expansion and chunk_size must be at least 1; got {self.expansion} and {self.chunk_size}")
        if self.conv_size < 0:
            raise ValueError(f"conv_size must be 0 (no convolution) or the number of taps; got {self.conv_size}")
        if self.rule not in ("exact", "anchored"):
            raise ValueError(f'rule must be "exact" or "anchored"; got {self.rule!r}')
        if self.gates not in ("sigmoid", "hard"):
            raise ValueError(f'gates must be "sigmoid" or "hard"; got {self.gates!r}')
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")
        if self.implementation not in IMPLEMENTATIONS:
            raise ValueError(f'implementation must be "chunk" or "naive"; got {self.implementation!r}')


IMPLEMENTATIONS = {"chunk": chunk_memory, "naive": naive_memory}


@dataclass(frozen=True)
class NeuralMemoryState(MemoryState):
    """All that a `NeuralMemory` carries on: `FastWeights` (see there) and the convolution's last inputs.

    Kept in float32 whatever the dtype of x (float64 for float64): a sum of many small writes needs the digits.

    Attributes:
        weights, momentum, anchor: one tensor a layer, `[B, H, in, out]`.
        position: `[B]`, int64, tokens in the open chunk.
        tail: `[B, conv_size - 1, 3 * dim]`, the last projections to q, k, v before the convolution.
        tokens: `[B]`, int64, tokens read so far.
    """

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    anchor: tuple[Tensor, ...]
    position: Tensor
    tail: Tensor
    tokens: Tensor


class NeuralMemory(nn.Module):
    """A memory whose content is the weights of a small network, trained on every token that it reads.

        memory = NeuralMemory(dim=256, heads=4, depth=2)
        y, state = memory(x)                          # write and read, causally; x, y: [batch, time, dim]
        y, state = memory(x_next, state)              # goes on where it stopped
        state, surprise = memory.memorize(x, state)   # write only; surprise: [batch, time, heads]
        y = memory.recall(q, state)                   # read only

    A sequence may be cut anywhere, down to single tokens: the outputs and the state are those of one call. Tokens
    that a mask excludes change nothing. All of it is differentiable, through every write.

    Args:
        dim: width of x and y.
        **options: the other fields of `NeuralMemoryConfig`.
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__()
        self.config = config = NeuralMemoryConfig(dim=dim, **options)
        heads, width = config.heads, dim // config.heads
        bound = 1.0 if config.rule == "exact" else 1.0 / config.chunk_size
        self.max_step = bound if config.max_step is None else config.max_step

        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        if config.conv_size:
            self.conv = nn.Conv1d(3 * dim, 3 * dim, config.conv_size, groups=3 * dim)
        # Columns of the gates: step; then decay and momentum, where there are any. They start at a middling step,
        # little decay and little momentum.
        starts = [0.0]
        starts += [-6.0 if config.gates == "sigmoid" else -2.94] if config.decay else []
        starts += [-3.0] if config.momentum else []
        self.gates = nn.Linear(dim, len(starts) * heads)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor(starts).repeat_interleave(heads))

        hidden = [config.expansion * width] * (config.depth - 1)
        sizes = [width, *hidden, width]
        self.init_weights = nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            # The last layer starts small: an empty memory says little.
            scale = (0.1 if layer == config.depth - 1 else 1.0) / math.sqrt(fan_in)
            weight = nn.Parameter(torch.randn(heads, fan_in, fan_out) * scale, requires_grad=config.learned_init)
            self.init_weights.append(weight)
        if config.output_norm:
            self.norm = nn.RMSNorm(width, eps=1e-6)
        if config.output_gate:
            self.output_gate = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim, bias=False)

    @property
    def state_size(self) -> int:
        """Numbers in one batch row's state, whatever the length read."""
        state = self.initial_state(1)
        return sum(tensor.numel() for tensor in state.tensors().values())

    def initial_state(self, batch_size: int) -> NeuralMemoryState:
        """The state before the first token, for `batch_size` rows."""
        parameter = self.qkv.weight
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        weights = tuple(w.to(dtype).expand(batch_size, *w.shape) for w in self.init_weights)
        momentum = tuple(torch.zeros_like(w) for w in weights) if self.config.momentum else ()
        zeros = torch.zeros(batch_size, dtype=torch.long, device=parameter.device)
        tail = parameter.new_zeros(batch_size, max(0, self.config.conv_size - 1), 3 * self.config.dim, dtype=dtype)
        return NeuralMemoryState(weights, momentum, weights, zeros, tail, zeros)

    def forward(
        self, x: Tensor, state: NeuralMemoryState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, NeuralMemoryState]:
        """Write every token of x and read after each write (`y_t` knows of tokens up to and including t).

        Args:
            x: `[B, T, dim]`.
            state: where to go on; None: the initial state.
            mask: `[B, T]`, bool or 0/1; tokens at False change nothing and have y = 0. On either side, or within.

        Returns:
            `(y, state)`, y `[B, T, dim]` of x's dtype.
        """
        y, _, state = self._run(x, state, mask, read=True)
        assert y is not None
        return y, state

    def memorize(
        self, x: Tensor, state: NeuralMemoryState | None = None, mask: Tensor | None = None
    ) -> tuple[NeuralMemoryState, Tensor]:
        """Write every token of x, read nothing. Arguments as in `forward`.

        Returns:
            `(state, surprise)`, surprise `[B, T, heads]`, float32: |M(k_t) - v_t|^2 just before token t was written.
        """
        _, surprise, state = self._run(x, state, mask, read=False)
        return state, surprise

    def recall(self, q: Tensor, state: NeuralMemoryState) -> Tensor:
        """What the memory answers to q as it stands; changes nothing.

        The convolution over queries goes on from the stream's last tokens, as if q came next.

        Args:
            q: `[B, T, dim]`.

        Returns:
            `[B, T, dim]` of q's dtype.
        """
        self._check(q, state)
        dtype = state.tail.dtype
        parts = self._heads(self._convolve(torch.cat([state.tail, self.qkv(q).to(dtype)], 1)))
        with torch.autocast(q.device.type, enabled=False):
            y = read_memory(parts[0], state.weights, self.config.activation)
        return self._output(y, q)

    def _run(
        self, x: Tensor, state: NeuralMemoryState | None, mask: Tensor | None, read: bool
    ) -> tuple[Tensor | None, Tensor, NeuralMemoryState]:
        state = self.initial_state(x.shape[0]) if state is None else state
        self._check(x, state)
        config, dtype = self.config, state.tail.dtype
        slot = None
        if mask is not None:
            mask = mask.to(device=x.device, dtype=torch.bool)
            if mask.shape != x.shape[:2]:
                raise ValueError(f"mask must be [batch, time] = {list(x.shape[:2])}; got {list(mask.shape)}")
            # Move the valid tokens together, so that the convolution sees no padding between them.
            order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
            slot = torch.argsort(order, dim=1)
            x = torch.where(mask[..., None], x, 0.0).gather(1, order[..., None].expand_as(x))
            mask = mask.gather(1, order)

        projected = torch.cat([state.tail, self.qkv(x).to(dtype)], 1)
        step, log_keep, log_momentum = self._gates(x, dtype)
        q, k, v = self._heads(self._convolve(projected))
        with torch.autocast(x.device.type, enabled=False):
            y, surprise, fast = IMPLEMENTATIONS[config.implementation](
                q if read else None,
                k,
                v,
                step,
                log_keep,
                log_momentum,
                FastWeights(state.weights, state.momentum, state.anchor, state.position),
                chunk_size=config.chunk_size,
                rule=config.rule,
                activation=config.activation,
                lower_step=config.lower_step,
                valid=mask,
            )
        taps = state.tail.shape[1]
        if mask is None:
            tail, count = projected[:, projected.shape[1] - taps :], torch.full_like(state.tokens, x.shape[1])
        else:
            count = mask.sum(1)
            last = count[:, None] + torch.arange(taps, device=x.device)
            tail = projected.gather(1, last[..., None].expand(-1, -1, projected.shape[2]))
        new = NeuralMemoryState(fast.weights, fast.momentum, fast.anchor, fast.position, tail, state.tokens + count)
        surprise = surprise.transpose(1, 2)
        out = None if y is None else self._output(y, x)
        if slot is not None and mask is not None:
            surprise = surprise.gather(1, slot[..., None].expand_as(surprise))
            if out is not None:
                out = torch.where(mask[..., None], out, 0.0)
                out = out.gather(1, slot[..., None].expand_as(out))
        return out, surprise, new

    def _check(self, x: Tensor, state: NeuralMemoryState) -> None:
        if x.dim() != 3 or x.shape[2] != self.config.dim:
            raise ValueError(f"expected x of shape [batch, time, {self.config.dim}]; got {list(x.shape)}")
        if state.batch_size != x.shape[0]:
            raise ValueError(f"the state has {state.batch_size} rows and x has {x.shape[0]}")

    def _gates(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """step, log keep, log momentum; each `[B, H, T]`."""
        config = self.config
        raw = self.gates(x).to(dtype).unflatten(-1, (-1, config.heads)).permute(2, 0, 3, 1)
        hard = config.gates == "hard"
        step = torch.sigmoid(raw[0])
        step = (1.2 * step - 0.1).clamp(0, 1) if hard else step
        step = step * self.max_step
        if not config.decay:
            log_keep = torch.zeros_like(step)
        elif hard:
            log_keep = torch.log1p(-(1.1 * torch.sigmoid(raw[1]) - 0.05).clamp(0, 0.999))
        else:
            log_keep = F.logsigmoid(-raw[1])
        log_momentum = None
        if config.momentum:
            # What is written moves the weights again at every later token, 1 / (1 - eta) times in all.
            log_momentum = F.logsigmoid(raw[-1]).clamp(min=LOG_FLOOR)
            step = step * torch.sigmoid(-raw[-1])
        return step, log_keep, log_momentum

    def _convolve(self, projected: Tensor) -> Tensor:
        """`[B, taps - 1 + T, 3 dim]` -> `[B, T, 3 dim]`, in float32 or float64 as the state is."""
        if not self.config.conv_size:
            return projected
        if projected.shape[1] < self.config.conv_size:  # no token at all: nothing but the tail
            return projected[:, :0]
        weight, bias = self.conv.weight.to(projected.dtype), self.conv.bias
        bias = None if bias is None else bias.to(projected.dtype)
        with torch.autocast(projected.device.type, enabled=False):
            return F.conv1d(projected.mT, weight, bias, groups=weight.shape[0]).mT

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, 3 dim]` -> q, k, v, each `[B, H, T, dim / H]`."""
        if self.config.qkv_activation:
            qkv = F.silu(qkv)
        q, k, v = qkv.unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.config.qk_norm:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return q, k, v

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        """What the heads read, `[B, H, T, d]`, to `[B, T, dim]`."""
        y = y.to(x.dtype)
        if self.config.output_norm:
            y = self.norm(y)
        y = y.transpose(1, 2).flatten(2)
        if self.config.output_gate:
            y = y * torch.sigmoid(self.output_gate(x))
        return self.out(y)
