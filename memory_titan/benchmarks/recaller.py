"""A tiny model of neural memories, and many of them trained at once: one for each seed and learning rate.

Models of the same shape lie stacked, `[M, ...]` for each parameter, and run through one module by `torch.func.vmap`. At
this size a step costs mostly the calls that it makes, and M models make as many as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from memory_titan.memory.neural.layer import NeuralMemory
from memory_titan.tasks.recall import RecallTask, accuracy

BETAS, EPSILON, CLIP = (0.9, 0.99), 1e-8, 1.0


class Recaller(nn.Module):
    """Two blocks of memory and MLP around an embedding; no attention, so all that is recalled went through a memory.

    Args:
        vocabulary: different tokens.
        dim: width.
        **options: of `NeuralMemory`.
    """

    def __init__(self, vocabulary: int, dim: int = 32, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embed.weight, std=0.5)
        # What breaks in one of many stacked models must not stop the others: `train` looks after it.
        self.memories = nn.ModuleList(NeuralMemory(dim, nonfinite="ignore", **options) for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.RMSNorm(dim), nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(3))
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, T]` -> `[B, T, vocabulary]`."""
        x = self.embed(tokens)
        for norm, memory, mlp in zip(self.norms, self.memories, self.mlps, strict=False):
            x = x + memory(norm(x))[0]
            x = x + mlp(x)
        return self.head(self.norms[-1](x))

    def set_chunk(self, size: int) -> None:
        """Read with another chunk than the one trained with. The bound of the step stays what it was in training."""
        for memory in self.memories:
            assert isinstance(memory, NeuralMemory)
            memory.config.chunk_size = size


class Stack:
    """M models of one shape. `parameters[name]` is `[M, ...]`.

    Args:
        build: makes one model; called once a seed, torch seeded with it.
        seeds: one a model; the same seed gives the same model and the same data.
        together: all models in one vmap; False: one after the other, for whatever vmap cannot do.
    """

    def __init__(self, build: Callable[[], Recaller], seeds: Sequence[int], together: bool = True) -> None:
        models = []
        for seed in seeds:
            torch.manual_seed(seed)
            models.append(build())
        self.shape, self.seeds, self.together = models[0], list(seeds), together
        named = [dict(model.named_parameters()) for model in models]
        self.parameters = {
            name: torch.stack([each[name].detach() for each in named]).requires_grad_(named[0][name].requires_grad)
            for name in named[0]
        }

    def __call__(self, x: Tensor) -> Tensor:
        """x: `[M, B, T]`; returns logits `[M, B, T, vocabulary]`."""
        if self.together:
            return vmap(lambda parameters, tokens: functional_call(self.shape, parameters, tokens))(self.parameters, x)
        return torch.stack([functional_call(self.shape, self.one(i), x[i]) for i in range(len(x))])

    def one(self, index: int) -> dict[str, Tensor]:
        """The parameters of one model."""
        return {name: stacked[index] for name, stacked in self.parameters.items()}

    @torch.no_grad()
    def recall(self, task: RecallTask, seed: int, rows: int, at_once: int = 8192) -> list[float]:
        """Accuracy of each model on the same sequences, so many tokens of them at a time."""
        x, y = task.batch(rows, torch.Generator().manual_seed(seed))
        part = max(1, at_once // task.length)
        answers = [self(each.expand(len(self.seeds), *each.shape)).argmax(-1) for each in x.split(part)]
        return accuracy(torch.cat(answers, 1), y.expand(len(self.seeds), *y.shape)).tolist()


@dataclass
class Course:
    """How one model's training went."""

    curve: list[tuple[int, float]]  # (step, accuracy on held-out sequences)
    loss: float  # the mean of the last tenth of the steps
    broke: int | None  # the step at which the loss or a gradient was no longer finite; None: none

    def reached(self, mark: float) -> int | None:
        """The first look at which the accuracy was at least `mark`: a step."""
        return next((step for step, share in self.curve if share >= mark), None)

    def record(self, mark: float) -> dict[str, Any]:
        """For JSON, which has no infinity and nothing that is not a number."""
        loss = self.loss if math.isfinite(self.loss) else None
        return {"loss": loss, "broke": self.broke, "reached": self.reached(mark), "curve": self.curve}


def train(
    stack: Stack,
    task: RecallTask,
    rates: Sequence[float],
    steps: int,
    *,
    rows: int = 32,
    every: int = 25,
    held_out: int = 1_000_003,
    held_out_rows: int = 64,
) -> list[Course]:
    """Train all models of a stack on fresh sequences with Adam.

    The learning rate rises over the first twentieth of the steps and falls to nothing over the last quarter.

    A model whose loss or gradient is no longer finite stops there; the others do not notice.

    Args:
        stack: M models; changed in place.
        task: what to draw; each model draws by its own seed.
        rates: M highest learning rates.
        steps: how many.
        rows: sequences a step and model.
        every: steps between two looks at held-out sequences.
        held_out: seed of the held-out sequences.
        held_out_rows: how many.
    """
    models, rate = len(stack.seeds), torch.tensor(rates)
    draws = {seed: torch.Generator().manual_seed(10_007 + seed) for seed in stack.seeds}
    trained = [p for p in stack.parameters.values() if p.requires_grad]
    first, second = [torch.zeros_like(p) for p in trained], [torch.zeros_like(p) for p in trained]
    broke: list[int | None] = [None] * models
    curves: list[list[tuple[int, float]]] = [[] for _ in range(models)]
    losses = []
    for step in range(1, steps + 1):
        drawn = {seed: task.batch(rows, draw) for seed, draw in draws.items()}
        x, y = (torch.stack([drawn[seed][i] for seed in stack.seeds]) for i in (0, 1))
        asked = y >= 0
        each = F.cross_entropy(stack(x)[asked], y[asked], reduction="none").view(models, -1).mean(1)
        losses.append(each.detach())
        gradients = torch.autograd.grad(each.sum(), trained)
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        for i in (~(norm + each.detach()).isfinite()).nonzero().flatten().tolist():
            broke[i] = broke[i] or step
        alive = torch.tensor([b is None for b in broke])
        schedule = min(1.0, step / (0.05 * steps)) * min(1.0, (1 - (step - 1) / steps) / 0.25)
        _adam(
            trained, gradients, first, second, step, torch.where(alive, rate * schedule, 0.0), CLIP / norm.clamp(CLIP)
        )
        if step % every == 0 or step == steps:
            for curve, share in zip(curves, stack.recall(task, held_out, held_out_rows), strict=True):
                curve.append((step, share))
    last = torch.stack(losses[-max(1, steps // 10) :]).mean(0).tolist()
    return [Course(curve, loss, stop) for curve, loss, stop in zip(curves, last, broke, strict=True)]


@torch.no_grad()
def _adam(
    parameters: list[Tensor],
    gradients: tuple[Tensor, ...],
    first: list[Tensor],
    second: list[Tensor],
    step: int,
    rate: Tensor,
    scale: Tensor,
) -> None:
    """One step of Adam for M stacked models. rate, scale: `[M]`, of the step and of the gradient."""
    for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
        one = (-1,) + (1,) * (p.dim() - 1)
        # A broken model's gradient is not a number even when its rate is 0.
        g = (g * scale.view(one)).nan_to_num(0.0, 0.0, 0.0)
        m.lerp_(g, 1 - BETAS[0])
        v.lerp_(g.square(), 1 - BETAS[1])
        size = (v / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
        p.sub_(rate.view(one) * (m / (1 - BETAS[0] ** step)) / size)
