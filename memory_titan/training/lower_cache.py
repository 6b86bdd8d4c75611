"""What enters the first grafted layer, of all examples, computed once and kept on disk.

Where a graft starts high up, most of a training step is spent in frozen layers whose output is the same in every epoch,
for every seed and every setting of the graft above them. One file a set of examples, mapped into memory:

    FOLDER/lower-<digest>.bin    the rows of all tokens, one example after the other, in the frozen model's dtype
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from memory_titan.graft import adapter
from memory_titan.graft.lower import check_lower, lower_states
from memory_titan.graft.model import MemoryModel
from memory_titan.tasks.examples import Example, collate

_TOGETHER = 4096  # tokens read at a time, about


def with_lower(
    model: MemoryModel, examples: Sequence[Example], folder: Path, advance: Callable[[int], None] = lambda n: None
) -> list[Example]:
    """The examples with what the model's lower layers make of them, from the folder's file, which is made if need be.

    Args:
        model: grafted; its window, sinks and dtype count, the graft itself does not.
        examples: of any lengths.
        folder: for the file. It takes tokens x hidden size x bytes of the dtype.
        advance: called with the number of examples done, as they are computed.

    Raises:
        ValueError: the model's LoRA changes the layers below the first grafted one.
    """
    check_lower(model)
    if not examples:
        return []
    hidden = model.base_model.config.get_text_config().hidden_size
    rows = sum(len(example.ids) for example in examples)
    path = folder / f"lower-{_digest(model, examples)}.bin"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}.new")
        _fill(_mapped(new, rows, hidden, model.dtype), model, examples, advance)
        os.replace(new, path)
    whole = _mapped(path, rows, hidden, model.dtype)
    found, begin = [], 0
    for example in examples:
        end = begin + len(example.ids)
        found.append(replace(example, lower=whole[begin:end]))
        begin = end
    return found


def _mapped(path: Path, rows: int, hidden: int, dtype: torch.dtype) -> Tensor:
    """`[rows, hidden]`, the file itself."""
    return torch.from_file(str(path), shared=True, size=rows * hidden, dtype=dtype).view(rows, hidden)


def _fill(whole: Tensor, model: MemoryModel, examples: Sequence[Example], advance: Callable[[int], None]) -> None:
    begins = [0]
    for example in examples:
        begins.append(begins[-1] + len(example.ids))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    while order:
        size = max(1, _TOGETHER // len(examples[order[0]].ids))
        group, order = order[:size], order[size:]
        batch = collate([examples[i] for i in group])
        mask = batch.mask.to(model.device)
        states = lower_states(model, batch.ids.to(model.device), None if bool(mask.all()) else mask).cpu()
        for row, i in enumerate(group):
            whole[begins[i] : begins[i + 1]] = states[row, : len(examples[i].ids)]
        advance(len(group))


def _digest(model: MemoryModel, examples: Sequence[Example]) -> str:
    base = {k: v for k, v in adapter.fingerprint(model).items() if k not in ("grafted", "chunk_size")}
    config = model.graft_config
    sinks: int | list[int] = config.sinks
    if config.sink_distance is not None:
        sinks = [config.sinks, config.sink_distance]
    facts = [base, config.window, sinks, model.graft.layers[0], str(model.dtype)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for example in examples:
        digest.update(len(example.ids).to_bytes(8, "little") + example.ids.numpy().tobytes())
    return digest.hexdigest()[:20]
