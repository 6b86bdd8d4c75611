"""Evaluations of a graft: shares in the right cells, ways that are what they say, probes that put everything back."""

from __future__ import annotations

import json
import math
import weakref
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from byte_tokens import byte_tokenizer
from memory_titan import MAGConfig, NeuralMemory, get_memory_model
from memory_titan.cli import main
from memory_titan.evaluation import needle as needles
from memory_titan.evaluation.answers import evaluate
from memory_titan.evaluation.code import by_reach, complete, edit_similarity, evaluate_code, summary
from memory_titan.evaluation.compare import Asked, Share, ask, attention_window, in_way, label, shares, wilson
from memory_titan.evaluation.needle import Answered, as_report, by_distance, evaluate_needle, lay_out
from memory_titan.evaluation.probes import PROBES, flipped_sign, no_writes, queries_for_keys
from memory_titan.memory.neural.naive import naive_memory
from memory_titan.tasks.examples import Example, collate, encode
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.ruler import HuggingFace
from memory_titan.viz import needle as pictures

SOURCES = ("learned", "frozen", "tokens")


TOKENIZER = byte_tokenizer()


def task(length: int = 120, depth: float | None = None, **options) -> HashHopTask:
    return HashHopTask(context_len=length, depth=depth, **{"needles": 2, "questions": 2, "hash_len": 2, **options})


def examples(number: int, **options) -> list[Example]:
    drawn = task(**options).samples(number, ruler=HuggingFace(TOKENIZER, "bytes"))
    return [encode(sample, TOKENIZER, f"sample {i}") for i, sample in enumerate(drawn)]


