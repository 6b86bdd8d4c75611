"""What docs/memory-pictures.md shows runs as it stands there, and shows pictures that are there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "memory-pictures.md").read_text(encoding="utf-8")


def test_the_snippets(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(snippets) == 2
    for snippet in snippets:
        exec(compile(snippet, "docs/memory-pictures.md", "exec"), {})
    made = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert made == sorted(
        [
            "access.png",
            "content.png",
            "usage.png",
            "entropy.pdf",
            "heads.svg",
            "survival.png",
            "slots.html",
            "record.npz",
        ]
    )
    assert len(list((tmp_path / "neural").iterdir())) == 6


def test_the_pictures():
    pictures = re.findall(r"!\[[^\]]+\]\((images/[^)]+)\)", PAGE)
    assert len(pictures) == 13
    for picture in pictures:
        assert (DOCS / picture).stat().st_size < 150_000
