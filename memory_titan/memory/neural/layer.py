"""`NeuralMemory`: a memory of the family of Titans and MIRAS as a layer (arXiv 2501.00663, section 3.1; 2504.13173).

x --+-- W_K --- conv --- SiLU --- l2 norm --> k --+
    +-- W_V --- conv --- SiLU ---------------> v --+--> write by surprise, token by token
    +-- W_gates --> step, decay, momentum --------+          |
    +-- W_Q --- conv --- SiLU --- l2 norm --> q ------> read the fast weights --> norm * gate --> W_O --> y
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from memory_titan.memory.convolution import causal_convolution, start_as_induction, unit
from memory_titan.memory.finite import finite_rows, valid_tokens
from memory_titan.memory.neural.carry import present_weights
from memory_titan.memory.neural.chunk import chunk_memory, read_memory
from memory_titan.memory.neural.config import NeuralMemoryConfig
from memory_titan.memory.neural.features import feature_size, polynomial_features
from memory_titan.memory.neural.fused.threads import one_thread
from memory_titan.memory.neural.mesa import mesa_memory, read_mesa
from memory_titan.memory.neural.presets import PRESETS
from memory_titan.memory.neural.projections import Gating
from memory_titan.memory.neural.rule import FastWeights, Gates, Rule
from memory_titan.memory.neural.structure import Structure
from memory_titan.memory.packing import Packing
from memory_titan.memory.surprise import Surprise
from memory_titan.memory.trace import Trace, Traceable

PIECE = 1 << 18  # numbers of x read at a time where no gradient is wanted: 1 MB, at no cost in time
SMALL = 1 << 22  # weights, all rows together, up to which one thread does a token: measured faster up to there


@dataclass(frozen=True)
class NeuralMemoryState(FastWeights):
    """All that a `NeuralMemory` carries on: `FastWeights` (see there) and the convolution's last inputs.

    Kept in float32 whatever the dtype of x (float64 for float64): a sum of many small writes needs the digits.

    Attributes:
        tail: `[B, conv_size - 1, 3 * dim]`, the last projections to q, k, v before the convolution.
        tokens: `[B]`, int64, tokens read so far.
    """

    tail: Tensor
    tokens: Tensor


class NeuralMemory(Traceable, PyTorchModelHubMixin):
    """A memory whose content is the weights of a small network, trained on every token that it reads.

        memory = NeuralMemory(dim=256, heads=4, depth=2)
        y, state = memory(x)                          # write and read, causally; x, y: [batch, time, dim]
        y, state = memory(x_next, state)              # goes on where it stopped
        state, surprise = memory.memorize(x, state)   # write only; surprise.loss: [batch, time, heads]
        y = memory.recall(q, state)                   # read only
        memory = NeuralMemory.preset("gated_deltanet", dim=256)
        memory.save_pretrained(folder); memory = NeuralMemory.from_pretrained(folder)

    A sequence may be cut anywhere, down to single tokens: the outputs and the state are those of one call. Tokens
    that a mask excludes change nothing. All of it is differentiable, through every write.

    Args:
        dim: width of x and y.
        **options: the other fields of `NeuralMemoryConfig`.
    """

    trained_chunk_size: Tensor
    _layout: tuple[tuple[Any, ...], dict[str, list[int]]] | None = None  # of the state, see `_check`

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__()
        self.config = config = NeuralMemoryConfig(dim=dim, **options)
        heads, width = config.heads, dim // config.heads
        if config.projections:
            self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        if config.conv_size:
            self.conv = nn.Conv1d(3 * dim, 3 * dim, config.conv_size, groups=3 * dim)
        key_width = feature_size(width, config.features)
        if config.features > 1:  # the Taylor coefficients of exp, as ATLAS starts
            taylor = torch.tensor([1 / math.factorial(power) for power in range(1, config.features + 1)]).sqrt()
            self.feature_coefficients = nn.Parameter(taylor.repeat(heads, 1))
        sizes = Structure.sizes(config.structure, key_width, config.expansion * width, width, config.depth)
        self.gating = Gating(config, sum(fan_in for fan_in, _ in sizes))

        self.init_weights = nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(sizes if config.algorithm != "solve" else []):
            # The last layer starts small: an empty memory says little. A softmax wants logits.
            scale = (0.1 if layer == len(sizes) - 1 and config.retention != "norm" else 1.0) / math.sqrt(fan_in)
            scale = {"zero": 0.0}.get(config.init, 1.0 if config.retention == "kl" else scale)
            weight = nn.Parameter(torch.randn(heads, fan_in, fan_out) * scale, requires_grad=config.init == "learned")
            self.init_weights.append(weight)
        if config.structure == "residual":
            self.inner_scale = nn.Parameter(torch.ones(heads, width))
            self.inner_shift = nn.Parameter(torch.zeros(heads, width))
        if config.output_norm:
            self.norm = nn.RMSNorm(width, eps=1e-6)
        if config.output_gate:
            self.output_gate = nn.Linear(dim, dim)
        if config.projections:
            self.out = nn.Linear(dim, dim, bias=False)
        if config.context is not None:
            start_as_induction(self.conv, self.qkv if config.projections else None, config.context)
        # What the weights were trained with goes with them; see `_load_from_state_dict`.
        self.register_buffer("trained_chunk_size", torch.tensor(config.chunk_size))

    @classmethod
    def preset(cls, name: str, dim: int, **options: Any) -> NeuralMemory:
        """A memory of the papers, by name; see `PRESETS`. `options` override its own."""
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(dim, **{**PRESETS[name].options, **options})

    @property
    def state_size(self) -> int:
        """Numbers in one batch row's state, whatever the length read."""
        state = self.initial_state(1)
        return sum(tensor.numel() for tensor in state.tensors().values())

    def initial_state(self, batch_size: int) -> NeuralMemoryState:
        """The state before the first token, for `batch_size` rows."""
        parameter, config = next(self.parameters()), self.config
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        if config.algorithm == "solve":
            width = config.dim // config.heads
            keys = feature_size(width, config.features)
            fast = FastWeights.start(
                (parameter.new_zeros(batch_size, config.heads, keys, width, dtype=dtype),), False, MESA
            )
            sums = parameter.new_zeros(batch_size, config.heads, keys, keys, dtype=dtype)
            fast = dataclasses.replace(fast, momentum=(sums,))
        else:
            fast = FastWeights.start(self._initial(batch_size, dtype), config.momentum, self._rule(dtype))
        tail = parameter.new_zeros(batch_size, max(0, config.conv_size - 1), 3 * config.dim, dtype=dtype)
        tokens = torch.zeros(batch_size, dtype=torch.long, device=parameter.device)
        return NeuralMemoryState(**_fields(fast), tail=tail, tokens=tokens)

    def forward(
        self,
        x: Tensor,
        state: NeuralMemoryState | None = None,
        mask: Tensor | None = None,
        *,
        qkv: Tensor | None = None,
    ) -> tuple[Tensor, NeuralMemoryState]:
        """Write every token of x and read after each write (`y_t` knows of tokens up to and including t).

        Args:
            x: `[B, T, dim]`, or `[B, T, input_dim]` with `projections=False`.
            state: where to go on; None: the initial state.
            mask: `[B, T]`, bool or 0/1; tokens at False change nothing and have y = 0. On either side, or within.
            qkv: `[B, T, 3 * dim]`, queries, keys and values before convolution, activation and norm; with
                `projections=False`, and only then. x makes the gates alone.

        Returns:
            `(y, state)`, y `[B, T, dim]` of x's dtype; with `projections=False` what the heads read, side by side.

        Raises:
            ValueError: wrong shapes; with `nonfinite="raise"`, NaN or infinity in x.
            FloatingPointError: with `nonfinite="raise"`, values so large that the state would not be finite.
        """
        with one_thread(self._is_small(x)):
            y, _, state = self._run(x, state, mask, qkv, read=True, report=self.traces is not None)
        assert y is not None
        return y, state

    def memorize(
        self,
        x: Tensor,
        state: NeuralMemoryState | None = None,
        mask: Tensor | None = None,
        *,
        qkv: Tensor | None = None,
    ) -> tuple[NeuralMemoryState, Surprise]:
        """Write every token of x, read nothing. Arguments and errors as in `forward`.

        Returns:
            `(state, surprise)`, surprise.loss, .gradient, .write `[B, T, heads]`, float32; see `Surprise`.
        """
        with one_thread(self._is_small(x)):
            _, surprise, state = self._run(x, state, mask, qkv, read=False, report=True)
        assert surprise is not None
        return state, surprise

    def recall(self, q: Tensor, state: NeuralMemoryState, *, project: bool = True) -> Tensor:
        """What the memory answers to q as it stands; changes nothing.

        The convolution over queries goes on from the stream's last tokens, as if q came next.

        Args:
            q: `[B, T, dim]`, to be projected as x is; with `projections=False` the queries themselves.
            state: what is read.
            project: False: q are queries already, each by itself: neither projected nor convolved.

        Returns:
            `[B, T, dim]` of q's dtype.
        """
        self._check(q, state, self.config.dim)
        dtype = state.tail.dtype
        projected = self.qkv(q) if project and self.config.projections else torch.cat([q, q, q], -1)  # k, v: of no use
        projected = projected.to(dtype)
        if project:
            projected = self._convolve(torch.cat([state.tail, projected], 1))
        query = self._heads(projected)[0]
        with torch.autocast(q.device.type, enabled=False):
            if self.config.algorithm == "solve":
                y = read_mesa(query, state, self.config.ridge)
            else:
                y = read_memory(query, state, self._rule(dtype))
        return self._output(y, q)

    def present_weights(self, state: NeuralMemoryState) -> tuple[Tensor, ...]:
        """What was accumulated as of the last token, `[B, H, in, out]` a matrix (of an open chunk it is not kept)."""
        return (
            present_weights(state, self._rule(state.tail.dtype), momentum_too=False)[0]
            if self.config.algorithm != "solve"
            else state.weights
        )

    def _run(
        self,
        x: Tensor,
        state: NeuralMemoryState | None,
        mask: Tensor | None,
        qkv: Tensor | None,
        read: bool,
        report: bool,
    ) -> tuple[Tensor | None, Surprise | None, NeuralMemoryState]:
        state = self.initial_state(x.shape[0]) if state is None else state
        self._check(x, state, self.config.input_width)
        if (qkv is None) != self.config.projections:
            raise ValueError("qkv is for a memory with projections=False, which needs it")
        if qkv is not None and qkv.shape != (wanted := torch.Size([*x.shape[:2], 3 * self.config.dim])):
            raise ValueError(f"qkv must be {list(wanted)}; got {list(qkv.shape)}")
        policy, level = self.config.nonfinite, 4 + 2 * read  # frames up to who called the module
        mask = valid_tokens(x if qkv is None else torch.cat([x, qkv], -1), mask, policy, level)
        given = x, mask, qkv
        packing = None
        if mask is not None:
            # Move the valid tokens together, so that the convolution sees no padding between them.
            packing = Packing(mask)
            x, qkv, mask = packing.pack(x), None if qkv is None else packing.pack(qkv), packing.valid

        out, told, gates, new = self._pieces(x, state, mask, qkv, read, report)
        held = [[*s.weights, *s.momentum, *s.deltas, s.tail] for s in (new, state)]
        good = finite_rows(held[0], out, held[1], policy, level)
        if good is not None:  # read again without these rows: nothing of them may reach the gradients either
            x, mask, qkv = given
            there = good[:, None].expand(x.shape[:2])
            return self._run(x, state, there if mask is None else mask & there, qkv, read, report)

        def in_place(tokens: Tensor) -> Tensor:
            """Zero where the mask excludes, and everything back where it stood."""
            return tokens if packing is None else packing.unpack(tokens)

        surprise = None if told is None else Surprise(*(in_place(part.transpose(1, 2)) for part in told))
        if self.traces is not None and surprise is not None:
            keep = gates.log_keep.exp()
            keep = keep if keep.dim() == 3 else keep.mean(-1)
            eta = torch.zeros_like(gates.step) if gates.log_momentum is None else gates.log_momentum.exp()
            step, keep, eta = (in_place(gate.transpose(1, 2)) for gate in (gates.step, keep, eta))
            self.traces.append(Trace(step, keep, eta, surprise))
        return None if out is None else in_place(out), surprise, new

    def _pieces(
        self,
        x: Tensor,
        state: NeuralMemoryState,
        mask: Tensor | None,
        qkv: Tensor | None,
        read: bool,
        report: bool,
    ) -> tuple[Tensor | None, Surprise | None, Gates, NeuralMemoryState]:
        """`_piece`; without gradients a piece of the sequence at a time, so that only y grows with its length."""
        chunk, length = self.config.chunk_size, x.shape[1]
        size = max(1, PIECE // max(1, x.shape[0] * x.shape[2] * chunk)) * chunk
        if torch.is_grad_enabled() or self.traces is not None or self.config.reset_every or length < 2 * size:
            return self._piece(x, state, mask, qkv, read, report)
        begin, end = 0, size - int(state.position[0]) % chunk
        out, reports = None, []
        while begin < length:
            end = length if length - end < size else end
            part = slice(begin, end)
            valid, given = (None if t is None else t[:, part] for t in (mask, qkv))
            y, told, gates, state = self._piece(x[:, part], state, valid, given, read, report)
            if y is not None:
                out = y.new_empty(*x.shape[:2], self.config.dim) if out is None else out
                out[:, part] = y
            reports += [] if told is None else [told]
            begin, end = end, end + size
        return (
            out,
            Surprise(*(torch.cat(part, 2) for part in zip(*reports, strict=True))) if reports else None,
            gates,
            state,
        )

    def _piece(
        self,
        x: Tensor,
        state: NeuralMemoryState,
        mask: Tensor | None,
        qkv: Tensor | None,
        read: bool,
        report: bool,
    ) -> tuple[Tensor | None, Surprise | None, Gates, NeuralMemoryState]:
        """From x, valid tokens first, to y, surprise `[B, H, T]`, gates and the new state."""
        config, dtype = self.config, state.tail.dtype
        projected = torch.cat([state.tail, (self.qkv(x) if qkv is None else qkv).to(dtype)], 1)
        q, k, v = self._heads(self._convolve(projected))
        gates = self.gating(x, dtype)
        asked = q if read else None
        with torch.autocast(x.device.type, enabled=False):
            fast = FastWeights(**_fields(state))
            if config.algorithm == "solve":
                y, told, fast = mesa_memory(asked, k, v, gates, fast, config.ridge, valid=mask, surprise=report)
            else:
                back = self._initial(x.shape[0], dtype) if config.reset_every else ()
                rule = self._rule(dtype)
                y, told, fast = chunk_memory(asked, k, v, gates, fast, rule, initial=back, valid=mask, surprise=report)
        taps = state.tail.shape[1]
        if mask is None:
            tail, count = projected[:, projected.shape[1] - taps :], torch.full_like(state.tokens, x.shape[1])
        else:
            count = mask.sum(1)
            last = count[:, None] + torch.arange(taps, device=x.device)
            tail = projected.gather(1, last[..., None].expand(-1, -1, projected.shape[2]))
        new = dataclasses.replace(state, **{**_fields(fast), "tail": tail, "tokens": state.tokens + count})
        out = None if y is None else self._output(y, x)
        if out is not None and config.read == "chunk" and torch.is_grad_enabled():
            # Before the first chunk's end nothing written is read. Gates still get a gradient, of 0: DDP wants one.
            out = out + 0.0 * sum(gate.nan_to_num(0, 0, 0).sum() for gate in vars(gates).values() if gate is not None)
        return out, told, gates, new

    def _check(self, x: Tensor, state: NeuralMemoryState, width: int) -> None:
        if x.dim() != 3 or x.shape[2] != width:
            raise ValueError(f"expected x of shape [batch, time, {width}]; got {list(x.shape)}")
        if state.batch_size != x.shape[0]:
            raise ValueError(f"the state has {state.batch_size} rows and x has {x.shape[0]}")
        key = (self.config.chunk_size, self.config.rule, self.config.window)
        if self._layout is None or self._layout[0] != key:
            with torch.no_grad():
                self._layout = key, _shapes(self.initial_state(1))
        if self._layout[1] != (given := _shapes(state)):
            expected = self._layout[1]
            name = next(n for n in [*expected, *given] if expected.get(n) != given.get(n))
            raise ValueError(
                f"the state is that of another memory: {name} is {given.get(name, 'not there')} a row, and "
                f"{expected.get(name, 'not there')} by this memory's configuration"
            )

    def _is_small(self, x: Tensor) -> bool:
        """Whether x is so little that a second thread on a CPU would only be in the way."""
        if x.dim() != 3 or x.shape[1] > 1 or x.device.type != "cpu" or torch.is_grad_enabled():
            return False
        return x.shape[0] * max(sum(w.numel() for w in self.init_weights), 3 * self.config.dim**2) <= SMALL

    def _initial(self, batch_size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(w.to(dtype).expand(batch_size, *w.shape) for w in self.init_weights)

    def _rule(self, dtype: torch.dtype) -> Rule:
        if self.config.structure != "residual":
            return self.config.to_rule()
        scale, shift = self.inner_scale.to(dtype), self.inner_shift.to(dtype)
        return self.config.to_rule(Structure("residual", self.config.activation, scale, shift))

    def _convolve(self, projected: Tensor) -> Tensor:
        if not self.config.conv_size:
            return projected
        return causal_convolution(projected, self.conv)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, 3 dim]` -> q, k, v, each `[B, H, T, dim / H]`; q and k wider with polynomial features."""
        if self.config.qkv_activation:
            qkv = F.silu(qkv)
        q, k, v = qkv.unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.config.qk_norm:
            q, k = unit(q), unit(k)
        if self.config.features > 1:
            coefficients = self.feature_coefficients.to(q.dtype)
            q, k = polynomial_features(q, coefficients), polynomial_features(k, coefficients)
        return q, k, v

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        """What the heads read, `[B, H, T, d]`, to `[B, T, dim]`."""
        y = y.to(x.dtype)
        if self.config.output_norm:
            y = self.norm(y)
        y = y.transpose(1, 2).flatten(2)
        if self.config.output_gate:
            y = y * torch.sigmoid(self.output_gate(x))
        return self.out(y) if self.config.projections else y

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """The chunk length is part of the function: weights that were trained with another one say so."""
        trained = state_dict.get(prefix + "trained_chunk_size")
        if trained is None:
            state_dict[prefix + "trained_chunk_size"] = self.trained_chunk_size
        elif int(trained) != self.config.chunk_size:
            warnings.warn(
                f"these weights were trained with chunk_size={int(trained)}, and this memory has "
                f"chunk_size={self.config.chunk_size}: it computes another function"
                + (", though a near one with the exact rule" if self.config.rule == "exact" else ""),
                UserWarning,
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _shapes(state: NeuralMemoryState) -> dict[str, list[int]]:
    return {name: list(tensor.shape[1:]) for name, tensor in state.tensors().items()}


MESA = Rule(gradient="token")  # its state is that of a chunk of one: nothing but weights


def _fields(fast: FastWeights) -> dict[str, Any]:
    return {field.name: getattr(fast, field.name) for field in dataclasses.fields(FastWeights)}
