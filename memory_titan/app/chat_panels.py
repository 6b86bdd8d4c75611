"""What the chat's page shows, as HTML: pure functions of what happened. Whatever a person or a model wrote is escaped.

Nothing is told by colour alone: a token's surprise is also the line under it, a chip says what it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from memory_titan.app.chat_log import Compared, Entry, FileRead, Note, Said, counted

if TYPE_CHECKING:
    from memory_titan.hybrid.records import Answer, Capacity, Reading, Recollection, Turn

_REASONS = {
    "new": "new",
    "known": "known already",
    "small talk": "small talk",
    "question": "a question",
    "correction": "a correction",
}
_BARS = 40  # changes that the chart shows
_WEIGHED = 3  # recollections that the panel shows


def entry_html(entry: Entry, threshold: float, before: int = 0) -> str:
    """One entry of the conversation. `before`: how many wait in front of it."""
    if isinstance(entry, Said):
        return _said(entry, threshold, before)
    if isinstance(entry, Compared):
        return _compared(entry, threshold, before)
    if isinstance(entry, FileRead):
        return _file(entry, before)
    assert isinstance(entry, Note)
    return _note(entry)


def spoken(entry: Entry) -> str:
    """What a screen reader says when an entry is complete."""
    if isinstance(entry, Said):
        answer = entry.turn.answer if entry.turn else None
        source = " From memory." if answer is not None and answer.spoke else ""
        return f"Answer:{source} {entry.text or entry.error}"
    if isinstance(entry, Compared) and entry.remembered and entry.bare:
        return f"With memory: {entry.remembered.text} Without: {entry.bare.text}"
    if isinstance(entry, FileRead):
        return entry.error or f"{entry.name}: {entry.texts} texts read, {entry.written} written."
    return entry.sentence if isinstance(entry, Note) else entry.error


def _said(entry: Said, threshold: float, before: int) -> str:
    turn, parts = entry.turn, []
    parts.append(f'<div class="you"><p class="bubble">{escape(entry.message)}</p>')
    if turn is not None and turn.readings:
        parts.append(readings_html(turn.readings))
    elif not entry.memory:
        parts.append('<p class="aside">memory off: nothing is written</p>')
    parts.append('</div><div class="it">')
    if turn is not None and entry.memory and "recall" in turn.seconds:
        parts.append(_source(turn.answer, threshold))
    elif turn is not None and entry.memory and entry.text:
        parts.append('<p class="source"><span class="chip">memory not asked</span> this was no question</p>')
    elif not entry.memory:
        parts.append('<p class="source"><span class="chip">memory off</span> the frozen model alone</p>')
    if entry.text:
        parts.append(f'<p class="answer">{escape(entry.text)}{_CARET if entry.live else ""}</p>')
    elif entry.live:
        parts.append(_waiting(entry, before, "reading and recalling"))
    parts.append(f"{_ending(entry)}{_let_go(entry.let_go)}</div>")
    return f'<article class="said">{"".join(parts)}</article>'


def readings_html(readings: Sequence[Reading]) -> str:
    """What the memory did with a message: a line a text, its words coloured by surprise."""
    return f'<ul class="readings">{"".join(map(_reading, readings))}</ul>'


def _reading(reading: Reading) -> str:
    why = _REASONS.get(reading.reason, reading.reason)
    label = "written" if reading.written else f"not written: {why}"
    label = f"written: {why}" if reading.reason == "correction" else label
    mean = sum(reading.surprise) / max(1, len(reading.surprise))
    kind = "written" if reading.written else "skipped"
    replaced = "".join(f'<p class="replaced">in place of “{escape(each)}”</p>' for each in reading.replaced)
    return (
        f'<li><p class="heat" aria-hidden="true">{heat_html(reading.tokens, reading.surprise)}</p>'
        f'<span class="chip {kind}" title="worth keeping: {reading.worth:.0%}">{escape(label)}</span>'
        f'<span class="figure">surprise {mean:.2f}</span>{replaced}</li>'
    )


def heat_html(tokens: Sequence[str], surprise: Sequence[float]) -> str:
    """Words, each on a ground as deep as its surprise, 0 to 1."""
    parts = []
    for token, value in zip(tokens, surprise, strict=True):
        bare = token.lstrip(" ")
        space = token[: len(token) - len(bare)]
        share = min(max(value, 0.0), 1.0)
        parts.append(f'{space}<span style="--v:{share:.2f}" title="surprise {value:.2f}">{escape(bare)}</span>')
    return "".join(parts).lstrip()


def _source(answer: Answer, threshold: float) -> str:
    if not answer.considered:
        return '<p class="source"><span class="chip">memory silent</span> it holds nothing yet</p>'
    best = answer.considered[0]
    if not answer.spoke:
        head = (
            '<span class="chip">memory silent</span> '
            "nothing was sure enough: the best had "
            f'<span class="nats">{best.evidence:.0f} of some {threshold:g} nats</span>'
        )
    else:
        head = '<span class="chip memory">from memory</span> ' + " ".join(
            f'<q>{escape(each.text)}</q> <span class="nats">{each.evidence:.0f} nats</span>' for each in answer.used
        )
    return f'<p class="source">{head}</p>'


def recall_html(turn: Turn | None, threshold: float) -> str:
    """What was weighed for the last message: evidence against the threshold, familiarity, clarity."""
    if turn is None or not turn.answer.considered:
        return '<p class="aside">Nothing has been asked yet. Here you see what a question brings to mind.</p>'
    answer = turn.answer
    scale = max(2 * threshold, *(each.evidence for each in answer.considered))
    rows = "".join(_weighed(each, each in answer.used, scale) for each in answer.considered[:_WEIGHED])
    verdict = "The memory spoke." if answer.spoke else "The memory was silent; the model answered alone."
    rule = f"It speaks from some {threshold:g} nats of evidence, sooner if the question sounds private."
    return (
        f'<p class="aside">{verdict} {rule}</p>'
        f'<ol class="weighed" style="--at:{100 * threshold / scale:.1f}%">{rows}</ol>'
    )


def _weighed(each: Recollection, used: bool, scale: float) -> str:
    share = 100 * min(max(each.evidence / scale, 0.0), 1.0)
    return (
        f'<li class="{"used" if used else "unused"}"><q>{escape(each.text)}</q>'
        f'<div class="bar" aria-hidden="true"><i style="width:{share:.1f}%"></i></div>'
        f'<p class="figure"><b>{each.evidence:.1f} nats</b> · familiarity {each.familiarity:.2f} · '
        f"clarity {each.clarity:.2f}{' · used' if used else ''}</p></li>"
    )


def _compared(entry: Compared, threshold: float, before: int) -> str:
    def column(title: str, answer: Answer | None, sourced: bool) -> str:
        source = _source(answer, threshold) if answer is not None and sourced else ""
        text = f'<p class="answer">{escape(answer.text)}</p>' if answer else _waiting(entry, before, "answering")
        return f"<div><h3>{title}</h3>{source}{text if answer or entry.live else ''}</div>"

    return (
        f'<article class="compared"><p class="bubble">{escape(entry.question)}</p>'
        f'<p class="aside">the same question to an empty context, twice; nothing of it is kept</p><div class="pair">'
        f"{column('With memory', entry.remembered, True)}{column('Without', entry.bare, False)}</div>"
        f"{_ending(entry)}</article>"
    )


def _file(entry: FileRead, before: int) -> str:
    name = f"<b>{escape(entry.name)}</b>"
    if entry.state == "waiting":
        return f'<div class="event">{name}{_waiting(entry, before, "")}</div>'
    if entry.state == "working":
        bar = f'<progress max="{entry.total}" value="{entry.done}">{entry.done} of {entry.total}</progress>'
        return f'<div class="event">reading {name}{bar}</div>'
    how = "read up to where you stopped" if entry.state == "stopped" else "read"
    instead = f" (in place of {counted(entry.replaced, 'older one')})" if entry.replaced else ""
    told = f"{name} {how}: {counted(entry.texts, 'text')}, {entry.written:,} written{instead}. The file is not kept."
    return f'<div class="event">{"" if entry.error else told}{_ending(entry, quiet=True)}{_let_go(entry.let_go)}</div>'


def _note(entry: Note) -> str:
    if entry.kind == "cleared":
        return f'<div class="cleared" role="separator"><span>{escape(entry.sentence)}</span></div>'
    return f'<div class="event">{escape(entry.sentence)}</div>'


_CARET = '<span class="caret" aria-hidden="true"></span>'


def _waiting(entry: Entry, before: int, doing: str) -> str:
    if entry.state == "waiting" and before:
        return f'<p class="aside waiting">{before} before you</p>'
    return f'<p class="aside waiting">{doing}…</p>'


def _ending(entry: Entry, quiet: bool = False) -> str:
    if entry.state == "failed":
        return f'<p class="failed">This went wrong: {escape(entry.error)}</p>'
    return '<p class="aside">stopped here</p>' if entry.state == "stopped" and not quiet else ""


def _let_go(count: int) -> str:
    if not count:
        return ""
    return f'<p class="full">The memory was full: {counted(count, "text")} longest unused had to go.</p>'


def gauge_html(capacity: Capacity) -> str:
    """How full the memory is, how strong what it holds still is, and the size of its file."""
    share = capacity.held / max(1, capacity.slots)
    full = '<p class="full">It is full. Something new takes the place of what was longest unused.</p>'
    return (
        f'<p class="held"><b>{capacity.held:,}</b> of {capacity.slots:,} texts held</p>'
        f'<div class="gauge" role="img" aria-label="{share:.0%} full"><i style="width:{100 * share:.2f}%"></i></div>'
        f"{full if capacity.held >= capacity.slots else ''}<dl>"
        f"<div><dt>File</dt><dd>{_size(capacity.bytes)}</dd><dd>however much it holds</dd></div>"
        f"<div><dt>Strength</dt><dd>{capacity.strength:.0%}</dd><dd>of what is read back</dd></div>"
        f"<div><dt>Written</dt><dd>{capacity.written:,}</dd><dd>{capacity.known:,} known already</dd></div>"
        f"<div><dt>Gone</dt><dd>{capacity.forgotten + capacity.evicted:,}</dd>"
        f"<dd>{capacity.forgotten:,} forgotten, {capacity.evicted:,} for room</dd></div></dl>"
    )


def saved_html(unsaved: int, saved: bool) -> str:
    """Whether the memory's file has it all."""
    if unsaved:
        return (
            f'<p class="saved unsaved">{counted(unsaved, "change")} not saved yet. '
            "That happens when the program ends; only a crash would lose them.</p>"
        )
    return f'<p class="saved">{"All of it is saved." if saved else "There is nothing to save yet."}</p>'


