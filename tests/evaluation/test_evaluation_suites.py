"""Suites on a graft, samples as tasks of lm-evaluation-harness, and what the harness measures on a graft."""

from __future__ import annotations

import importlib.util
import json
import re
import string

import pytest
import torch
import yaml
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memory_titan import MAGConfig, MemoryModel, get_memory_model
from memory_titan.cli import main
from memory_titan.evaluation import lm_eval_tasks, suites
from memory_titan.evaluation.answers import evaluate
from memory_titan.evaluation.lm_eval_tasks import write_task
from memory_titan.evaluation.suites import evaluate_suite
from memory_titan.tasks.examples import encode
from memory_titan.tasks.hash_hop import HashHopTask
from memory_titan.tasks.sample import Answer, Sample

has_harness = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not has_harness, reason="lm-eval not installed (extra: lm-eval)")


def tokenizer() -> PreTrainedTokenizerFast:
    """A character a token."""
    characters = sorted({*string.ascii_letters, *string.digits, *" .,?:->='\"()_\n"})
    raw = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, **{c: i for i, c in enumerate(characters, 2)}}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


WORDS = tokenizer()


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.3, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def graft(**options) -> MemoryModel:
    """A graft that is heard."""
    model = get_memory_model(base(), MAGConfig(**{"window": 24, "chunk_size": 8, "segment": 64, **options})).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.branches.named_parameters():
            if name.endswith("gate.weight"):
                parameter.normal_(std=0.3)
            elif name.endswith("gate.bias"):
                parameter.fill_(1.0)
    return model


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    return graft()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A base model and its adapter, as the command line takes them."""
    folder = tmp_path_factory.mktemp("saved")
    base().save_pretrained(folder / "base")
    WORDS.save_pretrained(folder / "base")
    model = MemoryModel(LlamaForCausalLM.from_pretrained(folder / "base"), graft().graft_config)
    model.branches.load_state_dict(graft().branches.state_dict())
    model.save_pretrained(str(folder / "adapter"))
    return folder


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


# Suites.


def test_every_row_is_measured_in_three_ways(model, monkeypatch):
    seen = []

    def spy(graft, examples, batch_size):
        seen.append((graft.graft.with_memory, graft.graft.with_window, len(examples[0].ids), batch_size))
        return evaluate(graft, examples, batch_size)

    monkeypatch.setattr(suites, "evaluate", spy)
    told = []
    names = ["niah_single_1", "niah_multiquery"]
    rows = evaluate_suite(model, WORDS, "ruler", names, [600, 700], 2, seed=3, batch_size=2, report=told.append)
    assert [(row["task"], row["length"], row["answers"]) for row in rows] == [
        (name, length, answers) for name, answers in zip(names, (2, 8), strict=True) for length in (600, 700)
    ]
    assert [each[:2] for each in seen] == [(True, True), (False, True), (False, False)] * 4
    assert all(580 <= length <= 701 and size == 2 for _, _, length, size in seen)
    assert told == [label for row in rows for label in [f"{row['task']}, {row['length']} tokens"] * 3]
    assert all(0 <= row[way] <= 1 for row in rows for way in ("memory", "window", "bare"))
    assert all(0 < row["nearest"] < row["length"] for row in rows)


def test_what_a_suite_cannot_do_is_refused_at_once(model):
    for arguments, message in [
        (("ruler", ["qa1"], [512], 1), "a task of ruler must be one of"),
        (("ruler", ["niah_single_1", "cwe"], [300], 1), "cwe: context_len must be at least"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_suite(model, WORDS, *arguments)


def test_suites_on_the_command_line(saved):
    given = ["--checkpoint", saved / "adapter", "--model", saved / "base", "--samples", 1]
    shown = run("evaluate", "ruler", *given, "--tasks", "niah_single_1, vt", "--context_lengths", "500,600")
    assert shown.exit_code == 0 and shown.output.count("niah_single_1") == 2 and "window of 24 alone" in shown.output
    printed = run("evaluate", "babilong", *given, "--context-lengths", 1200, "--json")
    assert [row["task"] for row in json.loads(printed.stdout)["rows"]] == ["qa1", "qa2", "qa3"], printed.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ruler", "--tasks", "qa1"], "a task of ruler must be one of niah_single_1"),
        (["babilong", "--context_lengths", "512,long"], "must be whole numbers"),
        (["babilong", "--context_lengths", ","], "names none"),
        (["babilong", "--context_lengths", "100"], "qa1: context_len must be at least"),
        (["ruler", "--checkpoint", "nowhere"], "no such folder"),
    ],
)
def test_bad_suite_options_are_refused(saved, arguments, words):
    given = [*arguments, "--model", saved / "base"]
    result = run("evaluate", *given, *([] if "--checkpoint" in given else ["--checkpoint", saved / "adapter"]))
    assert result.exit_code == 2 and words in " ".join(result.output.split()), result.output


@pytest.mark.parametrize(("command", "task"), [("ruler", "niah_multikey_2"), ("ruler", "cwe"), ("babilong", "qa3")])
def test_suites_are_drawn_and_checked(command, task, tmp_path):
    path = tmp_path / "drawn.jsonl"
    given = ["data", command, "--task", task, "--context_len", 400, "--num_samples", 3, "--output", path]
    assert run(*given).exit_code == 0
    assert "all right" in run("data", "check", path).output
    refused = run("data", command, "--task", "nonsense", "--output", tmp_path / "other")
    assert refused.exit_code == 2 and "must be one of" in refused.output and not (tmp_path / "other").exists()


# Samples as tasks of the harness.


def written(path, samples):
    path.write_text("".join(sample.to_json() + "\n" for sample in samples))
    return path


def test_tasks_of_the_harness(tmp_path):
    task = HashHopTask(context_len=200, needles=3, hops=2, questions=2)
    samples = list(task.samples(3))
    path = written(tmp_path / "two hops.jsonl", samples)
    files, documents = write_task(path, tmp_path / "new")
    assert [file.name for file in files] == ["two_hops.yaml", "two_hops_generate.yaml"] and documents == 6
    scored, said = (yaml.safe_load(file.read_text()) for file in files)
    lines = (tmp_path / "new" / "two_hops_documents.jsonl").read_text().splitlines()
    assert scored["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "new" / "two_hops_documents.jsonl")
    for line, (sample, answer) in zip(lines, [(s, a) for s in samples for a in s.answers], strict=True):
        document = json.loads(line)
        text = document[scored["doc_to_text"]] + scored["target_delimiter"] + document[scored["doc_to_target"]]
        assert text == sample.text[: answer.span[1]]
        pattern = re.compile(said["filter_list"][0]["filter"][0]["regex_pattern"])
        right = document[said["doc_to_target"]]
        assert pattern.findall(f" {right}77 -> 0")[0] == right and not pattern.findall(f" {right[:5]}")
        assert len(right) < said["generation_kwargs"]["max_gen_toks"]
    with pytest.raises(ValueError, match=r"two_hops_documents\.jsonl exists; --force"):
        write_task(path, tmp_path / "new")
    with pytest.raises(ValueError, match="letters, digits"):
        write_task(path, tmp_path / "new", "a/b")
    with pytest.raises(ValueError, match="choose another name"):
        write_task(path.rename(tmp_path / "hop_documents.jsonl"), tmp_path, "hop", force=True)
    path = tmp_path / "hop_documents.jsonl"
    shown = run("data", "lm-eval", path, "--output", tmp_path / "new", "--name", "two_hops", "--force")
    assert shown.exit_code == 0 and "6 documents" in shown.output
    path.write_text("{}\n")
    assert run("data", "lm-eval", path, "--output", tmp_path / "other").exit_code == 2
    assert not list((tmp_path / "other").iterdir())


def test_what_counts_as_the_answer():
    for answers, line, taken in [
        (["hallway", "pantry"], " hallway. And so", "hallway"),
        (["10, 20", "30, 40"], "50, 607", "50, 60"),
        (["a1-b2", "c3-d4"], " a1-b2-c3", "a1-b2"),
        (["yes", "no, never"], " no, never ", "no, never "),
    ]:
        assert re.findall(lm_eval_tasks._pattern(answers), line) == [taken]


@pytest.mark.skipif(has_harness, reason="lm-eval is installed")
def test_without_the_harness(saved):
    result = run("evaluate", "lm-eval", "--checkpoint", saved / "adapter", "--tasks", "arc_easy")
    assert result.exit_code == 2 and "pip install 'memory-titan[lm-eval]'" in result.output


def test_generate_takes_what_the_harness_passes(model):
    ids = torch.randint(2, len(WORDS), (2, 30))
    assert torch.equal(model.generate(ids, use_cache=True, max_length=33), model.generate(ids, max_length=33))


# The harness itself.


def greedy_samples(model, number=12):
    """Texts whose answers are what the model says, every third but for its last character."""
    letters, found = torch.Generator().manual_seed(5), []
    for index in range(number):
        length = 40 + 13 * index
        drawn = torch.randint(2, len(WORDS), (length,), generator=letters)
        prompt = WORDS.decode(drawn).strip() + "?"
        ids = torch.tensor([[0, *WORDS(prompt, add_special_tokens=False).input_ids]])
        said = WORDS.decode(model.generate(ids, max_new_tokens=4, min_new_tokens=4)[0, ids.shape[1] :])
        if index % 3 == 2:
            said = said[:-1] + ("a" if said[-1] != "a" else "b")
        start, end = len(prompt), len(prompt) + len(said)
        answer = Answer((start, end), (start - 1, start), ((0, 1),), (length,))
        found.append(Sample("made", prompt + said, (answer,), length, "characters", 0, index))
    return found


@pytest.fixture
def harness(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from memory_titan.evaluation import lm_eval

    return lm_eval


@needs_harness
def test_the_harness_agrees_with_evaluate_answers(model, harness, tmp_path):
    samples = greedy_samples(model)
    right = evaluate(model, [encode(sample, WORDS) for sample in samples])["exact"]
    assert right == pytest.approx(8 / 12)
    files, _ = write_task(written(tmp_path / "made.jsonl", samples), tmp_path)
    lm = harness.MemoryLM(model, WORDS, batch_size=5)
    found = harness.run(lm, [str(files[0])])["results"]["made"]
    assert found["acc,none"] == pytest.approx(right)
    with model.disable_memory():  # another model, in effect
        bare = harness.run(lm, [str(files[0])])["results"]["made"]
        assert bare["acc,none"] == pytest.approx(evaluate(model, [encode(s, WORDS) for s in samples])["exact"])
        assert bare["acc,none"] < right
    assert harness.run(lm, [str(files[0])], limit=2)["n-samples"]["made"]["effective"] == 2


@needs_harness
@pytest.mark.parametrize("window", [24, None])
def test_scores_are_those_of_the_harness_own_class(window, harness):
    """Log likelihoods, rolling ones, and what is generated; contexts shared, empty, and of several lengths."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = graft(window=window)
    ours, theirs = harness.MemoryLM(model, WORDS, 3), HFLM(pretrained=model, tokenizer=WORDS, batch_size=2)
    theirs.tok_encode = lambda text, add_special_tokens=None, **options: [
        *([] if add_special_tokens is False else [0]),
        *WORDS(text, add_special_tokens=False).input_ids,
    ]
    pairs = [
        ("Where is it?", " here"), ("Where is it?", " there"), ("Where is it?", " x"), ("Who " * 30, "are you"),
        ("", "all of it"), ("One.", " Two." * 40),
    ]  # fmt: skip
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (ll, greedy), (expected, said) in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert ll == pytest.approx(expected, abs=2e-3) and greedy == said
    texts = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(["Some text.", "abc " * 40])]
    plain = HFLM(pretrained=model, tokenizer=WORDS, batch_size=1)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(plain.loglikelihood_rolling(texts), abs=2e-3)
    options = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    prompts = ["Where is it?", "Who " * 30, "abc"]
    written = ours.generate_until(
        [Instance("generate_until", {}, (text, options), i) for i, text in enumerate(prompts)]
    )
    for prompt, text in zip(prompts, written, strict=True):
        ids = torch.tensor([[0, *WORDS(prompt, add_special_tokens=False).input_ids]])
        alone = WORDS.decode(model.generate(ids, max_new_tokens=6)[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == alone.split("\n")[0].split("</s>")[0]


@needs_harness
def test_length_is_cut_only_without_a_window(harness, caplog):
    long = [((None, None), list(range(2, 40)) * 10, [5, 6])]
    bounded, free = graft(), graft(window=None)
    lm = harness.MemoryLM(bounded, WORDS)
    lm._loglikelihood_tokens(long, disable_tqdm=True)
    assert "cut" not in caplog.text and lm.max_length > 10**9
    with bounded.disable_memory():
        assert lm.max_length == 256
    harness.MemoryLM(free, WORDS)._loglikelihood_tokens(long, disable_tqdm=True)
    assert "1 texts are cut to 256 tokens" in caplog.text
    cut = harness.MemoryLM(bounded, WORDS, max_length=7)
    ((score, _),) = cut._loglikelihood_tokens(long, disable_tqdm=True)
    ((same, _),) = cut._loglikelihood_tokens([((None, None), long[0][1][-6:], [5, 6])], disable_tqdm=True)
    assert cut.max_length == 7 and score == pytest.approx(same, abs=1e-4)


@needs_harness
def test_the_harness_on_the_command_line(saved, model, harness, tmp_path, monkeypatch):
    files, _ = write_task(written(tmp_path / "made.jsonl", greedy_samples(model, 6)), tmp_path)
    given = ["evaluate", "lm-eval", "--checkpoint", saved / "adapter", "--model", saved / "base"]
    printed = run(*given, "--tasks", ",".join(map(str, files)), "--compare", "--json")
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    assert set(found) == {"memory", "window", "bare"}
    assert found["memory"]["results"]["made"]["acc,none"] == pytest.approx(4 / 6)
    assert "exact_match,answer" in found["memory"]["results"]["made_generate"]
    shown = run(*given, "--tasks", files[0], "--limit", 3)
    assert shown.exit_code == 0 and "acc,none" in shown.output, shown.output
    manager = harness.TaskManager  # reading all the tasks that the harness has takes ten seconds
    monkeypatch.setattr(harness, "TaskManager", lambda include_defaults: manager(include_defaults=False))
    for tasks, words in [("no_such_task", "knows no task 'no_such_task'"), ("gone.yaml", "no such file: gone.yaml")]:
        result = run(*given, "--tasks", tasks)
        assert result.exit_code == 2 and words in " ".join(result.output.split()), result.output
