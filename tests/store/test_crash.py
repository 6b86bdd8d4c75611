"""kill -9 at random moments: what was acknowledged is there, nothing is half, the weights agree with the log."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("cycles", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_again_and_again(tmp_path, cycles):
    command = [sys.executable, str(HERE / "crash_cycles.py"), str(tmp_path / "a.memory"), str(cycles), "1"]
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1200, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["items"] > 5 * cycles
