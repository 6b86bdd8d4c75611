"""One HTML file that shows what a memory did: answers, surprise over the text, figures.

Nothing in it comes from outside, and no number in it is told by colour alone: a token's surprise is also the thickness
of the line under it and a text for whoever points at it or has it read aloud.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path

_MARKS = {"right": "✓", "wrong": "✗", "same": "=", "different": "≠"}
_STEPS = 4  # of a legend's scale, above zero


@dataclass
class Cell:
    """One answer: its text and what there is to say about it.

    Attributes:
        text: the answer.
        verdict: "right", "wrong", "same", "different", or empty.
        note: the verdict in words; the verdict itself if empty.
    """

    text: str
    verdict: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.verdict and self.verdict not in _MARKS:
            raise ValueError(f"verdict must be empty or one of {', '.join(_MARKS)}; got {self.verdict!r}")

    @property
    def label(self) -> str:
        """The verdict as a sign and words: "✓ right"."""
        return f"{_MARKS[self.verdict]} {self.note or self.verdict}" if self.verdict else self.note


@dataclass
class Answers:
    """A table: a heading a column, a row a question, its first cell the question; a summary above it, a note below."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    summary: str = ""
    note: str = ""


@dataclass
class Passage:
    """A stretch of text, a value for each of its tokens."""

    tokens: list[str]
    values: list[float]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.values):
            raise ValueError(f"{len(self.tokens)} tokens, but {len(self.values)} values; each token needs one")


@dataclass
class HeatMap:
    """One layer of values over a text.

    Attributes:
        title: what the values are.
        explanation: a sentence or two.
        unit: of the values; may be empty.
        scale: the value of full colour; larger ones look the same and still tell their number.
        passages: the text.
    """

    title: str
    explanation: str
    unit: str
    scale: float
    passages: list[Passage]

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0; got {self.scale}")


def write_report(
    path: str | os.PathLike[str],
    title: str,
    lead: str,
    answers: Answers,
    layers: list[HeatMap],
    figures: list[tuple[str, str]],
) -> Path:
    """Write the report; its folder is made if it is not there.

    Args:
        path: where to.
        title: of the page.
        lead: a sentence or two on what it shows.
        answers: the table.
        layers: heat maps, in order.
        figures: name and value of what else there is to tell.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(title, lead, answers, layers, figures), "utf-8")
    return path


def render_report(
    title: str, lead: str, answers: Answers, layers: list[HeatMap], figures: list[tuple[str, str]]
) -> str:
    """The report as HTML; arguments as in `write_report`."""
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
<section aria-labelledby="answers"><h2 id="answers">Answers</h2>
{_table(answers)}</section>
{"".join(heat_page(layer, index) for index, layer in enumerate(layers))}
<section aria-labelledby="figures"><h2 id="figures">The memory in figures</h2><dl>{facts}</dl></section>
</main>
</body>
</html>
"""


def _table(answers: Answers) -> str:
    # On a phone the rows become cards by CSS, which takes a table's meaning from it; the roles keep it.
    head = "".join(f'<th role="columnheader" scope="col">{escape(name)}</th>' for name in answers.columns)
    rows = []
    for question, cells in answers.rows:
        row = [f'<th role="rowheader" scope="row">{escape(question)}</th>']
        for name, cell in zip(answers.columns[1:], cells, strict=True):
            label = f' <strong class="{cell.verdict}">{escape(cell.label)}</strong>' if cell.label else ""
            where = f'<span class="where" aria-hidden="true">{escape(name)}</span>'
            row.append(f'<td role="cell">{where}<q>{escape(cell.text)}</q>{label}</td>')
        rows.append(f'<tr role="row">{"".join(row)}</tr>\n')
    summary = f'<p class="summary">{escape(answers.summary)}</p>\n' if answers.summary else ""
    note = f"<p>{escape(answers.note)}</p>\n" if answers.note else ""
    return (
        f'{summary}<table role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>\n'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table>\n{note}'
    )


