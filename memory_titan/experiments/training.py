"""A plain training loop for small models."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


@dataclass
class Course:
    """How a training went.

    Attributes:
        curves: by name ("loss", and "utilization", ... where the model tells them): (step, value).
        cpu_seconds: of the steps alone.
    """

    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    cpu_seconds: float = 0.0


def fit(
    model: nn.Module,
    draw: Callable[[int], Batch],
    steps: int,
    rate: float,
    *,
    warm_up: float = 0.05,
    fall: float = 0.25,
    clip: float = 1.0,
    every: int = 20,
    extra_loss: Callable[[int], Tensor] | None = None,
    after: Callable[[int], None] | None = None,
) -> Course:
    """Train with AdamW on batches as they are drawn.

    The learning rate rises over the first `warm_up` of the steps and falls to nothing over the last `fall`.

    Args:
        model: called with a batch as its keywords; gives something with a `loss`.
        draw: a batch, of the step's number from 1.
        steps: how many.
        rate: the highest learning rate.
        warm_up, fall: parts of all steps.
        clip: of the gradient's norm.
        every: steps over which a point of the curves is the mean.
        extra_loss: added to the loss after the model was called; of the step's number.
        after: called after each step, with its number.

    Raises:
        FloatingPointError: the loss is no longer finite; the message names the step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    course, sums, count = Course(), dict[str, float](), 0
    for step in range(1, steps + 1):
        begun = time.process_time()
        rise, rest = min(1.0, step / max(1.0, warm_up * steps)), (1 - (step - 1) / steps) / max(fall, 1e-9)
        for group in optimizer.param_groups:
            group["lr"] = rate * rise * min(1.0, rest)
        model.train()
        out = model(**draw(step))
        loss = out.loss if extra_loss is None else out.loss + extra_loss(step)
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"the loss is {float(loss)} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        course.cpu_seconds += time.process_time() - begun
        count += 1
        told = {name: getattr(out, name, None) for name in ("utilization", "pressure", "sharpness")}
        for name, value in {"loss": loss, **told}.items():
            if value is not None:
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        if step % every == 0 or step == steps:
            for name, total in sums.items():
                course.curves.setdefault(name, []).append((step, total / count))
            sums, count = {}, 0
        if after is not None:
            after(step)
    return course
