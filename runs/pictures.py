"""The pictures in docs/memory-pictures.md, of a MemNet trained for a hundred steps (10 s of CPU).

python runs/pictures.py docs/images
"""

import sys
from pathlib import Path

import torch

from memory_titan.evaluation.slots import slot_metrics
from memory_titan.experiments.training import fit
from memory_titan.memory.trace import trace
from memory_titan.models import MemNet, MemNetConfig
from memory_titan.tasks.recall import RecallTask, accuracy
from memory_titan.viz.page import write_page
from memory_titan.viz.slots import draw_access, draw_heads, draw_survival
from memory_titan.viz.slots_record import record_slots
from memory_titan.viz.survival import kaplan_meier

TASK = RecallTask(length=48, pairs=4)
LONG = RecallTask(length=192, pairs=16)


def trained() -> MemNet:
    torch.manual_seed(0)
    config = MemNetConfig(
        vocab_size=TASK.vocabulary, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, window=16,
        bank={"heads": 2, "slots": 32, "top_k": 4, "chunk_size": 16}, tie_word_embeddings=False, shift_labels=False,
        initializer_range=0.02,
    )  # fmt: skip
    model = MemNet(config)
    generator = torch.Generator().manual_seed(1)
    fit(model, lambda step: dict(zip(("input_ids", "labels"), TASK.batch(32, generator), strict=True)), 100, 3e-3)
    return model.eval()


def named(x: torch.Tensor, task: RecallTask) -> tuple[list[str], list[str]]:
    """Tokens of a row, and what kinds they are."""
    tokens, kinds = [], []
    for place, token in enumerate(x.tolist()):
        key, value = token < task.keys, token < task.keys + task.values
        tokens.append(f"k{token}" if key else f"v{token - task.keys}" if value else "·")
        asked = place >= task.body
        kinds.append(("question" if key else "answer") if asked else "key" if key else "value" if value else "filler")
    return tokens, kinds


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = trained()
    for task in (TASK, LONG):
        x, y = task.batch(200, torch.Generator().manual_seed(2))
        with torch.no_grad(), trace(model) as traces:
            right = float(accuracy(model(x).logits.argmax(-1), y))
        print(f"{task.length} tokens, {task.pairs} pairs: {right:.2f} right of {200 * task.pairs}")
        figures = slot_metrics(next(iter(traces.values())))
        print("  " + ", ".join(f"{name} {'-' if value is None else f'{value:.3g}'}" for name, value in figures.items()))

    x, _ = TASK.batch(1, torch.Generator().manual_seed(3))
    (record,) = record_slots(model, lambda: model(x)).values()
    tokens, kinds = named(x[0], TASK)
    draw_access(folder / "slots-access.png", record, "Where a trained MemNet writes and reads, 4 pairs", tokens)
    write_page(folder / "slots.html", record, "Where a trained MemNet writes and reads, 4 pairs", tokens)
    draw_heads(folder / "slots-heads.png", record, kinds, "What each head writes and reads", at="question")

    x, _ = LONG.batch(6, torch.Generator().manual_seed(3))  # one after the other: 96 pairs into 32 slots
    (record,) = record_slots(model, lambda: model(x.reshape(1, -1))).values()
    lives = {f"head {head}": record.lifetimes().of_head(head) for head in range(record.heads)}
    curves = {name: kaplan_meier(life.durations, life.ended) for name, life in lives.items()}
    draw_survival(folder / "slots-survival.png", curves, f"How long 32 slots are held, {record.tokens:,} tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
