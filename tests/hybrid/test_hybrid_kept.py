"""What was computed of a conversation is used again, and changes no word of it."""

from __future__ import annotations

import pytest
import torch

from memory_titan.hybrid import engine as module
from memory_titan.hybrid.speaking import Kept, speak
from test_hybrid_chat import TURNS, say
from test_hybrid_engine import NEVER, build

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_kept_cache_changes_nothing_but_what_is_computed(loaded, name):
    frozen = loaded(name)
    read: list[int] = []
    handle = frozen.model.base_model.register_forward_pre_hook(
        lambda module, given, named: read.append((given[0] if given else named["input_ids"]).shape[1]),
        with_kwargs=True,
    )
    try:
        kept, messages, before = Kept(), [], 0
        for turn in (*TURNS, "<clear>", *reversed(TURNS)):
            if turn == "<clear>":
                messages, before = (
                    [],
                    0,
                )  # the cache stays: what it holds is of another conversation from the first word on
                continue
            messages.append({"role": "user", "content": turn})
            prompt = frozen.prompt(messages)
            fresh = "".join(speak(frozen, prompt, 12))
            read.clear()
            held_before = list(kept.ids)
            assert "".join(speak(frozen, prompt, 12, kept)) == fresh
            same = 0
            while same < min(len(held_before), len(prompt) - 1) and held_before[same] == prompt[same]:
                same += 1
            assert read[0] == len(prompt) - same and set(read[1:]) <= {1}
            assert kept.ids[: len(prompt)] == prompt and kept.cache.get_seq_length() == len(kept.ids)
            assert (
                same >= before - 1
            )  # all of the turns before, but for what the model said with half a character in it
            before = len(prompt)
            messages.append({"role": "assistant", "content": fresh.strip()})
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_long_conversation_says_what_it_would_without_a_cache(loaded, name, monkeypatch):
    monkeypatch.setattr(module, "_VIEW", 160)
    kept, fresh = build(loaded(name), threshold=NEVER), build(loaded(name), threshold=NEVER)
    for number in range(8):
        message = TURNS[number % len(TURNS)]
        if number == 5:
            pieces = kept.chat(message, 12)
            next(pieces)
            pieces.close()
            fresh.context = [dict(each) for each in kept.context]
            continue
        if number == 6:
            kept.clear_context()
            fresh.clear_context()
        fresh._kept = Kept()
        assert say(kept, message, 12) == say(fresh, message, 12)


def test_the_bare_path_says_what_generate_says(frozen):
    engine = build(frozen, threshold=NEVER)
    for message in ("What leaves at six?", "Who keeps the key?"):
        messages = [*engine.context, {"role": "user", "content": message}]
        ids = torch.tensor([frozen._encode_format(frozen.chat(messages))])
        wanted = frozen.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=0
        )
        assert say(engine, message, 10) == frozen.decode(wanted[0, ids.shape[1] :].tolist()).strip()
