"""A differentiable neural computer (the package dnc) in a process of its own: told by lines of JSON when its turn is.

It is run as a file, by whichever interpreter has the peer: besides that it needs PyTorch alone. The model is an
embedding, the DNC (Graves et al. 2016) with one layer of LSTM as controller and one memory, and a linear head; a turn
is one training step with AdamW.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any


class Worker:
    """The model and its step."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch

        try:
            dnc = importlib.import_module("dnc")
        except ImportError as error:
            hint = (
                "install it with: pip install 'memory-titan[bench-slots]', or name a Python that has it: --peer_python"
            )
            raise ImportError(f"dnc: {error}; {hint}") from error
        from importlib.metadata import version

        torch.set_num_threads(job["threads"])
        torch.set_flush_denormal(True)
        torch.manual_seed(0)
        width = job["hidden"]
        self.computer = dnc.DNC(
            input_size=width,
            hidden_size=width,
            num_layers=1,
            num_hidden_layers=1,
            nr_cells=job["slots"],
            cell_size=width // job["heads"],
            read_heads=job["heads"],
        )
        self.embedding, self.head = torch.nn.Embedding(job["vocab"], width), torch.nn.Linear(width, job["vocab"])
        model = torch.nn.ModuleList([self.embedding, self.computer, self.head])
        self.ids = torch.randint(job["vocab"], (job["batch"], job["tokens"]))
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        self.loss = torch.nn.functional.cross_entropy
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.facts = {"version": version("dnc"), "torch": torch.__version__, "parameters": parameters}

    def turn(self) -> dict[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        logits = self.head(self.computer(self.embedding(self.ids))[0])
        loss = self.loss(logits[:, :-1].flatten(0, 1), self.ids[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        return {"times": (time.perf_counter() - wall, time.process_time() - cpu), "loss": loss.item()}


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the answers

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        worker = Worker(json.loads(sys.stdin.readline()))
        say(worker.facts)
        for _ in sys.stdin:
            say(worker.turn())
    except BrokenPipeError:
        pass
    except Exception as error:
        words = str(error).strip().splitlines()
        say({"error": f"{type(error).__name__}: {words[0] if words else 'no message'}"})


if __name__ == "__main__":
    main()
