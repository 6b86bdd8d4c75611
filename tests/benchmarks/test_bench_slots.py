"""The benchmark of MemNet's slots runs, its figures mean what they say, and a peer that fails costs only itself."""

from __future__ import annotations

import gc
import json
import sys

import pytest
from click.testing import CliRunner

from memory_titan.benchmarks import slots
from memory_titan.benchmarks.slots_size import Settings as BankSettings
from memory_titan.cli import main
from memory_titan.models.size import parameter_count


@pytest.fixture(autouse=True)
def quick_collections():
    """What is there already is not looked through before every measurement: that would be most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


# stands in for dnc's: what the child makes of it is what is tested
PEER = """
import torch

class DNC(torch.nn.Module):
    def __init__(self, input_size, hidden_size, nr_cells, cell_size, read_heads, **others):
        super().__init__()
        assert (input_size, hidden_size, nr_cells, cell_size, read_heads) == (16, 16, 8, 8, 2)
        self.linear = torch.nn.Linear(input_size, hidden_size)

    def forward(self, x):
        assert x.shape == (2, 12, 16)
        return self.linear(x), None
"""


def test_a_quick_run_with_a_peer(tmp_path, monkeypatch):
    (tmp_path / "dnc.py").write_text(PEER)
    known = tmp_path / "dnc-9.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: dnc\nVersion: 9.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    out = tmp_path / "record.json"
    result = CliRunner().invoke(main, ["bench", "slots", "--quick", "--against", "dnc", "--output", str(out)])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    told = record["models"][0]["contenders"]
    assert (told["dnc"]["version"], told["dnc"]["parameters"]) == ("9.0", 16 * 16 + 17 * 16 + 17 * 16)
    assert told["dnc"]["over memnet"]["median"] == pytest.approx(1 / told["dnc"]["memnet over it"]["median"])
    assert told["memnet"]["memnet over it"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert abs(told["window"]["parameters"] / told["memnet"]["parameters"] - 1) < 0.25
    assert [bank["settings"]["bank"] for bank in record["banks"]] == ["slots", "sparse"]
    assert "max_state_bytes" in record["refusal"]
    assert "| dnc | 800 |" in result.output


def test_a_missing_peer_costs_only_itself(tmp_path):
    nowhere = tmp_path / "python"
    nowhere.write_text(f"#!{sys.executable}\nraise SystemExit('no peer here')\n")
    nowhere.chmod(0o755)
    settings = slots.quick(slots.Settings(against=("dnc",), peer_python=str(nowhere)))
    told = slots.measure(settings.sizes[0], settings)["contenders"]
    assert "no peer here" in told["dnc"]["error"]
    assert told["window"]["cpu"]["median"] > 0


def test_ratios_are_of_neighbours():
    samples = {"memnet": [(1.0, 1.0), (2.0, 4.0)], "window": [(1.0, 0.5), (1.0, 1.0)], "dnc": []}
    told = slots.summary("window", samples)
    assert told["memnet over it"] == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert told["wall"]["median"] == 1.0
    assert slots.summary("dnc", samples) == {}


def test_sizes_are_equal_and_states_are_counted():
    for size in slots.SIZES[:2]:
        ours, window = size.models()
        assert abs(parameter_count(window) / parameter_count(ours) - 1) < 0.05
        assert slots.state_bytes(ours) > 4 * 3 * size.slots * size.hidden


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="against must be of dnc"):
        slots.Settings(against=("ntm",))
    with pytest.raises(ValueError, match="bank must be one of sparse, slots"):
        BankSettings(bank="heap")
    result = CliRunner().invoke(main, ["bench", "slots", "--quick", "--output", "nowhere/at/all.json"])
    assert (result.exit_code, "no such folder" in result.output) == (2, True)
