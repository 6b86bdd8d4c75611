"""The trained model of this repository does what its card says, on streams drawn anew, and does it by its memory."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from memory_titan.evaluation.language import niah
from memory_titan.memory.trace import trace
from memory_titan.tasks.token_tasks import from_settings

FOLDER = Path(__file__).parents[2] / "trained" / "needles"


def test_it_knows_what_stood_far_back():
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    task = from_settings(model.config.task)
    assert (FOLDER / "README.md").exists() and max(file.stat().st_size for file in FOLDER.iterdir()) < 1e6
    (cell,) = niah(model, [16_384], samples=4, task=task, seed=4242)
    assert cell.total == 32 and cell.right >= 30
    (without,) = niah(model, [2048], samples=4, task=task, seed=4242, ways=["off"])
    assert without.right <= 6

    x, _ = task.batch(2, torch.Generator().manual_seed(4242))
    with torch.no_grad(), trace(model.eval()) as traces:
        model(x)
    filler = x >= task.keys + task.values
    for calls in traces.values():
        assert (calls[0].step[filler] == 0).float().mean() > 0.999  # closed, not nearly closed
