"""A diagnosis as a page: whole in one file, in the reader's colours, nothing of a text taken for markup."""

import re
from html.parser import HTMLParser

import pytest

from memory_titan.viz.diagnosis import write_diagnosis
from memory_titan.viz.diagnosis_figures import COLOURS, FIGURES, drawn

pytest.importorskip("matplotlib")
NASTY = "<script>alert('&')</script> \"quoted\""
KINDS = ("evidence", "question", "answer", "filler", "prose")
WRITING = ("step", "loss", "gradient", "write")


def layer(number, shift=0.0):
    spread = {"mean": 0.3 + shift, "top": 0.8, "open": 0.1, "tokens": 9}
    by_kind = {kind: 0.1 * i + shift for i, kind in enumerate(KINDS)}
    auc = {name: {"ratio": 2.0, "auc": 0.7} for name in WRITING}
    return {
        "layer": number,
        "gate": dict.fromkeys(KINDS, spread),
        "writing": dict.fromkeys(WRITING, by_kind),
        "contrast": {"filler": auc, "prose": auc},
        "agreement": {"wins": 0.5, "pairs": [[0.9, 0.2], [0.1, 0.4]]},
        "change": by_kind,
        "width": 8,
        "growth": [{"tokens": t, "norm": 1.0, "written": t**0.5, "rank": 3.0} for t in (0, 64, 128)],
        "recall": [{"since": s, "until": s + 64, "cosine": 0.9, "nearest": 0.8, "asked": 3} for s in (0, 64)],
        "finite": True,
    }


def found(layers=1):
    words = ["", "a -> ", NASTY, "\n", "line"]
    values = {number: [0.1, 0.2, 0.3, 0.0, 0.9] for number in range(layers)}
    return {
        "layers": [layer(number, number / 100) for number in range(layers)],
        "reading": {"words": words, "gates": values, "writes": values},
        "losses": [[1, 3.0], [2, None], [3, 1.0]],
    }


FLAG = {"name": f"flag {NASTY}", "says": f"says {NASTY}", "advice": f"do {NASTY}", "layers": [0, 1]}


class Page(HTMLParser):
    """Elements with attributes, and the text; every element that is opened is closed."""

    VOID = {"meta", "path", "use", "rect"}

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def write(folder, data, flags=()):
    columns, rows = ["layer", f"gate {NASTY}"], [["0", "0.5"]]
    return write_diagnosis(folder, f"Title {NASTY}", f"Lead {NASTY}", data, list(flags), columns, rows)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("diagnosis") / "a" / "b", found(), [FLAG])


def test_a_page_and_its_pictures(files):
    assert [file.name for file in files] == ["index.html", *(f"{figure.name}.png" for figure in FIGURES)]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[1:])
    html = files[0].read_text("utf-8")
    page = Page(html)
    assert sum(tag == "svg" for tag, _ in page.elements) == len(FIGURES)
    # title, heading, lead, flag's three, the column twice, and the word in two heat maps
    assert "script" not in [tag for tag, _ in page.elements] and page.text.count(NASTY) == 10
    assert all(figure.caption in page.text and figure.title in page.text for figure in FIGURES)
    tokens = [attrs["title"] for tag, attrs in page.elements if attrs.get("class") == "token"]
    assert len(tokens) == 6 and tokens[-1] == "line: 0.90"


def test_nothing_comes_from_outside_and_names_are_each_figure_s_own(files):
    html = files[0].read_text("utf-8")
    assert not re.search(r"https?:|@import|xmlns|<\?xml|<!DOCTYPE svg|data:", html)
    elements = Page(html).elements
    names = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(names) == len(set(names))
    used = re.findall(r"url\(#([^)]+)\)", html)
    used += [attrs["xlink:href"].removeprefix("#") for _, attrs in elements if "xlink:href" in attrs]
    assert used and set(used) <= set(names)
    assert not {"src", "href"} & {name for _, attrs in elements for name in attrs}


def test_colours_are_the_page_s(files):
    html = files[0].read_text("utf-8")
    drawing = html[html.index("<svg") :]
    assert not any(light in drawing for light, _ in COLOURS.values())
    assert {f"var(--{name})" for name in ("ink", "soft", "answer")} <= set(re.findall(r"var\(--\w+\)", drawing))


def test_figures_are_drawn_for_any_number_of_layers():
    told = {figure.name: figure for figure in FIGURES}
    maps = [drawn(told["gate"], found(layers)) for layers in (3, 14)]
    assert (
        all(maps) and ">0.31<" in maps[0][1] and ">0.31<" not in maps[1][1]
    )  # up to 12 layers cells tell their number
    lines = [drawn(told["norm"], found(layers)) for layers in (3, 14)]
    assert "layer 1<" in lines[0][1] and "layer 13<" in lines[1][1] and "layer 1<" not in lines[1][1]
    assert "layer 0, the best" in drawn(told["agreement"], found(3))[1]


def test_what_was_not_measured_is_left_out(tmp_path):
    data = found()
    data["layers"][0] |= {"agreement": None, "recall": [], "contrast": {"prose": layer(0)["contrast"]["prose"]}}
    data["layers"][0]["growth"][-1] |= {"written": None, "norm": None, "rank": None}
    data["losses"] = []
    names = {file.stem for file in write(tmp_path, data)}
    assert names == {"index"} | {figure.name for figure in FIGURES} - {
        "agreement", "nearest", "cosine", "contrast", "training"
    }  # fmt: skip
    assert "✓ none" in (tmp_path / "index.html").read_text("utf-8")


def test_the_same_figure_comes_out_the_same():
    figure = FIGURES[0]
    assert drawn(figure, found()) == drawn(figure, found())
