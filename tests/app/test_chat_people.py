"""The chat without its page: people, their files, the line before the model, and bad input."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import time

import pytest

import fake_engine
from fake_engine import FakeEngine
from memory_titan.app.chat_line import Line
from memory_titan.app.chat_people import FullError, People, new_token
from memory_titan.app.chat_person import MESSAGE, TEXT_FILE, BusyError
from memory_titan.hybrid import records
from memory_titan.hybrid.engine import HybridEngine

FACT, QUESTION = "The code of the boat shed is 5082.", "What code opens the boat shed?"


@pytest.fixture
def people(tmp_path):
    people = People(FakeEngine(), folder=tmp_path / "memories", places=3)
    yield people
    people.close()


def say(person, *messages, **options):
    for message in messages:
        person.say(message, **options)
        person.wait(10)
    return person.log[-1]


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_was_told_is_recalled_after_the_context_is_cleared(people):
    person = people.person(new_token())
    said = say(person, FACT)
    assert said.state == "done" and said.turn.readings[0].written and person.unsaved == 1
    person.clear()
    assert person.engine.context == []
    said = say(person, QUESTION)
    assert said.text == FACT and said.turn.answer.spoke
    assert [type(each).__name__ for each in person.log] == ["Said", "Note", "Said"]


def test_without_memory_nothing_is_recalled_and_nothing_written(people):
    person = people.person(new_token())
    say(person, FACT)
    assert not say(person, QUESTION, memory=False).turn.answer.spoke
    say(person, "The vet is called Okonkwo.", memory=False)
    assert person.capacity.held == 1


def test_forget_and_undo_say_what_they_did(people):
    person = people.person(new_token())
    say(person, FACT)
    found = person.find("boat shed").result(10)
    assert [each.text for each in found.recollections] == [FACT]
    person.forget(found).result(10)
    assert person.log[-1].items == [FACT] and person.held().result(10).recollections == []
    person.undo().result(10)
    assert person.log[-1].items == [f"forgot: {FACT}"] and person.capacity.held == 1
    person.undo().result(10)
    person.undo().result(10)
    assert person.log[-1].items == [] and person.capacity.held == 0


def test_what_was_found_before_a_change_is_not_forgotten_after_it(people):
    person = people.person(new_token())
    say(person, FACT)
    found = person.find("boat shed").result(10)
    say(person, "The vet is called Okonkwo.")
    with pytest.raises(ValueError, match="look again"):
        person.forget(found).result(10)
    assert person.capacity.held == 2


def test_a_question_is_compared_and_nothing_changes(people):
    person = people.person(new_token())
    say(person, FACT)
    before, context = person.capacity, list(person.engine.context)
    person.compare(QUESTION)
    person.wait(10)
    assert person.log[-1].remembered.text == FACT and "cannot" in person.log[-1].bare.text
    assert person.capacity == before and person.engine.context == context


@pytest.mark.parametrize(
    ("message", "why"),
    [("", "nothing"), (" \n\t ", "nothing"), ("x" * (MESSAGE + 1), f"{MESSAGE:,} characters, this one has")],
)  # fmt: skip
def test_empty_and_enormous_messages_are_refused_and_change_nothing(people, message, why):
    person = people.person(new_token())
    with pytest.raises(ValueError, match=why):
        person.say(message)
    assert person.log == [] and not person.busy


@pytest.mark.parametrize(
    "message",
    [
        "Kod do szopy to 5082 – żółć.",
        "船小屋の番号は5082です。",
        "🦜🏠 = 5082",
        "<script>alert(1)</script>",
        "a\ud800b",
    ],
)
def test_any_script_is_taken(people, message):
    assert say(people.person(new_token()), message).state == "done"


def test_what_fails_is_said_and_the_next_message_works(people):
    person = people.person(new_token())
    said = say(person, "fail now")
    assert said.state == "failed" and said.error == "the fake was told to fail"
    assert say(person, FACT).state == "done"


def test_stop_in_mid_answer_keeps_what_was_said_and_learned(people):
    person = people.person(new_token())
    person.say(f"Is this slow, slowly? {FACT}")
    until(lambda: person.log[-1].text)
    with pytest.raises(BusyError):
        person.say("again")
    with pytest.raises(BusyError):
        person.clear()
    person.stop()
    person.wait(10)
    assert person.log[-1].state == "stopped" and person.log[-1].text
    assert person.engine.context[-1]["content"] == person.log[-1].text and person.capacity.held == 1


def test_a_line_is_first_come_first_served_and_tells_how_many_are_before():
    line, go, order = Line(), threading.Event(), []
    first = line.put(go.wait)
    others = [line.put(lambda number=number: order.append(number)) for number in range(3)]
    assert [line.before(each) for each in (first, *others)] == [0, 1, 2, 3]
    assert others[1].cancel() and [line.before(each) for each in others] == [1, 0, 2]
    go.set()
    others[2].result(10)
    assert order == [0, 2]
    line.close()


def test_who_stops_while_waiting_leaves_the_line(people):
    one, two = people.person(new_token()), people.person(new_token())
    one.say("Is this slowly?")
    two.say(FACT)
    assert two.before == 1 and two.log[-1].state == "waiting"
    two.stop()
    assert two.log[-1].state == "stopped" and not two.busy and two.capacity.held == 0
    one.stop()
    one.wait(10)


def test_people_share_nothing_but_the_model(people):
    one, two = people.person(new_token()), people.person(new_token())
    say(one, FACT)
    assert not say(two, QUESTION).turn.answer.spoke
    assert len(two.log) == 1 and two.capacity.held == 0 and one.file != two.file


def test_what_was_saved_survives_a_crash_and_the_rest_an_orderly_end(tmp_path):
    one, two, three = new_token(), new_token(), new_token()
    people = People(FakeEngine(), folder=tmp_path)
    say(people.person(one), FACT)
    people.person(one).save().result(10)
    assert people.person(one).unsaved == 0
    saved = people.person(one).file.read_bytes()
    say(people.person(one), "The vet is called Okonkwo.")
    assert people.person(one).file.read_bytes() == saved  # a crash now would leave this
    say(people.person(two), FACT)
    say(people.person(three), "hello")
    with pytest.raises(ValueError, match="in use by another"):
        People(FakeEngine(), folder=tmp_path)
    ending = threading.Thread(target=people.close)  # as a server ends
    ending.start()
    ending.join()
    people = People(FakeEngine(), folder=tmp_path)
    assert people.person(one).capacity.held == 2 and people.person(two).capacity.held == 1
    assert not people.file_of(three).exists()  # who told nothing leaves no file
    assert not any(one in each.name for each in tmp_path.iterdir())
    people.close()


def test_who_was_away_longest_is_saved_and_makes_room(people):
    tokens = [new_token() for _ in range(5)]
    say(people.person(tokens[0]), FACT)
    people.person(tokens[1]).pages = 1
    for token in tokens[2:4]:
        people.person(token)
    assert len(people) == 3
    assert people.person(tokens[0]).capacity.held == 1  # from its file
    assert people.person(tokens[1]).pages == 1
    for each in (tokens[0], tokens[3]):
        people.person(each).pages = 1
    with pytest.raises(FullError):
        people.person(tokens[4])


def test_no_token_opens_a_path(people):
    for token in ("", "../../etc/passwd", "x" * 42, "x" * 44, "x" * 42 + "é", None):
        assert not people.known(token)
        with pytest.raises(ValueError, match="cookies"):
            people.person(token)


def test_a_damaged_file_is_set_aside_not_overwritten(people):
    token = new_token()
    people.file_of(token).write_bytes(b"not a memory")
    person = people.person(token)
    assert person.capacity.held == 0 and not person.file.exists()
    assert (people.folder / person.set_aside).read_bytes() == b"not a memory"


def test_one_memory_for_everybody(tmp_path):
    file = tmp_path / "notes.mem"
    people = People(FakeEngine(), file=file)
    assert people.person("anything") is people.person(new_token())
    say(people.person(""), FACT)
    people.close()
    assert FakeEngine(file).capacity.held == 1
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="not a memory file"):
        People(FakeEngine(), file=file)
    file.unlink()
    People(FakeEngine(), file=file).close()  # and the lock was let go


def test_load_export_and_the_way_back(people):
    one, two = people.person(new_token()), people.person(new_token())
    say(one, FACT)
    data = one.export().result(10)
    say(two, "The vet is called Okonkwo.")
    context = list(two.engine.context)
    for bad in (b"", b"\0" * 1000, data[:20]):
        with pytest.raises(ValueError, match=r"not a memory file: other\.mem"):
            two.load("other.mem", bad).result(10)
    assert two.capacity.held == 1 and two.unsaved == 1
    two.load("other.mem", data).result(10)
    assert [each.text for each in two.held().result(10).recollections] == [FACT] and two.engine.context == context
    two.undo().result(10)
    assert two.log[-1].items == ["the loading of other.mem"]
    assert [each.text for each in two.held().result(10).recollections] == ["The vet is called Okonkwo."]


def test_a_file_is_read_in_one_step(people):
    person = people.person(new_token())
    person.read("notes.txt", f"\ufeff{FACT} The vet is called Okonkwo.\n".encode())
    person.wait(10)
    entry = person.log[-1]
    assert (entry.texts, entry.written, entry.done, entry.state) == (2, 2, entry.total, "done")
    person.undo().result(10)
    assert person.capacity.held == 0


def test_a_file_lets_others_have_their_turn_and_can_be_stopped(people):
    reader, other = people.person(new_token()), people.person(new_token())
    reader.engine.pause = 0.02
    reader.read("long.txt", " ".join(f"Locker {number} has a red door." for number in range(3000)).encode())
    until(lambda: reader.log[-1].texts > 20)
    with pytest.raises(BusyError):
        reader.say(FACT)
    assert say(other, FACT).state == "done" and reader.busy
    reader.stop()
    reader.wait(10)
    entry = reader.log[-1]
    assert entry.state == "stopped" and 0 < entry.texts < 3000 and 0 < entry.done < entry.total
    assert reader.unsaved == entry.written > 20
    reader.undo().result(10)
    assert reader.capacity.held == 0


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"", "empty"), (b" \n", "empty"), (b"\xff\xfe\x00a", "UTF-8"), (b"a\0b", "zero bytes"),
     (b"x" * (TEXT_FILE + 1), f"up to {TEXT_FILE:,}")],
)  # fmt: skip
def test_what_is_no_text_file_is_refused(people, data, why):
    person = people.person(new_token())
    with pytest.raises(ValueError, match=why):
        person.read("notes.txt", data)
    assert person.log == []


def test_a_full_memory_says_what_it_let_go(people):
    person = people.person(new_token())
    for number in range(8):
        say(person, f"Locker {number} belongs to person {number}.")
    assert person.log[-1].let_go == 0
    assert say(person, FACT).let_go == 1 and person.capacity.held == person.capacity.slots
    person.read("more.txt", b"One is red. Two is blue.")
    person.wait(10)
    assert person.log[-1].let_go == 2


def test_the_stand_in_is_like_the_engine():
    for name in ("Reading", "Recollection", "Answer", "Turn", "Capacity"):
        ours, theirs = (
            [field.name for field in dataclasses.fields(getattr(module, name))] for module in (fake_engine, records)
        )
        assert ours == theirs, name
    for name in (
        "chat",
        "clear_context",
        "read_stream",
        "ask",
        "recall",
        "find",
        "forget",
        "undo",
        "held",
        "save",
        "fork",
    ):
        ours = inspect.signature(getattr(FakeEngine, name)).parameters
        theirs = inspect.signature(getattr(HybridEngine, name)).parameters
        assert {*ours} <= {*theirs}, name
