"""Where a sentence is kept and how a question finds it: an address out of the frozen model's hidden states.

    address = [ normalise( sum_t idf(token_t) * normalise(Z_l (h_t^l - mean_l)) ) for three layers l ]

The hidden states are whitened by statistics of ordinary text (Z_l = (C_l + lambda)^(-1/2)), so that what every sentence
has in common does not count; tokens count by how rare they are in ordinary text. Of 60 facts and 302 ordinary
sentences, a question in other words finds its fact first 49 times and among the first eight 59 times; a plain mean
of standardised states 25 and 39 times (`docs/log.md`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.hybrid.frozen import FrozenModel, cache_folder
from memory_titan.memory.files import MemoryFileError, load_tensors, save_tensors

_DEPTHS = (1 / 15, 1 / 5, 2 / 5)  # of the model's layers: 2, 6 and 12 of 30
_SHRINK = 0.05  # lambda, in mean eigenvalues
_VERSION = 1


class Addresser:
    """Turns texts into addresses. Its statistics are taken once a model and kept in the user's cache.

    Attributes:
        dim: width of an address.
        fingerprint: of the calibration text and method; addresses of different fingerprints do not compare.
    """

    def __init__(self, frozen: FrozenModel) -> None:
        self.frozen = frozen
        count = frozen.identity["layers"]
        self.layers = sorted({max(1, round(depth * count)) for depth in _DEPTHS})
        ordinary = _lines("ordinary.txt") + _lines("questions.txt")
        self.fingerprint = hashlib.sha256(
            repr((_VERSION, _DEPTHS, _SHRINK, ordinary, frozen.identity["fingerprint"])).encode()
        ).hexdigest()[:16]
        self.dim = len(self.layers) * frozen.identity["hidden_size"]
        path = cache_folder() / f"addresses-{self.fingerprint}.safetensors"
        try:
            tensors, _ = load_tensors(path)
        except (OSError, MemoryFileError):
            tensors = self._calibrate(ordinary)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, tensors, {"format": "memory-titan addresses", "version": _VERSION})
        self.mean, self.whiten, self.idf = tensors["mean"], tensors["whiten"], tensors["idf"]

    def __call__(self, ids: list[list[int]]) -> Tensor:
        """`[texts, dim]`, float32, of length 1: the address of each list of token ids."""
        addresses = []
        for tokens, states in zip(ids, self.frozen.hidden_states(ids, self.layers), strict=True):
            states = F.normalize((states - self.mean[:, None]) @ self.whiten, dim=-1)
            weights = self.idf[torch.tensor(tokens, dtype=torch.long)]
            pooled = (weights[:, None] * states).sum(1)  # [layers, hidden]
            addresses.append(F.normalize(pooled, dim=-1).flatten() / math.sqrt(len(self.layers)))
        return torch.stack(addresses)

    def _calibrate(self, texts: list[str]) -> dict[str, Tensor]:
        ids = [self.frozen.encode(f" {text}") for text in texts]
        states: list[Tensor] = []
        for begin in range(0, len(ids), 32):
            states += self.frozen.hidden_states(ids[begin : begin + 32], self.layers)
        every = torch.cat(states, 1).double()  # [layers, tokens, hidden]
        mean = every.mean(1)
        centred = every - mean[:, None]
        values, vectors = torch.linalg.eigh(centred.mT @ centred / every.shape[1])
        values = values.clamp(min=0)
        values = (values + _SHRINK * values.mean(-1, keepdim=True)).rsqrt()
        whiten = vectors @ (values[..., None] * vectors.mT)
        seen = Counter(token for tokens in ids for token in set(tokens))
        counts = torch.tensor([seen[token] for token in range(self.frozen.identity["vocabulary"])])
        idf = torch.log((len(ids) + 1) / (counts + 1))
        return {"mean": mean.float(), "whiten": whiten.float(), "idf": idf.float()}


def _lines(name: str) -> list[str]:
    text = resources.files("memory_titan.hybrid").joinpath("data", name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
