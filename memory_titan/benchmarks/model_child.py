"""One language model in a process of its own, told by lines of JSON when its turn is: training steps, or decoding.

It is run as a file, by whichever interpreter has the peer, titans-pytorch; for the peer it needs PyTorch alone besides.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

PIECE = 4096  # tokens read at a time, of a long context
FEW = 8  # single tokens timed together where each takes long

Turn = Callable[[], dict[str, Any]]


def instruments() -> Any:
    """`measure.py`, which needs nothing, from beside this file: the peer's interpreter need not have memory-titan."""
    name = "memory_titan_measure"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("measure.py"))
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(job: dict[str, Any]) -> Any:
    """The job's model, of memory_titan."""
    models = importlib.import_module("memory_titan.models")
    return getattr(models, job["model"])(getattr(models, job["config"])(**job["options"]))


def build_peer(job: dict[str, Any]) -> Any:
    """titans-pytorch's MAC, as it comes, but for the sizes and what the job's options say."""
    try:
        peer = importlib.import_module("titans_pytorch")
    except ImportError as error:
        hint = "install it with: pip install 'memory-titan[bench]', or name a Python that has it: --peer_python"
        raise ImportError(f"titans-pytorch: {error}; {hint}") from error
    return peer.MemoryAsContextTransformer(**job["options"])


def training(job: dict[str, Any], measure: Any) -> tuple[dict[str, Any], Turn]:
    """A turn is a step: forward, backward, AdamW, on the same random tokens each time."""
    import torch

    peer = job["model"] == "peer"
    model = build_peer(job) if peer else build(job)
    water = measure.HighWater()
    ids = torch.randint(job["vocab"], (job["batch"], job["tokens"] + peer))  # the peer takes one for a label
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    last = 0.0

    def step() -> None:
        nonlocal last
        optimizer.zero_grad()
        loss = model(ids, return_loss=True) if peer else model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        last = loss.item()

    def turn() -> dict[str, Any]:
        times = measure.timed(step)
        told = {"times": times, "loss": last, "peak": measure.high_water(), "growth": water.growth()}
        optimizer.zero_grad()
        measure.release()  # those who wait do not fill the machine
        return told

    return {"parameters": sum(p.numel() for p in model.parameters())}, turn


def decoding(job: dict[str, Any], measure: Any) -> tuple[dict[str, Any], Turn]:
    """A turn times single tokens behind each context: the mean of `calls` of them, contexts one after the other."""
    import torch

    model = (build_peer(job) if job["model"] == "peer" else build(job)).eval()
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "bytes": {}}
    streams: dict[int, Any] = {}
    contexts: Any = _peer_streams if job["model"] == "peer" else _streams
    for length, stream in contexts(model, job):
        streams[length] = stream
        if job["model"] != "peer":
            facts["bytes"][str(length)] = stream.nbytes
    facts["resident"] = measure.resident()

    def turn() -> dict[str, Any]:
        times = {}
        for length, stream in streams.items():
            calls = min(job["calls"], FEW) if job["model"] == "peer" or job["filled"] else job["calls"]
            tokens = torch.randint(job["vocab"], (calls, 1, 1))
            go_on = stream if job["model"] == "peer" else _reader(model, stream.copy())
            with torch.no_grad():
                times[str(length)] = [seconds / calls for seconds in measure.timed(lambda: list(map(go_on, tokens)))]  # noqa: B023
        return {"times": times}

    return facts, turn


def _reader(model: Any, cache: Any) -> Callable[[Any], Any]:
    return lambda token: model(input_ids=token, past_key_values=cache).logits


def _streams(model: Any, job: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """A `StateCache` behind each context: read piece by piece, or (`filled`) of random keys and values."""
    import torch

    from memory_titan.models import StateCache

    cache, read = StateCache(), 0
    for length in job["contexts"]:
        if job["filled"]:
            states = [replace(state, tokens=torch.full_like(state.tokens, length)) for state in model.initial_states(1)]
            shapes = [(*state.keys.shape[:2], length, state.keys.shape[3]) for state in states]
            yield (
                length,
                StateCache(
                    [
                        replace(state, keys=torch.randn(shape), values=torch.randn(shape))
                        for state, shape in zip(states, shapes, strict=True)
                    ],
                    length,
                ),
            )
            continue
        with torch.no_grad():
            while read < length:
                ids = torch.randint(job["vocab"], (1, min(PIECE, length - read)))
                model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
                read += ids.shape[1]
        yield length, cache.copy()


def _peer_streams(model: Any, job: dict[str, Any]) -> Iterator[tuple[int, Callable[[Any], Any]]]:
    """As its own `sample` does it: the whole prompt at once, then the text so far and a cache for every token."""
    import torch

    for length in job["contexts"]:
        with torch.no_grad():
            whole = model.seq_len_with_longterm_mem(length + 64 * FEW)
            dims = model.axial_pos_emb.maybe_derive_outer_dim(whole, (model.neural_memory_segment_len,))
            positions = model.axial_pos_emb(dims, return_factorized=True)
            text = torch.randint(job["vocab"], (1, length))
            _, cache = model(text, disable_flex_attn=True, return_cache=True, factorized_pos_emb=positions)
        held = {"text": text, "cache": cache}

        def go_on(token: Any, held: dict[str, Any] = held, positions: Any = positions) -> Any:
            held["text"] = torch.cat([held["text"], token], 1)
            options = {"disable_flex_attn": True, "return_cache": True, "factorized_pos_emb": positions}
            logits, held["cache"] = model(held["text"], cache=held["cache"], **options)
            return logits

        yield length, go_on


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get between the answers

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        job = json.loads(sys.stdin.readline())
        import torch

        torch.set_flush_denormal(True)  # before torch has made any thread: new ones inherit it
        torch.set_num_threads(job["threads"])
        torch.manual_seed(0)
        facts, turn = (training if job["kind"] == "training" else decoding)(job, instruments())
        say(facts | {"torch": torch.__version__, "version": _version(job)})
        for _ in sys.stdin:
            say(turn())
    except BrokenPipeError:
        pass
    except Exception as error:
        words = str(error).strip().splitlines()
        say({"error": f"{type(error).__name__}: {words[0] if words else 'no message'}"})


def _version(job: dict[str, Any]) -> str:
    from importlib.metadata import version

    if job["model"] == "peer":
        return version("titans-pytorch")
    return str(importlib.import_module("memory_titan").__version__)


if __name__ == "__main__":
    main()