def writes_svg(history: Sequence[Capacity]) -> str:
    """Texts written at each change of the memory, as bars, under the number held, as a line."""
    steps = list(history)[-_BARS - 1 :]
    if len(steps) < 2:
        return '<p class="aside">A bar for every message, once you have sent some.</p>'
    writes = [max(0, after.written - before.written) for before, after in pairwise(steps)]
    held = [each.held for each in steps[1:]]
    width, height, gap = 320.0, 72.0, 320.0 / max(len(writes), 12)
    tallest, most = max(1, *writes), max(1, *held)
    bars = "".join(
        f'<rect x="{index * gap + gap * 0.2:.1f}" y="{height - height * 0.8 * count / tallest:.1f}" '
        f'width="{gap * 0.6:.1f}" height="{max(1.5, height * 0.8 * count / tallest):.1f}" rx="1.5"/>'
        for index, count in enumerate(writes)
    )
    line = " ".join(
        f"{(index + 0.5) * gap:.1f},{height - 4 - (height - 12) * count / most:.1f}" for index, count in enumerate(held)
    )
    label = f"{sum(writes)} written over the last {len(writes)} changes; {held[-1]} held now"
    return (
        f'<svg class="writes" viewBox="0 0 {width:g} {height + 4:g}" role="img" aria-label="{label}">'
        f'{bars}<polyline points="{line}"/></svg>'
        f'<p class="key"><span class="bars">written</span><span class="line">held: {held[-1]:,}</span></p>'
    )


def held_html(held: Sequence[Recollection], total: int) -> str:
    """The newest of `total` texts held, each with a button that forgets it; the button's `data-slot` says which."""
    rows = "".join(
        f'<li><q>{escape(each.text)}</q><button type="button" class="small" data-slot="{each.slot}" '
        f'aria-label="Forget: {escape(each.text)}">Forget</button></li>'
        for each in held
    )
    if not rows:
        return '<p class="aside">It holds nothing.</p>'
    older = total - len(held)
    more = f'<p class="aside">and {counted(older, "older text")}: Forget… finds those too</p>' if older > 0 else ""
    return f'<ul class="list">{rows}</ul>{more}'


def found_html(found: Sequence[Recollection], words: str) -> str:
    """What would be forgotten."""
    if not found:
        return f'<p class="aside">It holds nothing about “{escape(words)}”.</p>'
    rows = "".join(f"<li><q>{escape(each.text)}</q></li>" for each in found)
    return f'<p class="aside">This is what it holds about “{escape(words)}”:</p><ul class="list">{rows}</ul>'


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.0f} kB"
