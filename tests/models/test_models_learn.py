"""The models learn, alone and under Trainer, with checkpoints and compiled."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from memory_titan.models import (
    RecurrentConfig,
    RecurrentForCausalLM,
    StateCache,
    TransformerConfig,
    TransformerForCausalLM,
)

SIZE = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "window": lambda: TransformerForCausalLM(TransformerConfig(**SIZE, window=8)),
    "full": lambda: TransformerForCausalLM(TransformerConfig(**SIZE)),
    "lstm": lambda: RecurrentForCausalLM(RecurrentConfig(**SIZE)),
    "gru": lambda: RecurrentForCausalLM(RecurrentConfig(**SIZE, cell="gru")),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]()


def test_learns_a_text_by_heart(model):
    """Each token is seen once or twice before, followed by another one: only what came earlier tells them apart."""
    ids = torch.randint(0, 16, (4, 24), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = model.eval()(ids).logits[:, 2:-1].argmax(-1) == ids[:, 3:]
    assert right.float().mean() > 0.95
    out = model.generate(ids[:, :6], max_new_tokens=18, do_sample=False)
    assert (out == ids).float().mean() > 0.9


def test_checkpointing_has_the_same_gradients(model):
    ids, mask = torch.randint(0, 16, (2, 20)), torch.ones(2, 20)
    mask[0, :5] = 0
    grads = []
    for checkpointing in (False, True):
        (model.activation_checkpointing_enable if checkpointing else model.activation_checkpointing_disable)()
        model.train().zero_grad()
        cache = StateCache()  # a stream too: the second call's gradient reaches the first
        model(ids[:, :9], attention_mask=mask[:, :9], past_key_values=cache)
        model(ids[:, 9:], labels=ids[:, 9:], past_key_values=cache).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant=False"):
        model(ids)


@pytest.mark.parametrize("kind", ["window", "lstm"])
def test_compiles(kind):
    model = MODELS[kind]().eval()
    compiled = torch.compile(model, backend="eager")
    ids = torch.randint(0, 16, (2, 20))
    with torch.no_grad():
        expected = model(ids)
        out = compiled(ids)
        torch.testing.assert_close(out.logits, expected.logits)
        again = compiled(ids, past_key_values=out.past_key_values).logits
        torch.testing.assert_close(again, model(ids, past_key_values=expected.past_key_values).logits)


def test_trainer(tmp_path):
    torch.manual_seed(0)
    ids = torch.randint(0, 16, (8, 12))
    data = [{"input_ids": row, "labels": row, "attention_mask": torch.ones(12)} for row in ids]
    options = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 4}
    args = TrainingArguments(
        str(tmp_path), max_steps=30, learning_rate=1e-2, logging_strategy="no", save_strategy="no", **options
    )
    trainer = Trainer(MODELS["window"](), args, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2
    trainer.save_model(str(tmp_path / "model"))
    loaded = TransformerForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)
