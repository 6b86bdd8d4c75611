"""Rules for keeping, compared: on a tiny stream whose answers can be worked out."""

import numpy as np
import pytest

from bag import BagEmbedder
from memory_titan.evaluation import keeping as module
from memory_titan.evaluation.conversations import spoken
from memory_titan.evaluation.keeping import (
    ALL,
    RULES,
    SURPRISE,
    Seen,
    Stream,
    evaluate_keeping,
    keep,
    longest,
    newest,
)
from memory_titan.tasks.conversations import Conversation, Question, Session, Turn

BAG = BagEmbedder()
FACTS = ["Anna moved to Turku in 2019", "Boris sold 3 boats", "Carla adopted Rufus in May", "Dmitri plays the oboe"]
FILLER = [
    "oh, how are you today then?",
    "ok, really good, thanks!!",
    "well well, you know what?",
    "hi hello, how are you now?",
]
TEXTS = [text for fact in FACTS for text in (fact, *FILLER)]


def conversation(evidence=((0,), (5,), (10,), (15,))):
    """Fact, filler, filler, filler, filler, fact, ...; question i asks for fact i."""
    turns = tuple(Turn(f"t{n}", "Eve", text) for n, text in enumerate(TEXTS))
    asked = ("Where did Anna move?", "What did Boris sell?", "Whom did Carla adopt?", "What does Dmitri play?")
    questions = tuple(
        Question(text, tuple(f"t{n}" for n in items)) for text, items in zip(asked, evidence, strict=False)
    )
    return Conversation("c", (Session("s", turns),), questions)


def stream():
    return Stream(spoken(conversation()), BAG.encode(TEXTS))


def results(names, *given, **options):
    chosen = {name: RULES[name] for name in names}
    return {each.rule: each for each in evaluate_keeping(given or [conversation()], BAG, chosen, **options)}


def size(held):
    return sum(len(TEXTS[n]) for n in held)


def test_surprise_keeps_the_facts_and_the_rest_does_not():
    found = results(RULES, budget=0.3)
    assert found[SURPRISE].kept == found[SURPRISE].recall == 1.0
    assert found["newest"].kept == 0.25
    assert found[ALL].kept == 1.0 and found[ALL].items == 1.0
    assert found["idf_a_byte"].kept >= found["random"].kept


@pytest.mark.parametrize("name", [name for name in RULES if name != ALL])
@pytest.mark.parametrize("budget", [0.1, 0.5])
def test_every_rule_keeps_the_budget(name, budget):
    held = keep(stream(), name, RULES[name], budget, BAG).tolist()
    assert size(held) <= budget * size(range(20))
    if name != SURPRISE:  # it does not take what it knows
        assert size(held) > budget * size(range(20)) - 30
    assert held == sorted(set(held))


def test_simple_rules_keep_what_they_say():
    held = keep(stream(), "newest", newest, 0.2, BAG).tolist()
    assert held == list(range(20 - len(held), 20))
    held = keep(stream(), "longest", longest, 0.3, BAG).tolist()
    out = set(range(20)) - set(held)
    assert min(len(TEXTS[i]) for i in held) >= max(len(TEXTS[i]) for i in out)
    first, second, again = (keep(stream(), "random", RULES["random"], 0.3, BAG, seed).tolist() for seed in (0, 1, 0))
    assert first == again != second


def test_what_the_rules_value():
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    seen = Seen(vectors, np.array([2, 4, 8]), [["a"], ["a", "b"], []], np.zeros(3))
    for item in range(3):
        seen.read(item, list(range(item)))
    held = np.arange(3)
    assert seen.novelty == pytest.approx([1, 0.2, 0.4])
    assert RULES["spread"](seen, held) == pytest.approx([-0.8, -0.8, -0.6])
    mass = np.array([np.log(4 / 2.5), np.log(4 / 2.5) + np.log(4 / 1.5), 0])
    assert RULES["idf_mass"](seen, held) == pytest.approx(mass)
    assert RULES["idf_a_byte"](seen, held) == pytest.approx(mass / [2, 4, 8])
    assert RULES["idf_novel"](seen, held) == pytest.approx(mass * [1, 0.2, 0.4])


def test_the_search_holds_exactly_what_a_rule_does(monkeypatch):
    turns = tuple(Turn(f"t{n}", "Eve", FILLER[n % 4]) for n in range(600))  # more than the window, and all of it known
    long = Conversation("c", (Session("s", turns),), (Question("How are you?", ("t9",)),))
    managers = []

    class Recording(module.TitansManager):
        def query(self, *arguments, **options):
            managers.append(sorted(record["id"] for record in self.get([turn.id for turn in turns])))
            return super().query(*arguments, **options)

    monkeypatch.setattr("memory_titan.evaluation.conversations.TitansManager", Recording)
    results([ALL, "newest"], long, budget=0.5)
    held = keep(Stream(spoken(long), BAG.encode([turn.text for turn in turns])), "newest", newest, 0.5, BAG)
    assert managers == [sorted(turn.id for turn in turns), sorted(f"t{n}" for n in held)]


def test_only_what_is_held_is_found():
    found = results(["newest"], budget=0.25, k=20)["newest"]  # the last fact and filler
    assert found.recalls.tolist() == [0, 0, 0, 1]
    assert found.items < 0.4


def test_a_rule_that_draws_is_averaged():
    one = [results(["random"], budget=0.3, seed=seed, draws=1)["random"].recalls for seed in range(3)]
    assert results(["random"], budget=0.3, draws=3)["random"].recalls == pytest.approx(np.mean(one, axis=0))
    assert np.ptp(one, axis=0).max() > 0


def test_recall_and_kept_are_shares_over_all_questions():
    shared = conversation([(0, 15), (5,)])
    found = results([ALL, "newest"], shared, conversation(), budget=0.25, k=1)
    assert found[ALL].recalls[0] == 0.5 and len(found[ALL].recalls) == 6
    assert found["newest"].kept == pytest.approx((0.5 + 0 + 0.25 * 4) / 6)
    assert found[ALL].low <= found[ALL].recall <= found[ALL].high


def test_what_cannot_be_kept():
    with pytest.raises(ValueError, match="budget must be over 0"):
        results(RULES, budget=0)
    with pytest.raises(ValueError, match="no question"):
        evaluate_keeping([], BAG)
    with pytest.raises(ValueError, match="no rule is given for mine"):
        evaluate_keeping([conversation()], BAG, {"mine": None})
    with pytest.raises(ValueError, match="20 turns, but 2 vectors"):
        Stream(spoken(conversation()), np.ones((2, 8), np.float32))
