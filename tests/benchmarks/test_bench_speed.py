"""The speed benchmark but for speed: formula, arithmetic, record, tables. Nothing here measures time."""

import importlib.util
import json
import os
from itertools import pairwise

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from memory_titan.benchmarks import kinds, ours, peer, report, speed, work
from memory_titan.benchmarks.child import Child, ChildError, Job
from memory_titan.benchmarks.measure import HighWater, Spread, resident
from memory_titan.cli import main

HAS_PEER = all(importlib.util.find_spec(name) for name in ("titans_pytorch", "tensordict"))


@pytest.mark.parametrize(("width", "chunk"), [(64, 64), (256, 64), (24, 16)])
def test_flops_are_those_of_the_products(width, chunk):
    hidden = 4 * width
    P = 2 * width * hidden
    assert work.flops_per_token(width, hidden, chunk) == 11 * P + 4 * chunk * (width + hidden)
    assert work.flops_per_token(width, hidden, chunk, momentum=False) == 7 * P + 4 * chunk * (width + hidden)
    # Counted by hand: with the exact rule and momentum, twelve products a chunk have the size of a layer.
    products = work.weight_products(width, hidden, chunk)
    assert sum(2 * m * k * n * times for m, k, n, times in products) == 12 * P * chunk
    system = 2 * chunk * hidden + chunk * width
    assert work.flops_per_token(width, hidden, chunk, exact=True) == 12 * P + 4 * chunk * (width + hidden) + system
    assert work.flops_per_token(width, hidden, chunk, momentum=False, exact=True) == (
        7 * P + 4 * chunk * (width + hidden) + system
    )


def test_flops_of_a_point():
    point = {"kind": "forward", "dim": 256, "heads": 4, "tokens": 100}
    forward = speed.point_flops(point, exact=False)
    assert forward == 100 * 4 * work.flops_per_token(64, 256)
    assert speed.point_flops(point | {"kind": "training"}, exact=False) == 3 * forward


def test_the_product_loop_counts_what_it_runs(monkeypatch):
    monkeypatch.setattr(work, "timed", lambda call: (call(), (0.1, 0.1))[1])
    seen = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b, out: seen.append(2 * a.numel() * b.shape[2]) or bmm(a, b, out=out))
    loop = work.ProductLoop(32, 2)
    seen.clear()
    loop.run()
    assert sum(seen) == loop.flops


