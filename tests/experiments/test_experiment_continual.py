"""Continual learning: the measures, what the streams are, what is read and not written, and a whole run in small."""

import json

import pytest
import torch

from memory_titan.experiments import continual
from memory_titan.experiments.continual import Settings, measures, run
from memory_titan.experiments.continual_models import ItemEncoder, Replay, Size, build, lesson, nearest
from memory_titan.experiments.continual_report import report
from memory_titan.experiments.continual_streams import Examples, make_stream
from memory_titan.models import parameter_count

SIZE = Size(slots=64, familiarity=0.9)


def words(**options):
    return make_stream("dictionaries", 0, tasks=2, words=8, values=4, **options)


def test_the_measures_are_those_of_a_matrix_done_by_hand():
    told = measures([[0.8, 0.0, 0.0], [0.9, 0.7, 0.0], [0.5, 0.6, 1.0]])
    assert told == pytest.approx({"ACC": 0.7, "BWT": (-0.3 - 0.1) / 2, "F": (0.4 + 0.1) / 2})


def test_permuted_tasks_are_the_same_pictures_in_other_orders_and_tests_are_apart():
    pytest.importorskip("sklearn")
    stream = make_stream("permuted", 3, train=50, test=20)
    first, second = stream.train[:2]
    assert not torch.equal(first.items, second.items)
    assert torch.equal(first.items.sort(-1).values, second.items.sort(-1).values)
    assert len(stream.train) == 5 and len(stream.test[0]) == 20 and stream.bytes_an_example == 65
    assert not {bytes(x.tolist()) for x in first.items} & {bytes(x.tolist()) for x in stream.test[0].items}


def test_split_tasks_share_no_class():
    pytest.importorskip("sklearn")
    stream = make_stream("split", 3, train=300, test=100)
    classes = [set(part.labels.tolist()) for part in stream.train]
    assert all(len(part) == 2 for part in classes) and len(set.union(*classes)) == 10
    assert [set(part.labels.tolist()) <= own for part, own in zip(stream.test, classes, strict=True)] == [True] * 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "mnist"}, "stream must be one of"),
        ({"name": "split", "tasks": 3}, "divide the ten"),
        ({"name": "dictionaries", "words": 0}, "must be 1 to 256"),
        ({"name": "permuted", "train": 1790, "test": 10}, "1797 together"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(options, said):
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=said):
        make_stream(**{"seed": 0, **options})


def test_models_have_about_as_many_parameters():
    counts = [parameter_count(build(kind, words(), SIZE)) for kind in ("memnet", "transformer", "lstm")]
    assert max(counts) < 1.1 * min(counts)


def test_asking_writes_nothing_and_says_what_was_read_by_content_alone():
    torch.manual_seed(0)
    stream = words()
    reader = build("memnet", stream, SIZE)
    with torch.no_grad():
        reader(stream.train[0].items, stream.train[0].labels)
    before = reader.model.held[0]
    told = reader.say(stream.test[0].items)
    assert reader.model.held[0] is before
    assert torch.equal(reader.say(stream.test[0].items.flip(0)).flip(0), told)  # each by itself
    assert torch.equal(reader.say(stream.test[0].items[:1]), told[:1])


def test_asking_answers_as_reading_on_would():
    torch.manual_seed(0)
    stream = words()
    reader = build("memnet", stream, SIZE).eval()
    with torch.no_grad():
        reader(stream.train[0].items, stream.train[0].labels)
        asked = reader.say(stream.train[1].items[:1])
        read = reader(stream.train[1].items[:1], stream.train[1].labels[:1]).logits[0, 0].argmax()
    assert asked.item() == read.item()


def test_fixed_keys_do_not_move_in_training():
    torch.manual_seed(0)
    stream = words()
    settings = Settings(batch=4, looks=1)
    fixed, learned = build("memnet", stream, SIZE), build("memnet", stream, Size(keys="learned"))
    assert not any(part.requires_grad for part in fixed.layer.controller.interface.parameters())
    assert all(part.requires_grad for part in learned.layer.controller.interface.parameters())
    outcome = continual.train("memnet", stream, SIZE, 0.003, 2, settings, 0, 0)
    assert outcome.trained < outcome.parameters
    assert sum(outcome.born) == pytest.approx(1, abs=1e-3) and outcome.born[0] > 0


def test_taught_to_read_it_knows_both_dictionaries_after_one_reading():
    settings = Settings(batch=8, looks=1, lesson=80)
    outcome = continual.train("memnet+lesson", words(), SIZE, 0.01, 1, settings, 0, 0)
    assert min(outcome.R[-1]) > 0.8
    assert max(outcome.reset[-1]) < 0.8


def test_a_lesson_repeats_its_items_with_their_labels():
    drawn = lesson(words(), 0, items=6)
    seen = {tuple(item): int(label) for item, label in zip(drawn.items.tolist(), drawn.labels, strict=True)}
    assert len(drawn) == 12 and len(seen) == 6


def test_a_reservoir_keeps_as_many_of_each_age():
    replay = Replay(50, 0)
    replay.add(Examples(torch.zeros(500, 1, dtype=torch.uint8), torch.arange(500)))
    assert len(replay.kept) == 50 == len(set(replay.kept.labels.tolist()))
    assert 150 < replay.kept.labels.float().mean() < 350
    assert Replay(0, 0).draw(3) is None


def test_the_nearest_neighbour_of_an_item_is_itself():
    stream = words()
    page = stream.train[0]
    assert torch.equal(nearest(page, page.items, ItemEncoder(stream, 32), 1), page.labels)


def test_a_whole_run_in_small(tmp_path):
    pytest.importorskip("matplotlib")
    settings = Settings(
        streams=("dictionaries",), passes={"online": (1, 1, 1), "passes": (1, 1, 2)}, seeds=(0, 1), rates=(0.003,)
    )
    settings.models = ("transformer", "memnet", "memnet+replay", "memnet+lesson")
    settings.words, settings.tasks, settings.lesson, settings.slots, settings.size = 8, 2, 2, (16,), {"slots": 32}
    record = json.loads(json.dumps(run(settings)))
    kept = {line["model"] for line in record["summary"]}
    assert kept >= {*settings.models, continual.RESET, continual.NEAREST}
    assert {len(row["R"]) for row in record["rows"]} == {2}
    report(record, tmp_path)
    assert "| memnet+lesson |" in (tmp_path / "report.md").read_text("utf-8")
    assert {"bars.png", "course-dictionaries.png", "matrices-dictionaries.png", "slots.png"} <= {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"streams": ("mnist",)}, "streams must be of"),
        ({"models": ("gru",)}, "models must be of"),
        ({"passes": {"online": (1,)}}, "passes of 'online'"),
        ({"seeds": (100,)}, "none of the seeds"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        run(Settings(**options))
