"""Evidence recall counts what it says; the searches side by side find what they should; the command prints it."""

import json
import sys

import pytest
from click.testing import CliRunner

from bag import BagEmbedder
from memory_titan.cli import evaluate_store, main
from memory_titan.evaluation import conversations as module
from memory_titan.evaluation.conversations import DEEP, PARTS, compare_searches, evaluate_search, methods
from memory_titan.tasks.conversations import (
    Conversation,
    ConversationTask,
    Question,
    Session,
    Turn,
    write_conversations,
)

TEXTS = ["Where do you live now?", "In York, by the river.", "I slept badly.", "Leeds was loud.", "Hi Ann!", "  "]
TURNS = tuple(Turn(f"t{n}", ("Bob", "Ann")[n % 2], text) for n, text in enumerate(TEXTS))
QUESTIONS = (
    Question("Where does Ann live?", ("t1",), stale=("t3",), category="one"),
    Question("Who is by the river in Leeds?", ("t1", "t3"), category="two"),
)
SMALL = Conversation("c", (Session("s", TURNS, "2023-05-08T13:56"),), QUESTIONS)


def fixed(*ids):
    return lambda conversation: lambda question, k: ids[:k]


def test_recall_is_a_share_of_the_evidence():
    result = evaluate_search([SMALL], fixed("t0", "t3", "t1"), k=2)
    assert result.recall == [0.0, 0.5]
    assert result.first == [1 / 3, 1 / 2]
    assert result.current == [False]
    assert evaluate_search([SMALL], fixed("t1", "t3"), k=2).current == [True]
    assert evaluate_search([SMALL], fixed("t0"), k=2).current == [False]  # not found at all
    summary = evaluate_search([SMALL], fixed("t1"), k=1).summary()
    assert summary["recall@1"] == 0.75 and summary["low"] <= 0.75 <= summary["high"] and summary["mrr"] == 1
    assert result.by_category()["two"] == {"questions": 1.0, "recall@2": 0.5}


def test_recall_is_of_what_whoever_asks_for_k_gets():
    asked = []

    def prepare(conversation):
        return lambda question, k: asked.append(k) or (["t1"] if k > 2 else ["t0"])

    result = evaluate_search([SMALL], prepare, k=2)
    assert asked == [2, DEEP] * 2 and result.recall == [0, 0] and result.first == [1, 1]


def test_differences_are_paired():
    one, other = (evaluate_search([SMALL], fixed(*ids), k=2) for ids in (("t1",), ("t3",)))
    assert one.recall == [1, 0.5] and other.recall == [0, 0.5]
    found = one.difference(other)
    assert found["difference"] == 0.5 and 0 <= found["low"] <= 0.5 <= found["high"] <= 1
    with pytest.raises(ValueError, match="got 2 and 0"):
        one.difference(evaluate_search([], fixed()))


def test_searches_side_by_side():
    results = compare_searches([SMALL], methods(BagEmbedder(), ("mac", "mag", "mal"), PARTS), k=2)
    assert list(results)[:6] == ["bm25", "dense", "fusion", "store", "store, mag", "store, mal"]
    assert results["store"].recall[0] == 1  # the answer beside the words, by who is asked about
    assert results["bm25"].recall[1] == 1
    assert all(len(each.recall) == 2 for each in results.values()) and len(results) == 6 + 8


def test_the_store_is_told_what_an_application_knows():
    with module.remember(module.spoken(SMALL), BagEmbedder()) as manager:
        hit = manager.query("the river", 1)[0]
        assert len(manager) == 5  # the empty turn is none
    assert hit["id"] == "t1" and hit["metadata"] == {"speaker": "Ann"}
    assert hit["session"] == "s" and hit["created"].startswith("2023-05-08T13:56")


def test_each_part_makes_a_difference():
    drawn = [ConversationTask(sessions=4, subjects=4).draw(0, index) for index in range(2)]
    results = compare_searches(drawn, methods(BagEmbedder(), without=PARTS))
    found = {name: each.summary()["recall@10"] for name, each in results.items()}
    assert 0 < found["dense"] < found["store"] < 1
    for part in PARTS:
        assert results[f"store without {part}"].first != results["store"].first, part


def test_the_command_knows_all_parts():
    assert set(sys.modules["memory_titan.cli.evaluate_store"]._PARTS) == set(PARTS)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        evaluate_search([SMALL], fixed(), k=0)
    with pytest.raises(ValueError, match="no questions"):
        evaluate_search([], fixed()).summary()
    with pytest.raises(ValueError, match=r"neighbours, speaker, length, names, recall; got \['luck'\]"):
        methods(BagEmbedder(), without=["luck"])


# -- the command


@pytest.fixture
def run():
    command = ["evaluate", "store", "--embedder", "bag:BagEmbedder"]
    return lambda *arguments: CliRunner().invoke(main, [*command, *map(str, arguments)])


def test_the_command_compares_searches(run, tmp_path):
    file = tmp_path / "small.jsonl"
    write_conversations(file, [SMALL])
    found = json.loads(run(file, "--k", 1, "--architecture", "mal", "--without", "speaker", "--json").output)
    assert found["turns"] == 6 and found["questions"] == 2 and found["set"] == "small.jsonl"
    rows = {row.pop("search"): row for row in found["searches"]}
    assert list(rows) == ["bm25", "dense", "fusion", "store", "store without speaker"]
    assert rows["bm25"]["less_store"] == rows["bm25"]["recall@1"] - rows["store"]["recall@1"]
    assert [row["category"] for row in found["categories"]] == ["one", "two"]
    shown = run(file, "--k", 1).output
    assert "less store" in shown and f"{rows['store']['mrr']:.3f}" in shown, shown


def test_the_command_compares_rules(run):
    found = json.loads(run("--count", 1, "--keep", 0.2, "--keep", 1, "--rule", "newest", "--json").output)
    small, whole = (found["keep"][share][0] for share in ("0.2", "1"))
    assert small["rule"] == "newest" and 0.1 < small["items_kept"] < 0.3 and whole["evidence_kept"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((__file__,), "line 1"),
        ((__file__, "--docs"), "for what is drawn"),
        (("--keep", 0.5, "--without", "names"), "rules"),
        (("--rule", "newest"), "goes with --keep"),
        (("--count", 1, "--keep", 0.5, "--rule", "best"), "got best"),
    ],
)
def test_the_command_refuses(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.output
    assert evaluate_store.name == "store"