def test_median_and_ratio():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    # pair by pair: the machine was ten times slower during the second pair, and the ratio does not see it
    assert Spread.of_ratios([2.0, 40.0, 3.0], [1.0, 10.0, 1.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of_ratios([2.0, 9.0], [1.0]) == Spread(2.0, 2.0, 2.0)
    assert Spread.of_ratios([], [1.0]) is None


def test_high_water_sees_memory_come():
    if resident() is None:
        pytest.skip("this system does not say what a process holds")
    water = HighWater()
    held = torch.ones(100 << 18)  # 100 MiB
    del held
    growth = water.growth()
    assert growth is not None and growth <= 200 << 20
    if os.path.exists("/proc/self/clear_refs"):
        assert growth >= 90 << 20


def result(*walls, part="layer", **more):
    samples = [{"times": {part: [wall, 2 * wall]}, "finite": True, "peak": 1 << 20} for wall in walls]
    return {"samples": samples, "error": None, "facts": {"fast_weights": 8, "flops": 1000, **more}}


def made_up_point(**changes):
    point = {"kind": "forward", "dim": 8, "heads": 1, "tokens": 64, "dtype": "float32", "contenders": []}
    results = {
        "products": result(1e-6, 1e-6, part="products"),
        "ours-exact": result(1.0, 10.0),
        "ours-anchored": result(2.0, 5.0),
        "peer-chunked": result(4.0, 30.0),
        "peer-default": {"samples": [], "error": "ValueError: no | luck", "facts": None},
    }
    record = point | {"results": results} | changes
    return record | {"summary": speed.summarize(record)}


def made_up_record(*made):
    settings = {"threads": 2, "depth": 2, "expansion": 4, "chunk_size": 64, "batch": 1}
    machine, versions = {"cpu": "abacus", "cpus": 2, "system": "none"}, {"torch": "2", "python": "3"}
    return {"command": "count", "settings": settings, "versions": versions, "machine": machine, "seconds": 60.0,
            "points": list(made)}  # fmt: skip


def test_summary():
    summary = made_up_point()["summary"]
    assert summary["ours-exact"]["parts"]["layer"]["wall"] == {"median": 5.5, "low": 1.0, "high": 10.0}
    assert summary["peer-chunked"]["parts"]["layer"]["ours-exact"]["wall"] == {"median": 3.5, "low": 3.0, "high": 4.0}
    assert summary["peer-chunked"]["parts"]["layer"]["ours-anchored"]["cpu"] == {"median": 4.0, "low": 2.0, "high": 6.0}
    assert summary["products"]["rate"]["median"] == pytest.approx(1e9)
    flops = 64 * work.flops_per_token(8, 32, exact=True)
    assert summary["ours-exact"]["share"]["layer"]["high"] == pytest.approx(flops / 1e9)
    assert "share" not in summary["peer-chunked"] and "peer-default" not in summary


def test_tables():
    record = made_up_record(made_up_point(), made_up_point(kind="training"))
    found = report.tables(record)
    assert [table.title for table in found] == ["Forward", "Forward and backward"]
    for table in found:
        assert all(len(row) == len(table.header) for row in table.rows)
        assert [row[3] for row in table.rows] == ["exact", "anchored", "peer, chunked"]
    lines = found[0].markdown().splitlines()
    assert lines[0] == "### Forward" and len({line.count("|") for line in lines[2:]}) == 1
    assert "3.50 (3.00-4.00)" in lines[-1]
    assert report.failures(record)[0].endswith("peer-default failed: ValueError: no | luck")
    console = Console(record=True, width=60)
    report.show(record, console)
    text = console.export_text()
    assert "3.50 (3.00-4.00)" in text and "no | luck" in text and "ours 8 and peer 8" in " ".join(text.split())


def test_the_document_goes_into_its_place(tmp_path):
    record, path = made_up_record(made_up_point()), tmp_path / "speed.md"
    report.write_document(record, path)
    whole = path.read_text("utf-8")
    assert "### Forward" in whole and "ours updates at every token" in whole
    path.write_text("before\n" + whole + "after\n", "utf-8")
    report.write_document(record | {"command": "count again"}, path)
    again = path.read_text("utf-8")
    assert again.startswith("before\n") and again.endswith("after\n") and again.count("### Forward") == 1
    assert "count again" in again
    path.write_text("something of yours", "utf-8")
    with pytest.raises(ValueError, match="has no place for the tables"):
        report.write_document(record, path)
    assert path.read_text("utf-8") == "something of yours"


def test_points():
    both = speed.points(speed.Settings(peer=True))
    assert [sum(point.kind == kind for point in both) for kind in speed.KINDS] == [8, 8, 2, 3]
    assert both[0].contenders == ("products", "ours-exact", "peer-chunked", "ours-anchored", "peer-default")
    assert not any("peer" in name for point in speed.points(speed.Settings()) for name in point.contenders)
    assert {point.kind for point in speed.points(speed.Settings(only="token"))} == {"token"}
    with pytest.raises(ValueError, match="256 is not"):
        speed.Settings(heads=(3,))


def test_ours_is_what_the_point_says():
    for rule in ("exact", "anchored"):
        subject = ours.build(rule, 32, 4)
        assert subject.module.config.rule == rule and subject.fast_weights == 2 * 8 * 32 * 4
        assert sum(w.numel() for w in subject.module.initial_state(1).momentum) == subject.fast_weights
    assert ours.can_recompute() == hasattr(subject.module.config, "checkpoint")


@pytest.mark.parametrize("grad", [False, True])
def test_the_op_by_itself_is_the_layers(grad, monkeypatch):
    memory = ours.build("exact", 16, 2).module
    x = torch.randn(1, 100, 16)
    call = ours.op_alone(memory, x, grad)
    assert call is not None
    y = call()
    assert y.requires_grad == grad and y.shape == (1, 2, 100, 8)
    with torch.no_grad():
        assert torch.equal(memory._output(y, x), memory(x)[0])
    monkeypatch.setattr(ours, "_OP", "no such name")
    assert ours.op_alone(memory, x, grad) is None


def test_a_stream_rereads_what_it_read(monkeypatch):
    monkeypatch.setattr(kinds, "PIECE", 32)
    subject, seen, progress = ours.build("exact", 16, 2), [], []
    inner = subject.call
    subject.call = lambda x, state: seen.append(x) or inner(x, state)
    facts, turn = kinds.stream(subject, 16, 350, torch.float32, progress.append)
    assert facts["finite"] and progress[-1] == 320 and facts["resident"][-1][0] == 320
    read = torch.cat(seen[1:], 1)  # without the warm-up
    seen.clear()
    assert set(turn()["times"]) == {"first", "last"}
    assert torch.equal(torch.cat(seen, 1), torch.cat([read[:, :128], read[:, 192:]], 1))


def test_a_failing_child_costs_its_own_turns():
    point = speed.Point("forward", 8, 2, 80, ("nobody-else", "ours-exact"))
    job = Job("ours-exact", "forward", 9, 2, 80, 1)
    with Child(job) as child, pytest.raises(ChildError, match="ValueError: dim must be a positive multiple"):
        child.facts()
    record = speed.measure(point, speed.Settings(repeats=1, threads=1))
    results = record["results"]
    assert results["ours-exact"]["error"] is None and results["ours-exact"]["samples"]
    assert "nobody-else" in results["nobody-else"]["error"] and "nobody-else" not in record["summary"]


def test_the_command(tmp_path):
    arguments = ["bench", "memory", "--dim", "8", "--heads", "2", "--tokens", "80", "--repeats", "1", "--threads", "1"]
    figures, tables = tmp_path / "speed.json", tmp_path / "speed.md"
    outcome = CliRunner().invoke(
        main, [*arguments, "--only", "forward", "--json", str(figures), "--markdown", str(tables)]
    )
    assert outcome.exit_code == 0, outcome.output
    assert "Forward" in outcome.output and "### Forward" in tables.read_text("utf-8")
    record = json.loads(figures.read_text("utf-8"))
    assert set(record) == {"benchmark", "command", "settings", "versions", "machine", "seconds", "points"}
    assert {"torch", "python"} <= set(record["versions"]) and record["settings"]["threads"] == 1
    assert record["command"].startswith("memory-titan bench memory --dim 8 --heads 2 --tokens 80")
    (point,) = record["points"]
    for name in ("ours-exact", "ours-anchored"):
        one = point["results"][name]
        assert one["error"] is None and one["samples"] and one["facts"]["fast_weights"] == 2 * 4 * 16 * 2
        assert all(len(times) == 2 for sample in one["samples"] for times in sample["times"].values())
    assert report.failures(record) == []


def test_what_cannot_be_is_refused_at_once(tmp_path):
    for arguments, words in (
        (["--dim", "8", "--heads", "3"], "multiple"),
        (["--json", str(tmp_path / "no" / "x.json")], "no such folder"),
        (["--markdown", str(tmp_path / "no" / "x.md")], "no such folder"),
    ):
        outcome = CliRunner().invoke(main, ["bench", "memory", *arguments])
        assert outcome.exit_code == 2 and words in outcome.output, outcome.output


@pytest.mark.skipif(HAS_PEER, reason="titans-pytorch is installed")
def test_a_missing_peer_names_the_extra():
    outcome = CliRunner().invoke(main, ["bench", "memory", "--against", "titans-pytorch"])
    assert outcome.exit_code == 2 and "pip install 'memory-titan[bench]'" in outcome.output


@pytest.mark.skipif(not HAS_PEER, reason="titans-pytorch is not installed")
def test_the_peer_is_what_it_is_called():
    chunked, default = peer.build("chunked", 32, 2), peer.build("default", 32, 2)
    assert chunked.fast_weights == default.fast_weights == ours.build("exact", 32, 2).fast_weights
    x = torch.randn(1, 3 * work.CHUNK, 32)

    def surprised_at(subject):
        """The weights at which the surprises of each next chunk are taken, from the first to the fourth."""
        with torch.no_grad():
            states = [subject.call(x[:, : n * work.CHUNK], None)[1] for n in (1, 2, 3)]
            return [dict(weights) for weights in (subject.module.init_weights(1), *(state.weights for state in states))]

    # Chunk by chunk they move at every chunk; by default they stay where the stream began.
    assert not any(torch.equal(a[key], b[key]) for a, b in pairwise(surprised_at(chunked)) for key in a)
    assert all(torch.equal(a[key], b[key]) for a, b in pairwise(surprised_at(default)) for key in a)
