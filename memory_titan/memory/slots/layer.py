"""`MultiHeadMemoryBank`: slots that are read and written by content, each head with its own.

x --+-- W_K --- conv --- l2 norm --> k ----------------+
    +-- W_V --- conv --- bottleneck --> v -------------+--> known: written over; new: the stalest slot is taken
    +-- W_gates --> write, erase, decay ---------------+          |
    +-- W_Q --- conv --- l2 norm --> q ---------------> top-k read --> norm * gate --> W_O --> y
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from memory_titan.memory.convolution import causal_convolution, start_as_induction, unit
from memory_titan.memory.finite import finite_rows, valid_tokens
from memory_titan.memory.packing import Packing
from memory_titan.memory.slots.addressing import address
from memory_titan.memory.slots.chunk import chunk_slots
from memory_titan.memory.slots.config import MemoryBankConfig
from memory_titan.memory.slots.gating import SlotGating
from memory_titan.memory.slots.rule import SlotGates, SlotReport, SlotRule, SlotState
from memory_titan.memory.slots.trace import SlotTrace
from memory_titan.memory.surprise import Surprise
from memory_titan.memory.trace import Traceable


@dataclass(frozen=True)
class MemoryBankState(SlotState):
    """All that a `MultiHeadMemoryBank` carries on: `SlotState` (see there) and the convolution's last inputs.

    Kept in float32 whatever the dtype of x (float64 for float64).

    Attributes:
        tail: `[B, conv_size - 1, 3 * dim]`, the last projections to q, k, v before the convolution.
    """

    tail: Tensor


class SemanticBottleneck(nn.Module):
    """An MLP through a narrow middle, `W_2 gelu(W_1 v)`: what is written has to fit through it.

    Args:
        dim: of v.
        width: of the middle.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, v: Tensor) -> Tensor:
        """`[..., dim]` to the same."""
        up: Tensor = self.up(F.gelu(self.down(v)))
        return up


