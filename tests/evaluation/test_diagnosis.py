"""Diagnosis: what is watched is what happens, the measures are right on what is known, every flag can rise and rest."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from byte_tokens import byte_tokenizer
from memory_titan import MAGConfig, get_memory_model
from memory_titan.cli import main
from memory_titan.evaluation import red_flags as flags
from memory_titan.evaluation.diagnosis import (
    Agreement,
    Contrast,
    Diagnosis,
    Layer,
    Reading,
    Spread,
    contrast,
    diagnose,
    hash_hop_samples,
    steps_of,
    summary,
)
from memory_titan.evaluation.filling import EVERY, LEVELS, Level, Recall, effective_rank, needle_stream
from memory_titan.evaluation.watching import KINDS, NOTHING, answer_to, branch_of, mark, watch
from memory_titan.graft.calibrate import calibrate
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.ruler import BYTES

TOKENIZER = byte_tokenizer()
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


def bare():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), bos_token_id=0, eos_token_id=None, **SIZES))


def graft(opened: bool = True, **options):
    base = bare()
    model = get_memory_model(
        base, MAGConfig(**{"window": 8, "chunk_size": 8, "expansion": 2, "segment": 32, **options})
    )
    with torch.no_grad():
        for name, parameter in model.branches.named_parameters():
            if opened and (name.endswith("gate.weight") or "refine" in name):
                parameter.normal_(std=0.3)
    return model


def sample(**options):
    options = {"context_len": 220, "needles": 3, "questions": 2, "hops": 2, "hash_len": 3, **options}
    (one,) = HashHopTask(**options).samples(1, ruler=BYTES)
    return one


def measured(model, **options):
    options = {"prose": 100, "length": 256, **options}
    return diagnose(model, TOKENIZER, hash_hop_samples(TOKENIZER, 2, 8), **options)


# Watching.


def test_every_token_has_its_kind():
    one = sample()
    marked = mark(one, TOKENIZER)

    def text(kinds, kind):
        return "".join(word for word, k in zip(marked.words, kinds.tolist(), strict=True) if k == KINDS.index(kind))

    assert marked.read[0] == NOTHING and marked.words[0] == "" and "".join(marked.words) == one.text
    assert text(marked.read, "answer") == "".join(one.cut(a.span) for a in one.answers)
    assert text(marked.read, "question") == "".join(one.cut(a.question) for a in one.answers)
    spans = sorted({span for a in one.answers for span in a.evidence})
    assert text(marked.read, "evidence") == "".join(map(one.cut, spans))
    # what says an answer stands one token before it
    shifted = [(begin - 1, end - 1) for begin, end in marked.answers]
    answers = (marked.saying == KINDS.index("answer")).nonzero()[:, 0].tolist()
    assert answers == [at for begin, end in shifted for at in range(begin, end)]
    assert all(marked.saying[end - 1] == NOTHING for _, end in marked.answers)


def test_an_answers_tokens_are_found_where_the_evidence_tells_them():
    one = sample()
    marked = mark(one, TOKENIZER)
    for answer, places in zip(one.answers, marked.places, strict=True):
        hops = one.cut(answer.span).split(" -> ")
        # the second hop's hash is to be had from the second pair, not from the front of it or the end of the first
        at = answer.span[0] + one.cut(answer.span).rindex(hops[1]) + 1
        source = answer.evidence[1][0] + one.cut(answer.evidence[1]).rindex(hops[1]) + 1
        assert (at, source) in places
        assert all(marked.ids[token] == marked.ids[place] and marked.words[token].strip() for token, place in places)


@pytest.mark.parametrize("options", [{}, {"source": "frozen"}, {"source": "tokens", "ngram": 3}])
def test_watching_changes_nothing_and_sees_what_happens(options):
    model, ids = graft(**options).eval(), torch.randint(1, 200, (75,))  # more than two segments
    branch = branch_of(model, 1)
    with torch.no_grad():
        session = model.new_session()
        expected, gates = model.hidden(ids[None], None, session)
        watched = model.new_session()
        mixed = []
        handle = model.graft.attention[1].register_forward_hook(lambda m, a, output: mixed.append(output[0]))
        hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
        seen = watch(model, ids, watched)
        assert hooks == sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
        handle.remove()
        again, _ = model.hidden(ids[None], None, model.new_session())
    assert all(torch.equal(a, b) for a, b in zip(
        session.state.tensors().values(), watched.state.tensors().values(), strict=True))  # fmt: skip
    assert torch.equal(again, expected) and branch.memory.traces is None
    assert set(seen) == {0, 1, 2}
    for index, layer in enumerate(seen):
        torch.testing.assert_close(seen[layer].gate, gates[index, 0])
        assert len(seen[layer].write) == seen[layer].k.shape[1] == 75
    assert seen[0].refinement is None and bool((seen[1].refinement > 0).all())


def test_queries_keys_and_changes_are_those_that_are_used():
    model, ids = graft(memory={"output_norm": False}, memory_layers=1).eval(), torch.randint(1, 200, (41,))
    session, memory, kept = model.new_session(), branch_of(model, 1).memory, {}
    residual, attended = [], []
    layers = model.graft.decoder.layers
    hooks = [
        memory.register_forward_hook(lambda m, a, output: kept.update(y=output[0])),
        layers[1].register_forward_pre_hook(lambda m, a: residual.append(a[0])),
        layers[1].self_attn.register_forward_hook(lambda m, a, output: attended.append(output[0])),
        layers[1].self_attn.register_forward_hook(lambda m, a, output: attended.append(output[0]), prepend=True),
    ]
    with torch.no_grad():
        seen = watch(model, ids, session)[1]
    for hook in hooks:
        hook.remove()
    state = session.state.memories[1]
    # read after the last token's own write: what the memory has answered to the last query
    answer = answer_to(memory, seen.q[:, -1:], state)[:, 0].flatten()
    torch.testing.assert_close(answer, kept["y"][0, -1], rtol=1e-4, atol=1e-5)
    before, after = torch.cat(attended[::2], 1), torch.cat(attended[1::2], 1)
    change = (after - before)[0].norm(dim=-1) / torch.cat(residual, 1)[0].norm(dim=-1)
    torch.testing.assert_close(seen.change, change, rtol=1e-3, atol=1e-5)
    # a full write of one matrix is the step times its error times the key, which has length 1, over 1 + 1
    assert torch.all(seen.write <= seen.step * seen.loss.sqrt() + 1e-5)


def test_a_gemma_s_change_is_taken_after_its_norm():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    sizes = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "layer_types": ["full_attention"] * 3}
    base = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=len(TOKENIZER), bos_token_id=0, eos_token_id=None, **sizes))
    model = get_memory_model(base.eval(), MAGConfig(layers=[1], chunk_size=8, expansion=2))
    torch.nn.init.normal_(branch_of(model, 1).gate.weight, std=0.3)
    block, outs, residual = model.graft.decoder.layers[1], [], []
    norm = block.post_attention_layernorm
    hooks = [norm.register_forward_hook(lambda m, a, y: outs.append(y), prepend=first) for first in (False, True)]
    hooks += [block.register_forward_pre_hook(lambda m, a: residual.append(a[0]))]
    with torch.no_grad():
        seen = watch(model, torch.randint(1, 200, (20,)), model.new_session())[1]
    for hook in hooks:
        hook.remove()
    moved = (outs[1] - outs[0])[0].norm(dim=-1) / residual[0][0].norm(dim=-1)
    torch.testing.assert_close(seen.change, moved, rtol=1e-3, atol=1e-5)
    assert seen.change.max() > 1e-3


# Measures.


def test_contrast_counts_pairs():
    x = torch.tensor
    assert contrast(x([3.0, 4.0]), x([1.0, 2.0])) == Contrast(7 / 3, 1.0)
    assert contrast(x([1.0, 2.0]), x([1.0, 2.0])).auc == 0.5
    assert contrast(x([0.0]), x([1.0, 2.0, 0.0, -1.0])).auc == pytest.approx(1.5 / 4)
    assert contrast(x([0.0]), x([0.0])) == Contrast(1.0, 0.5) and math.isinf(contrast(x([1.0]), x([0.0])).ratio)


def test_effective_rank_counts_directions():
    assert effective_rank(torch.eye(5)[None]) == pytest.approx(5)
    assert effective_rank(torch.outer(torch.randn(6), torch.randn(4))[None]) == pytest.approx(1)
    assert effective_rank(torch.zeros(2, 3, 3)) == 0
    assert effective_rank(torch.stack([torch.eye(4), torch.diag(torch.tensor([1.0, 1, 0, 0]))])) == pytest.approx(3)


def test_the_stream_has_needles_and_no_questions():
    ids, needles = needle_stream(TOKENIZER, 1024)
    assert len(ids) <= 1024 and len(ids) > 900 and "Follow" not in TOKENIZER.decode(ids)
    assert 1024 // EVERY - 3 <= len(needles) <= 1024 // EVERY
    assert all(len(TOKENIZER.decode(ids[places])) == 4 for places in needles)


def test_an_induction_heads_keys_win_and_fade():
    """Queries made as the keys were find them; with full steps the last needles come back whole, the first do not."""
    options = {"layers": [1], "source": "tokens", "ngram": 7, "memory_dim": 512, "memory_heads": 1, "memory_layers": 1}
    rule = {"algorithm": "descent", "retention": "none", "step": "fixed", "step_norm": False, "init": "zero"}
    model = graft(**options, memory=rule)
    calibrate(model, [mark(one, TOKENIZER).ids[None] for one in hash_hop_samples(TOKENIZER, 4)])
    found = measured(model, length=512)
    (layer,) = found.layers
    asked = layer.agreement
    assert asked.asked == 48 and asked.wins == asked.wins_head == 1 and asked.right > asked.best_other > asked.others
    assert all(right > other for right, other in asked.pairs) and len(asked.pairs) == 48
    assert layer.recall[0].nearest > 0.8 and layer.recall[-1].nearest < 0.2
    assert layer.recall[0].cosine > layer.recall[-1].cosine + 0.3
    assert "memory saturated" in [flag.name for flag in flags.red_flags(found)]
    torch.nn.init.normal_(branch_of(model, 1).query.query.weight)  # queries of another kind than the keys
    assert "queries blind" in [flag.name for flag in flags.red_flags(measured(model))]


def test_a_diagnosis_is_whole():
    samples, labels = hash_hop_samples(TOKENIZER, 2, 8), []
    model = graft().train()
    history = [{"step": 1, "loss": 2.5}, {"step": 1, "exact": 0.0}]
    found = diagnose(model, TOKENIZER, samples, prose=100, length=256, history=history, on_step=labels.append)
    assert model.training and len(labels) == steps_of(samples)
    assert [layer.layer for layer in found.layers] == [0, 1, 2] and found.losses == [(1, 2.5)]
    assert found.tokens["prose"] == 100 and set(found.tokens) == set(KINDS)
    for layer in found.layers:
        assert set(layer.gate) == set(layer.change) == set(layer.writing["step"]) == set(KINDS)
        assert [level.tokens for level in layer.growth] == [round(found.length * i / LEVELS) for i in range(LEVELS + 1)]
        assert layer.growth[0].written == 0 < layer.growth[-1].written and layer.finite
        assert layer.growth[-1].rank <= layer.width == 8
        assert sum(each.asked for each in layer.recall) > 0
    columns, rows = summary(found)
    assert len(rows) == 3 and all(len(row) == len(columns) for row in rows)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_memory_that_explodes_is_a_flag_not_a_crash():
    endless = {"algorithm": "descent", "rule": "token", "bias": "dot", "step_norm": False, "retention": "none"}
    for step, finite in ((1.0, True), (5.0, False)):
        found = measured(graft(layers=[1], memory={**endless, "max_step": step}), length=1000)
        (flag,) = (flag for flag in flags.red_flags(found) if flag.name == "memory exploding")
        assert found.layers[0].finite == finite == math.isfinite(flag.value) and flag.value > flag.limit
        json.dumps(found.to_dict(), allow_nan=False)
    model = graft(memory={"rule": "anchored", "max_step": 1e9, "step_norm": False, "qk_norm": False})
    with pytest.raises(ValueError, match="broke down while it read sample 0"):
        measured(model)


def test_what_cannot_be_diagnosed_is_refused():
    model, samples = graft(), hash_hop_samples(TOKENIZER, 1)
    with model.disable_memory(), pytest.raises(ValueError, match="memory is disabled"):
        diagnose(model, TOKENIZER, samples)
    with pytest.raises(ValueError, match="at least 64 tokens; got 0, 1024, 2048"):
        diagnose(model, TOKENIZER, [])
    with torch.no_grad():
        branch_of(model, 1).gate.bias.fill_(math.nan)
    with pytest.raises(ValueError, match=r"weights are not finite: 1\.gate\.bias"):
        diagnose(model, TOKENIZER, samples)


# Red flags.


def healthy() -> Diagnosis:
    def spread(mean, top):
        return Spread(mean, top, 0.0, 10)

    gate = {"evidence": spread(0.1, 0.2), "answer": spread(0.7, 0.9), "prose": spread(0.05, 0.3)}
    better = {name: Contrast(2.0, 0.8) for name in ("step", "loss", "gradient", "write")}
    growth = [Level(t, 9.0, 3.0 * t**0.5, 4.0) for t in (0, 256, 512)]
    recall = [Recall(0, 32, 0.9, 0.9, 8), Recall(256, 513, 0.8, 0.8, 8)]
    asked = Agreement(4, 0.9, 0.1, 0.3, 0.9, 0.9, 0.9, [(0.9, 0.3)])
    layer = Layer(
        3, gate, {}, {"filler": better, "prose": better}, asked, {"answer": 0.4}, 0.3, 8, growth, recall, True
    )
    losses = [(i, 4.0 / (1 + i)) for i in range(40)]
    return Diagnosis({"prose": 9}, 512, 4, [layer, replace(layer, layer=5)], Reading([], {}, {}), losses)


def changed(**changes) -> Diagnosis:
    """Both layers otherwise."""
    found = healthy()
    return replace(found, layers=[replace(layer, **changes) for layer in found.layers])


def blind(auc: float):
    return {name: Contrast(1.0, auc) for name in ("step", "loss", "gradient", "write")}


GATE = healthy().layers[0].gate
SICK = {
    "gates stuck shut": changed(gate={**GATE, "answer": Spread(0.01, 0.04, 0, 9), "prose": Spread(0.0, 0.3, 0, 9)}),
    "gates stuck open": changed(gate={**GATE, "answer": Spread(0.9, 0.9, 1, 9), "prose": Spread(0.6, 0.9, 1, 9)}),
    "gates blind": changed(gate={**GATE, "answer": Spread(0.3, 0.4, 0, 9), "prose": Spread(0.28, 0.4, 0, 9)}),
    "surprise blind": changed(contrast={"filler": blind(0.7), "prose": blind(0.59)}),
    "queries blind": changed(agreement=replace(healthy().layers[0].agreement, wins=0.4)),
    "layer dead": changed(change={"answer": 0.003, "prose": 0.001}),
    "query refinement unused": changed(refinement=0.005),
    "memory exploding": changed(growth=[Level(t, 9.0, t**1.2, 4.0) for t in (0, 256, 512)]),
    "memory saturated": changed(growth=[Level(t, 9.0, 5.0 * (t > 0), 4.0) for t in (0, 256, 512)]),
    "nothing stored": changed(recall=[Recall(0, 32, 0.2, 0.4, 8), Recall(256, 513, 0.1, 0.1, 8)]),
    "loss not falling": replace(healthy(), losses=[(i, 2.0) for i in range(40)]),
    "loss not finite": replace(healthy(), losses=[(i, math.nan if i == 7 else 4 / (1 + i)) for i in range(40)]),
}


def test_a_healthy_graft_raises_none():
    assert flags.red_flags(healthy()) == []
    one = replace(healthy().layers[0], agreement=None, refinement=None, recall=[])
    assert flags.red_flags(replace(healthy(), layers=[one], losses=[(1, 3.0)] * 19)) == []


@pytest.mark.parametrize("name", SICK)
def test_every_flag_rises_alone_with_its_number(name):
    (flag,) = flags.red_flags(SICK[name])
    assert flag.name == name and flag.advice and flag.value != flag.limit
    assert flag.layers == (() if "loss" in name else (3, 5)) and any(letter.isdigit() for letter in flag.says)


def test_needles_that_fade_and_weights_that_end():
    fading = changed(recall=[Recall(0, 32, 0.9, 0.9, 8), Recall(256, 513, 0.3, 0.2, 8)])
    (flag,) = flags.red_flags(fading)
    assert flag.name == "memory saturated" and "20%" in flag.says and "90%" in flag.says
    (flag,) = flags.red_flags(changed(finite=False))
    assert flag.name == "memory exploding" and math.isinf(flag.value)


def test_one_good_layer_is_enough_to_find_needles():
    found = SICK["queries blind"]
    assert flags.red_flags(replace(found, layers=[found.layers[0], healthy().layers[1]])) == []
    (flag,) = flags.red_flags(replace(found, layers=[SICK["layer dead"].layers[0], healthy().layers[1]]))
    assert flag.layers == (3,)


# The command.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A base model, and a run's folder with a graft of it as `best`."""
    folder = tmp_path_factory.mktemp("diagnose")
    base = bare()
    base.save_pretrained(folder / "base")
    TOKENIZER.save_pretrained(folder / "base")
    graft(layers=[1]).save_pretrained(str(folder / "run" / "best"))
    history = [{"step": i, "loss": 3.0} for i in range(30)]
    (folder / "run" / "best" / "progress.json").write_text(json.dumps({"history": history}))
    return folder


