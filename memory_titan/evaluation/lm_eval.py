"""lm-evaluation-harness on a grafted model (needs the extra `lm-eval`).

    lm = MemoryLM(model, tokenizer)                     # a language model of the harness, for its simple_evaluate too
    run(lm, ["hop.yaml", "arc_easy"])["results"]

`HFLM(pretrained=model, tokenizer=tokenizer)` of the harness takes a `MemoryModel` as it takes any model. `MemoryLM` is
that with three things more: a context is read once for all its continuations, in segments, and logits are made of
continuations alone, so that length costs no memory; texts begin with the tokenizer's first token, as in training; and
where attention has a window, no text is cut at the length the frozen model was made for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor
from tqdm import tqdm

from memory_titan.graft.model import MemoryModel
from memory_titan.graft.session import MemorySession

_ANY_LENGTH = 1 << 30
_LOGITS = 1024  # tokens whose logits are made at a time


class MemoryLM(HFLM):
    """A grafted model as the harness wants it.

    Args:
        model: with its memory on or off.
        tokenizer: its tokenizer. One without a token for padding is given one.
        batch_size: contexts at a time.
        max_length: tokens that a text is cut to, from its start; None: as many as the model can take, and any number
            where every layer's attention has a window and positions are not learned.
    """

    def __init__(self, model: MemoryModel, tokenizer: Any, batch_size: int = 8, max_length: int | None = None) -> None:
        log = logging.getLogger(HFLM.__module__)
        before = log.level
        log.setLevel(logging.ERROR)  # it warns of every model that is not given by name
        try:
            super().__init__(
                pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, max_length=max_length
            )
        finally:
            log.setLevel(before)
        self.first = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]

    @property
    def max_length(self) -> int:
        """Tokens of a text at the most."""
        graft = self.model.graft
        bounded = None not in graft.windows() and not graft.architecture.learned_positions
        return _ANY_LENGTH if bounded and not self._max_length else super().max_length

    def _with_first(self, ids: Sequence[int]) -> list[int]:
        return list(ids) if list(ids[:1]) == self.first else [*self.first, *ids]

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Prompts to go on from: ids and mask, `[B, T]`, padded on the left."""
        rows = [self._with_first(self.tok_encode(text))[-(left_truncate_len or 0) :] for text in strings]
        ids, mask = self._batch([row[::-1] for row in rows])
        return ids.flip(1), mask.flip(1)

    def _batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, `[B, T]`, padded on the right."""
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.device).long()
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return ids, (torch.arange(width, device=self.device) < lengths[:, None]).long()

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Of each `(texts, context, continuation)`: its log likelihood, and whether greedy decoding says it."""
        model: MemoryModel = self.model
        after: dict[tuple[int, ...], list[int]] = {}  # which requests go on from each context
        cut = 0
        for index, (_, before, said) in enumerate(requests):
            given = self._with_first(before)
            room = max(1, self.max_length + 1 - len(said))
            cut += len(given) > room
            after.setdefault(tuple(given[-room:]), []).append(index)
        if cut:
            logging.getLogger(__name__).warning("%d texts are cut to %d tokens, from the start", cut, self.max_length)
        size = override_bs or int(self.batch_size)
        contexts = sorted(after, key=len, reverse=True)
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="loglikelihood") as bar:
            for begin in range(0, len(contexts), size):
                group = contexts[begin : begin + size]
                session = model.new_session(len(group))
                ids, mask = self._batch([context[:-1] for context in group])
                model.read(ids, session, mask)
                asked = [(row, index) for row, context in enumerate(group) for index in after[context]]
                for start in range(0, len(asked), size):
                    part = asked[start : start + size]
                    on = session.copy()
                    on.batch_select_indices(torch.tensor([row for row, _ in part], device=self.device))
                    said_here = [requests[index][2] for _, index in part]
                    scores = self._score([group[row][-1] for row, _ in part], said_here, on)
                    for (_, index), score in zip(part, scores, strict=True):
                        found[index] = score
                        if requests[index][0] is not None:
                            self.cache_hook.add_partial("loglikelihood", requests[index][0], score)
                    bar.update(len(part))
        return [found[index] for index in range(len(requests))]

    def _score(
        self, last: Sequence[int], said: Sequence[Sequence[int]], session: MemorySession
    ) -> list[tuple[float, bool]]:
        """What the session says to continuations, given the last token before each."""
        model: MemoryModel = self.model
        ids, mask = self._batch([[one, *row[:-1]] for one, row in zip(last, said, strict=True)])
        follows, _ = self._batch(said)
        total = torch.zeros(len(said), dtype=torch.float64)
        wrong = torch.zeros(len(said), dtype=torch.long)
        for begin in range(0, ids.shape[1], _LOGITS):
            here = slice(begin, begin + _LOGITS)
            hidden, _ = model.hidden(ids[:, here], mask[:, here], session)
            real = mask[:, here].bool()
            rows, wanted = real.nonzero()[:, 0].cpu(), follows[:, here][real]
            for piece, row, token in zip(
                hidden[real].split(_LOGITS), rows.split(_LOGITS), wanted.split(_LOGITS), strict=True
            ):
                logits = model.logits(piece).float()
                likely = logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
                total.index_add_(0, row, likely.double().cpu())
                wrong.index_add_(0, row, (logits.argmax(-1) != token).long().cpu())
        return [(float(t), int(w) == 0) for t, w in zip(total, wrong, strict=True)]


def run(
    lm: MemoryLM,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
) -> dict[str, Any]:
    """What the harness's `simple_evaluate` returns; `results` has the metrics of each task.

    Args:
        lm: the model.
        tasks: names of the harness's own tasks, whose data it downloads, or paths of YAML files of tasks.
        limit: use the first so many documents of each task.
        num_fewshot: examples in front of each question; None: as the task says.
        apply_chat_template: ask in the tokenizer's chat form.

    Raises:
        ValueError: there is no such file or task.
    """
    if not tasks:
        raise ValueError("no task was named")
    files = [task for task in tasks if task.endswith((".yaml", ".yml"))]
    if missing := [name for name in files if not Path(name).is_file()]:
        raise ValueError(f"no such file: {missing[0]}")
    manager = TaskManager(include_defaults=len(files) < len(tasks))  # reading all of the harness's own takes long
    known = set(manager.all_tasks)
    if unknown := [name for name in tasks if name not in files and name not in known]:
        raise ValueError(f"lm-eval knows no task {unknown[0]!r}, and a file of one ends in .yaml")
    found: dict[str, Any] = simple_evaluate(
        model=lm,
        tasks=list(tasks),
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        task_manager=manager,
        log_samples=False,
    )
    return found