class MultiHeadMemoryBank(Traceable, PyTorchModelHubMixin):
    """Slots with keys and contents, addressed by cosine, the k nearest at a time.

        bank = MultiHeadMemoryBank(dim=256, heads=4, slots=128, top_k=4)
        y, state = bank(x)                            # write and read, causally; x, y: [batch, time, dim]
        y, state = bank(x_next, state)                # goes on where it stopped
        state.content; state.age; state.usage         # what the slots hold, and their use: [batch, heads, slots]
        state, surprise = bank.memorize(x, state)     # write only
        y = bank.recall(q, state)                     # read only

    A token whose key a slot has writes into that slot; one whose key is new takes the slot that was longest of no use.
    A sequence may be cut anywhere, down to single tokens: the outputs and the state are those of one call. Tokens that
    a mask excludes change nothing. All of it is differentiable but the choices of slots.

    Args:
        dim: width of x and y.
        **options: the other fields of `MemoryBankConfig`.
    """

    # Whether every call makes its report, watched or not. A call that is run again in the backward pass, when nobody
    # watches any more, must do what it did before.
    reports = False

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__()
        self.config = config = MemoryBankConfig(dim=dim, **options)
        heads, width = config.heads, dim // config.heads
        if config.projections:
            self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        if config.conv_size:
            self.conv = nn.Conv1d(3 * dim, 3 * dim, config.conv_size, groups=3 * dim)
        if config.bottleneck is not None:
            self.bottleneck = SemanticBottleneck(dim, config.bottleneck)
        if config.gating:
            self.gating = SlotGating(config)
        self.sharpness = nn.Parameter(torch.full((2, heads), math.log(math.expm1(config.sharpness))))
        if config.allocation == "none":
            self.slot_keys = nn.Parameter(torch.randn(heads, config.slots, width))
        else:
            self.familiarity = nn.Parameter(torch.tensor([[10.0], [config.familiarity]]).repeat(1, heads))
        if config.decay != "none":
            self.slot_decay = nn.Parameter(torch.zeros(heads, config.slots))
        if config.output_norm:
            self.norm = nn.RMSNorm(width, eps=1e-6)
        if config.output_gate:
            self.output_gate = nn.Linear(dim, dim)
        if config.projections:
            self.out = nn.Linear(dim, dim, bias=False)
        if config.context is not None:
            start_as_induction(self.conv, self.qkv if config.projections else None, config.context)

    @property
    def state_size(self) -> int:
        """Numbers in one batch row's state, whatever the length read."""
        return sum(math.prod(shape) for shape in self._shapes().values())

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one row's state."""
        config = self.config
        H, N, C, d = config.heads, config.slots, config.chunk_size, config.dim // config.heads
        vectors = dict.fromkeys(("keys", "content", "start_keys"), (H, N, d))
        numbers = dict.fromkeys(("strength", "usage", "start_usage", "last", "born", "order"), (H, N))
        rest = {"taken": (H,), "open_keys": (H, C, d), "open_gates": (H, C), "tokens": ()}
        return {**vectors, **numbers, **rest, "tail": (max(0, config.conv_size - 1), 3 * config.dim)}

    def initial_state(self, batch_size: int) -> MemoryBankState:
        """The state before the first token, for `batch_size` rows.

        Raises:
            ValueError: it would take more than `max_state_bytes`.
        """
        parameter, config = self.sharpness, self.config
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        size = self.state_size * batch_size * (8 if dtype == torch.float64 else 4)
        if size > config.max_state_bytes:
            raise ValueError(
                f"the state of {batch_size} rows with {config.heads} heads of {config.slots} slots takes about "
                f"{size / 2**30:.1f} GiB, more than max_state_bytes allows ({config.max_state_bytes / 2**30:.1f} GiB): "
                "take fewer rows or slots, or raise it"
            )
        integers = {"last": -1, "born": -1, "order": 0, "tokens": 0}
        state = {
            name: torch.full((batch_size, *shape), integers[name], device=parameter.device)
            if name in integers
            else torch.zeros(batch_size, *shape, dtype=dtype, device=parameter.device)
            for name, shape in self._shapes().items()
        }
        state["order"] = state["order"] + torch.arange(config.slots, device=parameter.device)
        if config.allocation == "none":
            keys = unit(self.slot_keys.to(dtype)).expand(batch_size, -1, -1, -1)
            state |= {"keys": keys, "start_keys": keys, "strength": torch.ones_like(state["strength"])}
        return MemoryBankState(**state)

    def forward(
        self,
        x: Tensor,
        state: MemoryBankState | None = None,
        mask: Tensor | None = None,
        *,
        qkv: Tensor | None = None,
        gates: SlotGates | None = None,
    ) -> tuple[Tensor, MemoryBankState]:
        """Write every token of x and read after each write (`y_t` knows of tokens up to and including t).

        Args:
            x: `[B, T, dim]`, or `[B, T, input_dim]` with `projections=False`.
            state: where to go on; None: the initial state.
            mask: `[B, T]`, bool or 0/1; tokens at False change nothing and have y = 0. On either side, or within.
            qkv: `[B, T, 3 * dim]`, queries, keys and values before convolution and norm; with `projections=False`, and
                only then.
            gates: `[B, T, H]` each; with `gating=False`, and only then.

        Returns:
            `(y, state)`, y `[B, T, dim]` of x's dtype; with `projections=False` what the heads read, side by side.

        Raises:
            ValueError: wrong shapes; with `nonfinite="raise"`, NaN or infinity in x.
            FloatingPointError: with `nonfinite="raise"`, values so large that the state would not be finite.
        """
        y, _, state = self._run(x, state, mask, qkv, gates, report=self.reports or self.traces is not None)
        return y, state

    def memorize(
        self,
        x: Tensor,
        state: MemoryBankState | None = None,
        mask: Tensor | None = None,
        *,
        qkv: Tensor | None = None,
        gates: SlotGates | None = None,
    ) -> tuple[MemoryBankState, Surprise]:
        """Write every token of x. A read counts as use of a slot, so it is made, and thrown away.

        Returns:
            `(state, surprise)`, surprise.loss, .gradient, .write `[B, T, heads]`; see `Surprise`.
        """
        _, told, state = self._run(x, state, mask, qkv, gates)
        assert told is not None
        return state, Surprise(told.loss, told.gradient, told.write)

    def recall(self, q: Tensor, state: MemoryBankState, *, project: bool = True) -> Tensor:
        """What the bank answers to q as it stands; changes nothing.

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
            cosines = query @ state.keys.mT
            alive = (state.strength > 0)[:, :, None].expand_as(cosines)
            rho, slots = address(cosines, alive, self._rule(dtype).sharpness[1][:, None], self.config.top_k)
            y = torch.zeros_like(cosines).scatter_add(-1, slots, rho) @ state.content
        return self._output(y, q)

    def present_weights(self, state: MemoryBankState) -> tuple[Tensor, ...]:
        """What is held as of the last token: the contents, `[B, H, N, d]`."""
        return (state.content,)

    def _run(
        self,
        x: Tensor,
        state: MemoryBankState | None,
        mask: Tensor | None,
        qkv: Tensor | None,
        gates: SlotGates | None,
        report: bool = True,
    ) -> tuple[Tensor, SlotReport | None, MemoryBankState]:
        """y, the report with tokens before heads if it is wanted, and the new state."""
        config = self.config
        state = self.initial_state(x.shape[0]) if state is None else state
        self._check(x, state, config.input_width)
        if (gates is None) != config.gating:
            raise ValueError("gates are for a bank with gating=False, which needs them")
        if (qkv is None) != config.projections:
            raise ValueError("qkv is for a bank with projections=False, which needs it")
        if qkv is not None and qkv.shape != (wanted := torch.Size([*x.shape[:2], 3 * config.dim])):
            raise ValueError(f"qkv must be {list(wanted)}; got {list(qkv.shape)}")
        policy, level, given = config.nonfinite, 5, (x, qkv, gates)
        mask = valid_tokens(x if qkv is None else torch.cat([x, qkv], -1), mask, policy, level)
        packing, there = None, mask
        if mask is not None:
            # Move the valid tokens together, so that the convolution sees no padding between them.
            packing = Packing(mask)
            x, qkv, mask = packing.pack(x), None if qkv is None else packing.pack(qkv), packing.valid
            gates = None if gates is None else gates.map(packing.pack)
        y, told, new = self._read_and_write(x, state, mask, qkv, gates, report)
        held = [[s.keys, s.content, s.tail] for s in (new, state)]
        good = finite_rows(held[0], y, held[1], policy, level)
        if good is not None:  # read again without these rows: nothing of them may reach the gradients either
            rows = good[:, None].expand(x.shape[:2])
            return self._run(given[0], state, rows if there is None else rows & there, given[1], given[2], report)
        told = None if told is None else SlotReport(*(part.transpose(1, 2) for part in told))
        if packing is not None:
            y, told = packing.unpack(y), None if told is None else SlotReport(*map(packing.unpack, told))
        if self.traces is not None and told is not None:
            self.traces.append(
                SlotTrace(
                    step=told.gate,
                    keep=told.keep,
                    momentum=torch.zeros_like(told.gate),
                    surprise=Surprise(told.loss, told.gradient, told.write),
                    taken=told.taken,
                    write_slots=told.write_slots,
                    write_weights=told.write_weights,
                    read_slots=told.read_slots,
                    read_weights=told.read_weights,
                    slots=config.slots,
                )
            )
        return y, told, new

    def _read_and_write(
        self,
        x: Tensor,
        state: MemoryBankState,
        mask: Tensor | None,
        qkv: Tensor | None,
        gates: SlotGates | None,
        report: bool,
    ) -> tuple[Tensor, SlotReport | None, MemoryBankState]:
        """From x, valid tokens first, to y, the report and the new state."""
        dtype = state.tail.dtype
        projected = torch.cat([state.tail, (self.qkv(x) if qkv is None else qkv).to(dtype)], 1)
        q, k, v = self._heads(self._convolve(projected))
        gates = self.gating(x, dtype) if gates is None else gates
        opened = gates.map(lambda gate: gate.to(dtype).transpose(1, 2))
        with torch.autocast(x.device.type, enabled=False):
            slots = SlotState(**{f.name: getattr(state, f.name) for f in dataclasses.fields(SlotState)})
            y, told, slots = chunk_slots(q, k, v, opened, slots, self._rule(dtype), valid=mask, report=report)
        taps = state.tail.shape[1]
        if mask is None:
            tail = projected[:, projected.shape[1] - taps :]
        else:
            last = mask.sum(1)[:, None] + torch.arange(taps, device=x.device)
            tail = projected.gather(1, last[..., None].expand(-1, -1, projected.shape[2]))
        fields = {f.name: getattr(slots, f.name) for f in dataclasses.fields(SlotState)}
        return self._output(y, x), told, MemoryBankState(**fields, tail=tail)

    def _rule(self, dtype: torch.dtype) -> SlotRule:
        config = self.config
        none = self.sharpness.new_zeros((), dtype=dtype)
        return SlotRule(
            config,
            F.softplus(self.sharpness.to(dtype)),
            none if config.allocation == "none" else self.familiarity.to(dtype),
            none if config.decay == "none" else self.slot_decay.to(dtype),
            noise=self.training and config.allocation == "gumbel",
        )

    def _convolve(self, projected: Tensor) -> Tensor:
        return causal_convolution(projected, self.conv) if self.config.conv_size else projected

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, 3 dim]` -> q, k of length 1 and v, each `[B, H, T, dim / H]`."""
        if self.config.qkv_activation:
            qkv = F.silu(qkv)
        q, k, v = qkv.chunk(3, -1)
        if self.config.bottleneck is not None:
            v = self.bottleneck(v.to(self.bottleneck.up.weight.dtype)).to(q.dtype)
        q, k, v = (part.unflatten(-1, (self.config.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return unit(q), unit(k), v

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        """What the heads read, `[B, H, T, d]`, to `[B, T, dim]`."""
        y = y.to(x.dtype)
        if self.config.output_norm:
            y = self.norm(y)
        y = y.transpose(1, 2).flatten(2)
        if self.config.output_gate:
            y = y * torch.sigmoid(self.output_gate(x))
        return self.out(y) if self.config.projections else y

    def _check(self, x: Tensor, state: MemoryBankState, width: int) -> None:
        if x.dim() != 3 or x.shape[2] != width:
            raise ValueError(f"expected x of shape [batch, time, {width}]; got {list(x.shape)}")
        if state.batch_size != x.shape[0]:
            raise ValueError(f"the state has {state.batch_size} rows and x has {x.shape[0]}")
        given = {name: tuple(tensor.shape[1:]) for name, tensor in state.tensors().items()}
        for name, shape in self._shapes().items():
            if given.get(name) != shape:
                raise ValueError(
                    f"the state is that of another bank: {name} is {given.get(name, 'not there')} a row, and {shape} "
                    "by this bank's configuration"
                )
