"""The memory beside one layer's attention: query, write and read, gate.

h ---------------> k, v, gates of the memory ---+
|                                               v
+--> [QueryProjector] <-- memory's answer --> [NeuralMemory] --> answer --+
|         one layer below                                                 v
+--> g = gate(h)                     h_out = residual + (1 - g) attn + g answer
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_titan.graft.config import MAGConfig
from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.memory.slots.layer import MultiHeadMemoryBank

State = Any  # NeuralMemoryState or MemoryBankState, as the memory is

Frozen = Callable[[Tensor], Tensor]  # h [B, T, hidden] -> the attention's own q, k, v, [B, T, 3 dim]


class _Shut(torch.autograd.Function):
    """max(0, x). Where x <= 0 the gradient still comes through if it would raise x: a shut gate can be opened."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.where((ctx.saved_tensors[0] > 0) | (gradient < 0), gradient, 0.0)


class QueryProjector(nn.Module):
    """What a layer asks its memory: its own input, refined by what the memory one layer below answered.

    q = W h + R norm(previous), norm without weights: answers are as long as the residual, and R must not have to know
    that. R starts at 0, so that refinement is learned.

    Args:
        hidden: width of h and of the previous answer.
        dim: width of q.
        own: False: no W; the query is given, and refined.
        refine: False: no R.
    """

    def __init__(self, hidden: int, dim: int, own: bool = True, refine: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, dim) if own else None
        self.refine = nn.Linear(hidden, dim, bias=False) if refine else None
        if self.refine is not None:
            nn.init.zeros_(self.refine.weight)

    def forward(self, h: Tensor, previous: Tensor | None, given: Tensor | None = None) -> Tensor:
        """h, previous: `[B, T, hidden]`; given: `[B, T, dim]`, without W; returns q `[B, T, dim]`."""
        q = given if self.query is None else self.query(h)
        assert q is not None
        if self.refine is None or previous is None:
            return q
        return q + self.refine(F.rms_norm(previous, previous.shape[-1:], eps=1e-6))


class MemoryBranch(nn.Module):
    """A memory with its query, its gate, and its way in and out of the model's width; float32.

    Args:
        config: of the graft.
        hidden: the model's width.
        heads: of the memory.
        dim: of the memory; a multiple of heads.
        first: whether no grafted layer is below, and so no answer to refine the query by.
    """

    def __init__(self, config: MAGConfig, hidden: int, heads: int, dim: int, first: bool) -> None:
        super().__init__()
        frozen = config.source == "frozen"
        self.query = QueryProjector(hidden, dim, own=not frozen, refine=config.query_refinement and not first)
        options = {"qkv_activation": False, **config.memory, "conv_size": config.conv_size, "heads": heads}
        options |= {"chunk_size": config.chunk_size, "projections": False, "input_dim": hidden, "output_gate": False}
        self.memory: NeuralMemory | MultiHeadMemoryBank
        if config.memory_kind == "slots":
            self.memory = MultiHeadMemoryBank(dim, **{"context": None, **options})
        else:
            self.memory = NeuralMemory(dim, **options, depth=config.memory_layers, expansion=config.expansion)
        self.key = None if frozen else nn.Linear(hidden, dim)
        self.value = None if frozen else nn.Linear(hidden, dim)
        self.out = None if frozen else nn.Linear(dim, hidden, bias=False)
        self.context = config.context
        self._start_as_induction(config.context)
        self.gate = nn.Linear(hidden, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.gate_bias, self.hard = config.gate_bias, config.gate == "hard"
        if config.n_persistent_tokens:
            self.persistent = nn.Parameter(torch.randn(config.n_persistent_tokens, hidden) / math.sqrt(hidden))
        self.keys_of_tokens = config.source == "tokens"
        self.values_of_tokens = (config.values or config.source) == "tokens"

    @torch.no_grad()
    def _start_as_induction(self, context: int) -> None:
        """Where training starts, a value is stored under the `context` tokens before it, and asked for as stored.

        So it answers with what came after the last place like this one, as an induction head does. Each of those
        tokens is bound to its place by a random sign for every channel: sums of bound vectors are the key.
        """
        dim, convolution = self.memory.config.dim, self.memory.config.conv_size
        if self.key is not None and self.query.query is not None:
            nn.init.zeros_(self.query.query.bias)
            self.key.load_state_dict(self.query.query.state_dict())
        if convolution:
            taps = torch.zeros_like(self.memory.conv.weight)[:, 0]
            taps[2 * dim :, -1] = 1.0
            signs = torch.randint(0, 2, (dim, max(1, context))).to(taps) * 2 - 1
            signs[:, 0] = 1.0
            for back in range(max(1, context)):
                taps[:dim, convolution - 1 - back] = signs[:, back]
                taps[dim : 2 * dim, convolution - 1 - back - min(1, context)] = signs[:, back]
            self.memory.conv.weight.copy_(taps[:, None])
            assert self.memory.conv.bias is not None
            nn.init.zeros_(self.memory.conv.bias)

    def start(self, batch_size: int, frozen: Frozen | None = None) -> State:
        """The state before the first token: the learned one, after the persistent tokens."""
        state = self.memory.initial_state(batch_size)
        if hasattr(self, "persistent"):
            h = self.persistent.expand(batch_size, -1, -1)
            _, state = self.memory(h, state, qkv=self._qkv(h, h, None, frozen))
        return state

    def forward(
        self,
        h: Tensor,
        previous: Tensor | None,
        state: State,
        mask: Tensor | None = None,
        tokens: Tensor | None = None,
        frozen: Frozen | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """Write h, and read.

        Args:
            h: `[B, T, hidden]`, what the attention is given.
            previous: `[B, T, hidden]`, the answer of the memory below; None: there is none.
            state: of the memory.
            mask: `[B, T]`, bool; tokens at False change nothing.
            tokens: `[B, T, hidden]`, the tokens' embeddings, where the configuration makes something of them.
            frozen: of h, the attention's q, k, v; for source "frozen".
            project: the attention's output projection; for source "frozen".

        Returns:
            `(gate, answer, state)`: gate `[B, T, 1]`, from 0 ("sigmoid": slightly less) to 1; answer `[B, T, hidden]`;
            float32.
        """
        h = h.to(self.gate.weight.dtype)
        previous = None if previous is None else previous.to(h.dtype)
        tokens = h if tokens is None else tokens.to(h.dtype)
        answer, state = self.memory(h, state, mask, qkv=self._qkv(h, tokens, previous, frozen))
        if self.out is not None:
            answer = self.out(answer)
        else:
            assert project is not None
            answer = project(answer).to(h.dtype)
        shut = 1 / (1 + math.exp(-self.gate_bias))
        gate = (torch.sigmoid(self.gate(h) + self.gate_bias) - shut) / (1 - shut)
        return _Shut.apply(gate) if self.hard else gate, answer, state

    def _qkv(self, h: Tensor, tokens: Tensor, previous: Tensor | None, frozen: Frozen | None) -> Tensor:
        if self.key is not None and self.value is not None:
            like = tokens if self.keys_of_tokens else h
            told = tokens if self.values_of_tokens else h
            return torch.cat([self.query(like, previous), self.key(like), self.value(told)], -1)
        assert frozen is not None
        q, k, v = frozen(h).to(h.dtype).chunk(3, -1)
        return torch.cat([self.query(h, previous, q), k, v], -1)
