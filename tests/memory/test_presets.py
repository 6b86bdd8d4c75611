"""The table of presets in the docs is the code's."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from memory_titan import NeuralMemory
from memory_titan.cli import main
from memory_titan.memory.neural.presets import PRESETS, preset_table

DOCS = Path(__file__).parents[2] / "docs" / "family.md"


def test_docs_hold_the_table_of_the_code():
    between = DOCS.read_text("utf-8").split("<!-- presets -->\n")[1].split("<!-- /presets -->")[0]
    assert between.strip() == preset_table(), "put the output of `memory-titan presets --markdown` there"


def test_the_command_prints_it():
    printed = CliRunner().invoke(main, ["presets", "--markdown"])
    assert printed.exit_code == 0
    assert printed.output.strip() == preset_table()
    assert CliRunner().invoke(main, ["presets"]).exit_code == 0


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_changed(name):
    memory = NeuralMemory.preset(name, 16, heads=2, gates="hard")
    assert memory.config.gates == "hard"


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ValueError, match=r"no preset 'titan'; there are .*titans"):
        NeuralMemory.preset("titan", 16)
