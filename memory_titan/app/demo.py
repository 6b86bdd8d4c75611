"""The main job as a story: a frozen model reads a page of notes, and a file of weights alone remembers it.

read twice -> save -> throw the memory away -> load the file -> ask with the memory, without, and with the facts in view
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text

from memory_titan.hybrid.answer import answer_bare
from memory_titan.hybrid.engine import Answer, HybridEngine, Reading
from memory_titan.hybrid.frozen import DEFAULT_MODEL, FrozenModel, load_frozen
from memory_titan.hybrid.sentences import sentences
from memory_titan.viz.report import Answers, Cell, HeatMap, Passage, write_report

_MAX_TOKENS = 32  # of an answer
_SHOWN = 64  # characters of an answer on the terminal; the report has all of it
_NATS = 12.0  # surprise of the model that gets full colour


@dataclass
class Fact:
    """Something only the notes say, a question about it in other words, and what a right answer contains."""

    text: str
    question: str
    answers: tuple[str, ...]


FACTS = (
    Fact(
        "The door of the boat shed now opens with the code 5-0-8-2.",
        "Which numbers do I key in to unlock the boat shed?",
        ("5-0-8-2",),
    ),
    Fact(
        "The vet who looks after our old dog is called Doctor Okonkwo.",
        "Who treats our dog when he is ill?",
        ("Okonkwo",),
    ),
    Fact(
        "I have to be at the dentist on 14 March at twenty past nine.",
        "When is my dental appointment?",
        ("14 March", "March 14", "14th of March"),
    ),
)
NOTES = (
    "It rained most of the morning, so we stayed in and sorted the shelves. "
    f"{FACTS[0].text} Lunch was pea soup with the last of the bread. "
    "In the afternoon the sky cleared and the harbour filled with people. "
    f"We walked to the lighthouse and back before dinner. {FACTS[1].text} "
    "The path was muddy, and one of my boots still leaks. A neighbour lent us a ladder to mend the gutter. "
    f"{FACTS[2].text} The kitchen clock has stopped again. Somebody was practising the trumpet until late. "
    "Tomorrow I want to bake bread and answer a few letters."
)
GENERAL = (
    "Why is the sky blue?",
    "What does the heart do?",
    "What is the capital of France?",
    "Write a short poem about the sea.",
)


@dataclass
class Asked:
    """A question and its answers under the three conditions; `fact` is None for a general question."""

    question: str
    fact: Fact | None
    memory: Answer
    off: str
    context: str

    def cells(self) -> list[Cell]:
        """The three answers with their verdicts."""
        texts = [self.memory.text, self.off, self.context]
        if self.fact is not None:
            return [Cell(text, "right" if is_right(text, self.fact) else "wrong") for text in texts]
        cells = [Cell(text, "same" if text == self.off else "different") for text in texts]
        for cell in cells:
            cell.note = "same as bare" if cell.verdict == "same" else "differs from bare"
        cells[1] = Cell(self.off, note="bare model")
        return cells


def run_demo(console: Console, report: Path, model: str = DEFAULT_MODEL) -> bool:
    """Run the demo on a console and write its report.

    Args:
        console: where the story is told.
        report: path of the HTML report.
        model: as `load_frozen` takes it.

    Returns:
        whether all held: 3 of 3 facts with the memory, none without, general answers those of the bare model, nothing
        of the text in the file, nothing of the model changed.

    Raises:
        ModelError: the model cannot be loaded.
        OSError: the report cannot be written.
    """
    began = time.perf_counter()
    console.rule("1  A frozen model reads")
    with console.status("loading the model (the first time it is converted, half a minute)"):
        frozen = load_frozen(model)
        before = _checksum(frozen)
    count = sum(parameter.numel() for parameter in frozen.model.parameters())
    name = f"{frozen.identity['name']}, {count / 1e6:.0f} million parameters"
    console.print(f"{escape(name)}: frozen. Nothing of it will change; what it reads goes into a memory beside it.\n")
    engine = HybridEngine(frozen)
    first, second = _read(engine, console, "reading"), _read(engine, console, "reading again")
    console.print(_readings(first, second))
    written, again = sum(each.written for each in first), sum(each.written for each in second)
    console.print(
        f"{written} of {len(first)} sentences were new and were written; on a second reading {again}.\n"
        "Surprise is the memory's own, averaged over the tokens: 1 new, 0 known.\n"
    )
    surprises = [engine.model_surprise(each.text) for each in first]

    console.rule("2  Only a file of weights stays")
    with tempfile.TemporaryDirectory(prefix="memory-titan-") as folder:
        file = Path(folder) / "notes.mem"
        engine.save(file)
        del engine
        found = traces(file.read_bytes(), frozen)
        size = file.stat().st_size
        engine = HybridEngine(frozen, memory=file)
    console.print(f"Saved ({size / 1e6:.1f} MB), thrown away, and loaded into a new memory from the file alone.")
    what = f"[red]found in its bytes: {escape(', '.join(found))}[/]" if found else "in its bytes there is none"
    console.print(f"The text of the facts, as letters or as token numbers: {what}.\n")

    console.rule("3  Questions, in other words than the notes'")
    facts = " ".join(fact.text for fact in FACTS)
    questions = [(fact.question, fact) for fact in FACTS] + [(question, None) for question in GENERAL]
    asked = []
    for question, fact in track(questions, "answering", console=console, transient=True):
        remembered = engine.ask(question, max_tokens=_MAX_TOKENS)
        off = engine.ask(question, use_memory=False, max_tokens=_MAX_TOKENS).text
        context = answer_bare(frozen, f"{facts}\n{question}", _MAX_TOKENS)
        asked.append(Asked(question, fact, remembered, off, context))
    columns = ["Question", "Memory", "Memory off", "Facts in the context"]
    console.print(_table(columns, asked))
    marks = [[cell.verdict for cell in each.cells()] for each in asked]
    right = [[row[column] for row in marks].count("right") for column in range(3)]
    same = [row[0] for row in marks].count("same")
    summary = (
        f"Facts right: with memory {right[0]}/{len(FACTS)}, memory off {right[1]}/{len(FACTS)}, "
        f"in the context {right[2]}/{len(FACTS)}. General answers unchanged by the memory: {same}/{len(GENERAL)}."
    )
    console.print(summary, style="bold", highlight=False)
    console.print(_recalled(asked[0]), highlight=False)

    console.rule("4  Report")
    unchanged = _checksum(frozen) == before
    write_report(
        report,
        title="What a frozen model remembered",
        lead=f"{name}, read {len(first)} sentences of notes. Its weights did not change: a memory beside it learned. "
        "The answers below come after an empty context, from a file that holds weights and none of the text."
        if unchanged and not found
        else f"{name}, read {len(first)} sentences of notes. Something that should hold did not; the figures say what.",
        answers=Answers(columns, [(each.question, each.cells()) for each in asked], summary, _recalled(asked[0])),
        layers=[
            HeatMap(
                "The memory's surprise, first reading",
                "How far what the memory said at this place was from the text, before it was written: 1 new, 0 known.",
                "",
                1.0,
                [Passage(each.tokens, each.surprise) for each in first],
            ),
            HeatMap(
                "The memory's surprise, second reading",
                f"The same text once more. Sentences written anew: {again}.",
                "",
                1.0,
                [Passage(each.tokens, each.surprise) for each in second],
            ),
            HeatMap(
                "The frozen model's surprise",
                "-log p of each token given those before it in its sentence. It does not depend on the memory.",
                "nats",
                _NATS,
                [Passage(tokens, values.tolist()) for tokens, values in surprises],
            ),
        ],
        figures=[
            *_figures(engine, size),
            ("Facts' text found in the file", ", ".join(found) or "none"),
            ("The model's weights", "unchanged, to the bit" if unchanged else "CHANGED"),
        ],
    )
    console.print(
        f"The report, with the surprise of every token: {report}", highlight=False, markup=False, soft_wrap=True
    )
    failed = [
        what
        for what, held in {
            f"only {right[0]} of {len(FACTS)} facts are right with the memory": right[0] == len(FACTS),
            f"{right[1]} facts are right without the memory": right[1] == 0,
            f"only {same} of {len(GENERAL)} general answers are the bare model's": same == len(GENERAL),
            f"only {written} of {len(first)} sentences were written": written == len(first),
            f"{again} sentences were written again on the second reading": again == 0,
            "text was found in the memory file": not found,
            "the model's weights changed": unchanged,
        }.items()
        if not held
    ]
    for what in failed:
        console.print(f"Did not hold: {what}.", style="bold red", highlight=False)
    if not failed:
        took = time.perf_counter() - began
        console.print(f"All held; the model's weights are the same to the bit. {took:.0f} s.", highlight=False)
    return not failed


def is_right(answer: str, fact: Fact) -> bool:
    """Whether an answer contains what it must, in letters and digits."""
    return any(_plain(wanted) in _plain(answer) for wanted in fact.answers)


def traces(data: bytes, frozen: FrozenModel) -> list[str]:
    """What of the facts stands in a file: their text and answers in usual encodings, their token ids as integers."""
    found = []
    lower = data.lower()
    for fact in FACTS:
        for text in (fact.text, *fact.answers):
            if any(text.encode(encoding).lower() in lower for encoding in ("utf-8", "utf-16-le", "utf-32-le")):
                found.append(text)
        ids = torch.tensor(frozen.encode(f" {fact.text}"))
        # The first token may be written with or without the space; the rest is the same.
        kinds = (torch.int16, torch.int32, torch.int64, torch.float16, torch.float32)
        if any(ids[1:].to(kind).numpy().tobytes() in data for kind in kinds):
            found.append(f"tokens of: {fact.text}")
    return found


def _read(engine: HybridEngine, console: Console, what: str) -> list[Reading]:
    texts = list(sentences(NOTES))
    return list(track(engine.read_stream(texts, everything=True), what, total=len(texts), console=console))


def _readings(first: list[Reading], second: list[Reading]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("first", justify="right")
    table.add_column("second", justify="right")
    table.add_column("sentence")
    private = {fact.text for fact in FACTS}
    for one, two in zip(first, second, strict=True):
        values = [f"{sum(each.surprise) / len(each.surprise):.2f}" for each in (one, two)]
        table.add_row(*values, Text(one.text, style="bold" if one.text in private else ""))
    return table


def _table(columns: list[str], asked: list[Asked]) -> Table:
    table = Table(show_lines=True)
    for index, column in enumerate(columns):
        table.add_column(column, ratio=3 if index else 2, overflow="fold")
    styles = {"right": "green", "same": "green", "wrong": "red", "different": "yellow"}
    for each in asked:
        cells = []
        for cell in each.cells():
            text = " ".join(cell.text.split())
            short = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1].rstrip()}…"
            cells.append(Text(f"{short}\n").append(cell.label, style=styles.get(cell.verdict, "dim")))
        table.add_row(Text(each.question), *cells)
    return table


def _recalled(asked: Asked) -> str:
    if not asked.memory.considered:
        return f"Nothing was recalled for “{asked.question}”."
    best = asked.memory.considered[0]
    return (
        f"Recalled out of the weights for “{asked.question}”: “{best.text}” "
        f"(evidence {best.evidence:.1f} nats, familiarity {best.familiarity:.2f})."
    )


def _figures(engine: HybridEngine, size: int) -> list[tuple[str, str]]:
    memory = engine.memory
    return [
        ("Slots used", f"{len(memory.used)} of {memory.config.slots}"),
        ("Tokens held", str(int(memory.lengths.sum()))),
        ("Load: tokens over features", f"{memory.load:.4f}"),
        ("Strength of what is read", f"{memory.strength:.3f} (1 when empty)"),
        ("File size, however much is read", f"{size / 1e6:.1f} MB"),
        ("Sentences read", str(memory.counts["texts"])),
        ("Written", str(memory.counts["written"])),
        ("Already known", str(memory.counts["known"])),
        ("Evicted", str(memory.counts["evicted"])),
        ("Forgotten", str(memory.counts["forgotten"])),
    ]


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _checksum(frozen: FrozenModel) -> str:
    """Of every weight of the model, to the bit."""
    digest = hashlib.blake2b()
    for parameter in frozen.model.parameters():
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
