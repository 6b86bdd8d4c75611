"""Training a language model on streams of text, with the state carried and the gradient cut at every segment.

OUTPUT/latest/       the last checkpoint: model, trainer.pt, progress.json
OUTPUT/final/        the trained model, and its tokenizer: `AutoModelForCausalLM.from_pretrained`
OUTPUT/log.jsonl     a line a step, a line an evaluation
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from memory_titan.models.cache import StateCache
from memory_titan.models.language_model import IGNORE, MemoryLanguageModel
from memory_titan.training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_language_model,
    load_trainer,
    save_checkpoint,
)
from memory_titan.training.lm_config import FREE, LMConfig
from memory_titan.training.lm_objective import SegmentLoss, evaluate, grows
from memory_titan.training.lm_watch import MemoryWatch
from memory_titan.training.loop import Report, Stop, TrainingError, rate_at
from memory_titan.training.sharded import gathered, load_optimizer, saveable, whole
from memory_titan.training.streams import Streams
from memory_titan.training.text import Corpus

LATEST, FINAL, LOG = "latest", "final", "log.jsonl"


def train(
    model: MemoryLanguageModel,
    corpus: Corpus,
    config: LMConfig,
    output: Path,
    *,
    resume: bool = False,
    report: Report = lambda record: None,
) -> dict[str, Any]:
    """Train until the steps are done, or SIGINT or SIGTERM asks to stop: then a checkpoint is written first.

    Args:
        model: trained in place.
        corpus: the text; nothing held out: no evaluation.
        config: how. Its `model` is not looked at but for comparison with a checkpoint.
        output: folder.
        resume: go on exactly where `output/latest` stands.
        report: called with a record of each step, and of each evaluation: that has `bits_per_byte`. In the first
            process only.

    Returns:
        the last progress: step, tokens, seconds, evaluation (the last one), finished (or else it was asked to stop).

    Raises:
        ValueError: the configuration does not go with the text, the model or the processes.
        TrainingError: the loss is not finite. The last checkpoint stays.
        CheckpointError: there is none to resume from, or it is of another run.
    """
    run = _Run(model, corpus, config, output, report, resume)
    with Stop() as stop:
        return run.go(stop)


class _Run:
    """A run, from its first step or from where a checkpoint stands."""

    def __init__(
        self,
        model: MemoryLanguageModel,
        corpus: Corpus,
        config: LMConfig,
        output: Path,
        report: Report,
        resume: bool,
    ) -> None:
        self.model, self.corpus, self.config, self.output, self.report = model, corpus, config, output, report
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
        # Autocast is the objective's own, so that it is the same for one process, DDP and FSDP2.
        self.accelerator = Accelerator(mixed_precision="no", kwargs_handlers=handlers)
        processes = self.accelerator.num_processes
        reset = config.data.boundaries == "reset"
        if config.rows % processes:
            raise ValueError(f"rows={config.rows} is no multiple of {processes} processes")
        if self.accelerator.is_fsdp2 and (reset or config.carry not in (True, False)):
            raise ValueError(
                "with FSDP2 rows cannot begin one by one, since initial states need weights of layers: data.boundaries "
                "must be read_on, and carry true or false"
            )
        if config.carry and model.config.window is None and grows(model):
            raise ValueError("full attention's state grows with every token: set a window, or carry: false")
        self.streams = Streams(
            corpus.train, config.rows, config.length, config.segment, config.carry, reset, config.seed
        )
        own = config.rows // processes
        first = self.accelerator.process_index * own
        self.rows = slice(first, first + own)
        self.cache: StateCache | None = None
        self.progress: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0, "evaluation": None}
        trainer = self._restore() if resume else None
        self.progress |= {"config": config.told(), "text": corpus.fingerprint()}
        if config.gradient_checkpointing:
            enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        objective = SegmentLoss(model, config.precision == "bf16")
        self.objective, self.optimizer = self.accelerator.prepare(objective, self._optimizer())
        if trainer is not None:
            load_optimizer(self.optimizer, trainer["optimizer"])
            _set_random(trainer["random"])
        self.watch = MemoryWatch(model) if config.log_dir is not None else None
        if self.accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            _shorten(output / LOG, self.progress["step"])

    def go(self, stop: Stop) -> dict[str, Any]:
        """All steps that are left."""
        config, progress = self.config, self.progress
        self.model.train()
        saved = progress["step"]
        asked = False
        while True:
            step = progress["step"]
            finished = step >= config.steps
            due = step > 0 and (finished or step % config.eval_every == 0)
            if due and self.corpus.held_out and (progress["evaluation"] or {}).get("step") != step and not asked:
                self._evaluate(stop)
                asked = bool(self._sum(torch.tensor(float(stop.asked))) > 0)
            if step != saved and (finished or asked or step % config.save_every == 0):
                self._save()
                saved = step
            if finished or asked:
                break
            started = time.perf_counter()
            record, asked = self._step(step, stop)
            progress["step"], progress["tokens"] = step + 1, progress["tokens"] + record.pop("read")
            progress["seconds"] += time.perf_counter() - started
            self._tell({**record, "seconds": round(progress["seconds"], 3)})
        progress["finished"] = finished
        if finished:
            self._write(FINAL)
        return progress

    def _step(self, step: int, stop: Stop) -> tuple[dict[str, Any], bool]:
        """One step of the optimizer: its record, and whether any process was asked to stop."""
        accelerator, config = self.accelerator, self.config
        piece = self.streams.piece(step)
        labels = max(1, int((piece.labels != IGNORE).sum()))  # of all processes
        rate = config.learning_rate * rate_at(step, config.steps, config.warmup)
        for settings in self.optimizer.param_groups:
            settings["lr"] = rate
        loss = torch.zeros((), device=accelerator.device)
        self.optimizer.zero_grad()
        segments = piece.rows(self.rows).segments()
        for index, segment in enumerate(segments):
            # A segment's part of the loss: by its labels, of which every process knows how many there are in all.
            part = int((segment.labels != IGNORE).sum()) / labels
            last = index == len(segments) - 1
            together = last or accelerator.is_fsdp2
            with nullcontext() if together else accelerator.no_sync(self.objective):
                found, cache = self.objective(segment.to(accelerator.device), self.cache)
                # DDP and FSDP average over processes, so times their number
                accelerator.backward(found * part * accelerator.num_processes)
            self.cache = cache.detach()
            loss = loss + found.detach() * part
        if not config.carry:
            self.cache = None
        told = self._sum(torch.stack([loss, torch.tensor(float(stop.asked), device=loss.device)]))
        if not bool(told[0].isfinite()):
            raise TrainingError(f"the loss is {float(told[0])} at step {step + 1}. The last checkpoint stands")
        norm = whole(accelerator.clip_grad_norm_(self.objective.parameters(), config.clip))
        if not bool(torch.as_tensor(norm).isfinite()):
            raise TrainingError(f"the gradient is {float(norm)} at step {step + 1}. The last checkpoint stands")
        self.optimizer.step()
        read = piece.ids.numel() if piece.mask is None else int(piece.mask.sum())
        record = {"step": step + 1, "loss": float(told[0]), "gradient": float(norm), "rate": rate, "read": read}
        return record, bool(told[1] > 0)

    def _evaluate(self, stop: Stop) -> None:
        """Bits per byte, unless it is asked to stop meanwhile: then it is done when the run goes on."""
        config, accelerator = self.config, self.accelerator
        alone = accelerator.num_processes == 1  # several would have to agree on when
        with gathered(self.objective, layers=True):
            found = evaluate(
                self.model,
                self.corpus.held_out,
                config.rows,
                config.segment if config.carry else config.length,
                carry=bool(config.carry),
                bf16=config.precision == "bf16",
                share=(accelerator.process_index, accelerator.num_processes),
                total=self._sum,
                watch=self.watch,
                stopped=lambda: alone and stop.asked,
            )
        if found is not None:
            self.progress["evaluation"] = {"step": self.progress["step"], **found}
            self._tell(self.progress["evaluation"])

    def _save(self) -> None:
        """A checkpoint, of which all processes have a part."""
        cache: dict[str, Any] | None = None
        if self.cache is not None:
            gather: Callable[[Tensor], Tensor] = self.accelerator.gather
            layers = [{name: gather(x).cpu() for name, x in state.tensors().items()} for state in self.cache.states]
            cache = {"layers": layers, "tokens": self.cache.tokens}
        trainer = {"optimizer": whole(self.optimizer.state_dict()), "random": _random(), "cache": cache}
        with saveable(self.model):
            if self.accelerator.is_main_process:
                save_checkpoint(self.output / LATEST, self.model, trainer, self.progress)
        self.accelerator.wait_for_everyone()

    def _write(self, name: str) -> None:
        """The model, as others read it."""
        with saveable(self.model):
            if self.accelerator.is_main_process:
                self.model.save_pretrained(str(self.output / name))
                if self.corpus.tokenizer is not None:
                    self.corpus.tokenizer.save_pretrained(str(self.output / name))
        self.accelerator.wait_for_everyone()

    def _restore(self) -> dict[str, Any]:
        """Everything as a checkpoint has it; what is to be put into the optimizer is given back."""
        folder = find_checkpoint(self.output / LATEST)
        trainer, before = load_trainer(folder)
        now, then = self.config.told(), before.get("config", {})
        for told in (now, then):
            told.get("data", {}).pop("eval_bytes", None)
        different = [name for name in now if name not in FREE and now[name] != then.get(name)]
        if not different and before.get("text") != self.corpus.fingerprint():
            different = ["the text (files were added, taken away or changed)"]
        if different:
            raise CheckpointError(f"{folder} is of another run: {', '.join(different)} differs")
        load_language_model(folder, self.model)
        if trainer["cache"] is not None:
            kinds = [type(state) for state in self.model.initial_states(1)]
            found = [kind._from_tensors(own) for kind, own in zip(kinds, trainer["cache"]["layers"], strict=True)]
            states = [state.select(self.rows).to(self.accelerator.device) for state in found]
            self.cache = StateCache(states, trainer["cache"]["tokens"])
        self.progress = before
        return trainer

    def _optimizer(self) -> torch.optim.Optimizer:
        own = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in own if p.dim() >= 2], "weight_decay": self.config.weight_decay},
            {"params": [p for p in own if p.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, self.config.learning_rate, (0.9, 0.95))

    def _sum(self, x: Tensor) -> Tensor:
        """Over processes."""
        if self.accelerator.num_processes == 1:
            return x
        found: Tensor = self.accelerator.reduce(x.to(self.accelerator.device))
        return found

    def _tell(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.output / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self.report(record)


def _random() -> dict[str, Any]:
    """Every process draws the same."""
    found: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _set_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _shorten(log: Path, step: int) -> None:
    """Drop what was written after the checkpoint, and a line that was cut off."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text("utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            pass
    new = log.with_suffix(".new")
    new.write_text("".join(kept), "utf-8")
    new.replace(log)