def heat_page(layer: HeatMap, index: int) -> str:
    """One layer's values over its text, as HTML."""
    unit = f" {layer.unit}" if layer.unit else ""
    marks = [layer.scale * step / _STEPS for step in range(_STEPS + 1)]
    beyond = any(value > layer.scale for passage in layer.passages for value in passage.values)
    names = [f"{mark:g}" for mark in marks[:-1]] + [f"{layer.scale:g} or more" if beyond else f"{layer.scale:g}"]
    legend = "".join(
        f'<span class="key" style="--v:{mark / layer.scale:.2f}">{name}</span>'
        for mark, name in zip(marks, names, strict=True)
    )
    lines = "".join(_passage(passage, layer, unit) for passage in layer.passages)
    return (
        f'<section aria-labelledby="heat{index}"><h2 id="heat{index}">{escape(layer.title)}</h2>\n'
        f"<p>{escape(layer.explanation)}</p>\n"
        f'<p class="legend"><span>Scale{escape(f",{unit}" if unit else "")}: </span>{legend}</p>\n'
        f'<ol class="text">{lines}</ol></section>\n'
    )


def _passage(passage: Passage, layer: HeatMap, unit: str) -> str:
    tokens = []
    for token, value in zip(passage.tokens, passage.values, strict=True):
        told = escape(f"{token.strip() or 'space'}: {value:.2f}{unit}")
        share = min(max(value / layer.scale, 0.0), 1.0)
        # The space in front stays outside the coloured box, so that words stand apart.
        bare = token.lstrip(" ")
        space = token[: len(token) - len(bare)]
        tokens.append(
            f'{space}<span class="token" role="img" style="--v:{share:.3f}" title="{told}" '
            f'aria-label="{told}">{escape(bare)}</span>'
        )
    mean = sum(passage.values) / max(1, len(passage.values))
    return f"<li>{''.join(tokens).lstrip()} <small>mean {mean:.2f}{escape(unit)}</small></li>\n"


STYLE = """
:root { --page: #fbfaf8; --card: #fff; --ink: #1c1b19; --soft: #5f5b55; --line: #dedad3; --hot: #f2a35c;
  --rule: #b4530a; --good: #14692f; --bad: #a3231c; }
@media (prefers-color-scheme: dark) { :root { --page: #161513; --card: #1f1e1b; --ink: #efece6; --soft: #aaa49a;
  --line: #3a3733; --hot: #8f4613; --rule: #f0a463; --good: #74cf8f; --bad: #ff9a90; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { color: var(--soft); }
.summary { font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin-top: 1rem; background: var(--card);
  border: 1px solid var(--line); table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: .6rem .75rem; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
thead th { font-size: .85rem; color: var(--soft); }
tbody th { font-weight: 600; }
q { display: block; white-space: pre-line; quotes: none; }
td strong { display: block; font-size: .85rem; margin-top: .25rem; color: var(--soft); }
td strong.right, td strong.same { color: var(--good); }
td strong.wrong, td strong.different { color: var(--bad); }
.where { display: none; }
.token, .key { background: color-mix(in srgb, var(--hot) calc(var(--v) * 100%), transparent);
  box-shadow: inset 0 calc(var(--v) * -3px) 0 var(--rule); padding: .1em .05em .2em;
  white-space: pre-wrap; }
.token:hover { outline: 2px solid var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: .35rem; align-items: baseline; font-size: .85rem; color: var(--soft); }
.key { padding: .15rem .5rem .25rem; border: 1px solid var(--line); color: var(--ink); }
.text { background: var(--card); border: 1px solid var(--line); margin: .75rem 0 0; padding: .75rem 1rem .75rem 2.75rem;
  line-height: 1.9; }
.text li { overflow-wrap: anywhere; }
.text li::marker, .text small { color: var(--soft); font-size: .8rem; }
.text small { white-space: nowrap; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem; margin: 1rem 0 0; }
dl div { background: var(--card); border: 1px solid var(--line); padding: .6rem .75rem; }
dt { font-size: .85rem; color: var(--soft); }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  main { padding: 1.25rem .9rem 3rem; }
  table, tbody, tr, th, td { display: block; }
  table { background: none; border: 0; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tr { background: var(--card); border: 1px solid var(--line); margin-bottom: .9rem; }
  tr > :last-child { border-bottom: 0; }
  .where { display: block; font-size: .8rem; color: var(--soft); }
  .text { padding-left: 2.25rem; }
  dl { grid-template-columns: repeat(2, 1fr); }
}
@media print { .token, .key { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
