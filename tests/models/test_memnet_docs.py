"""What docs/memnet.md shows runs as it stands there."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "memnet.md").read_text(encoding="utf-8")


def test_the_snippets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(snippets) == 2
    for snippet in snippets:
        exec(compile(snippet, "docs/memnet.md", "exec"), {})
    said = capsys.readouterr().out
    assert "torch.Size([2, 4, 32, 16]) torch.Size([2, 4, 32])" in said
    assert "torch.Size([2, 100, 2, 5]) torch.Size([2, 100, 2, 4])" in said
    assert (tmp_path / "memnet" / "model.safetensors").exists()
