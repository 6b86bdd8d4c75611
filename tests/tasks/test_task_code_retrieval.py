"""Code retrieval, made up and from real trees: the definition alone tells the answer; spoiled samples are seen."""

import ast
import itertools
from collections import Counter

import pytest

from memory_titan.tasks import code_modules, code_retrieval
from memory_titan.tasks.checking import UnsolvableError
from memory_titan.tasks.code_retrieval import CodeRetrievalTask, SourceRetrievalTask, solve
from memory_titan.tasks.code_source import read_corpus, split_of
from memory_titan.tasks.ruler import BYTES, WORDS
from memory_titan.tasks.sample import Sample
from mutations import ALWAYS_SEEN, Pairs, first, told_twice

KINDS = [*code_modules.KINDS, "mixed"]
FILLING = "\n".join(f"# a line of little meaning, {'ab' * (i % 7)}" for i in range(200))
TREE = {
    "shop/__init__.py": "",
    "shop/till.py": f'''"""Money."""
LIMIT = 4096
NAME = "counter {{}}"
TWICE = 5
TWICE = 6


class Till:
    drawer = 731

    def __init__(self, owner, floor, *, currency="EUR"):
        self.owner = owner


def charge(customer, amount, /, when, *, note):
    return customer


def lend(item, days=21):
    return item


@staticmethod
def decorated(one, two):
    return one


def own(first_thing, second_thing):
    return first_thing


{FILLING}


def late():
    return own(1, 2)
''',
    "shop/visit.py": """import shop
from shop.till import LIMIT, TWICE, Till, charge, decorated, lend
from . import till


def visit(guest):
    if guest:
        charge(guest, 3, when="now", note="none")  # a comment behind
    amount = LIMIT + 1; amount += 1
    amount = LIMIT + 2
    left = Till.drawer - amount
    box = Till("me",
               4, currency="USD")
    lend(guest)
    decorated(1, 2)
    till.lend(
        guest,
        14,
    )
    return TWICE
""",
    "latin.py": b"# -*- coding: latin-1 -*-\nfrom shop.till import LIMIT\n\nprint('caf\xe9', LIMIT)\n",
    "broken.py": "def f(:\n",
    "wrong.py": b"x = '\xe9'\n",
    "null.py": b"x = 1\0\n",
    "notes.txt": "no Python",
    "other.py": FILLING,
    ".hidden/secret.py": "from shop.till import LIMIT\n\nprint(LIMIT)\n",
}


@pytest.fixture
def tree(tmp_path):
    for name, content in TREE.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / "tree"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ruler", [WORDS, BYTES, Pairs()], ids=lambda r: r.name)
def test_made_up_modules(kind, ruler):
    length = 700 if ruler is WORDS else 6000
    for sample in CodeRetrievalTask(context_len=length, questions=2, kind=kind).samples(5, ruler=ruler):
        assert not code_retrieval.check(sample, ruler)
        assert 0.97 * length <= sample.length <= length
        assert Sample.from_json(sample.to_json()) == sample


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoiled_sample_is_seen(kind):
    samples = CodeRetrievalTask(context_len=300, kind=kind).samples(8)
    for sample, spoil in itertools.product(samples, [*ALWAYS_SEEN, told_twice]):
        assert code_retrieval.check(spoil(sample), WORDS), spoil.__name__


def parses(module):
    try:
        return bool(ast.parse("#" + module))
    except SyntaxError:
        return False


def test_made_up_modules_are_python():
    """As a whole, with the answer in its place."""
    kinds = Counter()
    for sample in CodeRetrievalTask(context_len=1000).samples(60):
        kinds[sample.meta["kind"]] += 1
        context, use = sample.text[: sample.answers[0].question[0]], sample.text[sample.answers[0].question[0] :]
        ast.parse(use + ("=1)" if sample.meta["kind"] == "keyword" else ""))
        whole = [parses(module) for module in context.split("\n# file:")]
        assert whole.count(False) <= 2  # the last of the filler may be cut
    assert set(kinds) == set(code_modules.KINDS)


def test_seed_and_index_decide():
    task = CodeRetrievalTask(context_len=500)
    samples = list(task.samples(6))
    assert list(task.samples(2, start=4)) == samples[4:]
    assert not {s.text for s in samples} & {s.text for s in task.samples(6, seed=1)}


