"""A training run's records as TensorBoard scalars; at every evaluation also what gates and memories did in it.

train/loss, train_exact, gradient, rate, opened, written      every step
evaluation/exact, exact_tokens                                every evaluation
gate_mean/layer_26, gate_max/layer_26                         over the tokens that the evaluation read
memory_norm/layer_26                                          where its reading came to a segment's end
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from memory_titan.graft.branch import MemoryBranch
from memory_titan.graft.model import MemoryModel

Log = TypeVar("Log", bound="ScalarLog")


def summary_writer() -> Any:
    """Torch's `SummaryWriter`.

    Raises:
        ValueError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        missing = error.name or "tensorboard"
        raise ValueError(
            f"a log for TensorBoard needs more ({missing} is missing): pip install 'memory-titan[tensorboard]'"
        ) from None
    return SummaryWriter


class ScalarLog:
    """Scalars in event files; a context manager that ends the file. Of several processes only the first writes.

    Args:
        folder: for the event files; of one run. It may hold those of the same run before it was resumed.
        step: where the run goes on from. What was written of later steps is not shown any more.

    Raises:
        ValueError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        writer = summary_writer()
        self._make = lambda: writer(str(folder), purge_step=step + 1)
        self._writer: Any = None

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write scalars by their names."""
        if not _is_first():
            return
        if self._writer is None:  # not before the first record: only then is it known which process this is
            self._writer = self._make()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def __enter__(self: Log) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()


class TensorBoardLog(ScalarLog):
    """Writes what `train` reports of a graft; a `report` for it.

        with TensorBoardLog(folder, model) as log:
            train(model, ..., report=log)

    Args:
        folder, step: see `ScalarLog`.
        model: what is trained; its branches are watched while it is in eval mode.
    """

    def __init__(self, folder: Path, model: MemoryModel, step: int = 0) -> None:
        super().__init__(folder, step)
        self._watched = {layer: _Watched(branch) for layer, branch in model.branches.items()}

    def __call__(self, record: dict[str, Any]) -> None:
        """Write a record of a step, or of an evaluation: that has `exact`."""
        evaluated = "exact" in record
        found = {f"{'evaluation' if evaluated else 'train'}/{k}": v for k, v in record.items() if k != "step"}
        if evaluated:
            for layer, watched in self._watched.items():
                found |= {f"{what}/layer_{layer}": value for what, value in watched.take().items()}
        self.write(record["step"], found)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for watched in self._watched.values():
            watched.handle.remove()
        super().__exit__(kind, error, at)


class _Watched:
    """What a branch does in eval mode, summed up."""

    def __init__(self, branch: nn.Module) -> None:
        self._reset()
        self.handle = branch.register_forward_hook(self._look, with_kwargs=True)

    def _reset(self) -> None:
        self.sum = self.tokens = self.norms = self.rows = 0.0
        self.most = -float("inf")

    def take(self) -> dict[str, float]:
        """Mean and largest gate, mean norm of a row's memory; nothing if nothing was read."""
        found = {"gate_mean": self.sum / max(1.0, self.tokens), "gate_max": self.most}
        found |= {"memory_norm": self.norms / max(1.0, self.rows)}
        read = self.tokens > 0
        self._reset()
        return found if read else {}

    @torch.no_grad()
    def _look(self, branch: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]) -> None:
        if branch.training:
            return
        assert isinstance(branch, MemoryBranch)
        gate, _, state = output
        mask = args[3] if len(args) > 3 else kwargs.get("mask")
        seen: Tensor = gate[..., 0].detach() if mask is None else gate[..., 0].detach()[mask]
        if not seen.numel():
            return
        self.sum, self.tokens = self.sum + float(seen.sum()), self.tokens + seen.numel()
        self.most = max(self.most, float(seen.max()))
        squares = sum(w.float().square().flatten(1).sum(1) for w in branch.memory.present_weights(state))
        self.norms, self.rows = self.norms + float(torch.as_tensor(squares).sqrt().sum()), self.rows + len(gate)


def _is_first() -> bool:
    """Whether this process is the first of all."""
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not initialized or torch.distributed.get_rank() == 0
