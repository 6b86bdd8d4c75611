"""`memory-titan chat`: what it refuses before a model is loaded, and where it listens."""

from __future__ import annotations

import importlib
import socket

import pytest
from click.testing import CliRunner

from fake_engine import FakeEngine
from memory_titan.cli import main

command = importlib.import_module("memory_titan.cli.chat")  # in its package, this name is the command's


def chat(*options):
    return CliRunner().invoke(main, ["chat", *options])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--memory", "a.mem", "--memories", "b"], "give one of them"),
        (["--host", "0.0.0.0", "--memory", "a.mem"], "--memories DIR, a memory for each"),
        (["--raw"], "--raw goes with --adapter"),
        (["--terminal", "--session", "x"], "--session goes with --adapter"),
        (["--terminal", "--port", "1"], "--port goes without --terminal"),
        (["--adapter", "x", "--memory", "a.mem"], "--memory goes without --adapter"),
        (["--adapter", "x", "--terminal"], "--terminal goes without --adapter"),
        (["--port", "70000"], "0<=x<=65535"),
    ],
)
def test_options_that_say_nothing_are_refused(options, why):
    result = chat(*options)
    assert result.exit_code == 2 and why in result.output


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(command, "_engine", lambda model: FakeEngine())
    monkeypatch.setattr(command, "_name", lambda engine: "A stand-in")
    monkeypatch.setattr(command, "_folder", lambda engine, given: given)


def test_a_port_that_is_taken_and_a_warning_to_all(engine, tmp_path):
    pytest.importorskip("nicegui", reason="needs the extra chat")
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        for _ in range(2):  # the folder is let go of
            result = chat("--memories", str(tmp_path), "--host", "0.0.0.0", "--port", str(port), "--no-browser")
            assert result.exit_code == 2 and f"port {port} is taken; give another" in result.output
    assert "There is no password" in result.output and "with a memory of their own" in result.output


def test_a_damaged_memory_is_refused(engine, tmp_path):
    (tmp_path / "a.mem").write_bytes(b"nothing")
    result = chat("--terminal", "--memory", str(tmp_path / "a.mem"))
    assert result.exit_code == 2 and "not a memory file" in result.output


def test_in_the_terminal(engine, tmp_path):
    file = tmp_path / "a.mem"
    given = ["chat", "--terminal", "--memory", str(file)]
    result = CliRunner().invoke(main, given, input="The code of the boat shed is 5082.\n/bye\n")
    assert result.exit_code == 0 and "written, surprise" in result.output
    assert FakeEngine(file).capacity.held == 1
