"""The benchmark of the store runs, its figures mean what they say, and a contender that fails costs only itself."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from memory_titan.benchmarks import store, store_data
from memory_titan.benchmarks.store_report import ROWS, markdown
from memory_titan.cli import main


@pytest.fixture
def small(monkeypatch):
    for module in (store, store_data):
        monkeypatch.setattr(module, "SINGLE", 10)
        monkeypatch.setattr(module, "QUERIES", 60)
    monkeypatch.setattr(store, "ROUNDS", 1)
    sentences = [f"Return the {n}th of all the values that are given." for n in range(50)]
    monkeypatch.setattr(store_data, "docstring_sentences", lambda: sentences)


def test_ours_and_faiss_are_measured(small, tmp_path):
    pytest.importorskip("faiss")
    out = tmp_path / "record.json"
    call = ["bench", "store", "--sizes", "120", "--against", "faiss,chromadb", "--dim", "16", "--output", str(out)]
    # an interpreter without chromadb: its column says so, and the others are there
    nowhere = tmp_path / "python"
    nowhere.write_text(f"#!{sys.executable}\nraise SystemExit('no chromadb here')\n")
    nowhere.chmod(0o755)
    result = CliRunner().invoke(main, [*call, "--peer-python", str(nowhere)])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    summary = record["sizes"][0]["summary"]
    assert "no chromadb here" in summary["chromadb"]["error"]
    assert summary["ours"]["error"] is None
    assert (summary["ours"]["recall"], summary["faiss-flat"]["recall"]) == (1, 1)
    assert set(store.QUERY_KINDS) < set(summary["ours"])
    assert "1 in 2" not in summary["faiss-hnsw"]
    found = record["sizes"][0]["samples"]["ours"]["1 in 50"][0]["found"]
    assert {int(name) % store_data.USERS for hits in found for name in hits} == {7}
    assert result.output.count("\n|") == len(ROWS) + 1


def test_figures_are_of_the_samples():
    def turns(*walls):
        return [{"walls": list(each), "cpu": sum(each) / 2} for each in walls]

    samples = {
        "ours": {"bulk": turns([1.0], [2.0], [3.0]), "dense": [{"walls": [0.1], "cpu": 0.1, "found": [["a", "b"]]}]},
        "peer": {"bulk": turns([5.0], [10.0], [30.0])},
    }
    summary = store.summarize(samples, [["a", "c"]])
    assert summary["peer"]["bulk"]["x ours, CPU"] == 5
    assert (summary["ours"]["bulk"]["wall s"], summary["ours"]["bulk"]["cpu s"]) == (6, 3)
    assert summary["ours"]["recall"] == 0.5
    text = markdown({"sizes": [{"size": 60, "summary": summary}]})
    assert "| bulk insert, items a CPU second | 20 | 3 (5x) |" in text


def test_made_up_vectors_have_neighbours():
    vectors = store_data.made_up(500, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T - 2 * np.eye(500)
    assert np.median(cosines.max(1)) > 0.6 > 3 * np.abs(np.median(cosines))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "10"], "sizes must be at least 100"),
        (["--sizes", "many"], "whole numbers"),
        (["--against", "pinecone"], "against must be of chromadb, faiss"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    result = CliRunner().invoke(main, ["bench", "store", *options])
    assert (result.exit_code, message in result.output) == (2, True)


def test_too_few_vectors_are_refused(tmp_path):
    file = tmp_path / "few.npy"
    np.save(file, np.eye(8, dtype=np.float32))
    result = CliRunner().invoke(main, ["bench", "store", "--sizes", "100", "--vectors", str(file)])
    assert (result.exit_code, "must hold at least" in result.output) == (2, True)
