"""A small model around the memory learns to recall, with the default rule and gates, in minutes on one core.

x:   . . k1 v1 . k2 v2 . . k3 v3 . | k2  ?  k1  ?  k3  ?        . filler; pairs at random places
y:   - - -  -  - -  -  - - -  -  - | v2  -  v1  -  v3  -
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memory_titan import NeuralMemory

KEYS, VALUES, VOCABULARY = 32, 32, 128


def batch(rows: int, length: int, pairs: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randint(KEYS + VALUES, VOCABULARY, (rows, length), generator=generator)
    y = torch.full((rows, length), -100)
    body = length - 2 * pairs
    for row in range(rows):
        keys = torch.randperm(KEYS, generator=generator)[:pairs]
        values = torch.randint(KEYS, KEYS + VALUES, (pairs,), generator=generator)
        at = (torch.randperm(body // 2 - 1, generator=generator)[:pairs] * 2).sort().values
        order = torch.randperm(pairs, generator=generator)
        x[row, at], x[row, at + 1] = keys, values
        x[row, body::2], y[row, body::2] = keys[order], values[order]
        x[row, body + 1 :: 2] = values[order]
    return x, y


class Recaller(nn.Module):
    """Two layers of memory and MLP, no attention."""

    def __init__(self, dim: int = 64, **options):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, dim)
        nn.init.normal_(self.embed.weight, std=0.5)
        self.memories = nn.ModuleList(NeuralMemory(dim, heads=2, expansion=2, chunk_size=16, **options) for _ in "12")
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(dim, 128), nn.SiLU(), nn.Linear(128, dim)) for _ in "12")
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in "12345")
        self.head = nn.Linear(dim, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in (0, 1):
            x = x + self.memories[layer](self.norms[2 * layer](x))[0]
            x = x + self.mlps[layer](self.norms[2 * layer + 1](x))
        return self.head(self.norms[4](x))


def train(model: Recaller, steps: int, rate: float = 3e-3) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
    for _ in range(steps):
        x, y = batch(32, 48, 4, generator)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)
        assert loss.isfinite()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()


@torch.no_grad()
def accuracy(model: Recaller, length: int, pairs: int) -> float:
    x, y = batch(64, length, pairs, torch.Generator().manual_seed(99))
    return (model(x).argmax(-1) == y)[y >= 0].float().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("gates", ["sigmoid", "hard"])
def test_learns_to_recall(gates):
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    model = Recaller(gates=gates)
    train(model, steps=900)
    trained, longer = accuracy(model, 48, 4), accuracy(model, 96, 4)
    for memory in model.memories:  # the chunk it was trained with is not the only one that it can be read with
        memory.config.chunk_size = 64
    assert trained > 0.9, (trained, longer)
    assert accuracy(model, 48, 4) > 0.85


def test_a_few_steps_lower_the_loss():
    """The quick version: a hundred steps on one batch, through every write, get somewhere."""
    torch.manual_seed(0)
    model = Recaller()
    x, y = batch(8, 48, 4, torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
