"""`SparseDeltaBank`: tens of thousands of slots a head, of which a token touches a few, chosen by product keys.

x --+-- W_K --- conv --- SiLU --- norm --> k --> the best slots, w --+
    +-- W_V --- conv --- SiLU -----------> v ----------------------- +--> write the difference, token by token
    +-- W_gates --> write, erase, decay -----------------------------+          |
    +-- W_Q --- conv --- SiLU --- norm --> q --> the best slots, rho ----> read the slots --> norm * gate --> W_O --> y
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from memory_titan.memory.convolution import causal_convolution, start_as_induction
from memory_titan.memory.finite import finite_rows, valid_tokens
from memory_titan.memory.packing import Packing
from memory_titan.memory.sparse.chunk import chunk_bank, read_bank
from memory_titan.memory.sparse.config import SparseDeltaBankConfig
from memory_titan.memory.sparse.gating import SlotGating
from memory_titan.memory.sparse.product_keys import ProductKeys, QueryNorm, choose
from memory_titan.memory.sparse.utilisation import SparseTrace, mean_choice
from memory_titan.memory.sparse.walk import zeros
from memory_titan.memory.state import MemoryState
from memory_titan.memory.surprise import Surprise
from memory_titan.memory.trace import Traceable

PIECE = 1 << 13  # tokens, of all rows together, done at a time where no gradient is wanted


@dataclass(frozen=True)
class SparseDeltaBankState(MemoryState):
    """All that a `SparseDeltaBank` carries on. Kept in float32 whatever the dtype of x (float64 for float64).

    Attributes:
        content: `[B, H, N, d]`, the slots.
        tail: `[B, conv_size - 1, 3 * dim]`, the last projections to q, k, v before the convolution.
        tokens: `[B]`, int64, tokens read so far.
    """

    content: Tensor
    tail: Tensor
    tokens: Tensor


@dataclass
class _Piece:
    """A stretch of one call, valid tokens first: what was made of it."""

    y: Tensor | None
    surprise: Surprise | None  # [B, H, t] each
    trace: dict[str, Any]  # of a SparseTrace, [B, H, t, ...]
    finite: Tensor | None  # whether all that it wrote and read is; a scalar
    overwritten: tuple[Tensor, Tensor] | None  # rows of the content and what stood there
    state: SparseDeltaBankState


class SparseDeltaBank(Traceable, PyTorchModelHubMixin):
    """Slots with product keys and the delta rule (Lample et al. 2019, arXiv 1907.05242, for the keys).

        bank = SparseDeltaBank(dim=256, heads=4, slots=16384)
        y, state = bank(x)                          # write and read, causally; x, y: [batch, time, dim]
        y, state = bank(x_next, state)              # goes on where it stopped
        state, surprise = bank.memorize(x, state)   # write only; surprise.loss: [batch, time, heads]
        y = bank.recall(q, state)                   # read only
        with torch.no_grad():                       # a stream: no copy of the content
            y, state = bank(x_next, state, inplace=True)

    A sequence may be cut anywhere, down to single tokens, and is done in chunks of any length: the outputs and the
    state are those of one call. Tokens that a mask excludes change nothing. Where tokens write and read does not depend
    on what is in the slots; time does not depend on their number, but for the 4 sqrt(slots) scores a token.
    All of it is differentiable, through every write, but not twice, and not under torch.func. In training,
    `query_norm="batch"` lets tokens know of each other through the batch's statistics; `eval()` does not.

    Args:
        dim: width of x and y.
        **options: the other fields of `SparseDeltaBankConfig`.
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__()
        self.config = config = SparseDeltaBankConfig(dim=dim, **options)
        if config.projections:
            self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        if config.conv_size:
            self.conv = nn.Conv1d(3 * dim, 3 * dim, config.conv_size, groups=3 * dim)
        self.write_keys = ProductKeys(config.heads, config.width, config.side, config.sharpness)
        if not config.share_keys:
            self.read_keys = ProductKeys(config.heads, config.width, config.side, config.sharpness)
        self.key_norm = QueryNorm(config.query_norm, config.heads, config.width)
        self.query_norm = QueryNorm(config.query_norm, config.heads, config.width)
        self.gating = SlotGating(config)
        if config.output_norm:
            self.norm = nn.RMSNorm(config.width, eps=1e-6)
        if config.output_gate:
            self.output_gate = nn.Linear(dim, dim)
        if config.projections:
            self.out = nn.Linear(dim, dim, bias=False)
        if config.context is not None:
            start_as_induction(self.conv, self.qkv if config.projections else None, config.context)

    @property
    def state_size(self) -> int:
        """Numbers in one batch row's state, whatever the length read."""
        config = self.config
        return config.slots * config.dim + max(0, config.conv_size - 1) * 3 * config.dim + 1

    def initial_state(self, batch_size: int) -> SparseDeltaBankState:
        """The state before the first token, for `batch_size` rows.

        A call with `state=None` begins with the same, and need not copy it.

        Raises:
            ValueError: it would be larger than `max_state_bytes`.
        """
        config, like = self.config, self._like()
        config.check_bytes(batch_size, like.element_size())
        content = zeros(batch_size * config.heads, config.slots, config.width, like)
        return self._begin(batch_size, content.view(batch_size, config.heads, config.slots, config.width))

    def forward(
        self,
        x: Tensor,
        state: SparseDeltaBankState | None = None,
        mask: Tensor | None = None,
        *,
        qkv: Tensor | None = None,
        inplace: bool = False,
    ) -> tuple[Tensor, SparseDeltaBankState]:
        """Write every token of x and read after each write (`y_t` knows of tokens up to and including t).

        Args:
            x: `[B, T, dim]`, or `[B, T, input_dim]` with `projections=False`.
            state: where to go on; None: the initial state.
            mask: `[B, T]`, bool or 0/1; tokens at False change nothing and have y = 0. On either side, or within.
            qkv: `[B, T, 3 * dim]`, queries, keys and values before convolution, activation and norm; with
                `projections=False`, and only then. x makes the gates alone.
            inplace: write into the given state's content, which is used up: the new state has it. Otherwise it is
                copied once a call. Without gradients only. Until the call ends, the rows that it overwrites are kept,
                to put them back if it fails: read long streams in pieces.

        Returns:
            `(y, state)`, y `[B, T, dim]` of x's dtype; with `projections=False` what the heads read, side by side.

        Raises:
            ValueError: wrong shapes; `inplace` with gradients; the content of a new state is larger than
                `max_state_bytes`; with `nonfinite="raise"`, NaN or infinity in x.
            FloatingPointError: with `nonfinite="raise"`, values so large that the state would not be finite.
        """
        y, _, state = self._run(x, state, mask, qkv, inplace, read=True, report=self.traces is not None)
        assert y is not None
        return y, state

    def memorize(
        self,
        x: Tensor,
        state: SparseDeltaBankState | None = None,
        mask: Tensor | None = None,
        *,
        qkv: Tensor | None = None,
        inplace: bool = False,
    ) -> tuple[SparseDeltaBankState, Surprise]:
        """Write every token of x, read nothing. Arguments and errors as in `forward`.

        Returns:
            `(state, surprise)`, surprise.loss, .gradient, .write `[B, T, heads]`, float32; see `Surprise`.
        """
        _, surprise, state = self._run(x, state, mask, qkv, inplace, read=False, report=True)
        assert surprise is not None
        return state, surprise

    def recall(self, q: Tensor, state: SparseDeltaBankState, *, project: bool = True) -> Tensor:
        """What the slots answer to q as they stand; changes nothing.

        The convolution over queries goes on from the stream's last tokens, as if q came next. Queries are normalised
        by running statistics, in training too.

        Args:
            q: `[B, T, dim]`, to be projected as x is; with `projections=False` the queries themselves.
            state: what is read.
            project: False: q are queries already, each by itself: neither projected nor convolved.

        Returns:
            `[B, T, dim]` of q's dtype.
        """
        self._check(q, state, self.config.dim)
        projected = self.qkv(q) if project and self.config.projections else torch.cat([q, q, q], -1)  # k, v: of no use
        projected = projected.to(state.tail.dtype)
        query = self._heads(torch.cat([state.tail, projected], 1) if project else projected, convolve=project)[0]
        with torch.autocast(q.device.type, enabled=False):
            logits = self._read_keys(self.query_norm(query, None, running=True))
            y = read_bank(choose(logits, self.config.reads), state.content)
        return self._output(y, q)

    def _run(
        self,
        x: Tensor,
        state: SparseDeltaBankState | None,
        mask: Tensor | None,
        qkv: Tensor | None,
        inplace: bool,
        read: bool,
        report: bool,
    ) -> tuple[Tensor | None, Surprise | None, SparseDeltaBankState]:
        if inplace and torch.is_grad_enabled():
            raise ValueError("inplace=True is for torch.no_grad(): gradients need the content as it was")
        self._check(x, state, self.config.input_width)
        if (qkv is None) != self.config.projections:
            raise ValueError("qkv is for a bank with projections=False, which needs it")
        if qkv is not None and qkv.shape != (wanted := torch.Size([*x.shape[:2], 3 * self.config.dim])):
            raise ValueError(f"qkv must be {list(wanted)}; got {list(qkv.shape)}")
        policy, level = self.config.nonfinite, 4 + 2 * read  # frames up to who called the module
        mask = valid_tokens(x if qkv is None else torch.cat([x, qkv], -1), mask, policy, level)
        given, packing = (x, mask, qkv), None
        if mask is not None:
            # Move the valid tokens together, so that the convolution sees no padding between them.
            packing = Packing(mask)
            x, qkv, mask = packing.pack(x), None if qkv is None else packing.pack(qkv), packing.valid

        pieces = list(self._pieces(x, state, mask, qkv, inplace, read, report))
        new = pieces[-1].state
        out = torch.cat([p.y for p in pieces if p.y is not None], 1) if read else None
        if policy != "ignore" and not all(bool(p.finite) for p in pieces):
            good = torch.stack(
                [new.content.detach().flatten(1).isfinite().all(1), new.tail.isfinite().flatten(1).all(1)]
            )
            fine = torch.where(good.all(0), 0.0, torch.nan)[:, None]
            for piece in reversed(pieces):
                if piece.overwritten is not None:
                    new.content.view(-1, new.content.shape[-1]).index_copy_(0, *piece.overwritten)
            old = torch.zeros_like(fine)
            if state is not None:
                old = torch.where(state.content.detach().flatten(1).isfinite().all(1, keepdim=True), 0.0, torch.nan)
            rows = finite_rows([fine], out, [old], policy, level)
            if rows is not None:  # read again without these rows: nothing of them may reach the gradients either
                x, mask, qkv = given
                there = rows[:, None].expand(x.shape[:2])
                return self._run(x, state, there if mask is None else mask & there, qkv, inplace, read, report)

        def in_place(tokens: Tensor) -> Tensor:
            """`[B, T, ...]`, zero where the mask excludes, and everything back where it stood."""
            return tokens if packing is None else packing.unpack(tokens)

        surprise = None
        if report:
            told = zip(*(p.surprise for p in pieces if p.surprise is not None), strict=True)
            surprise = Surprise(*(in_place(torch.cat(part, 2).transpose(1, 2)) for part in told))
        if self.traces is not None and surprise is not None:  # then there is one piece
            kept = {
                name: value if value is None or name.endswith("usage") else in_place(value.transpose(1, 2))
                for name, value in pieces[0].trace.items()
            }
            self.traces.append(SparseTrace(surprise=surprise, momentum=torch.zeros_like(kept["step"]), **kept))
        return None if out is None else in_place(out), surprise, new

    def _pieces(
        self,
        x: Tensor,
        state: SparseDeltaBankState | None,
        mask: Tensor | None,
        qkv: Tensor | None,
        inplace: bool,
        read: bool,
        report: bool,
    ) -> Iterator[_Piece]:
        """All of it at once; without gradients, a stretch at a time, so that only y grows with its length.

        Statistics of a batch are those of the whole call: with them, in training, there is one piece too.
        """
        length = x.shape[1]
        size = max(self.config.chunk_size, PIECE // max(1, x.shape[0]))
        whole = torch.is_grad_enabled() or self.traces is not None
        if whole or length < 2 * size or (self.training and self.config.query_norm == "batch"):
            size = max(1, length)
        for begin in range(0, max(1, length), size):
            part = slice(begin, begin + size)
            valid, brought = (None if t is None else t[:, part] for t in (mask, qkv))
            piece = self._piece(x[:, part], state, valid, brought, inplace or begin > 0, inplace, read, report)
            state = piece.state
            yield piece

    def _piece(
        self,
        x: Tensor,
        state: SparseDeltaBankState | None,
        mask: Tensor | None,
        qkv: Tensor | None,
        inplace: bool,
        undo: bool,
        read: bool,
        report: bool,
    ) -> _Piece:
        """From x, valid tokens first. inplace: the content may be written into; undo: and may be wanted back."""
        config = self.config
        content = None if state is None else state.content
        if state is None:
            config.check_bytes(x.shape[0], self._like().element_size())
            state = self._begin(x.shape[0], x.new_empty(x.shape[0], 0))
        dtype = state.tail.dtype
        projected = torch.cat([state.tail, (self.qkv(x) if qkv is None else qkv).to(dtype)], 1)
        q, k, v = self._heads(projected)
        gates = self.gating(x, mask, dtype)
        with torch.autocast(x.device.type, enabled=False):
            write_logits = self.write_keys(self.key_norm(k, mask))
            write = choose(write_logits, config.writes)
            read_logits, asked = None, None
            if read:
                read_logits = self._read_keys(self.query_norm(q, mask))
                asked = choose(read_logits, config.reads)
            watch = config.nonfinite != "ignore"
            rows = self._touched(write.slots) if watch else None
            overwritten = None
            if undo and rows is not None and content is not None:
                overwritten = rows, content.reshape(-1, config.width).index_select(0, rows)
            y, told, content = chunk_bank(
                write, asked, v, gates, content, slots=config.slots, rule=config.write,
                chunk_size=config.chunk_size, surprise=report, inplace=inplace,
            )  # fmt: skip
        taps = state.tail.shape[1]
        if mask is None:
            tail, count = projected[:, projected.shape[1] - taps :], torch.full_like(state.tokens, x.shape[1])
        else:
            count = mask.sum(1)
            last = count[:, None] + torch.arange(taps, device=x.device)
            tail = projected.gather(1, last[..., None].expand(-1, -1, projected.shape[2]))
        new = dataclasses.replace(state, content=content, tail=tail, tokens=state.tokens + count)
        out = None if y is None else self._output(y, x)
        finite = None
        if rows is not None:
            with torch.no_grad():
                sums = [content.view(-1, config.width).index_select(0, rows).sum(), tail.sum()]
                finite = torch.stack(sums + ([] if out is None else [out.sum().to(dtype)])).sum().isfinite()
        traced: dict[str, Any] = {}
        if self.traces is not None:
            keep = torch.ones_like(gates.write)
            if gates.decay is not None:
                keep = 1 - gates.decay * write.weights.mean(-1)
            traced = {"step": gates.write, "keep": keep}
            for name, address, logits in (("write", write, write_logits), ("read", asked, read_logits)):
                traced[f"{name}_slots"], traced[f"{name}_weights"] = (None, None) if address is None else address
                traced[f"{name}_usage"] = None if logits is None else mean_choice(logits, mask)
        return _Piece(out, told, traced, finite, overwritten, new)

    def _check(self, x: Tensor, state: SparseDeltaBankState | None, width: int) -> None:
        config = self.config
        if x.dim() != 3 or x.shape[2] != width:
            raise ValueError(f"expected x of shape [batch, time, {width}]; got {list(x.shape)}")
        if state is None:
            return
        if state.batch_size != x.shape[0]:
            raise ValueError(f"the state has {state.batch_size} rows and x has {x.shape[0]}")
        expected = {
            "content": [config.heads, config.slots, config.width],
            "tail": [max(0, config.conv_size - 1), 3 * config.dim],
            "tokens": [],
        }
        for name, tensor in state.tensors().items():
            if list(tensor.shape[1:]) != expected.get(name):
                raise ValueError(
                    f"the state is that of another memory: {name} is {list(tensor.shape[1:])} a row, and "
                    f"{expected.get(name, 'not there')} by this bank's configuration"
                )

    def _like(self) -> Tensor:
        """A number of the state's dtype, where the parameters are."""
        parameter = self.write_keys.keys
        return parameter.new_empty(0, dtype=torch.float64 if parameter.dtype == torch.float64 else torch.float32)

    def _begin(self, batch_size: int, content: Tensor) -> SparseDeltaBankState:
        like = self._like()
        tail = like.new_zeros(batch_size, max(0, self.config.conv_size - 1), 3 * self.config.dim)
        return SparseDeltaBankState(content, tail, torch.zeros(batch_size, dtype=torch.long, device=like.device))

    def _read_keys(self, query: Tensor) -> Tensor:
        keys: ProductKeys = self.write_keys if self.config.share_keys else self.read_keys
        logits: Tensor = keys(query)
        return logits

    def _touched(self, slots: Tensor) -> Tensor:
        """`[B, H, T, m]` slots to rows of the whole content, in one list."""
        heads = torch.arange(slots.shape[0] * slots.shape[1], device=slots.device) * self.config.slots
        return (slots.flatten(0, 1) + heads[:, None, None]).flatten()

    def _heads(self, projected: Tensor, convolve: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, tail + T, 3 dim]` -> q, k, v, each `[B, H, T, d]`; without the convolution there is no tail."""
        qkv = causal_convolution(projected, self.conv) if convolve and self.config.conv_size else projected
        if self.config.qkv_activation:
            qkv = F.silu(qkv)
        q, k, v = qkv.unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
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