def model(**options):
    """A graft whose memory is heard."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), bos_token_id=0, eos_token_id=None, **sizes))
    options = {"window": 8, "chunk_size": 8, "expansion": 2, "segment": 64, "gate_bias": 0.0, **options}
    made = get_memory_model(base, MAGConfig(**options)).eval()
    with torch.no_grad():
        for branch in made.branches.values():
            branch.gate.bias.fill_(1.0)
            branch.memory.gating.linear.weight.normal_(std=0.3)
    return made


def taught(steps: int = 22):
    """It says some answers right and others not, whose memory is on, off or overheard."""
    made, graft = examples(4), model(layers=[1])
    optimizer = torch.optim.Adam([p for p in graft.parameters() if p.requires_grad], 1e-2)
    batch = collate(made)
    labels = batch.ids.masked_fill(batch.said == 0, -100)
    for _ in range(steps):
        loss = graft(batch.ids, attention_mask=batch.mask, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return graft, made


class Rigged:
    """Stands in for a `MemoryModel`: it says what is true of evidence up to `reach` tokens away, else what is not.

    With the memory the reach is 150, without it the window's 40, and without both there is no limit.
    """

    def __init__(self, known: list[Example]) -> None:
        self.known, self.reach, self.training, self.device = known, 150.0, False, "cpu"
        self.graft_config = SimpleNamespace(segment=32)

    def train(self, mode: bool = True):
        return self

    eval = train

    def new_session(self, rows: int):
        return SimpleNamespace(read=torch.zeros(rows, 0, dtype=torch.long))

    def hidden(self, ids, mask, session, lower=None):
        """`[B, T, 1]`: the token it will say, as it is."""
        session.read = torch.cat([session.read, ids], 1)
        end = session.read.shape[1]
        said = torch.zeros(*ids.shape, 1)
        for row, read in enumerate(session.read):
            for example in self.known:
                if torch.equal(example.ids[:end], read[: len(example.ids)]):
                    for (begin, after), nearest in zip(example.answers, example.nearest, strict=True):
                        for at in range(max(begin, end - ids.shape[1] + 1), min(after, end + 1)):
                            truth = int(example.ids[at])
                            said[row, at - 1 - end + ids.shape[1]] = truth if nearest <= self.reach else truth ^ 1
        return said, None

    def logits(self, hidden):
        return F.one_hot(hidden[..., 0].long(), len(TOKENIZER)).float()

    @contextmanager
    def disable_memory(self, keep_window: bool = False):
        before, self.reach = self.reach, 40.0 if keep_window else math.inf
        yield
        self.reach = before


def cells(**options):
    lengths, depths = [160, 300], [0.0, 0.5, 1.0]
    return lay_out(lambda n, depth: task(n, depth), lengths, depths, 3, TOKENIZER, "bytes", **options)


def test_every_share_stands_in_its_cell(tmp_path, monkeypatch):
    known = [encode(sample, TOKENIZER) for cell in cells() for sample in cell.samples]
    read: dict[str, int] = {}

    def count(what: str, tokens: int) -> None:
        read[what.split(", ")[-1]] = read.get(what.split(", ")[-1], 0) + tokens

    ways = ["memory", "window", "bare"]
    found = list(evaluate_needle(Rigged(known), TOKENIZER, cells(), ways, count))
    assert read == dict.fromkeys(ways, sum(len(example.ids) for example in known))
    told = as_report(found, 40, {"task": "hash-hop"})
    given = iter(known)
    for row in told["cells"]:
        nearest = [distance for _ in range(3) for distance in next(given).nearest]
        assert row["answers"] == 6
        for way, reach in zip(ways, (150, 40, math.inf), strict=True):
            assert row["ways"][way]["exact"] == sum(n <= reach for n in nearest) / 6
    shares_of_memory = [row["ways"]["memory"]["exact"] for row in told["cells"]]
    assert shares_of_memory[3] == 0 and shares_of_memory[5] == 1  # 300 tokens: at the start, at the end
    assert [(row["length"], row["depth"]) for row in told["cells"]][3:] == [(300, 0.0), (300, 0.5), (300, 1.0)]
    assert told["all"]["answers"] == sum(row["answers"] for row in told["distances"]) == 36
    for row in told["distances"]:  # no bin is astride the window
        assert row["ways"]["window"]["exact"] == (row["to"] <= 40) and row["over"] < row["mean"] <= row["to"]

    drawn: dict = {}
    monkeypatch.setattr(needles, "draw_heat", lambda path, maps, *rest: drawn.update(maps=maps, rest=rest))
    monkeypatch.setattr(needles, "draw_distance", lambda path, curves, *rest: drawn.update(curves=curves))
    needles.draw(told, tmp_path)
    assert drawn["rest"][:2] == ([160, 300], [0.0, 0.5, 1.0])
    for row in told["cells"]:
        at = [0.0, 0.5, 1.0].index(row["depth"]), [160, 300].index(row["length"])
        assert drawn["maps"]["with memory"][at[0]][at[1]] == row["ways"]["memory"]["exact"]
    assert drawn["curves"]["bare model, sees everything"] == [
        (row["mean"], 1.0, row["ways"]["bare"]["low"], 1.0) for row in told["distances"]
    ]
    assert json.loads((tmp_path / "needle.json").read_text()) == told


def test_a_cell_has_texts_of_its_own_whatever_others_there_are():
    texts = [[sample.text for sample in cell.samples] for cell in cells()]
    assert len({text for cell in texts for text in cell}) == 18
    alone = lay_out(lambda n, depth: task(n, depth), [300], [1.0], 2, TOKENIZER, "bytes")
    assert [sample.text for sample in alone[0].samples] == texts[5][:2]
    assert [sample.text for sample in cells(seed=1)[5].samples][:2] != texts[5][:2]
    with pytest.raises(ValueError, match="context_len must be at least"):
        lay_out(lambda n, depth: task(n, depth), [300, 20], [1.0], 2, TOKENIZER, "bytes")
    with pytest.raises(ValueError, match=r"depths must be different values, at least one; got 1\.0, 1\.0"):
        lay_out(lambda n, depth: task(n, depth), [300], [1.0, 1.0], 2, TOKENIZER, "bytes")


def asked(*nearest: int) -> list[Asked]:
    return [Asked("", n, n, {"memory": n < 50}) for n in nearest]


@pytest.mark.parametrize(
    ("window", "edges"),
    [(24, [(3, 6), (12, 24), (24, 48), (384, 768)]), (None, [(4, 8), (16, 32), (32, 64), (256, 512)])],
)
def test_bins_of_distance(window, edges):
    found = by_distance(asked(5, 24, 25, 48, 400), window)
    assert [(one.low, one.high) for one in found] == edges
    assert sum(len(one.asked) for one in found) == 5
    for one in found:
        assert all(one.low < each.nearest <= one.high for each in one.asked)


def test_intervals():
    """Against values worked out by hand from Wilson's formula."""
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4) and wilson(10, 10)[1] == 1
    assert wilson(0, 0) == (0, 1) and math.isnan(Share(0, 0).exact)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)
    assert shares(asked(5, 60))["memory"] == Share(1, 2) and str(Share(1, 2)) == "0.50 [0.09, 0.91]"


