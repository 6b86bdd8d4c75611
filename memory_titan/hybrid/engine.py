"""A frozen model and its memory: read, ask, forget, save.

engine = HybridEngine.from_pretrained("smollm2", memory="notes.mem")
engine.read("The access code of the north lab is 7-3-1-9.")
engine.ask("What do I type in to get into the north lab?").text
engine.save()
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

from memory_titan.hybrid.address import Addresser
from memory_titan.hybrid.answer import answer_bare, answer_from
from memory_titan.hybrid.content import Recalled
from memory_titan.hybrid.evidence import weigh
from memory_titan.hybrid.frozen import DEFAULT_MODEL, FrozenModel, load_frozen
from memory_titan.hybrid.memory import RecollectionConfig, RecollectionMemory
from memory_titan.hybrid.sentences import sentences

THRESHOLD = 11.0  # nats of evidence from which the memory speaks (docs/log.md)
CANDIDATES = 8  # recollections that are read and weighed a question
_NEAR, _FAR = 3.0, 2  # a second recollection goes along if its evidence is within 3 nats of the first's; 2 at most
_FAMILIAR, _LIKELY = 0.28, 8.0  # to count as about some words: cosine, and nats
_BATCH = 16  # sentences that go through the model together


@dataclass
class Reading:
    """What reading one sentence did.

    Attributes:
        text: the sentence.
        tokens: the text of each token.
        surprise: `[tokens]`, the memory's own error before it wrote: 1 for what is new, 0 for what it knows.
        written: whether it was surprising enough to be written.
    """

    text: str
    tokens: list[str]
    surprise: list[float]
    written: bool


@dataclass
class Recollection:
    """One text that the weights gave back to a question.

    Attributes:
        text: the soft prompts, decoded to their nearest tokens.
        familiarity: cosine of the question's address and the slot's.
        evidence: nats by which it explains the question (see `evidence.py`).
        clarity: 0 to 1, how sharply the tokens came out of the weights.
        slot: where it is kept.
    """

    text: str
    familiarity: float
    evidence: float
    clarity: float
    slot: int


@dataclass
class Answer:
    """What `ask` returns.

    Attributes:
        text: the model's answer.
        spoke: whether the memory spoke; if not, this is the bare model's answer, word for word.
        used: the recollections that went into the prompt.
        considered: all that were read and weighed, best first.
    """

    text: str
    spoke: bool
    used: list[Recollection]
    considered: list[Recollection]

    @property
    def familiarity(self) -> float:
        """Of the question: the largest cosine with any address; 0 for an empty memory."""
        return max((each.familiarity for each in self.considered), default=0.0)


class HybridEngine:
    """A frozen language model that remembers what it read, in weights of a fixed size beside it.

    Args:
        frozen: the model (`load_frozen`).
        memory: path of a memory file; loaded if it exists, and where `save` writes. None: in RAM only.
        config: sizes of a new memory.
        threshold: nats of evidence from which the memory speaks.

    Raises:
        MemoryFileError: the file is not a memory, or one of another model.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        memory: str | os.PathLike[str] | None = None,
        config: RecollectionConfig | None = None,
        threshold: float = THRESHOLD,
    ) -> None:
        self.frozen, self.threshold = frozen, threshold
        self.addresser = Addresser(frozen)
        self.path = None if memory is None else Path(memory)
        embeddings = frozen.embeddings.detach().float().cpu()
        identity = {**frozen.identity, "addresses": self.addresser.fingerprint}
        if self.path is not None and self.path.exists():
            self.memory = RecollectionMemory.load_file(self.path, self.addresser.dim, embeddings, identity)
        else:
            self.memory = RecollectionMemory(config or RecollectionConfig(), self.addresser.dim, embeddings, identity)

    @classmethod
    def from_pretrained(
        cls,
        model: str = DEFAULT_MODEL,
        memory: str | os.PathLike[str] | None = None,
        config: RecollectionConfig | None = None,
        threshold: float = THRESHOLD,
        device: str = "auto",
    ) -> HybridEngine:
        """`load_frozen(model, device)` and a memory beside it.

        Raises:
            ModelError: the model cannot be loaded.
            MemoryFileError: the memory file cannot be used.
        """
        return cls(load_frozen(model, device), memory, config, threshold)

    def read(self, text: str | Iterable[str]) -> list[Reading]:
        """Read a text, or pieces of one; only the memory's weights change. Returns a `Reading` a sentence."""
        return list(self.read_stream(sentences(text)))

    def read_stream(self, stream: Iterable[str]) -> Iterator[Reading]:
        """Read sentences as they come, in constant space; yields after each has been written."""
        pieces = (piece for sentence in stream for piece in self._fit(sentence))
        while batch := list(islice(pieces, _BATCH)):
            ids = [self.encode(text) for text in batch]
            surprises = self.memory.write(self.addresser(ids), ids)
            for text, tokens, surprise in zip(batch, ids, surprises, strict=True):
                words = [self.frozen.tokenizer.decode([token]) for token in tokens]
                yield Reading(text, words, surprise.tolist(), bool(surprise.max() >= 0.5))

    def recall(self, question: str) -> list[Recollection]:
        """What the weights give back to a question, weighed, best first. Changes nothing."""
        return [recollection for recollection, _ in self._recall(question, CANDIDATES)]

    def ask(self, question: str, use_memory: bool = True, max_tokens: int = 64) -> Answer:
        """Answer with an empty context: from the memory if it has something to say, else as the bare model would.

        Raises:
            ValueError: the question is empty.
        """
        question = " ".join(question.split())
        if not question:
            raise ValueError("the question is empty")
        found = self._recall(question, CANDIDATES) if use_memory else []
        best = found[0][0].evidence if found else 0.0
        used = [each for each in found if each[0].evidence >= max(self.threshold, best - _NEAR)][:_FAR]
        considered = [recollection for recollection, _ in found]
        if not used:
            return Answer(answer_bare(self.frozen, question, max_tokens), False, [], considered)
        for recollection, _ in used:
            self.memory.touch(recollection.slot)
        text = answer_from(self.frozen, question, [recalled for _, recalled in used], max_tokens)
        return Answer(text, True, [recollection for recollection, _ in used], considered)

    def find(self, words: str, most: int = 32) -> list[Recollection]:
        """What is held about some words, to be shown or forgotten: sure of each rather than complete.

        Short phrases are made likelier by all sorts of sentences, so evidence alone is not enough here: a recollection
        must be familiar too, and not far behind the best. Where none is, one may stand out by evidence alone.

        Raises:
            ValueError: there are no words.
        """
        words = " ".join(words.split())
        if not words:
            raise ValueError("nothing was named")
        found = [each for each, _ in self._recall(words, most)]
        floor = max(_FAMILIAR, 0.6 * max((each.familiarity for each in found), default=0.0))
        sure = [each for each in found if each.familiarity >= floor and each.evidence >= _LIKELY]
        if sure:
            return [each for each in sure if each.evidence >= 0.5 * sure[0].evidence]
        best, second = ([*found, None, None])[:2]
        lead = best.evidence - second.evidence if best and second else _LIKELY
        most_familiar = best is not None and all(each.familiarity <= best.familiarity for each in found)
        return [best] if best and most_familiar and best.evidence >= self.threshold and lead >= _LIKELY else []

    def forget(self, recollections: Iterable[Recollection]) -> None:
        """Erase from the weights what `find` or `recall` returned."""
        self.memory.forget(sorted({each.slot for each in recollections}))

    def model_surprise(self, text: str) -> tuple[list[str], Tensor]:
        """How the bare model takes a text: its tokens, and -log p of each given those before, in nats."""
        ids = self.encode(text)
        (scores,) = self.frozen.log_likelihood([[self.frozen.first_token]], [ids])
        return [self.frozen.tokenizer.decode([token]) for token in ids], -scores

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write the memory to its file, or to `path`; whole or not at all.

        Raises:
            ValueError: there is no path.
            OSError: it cannot be written.
        """
        target = self.path if path is None else path
        if target is None:
            raise ValueError("this memory has no file; say where: save(path)")
        self.memory.save(target)

    def _recall(self, question: str, count: int) -> list[tuple[Recollection, Recalled]]:
        address = self.addresser([self.encode(question)])[0]
        near = self.memory.find(address, count)
        read = [self.memory.read(slot) for slot, _ in near]
        weights = weigh(self.frozen, question, [each.ids for each in read])
        found = [
            (Recollection(self.frozen.decode(each.ids).strip(), cosine, weight, each.clarity, slot), each)
            for (slot, cosine), each, weight in zip(near, read, weights, strict=True)
        ]
        return sorted(found, key=lambda pair: -pair[0].evidence)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as the memory keeps it, in mid-speech: with a space in front."""
        return self.frozen.encode(f" {text}")

    def _fit(self, sentence: str) -> Iterator[str]:
        """The sentence, cut between words where it is longer than the memory takes."""
        longest = self.memory.config.longest
        words = sentence.split()
        while words:
            count = len(words)
            while count > 1 and len(self.encode(" ".join(words[:count]))) > longest:
                count = min(count - 1, max(1, count * longest // len(self.encode(" ".join(words[:count])))))
            piece = " ".join(words[:count])
            if len(self.encode(piece)) > longest and len(piece) > 1:  # one endless word
                half = len(piece) // 2
                words[:1] = [piece[:half], piece[half:]]
                continue
            yield piece
            words = words[count:]
