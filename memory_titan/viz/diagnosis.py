"""A diagnosis as one page and its figures as pictures; from plain data, as `Diagnosis.to_dict` gives it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from memory_titan.viz.diagnosis_figures import COLOURS, FIGURES, Figure, Found, drawn
from memory_titan.viz.report import STYLE, HeatMap, Passage, heat_page


def write_diagnosis(
    folder: Path,
    title: str,
    lead: str,
    found: Found,
    flags: list[dict[str, Any]],
    columns: list[str],
    rows: list[list[str]],
) -> list[Path]:
    """Write a PNG a figure, and index.html with all of them.

    Args:
        folder: where to; made if it is not there.
        title: of the page.
        lead: a sentence or two on what was read.
        found: what was measured, as `Diagnosis.to_dict` gives it.
        flags: of each warning name, says, advice and layers.
        columns, rows: of the table of layers, as text.

    Returns:
        the files, the page first.

    Raises:
        ImportError: matplotlib is missing.
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, panels = [folder / "index.html"], []
    for figure in FIGURES:
        made = drawn(figure, found)
        if made is not None:
            png, svg = made
            files.append(folder / f"{figure.name}.png")
            files[-1].write_bytes(png)
            panels.append((figure, svg))
    files[0].write_text(_page(title, lead, found, flags, columns, rows, panels), "utf-8")
    return files


def _page(
    title: str,
    lead: str,
    found: Found,
    flags: list[dict[str, Any]],
    columns: list[str],
    rows: list[list[str]],
    panels: list[tuple[Figure, str]],
) -> str:
    body = [f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n', _flags(flags), _table(columns, rows)]
    for section in dict.fromkeys(figure.section for figure, _ in panels):
        name = section.lower().replace(" ", "-")
        shown = "".join(
            f"<figure>{svg}<figcaption>{escape(figure.caption)}</figcaption></figure>\n"
            for figure, svg in panels
            if figure.section == section
        )
        body.append(
            f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(section)}</h2>\n'
            f'<div class="panels">{shown}</div></section>\n'
        )
    body += [heat_page(layer, index) for index, layer in enumerate(_token_by_token(found))]
    dark = " ".join(f"--{name}: {colours[1]};" for name, colours in COLOURS.items())
    light = " ".join(f"--{name}: {colours[0]};" for name, colours in COLOURS.items())
    style = f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{_STYLE}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<main>
{"".join(body)}</main>
</body>
</html>
"""


def _flags(flags: list[dict[str, Any]]) -> str:
    heading = '<section aria-labelledby="flags"><h2 id="flags">Red flags</h2>\n'
    if not flags:
        return f'{heading}<p class="summary good">✓ none</p></section>\n'
    cards = []
    for flag in flags:
        layers = ", ".join(map(str, flag["layers"]))
        where = f" <small>layer{'s' * (len(flag['layers']) > 1)} {layers}</small>" if layers else ""
        cards.append(
            f"<li><strong>▲ {escape(flag['name'])}</strong>{where}<p>{escape(flag['says'])}</p>"
            f'<p class="lead">{escape(flag["advice"])}</p></li>\n'
        )
    return f'{heading}<ul class="flags">{"".join(cards)}</ul></section>\n'


def _table(columns: list[str], rows: list[list[str]]) -> str:
    # On a phone the rows become cards by CSS, which takes a table's meaning from it; the roles keep it.
    head = "".join(f'<th role="columnheader" scope="col">{escape(name)}</th>' for name in columns)
    lines = []
    for first, *rest in rows:
        cells = "".join(
            f'<td role="cell"><span class="where" aria-hidden="true">{escape(name)}</span>{escape(cell)}</td>'
            for name, cell in zip(columns[1:], rest, strict=True)
        )
        where = f'<span class="where" aria-hidden="true">{escape(columns[0])}</span>'
        lines.append(f'<tr role="row"><th role="rowheader" scope="row">{where}{escape(first)}</th>{cells}</tr>\n')
    return (
        '<section aria-labelledby="layers"><h2 id="layers">Layers</h2>\n'
        f'<table role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>\n'
        f'<tbody role="rowgroup">{"".join(lines)}</tbody></table></section>\n'
    )


def _token_by_token(found: Found) -> list[HeatMap]:
    """The first sample with gate and write of the layer whose gates open widest where answers are said."""
    reading = found["reading"]
    layer = max(found["layers"], key=lambda one: one["gate"]["answer"]["top"])["layer"]
    told = (
        ("Gate", "gates", "", 1.0, "How far the gate opens at each token of the first sample"),
        ("Written", "writes", "", None, "Norm of what each token of the first sample adds to the weights"),
    )
    maps = []
    for title, name, unit, scale, explanation in told:
        values = [value or 0.0 for value in reading[name][layer]]
        scale = scale or _round(max(values)) or 1.0
        passages = _passages(reading["words"], values)
        maps.append(
            HeatMap(title, f"{explanation}, layer {layer}. Point at one to see its number.", unit, scale, passages)
        )
    return maps


def _round(x: float) -> float:
    """To one digit that counts."""
    return float(f"{x:.0e}") if x > 0 else 0.0


def _passages(words: list[str], values: list[float]) -> list[Passage]:
    """One a line of the text; tokens without a text (a tokenizer's first) and blank ones at an end are left out."""
    lines: list[tuple[list[str], list[float]]] = [([], [])]
    for word, value in zip(words, values, strict=True):
        bare = word.strip("\n")
        if bare:
            lines[-1][0].append(bare)
            lines[-1][1].append(value)
        if word.endswith("\n"):
            lines.append(([], []))
    return [Passage(*line) for line in lines if line[0]]


_STYLE = """
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); padding: .75rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .85rem; color: var(--soft); margin-top: .5rem; }
.flags { list-style: none; margin: .75rem 0 0; padding: 0; display: grid; gap: .75rem; }
.flags li { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--bad);
  padding: .6rem .9rem; }
.flags strong { color: var(--bad); }
.flags small { color: var(--soft); }
.flags p { margin: .25rem 0 0; }
.good { color: var(--good); }
td { font-variant-numeric: tabular-nums; }
"""
