"""What of a text is written: statements that are new; not questions, not small talk, not what is known.

sentence -> leans on the one before it? then the two are one text
         -> address, and the odds that it is worth keeping      (one pass of the frozen model)
         -> corrects something held? that goes
         -> the memory's own error at that address               0: known, not written
         -> written
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from torch import Tensor

from memory_titan.hybrid.address import KINDS, Addresser, Looked
from memory_titan.hybrid.correcting import ERASE, amended, is_elliptical
from memory_titan.hybrid.frozen import FrozenModel
from memory_titan.hybrid.memory import RecollectionMemory
from memory_titan.hybrid.records import Reading

KEEP = 0.3  # odds of being worth keeping from which a text is written
_BATCH = 16  # texts that go through the model together
_LATELY = 2  # calls in which what was written is still "just now" to an elliptical correction
_LEANS = re.compile(
    r"^\W*(it|its|it's|it'll|he|he's|she|she's|they|they're|they've|his|her|hers|their|theirs|this|that|that's|these|those|"
    r"the one|the other|which|apparently|also)\b",
    re.IGNORECASE,
)


def leans(sentence: str) -> bool:
    """Whether a sentence begins with a word for something said before ("It is called Pepper."). English only."""
    return bool(_LEANS.search(sentence))


class Learner:
    """Reads texts into a memory.

    Args:
        frozen, addresser, memory: the model, what makes addresses out of its states, and where they lead.
        keep: odds of being worth keeping from which a text is written; 0: all is.
    """

    def __init__(
        self, frozen: FrozenModel, addresser: Addresser, memory: RecollectionMemory, keep: float = KEEP
    ) -> None:
        self.frozen, self.addresser, self.memory, self.keep = frozen, addresser, memory, keep
        self.calls = 0
        self._last: tuple[int, int] | None = None  # call and name of what was written last

    def read(self, stream: Iterable[str], everything: bool = False) -> Iterator[Reading]:
        """Read sentences as they come, in constant space; yields after each text has been dealt with.

        Args:
            stream: sentences.
            everything: write all that is new, as a document is read: small talk and questions too, each sentence by
                itself, and none taken for a correction of what was read before.
        """
        self.calls += 1
        texts = (piece for text in (stream if everything else self._joined(stream)) for piece in self.fit(text))
        while batch := list(islice(texts, _BATCH)):
            ids = [self.encode(text) for text in batch]
            looked = self.addresser.look(ids)
            for index, text in enumerate(batch):
                yield self._take(text, ids[index], looked, index, everything)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as the memory keeps it, in mid-speech: with a space in front."""
        return self.frozen.encode(f" {text}")

    def fit(self, text: str) -> Iterator[str]:
        """The text, cut between words where it is longer than the memory takes."""
        longest = self.memory.config.longest
        words = text.split()
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

    def _joined(self, stream: Iterable[str]) -> Iterator[str]:
        """Sentences, those that lean on the one before ("It is called Pepper.") in one text with it where both fit."""
        held = ""
        for sentence in stream:
            both = f"{held} {sentence}"
            if held and leans(sentence) and len(self.encode(both)) <= self.memory.config.longest:
                held = both
                continue
            if held:
                yield held
            held = sentence
        if held:
            yield held

    def _take(self, text: str, ids: list[int], looked: Looked, index: int, everything: bool) -> Reading:
        address, kinds = looked.addresses[index], looked.kinds[index]
        worth, correcting = float(kinds[0]), float(looked.correcting[index])
        words = [self.frozen.tokenizer.decode([token]) for token in ids]
        before = self._just_now()
        putting_right = correcting > 0 and is_elliptical(text, worth, self.keep)
        near = [] if everything else self.memory.find(address, 1)
        if near and near[0][0] != before and near[0][1] >= ERASE:
            putting_right = False  # it says itself what it is about
        if before is not None and putting_right and not everything:
            old = self.frozen.decode(self.memory.read(before).ids).strip()
            new = amended(self.frozen, old, text)
            if new is not None and new != old:
                tokens = self.encode(new)[: self.memory.config.longest]
                self.memory.forget([before])
                (surprise,) = self._write(self.addresser([tokens]), [tokens])
                words = [self.frozen.tokenizer.decode([token]) for token in tokens]
                return Reading(new, words, surprise, True, worth, "correction", [old])
        if worth < self.keep and not everything:
            surprise = self.memory.surprise(address, ids).tolist()
            reason = "question" if kinds[2:].sum() > kinds[KINDS.index("small talk")] else "small talk"
            return Reading(text, words, surprise, False, worth, "known" if max(surprise) < 0.5 else reason)
        replaced = []
        for slot, cosine in near:
            if cosine >= ERASE and correcting > 0 and max(self.memory.surprise(address, ids).tolist()) >= 0.5:
                replaced.append(self.frozen.decode(self.memory.read(slot).ids).strip())
                self.memory.forget([slot])
        (surprise,) = self._write(address[None], [ids])
        written = max(surprise) >= 0.5
        reason = "correction" if replaced else "new" if written else "known"
        return Reading(text, words, surprise, written, worth, reason, replaced)

    def _write(self, addresses: Tensor, tokens: list[list[int]]) -> list[list[float]]:
        names = self.memory.counts["written"]
        surprises = self.memory.write(addresses, tokens)
        if self.memory.counts["written"] > names:
            self._last = (self.calls, names)
        return [each.tolist() for each in surprises]

    def _just_now(self) -> int | None:
        """The slot written last, if that was within the last few calls."""
        if self._last is None or self.calls - self._last[0] > _LATELY:
            return None
        slots = (self.memory.names == self._last[1]).nonzero()[:, 0]
        return int(slots[0]) if len(slots) else None