def greedy(graft, example: Example) -> list[bool]:
    best = graft.base_model(example.ids[None], use_cache=True).logits[0].argmax(-1)
    return [torch.equal(best[begin - 1 : end - 1], example.ids[begin:end]) for begin, end in example.answers]


def test_the_ways_are_what_they_say():
    graft, made = taught()
    assert attention_window(graft) == 8 and attention_window(model(window=None)) is None
    found = ask(graft, made, ["memory", "window", "bare", "no_writes"])
    order = sorted(made, key=lambda example: len(example.ids))
    with torch.no_grad():
        assert [one.right["memory"] for one in found] == [
            right for example in order for right in greedy(graft, example)
        ]
        assert sum(one.right["memory"] for one in found) > 0 and not all(one.right["window"] for one in found)
        with graft.disable_memory(keep_window=True):
            assert [one.right["window"] for one in found] == [x for example in order for x in greedy(graft, example)]
        with graft.disable_memory():
            assert [one.right["bare"] for one in found] == [x for example in order for x in greedy(graft, example)]
    assert [(one.nearest, one.distance) for one in found] == [
        pair for example in order for pair in zip(example.nearest, example.distances, strict=True)
    ]
    with pytest.raises(ValueError, match="there is no way 'off'; there are memory, window, bare, flipped_sign"):
        in_way(graft, "off")


def test_off_is_the_window_alone_bit_for_bit():
    graft, ids = model(), examples(1)[0].ids[None]
    with torch.no_grad(), in_way(graft, "window"):
        off = graft(ids).logits
    with torch.no_grad(), graft.disable_memory(keep_window=True):
        assert torch.equal(off, graft(ids).logits)
    with torch.no_grad(), in_way(graft, "bare"):
        bare = graft(ids).logits
    assert torch.equal(bare, graft.unload()(ids).logits) and not torch.allclose(bare, off)


def test_a_long_text_is_read_in_segments_of_which_nothing_is_kept(monkeypatch):
    graft, made = model(layers=[1]), examples(2, length=700)
    alive: list[weakref.ref] = []
    lengths, read = [], graft.hidden

    def hidden(ids, *rest):
        assert sum(one() is not None for one in alive) <= 1  # the last one, which is just being let go
        out = read(ids, *rest)
        alive.append(weakref.ref(out[0]))
        lengths.append(ids.shape[1])
        return out

    monkeypatch.setattr(graft, "hidden", hidden, raising=False)
    evaluate(graft, made)
    assert len(lengths) > 10 and max(lengths) <= 64
    complete(graft, made[0], TOKENIZER)
    assert max(lengths) <= 64


# Probes.


def linear(**options) -> NeuralMemory:
    torch.manual_seed(1)
    plain = {"depth": 1, "algorithm": "descent", "retention": "none", "conv_size": 0, "qkv_activation": False}
    plain |= {"heads": 2, "chunk_size": 4, "projections": False, "output_gate": False}
    return NeuralMemory(8, **{**plain, **options}).double()


def test_flipped_sign_goes_the_same_way_back():
    memory, x, qkv = linear(), torch.randn(1, 1, 8).double(), torch.randn(1, 1, 24).double()
    (start,) = memory.initial_state(1).weights
    (after,) = memory.present_weights(memory(x, qkv=qkv)[1])
    assert not torch.allclose(after, start)
    with flipped_sign(memory):
        (back,) = memory.present_weights(memory(x, qkv=qkv)[1])
    torch.testing.assert_close(back, start - (after - start), rtol=0, atol=1e-12)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 2, "algorithm": "momentum", "retention": "scalar", "conv_size": 3},
        {"depth": 2, "retention": "channel", "algorithm": "descent"},
    ],
    ids=["linear", "usual", "not fused"],
)
def test_every_path_computes_what_the_reference_computes_of_a_spoilt_input(probe, options):
    memory = linear(**options)
    x, qkv = torch.randn(2, 11, 8).double(), torch.randn(2, 11, 24).double()
    state = memory.initial_state(2)
    padded = torch.cat([state.tail, qkv], 1)
    q, k, v = memory._heads(memory._convolve(padded))
    gates = memory.gating(x, torch.float64)
    gates = replace(gates, step={"flipped_sign": -1, "no_writes": 0, "queries_for_keys": 1}[probe] * gates.step)
    k = q if probe == "queries_for_keys" else k
    rule = memory.config.to_rule()
    y, _, weights, _ = naive_memory(q, k, v, gates, state.weights, state.momentum, rule)
    y = memory._output(y, x)
    with PROBES[probe](memory):
        whole, after = memory(x, qkv=qkv)
        with torch.no_grad():
            fused, after_fused = memory(x, qkv=qkv)
            one, steps = [], state
            for t in range(11):
                out, steps = memory(x[:, t : t + 1], steps, qkv=qkv[:, t : t + 1])
                one.append(out)
    for read in (whole, fused, torch.cat(one, 1)):
        torch.testing.assert_close(read, y, rtol=1e-9, atol=1e-9)
    for new in (after, after_fused, steps):
        for now, expected in zip(memory.present_weights(new), weights, strict=True):
            torch.testing.assert_close(now, expected, rtol=1e-9, atol=1e-9)


