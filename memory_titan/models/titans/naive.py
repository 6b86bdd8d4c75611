"""The four blocks, equation by equation, token by token: what the fast ones must equal (arXiv 2501.00663, section 4).

Slow, for tests and for reading. Each function takes a block and x `[1, T, dim]`, one whole sequence without padding,
and returns y `[1, T, dim]`. Memories are called one token at a time; attention is a softmax over a list.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.models.attention import rotate
from memory_titan.models.titans.lmm import LMMBlock
from memory_titan.models.titans.mac import MACBlock
from memory_titan.models.titans.mag import MAGBlock
from memory_titan.models.titans.mal import MALBlock

Seen = list[
    tuple[Tensor, int | None]
]  # what a query sees: tokens `[1, dim]`, and their positions; None: at no distance


def lmm(block: LMMBlock, x: Tensor) -> Tensor:
    """h = x + M([p, norm(x)])."""
    _, memory = _persistent(block)
    rows = []
    for token in x[0].split(1):
        y, memory = block.memory(block.norm(token)[None], memory)
        rows.append(token + y[0])
    return _feed_forward(block, rows)


def mag(block: MAGBlock, x: Tensor) -> Tensor:
    """h = x + SWA([p, n]) (x) M([p, n])."""
    _, memory = _persistent(block)
    prefix: Seen = [] if block.persistent is None else [(p, None) for p in block.norm(block.persistent)[0].split(1)]
    n, rows = block.norm(x)[0].split(1), []
    for t, token in enumerate(x[0].split(1)):
        first = 0 if block.attention.window is None else max(0, t - block.attention.window + 1)
        attended = _attention(block.attention, n[t], t, prefix + [(n[j], j) for j in range(first, t + 1)])
        remembered, memory = block.memory(n[t][None], memory)
        rows.append(token + block.fusion(attended, remembered[0]))
    return _feed_forward(block, rows)


def mal(block: MALBlock, x: Tensor) -> Tensor:
    """z = [p, x] + M(norm([p, x]));  h = z + SWA(norm(z))."""
    made, memory = _persistent(block)
    prefix: Seen = []
    if block.persistent is not None:
        prefix = [(block.attention_norm(p + y), None) for p, y in zip(block.persistent[0].split(1), made, strict=True)]
    seen: list[Tensor] = []
    rows = []
    for t, token in enumerate(x[0].split(1)):
        y, memory = block.memory(block.norm(token)[None], memory)
        z = token + y[0]
        seen.append(block.attention_norm(z))
        first = 0 if block.attention.window is None else max(0, t - block.attention.window + 1)
        rows.append(z + _attention(block.attention, seen[t], t, prefix + [(seen[j], j) for j in range(first, t + 1)]))
    return _feed_forward(block, rows)


def mac(block: MACBlock, x: Tensor) -> Tensor:
    """Segment by segment: h = M_before(W n);  y = n + attention(n; p, h, n);  x + y (x) M_t(y)."""
    memory: Any = block.memory.initial_state(1)
    learned = 0 if block.persistent is None else block.persistent.shape[1]
    prefix: Seen = []
    if block.persistent is not None:
        prefix = [(p, position) for position, p in enumerate(block.norm(block.persistent)[0].split(1))]
    rows = []
    for segment in x[0].split(block.segment):
        before = memory
        n = block.norm(segment).split(1)
        h = [block.memory.recall(block.query(one)[None], before, project=False)[0] for one in n]
        for t, token in enumerate(segment.split(1)):
            recalled: Seen = [(h[j], learned + j) for j in range(t + 1)]
            own: Seen = [(n[j], learned + block.segment + j) for j in range(t + 1)]
            y = _attention(block, n[t], learned + block.segment + t, prefix + recalled + own)
            y = n[t] + y if block.residual else y
            remembered, memory = block.memory(y[None], memory)
            rows.append(token + block.fusion(y, remembered[0]))
    return _feed_forward(block, rows)


def _persistent(block: Any) -> tuple[list[Tensor], Any]:
    """What the memory says to each persistent token, and its state after them."""
    memory, made = block.memory.initial_state(1), []
    for p in [] if block.persistent is None else block.norm(block.persistent)[0].split(1):
        y, memory = block.memory(p[None], memory)
        made.append(y[0])
    return made, memory


def _attention(layer: Any, query: Tensor, position: int, seen: Seen) -> Tensor:
    """softmax(q K^T / sqrt(width)) V over what is seen; a key at no distance meets the query unturned."""
    dim = query.shape[-1]

    def heads(x: Tensor) -> Tensor:
        return x.view(1, 1, layer.heads, -1).transpose(1, 2)

    def at(x: Tensor, place: int | None) -> Tensor:
        return heads(x) if place is None else rotate(torch.tensor([[place]]), layer.steps, heads(x))[0]

    q = F.linear(query, layer.qkv.weight[:dim])
    scores, values = [], []
    for token, place in seen:
        k, v = F.linear(token, layer.qkv.weight[dim:]).chunk(2, -1)
        asked = at(q, None if place is None else position)
        scores.append((asked * at(k, place)).sum(-1) / math.sqrt(dim // layer.heads))
        values.append(heads(v))
    weights = torch.cat(scores, -1).softmax(-1)  # [1, heads, S]
    out: Tensor = layer.out((weights[..., None] * torch.cat(values, 2)).sum(2).flatten(1))
    return out


def _feed_forward(block: Any, rows: list[Tensor]) -> Tensor:
    h = torch.cat(rows)[None]
    y: Tensor = h + block.feed_forward(block.feed_forward_norm(h))
    return y
