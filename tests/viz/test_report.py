"""The report: whole in one file, every number in it, nothing of a text taken for markup."""

import re
from html.parser import HTMLParser

import pytest

from memory_titan.viz.report import Answers, Cell, HeatMap, Passage, render_report, write_report

NASTY = "<script>alert('&')</script> \"quoted\""
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """What is in a page: elements with attributes, text, and whether every element that was opened was closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def tokens(self):
        return [attrs for _, attrs in self.elements if attrs.get("class") == "token"]


def report(**changes):
    passages = [Passage(["It", " rained", " <b>"], [1.0, 0.25, 0.0]), Passage(["&", " 5-0"], [0.5, 0.125])]
    options = {
        "title": f"Title {NASTY}",
        "lead": f"Lead {NASTY}",
        "answers": Answers(
            ["Question", f"Memory {NASTY}", "Off"],
            [(f"Why {NASTY}?", [Cell(f"So {NASTY}", "right"), Cell("No", "different", f"differs {NASTY}")])],
            f"Summary {NASTY}",
            f"Note {NASTY}",
        ),
        "layers": [
            HeatMap("First", f"Explained {NASTY}", "", 1.0, passages),
            HeatMap("Second", "Explained", "nats", 2.0, passages),
        ],
        "figures": [(f"Slots {NASTY}", f"3 {NASTY}")],
    } | changes
    return render_report(**options)


def test_all_text_is_escaped():
    page = Page(report())
    assert {"script", "b"}.isdisjoint(tag for tag, _ in page.elements)
    assert page.text.count(NASTY) == 13  # eleven places; the title also names the window, a column also its cells
    assert "<b>" in page.text


def test_an_attribute_cannot_be_left():
    page = Page(report(layers=[HeatMap("A", "", "", 1.0, [Passage(['" onclick="x'], [0.5])])]))
    (token,) = page.tokens()
    assert set(token) == {"class", "role", "style", "title", "aria-label"}
    assert token["title"] == '" onclick="x: 0.50'


def test_nothing_comes_from_outside():
    html = report()
    assert not re.search(r"https?:|//\w|url\(|@import", html)
    for tag, attrs in Page(html).elements:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert not {"src", "href", "srcset"} & set(attrs)


def test_every_token_stands_once_in_each_layer_with_its_value():
    told = [token["title"] for token in Page(report()).tokens()]
    assert told == [
        *("It: 1.00", "rained: 0.25", "<b>: 0.00", "&: 0.50", "5-0: 0.12"),
        *("It: 1.00 nats", "rained: 0.25 nats", "<b>: 0.00 nats", "&: 0.50 nats", "5-0: 0.12 nats"),
    ]
    assert all(token["title"] == token["aria-label"] for token in Page(report()).tokens())


@pytest.mark.parametrize(("value", "share"), [(-1.0, "0.000"), (0.5, "0.250"), (2.0, "1.000"), (9.0, "1.000")])
def test_colour_keeps_to_the_scale(value, share):
    (token,) = Page(report(layers=[HeatMap("A", "", "", 2.0, [Passage(["a"], [value])])])).tokens()
    assert token["style"] == f"--v:{share}"
    assert token["title"] == f"a: {value:.2f}"


def test_text_reads_as_it_was():
    text = Page(report(layers=[HeatMap("A", "", "", 1.0, [Passage([" It", " rained", ".", " 5"], [0.0] * 4)])])).text
    assert "It rained. 5 mean 0.00" in text


def test_a_verdict_is_a_sign_and_a_word():
    text = Page(report()).text
    assert "✓ right" in text and "≠ differs" in text


def test_the_legend_shows_the_scale():
    assert all(f">{mark}</span>" in report() for mark in ["0.25", "0.75", "1", "1.5", "2"])
    beyond = report(layers=[HeatMap("A", "", "", 2.0, [Passage(["a"], [3.0])])])
    assert ">2 or more</span>" in beyond


def test_it_is_written_where_there_was_no_folder(tmp_path):
    path = tmp_path / "a" / "b.html"
    written = write_report(path, "Ünïcode ✓", "", Answers(["Question"], []), [], [])
    assert written == path
    assert "Ünïcode ✓" in path.read_text("utf-8")


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="2 tokens, but 1 values"):
        Passage(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="scale must be above 0; got 0"):
        HeatMap("A", "", "", 0.0, [])
    with pytest.raises(ValueError, match="got 'good'"):
        Cell("a", "good")
