"""The pictures in docs/memory-pictures.md, of a MemNet trained for a hundred steps, and a model of neural memories
for 250 (40 s of CPU in all).

python runs/pictures.py docs/images

The pages go to a folder beside, or where a second argument says; with chromium on the PATH, what it shows of them is
one more picture each.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from memory_titan.benchmarks.recaller import Recaller, Stack, train
from memory_titan.evaluation.slots import slot_metrics
from memory_titan.experiments.training import fit
from memory_titan.memory.trace import trace
from memory_titan.models import MemNet, MemNetConfig
from memory_titan.tasks.recall import RecallTask, accuracy
from memory_titan.viz.neural import draw_decay, draw_gates, draw_kinds, draw_surprise, draw_weights
from memory_titan.viz.neural_record import record_neural
from memory_titan.viz.page import write_page
from memory_titan.viz.slots import (
    draw_access,
    draw_content,
    draw_heads,
    draw_read_entropy,
    draw_survival,
    draw_usage,
)
from memory_titan.viz.slots_record import record_slots
from memory_titan.viz.survival import kaplan_meier

TASK = RecallTask(length=48, pairs=4)
LONG = RecallTask(length=192, pairs=16)
TWICE = RecallTask(length=40, pairs=4, repeats=2, values=16)


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


def named(x: Tensor, task: RecallTask) -> tuple[list[str], list[str]]:
    """Tokens of a row, and what kinds they are."""
    tokens, kinds = [], []
    for place, token in enumerate(x.tolist()):
        key, value = token < task.keys, token < task.keys + task.values
        tokens.append(f"k{token}" if key else f"v{token - task.keys}" if value else "·")
        asked = place >= task.body
        kinds.append(("question" if key else "answer") if asked else "key" if key else "value" if value else "filler")
    return tokens, kinds


def slots(folder: Path, pages: Path) -> None:
    model = trained()
    for task in (TASK, LONG):
        x, y = task.batch(200, torch.Generator().manual_seed(2))
        with torch.no_grad(), trace(model) as traces:
            right = float(accuracy(model(x).logits.argmax(-1), y))
        print(f"slots: {task.length} tokens, {task.pairs} pairs: {right:.2f} right of {200 * task.pairs}")
        figures = slot_metrics(next(iter(traces.values())))
        print("  " + ", ".join(f"{name} {'-' if value is None else f'{value:.3g}'}" for name, value in figures.items()))

    x, _ = TASK.batch(1, torch.Generator().manual_seed(3))
    (record,) = record_slots(model, lambda: model(x)).values()
    tokens, kinds = named(x[0], TASK)
    draw_access(folder / "slots-access.png", record, "Where a trained MemNet writes and reads, 4 pairs", tokens)
    draw_read_entropy(folder / "slots-entropy.png", record, "How sharp its reads are, 4 pairs", tokens)
    draw_heads(folder / "slots-heads.png", record, kinds, "What each head writes and reads", at="question")
    write_page(pages / "slots.html", record, "Where a trained MemNet writes and reads, 4 pairs", tokens)

    x, _ = LONG.batch(6, torch.Generator().manual_seed(3))  # one after the other: 96 pairs into 32 slots

    def stream() -> None:
        cache = None
        for part in x.reshape(1, -1).split(48, 1):
            cache = model(part, past_key_values=cache, use_cache=True).past_key_values

    (record,) = record_slots(model, stream).values()
    lives = {f"head {head}": record.lifetimes().of_head(head) for head in range(record.heads)}
    curves = {name: kaplan_meier(life.durations, life.ended) for name, life in lives.items()}
    draw_survival(folder / "slots-survival.png", curves, f"How long 32 slots are held, {record.tokens:,} tokens")
    draw_content(folder / "slots-content.png", record, f"What 32 slots hold, {record.tokens:,} tokens")
    draw_usage(folder / "slots-usage.png", record, f"How 32 slots are used, {record.tokens:,} tokens")


def neural(folder: Path, pages: Path) -> None:
    options = {"heads": 2, "depth": 2, "expansion": 2, "chunk_size": 16}
    stack = Stack(lambda: Recaller(TWICE.vocabulary, 32, **options), [0], together=False)
    train(stack, TWICE, [0.008], 250, rows=16)
    print(f"neural: {stack.recall(TWICE, 2, 200)[0]:.2f} right of {200 * TWICE.pairs}")
    model = Recaller(TWICE.vocabulary, 32, **options)
    model.load_state_dict(stack.one(0), strict=False)  # the buffers are as they were made

    x, _ = TWICE.batch(1, torch.Generator().manual_seed(3))
    tokens, kinds = named(x[0], TWICE)
    record = record_neural(model, lambda: model(x))["memories.0"]
    draw_surprise(folder / "neural-surprise.png", record, "What surprises a neural memory, 4 pairs, twice each", tokens)
    draw_gates(folder / "neural-gates.png", record, "How it writes and forgets, 4 pairs, twice each", tokens)
    draw_kinds(folder / "neural-kinds.png", record, kinds, "What each head makes of kinds of token")
    write_page(pages / "neural.html", record, "What a trained neural memory writes, 4 pairs, twice each", tokens)

    x, _ = TWICE.batch(16, torch.Generator().manual_seed(3))  # one after the other
    record = record_neural(model, lambda: model(x.reshape(1, -1)), every=16)["memories.0"]
    draw_weights(folder / "neural-weights.png", record, f"Its weights over {record.tokens} tokens")
    draw_decay(folder / "neural-decay.png", record, f"How fast it forgets, {record.tokens} tokens")


def photograph(page: Path, picture: Path) -> None:
    """The first screen of a page, as a browser shows it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(f"no chromium: {picture.name} is not made")
        return
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        shot = [f"--screenshot={picture.resolve()}", "--window-size=1080,1120", "--hide-scrollbars"]
        subprocess.run([browser, *options, *shot, page.resolve().as_uri()], check=True, capture_output=True)


def main(folder: Path, pages: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for make in (slots, neural):
        make(folder, pages)
        photograph(pages / f"{make.__name__}.html", folder / f"page-{make.__name__}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "build/pages"))
