"""What docs/models.md shows runs as it stands there, and the architecture made there keeps the laws."""

import re
from pathlib import Path

import torch

import laws

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_snippets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for snippet in SNIPPETS[:2]:
        exec(compile(snippet, "docs/models.md", "exec"), {})
    assert int(capsys.readouterr().out) > 0
    assert (tmp_path / "mag" / "model.safetensors").exists()


def test_an_architecture_of_ones_own(tmp_path):
    (snippet,) = SNIPPETS[2:]
    assert len([line for line in snippet.splitlines() if line.strip()]) < 60
    names = {"__name__": "glance"}
    exec(compile(snippet, "docs/models.md", "exec"), names)
    torch.manual_seed(0)
    config = names["GlanceConfig"](
        vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, window=5, preset="gated_deltanet"
    )
    model = names["GlanceForCausalLM"](config).double().eval()
    layer, x = model.layers[0], torch.randn(3, 40, 16, dtype=torch.float64)
    laws.any_split(layer, x, [3, 4, 19, 33])
    laws.causal(layer, x, 21)
    laws.rows_alone(layer, x)
    laws.padding_changes_nothing(layer, x, torch.rand(3, 40) < 0.6, before=4)
    laws.state_round_trip(layer, x, tmp_path / "state.safetensors")
    ids = torch.randint(31, (2, 19))
    same = [model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)]
    assert torch.equal(*same)
    model.save_pretrained(tmp_path / "glance")
    loaded = names["AutoModelForCausalLM"].from_pretrained(tmp_path / "glance").double()
    laws.same(loaded(ids).logits, model(ids).logits, 1e-6)  # kept in float64, loaded as float32 or float64
