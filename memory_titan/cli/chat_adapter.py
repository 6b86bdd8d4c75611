"""`memory-titan chat --adapter`: a conversation in the terminal with a grafted model, whose session is the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_HELP = "/new forgets everything; /save FILE and /load FILE keep a session; /off and /on switch the memory; /bye ends."


def talk_to_graft(adapter: Path, model: str, dtype: str, path: Path | None, max_new_tokens: int, raw: bool) -> None:
    """Read lines and answer them until /bye or the input's end.

    Args:
        adapter: folder of a trained graft.
        model: its base model, as `load_frozen` takes it.
        dtype: "float32" or "bfloat16".
        path: of a session to go on with; it is saved at the end.
        max_new_tokens: of an answer.
        raw: continue what is typed, without the model's chat format.

    Raises:
        ValueError: the adapter is no graft, or the session is not its own.
    """
    import torch
    from transformers import TextStreamer

    from memory_titan.cli.answers import checkpoint_folder
    from memory_titan.graft.model import MemoryModel
    from memory_titan.hybrid.frozen import load_frozen

    frozen = load_frozen(model)
    frozen.model.to(getattr(torch, dtype))
    graft = MemoryModel.from_pretrained(frozen.model, checkpoint_folder(str(adapter)))
    session = graft.load_session(str(path)) if path is not None and path.exists() else graft.new_session()
    streamer: Any = TextStreamer(frozen.tokenizer, skip_prompt=True, skip_special_tokens=True)
    click.echo(_HELP, err=True)
    memory = True
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            break
        command, _, file = line.partition(" ")
        if command == "/bye":
            break
        if command == "/new":
            session = graft.new_session()
        elif command in ("/on", "/off"):
            memory = command == "/on"
        elif command in ("/save", "/load") and file:
            try:
                if command == "/save":
                    session.save(file)
                else:
                    session = graft.load_session(file)
            except (OSError, ValueError) as error:
                click.echo(str(error), err=True)
        elif line.startswith("/"):
            click.echo(_HELP, err=True)
        elif line:
            ids = _turn(frozen, line, raw, session.columns == 0)
            options = {"max_new_tokens": max_new_tokens, "do_sample": False, "streamer": streamer}
            try:
                if memory:
                    graft.generate(ids, memory=session, **options)
                else:
                    with graft.disable_memory(keep_window=True):
                        graft.generate(ids, memory=session.copy(), **options)
            except KeyboardInterrupt:
                click.echo("\n(stopped; the answer is not in the session)", err=True)
    if path is not None:
        session.save(path)


def _turn(frozen: Any, line: str, raw: bool, first: bool) -> Any:
    """What a turn adds to the session, `[1, T]`."""
    import torch

    if raw:
        ids = [frozen.first_token] * first + frozen.encode(line)
    elif first:
        ids = frozen.prompt([{"role": "user", "content": line}])
    else:  # the answer's end was read, or was cut off by its length: one end more does no harm
        before, after = frozen.user_turn
        ids = before[1:] + frozen.encode(line) + after
    return torch.tensor([ids], device=frozen.device)