def run(*arguments):
    return CliRunner().invoke(main, ["diagnose", *map(str, arguments)])


def test_the_command_tells_figures_and_flags(checkpoint, tmp_path):
    pytest.importorskip("matplotlib")
    quick = "--model", checkpoint / "base", "--samples", 2, "--prose", 64, "--length", 128
    result = run(checkpoint / "run", *quick, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "layer" in result.output and "loss not falling" in result.output
    assert (tmp_path / "out" / "index.html").exists() and (tmp_path / "out" / "training.png").exists()
    data = tmp_path / "data.jsonl"
    data.write_text(sample().to_json() + "\n")
    result = run("--checkpoint", checkpoint / "run" / "best", *quick, "--data-path", data, "--json")
    told = json.loads(result.stdout)
    assert told["layers"][0]["layer"] == 1 and told["tokens"]["prose"] == 64 and "reading" not in told
    assert told["red_flags"][-1]["name"] == "loss not falling"


def test_the_command_refuses_in_one_line(checkpoint, tmp_path):
    other = tmp_path / "other"
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), **SIZES)).save_pretrained(other)
    TOKENIZER.save_pretrained(other)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "adapter_config.json").write_text("{")
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    run_folder, base = checkpoint / "run", checkpoint / "base"
    for arguments, words in (
        ((), "name one checkpoint"),
        ((run_folder, "--checkpoint", run_folder), "name one checkpoint"),
        ((tmp_path / "none",), "no such folder"),
        ((tmp_path,), "holds no checkpoint"),
        ((bad, "--model", base), "is not JSON"),
        ((run_folder, "--model", other), "another base model"),
        ((run_folder, "--model", tmp_path / "none"), "cannot load"),
        ((run_folder, "--model", base, "--data_path", data), "data.jsonl, line 1: text is missing"),
        ((run_folder, "--output", data), "is a file"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and words in result.output, (arguments, result.output)
        assert len(result.output.strip().splitlines()) == 1
    (bad / "adapter_config.json").write_text("{}")
    (bad / "progress.json").write_text('{"history": 3}')
    assert "progress.json is damaged" in run(bad).output
    assert "--data_path" in run("--help").output and "diagnose" in CliRunner().invoke(main).output
