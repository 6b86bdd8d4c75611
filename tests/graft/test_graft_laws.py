"""A grafted model keeps the laws of a memory, whole: causal, any split, padding, rows, saved and reordered sessions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from grafts import ARCHITECTURES, bare, graft, ids, loud, same

each = pytest.mark.parametrize("kind", ARCHITECTURES)
KINDS = [
    pytest.param({}, id="whole"),
    pytest.param({"window": 5}, id="window"),
    pytest.param({"window": 1}, id="window1"),
    pytest.param({"window": 4, "sinks": 3}, id="sinks"),
    pytest.param({"window": 4, "sinks": 3, "sink_distance": 6}, id="near"),
    pytest.param({"source": "frozen", "window": 5}, id="frozen"),
    pytest.param({"values": "tokens", "window": 7, "layers": [0, 2]}, id="values"),
    pytest.param({"source": "tokens", "ngram": 5, "window": 6, "memory_layers": 1}, id="tokens"),
    pytest.param({"layers": [1], "query_refinement": False, "n_persistent_tokens": 0}, id="one-layer"),
    pytest.param(
        {"memory_kind": "slots", "window": 5, "chunk_size": 8, "memory": {"slots": 6, "top_k": 2}}, id="slots"
    ),
    pytest.param({"memory": {"rule": "anchored", "conv_size": 0}, "memory_dim": 24, "memory_heads": 3}, id="anchored"),
]
every = pytest.mark.parametrize("options", KINDS)


@each
@pytest.mark.parametrize("source", ["learned", "frozen", "tokens"])
def test_nothing_is_changed_before_anything_is_learned(kind, source):
    model, other = graft(kind, source=source), bare(kind)
    mask = torch.ones(2, 23, dtype=torch.long)
    mask[0, :4] = 0
    same(model(ids()).logits, other(ids()).logits, 1e-5)
    valid = mask.bool()
    same(model(ids(), attention_mask=mask).logits[valid], _positioned(other, ids(), mask)[valid], 1e-5)


def _positioned(model, tokens, mask):
    """As `generate` calls a model: positions begin at each row's first token."""
    return model(tokens, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits


@each
@every
def test_causal_and_loud(kind, options):
    model, tokens = loud(kind, **options), ids(length=40)
    other = tokens.clone()
    other[:, 12] = (other[:, 12] + 1) % 50 + 2
    y, changed = model(tokens).logits, model(other).logits
    same(y[:, :12], changed[:, :12], 1e-6)
    with model.disable_memory():
        assert not torch.allclose(model(tokens).logits, y, atol=1e-2)
    if options.get("window"):  # beyond the reach of attention through all layers, the memory alone tells
        far = slice(12 + 3 * options["window"], None)
        assert not torch.allclose(y[:, far], changed[:, far], atol=1e-5)
        with model.disable_memory(keep_window=True):
            same(model(tokens).logits[:, far], model(other).logits[:, far], 1e-6)


@each
@every
def test_any_split(kind, options):
    model, tokens = loud(kind, **options), ids()
    whole = model(tokens).logits
    end = model.new_session(2)
    model.read(tokens, end)
    for cuts in ([4, 8, 9, 20], list(range(1, 23)), [11]):
        session, pieces = model.new_session(2), []
        for begin, stop in zip([0, *cuts], [*cuts, 23], strict=True):
            pieces.append(model(tokens[:, begin:stop], memory=session).logits)
        same(torch.cat(pieces, 1), whole)
        for name, tensor in end.state.tensors().items():
            same(session.state.tensors()[name].double(), tensor.double())


@each
def test_segments(kind):
    whole, parts = loud(kind, window=6), loud(kind, window=6, segment=5)
    labels = ids()
    one, other = whole(ids(), labels=labels), parts(ids(), labels=labels)
    same(other.logits, one.logits)
    same(other.loss, one.loss)
    same(parts(ids(), logits_to_keep=7).logits, one.logits[:, -7:])
    mask = torch.ones(2, 23, dtype=torch.long)
    mask[1, :9] = 0
    same(parts(ids(), attention_mask=mask).logits, whole(ids(), attention_mask=mask).logits)


@each
@every
@pytest.mark.parametrize("side", ["left", "right", "within"])
def test_padding_changes_nothing(kind, options, side):
    model, tokens = loud(kind, **options), ids(3, 19)
    mask = torch.rand(3, 19, generator=torch.Generator().manual_seed(5)) > 0.4
    mask[:, 9] = True
    if side != "within":
        mask = mask.sort(1, descending=side == "right").values
    garbage = torch.where(mask, tokens, 7)
    session = model.new_session(3)
    logits = torch.cat(
        [
            model(garbage[:, :8], attention_mask=mask[:, :8].long(), memory=session).logits,
            model(garbage[:, 8:], attention_mask=mask[:, 8:].long(), memory=session).logits,
        ],
        1,
    )
    whole = model(garbage, attention_mask=mask.long()).logits
    more = model(ids(3, 4, seed=9), memory=session).logits
    for row in range(3):
        alone = model.new_session(1)
        expected = model(tokens[row : row + 1, mask[row]], memory=alone).logits
        same(logits[row : row + 1, mask[row]], expected)
        same(whole[row : row + 1, mask[row]], expected)
        same(more[row : row + 1], model(ids(3, 4, seed=9)[row : row + 1], memory=alone).logits)
    assert logits.isfinite().all()


@each
def test_eager_attention_is_the_same(kind):
    model = loud(kind, window=5)
    mask = torch.ones(2, 23, dtype=torch.long)
    mask[0, :6] = 0
    expected = model(ids(), attention_mask=mask).logits
    model.base_model.set_attn_implementation("eager")
    same(model(ids(), attention_mask=mask).logits, expected)


@each
@pytest.mark.parametrize("sinks", [0, 2])
def test_the_window_is_a_window(kind, sinks):
    """Imposed by the graft, or by a mask that the bare model is given: the same."""
    model = loud(kind, window=4, sinks=sinks)
    row, column = torch.arange(23)[:, None], torch.arange(23)
    seen = ((column <= row) & ((column > row - 4) | (column < sinks)))[None, None].expand(2, 1, 23, 23)
    given = dict.fromkeys(["full_attention", "sliding_attention"], seen) if kind in ("qwen3", "gemma3") else seen
    expected = bare(kind)(ids(), attention_mask=given).logits
    with model.disable_memory(keep_window=True):
        same(model(ids()).logits, expected)
        session = model.new_session(2)
        same(torch.cat([model(part, memory=session).logits for part in ids().split(3, 1)], 1), expected)


@each
@pytest.mark.parametrize("sinks", [0, 3])
def test_a_session_is_bounded(kind, sinks):
    model = loud(kind, window=6, sinks=sinks)
    session = model.new_session(1)
    sizes = [model.read(ids(1, 20, seed=i), session).nbytes for i in range(4)]
    assert len(set(sizes)) == 1 and session.columns == 80
    assert session.state.positions.shape[1] == max(key.shape[2] for key in session.state.keys) <= 5 + sinks


@each
def test_a_session_is_saved_and_selected(kind, tmp_path):
    model, tokens = loud(kind, window=6), ids(3, 17)
    session = model.read(tokens, model.new_session(3))
    session.save(tmp_path / "session.safetensors")
    expected = model(ids(3, 5, seed=8), memory=session.copy()).logits
    loaded = model.load_session(tmp_path / "session.safetensors")
    same(model(ids(3, 5, seed=8), memory=loaded).logits, expected, 0.0)
    session.reorder_cache(torch.tensor([2, 0, 0]))
    same(model(ids(3, 5, seed=8)[[2, 0, 0]], memory=session).logits, expected[[2, 0, 0]], 1e-5)


@each
@every
def test_generate(kind, options):
    """Greedy and beam search with a session, against a forward pass over everything at every step."""
    model, tokens = loud(kind, **options), ids(2, 11)
    given = {"max_new_tokens": 9, "do_sample": False}
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    expected = tokens
    grown = mask
    for _ in range(9):
        logits = model(expected, attention_mask=grown, use_cache=False).logits[:, -1]
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
        grown = torch.cat([grown, torch.ones_like(grown[:, :1])], 1)
    assert torch.equal(model.generate(tokens, attention_mask=mask, **given), expected)
    assert torch.equal(model.base_model.generate(tokens, attention_mask=mask, **given), expected)
    beams = {**given, "num_beams": 3}
    slow = model.base_model.generate(tokens, attention_mask=mask, use_cache=False, **beams)
    assert torch.equal(model.generate(tokens, attention_mask=mask, **beams), slow)
    torch.manual_seed(0)
    sampled = model.generate(tokens, attention_mask=mask, max_new_tokens=9, do_sample=True)
    torch.manual_seed(0)
    again = model.base_model.generate(tokens, attention_mask=mask, max_new_tokens=9, do_sample=True, use_cache=False)
    assert torch.equal(sampled, again)


@each
@pytest.mark.parametrize("beams", [1, 3])
def test_a_conversation(kind, beams):
    """Two turns with one session: the second answer is that of a model which has read everything."""
    model = loud(kind, window=6)
    given = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    first, second = ids(1, 13), ids(1, 7, seed=4)
    session = model.new_session()
    one = model.generate(first, memory=session, **given)
    assert session.columns == one.shape[1] == 19
    two = model.generate(second, memory=session, **given)
    all_at_once = model.generate(torch.cat([one, second], 1), **given)
    assert torch.equal(two[:, 7:], all_at_once[:, 26:])
    assert torch.equal(two[:, :7], second)
    expected = model.read(all_at_once, model.new_session())
    for name, tensor in expected.state.tensors().items():
        same(session.state.tensors()[name].double(), tensor.double())


def test_two_threads_with_a_session_each():
    model = loud(window=6, source="tokens")
    texts = [ids(1, 40, seed=i) for i in range(2)]
    expected = [model.generate(text, max_new_tokens=8, do_sample=False) for text in texts]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = list(pool.map(lambda text: model.generate(text, max_new_tokens=8, do_sample=False), texts))
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_prompts_of_one_token():
    model = loud(window=6)
    session = model.new_session()
    given = {"max_new_tokens": 4, "do_sample": False}
    one = model.generate(ids(1, 1), memory=session, **given)
    two = model.generate(ids(1, 1, seed=4), memory=session, **given)
    whole = model.generate(torch.cat([one, ids(1, 1, seed=4)], 1), **given)
    assert torch.equal(torch.cat([one, two], 1), whole)


def test_rows_that_end_early_read_no_padding():
    model, tokens = loud(window=6), ids(4, 13)
    free = model.generate(tokens, max_new_tokens=8, do_sample=False)[:, 13:]
    end = int(free[0, 2])  # row 0 says this third; others later or never
    given = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    session = model.new_session(4)
    out = model.generate(tokens, memory=session, **given)
    assert (out[0, 16:] == 0).all()
    for row in range(4):
        alone = model.new_session()
        model.generate(tokens[row : row + 1], memory=alone, **given)
        assert int(session.state.tokens[row]) == int(alone.state.tokens[0])
        more = ids(1, 3, seed=6)
        chosen = session.copy()
        chosen.batch_select_indices(torch.tensor([row]))
        same(model(more, memory=chosen).logits, model(more, memory=alone).logits)
