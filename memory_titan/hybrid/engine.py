"""A frozen model and its memory: read, chat, ask, forget, undo, save.

engine = HybridEngine.from_pretrained("smollm2", memory="notes.mem")
engine.read("The access code of the north lab is 7-3-1-9.")
engine.ask("What do I type in to get into the north lab?").text
for piece in engine.chat("And what is my sister's dog called?"): ...
engine.save()
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from memory_titan.hybrid.address import KINDS, Addresser
from memory_titan.hybrid.answer import answer_bare, answer_from, speak_from
from memory_titan.hybrid.content import Recalled
from memory_titan.hybrid.correcting import AS_MUCH, DOUBT, ERASE, IN_REACH, RING
from memory_titan.hybrid.evidence import weigh
from memory_titan.hybrid.frozen import DEFAULT_MODEL, FrozenModel, load_frozen
from memory_titan.hybrid.learning import KEEP, Learner, leans
from memory_titan.hybrid.memory import RecollectionConfig, RecollectionMemory
from memory_titan.hybrid.records import Answer, Capacity, Reading, Recollection, Turn
from memory_titan.hybrid.sentences import sentences
from memory_titan.hybrid.speaking import Kept, Said, speak

__all__ = ["THRESHOLD", "Answer", "Capacity", "HybridEngine", "Reading", "Recollection", "Turn"]

THRESHOLD = 10.0  # nats of evidence from which the memory speaks (docs/log.md)
CANDIDATES = 8  # recollections that are read and weighed a question
_PRIVATE, _GENERAL = 5.0, 15.0  # nats: how much less evidence a private question needs, and more a general one
_NEAR, _FAR = 3.0, 2  # a second recollection goes along if its evidence is within 3 nats of the first's; 2 at most
_FAMILIAR, _LIKELY = 0.28, 8.0  # to count as about some words: cosine, and nats
_QUOTED = 64  # tokens of an answer from memory
_BRIEF = {"role": "system", "content": "Reply in one short, friendly sentence."}  # to what asks nothing
_BRIEFLY = 48  # tokens of such a reply
_ASKED = 192  # tokens of a question that are looked up: its last
_VIEW = 2048  # tokens of conversation that the model is shown, at most


class HybridEngine:
    """A frozen language model that remembers what it read, in weights of a fixed size beside it.

    One thread at a time: engines of one frozen model share it.

    Args:
        frozen: the model (`load_frozen`).
        memory: path of a memory file; loaded if it exists, and where `save` writes. None: in RAM only.
        config: sizes of a new memory.
        threshold: nats of evidence from which the memory speaks.
        keep: odds of being worth keeping, 0 to 1, from which a text is written; 0: all is.
        addresser: of the same model, if there is one already.

    Attributes:
        context: the conversation in view, as messages with "role" and "content".
        turn: the last turn of `chat`, filled while it happens.

    Raises:
        MemoryFileError: the file is not a memory, or one of another model.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        memory: str | os.PathLike[str] | None = None,
        config: RecollectionConfig | None = None,
        threshold: float = THRESHOLD,
        keep: float = KEEP,
        addresser: Addresser | None = None,
    ) -> None:
        self.frozen, self.threshold = frozen, threshold
        self.addresser = Addresser(frozen) if addresser is None else addresser
        self.path = None if memory is None else Path(memory)
        embeddings = frozen.embeddings.detach().float().cpu()
        identity = {**frozen.identity, "addresses": self.addresser.fingerprint}
        if self.path is not None and self.path.exists():
            self.memory = RecollectionMemory.load_file(self.path, self.addresser.dim, embeddings, identity)
        else:
            self.memory = RecollectionMemory(config or RecollectionConfig(), self.addresser.dim, embeddings, identity)
        self.learner = Learner(frozen, self.addresser, self.memory, keep)
        self.context: list[dict[str, str]] = []
        self.turn: Turn | None = None
        self._kept = Kept()

    @classmethod
    def from_pretrained(
        cls,
        model: str = DEFAULT_MODEL,
        memory: str | os.PathLike[str] | None = None,
        config: RecollectionConfig | None = None,
        threshold: float = THRESHOLD,
        keep: float = KEEP,
        device: str = "auto",
        load_in_4bit: bool = False,
    ) -> HybridEngine:
        """`load_frozen(model, device, load_in_4bit)` and a memory beside it.

        Raises:
            ModelError: the model cannot be loaded.
            MemoryFileError: the memory file cannot be used.
        """
        return cls(load_frozen(model, device, load_in_4bit), memory, config, threshold, keep)

    def fork(self, memory: str | os.PathLike[str] | None = None) -> HybridEngine:
        """The same frozen model with a memory and a conversation of its own.

        Raises:
            MemoryFileError: the memory file cannot be used.
        """
        config, keep = self.memory.config, self.learner.keep
        return HybridEngine(self.frozen, memory, config, self.threshold, keep, self.addresser)

    def read(self, text: str | Iterable[str], everything: bool = False) -> list[Reading]:
        """Read a text, or pieces of one; only the memory's weights change. Returns a `Reading` a text written or not.

        Args:
            text: what to read.
            everything: write all that is new, as a document is read: small talk and questions too, each sentence by
                itself, and none taken for a correction of what was read before.
        """
        return list(self.read_stream(sentences(text), everything))

    def read_stream(self, stream: Iterable[str], everything: bool = False) -> Iterator[Reading]:
        """Read sentences as they come, in constant space; yields after each has been dealt with. One step to `undo`."""
        with self.memory.step() as step:
            count = 0
            for reading in self.learner.read(stream, everything):
                count += reading.written
                if reading.written and len(step) < 8:
                    step.append(f"wrote: {reading.text}")
                step += [f"erased: {text}" for text in reading.replaced]
                yield reading
            if count > 8:
                step.append(f"wrote {count} texts in all")

    def chat(self, message: str, max_tokens: int = 200, use_memory: bool = True, learn: bool = True) -> Iterator[str]:
        """A turn of conversation: learn from what is said, recall, answer; the pieces of the answer as they come.

        Where the memory has something to say to a question, the model answers from it; else as it would anyway, from
        what is in view; to what asks nothing, in one sentence. Closing the iterator ends the answer there. `self.turn`
        has all that happened.

        Args:
            message: what the user says; long ones are read whole and shown to the model as far as they fit.
            max_tokens: of the answer.
            use_memory: whether it is asked.
            learn: whether it is written to.

        Raises:
            ValueError: the message is empty.
        """
        message = message.strip()
        if not message:
            raise ValueError("the message is empty")
        return self._chat(message, max_tokens, use_memory, learn)

    def clear_context(self) -> None:
        """Forget the conversation, not what was learned from it; what is being said is not added to the new one."""
        self.context = []
        self._kept = Kept()

    def recall(self, question: str) -> list[Recollection]:
        """What the weights give back to a question, weighed, best first. Changes nothing."""
        return [recollection for recollection, _ in self._recall(question, CANDIDATES)[0]]

    def ask(self, question: str, use_memory: bool = True, max_tokens: int = 64) -> Answer:
        """Answer with an empty context: from the memory if it has something to say, else as the bare model would.

        Raises:
            ValueError: the question is empty.
        """
        question = " ".join(question.split())
        if not question:
            raise ValueError("the question is empty")
        considered, used = self._choose(question) if use_memory else ([], [])
        answer = Answer("", bool(used), [each for each, _ in used], considered)
        if used:
            asked, told = self._last_words(question, _ASKED), [recalled for _, recalled in used]
            answer.text = answer_from(self.frozen, asked, told, max_tokens)
        else:
            around = len(self.frozen.prompt([{"role": "user", "content": ""}]))
            shown = self._last_words(question, self._room(max_tokens) - around)
            answer.text = answer_bare(self.frozen, shown, max_tokens)
        return answer

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
        found = [each for each, _ in self._recall(words, most)[0]]
        floor = max(_FAMILIAR, 0.6 * max((each.familiarity for each in found), default=0.0))
        sure = [each for each in found if each.familiarity >= floor and each.evidence >= _LIKELY]
        if sure:
            return [each for each in sure if each.evidence >= 0.5 * sure[0].evidence]
        best, second = ([*found, None, None])[:2]
        lead = best.evidence - second.evidence if best and second else _LIKELY
        most_familiar = best is not None and all(each.familiarity <= best.familiarity for each in found)
        return [best] if best and most_familiar and best.evidence >= self.threshold and lead >= _LIKELY else []

    def held(self, most: int = 100) -> list[Recollection]:
        """The last `most` texts that were written, read out of the weights, newest first."""
        slots = sorted(self.memory.used.tolist(), key=lambda slot: -int(self.memory.names[slot]))[:most]
        read = [(slot, self.memory.read(slot)) for slot in slots]
        return [Recollection(self.frozen.decode(it.ids).strip(), 0.0, 0.0, it.clarity, slot) for slot, it in read]

    def forget(self, what: str | Iterable[Recollection]) -> list[Recollection]:
        """Erase from the weights what `find`, `recall` or `held` returned, or what `find` finds about some words.

        Returns:
            what was erased.

        Raises:
            ValueError: there are no words.
        """
        chosen = self.find(what) if isinstance(what, str) else list(what)
        with self.memory.step() as step:
            self.memory.forget(sorted({each.slot for each in chosen}))
            step += [f"forgot: {each.text}" for each in chosen]
        return chosen

    def undo(self) -> list[str]:
        """Take back the last change of the memory, to the bit: what was written in a turn or a reading, or forgotten.

        Returns:
            what it was, in words; [] if there is nothing to take back. The last 20 changes can be.
        """
        return self.memory.undo()

    @property
    def capacity(self) -> Capacity:
        """How full the memory is."""
        memory, counts = self.memory, self.memory.counts
        count = {name: counts[name] for name in ("written", "known", "evicted", "forgotten")}
        return Capacity(
            len(memory.used), memory.config.slots, memory.load, memory.strength, bytes=memory.file_bytes, **count
        )

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

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as the memory keeps it, in mid-speech: with a space in front."""
        return self.learner.encode(text)

    def _chat(self, message: str, max_tokens: int, use_memory: bool, learn: bool) -> Iterator[str]:
        began = time.perf_counter()
        turn = self.turn = Turn(message)
        if learn:
            turn.readings = self.read(message)
            turn.seconds["reading"] = time.perf_counter() - began
        used: list[tuple[Recollection, Recalled]] = []
        asked = self._asked(message)
        if use_memory and asked:
            started = time.perf_counter()
            turn.answer.considered, used = self._choose(asked)
            turn.seconds["recall"] = time.perf_counter() - started
        turn.answer.used, turn.answer.spoke = [each for each, _ in used], bool(used)
        self.context.append({"role": "user", "content": message})
        said = Said()
        if used:
            told = [recalled for _, recalled in used]
            pieces = speak_from(self.frozen, asked, told, min(max_tokens, _QUOTED), said)
        else:
            brief = not asked  # a small model left to itself goes on and on about what it was told
            most = min(max_tokens, _BRIEFLY) if brief else max_tokens
            pieces = speak(self.frozen, self._view(most, [_BRIEF] if brief else []), most, self._kept, said=said)
        try:
            space = ""  # handed on once a word follows: the pieces are the answer, with nothing around it
            for piece in pieces:
                text = space + piece if turn.answer.text else piece.lstrip()
                piece = text.rstrip()
                space = text[len(piece) :]
                if piece:
                    turn.seconds.setdefault("first", time.perf_counter() - began)
                    turn.answer.text += piece
                    yield piece
        finally:
            pieces.close()
            turn.seconds["answer"] = time.perf_counter() - began
            if self.context:  # not cleared meanwhile
                self.context.append({"role": "assistant", "content": turn.answer.text})

    def _asked(self, message: str) -> str:
        """The part of a message that asks, with what was said before it where it leans on that; "" if nothing asks."""
        parts = list(sentences(message))[-_QUOTED:] or [message]
        kinds = self.addresser.look([self.encode(part)[: self.memory.config.longest] for part in parts]).kinds
        asking = [part for part, kind in zip(parts, kinds, strict=True) if kind[2:].sum() > 0.5 or part.endswith("?")]
        if asking and leans(asking[0]):
            before = [each["content"] for each in self.context if each["role"] == "user"]
            first = parts.index(asking[0])
            asking = [*(parts[first - 1 : first] or before[-1:]), *asking]
        return self._last_words(" ".join(asking), _ASKED)

    def _view(self, max_tokens: int, first: list[dict[str, str]]) -> list[int]:
        """The conversation's last turns, as far as the model takes them, after the messages in `first`."""
        most = min(_VIEW, self._room(max_tokens))
        while len(ids := self.frozen.prompt([*first, *self.context])) > most and len(self.context) > 1:
            self.context = self.context[2:] if len(self.context) > 2 else self.context[-1:]
        if len(ids) <= most:
            return ids
        content = self.context[-1]["content"]
        shown = self._last_words(content, most - (len(ids) - len(self.frozen.encode(content))))
        return self.frozen.prompt([*first, {"role": "user", "content": shown}])

    def _room(self, max_tokens: int) -> int:
        """Tokens of a prompt that the model takes and still has places for an answer."""
        places = getattr(self.frozen.model.config.get_text_config(), "max_position_embeddings", None)
        return max(16, places - max_tokens) if places else 1 << 30

    def _last_words(self, text: str, most: int) -> str:
        """The text, or its last tokens where it has more than `most`."""
        ids = self.frozen.encode(text)
        # Half a character at the cut would come back as three tokens a byte.
        return text if len(ids) <= most else self.frozen.decode(ids[-max(1, most) :]).lstrip("\ufffd")

    def _choose(self, question: str) -> tuple[list[Recollection], list[tuple[Recollection, Recalled]]]:
        """All that was considered, and what is enough to speak from; those are touched."""
        found, private = self._recall(question, CANDIDATES)
        needed = self.threshold - (_PRIVATE if private > 0 else _GENERAL) * private
        best = found[0][0].evidence if found else 0.0
        strong = [pair for pair in found if pair[0].evidence >= max(needed, best - max(_NEAR, IN_REACH))]
        current = self._without_corrected([each for each, _ in strong])
        best = max((each.evidence for each in current), default=0.0)
        slots = [each.slot for each in current if each.evidence >= max(needed, best - _NEAR)][:_FAR]
        for slot in slots:
            self.memory.touch(slot)
        return [each for each, _ in found], [pair for pair in found if pair[0].slot in slots]

    def _without_corrected(self, found: list[Recollection]) -> list[Recollection]:
        """Of two texts about one thing, the newer: where it may be a correction, or has as much evidence."""
        addresses = self.memory.addresses[[each.slot for each in found]]
        cosines, ring = addresses @ addresses.T, self.addresser.judge(addresses).correcting
        names = [int(self.memory.names[each.slot]) for each in found]

        def outdated(old: int, new: int) -> bool:
            if names[new] <= names[old] or float(cosines[new, old]) < DOUBT:
                return False
            lead = found[old].evidence - found[new].evidence
            rings = bool(ring[new] > RING) and lead <= IN_REACH
            return rings or (float(cosines[new, old]) >= ERASE and lead <= AS_MUCH)

        count = len(found)
        return [each for old, each in enumerate(found) if not any(outdated(old, new) for new in range(count))]

    def _recall(self, question: str, count: int) -> tuple[list[tuple[Recollection, Recalled]], float]:
        """What is near, weighed, best first; and from -1 to 1 whether the question sounds general or private."""
        question = self._last_words(question, _ASKED)
        looked = self.addresser.look([self.encode(question)])
        near = self.memory.find(looked.addresses[0], count)
        read = [self.memory.read(slot) for slot, _ in near]
        weights = weigh(self.frozen, question, [each.ids for each in read], [cosine for _, cosine in near])
        found = [
            (Recollection(self.frozen.decode(each.ids).strip(), cosine, weight, each.clarity, slot), each)
            for (slot, cosine), each, weight in zip(near, read, weights, strict=True)
        ]
        kinds = looked.kinds[0]
        private = float(kinds[KINDS.index("question")] - kinds[KINDS.index("general")])
        return sorted(found, key=lambda pair: -pair[0].evidence), private
