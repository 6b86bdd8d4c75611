"""`memory-titan experiment`: settings from a file, a record and a report in a folder, one line for what cannot be."""

import json

import pytest
import yaml
from click.testing import CliRunner

from memory_titan.cli import main

TINY = {
    "models": ["slots", "lstm"],
    "ablations": [],
    "hidden": 16,
    "bank": {"heads": 2, "slots": 8, "top_k": 2, "chunk_size": 8},
    "pairs": 2,
    "lengths": [8],
    "rows": 4,
    "steps": 3,
    "rates": [1e-3],
    "sweep_steps": 2,
    "sweep_distances": [4],
    "longer": 0,
    "distances": [4, 20],
    "test_rows": 3,
}


def invoke(*arguments):
    return CliRunner().invoke(main, ["experiment", *map(str, arguments)])


def test_a_run_leaves_its_record_and_its_report(tmp_path):
    config, output = tmp_path / "tiny.yaml", tmp_path / "new" / "out"
    config.write_text(yaml.safe_dump(TINY))
    outcome = invoke("longdep", "--output", output, "--config", config, "--seeds", 1)
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((output / "record.json").read_text())
    assert record["settings"]["seeds"] == 1 and record["settings"]["hidden"] == 16
    assert (output / "report.md").read_text() in outcome.stdout
    assert list(output.glob("*.png"))


@pytest.mark.parametrize("name", ["longdep", "needles", "text", "mqar", "continual", "forgetting"])
def test_settings_that_cannot_be(name, tmp_path):
    (tmp_path / "bad.yaml").write_text("sedes: 3\n")
    outcome = invoke(name, "--output", tmp_path / "out", "--config", tmp_path / "bad.yaml")
    assert outcome.exit_code == 2 and "no setting sedes" in outcome.stderr
    assert invoke(name, "--output", tmp_path / "out", "--config", tmp_path / "none.yaml").exit_code == 2
    (tmp_path / "file").write_text("")
    outcome = invoke(name, "--output", tmp_path / "file")
    assert outcome.exit_code == 2 and "cannot make the folder" in outcome.stderr
