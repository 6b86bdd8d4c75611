"""The adapters of this repository do what their cards say, on texts drawn anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memory_titan import MemoryModel
from memory_titan.evaluation.answers import evaluate
from memory_titan.hybrid.frozen import ModelError, load_frozen
from memory_titan.tasks.dependency import DependencyTask
from memory_titan.tasks.examples import encode
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.ruler import HuggingFace

FOLDER = Path(__file__).parents[2] / "adapters"
TASKS = {
    "smollm2-135m-hash-hop": HashHopTask(context_len=320, needles=8, questions=8, hash_len=4, depth=0.0),
    "smollm2-135m-two-hops": DependencyTask(context_len=256, chains=6, questions=6, form="chain", depth=0.0),
}


@pytest.fixture(scope="module")
def frozen():
    try:
        frozen = load_frozen("smollm2", device="cpu")
    except ModelError as error:
        pytest.skip(str(error))
    frozen.model.bfloat16()
    return frozen


@pytest.mark.parametrize("name", TASKS)
def test_it_remembers_what_the_window_does_not_see(name, frozen):
    folder = FOLDER / name
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size < 20e6 and (folder / "README.md").exists()
    model = MemoryModel.from_pretrained(frozen.model, str(folder))
    ruler = HuggingFace(frozen.tokenizer, "smollm2")
    drawn = TASKS[name].samples(3, seed=4242, ruler=ruler)
    examples = [example for sample in drawn if (example := encode(sample, frozen.tokenizer))]
    try:
        assert min(min(example.nearest) for example in examples) > model.graft_config.window
        assert evaluate(model, examples)["exact"] >= 0.75
        with model.disable_memory(keep_window=True):
            assert evaluate(model, examples)["exact"] <= 0.1
    finally:
        model.unload()
    assert not any(hasattr(module, "_memory_titan") for module in frozen.model.modules())
    assert torch.isfinite(frozen.model.get_input_embeddings().weight).all()
