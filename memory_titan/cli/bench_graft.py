"""`memory-titan bench graft`: what a memory beside the attention costs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from memory_titan.cli.common import Refusal, both, plainly, steps


@click.command("graft")
@click.option("--adapter", type=click.Path(path_type=Path), help="Folder of a graft.  [default: an untrained one]")
@click.option("--model", default="smollm2", show_default=True, metavar="NAME", help="The frozen model.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="bfloat16", show_default=True)
@click.option("--window", type=click.IntRange(1), default=512, show_default=True, help="Of the untrained graft.")
@click.option("--layers", default="26", show_default=True, help="Of the untrained graft.")
@click.option("--kept", default="4096,16384,65536", show_default=True, help="Tokens in view when one is decoded.")
@click.option("--read", "lengths", default="4096,16384", show_default=True, help="Tokens read at a time.")
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True)
@click.option(*both("read_turns"), type=click.IntRange(1), default=1, show_default=True, help="Of the long readings.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Write the numbers here.")
@plainly
def bench_graft_command(
    adapter: Path | None, model: str, dtype: str, window: int, layers: str, kept: str, lengths: str, turns: int,
    read_turns: int, json_path: Path | None,
) -> None:  # fmt: skip
    """A graft beside the bare model at the same window, and beside full attention: time a token, bytes carried on."""
    import torch

    from memory_titan.benchmarks import graft as bench
    from memory_titan.cli.train import parse_layers
    from memory_titan.graft.config import MAGConfig
    from memory_titan.graft.model import MemoryModel, get_memory_model
    from memory_titan.hybrid.frozen import load_frozen

    try:
        held, read = ([int(n) for n in text.split(",") if n] for text in (kept, lengths))
    except ValueError:
        raise Refusal(f"--kept and --read are numbers, such as 4096,16384; got {kept!r} and {lengths!r}") from None
    frozen = load_frozen(model)
    frozen.model.to(getattr(torch, dtype))
    if adapter is not None:
        graft = MemoryModel.from_pretrained(frozen.model, str(adapter))
    else:
        config = MAGConfig(
            layers=parse_layers(layers), window=window, sinks=4, segment=max(256, window), source="tokens", ngram=7,
            memory_layers=1, memory_dim=2 * frozen.model.config.hidden_size, memory_heads=2, n_persistent_tokens=0,
            chunk_size=32, memory={"algorithm": "descent", "retention": "none", "gates": "hard"},
        )  # fmt: skip
        graft = get_memory_model(frozen.model, config)
    costs: list[bench.Cost] = []
    with steps(2 + len(held) + len(read)) as advance, torch.no_grad():
        costs += bench.reading(graft, 1024, turns, ["graft", "window"])
        advance("training")
        costs += bench.training(graft, 1024, turns)
        advance("decoding")
        for length in held:
            costs += bench.decoding(graft, length, turns, ["graft", "window", "full"])
            advance("decoding")
        for length in read:
            costs += bench.reading(graft, length, read_turns, ["graft", "full"])
            advance("reading")
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(bench.records(costs), indent=2) + "\n", "utf-8")
    click.echo(bench.table(costs), nl=False)
