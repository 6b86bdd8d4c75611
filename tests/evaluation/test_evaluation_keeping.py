"""Rules for keeping, compared: on a tiny stream whose answers can be worked out."""

import numpy as np
import pytest

from bag import BagEmbedder
from memory_titan.evaluation import keeping as module
from memory_titan.evaluation.conversations import spoken
from memory_titan.evaluation.keeping import (
    ABRIDGED,
    ALL,
    RULES,
    SURPRISE,
    Seen,
    Stream,
    evaluate_keeping,
    keep,
    longest,
    newest,
    still_says,
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
    kept = keep(stream(), name, RULES[name], budget, BAG)
    held = list(kept)
    assert sum(len(text.encode()) for text in kept.values()) <= budget * size(range(20))
    if RULES[name]:  # the store does not take what it knows
        assert size(held) > budget * size(range(20)) - 30
    assert held == sorted(set(held))


def test_simple_rules_keep_what_they_say():
    held = list(keep(stream(), "newest", newest, 0.2, BAG))
    assert held == list(range(20 - len(held), 20))
    held = list(keep(stream(), "longest", longest, 0.3, BAG))
    out = set(range(20)) - set(held)
    assert min(len(TEXTS[i]) for i in held) >= max(len(TEXTS[i]) for i in out)
    first, second, again = (list(keep(stream(), "random", RULES["random"], 0.3, BAG, seed)) for seed in (0, 1, 0))
    assert first == again != second


def abridged():
    """Each fact behind small talk, in one turn."""
    turns = tuple(Turn(f"t{n}", "Eve", f"Oh, how are you then? {fact}. OK, thanks!") for n, fact in enumerate(FACTS))
    asked = [("Where did Anna move?", "Turku"), ("What did Boris sell?", "thanks")]
    questions = tuple(Question(text, (f"t{n}",), (answer,)) for n, (text, answer) in enumerate(asked))
    return Conversation("c", (Session("s", turns),), questions)


def test_what_is_held_in_part_counts_strictly_only_with_the_answer():
    found = results([SURPRISE, ABRIDGED], abridged(), budget=0.5)
    assert found[ABRIDGED].kept == found[ABRIDGED].recall == 1 and found[ABRIDGED].strict == 0.5
    assert found[ABRIDGED].strict_kept == 0.5 and found[ABRIDGED].stricts.tolist() == [1, 0]
    assert found[SURPRISE].strict == found[SURPRISE].recall <= 0.5
    assert found[ABRIDGED].items > found[SURPRISE].items


def test_what_still_says_it():
    whole = "I do n't know. It's in the harbour, by the sea."
    assert still_says(["it 's in the harbour", "a hen"], whole, "It's in the harbour, by the sea.")
    assert not still_says(["in the harbour", "I don't"], whole, "It's in the harbour, by the sea.")
    assert not still_says(["harbour"], whole, "the harbourmaster") and not still_says(["know it"], whole, "know … it")
    assert still_says(["Ann"], whole, whole[:-20]) and not still_says((), whole, whole[:20])


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
