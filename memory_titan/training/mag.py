"""Training a graft on samples with answers: only its own parameters, through the memory's updates.

Each step reads a batch from its first token to its last, in stretches of `backprop` tokens. The memory is carried from
stretch to stretch; the gradient goes back through all updates within one, and no further (truncated backpropagation).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from memory_titan.evaluation.answers import evaluate
from memory_titan.graft.lower import skipping
from memory_titan.graft.model import MemoryModel
from memory_titan.graft.session import MemorySession
from memory_titan.tasks.examples import Batch, Example, batches, collate, exact, stretches
from memory_titan.training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_trainer,
    load_weights,
    save_checkpoint,
)
from memory_titan.training.loop import Report, TrainingError, rate_at
from memory_titan.training.objective import AnswerLoss, Sums
from memory_titan.training.sharded import gathered, load_optimizer, saveable, whole


@dataclass
class TrainConfig:
    """How a graft is trained."""

    learning_rate: float = 1e-3
    num_epochs: int = 3
    batch_size: int = 4  # texts a step, over all processes
    backprop: int = 2048  # tokens that the gradient goes back through
    max_steps: int | None = None  # stop after so many; None: after the epochs
    warmup: float = 0.03  # share of all steps; the rate then falls as a cosine to a tenth
    weight_decay: float = 0.0
    clip: float = 1.0  # largest gradient norm
    gate_price: float = 0.0  # times the mean gate of the tokens that say no answer, added to the loss
    write_price: float = 0.0  # times the mean step of all tokens, over its bound, added to the loss
    price_ramp: float = 0.3  # share of all steps over which both rise to their height
    success: float | None = None  # stop once this share of the evaluation's answers is right; None: never
    evaluate_every: int = 100  # steps
    save_every: int = 50  # steps between two latest checkpoints
    seed: int = 0
    mixed_precision: str = "no"  # of the frozen model: "no" or "bf16"
    recompute: bool = False  # run each segment again in the backward pass: less memory, one more forward pass

    def __post_init__(self) -> None:
        least = {"num_epochs": 1, "batch_size": 1, "backprop": 1, "evaluate_every": 1, "save_every": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}; got {getattr(self, name)}")
        if not self.learning_rate > 0 or not self.clip > 0:
            raise ValueError(f"learning_rate and clip must be positive; got {self.learning_rate} and {self.clip}")
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f'mixed_precision must be "no" or "bf16"; got {self.mixed_precision!r}')


def train(
    model: MemoryModel,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    config: TrainConfig,
    output: Path,
    *,
    resume: Path | None = None,
    report: Report = lambda record: None,
    details: dict[str, Any] | None = None,
    prose: Sequence[Example] = (),
) -> dict[str, Any]:
    """Train until the epochs, the steps, or success are reached.

    Args:
        model: grafted; trained in place.
        examples: to train on.
        held_out: to evaluate on; empty: no evaluation, and the latest checkpoint counts as the best.
        config: how.
        output: folder for `latest` and `best`.
        resume: a `latest` of the same run, to go on from exactly where it stood.
        report: called with a record of each step and evaluation.
        details: more for progress.json.
        prose: texts without answers, read among the others.

    Returns:
        the last progress: step, epoch, best, history.

    Raises:
        TrainingError: the loss is not finite. The last checkpoint stays.
        CheckpointError: `resume` cannot be used.
    """
    examples = [*examples, *prose]
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    accelerator = Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=handlers)
    if config.batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size={config.batch_size} is no multiple of {accelerator.num_processes} processes")
    if accelerator.is_fsdp2:
        _check_shareable(model, config)
    torch.manual_seed(config.seed)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, config.learning_rate, (0.9, 0.95), weight_decay=config.weight_decay)
    an_epoch = math.ceil(len(examples) / config.batch_size)
    steps = min(config.max_steps or math.inf, an_epoch * config.num_epochs)
    progress: dict[str, Any] = {"step": 0, "best": -1.0, "seconds": 0.0, "history": [], "config": asdict(config)}
    progress |= details or {}
    if resume is not None:
        folder = find_checkpoint(resume)
        trainer, before = load_trainer(folder)
        same = {k: v for k, v in asdict(config).items() if k not in ("max_steps", "recompute")}
        different = [k for k, v in same.items() if before["config"].get(k) != v]
        if different or before.get("examples") != len(examples):
            raise CheckpointError(
                f"{folder} is of another run: {', '.join(different) or 'the number of examples'} differs. To begin a "
                "new one from its weights, give them as the start."
            )
        load_weights(folder, model)
        progress = {**before, "config": asdict(config)}
    progress["examples"] = len(examples)
    objective = AnswerLoss(model, config.write_price > 0, config.recompute)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    if resume is not None:
        load_optimizer(optimizer, trainer["optimizer"])
        torch.set_rng_state(trainer["random"])
    model.train()

    def save(name: str) -> None:
        trainer = {"optimizer": whole(optimizer.state_dict()), "random": torch.get_rng_state()}
        with saveable(model, model.branches, model.get_input_embeddings()):
            if accelerator.is_main_process:
                save_checkpoint(output / name, model, trainer, progress)
        accelerator.wait_for_everyone()

    first = progress["step"]
    done = False
    known = all(example.lower is not None for example in [*examples, *held_out])
    with skipping(model) if known else nullcontext():
        for epoch in range(first // an_epoch, config.num_epochs):
            for index, group in enumerate(batches(examples, config.batch_size, config.seed, epoch)):
                step = epoch * an_epoch + index
                if step < first:
                    continue
                if step >= steps or done:
                    break
                started = time.perf_counter()
                for settings in optimizer.param_groups:
                    settings["lr"] = config.learning_rate * rate_at(step, int(steps), config.warmup)
                ramp = min(1.0, (step + 1) / max(1.0, config.price_ramp * steps))
                record = _step(accelerator, objective, optimizer, group, config, step, ramp)
                progress["step"] = step + 1
                progress["seconds"] += time.perf_counter() - started
                progress["history"].append(record)
                report(record)
                if held_out and ((step + 1) % config.evaluate_every == 0 or step + 1 == steps):
                    with gathered(objective):
                        found = evaluate(model, held_out, config.batch_size)
                    scores = {"step": step + 1, "exact": found["exact"], "exact_tokens": found["tokens"]}
                    progress["history"].append(scores)
                    report(scores)
                    if found["exact"] >= progress["best"]:  # the later one of equals: prices have risen
                        progress["best"] = found["exact"]
                        save("best")
                    done = config.success is not None and found["exact"] >= config.success
                if (step + 1) % config.save_every == 0 or step + 1 == steps or done:
                    save("latest")
    if not held_out:
        save("best")
    return progress


def _step(
    accelerator: Accelerator,
    objective: Any,
    optimizer: Any,
    group: list[Example],
    config: TrainConfig,
    step: int,
    ramp: float,
) -> dict[str, Any]:
    """One step of the optimizer; the record of it."""
    # Every process takes its rows; the loss is over the answers of all. All read to the length of the longest: with
    # FSDP what one gathers, all must.
    all_rows = collate(group)
    idle = accelerator.process_index >= len(group)
    rows = [0] if idle else list(range(len(group)))[accelerator.process_index :: accelerator.num_processes]
    batch = _rows(all_rows, rows)
    count = max(1, int((all_rows.said > 0).sum()))
    tokens = int(all_rows.mask.sum())
    gate_price, write_price = (ramp * price for price in (config.gate_price, config.write_price))
    session: MemorySession | None = None
    counts = 0.0 if idle else 1.0
    total = torch.zeros(3, device=accelerator.device)
    right: list[Tensor] = []
    optimizer.zero_grad()
    for part in stretches(batch, config.backprop):
        with accelerator.autocast():
            sums: Sums = objective(part.to(accelerator.device), session)
        means = torch.stack([sums.loss / count, sums.opened / max(1, tokens - count), sums.written / tokens])
        loss = means[0] + gate_price * means[1] + write_price * means[2]
        # averaged over processes by DDP and FSDP, so times their number
        accelerator.backward(counts * loss * accelerator.num_processes)
        session = sums.session.detach()
        if counts:
            total, right = total + means.detach(), [*right, sums.right]
    losses, opened, written = accelerator.reduce(total).unbind()
    if not bool(losses.isfinite()):
        names = "; ".join(example.name for example in group)
        raise TrainingError(f"the loss is {float(losses)} at step {step + 1}, on {names}. The last checkpoint stands")
    norm = whole(accelerator.clip_grad_norm_([p for p in objective.parameters() if p.requires_grad], config.clip))
    if not bool(torch.as_tensor(norm).isfinite()):
        names = "; ".join(example.name for example in group)
        raise TrainingError(f"the gradient is {float(norm)} at step {step + 1}, on {names}. The last checkpoint stands")
    optimizer.step()
    hits = exact(batch, torch.cat([x.cpu() for x in right], 1)) if right else []
    flat = [one for row in hits for one in row]
    return {
        "step": step + 1,
        "loss": float(losses),
        "train_exact": sum(flat) / max(1, len(flat)),
        "gradient": float(norm),
        "rate": optimizer.param_groups[0]["lr"],
        "opened": float(opened),
        **({"written": float(written)} if config.write_price else {}),
    }


def _rows(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch, as long as the whole."""
    lower = None if batch.lower is None else batch.lower[rows]
    examples = tuple(batch.examples[row] for row in rows)
    return Batch(batch.ids[rows], batch.mask[rows], batch.said[rows], examples, lower)


def _check_shareable(model: MemoryModel, config: TrainConfig) -> None:
    """Refuse what cannot be trained with FSDP2."""
    if config.mixed_precision != "no":
        raise ValueError(
            'with FSDP2 mixed_precision must be "no": it would cast the graft too, and copy what layers hand on. '
            "A frozen model in bfloat16 (--dtype bfloat16) is what saves memory"
        )
    if model.graft_config.source == "frozen" and model.graft_config.n_persistent_tokens:
        raise ValueError(
            'with FSDP2 and source "frozen" n_persistent_tokens must be 0: memories read these tokens outside of the '
            "layer whose weights they need"
        )
