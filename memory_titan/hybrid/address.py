"""Where a text is kept, how a question finds it, and whether it is one to keep: out of one pass of the frozen model.

    This sentence: <text> means in one word: "
                   ------                     -
    layers l of the text's tokens:   p_l = normalise( sum_t idf(token_t) normalise(Z_l (h_t^l - mean_l)) )
    the last layer at the quote:     e   = normalise( Z_e (h - mean_e) )
    address = normalise( [ normalise([p_1, p_2]), e ] )

The first half says which words a text has, the second what it is about: the quote is where the model would name it (the
prompt of PromptEOL, Jiang et al. 2023, arXiv 2307.16645). Hidden states are whitened by statistics of ordinary text
(Z = (C + lambda)^(-1/2)), so that what every sentence has in common does not count; tokens count by how rare they are.

Four kinds of texts lie apart in this space, by a line each (logistic regression on conversations): statements worth
keeping, small talk, private and general questions. One more line tells statements that correct an earlier one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_titan.hybrid.frozen import FrozenModel, cache_folder
from memory_titan.memory.files import MemoryFileError, load_tensors, save_tensors

_BEFORE, _AFTER = "This sentence:", ' means in one word: "'
_DEPTHS = (4 / 15, 4 / 5)  # of the model's layers: 8 and 24 of 30
_SHRINK, _SHRINK_MEANING = 0.05, 1.0  # lambda, in mean eigenvalues: thousands of tokens, and hundreds of texts
_PENALTY = 1e-4  # on the squared weights of the lines
_BATCH = 16
_VERSION = 2
KINDS = ("keep", "small talk", "question", "general")  # questions about private things, and about the world


@dataclass
class Looked:
    """What one pass says of some texts.

    Attributes:
        addresses: `[texts, dim]`, float32, of length 1.
        kinds: `[texts, 4]`, the probabilities of `KINDS`.
        correcting: `[texts]`, the log odds that a text corrects something said before.
    """

    addresses: Tensor
    kinds: Tensor
    correcting: Tensor


class Addresser:
    """Turns texts into addresses, and judges them. Calibrated once a model; the result is kept in the user's cache.

    Attributes:
        dim: width of an address.
        fingerprint: of the calibration's texts and method; addresses of different fingerprints do not compare.
    """

    def __init__(self, frozen: FrozenModel) -> None:
        self.frozen = frozen
        count = frozen.identity["layers"]
        self.layers = [*sorted({max(1, round(depth * count)) for depth in _DEPTHS}), count]
        self.before, self.after = frozen.encode(_BEFORE), frozen.encode(_AFTER)
        texts = calibration_texts()
        self.fingerprint = hashlib.sha256(
            repr((_VERSION, _BEFORE, _AFTER, _DEPTHS, texts, frozen.identity["fingerprint"])).encode()
        ).hexdigest()[:16]
        self.dim = len(self.layers) * frozen.identity["hidden_size"]
        name = f"addresses-{self.fingerprint}.safetensors"
        tensors = _load(Path(str(resources.files("memory_titan.hybrid").joinpath("data", name)))) or _load(
            cache_folder() / name
        )
        if tensors is None:
            tensors = {key: value.half() for key, value in self._calibrate(texts).items()}
            path = cache_folder() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, tensors, {"format": "memory-titan addresses", "version": _VERSION})
        self._take(tensors)

    def __call__(self, ids: list[list[int]]) -> Tensor:
        """`[texts, dim]`, float32, of length 1: the address of each list of token ids."""
        return self.look(ids).addresses

    def look(self, ids: list[list[int]]) -> Looked:
        """The address and the kind of each list of token ids, each text by itself."""
        words, meanings = self._states(ids)
        return self.judge(self._addresses(ids, words, meanings))

    def judge(self, addresses: Tensor) -> Looked:
        """What addresses `[texts, dim]` say of their texts."""
        lines = addresses @ self.lines[:-1] + self.lines[-1]
        return Looked(addresses, lines[:, :-1].softmax(-1), lines[:, -1])

    def _states(self, ids: list[list[int]]) -> tuple[list[Tensor], Tensor]:
        """`[layers - 1, tokens, hidden]` of each text, and `[texts, hidden]` at the quotes."""
        start = len(self.before)
        whole = [[*self.before, *tokens, *self.after] for tokens in ids]
        states = self.frozen.hidden_states(whole, self.layers)
        words = [each[:-1, start : start + len(tokens)] for each, tokens in zip(states, ids, strict=True)]
        return words, torch.stack([each[-1, -1] for each in states])

    def _addresses(self, ids: list[list[int]], words: list[Tensor], meanings: Tensor) -> Tensor:
        pooled = []
        for tokens, states in zip(ids, words, strict=True):
            white = F.normalize((states - self.mean[:, None]) @ self.whiten, dim=-1)
            weights = self.idf[torch.tensor(tokens, dtype=torch.long)]
            each = (weights[:, None] * white).sum(1)  # [layers - 1, hidden]
            pooled.append(F.normalize(each, dim=-1).flatten() / math.sqrt(len(each)))
        meaning = F.normalize((meanings - self.mean_meaning) @ self.whiten_meaning, dim=-1)
        return torch.cat([torch.stack(pooled), meaning], -1) / math.sqrt(2)

    def _take(self, tensors: dict[str, Tensor]) -> None:
        self.mean, self.whiten, self.idf = (tensors[name].float() for name in ("mean", "whiten", "idf"))
        self.mean_meaning, self.whiten_meaning = (tensors[f"{name}_meaning"].float() for name in ("mean", "whiten"))
        self.lines = tensors["lines"].float() if "lines" in tensors else torch.zeros(self.dim + 1, len(KINDS) + 1)

    def _calibrate(self, texts: dict[str, list[str]]) -> dict[str, Tensor]:
        """Statistics of ordinary text, then the lines between the kinds."""
        ordinary = texts["ordinary"]
        ids = [self.frozen.encode(f" {text}") for text in ordinary]
        words, meanings = self._batches(ids)
        every = torch.cat(words, 1).double()  # [layers - 1, tokens, hidden]
        mean, whiten = _whitening(every, _SHRINK)
        mean_meaning, whiten_meaning = _whitening(meanings.double()[None], _SHRINK_MEANING)
        seen = Counter(token for tokens in ids for token in set(tokens))
        counts = torch.tensor([seen[token] for token in range(self.frozen.identity["vocabulary"])])
        tensors = {
            "mean": mean,
            "whiten": whiten,
            "idf": torch.log((len(ids) + 1) / (counts + 1)),
            "mean_meaning": mean_meaning[0],
            "whiten_meaning": whiten_meaning[0],
        }
        self._take({name: tensor.half() for name, tensor in tensors.items()})
        groups: list[Tensor] = []
        for kind in (*KINDS, "correction"):
            ids = [self.frozen.encode(f" {text}") for text in texts[kind]]
            groups.append(self._addresses(ids, *self._batches(ids)))
        *four, corrections = groups
        keep = four[0]
        four[0] = torch.cat([keep, corrections])
        kinds = torch.cat([torch.full((len(group),), index) for index, group in enumerate(four)])
        lines = _lines(torch.cat(four), kinds)
        two = _lines(torch.cat([keep, corrections]), torch.tensor([0] * len(keep) + [1] * len(corrections)))
        tensors["lines"] = torch.cat([lines, two[:, 1:] - two[:, :1]], -1)
        return {name: tensor.float() for name, tensor in tensors.items()}

    def _batches(self, ids: list[list[int]]) -> tuple[list[Tensor], Tensor]:
        """`_states` of many texts, those of a length together."""
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        words: list[Tensor] = [torch.empty(0)] * len(ids)
        meanings: list[Tensor] = [torch.empty(0)] * len(ids)
        for begin in range(0, len(ids), _BATCH):
            batch = order[begin : begin + _BATCH]
            for index, word, meaning in zip(batch, *self._states([ids[each] for each in batch]), strict=True):
                words[index], meanings[index] = word, meaning
        return words, torch.stack(meanings)


def calibration_texts() -> dict[str, list[str]]:
    """What a model is calibrated on: "ordinary" text, and texts of each of `KINDS` and "correction".

    Of the conversations every second fact is taken as it was told, and of the others the question.
    """
    rows = [json.loads(line) for line in _text("talk_dev.jsonl").splitlines() if line.strip()]
    facts = [row for row in rows if row["kind"] == "fact"]
    corrections = [row for row in rows if row["kind"] == "correction"]
    return {
        "ordinary": _text("ordinary.txt").split("\n") + _text("questions.txt").split("\n"),
        "keep": [row["told"] for row in facts[::2]] + [row["told"] for row in corrections],
        "small talk": [row["told"] for row in rows if row["kind"] == "small talk" and row["about"] != "general"],
        "question": [row["question"] for row in [*facts[1::2], *corrections]]
        + [row["question"] for row in rows if row["kind"] == "unknown"],
        "general": [row["question"] for row in rows if row["kind"] == "general"]
        + [row["told"] for row in rows if row["kind"] == "small talk" and row["about"] == "general"],
        "correction": [row["correction"] for row in corrections],
    }


def _whitening(states: Tensor, shrink: float) -> tuple[Tensor, Tensor]:
    """Mean `[groups, hidden]` and (C + lambda)^(-1/2) `[groups, hidden, hidden]` of `[groups, states, hidden]`."""
    mean = states.mean(1)
    centred = states - mean[:, None]
    values, vectors = torch.linalg.eigh(centred.mT @ centred / states.shape[1])
    values = values.clamp(min=0)
    values = (values + shrink * values.mean(-1, keepdim=True)).rsqrt()
    return mean.float(), (vectors @ (values[..., None] * vectors.mT)).float()


def _lines(addresses: Tensor, kinds: Tensor) -> Tensor:
    """`[dim + 1, kinds]`: logistic regression, each kind with the same weight; the last row is the offset."""
    count = int(kinds.max()) + 1
    lines = torch.zeros(addresses.shape[1] + 1, count, requires_grad=True)
    balance = len(kinds) / count / torch.bincount(kinds, minlength=count).float()
    optimizer = torch.optim.LBFGS([lines], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(addresses @ lines[:-1] + lines[-1], kinds, weight=balance)
        value = value + _PENALTY * lines[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return lines.detach()


def _load(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_tensors(path)[0]
    except (OSError, MemoryFileError):
        return None


def _text(name: str) -> str:
    return resources.files("memory_titan.hybrid").joinpath("data", name).read_text(encoding="utf-8").strip()
