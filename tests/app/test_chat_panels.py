"""The chat's HTML: what is said, and that nothing others wrote gets out of its place."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from fake_engine import Answer, Capacity, Reading, Recollection, Turn
from memory_titan.app import chat_panels as panels
from memory_titan.app.chat_guide import EXAMPLES, guide_html
from memory_titan.app.chat_log import Compared, FileRead, Note, Said

BAD = "</p><script>alert(\"1\")</script><img src=x onerror='alert(2)'>"


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("input", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def recollection(text, evidence=31.0, slot=3):
    return Recollection(text, 0.52, evidence, 0.9, slot)


def turn(text="fact", reason="new", written=True, replaced=(), used=(), considered=()):
    reading = Reading(text, [" one", " two"], [1.0, 0.0], written, 0.9, reason, list(replaced))
    return Turn(text, [reading], Answer("answer", bool(used), list(used), list(considered)), {"recall": 0.01})


def capacity(held=3, slots=8, written=3, evicted=0):
    return Capacity(held, slots, 0.25, 0.8, written, 1, evicted, 2, 8_700_000)


def test_whatever_was_written_stays_text():
    bad = recollection(BAD)
    shown = [
        Said(BAD, True, BAD, turn(BAD, replaced=[BAD], used=[bad], considered=[bad]), state="done"),
        Said(BAD, True, state="failed", error=BAD),
        Compared(BAD, Answer(BAD, True, [bad], [bad]), Answer(BAD, False, [], []), state="done"),
        FileRead(BAD, 10, 5, state="working"),
        FileRead(BAD, 10, 5, state="failed", error=BAD),
        Note("forgot", items=[BAD]),
        Note("undone", items=[BAD]),
        Note("loaded", text=BAD),
    ]
    pieces = [panels.entry_html(each, 11.0) for each in shown]
    pieces += [panels.heat_html([BAD], [0.5]), panels.recall_html(shown[0].turn, 11.0), panels.held_html([bad], 3)]
    pieces += [panels.found_html([bad], BAD), panels.found_html([], BAD)]
    for html in pieces:
        tags = Tags(html)
        assert not {"script", "img"} & {tag for tag, _ in tags.seen} and "alert(2)" in tags.text
        assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)


@pytest.mark.parametrize(
    ("reason", "written", "label"),
    [
        ("new", True, "written"),
        ("correction", True, "written: a correction"),
        ("known", False, "not written: known already"),
        ("small talk", False, "not written: small talk"),
        ("question", False, "not written: a question"),
    ],
)
def test_why_something_was_written_or_not(reason, written, label):
    html = panels.readings_html(turn(reason=reason, written=written).readings)
    assert f">{label}</span>" in html and "surprise 0.50" in html and "--v:1.00" in html and "--v:0.00" in html


def test_a_correction_names_what_it_replaced():
    assert "in place of “Thursday”" in panels.readings_html(turn(reason="correction", replaced=["Thursday"]).readings)


def test_where_an_answer_came_from():
    best, other = recollection("the code is 5", 31.4), recollection("the vet", -2.0)
    spoke = panels.entry_html(Said("q", True, "5", turn(used=[best], considered=[best, other]), state="done"), 11.0)
    assert "from memory" in spoke and "31 nats" in spoke and "the vet" not in spoke
    silent = panels.entry_html(Said("q", True, "?", turn(considered=[other]), state="done"), 11.0)
    assert "memory silent" in silent and "the best had" in silent and "-2 of some 11 nats" in silent
    empty = panels.entry_html(Said("q", True, "?", turn(), state="done"), 11.0)
    assert "holds nothing yet" in empty
    told = turn()
    told.seconds.clear()
    assert "memory not asked" in panels.entry_html(Said("q", True, "Noted.", told, state="done"), 11.0)
    off = panels.entry_html(Said("q", False, "?", turn(), state="done"), 11.0)
    assert "memory off" in off


def test_recollections_against_the_threshold():
    best, other = recollection("best", 44.0), recollection("other", -5.0)
    html = panels.recall_html(turn(used=[best], considered=[best, other]), 11.0)
    assert "--at:25.0%" in html and "width:100.0%" in html and "width:0.0%" in html and "familiarity 0.52" in html
    assert "Nothing has been asked" in panels.recall_html(None, 11.0)


def test_states_of_an_answer():
    said = Said("hello", True)
    assert "2 before you" in panels.entry_html(said, 11.0, before=2)
    said.state, said.text = "working", "so far"
    assert "caret" in panels.entry_html(said, 11.0)
    said.state = "stopped"
    html = panels.entry_html(said, 11.0)
    assert "stopped here" in html and "caret" not in html
    said.let_go = 2
    assert "2 texts longest unused had to go" in panels.entry_html(said, 11.0)


def test_what_a_file_came_to():
    html = panels.entry_html(FileRead("n.txt", 10, 10, 3, 2, 1, 0, state="done"), 11.0)
    assert "<b>n.txt</b> read: 3 texts, 2 written (in place of 1 older one)" in html
    assert "where you stopped" in panels.entry_html(FileRead("n.txt", 10, 5, 1, state="stopped"), 11.0)


def test_capacity_in_figures():
    html = panels.gauge_html(capacity())
    assert "width:37.50%" in html and "8.7 MB" in html and "80%" in html and "full." not in html
    assert "It is full" in panels.gauge_html(capacity(held=8))


def test_a_list_says_what_it_does_not_show():
    some = [recollection("a", slot=7)]
    assert 'data-slot="7"' in panels.held_html(some, 1) and "older" not in panels.held_html(some, 1)
    assert "and 2 older texts" in panels.held_html(some, 3) and "holds nothing" in panels.held_html([], 0)


def test_writes_over_time():
    svg = panels.writes_svg([capacity(held=n, written=n) for n in (0, 1, 1, 4)])
    tags = Tags(svg).seen
    heights = [float(attributes["height"]) for tag, attributes in tags if tag == "rect"]
    assert heights[1] < heights[0] < heights[2] and "4 written over the last 3 changes; 4 held now" in svg
    assert "once you have sent some" in panels.writes_svg([capacity()])


def test_the_guide_goes_with_the_experiment():
    (fact, question), *_ = EXAMPLES
    best = recollection(fact)
    log = []
    assert "Wipe its context" in guide_html(log, 0) and "3 texts are still" in guide_html(log, 3)
    log.append(Said(fact, True, "Noted.", turn(fact), state="done"))
    step = guide_html(log, 1)
    assert 'data-press="clear"' in step and fact not in step and EXAMPLES[1][0] in step
    log.append(Note("cleared"))
    assert question in guide_html(log, 1)
    log.append(
        Said(question, True, "5", turn(question, "question", False, used=[best], considered=[best]), state="done")
    )
    assert "came out of the weights" in guide_html(log, 1)
    log.append(Note("saved"))
    assert guide_html(log, 1) == ""
    for html in (guide_html([], 0), step):
        Tags(html)


def test_what_a_screen_reader_is_told():
    best = recollection("a")
    said = Said("q", True, "It is 5.", turn(used=[best], considered=[best]), state="done")
    assert panels.spoken(said) == "Answer: From memory. It is 5."
    assert panels.spoken(Note("cleared")).startswith("context cleared")
