"""One contender in a process of its own, and the handle by which the benchmark tells it when its turn is.

A line of JSON each way: the job goes in; what is known beforehand comes out; then, for every line that goes in, one
sample comes out. A child that waits for its turn sleeps. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, cast

_MEMORY = 0.8  # of what is available when a child starts: no more than that for it


class ChildError(RuntimeError):
    """What went wrong in a child, in one line."""


@dataclass(frozen=True)
class Job:
    """What a child has to time."""

    contender: str  # see _prepare
    kind: str  # forward, training, token, stream; probe: only say what is there
    dim: int
    heads: int
    tokens: int
    threads: int
    dtype: str = "float32"


class Child:
    """The benchmark's side. Use as a context manager, so that no child outlives it."""

    def __init__(self, job: Any, command: Sequence[str] = (sys.executable, "-m", __name__)) -> None:
        """`job`: a dataclass with `threads`; `command`: of what speaks as this module does."""
        # Torch's threads wait for each other by spinning, which beside any other busy process makes two of them many
        # times slower than one. Waiting asleep costs almost nothing, and it costs every contender the same.
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(job.threads)}
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for the benchmark, which ends its children itself
        )
        self._tell(asdict(job))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # something was still to be written to it
                cast(TextIO, stream).close()
        self._errors.close()

    def facts(self, on_progress: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
        """Wait until it is ready; what it knows beforehand."""
        while "progress" in (answer := self._hear()):
            on_progress(answer["progress"])
        return answer

    def turn(self, **order: Any) -> dict[str, Any]:
        """Let it time its parts once, or do what it is told."""
        self._tell(order)
        return self._hear()

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            stdin = cast(TextIO, self._process.stdin)
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
        except OSError:
            raise ChildError(self._last_words()) from None

    def _hear(self) -> dict[str, Any]:
        line = cast(TextIO, self._process.stdout).readline()
        if not line:
            raise ChildError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -getattr(signal, "SIGKILL", 9):
            return "killed by the system; most likely there was not enough memory"
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f"ended with code {code}: {lines[-1] if lines else 'no message'}"


def main() -> None:
    """The child's side."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the answers

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    with suppress(OSError):
        # Where memory runs out, the system shall end this process and no other one.
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        job = Job(**json.loads(sys.stdin.readline()))
        facts, turn = _prepare(job, lambda done: say({"progress": done}))
        say(facts)
        while sys.stdin.readline():
            say(turn())
    except BrokenPipeError:
        pass
    except Exception as error:
        words = str(error).strip().splitlines()
        say({"error": f"{type(error).__name__}: {words[0] if words else 'no message'}"})


def _prepare(job: Job, on_progress: Callable[[int], None]) -> Any:
    import torch

    # Decayed states and gradients pass through the denormal numbers, on which CPUs are many times slower. The
    # setting is each thread's own and new ones inherit it, so it comes before torch has made any.
    torch.set_flush_denormal(True)
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)

    from memory_titan.benchmarks import kinds, measure, ours, peer, work

    measure.stay_within(_MEMORY)

    if job.contender == "products":
        loop = work.ProductLoop(job.dim, job.heads)
        return {"flops": loop.flops}, lambda: {"times": {"products": measure.timed(loop.run)}, "finite": True}
    build = {
        "ours-exact": lambda: ours.build("exact", job.dim, job.heads),
        "ours-anchored": lambda: ours.build("anchored", job.dim, job.heads),
        "ours-recompute": lambda: ours.build("exact", job.dim, job.heads, recompute=True),
        "ours-pieces": lambda: ours.in_pieces(job.dim, job.heads),
        "peer-chunked": lambda: peer.build("chunked", job.dim, job.heads),
        "peer-default": lambda: peer.build("default", job.dim, job.heads),
    }
    if job.contender not in build:
        raise ValueError(f"contender must be products or one of {', '.join(build)}; got {job.contender!r}")
    subject = build[job.contender]()
    facts: dict[str, Any] = {}
    turn: kinds.Turn = dict
    if job.kind == "probe":
        pass
    elif job.kind == "token":
        facts, turn = kinds.token(subject, job.dim, job.tokens)
    elif job.kind == "stream":
        facts, turn = kinds.stream(subject, job.dim, job.tokens, getattr(torch, job.dtype), on_progress)
    else:
        facts, turn = kinds.sequence(subject, job.dim, job.tokens, grad=job.kind == "training")
    return {"version": subject.version, "fast_weights": subject.fast_weights, **facts}, turn


if __name__ == "__main__":
    main()
