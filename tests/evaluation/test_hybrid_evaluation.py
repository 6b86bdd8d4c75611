"""What is told and asked, how answers are marked, and that each figure would show what it is there to show."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import tiny
from memory_titan.cli import evaluate_hybrid as command
from memory_titan.cli import main
from memory_titan.embedders.base import BaseEmbedder
from memory_titan.evaluation import hybrid, hybrid_arms, hybrid_report
from memory_titan.evaluation.hybrid import Settings, evaluate_hybrid
from memory_titan.evaluation.hybrid_marking import mark_corrected, overlap, stage
from memory_titan.evaluation.hybrid_summary import summarise
from memory_titan.evaluation.hybrid_talk import (
    Question,
    Talk,
    corrections_chat,
    facts_chat,
    load_talk,
    several_chat,
)  # fmt: skip
from memory_titan.evaluation.recall import MAX_TOKENS
from memory_titan.hybrid.answer import answer_bare, answer_from
from memory_titan.hybrid.engine import HybridEngine
from memory_titan.hybrid.frozen import load_frozen
from memory_titan.hybrid.memory import RecollectionConfig
from memory_titan.store.terms import tokenize

NOBODY = SimpleNamespace(identity={"name": "nobody", "fingerprint": "0"})
ANIMALS = ["otter", "heron", "badger", "lynx", "stoat", "raven", "newt", "toad", "hare", "vole"]
ROOMS = ["cellar", "attic", "pantry", "garage", "study", "porch", "larder", "nursery", "hall", "kitchen"]


def rows(split: str, animals: list[str]) -> dict[str, list[dict]]:
    facts = [
        {"told": f"The {animal} sleeps in the {room}.", "question": f"Where is the {animal}?", "answer": [room]}
        for animal, room in zip(animals, ROOMS, strict=False)
    ]
    small = [{"told": f"haha number {n}", "about": "reaction" if n % 2 else "opinion"} for n in range(12)]
    corrections = [
        {"told": "The ferry leaves on Monday.", "correction": "Actually the ferry leaves on Friday.", "form": "new",
         "question": "Which day is the ferry?", "answer": ["Friday"], "old": ["Monday"]},
        {"told": "The barge leaves at 7.", "correction": "no, 9", "form": "elliptical",
         "question": "Which hour is the barge?", "answer": ["9"], "old": ["7"]},
    ]  # fmt: skip
    several = [
        {"told": ["Petra joins the hike.", "Otto joins the hike."], "question": "Who joins the hike?",
         "answers": [["Petra"], ["Otto"]]},
        {"told": ["Ben runs.", "Ben and Mia run early."], "question": "Who will run early?",
         "answers": [["Ben"], ["Mia"]]},
    ]  # fmt: skip
    plain = {"unknown": [{"question": "Where is the walrus?"}], "general": [{"question": "Why is it wet at sea?"}]}
    made = {"fact": facts, "small talk": small, "correction": corrections, "several": several, **plain}
    return {kind: [{**row, "name": f"{split} {kind} {n}"} for n, row in enumerate(all_)] for kind, all_ in made.items()}


TALK = Talk(rows("test", ANIMALS[:6]), rows("dev", ANIMALS[6:]))
SMALL = Settings(seeds=1, facts=4, turns=12, held=(2, 4, 8), asked=3)


@dataclass
class Heard:
    text: str
    written: bool = True
    reason: str = "new"
    replaced: list[str] = field(default_factory=list)


class Parrot:
    """Writes down what it is told, says again what shares most words with the question, and can be spoilt."""

    def __init__(self, frozen, path, keeps=10**6, deaf=(), silent=(), talkative=False, corrects="old"):
        self.path, self.keeps, self.deaf, self.silent = path, keeps, deaf, silent
        self.talkative, self.corrects, self.asked = talkative, corrects, []
        self.held = json.loads(path.read_text()) if path.exists() else []

    def read(self, text):
        if any(word in text for word in self.deaf):
            return [Heard(text, False, "small talk")]
        replaced = []
        if text.startswith("Actually") and self.corrects:
            gone = {"old": "Monday", "wrong": "sleeps"}[self.corrects]
            replaced = [held for held in self.held if gone in held][:1]
            self.held = [held for held in self.held if held not in replaced]
        self.held = [*self.held, text][-self.keeps :]
        return [Heard(text, replaced=replaced)]

    def ask(self, question, max_tokens):
        assert max_tokens == MAX_TOKENS
        self.asked.append(question)
        wanted = set(tokenize(question))
        found = sorted((each for each in self.held if wanted & set(tokenize(each))), reverse=True,
                       key=lambda each: len(wanted & set(tokenize(each))))  # fmt: skip
        found = found or (self.held[-1:] if self.talkative else [])
        spoke = bool(found) and not any(word in question for word in self.silent)
        used = [SimpleNamespace(text=text) for text in found[:1] if spoke]
        text = used[0].text if spoke else "Who knows?"
        return SimpleNamespace(text=text, spoke=spoke, used=used, considered=[SimpleNamespace(text=t) for t in found])

    def clear_context(self):
        pass

    def save(self):
        self.path.write_text(json.dumps(self.held))


def figures(*parts, folder=None, settings=SMALL, arms=("memory",), talk=TALK, **spoilt):
    record = evaluate_hybrid(NOBODY, settings, folder, parts, arms, partial(Parrot, **spoilt), talk=talk)
    return summarise(record)


def test_what_is_told_and_asked():
    talk = load_talk("test")
    chat = facts_chat(talk, 0, 100, 200)
    kinds = [turn.kind for turn in chat.turns]
    assert (len(kinds), kinds.count("fact"), len(chat.questions)) == (300, 100, 100)
    assert len({turn.name for turn in chat.turns}) == 300
    assert kinds != sorted(kinds) and kinds[:100].count("fact") < 60
    for question in chat.questions:
        (at,) = question.turns
        assert (chat.turns[at].text,) == question.told and chat.turns[at].name == question.name
    assert facts_chat(talk, 0, 100, 200) == chat
    other = {question.name for question in facts_chat(talk, 1, 100, 200).questions}
    assert len(other & {question.name for question in chat.questions}) < 50
    many = facts_chat(talk, 0, 1000, 200)
    assert [question.name for question in many.questions[:100]] == [question.name for question in chat.questions]
    assert len(many.turns) == 1200 and {question.name.split()[0] for question in many.questions} == {"test"}
    assert {turn.name.split()[0] for turn in many.turns} == {"test", "dev"}
    with pytest.raises(ValueError, match="there are 1000 facts; got 1001"):
        facts_chat(talk, 0, 1001, 200)


@pytest.mark.parametrize("seed", range(3))
def test_a_correction_comes_after_what_it_corrects(seed):
    chat = corrections_chat(load_talk("dev"), seed, 200)
    assert len(chat.turns) == 80 + 80 + 200 and len(chat.questions) == 80
    gaps = {"full": [], "new": [], "elliptical": []}
    for question in chat.questions:
        told, corrected = question.turns
        assert (chat.turns[told].kind, chat.turns[corrected].kind) == ("told", "correction")
        gaps[question.form].append(corrected - told)
    assert set(gaps["elliptical"]) == {1}
    assert min(gaps["full"] + gaps["new"]) >= 2 and len(set(gaps["full"] + gaps["new"])) > 5


def test_parts_of_an_answer_are_told_apart():
    chat = several_chat(load_talk("dev"), 0, 200)
    for question in chat.questions:
        assert sorted(chat.turns[at].text for at in question.turns) == sorted(question.told)
        assert len(question.parts) >= 2
    assert any(max(question.turns) - min(question.turns) > 20 for question in chat.questions)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("It is on Friday.", "new"),
        ("on friday", "new"),
        ("On Monday", "old"),
        ("On Friday, not Monday", "both"),
        ("On Mondays", "neither"),
        ("No idea", "neither"),
    ],
)
def test_values_in_an_answer(answer, value):
    assert mark_corrected(answer, ["Friday", "the 9th"], ["Monday", "the 2nd"]) == value


def test_a_value_inside_the_other_is_not_counted():
    assert mark_corrected("It is 9 Elm Road.", ["9 Elm Road"], ["Elm Road"]) == "new"
    assert mark_corrected("Elm Road 12, or 9 Elm Road", ["9 Elm Road"], ["Elm Road"]) == "both"
    assert mark_corrected("room 12 b", ["12"], ["12 b"]) == "old"
    assert mark_corrected("May", ["May"], ["May"]) == "new"


@pytest.mark.parametrize(
    ("question", "told", "shared"),
    [
        ("Where did the ferries go?", "The ferry is at the pier.", "a content word"),
        ("What is it about Greta?", "Greta has a limp.", "a name only"),
        ("Greta: what of it?", "And then Greta fell.", "a name only"),
        ("What of Greta's ferry?", "Greta took the ferry.", "a content word"),
        ("Who keeps it?", "My aunt has been the keeper of that.", "nothing"),
        ("Dogs are what?", "Dogs bark.", "a content word"),
    ],
)
def test_overlap(question, told, shared):
    assert overlap(question, told) == shared


def turn(*readings):
    return {"readings": [{"text": t, "written": w, "reason": "", "replaced": list(r)} for t, w, *r in readings]}


FERRY = "The ferry leaves on Friday."


@pytest.mark.parametrize(
    ("found", "used", "spoke", "read", "expected"),
    [
        ([], [], False, [turn((FERRY, False)), turn(("ok", True))], "not written"),
        ([FERRY], [FERRY], True, [turn(("The ferry!", True), (FERRY, False)), turn()], "not written"),
        ([], [], False, [turn(("The fer", True), ("ry on Fri", False)), turn()], "not found"),
        ([], [], False, [turn((FERRY, True)), turn(("No.", True, FERRY))], "erased"),
        (["ok"], [], False, [turn((FERRY, True)), turn(("No.", True, "ok"))], "not found"),
        (["ok"], [], False, [turn((FERRY, True)), turn(("A ferry on Friday.", True, FERRY))], "not found"),
        (["ok", FERRY], [], False, [turn((FERRY, True)), turn()], "silent"),
        (["ok", FERRY], ["ok"], True, [turn((FERRY, True)), turn()], "wrong recollection used"),
        ([FERRY], [FERRY], True, [turn((FERRY, True)), turn()], "misread"),
        ([FERRY], [FERRY], True, None, "misread"),
    ],
)
def test_stage_of_failure(found, used, spoke, read, expected):
    question = Question("", "When does it leave?", (("Friday",),), (FERRY,), turns=(0,))
    assert stage(question, found, used, spoke, read) == expected


def test_facts_right_and_where_the_wrong_ones_failed():
    found = figures("facts")["facts"]["memory"]
    assert found["right"] == [[4, 4]] and found["stages"] == {}
    assert found["overlap"] == {"a content word": [4, 4], "a name only": [0, 0], "nothing": [0, 0]}

    told = [question.text.split()[-1][:-1] for question in facts_chat(TALK, 0, 4, 8).questions]
    spoilt = figures("facts", deaf=(told[0], "haha"), silent=(told[1],))
    assert spoilt["facts"]["memory"]["right"] == [[2, 4]]
    assert spoilt["facts"]["memory"]["stages"] == {"not written": 1, "silent": 1}
    assert spoilt["told"]["facts_not_written"] == [1, 4] and spoilt["told"]["small_talk_written"] == [0, 8]
    assert figures("facts")["told"]["small_talk_written"] == [8, 8]


def test_what_is_forgotten_shows_over_turns_and_over_facts():
    whole, short = figures("facts", "curve"), figures("facts", "curve", keeps=5)
    right = [count[0] for count in short["since"]["memory"]]
    asked = [count[1] for count in short["since"]["memory"]]
    assert sum(asked) == 4 and right[:2] == asked[:2] and sum(right[3:]) == 0 < sum(asked[2:])
    assert whole["curve"]["memory"] == {"2": {"right": [[2, 2]]}, "4": {"right": [[3, 3]]}, "8": {"right": [[3, 3]]}}
    assert short["curve"]["memory"]["8"]["right"][0][0] < 3


def test_corrections_by_form():
    found = figures("corrections")
    assert found["corrections"]["memory"]["new"] == {"new": 1, "old": 0, "both": 0, "neither": 0}
    # "no, 9" shares no word with the question: it says the old value again.
    assert found["corrections"]["memory"]["elliptical"] == {"new": 0, "old": 1, "both": 0, "neither": 0}
    assert found["corrections"]["memory"]["all"] == {"new": 1, "old": 1, "both": 0, "neither": 0}
    expected = {"corrections": 2, "written": 2, "took_out_the_old": 1, "took_out_something_else": 0}
    assert found["erased"] == expected

    stubborn = figures("corrections", deaf=("Actually",))
    assert stubborn["corrections"]["memory"]["new"]["old"] == 1
    assert stubborn["erased"] == {**expected, "written": 1, "took_out_the_old": 0}


def test_what_a_correction_takes_out_wrongly_is_counted():
    ferry = TALK.of("correction")[0]
    otter = {"name": "x", "told": "The otter sleeps late.", "correction": "Mind the otter.", "form": "elliptical"}
    talk = Talk({**TALK.rows, "correction": [ferry, {**ferry, **otter}]}, TALK.other)
    for seed in range(20):  # one where the otter has been told when the ferry is corrected
        texts = corrections_chat(talk, seed, 8).texts
        if texts.index("The otter sleeps late.") < texts.index("Actually the ferry leaves on Friday."):
            break
    record = evaluate_hybrid(
        NOBODY, Settings(seeds=seed + 1, facts=4, turns=12, held=(4,)), None, ["corrections"], ["memory"],
        partial(Parrot, corrects="wrong"), talk=talk,
    )  # fmt: skip
    found = summarise(record)["erased"]
    assert found["took_out_something_else"] >= 1 and found["took_out_the_old"] == 0


def test_parts_said_and_left_out():
    found = figures("several")["several"]["memory"]  # it says one sentence, which holds one of two names
    assert (found["all"], found["some"], found["parts"]) == ([1, 2], [1, 2], [3, 4])
    assert found["stages"] == {"wrong recollection used": 1}


def test_speaking_out_of_turn_is_counted():
    bare = {"-/general/bare": {"answers": [{"name": "test general 0", "answer": "Who knows?"}]}}
    for talkative, spoken in ((False, 0), (True, 1)):
        parrot = partial(Parrot, talkative=talkative)
        record = evaluate_hybrid(NOBODY, SMALL, None, ["unknown"], ["memory"], parrot, talk=TALK)
        assert summarise(record)["unknown"] == {"4": [[spoken, 1]]}
        answer = parrot(None, SimpleNamespace(exists=lambda: False))
        answer.held = ["Salt."]
        said = answer.ask("Why is it wet at sea?", MAX_TOKENS).text
        record["jobs"] |= bare
        record["jobs"]["0/general 4/memory"] = {"answers": [{"name": "test general 0", "answer": said}]}
        assert summarise(record)["general"] == {"memory": {"4": [[1 - spoken, 1]]}}


def test_an_interrupted_run_goes_on(tmp_path):
    asked = []

    class Interrupted(Parrot):
        def ask(self, question, max_tokens):
            asked.append(question)
            if len(asked) == 6:
                raise KeyboardInterrupt
            return super().ask(question, max_tokens)

    run = partial(evaluate_hybrid, NOBODY, SMALL, tmp_path, ["facts", "curve"], ["memory"], talk=TALK)
    with pytest.raises(KeyboardInterrupt):
        run(make_engine=Interrupted)
    found = summarise(run(make_engine=Interrupted))
    assert len(asked) == 6 + 4 + 3  # two at 2 facts were done; of the four at 4 none was
    again = summarise(run(make_engine=None))  # all is there: no engine is made
    assert found == again and {**figures("facts", "curve"), "facts": None} == {**found, "facts": None}
    with pytest.raises(ValueError, match="other settings"):
        evaluate_hybrid(NOBODY, Settings(facts=3, turns=12), tmp_path, ["facts"], ["memory"], Parrot, talk=TALK)


def test_it_is_asked_of_a_new_engine_that_loaded_what_was_told(tmp_path):
    made = []

    class Told(Parrot):
        def __init__(self, frozen, path):
            made.append(self)
            super().__init__(frozen, path)

        def save(self):
            self.held = self.held[:1]
            super().save()

    (tmp_path / "memories").mkdir()
    (tmp_path / "memories" / "0-facts-4.mem").write_text('["left behind by another run"]')
    record = evaluate_hybrid(NOBODY, SMALL, tmp_path, ["facts"], ["memory"], Told, talk=TALK)
    assert summarise(record)["facts"]["memory"]["right"][0][0] <= 1
    assert [bool(each.asked) for each in made] == [False, True] and "left behind" not in str(made[1].held)


def test_turns_are_answered_if_asked_for():
    talked = []

    class Talker(Parrot):
        def chat(self, message, max_tokens):
            talked.append(message)
            self.turn = SimpleNamespace(readings=super().read(message))
            yield "I "
            yield "see."

        def read(self, text):
            raise AssertionError("chat reads by itself")

    settings = Settings(seeds=2, facts=4, turns=12, answer_turns=True)
    record = evaluate_hybrid(NOBODY, settings, None, ["facts"], ["memory"], Talker, talk=TALK)
    assert talked == facts_chat(TALK, 0, 4, 8).texts + facts_chat(TALK, 1, 4, 8).texts
    assert summarise(record)["facts"]["memory"]["right"] == [[4, 4], [4, 4]]


def test_nothing_that_cannot_be_run_is_begun():
    for given, match in (
        ({"parts": ["fact"]}, "no part 'fact'"),
        ({"arms": ["naked"]}, "no arm 'naked'"),
        ({"settings": Settings(facts=4, turns=12, held=(4, 11))}, "there are 10 facts; got 11"),
    ):
        given = {"settings": SMALL, "parts": ["curve"], "arms": ["memory"], **given}
        with pytest.raises(ValueError, match=match):
            evaluate_hybrid(NOBODY, make_engine=None, talk=TALK, **given)
    for wrong in ({"facts": 9, "turns": 8}, {"held": ()}, {"held": (3, 3)}, {"seeds": 0}):
        with pytest.raises(ValueError, match="must be"):
            Settings(**wrong)


class Letters(BaseEmbedder):
    """Counts letters."""

    name = "letters"

    def embed(self, texts):
        rows = np.array([[text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_query(self, text):
        return self.embed([text])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def frozen(folder, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "addresses"))
    return load_frozen(str(folder), device="cpu")


def test_arms(frozen):
    texts = [*tiny.FACTS, *tiny.ORDINARY]
    questions = [Question("", "Where is the spare key?", told=(tiny.FACTS[1],)), Question("", "When does it leave?")]
    held = hybrid_arms.context_arm(frozen, texts)
    for question in questions:  # the second goes on from what the first computed
        assert held(question).text == hybrid_arms.context_arm(frozen, texts)(question).text
        assert hybrid_arms.bare_arm(frozen)(question).text == answer_bare(frozen, question.text, MAX_TOKENS)
    oracle = hybrid_arms.oracle_arm(frozen)(questions[0])
    ids = frozen.encode(f" {tiny.FACTS[1]}")
    recalled = hybrid_arms.as_recalled(frozen, tiny.FACTS[1])
    assert recalled.ids == ids and recalled.soft.equal(frozen.embeddings[ids])
    assert oracle.text == answer_from(frozen, questions[0].text, [recalled], MAX_TOKENS)

    index = hybrid_arms.Index(Letters(), texts, 10**6)
    assert index.left_out == 0 and index.bytes == sum(len(text.encode()) + 26 * 4 for text in texts)
    order = index.nearest(texts[4], 6)
    assert order[0] == 4 and sorted(order) == list(range(6))
    found = hybrid_arms.retrieval_arm(frozen, index)(Question("", texts[4]))
    assert found.used == [texts[place] for place in sorted(order[:3])]
    assert found.found == [texts[place] for place in order[:3]] != found.used
    soft = hybrid_arms.retrieval_arm(frozen, index, soft=True)(Question("", texts[4]))
    assert soft.used == [texts[place] for place in order[:2]]
    tight = hybrid_arms.Index(Letters(), texts, index.bytes - 1)
    assert tight.left_out == 1 and tight.texts == texts[1:] and tight.nearest(texts[4], 1) == [3]


def test_a_context_that_does_not_fit_is_not_asked(frozen):
    frozen.model.config.max_position_embeddings = 200
    record = evaluate_hybrid(frozen, SMALL, None, ["facts"], ["context"], None, talk=TALK)
    told = record["jobs"]["0/facts 4/context"]
    assert told["answers"] is None and told["tokens"] > told["positions"] == 200
    assert "does not fit" in hybrid_report.markdown(summarise(record))


def test_time_and_an_engine_of_weights(frozen, tmp_path):
    def engine(model, path):
        return HybridEngine(model, path, RecollectionConfig(slots=32, features=4096, width=128))

    record = evaluate_hybrid(
        frozen, Settings(seeds=1, facts=2, turns=6, held=(2,)), tmp_path, ["facts", "timing"], hybrid_arms.ARMS,
        engine, Letters(), TALK,
    )  # fmt: skip
    found = summarise(record)
    assert set(found["facts"]) == set(hybrid_arms.ARMS)
    assert found["timing"]["reading"] > 0 and found["timing"]["reading_ratio"] > 0 and found["timing"]["bytes"] > 10**5
    files = hybrid_report.report(found, tmp_path)
    assert all(file.stat().st_size for file in files) and [file.name for file in files][2:] == ["curves.png"]
    told = files[1].read_text()
    assert "all turns fit" in told and "reading over prefill" in told
    assert hybrid_report.markdown(json.loads(files[0].read_text())) in told


def test_command(folder, frozen, tmp_path, monkeypatch):
    given = [
        "evaluate", "hybrid", "--model", str(folder), "--split", "test", "--seeds", "1", "--facts", "2", "--turns", "6",
        "--held", "2,3", "--asked", "2", "--parts", "facts,curve", "--arms", "memory,bare", "--output", str(tmp_path),
    ]  # fmt: skip
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "record.json").read_text())
    assert set(record["curve"]["memory"]) == {"2", "3"} and set(record["facts"]) == {"memory", "bare"}
    shown = (tmp_path / "report.md").read_text() + (tmp_path / "record.json").read_text()
    asked = facts_chat(load_talk("test"), 0, 3, 4).questions
    assert not any(text in shown for question in asked for text in (question.text, *question.told))
    assert not (tmp_path / "memories").exists()

    monkeypatch.setattr(hybrid, "bare_arm", None)  # what is done is not done again
    again = CliRunner().invoke(main, [*given, "--json", "--quiet"])
    assert again.exit_code == 0 and json.loads(again.stdout) == record
    refused = CliRunner().invoke(main, ["evaluate", "hybrid", "--parts", "facts,fancies"])
    assert refused.exit_code == 2 and "'fancies' is none of facts" in refused.output


def test_the_command_names_what_there_is():
    assert command._PARTS == hybrid.PARTS and command._ARMS == hybrid_arms.ARMS
    assert set(hybrid_report.NAMES) == set(hybrid_arms.ARMS)


def test_shares():
    assert hybrid_report.share([[9, 10], [8, 10]]) == "85.0% [64.0, 94.8] (9, 8 of 10)"
    assert hybrid_report.share([[9, 10], [3, 5]]).endswith("(12 of 15)") and hybrid_report.share([]) == "-"
    assert hybrid_report._bins(300) == ["0 to 59", "60 to 119", "120 to 179", "180 to 239", "240 to 299"]