def read(graft, ids):
    with torch.no_grad():
        session = graft.new_session(len(ids))
        return graft(ids, memory=session).logits, session.state.tensors()


@pytest.mark.parametrize("source", SOURCES)
def test_probes_put_everything_back(source):
    graft, ids = model(source=source), examples(1)[0].ids[None]
    before = {name: tensor.clone() for name, tensor in graft.state_dict().items()}
    logits, state = read(graft, ids)
    for probe in (*PROBES.values(), lambda m: flipped_sign(m.branches)):
        with probe(graft):
            assert not torch.allclose(read(graft, ids)[0], logits, atol=1e-3)
        with pytest.raises(KeyError), probe(graft), queries_for_keys(graft), probe(graft):
            raise KeyError
        again, state_again = read(graft, ids)
        assert torch.equal(again, logits) and all(torch.equal(state[name], state_again[name]) for name in state)
    now = graft.state_dict()
    assert now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)
    for branch in graft.branches.values():
        memory = branch.memory
        assert not memory.gating._forward_hooks and "_heads" not in memory.__dict__
        assert memory.config.nonfinite == "raise"


@pytest.mark.parametrize("source", ["learned", "tokens"])
def test_stored_under_queries_is_a_memory_whose_keys_are_made_as_queries_are(source):
    graft, ids = model(source=source, layers=[1], n_persistent_tokens=3), examples(1)[0].ids[None]
    branch = graft.branches["1"]
    with torch.no_grad():
        branch.key.weight.normal_(std=0.3)  # otherwise keys start as queries, but for the convolution
    with queries_for_keys(graft):
        logits, swapped = read(graft, ids)
    with torch.no_grad():
        branch.key.load_state_dict(branch.query.query.state_dict())
        for parameter in branch.memory.conv.parameters():
            parameter[32:64] = parameter[:32]
    same, expected = read(graft, ids)
    assert torch.equal(logits, same)
    tails = [name for name in expected if name.endswith("tail")]
    assert len(tails) == 1 and not torch.equal(swapped[tails[0]], expected[tails[0]])  # what is carried on stays true
    assert all(torch.equal(swapped[name], expected[name]) for name in expected if name not in tails)
    with queries_for_keys(graft):  # where queries are keys there is nothing to see
        assert torch.equal(read(graft, ids)[0], same)


def test_nothing_written_is_the_memory_as_it_started():
    graft = model(layers=[1], memory={"retention": "none"})
    with no_writes(graft):
        session = graft.new_session()
        graft.read(examples(1)[0].ids[None], session)
    memory = graft.branches["1"].memory
    for now, start in zip(memory.present_weights(session.state.memories[0]), memory.init_weights, strict=True):
        assert torch.equal(now[0], start)


def test_a_memory_that_overflows_is_wrong_and_said_to_be():
    fierce = {"max_step": 50.0, "step": "fixed", "step_norm": False}
    graft, made = model(layers=[1], n_persistent_tokens=0, memory=fierce), examples(2)
    found = ask(graft, made, ["window", "flipped_sign"])
    assert all(one.overflowed == ("flipped_sign",) and not one.right["flipped_sign"] for one in found)
    row = as_report([Answered(120, 0.0, tuple(found))], 8, {})["all"]
    assert row["overflowed"] == {"flipped_sign": 4} and row["ways"]["flipped_sign"]["right"] == 0


def test_probes_refuse_what_they_cannot_spoil():
    for algorithm in ("solve", "muon"):
        memory = linear(algorithm=algorithm, **({} if algorithm == "solve" else {"read": "chunk", "rule": "anchored"}))
        with pytest.raises(ValueError, match=f"cannot be flipped with algorithm '{algorithm}'"), flipped_sign(memory):
            pass
        assert not memory.gating._forward_hooks
    with pytest.raises(ValueError, match="no memory in this Linear"), no_writes(torch.nn.Linear(1, 1)):
        pass


