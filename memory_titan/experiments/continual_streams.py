"""Five tasks, one after the other: what the experiment on continual learning lets its models read.

permuted        the digits, their pixels in another order in each task; ten classes throughout
split           the digits by classes: 0 and 1, then 2 and 3, ...; one head for all ten, and no word on which task it is
dictionaries    the same words mean something else in each dictionary; an example names its dictionary and the word

The digits are those that come with scikit-learn (1,797 pictures of 8 x 8 pixels, 0 to 16).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STREAMS = ("permuted", "split", "dictionaries")


@dataclass(frozen=True)
class Examples:
    """Some of a task.

    Attributes:
        items: `[n, k]`, uint8: a picture's pixels, or (dictionary, word).
        labels: `[n]`, int64.
    """

    items: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Examples:
        """Those at `index`, in its order."""
        return Examples(self.items[index], self.labels[index])

    def join(self, other: Examples) -> Examples:
        """These, then the others."""
        return Examples(torch.cat([self.items, other.items]), torch.cat([self.labels, other.labels]))


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which they come.

    Attributes:
        train, test: a task each.
        classes: of the labels, all tasks together.
        words: of a dictionary; 0 where items are pictures.
    """

    train: tuple[Examples, ...]
    test: tuple[Examples, ...]
    classes: int
    words: int = 0

    @property
    def bytes_an_example(self) -> int:
        """As a replay buffer keeps it: a byte a pixel or name, and one for the label."""
        return self.train[0].items.shape[1] + 1


def make_stream(
    name: str, seed: int, *, tasks: int = 5, train: int = 800, test: int = 200, words: int = 64, values: int = 16
) -> Stream:
    """The stream of a seed.

    Args:
        name: one of `STREAMS`.
        seed: of the permutations, the order of the classes, the dictionaries, and what is kept for the test.
        tasks: how many; "split" has ten classes to share out, so it takes a divisor of ten.
        train, test: digits to learn from, and those kept for the test; of each task with "permuted", of all together
            with "split". A dictionary is tested on what it taught.
        words, values: of a dictionary, and what a word may mean.

    Raises:
        ValueError: there is no such stream, or it cannot be cut so.
        ImportError: scikit-learn is missing.
    """
    draw = torch.Generator().manual_seed(seed)
    if name == "dictionaries":
        if not 1 <= tasks <= 256 or not 1 <= words <= 256:
            raise ValueError(f"tasks and words must be 1 to 256; got {tasks} and {words}")
        word = torch.arange(words)
        pages = [
            Examples(
                torch.stack([torch.full_like(word, task), word], 1).to(torch.uint8),
                torch.randint(values, (words,), generator=draw),
            )
            for task in range(tasks)
        ]
        return Stream(tuple(pages), tuple(pages), values, words)
    if name not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}; got {name!r}")
    everything = _digits()
    if train < 1 or test < 1 or train + test > len(everything):
        raise ValueError(f"train and test must be at least 1, and {len(everything)} together; got {train} and {test}")
    everything = everything.take(torch.randperm(len(everything), generator=draw))
    held, rest = (everything.take(torch.arange(*ends)) for ends in ((0, test), (test, test + train)))
    if name == "permuted":
        orders = [torch.randperm(64, generator=draw) for _ in range(tasks)]
        learnt, kept = (tuple(Examples(part.items[:, order], part.labels) for order in orders) for part in (rest, held))
        return Stream(learnt, kept, 10)
    if tasks < 1 or 10 % tasks:
        raise ValueError(f"tasks must divide the ten classes of split; got {tasks}")
    groups = torch.randperm(10, generator=draw).view(tasks, -1)
    learnt, kept = (
        tuple(part.take(torch.isin(part.labels, group).nonzero()[:, 0]) for group in groups) for part in (rest, held)
    )
    return Stream(learnt, kept, 10)


def as_numbers(items: Tensor) -> Tensor:
    """Pictures `[n, 64]`, uint8, to float32 of mean 0 and variance 1 each: nothing is known of other pictures."""
    pixels = items.float()
    pixels = pixels - pixels.mean(-1, keepdim=True)
    return F.normalize(pixels, dim=-1) * pixels.shape[-1] ** 0.5


def _digits() -> Examples:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install memory-titan[experiments]") from error
    pictures, labels = load_digits(return_X_y=True)
    return Examples(torch.from_numpy(pictures).to(torch.uint8), torch.from_numpy(labels).long())