def test_what_a_tree_asks(tree):
    corpus = read_corpus(tree, "all")
    assert corpus.skipped == 3
    assert [file.path for file in corpus.files] == [
        "latin.py", "other.py", "shop/__init__.py", "shop/till.py", "shop/visit.py",
    ]  # fmt: skip
    found = {(item.kind, item.answer, item.question.splitlines()[-1]) for item in corpus.items}
    assert found == {
        ("constant", "4096", "assert LIMIT =="),
        ("attribute", "731", "assert Till.drawer =="),
        ("keyword", "note", 'charge(guest, 3, when="now",'),
        ("keyword", "currency", "           4,"),
        ("parameter", '"floor"', "assert list(inspect.signature(Till).parameters)[1] =="),
        ("parameter", '"amount"', "assert list(inspect.signature(charge).parameters)[1] =="),
        ("default", "21", 'assert inspect.signature(lend).parameters["days"].default =='),
        ("parameter", '"days"', "assert list(inspect.signature(till.lend).parameters)[1] =="),
        ("parameter", '"second_thing"', "assert list(inspect.signature(own).parameters)[1] =="),
    }
    latin = next(item for item in corpus.items if corpus.files[item.use].path == "latin.py")
    assert latin.question == "# file: latin.py\nfrom shop.till import LIMIT\n\nprint('café', LIMIT)\nassert LIMIT =="


def test_a_tree_gives_samples(tree):
    task = SourceRetrievalTask(read_corpus(tree, "all"), context_len=900)
    samples = list(task.samples(60))
    assert {sample.meta["kind"] for sample in samples} == {"constant", "attribute", "keyword", "parameter", "default"}
    for sample in samples:
        assert not code_retrieval.check(sample, WORDS)
        assert 0.97 * 900 <= sample.length <= 900
        assert str(tree) not in sample.to_json()
    assert list(task.samples(1, start=59)) == samples[59:]
    for sample, spoil in itertools.product(samples, ALWAYS_SEEN):
        assert code_retrieval.check(spoil(sample), WORDS), (spoil.__name__, sample)


def test_the_file_is_evidence(tree):
    sample = next(SourceRetrievalTask(read_corpus(tree, "all"), context_len=900).samples(1))
    answer = sample.answers[0]
    fewer = first(sample, evidence=answer.evidence[1:], distances=answer.distances[1:])
    assert any("file's header" in problem for problem in code_retrieval.check(fewer))
    question, evidence = sample.cut(answer.question), [sample.cut(span) for span in answer.evidence]
    assert solve(evidence, question) == sample.answer.strip()
    with pytest.raises(UnsolvableError, match="the evidence is of"):
        solve([evidence[0].replace("till", "bank"), *evidence[1:]], question)


def test_splits_share_no_file(tmp_path):
    for i in range(40):
        (tmp_path / f"m{i}.py").write_text(f"VALUE_{i} = {1000 + i}\n{FILLING}\nprint(VALUE_{i})\n")
    whole, train, test = (read_corpus(tmp_path, split) for split in ("all", "train", "test"))
    paths = [{file.path for file in corpus.files} for corpus in (whole, train, test)]
    assert not paths[1] & paths[2] and paths[1] | paths[2] == paths[0] and paths[2]
    assert len(whole.items) == 40 == len(train.items) + len(test.items)
    assert all(split_of(path) == "test" for path in paths[2])
    sample = next(SourceRetrievalTask(test, context_len=300).samples(1))
    assert sample.meta["split"] == "test" and not code_retrieval.check(sample, WORDS)


def test_refuses_what_cannot_be(tree, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="split must be one of"):
        read_corpus(tree, "dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing to ask about in 0 Python files"):
        read_corpus(tmp_path / "empty")
    with pytest.raises(ValueError, match="too few files for 5 questions"):
        SourceRetrievalTask(read_corpus(tree, "all"), questions=5).samples(1)
    with pytest.raises(ValueError, match="kind must be one of"):
        CodeRetrievalTask(kind="poem")
    with pytest.raises(ValueError, match="at least 1"):
        CodeRetrievalTask(questions=0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        CodeRetrievalTask(depth=2)
    with pytest.raises(ValueError, match=r"at least \d+ words"):
        CodeRetrievalTask(context_len=30).samples(1)


@pytest.mark.parametrize(
    ("evidence", "question", "message"),
    [
        (["X = 1"], "assert Y ==", "does not define Y"),
        (["def f(a, b, c):"], "def test():\n    f(1,", "leaves 2 parameters open: b, c"),
        (["def f(a, *rest):"], "def test():\n    f(1,", "takes any arguments"),
        (["def f(a"], "assert f() ==", "no definition"),
        (["import os"], "assert os.X ==", "neither function"),
        (["X = 1"], "tell me", "no code question"),
    ],
)
def test_the_solver_says_what_is_missing(evidence, question, message):
    with pytest.raises(UnsolvableError, match=message):
        solve(evidence, question)


def test_the_solver_reads_methods():
    evidence = ["class C(Base):", "    def __init__(self, one, *, two=(3)):"]
    assert solve(evidence, "import inspect\n\nC(1,") == "two"
    assert solve(evidence, 'assert inspect.signature(m.C).parameters["two"].default ==') == "3"
    assert solve(evidence, "assert list(inspect.signature(C).parameters)[0] ==") == '"one"'