# Code.


@pytest.mark.parametrize(
    ("a", "b", "similarity"),
    [("31877", "31871", 0.8), ("", "", 1), ("", "ab", 0), ("kitten", "sitting", 1 - 3 / 7), ("ab", "ba", 0)],
)
def test_edit_similarity(a, b, similarity):
    assert edit_similarity(a, b) == edit_similarity(b, a) == pytest.approx(similarity)


def test_what_is_written_is_what_greedy_generation_says_and_agrees_with_exact_match():
    graft, made = taught()
    ways = ["memory", "window", "bare"]
    tokens: list[int] = []
    found = evaluate_code(graft, made, TOKENIZER, ways, lambda way, n: tokens.append(n))
    assert sum(tokens) == 3 * sum(example.answers[-1][1] - 1 for example in made)
    teacher = ask(graft, made, ways)
    for way in ways:
        by_name = [(one.name, one.said[way].exact) for one in found]
        assert sorted(by_name) == sorted((one.name, one.right[way]) for one in teacher)
        assert summary(found, way)["disagreed"] == 0
        assert summary(found, way)["exact"] == sum(right for _, right in by_name) / len(found)
    assert len({one.said["memory"].exact for one in found}) == 2, "teach it otherwise: all are right, or none"
    given = iter(found)
    for example in made:
        for begin, end in example.answers:
            one = next(given)
            for way in ways:
                with in_way(graft, way):
                    out = graft.generate(example.ids[None, :begin], max_new_tokens=end - begin, do_sample=False)
                text = TOKENIZER.decode(out[0, begin:]).split("\n")[0].strip()
                assert one.said[way].text == text and one.said[way].similarity == edit_similarity(text, one.truth)
                assert (one.said[way].text == one.truth) or not one.said[way].exact


def test_evidence_within_the_window_and_past_it():
    graft, made = taught(0)
    found = evaluate_code(graft, made, TOKENIZER, ["window"])
    limit = sorted(one.nearest for one in found)[3]
    split = by_reach(found, limit)
    assert max(one.nearest for one in split["within"]) == limit < min(one.nearest for one in split["past"])
    assert len(split["within"]) + len(split["past"]) == len(found) and list(by_reach(found, None)) == ["within"]


# Pictures, and the commands.


def test_pictures_show_each_share_in_its_place(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    shown = []
    monkeypatch.setattr(pictures, "save", lambda plt, figure, path: shown.append(figure) or plt.close(figure))
    maps = {"on": [[1.0, 0.5], [0.25, None]], "off": [[0.0, 0.0], [0.0, 0.125]]}
    pictures.draw_heat(tmp_path / "x.png", maps, [512, 1024], [0.0, 1.0], "title")
    for axis, rows in zip(shown[0].axes, maps.values(), strict=False):
        assert [text.get_text() for text in axis.texts] == ["" if x is None else f"{x:.2f}" for r in rows for x in r]
        assert axis.images[0].get_array()[1][0] == rows[1][0] and axis.images[0].get_clim() == (0, 1)
        assert [label.get_text() for label in axis.get_xticklabels()] == ["512", "1,024"]
        assert axis.get_ylim() == (1.5, -0.5)  # the start of the text is on top
    pictures.draw_distance(tmp_path / "x.png", {"on": [(20.0, 0.75, 0.5, 0.9)]}, 16, "title")
    line, window = shown[1].axes[0].containers[0].lines[0], shown[1].axes[0].lines[-1]
    assert (line.get_xdata()[0], line.get_ydata()[0]) == (20, 0.75) and list(window.get_xdata()) == [16, 16]
    with pytest.raises(ValueError, match="2 rows of 1 numbers"):
        pictures.draw_heat(tmp_path / "x.png", maps, [512], [0.0, 1.0], "title")
    with pytest.raises(ValueError, match="1 to 6 curves; got 0"):
        pictures.draw_distance(tmp_path / "x.png", {}, None, "title")
    assert label("window", None) == "memory off" and label("window", 16) == "window of 16 alone"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("graft")
    graft = model(layers=[1])
    graft.save_pretrained(str(place / "run/best"))
    graft.unload().save_pretrained(place / "base")
    TOKENIZER.save_pretrained(place / "base")
    (place / "data.jsonl").write_text(
        "".join(s.to_json() + "\n" for s in task().samples(2, ruler=HuggingFace(TOKENIZER, "bytes")))
    )
    return place


def invoke(folder, *arguments: str):
    chosen = ["--checkpoint", str(folder / "run"), "--model", str(folder / "base")]
    return CliRunner().invoke(main, ["evaluate", arguments[0], *chosen, *arguments[1:]])


def test_the_needle_command(folder, tmp_path):
    pytest.importorskip("matplotlib")
    small = ["needle", "--context_lengths", "130,200", "--depths", "0,1", "--samples", "2", "--hash_len", "2"]
    run = invoke(folder, *small, "--bare", "--probes", "--output", str(tmp_path / "out"), "--json")
    assert run.exit_code == 0, run.output
    told = json.loads(run.output)
    assert told == json.loads((tmp_path / "out/needle.json").read_text())
    assert [(c["length"], c["depth"], c["answers"]) for c in told["cells"]] == [
        (130, 0, 2), (130, 1, 2), (200, 0, 2), (200, 1, 2),
    ]  # fmt: skip
    assert list(told["all"]["ways"]) == ["memory", "window", "bare", *PROBES] and told["window"] == 8
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"needle.json", "needle.png", "distance.png"}
    table = invoke(folder, *small, "--task", "needle", "--digits", "3")
    assert table.exit_code == 2 and "--hash_len is not for --task needle" in table.output
    options = ["--context_lengths", "900", "--depths", "0.5", "--samples", "2"]
    table = invoke(folder, "needle", *options, "--task", "dependency", "--form", "reaches")
    assert table.exit_code == 0, table.output
    assert "window of 8 alone" in table.output and "a guess" in table.output and "0.50" in table.output


