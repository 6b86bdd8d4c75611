"""Watching a graft read: of every grafted layer and token its gate, its write, its q, k and v, and what it changes.

ids       <bos>  a1 f - > 9 c2  The mill ...  Follow : a1 f - >   9   c2
read        -    e  e e e e e   f   f         q      q q  q q q   a   a    kind of the token itself
saying      -    e  e e e e e   f   f         q      q q  q q a   a   -    a: an answer's token comes next
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from memory_titan.graft.branch import MemoryBranch
from memory_titan.graft.model import MemoryModel
from memory_titan.graft.session import MemorySession
from memory_titan.memory.neural.chunk import read_memory
from memory_titan.memory.neural.layer import NeuralMemory, NeuralMemoryState
from memory_titan.memory.neural.mesa import read_mesa
from memory_titan.memory.trace import trace
from memory_titan.tasks.examples import encode
from memory_titan.tasks.sample import Sample, SampleError

KINDS = ("evidence", "question", "answer", "filler", "prose")
NOTHING = -1  # a token of no kind: the tokenizer's first, and, of `saying`, an answer's last


@dataclass(frozen=True)
class Marked:
    """A sample as T tokens, each of some kind.

    Attributes:
        ids: `[T]`, int64.
        read: `[T]`, int64, each token's kind, an index of `KINDS`, or `NOTHING`.
        saying: `[T]`, int64, the same, but "answer" where an answer's token comes next: what stands there is what says
            it. An answer's own last token says nothing of it and is `NOTHING`.
        answers: of each answer its first token and the one after its last.
        questions: of each answer the first token of its question.
        places: of each answer's tokens, blank ones left out, that stand in its evidence too:
            `(token, place in the evidence)`.
        words: the text of each token; empty for the tokenizer's first.
    """

    ids: Tensor
    read: Tensor
    saying: Tensor
    answers: tuple[tuple[int, int], ...]
    questions: tuple[int, ...]
    places: tuple[tuple[tuple[int, int], ...], ...]
    words: tuple[str, ...]


def mark(sample: Sample, tokenizer: Any, name: str = "") -> Marked:
    """Tokens of a sample and their kinds. A token that reaches into a span belongs to it.

    Args:
        sample: what to encode, as `encode` does it.
        tokenizer: a fast one of Hugging Face.
        name: of the sample, for messages.

    Raises:
        SampleError: an answer begins or ends within a token.
    """
    example = encode(sample, tokenizer, name)
    assert example is not None
    encoded = tokenizer(sample.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    shift, ids = len(example.ids) - len(offsets), example.ids.tolist()

    def inside(span: tuple[int, int]) -> list[int]:
        return [at + shift for at, (begin, end) in enumerate(offsets) if begin < span[1] and end > span[0]]

    read = torch.full((len(ids),), KINDS.index("filler"))
    read[:shift] = NOTHING
    for answer in sample.answers:
        for span in answer.evidence:
            read[inside(span)] = KINDS.index("evidence")
    questions = []
    for answer, (begin, end) in zip(sample.answers, example.answers, strict=True):
        asked = [at for at in inside(answer.question) if at < begin]
        if not asked:
            raise SampleError(f"{name}: the question {sample.cut(answer.question)!r} has no token of its own")
        questions.append(asked[0])
        read[asked] = KINDS.index("question")
        read[begin:end] = KINDS.index("answer")
    saying = read.clone()
    for begin, end in example.answers:
        saying[end - 1] = NOTHING
        saying[begin - 1 : end - 1] = KINDS.index("answer")
    words = ["" for _ in range(shift)] + [sample.text[begin:end] for begin, end in offsets]
    places = []
    for answer, (begin, end) in zip(sample.answers, example.answers, strict=True):
        evidence = [at for span in answer.evidence for at in inside(span)]
        found = [(at, _source(ids, at, evidence)) for at in range(begin, end) if words[at].strip()]
        places.append(tuple((at, place) for at, place in found if place is not None))
    return Marked(example.ids, read, saying, example.answers, tuple(questions), tuple(places), tuple(words))


def _source(ids: list[int], token: int, evidence: list[int]) -> int | None:
    """Where in the evidence a token is to be had from: the same token, after most of the same tokens."""

    def alike(place: int) -> int:
        back = 1
        while place - back >= 0 and ids[place - back] == ids[token - back]:
            back += 1
        return back

    return max((at for at in evidence if ids[at] == ids[token]), key=alike, default=None)


@dataclass(frozen=True)
class Watched:
    """What one grafted layer did with T tokens; float32, on the CPU. H heads; means over them where there is no H.

    Attributes:
        gate: `[T]`, g.
        step: `[T]`, theta, the step of the token's write.
        loss, gradient, write: `[T]`, its surprise; see `memory.neural.rule.Surprise`.
        change: `[T]`, `|g (answer - attention)|` over the norm of the residual that the layer was given.
        q, k, v: `[H, T, d]`, as the memory uses them: after convolution, activation and normalisation.
        refinement: `[T]`, `|R answer below|` over `|q|`, before the convolution; None: the layer has no R.
    """

    gate: Tensor
    step: Tensor
    loss: Tensor
    gradient: Tensor
    write: Tensor
    change: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    refinement: Tensor | None


@torch.no_grad()
def watch(model: MemoryModel, ids: Tensor, session: MemorySession) -> dict[int, Watched]:
    """Read a text and watch every grafted layer.

    Args:
        model: with its memory on.
        ids: `[T]`, int64, any length; read in the graft's segments.
        session: of one row, to go on with; it is moved on.

    Returns:
        by layer.

    Raises:
        FloatingPointError: the memory's weights would not be finite.
    """
    seen: dict[int, dict[str, list[Tensor]]] = {layer: defaultdict(list) for layer in model.graft.layers}
    with ExitStack() as stack:
        for layer in model.graft.layers:
            for handle in _listen(model, layer, partial(_keep, seen[layer])):
                stack.callback(handle.remove)
        traces = stack.enter_context(trace(model.branches))
        model.hidden(ids.to(model.device)[None], None, session)
    return {
        layer: _watched(
            seen[layer], [one for name, calls in traces.items() if name == f"{layer}.memory" for one in calls]
        )
        for layer in model.graft.layers
    }


Keep = Callable[[str, Tensor], None]


def _keep(seen: dict[str, list[Tensor]], name: str, x: Tensor) -> None:
    seen[name].append(x)


def _listen(model: MemoryModel, layer: int, keep: Keep) -> list[Any]:
    """Hooks that keep what passes by in a layer, row 0 of it; they change nothing."""
    graft, branch = model.graft, branch_of(model, layer)
    block: Any = graft.decoder.get_submodule(graft.architecture.layers)
    block = block[layer]
    after = graft.architecture.norm_after

    def residual(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep("residual", kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    def attended(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        keep("attended", output[0] if isinstance(output, tuple) else output)

    def mixed(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor, Any]) -> None:
        keep("gate", output[0])
        keep("answer", output[1])

    def projected(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not isinstance(branch.memory, NeuralMemory):
            raise ValueError("the diagnosis looks into neural memories; this graft has memory_kind='slots'")
        for name, x in zip("qkv", heads_of(branch.memory, kwargs["qkv"], args[1]), strict=True):
            keep(name, x)

    def plain(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        keep(name, output)

    # in front of the graft's own hooks, which put the memory's answer in the place of what these are to see
    where = graft.attention[layer] if after is None else block.get_submodule(after)
    handles = [
        block.register_forward_pre_hook(residual, with_kwargs=True),
        where.register_forward_hook(attended, prepend=True),
        branch.register_forward_hook(mixed),
        branch.memory.register_forward_hook(projected, with_kwargs=True),
    ]
    if branch.query.refine is not None:
        handles.append(branch.query.refine.register_forward_hook(partial(plain, "refining")))
        handles.append(branch.query.register_forward_hook(partial(plain, "query")))
    return handles


def _watched(seen: dict[str, list[Tensor]], traces: list[Any]) -> Watched:
    x = {name: torch.cat([part[0].float() for part in parts], -2).cpu() for name, parts in seen.items()}
    told = {"step": [one.step for one in traces]}
    told |= {name: [getattr(one.surprise, name) for one in traces] for name in ("loss", "gradient", "write")}
    means = {name: torch.cat([part[0].float() for part in parts]).mean(-1).cpu() for name, parts in told.items()}
    change = (x["gate"] * (x["answer"] - x["attended"])).norm(dim=-1) / x["residual"].norm(dim=-1).clamp(min=1e-12)
    refinement = None
    if "refining" in x:
        refinement = x["refining"].norm(dim=-1) / x["query"].norm(dim=-1).clamp(min=1e-12)
    return Watched(gate=x["gate"][:, 0], change=change, q=x["q"], k=x["k"], v=x["v"], refinement=refinement, **means)


def branch_of(model: MemoryModel, layer: int) -> MemoryBranch:
    """A grafted layer's branch."""
    branch = model.branches[str(layer)]
    assert isinstance(branch, MemoryBranch)
    return branch


def heads_of(memory: NeuralMemory, qkv: Tensor, state: NeuralMemoryState) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as the memory uses them, `[B, H, T, d]` each.

    Args:
        memory: one without projections of its own.
        qkv: `[B, T, 3 dim]`, what it is given, without padding.
        state: where it goes on.
    """
    q, k, v = memory._heads(memory._convolve(torch.cat([state.tail, qkv.to(state.tail.dtype)], 1)))
    return q, k, v


@torch.no_grad()
def answer_to(memory: NeuralMemory, keys: Tensor, state: NeuralMemoryState) -> Tensor:
    """What the memory answers, before its output norm, to keys as it stores them.

    Args:
        memory: whose.
        keys: `[H, n, d]`.
        state: of one row.

    Returns:
        `[H, n, d]`, float32, on the CPU.
    """
    asked = keys.to(state.tail)[None]
    if memory.config.algorithm == "solve":
        return read_mesa(asked, state, memory.config.ridge)[0].float().cpu()
    return read_memory(asked, state, memory._rule(asked.dtype))[0].float().cpu()