def test_the_code_command(folder):
    drawn = invoke(folder, "code", "--synthetic", "--context_lengths", "1500", "--samples", "2", "--bare", "--json")
    assert drawn.exit_code == 0, drawn.output
    told = json.loads(drawn.output)
    assert [row["evidence"] for row in told["rows"]] == ["past", "all"]
    whole = told["rows"][1]
    assert whole["answers"] == len(whole["said"]) == 2 and list(whole["ways"]) == ["memory", "window", "bare"]
    for way, row in whole["ways"].items():
        said = [one["said"][way] for one in whole["said"]]
        assert row["similarity"] == pytest.approx(sum(one["similarity"] for one in said) / 2)
    table = invoke(folder, "code", "--data_path", str(folder / "data.jsonl"))
    assert table.exit_code == 0 and "data.jsonl" in table.output and "past 8" in table.output
    refused = invoke(folder, "code", "--data_path", str(folder / "data.jsonl"), "--synthetic")
    assert refused.exit_code == 2 and "--synthetic is for texts that are drawn" in refused.output


def test_answers_with_probes_and_prose_of_a_file(folder, tmp_path):
    prose = tmp_path / "prose.txt"
    prose.write_text("A plain text, read for its perplexity.\n" * 9)
    data = str(folder / "data.jsonl")
    run = invoke(folder, "answers", data, "--probes", "--prose_path", str(prose), "--json")
    assert run.exit_code == 0, run.output
    told = json.loads(run.output)
    assert set(PROBES) < set(told["answers"][0]) and told["answers"][0]["answers"] == 4
    other = json.loads(invoke(folder, "answers", data, "--prose", "50", "--json").output)
    assert set(told["perplexity"]) == {"memory", "window", "bare"} and told["perplexity"] != other["perplexity"]
    table = invoke(folder, "answers", data, "--prose_path", str(prose), "--prose", "60")
    assert "perplexity, 60 tokens" in table.output and "of prose.txt" in table.output
    prose.write_text("a")
    refused = invoke(folder, "answers", data, "--prose_path", str(prose))
    assert refused.exit_code == 2 and "has 1 token" in refused.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--context_lengths", "a"], "'a' is no list of numbers such as 512,1024"),
        (["--context_lengths", "64,64"], "has a number twice"),
        (["--depths", "0,2"], "2.0 is not from 0 to 1"),
        (["--context_lengths", "9"], "context_len must be at least"),
        (["--questions", "3", "--needles", "2"], "3 questions need as many needles"),
    ],
)
def test_refusals(folder, arguments, words):
    run = invoke(folder, "needle", *arguments)
    assert run.exit_code == 2 and words in " ".join(run.output.split()), run.output


def test_a_folder_without_a_graft_is_refused(folder):
    run = CliRunner().invoke(main, ["evaluate", "code", "--synthetic", "--checkpoint", str(folder)])
    assert run.exit_code == 2 and "neither adapter_config.json nor best/adapter_config.json" in run.output
