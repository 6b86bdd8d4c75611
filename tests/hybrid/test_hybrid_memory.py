"""A memory of recollections writes what is new and lets the longest untouched go; what is forgotten is gone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from memory_titan.hybrid.memory import VERSION, RecollectionConfig, RecollectionMemory, load_header
from memory_titan.memory.files import MemoryFileError, load_tensors, save_tensors

DIM, VOCABULARY, LENGTH = 16, 500, 12
CONFIG = RecollectionConfig(slots=32, features=2048, width=128, longest=16)
EMBEDDINGS = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(7))
IDENTITY = {"name": "tiny", "architecture": "None", "fingerprint": "f00d", "addresses": "cafe"}


def build(**options) -> RecollectionMemory:
    return RecollectionMemory(RecollectionConfig(**{**vars(CONFIG), **options}), DIM, EMBEDDINGS, dict(IDENTITY))


def texts(count: int, seed: int = 0) -> tuple[torch.Tensor, list[list[int]]]:
    """Addresses and token ids."""
    made = torch.Generator().manual_seed(seed)
    addresses = F.normalize(torch.randn(count, DIM, generator=made), dim=-1)
    return addresses, torch.randint(100, VOCABULARY, (count, LENGTH), generator=made).tolist()


def load(path, **changes) -> RecollectionMemory:
    return RecollectionMemory.load_file(path, DIM, EMBEDDINGS, {**IDENTITY, **changes})


def held(memory: RecollectionMemory) -> list[list[int]]:
    """What each slot in use says, in the order of their names."""
    return [memory.read(slot).ids for slot in sorted(memory.used.tolist(), key=lambda slot: int(memory.names[slot]))]


def test_what_is_written_is_found_and_read():
    memory, (addresses, said) = build(), texts(20)
    surprises = memory.write(addresses, said)
    assert all(torch.equal(each, torch.ones(LENGTH)) for each in surprises)
    for address, ids in zip(addresses, said, strict=True):
        (slot, cosine), (_, second) = memory.find(address, 2)
        assert memory.read(slot).ids == ids
        assert cosine == pytest.approx(1, abs=1e-5) and cosine > second
    assert memory.load == pytest.approx(20 * LENGTH / 2048)
    assert memory.strength == pytest.approx(1 / (1 + memory.load))


def test_an_empty_memory():
    memory = build()
    assert memory.find(texts(1)[0][0], 5) == []
    assert memory.used.tolist() == []
    assert (memory.load, memory.strength) == (0, 1)
    memory.forget([])
    assert memory.counts["forgotten"] == 0


@pytest.mark.parametrize("saved", [False, True], ids=["in-ram", "from-file"])
def test_what_is_known_is_not_written_again(tmp_path, saved):
    memory, (addresses, said) = build(), texts(20)
    memory.write(addresses, said)
    if saved:
        memory.save(tmp_path / "x.mem")
        memory = load(tmp_path / "x.mem")
    before, names = memory.content.weights.clone(), memory.names.clone()
    surprises = memory.write(addresses, said)
    assert torch.cat(surprises).max() < 0.2
    assert torch.equal(memory.content.weights, before)
    assert torch.equal(memory.names, names)
    assert (memory.counts["texts"], memory.counts["written"], memory.counts["known"]) == (40, 20, 20)


def test_what_comes_twice_in_a_batch_is_written_once():
    memory, (addresses, said) = build(), texts(2)
    surprises = memory.write(addresses[[0, 1, 0, 0]], [said[0], said[1], said[0], said[0]])
    assert [float(each.max()) for each in surprises] == [1, 1, 0, 0]
    assert memory.counts["written"] == len(memory.used) == 2
    assert held(memory) == said


def test_only_what_changed_is_surprising():
    memory, (addresses, said) = build(), texts(20)
    memory.write(addresses, said)
    changed = [*said[4][:5], said[4][5] - 1, *said[4][6:]]
    (surprise,) = memory.write(addresses[4:5], [changed])
    assert surprise[5] == 1
    assert surprise[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]].max() < 0.2
    assert held(memory) == [*said, changed]  # both stay: which is true is not the memory's to say


def test_the_same_words_elsewhere_are_new():
    memory, (addresses, said) = build(), texts(2)
    memory.write(addresses[:1], said[:1])
    (surprise,) = memory.write(addresses[1:], said[:1])
    assert surprise.min() == 1
    assert len(memory.used) == 2


def test_the_longest_untouched_goes_first():
    memory, (addresses, said) = build(slots=4), texts(7)
    for address, ids in zip(addresses[:4], said[:4], strict=True):
        memory.write(address[None], [ids])
    memory.touch(memory.find(addresses[0], 1)[0][0])
    for address, ids in zip(addresses[4:6], said[4:6], strict=True):
        memory.write(address[None], [ids])
    assert held(memory) == [said[0], said[3], said[4], said[5]]
    assert memory.counts["evicted"] == 2
    assert len(memory.names) == len(memory.addresses) == 4


def test_more_texts_in_a_batch_than_slots():
    memory, (addresses, said) = build(slots=4), texts(11)
    memory.write(addresses, said)
    assert held(memory) == said[7:]
    assert memory.counts["evicted"] == 7


def test_what_a_batch_evicted_is_not_known():
    memory, (addresses, said) = build(slots=2), texts(3)
    memory.write(addresses[[0, 1, 2, 0]], [said[0], said[1], said[2], said[0]])
    assert held(memory) == [said[2], said[0]]


def test_what_is_read_again_stays():
    memory, (addresses, said) = build(slots=2), texts(3)
    for which in (0, 1, 0, 2):
        memory.write(addresses[which : which + 1], [said[which]])
    assert held(memory) == [said[0], said[2]]


def test_a_full_memory_goes_on_reading_what_is_new():
    memory, (addresses, said) = build(), texts(320)
    for begin in range(0, 320, 16):
        memory.write(addresses[begin : begin + 16], said[begin : begin + 16])
    assert held(memory) == said[-32:]


def test_forget_frees_and_silences():
    memory, (addresses, said) = build(), texts(20)
    memory.write(addresses, said)
    slots = [memory.find(addresses[which], 1)[0][0] for which in (3, 8)]
    names, before = memory.names[slots].tolist(), memory.load
    memory.forget(slots)
    assert held(memory) == [ids for which, ids in enumerate(said) if which not in (3, 8)]
    assert not set(slots) & set(memory.used.tolist())
    assert not memory.addresses[slots].any()
    assert memory.counts["forgotten"] == 2
    assert memory.load < before
    for name in names:  # whoever guesses the name hears next to nothing
        assert memory.content._read(name, LENGTH).norm(dim=-1).max() < 0.3 * memory.strength


def test_what_was_forgotten_is_new_again():
    memory, (addresses, said) = build(), texts(20)
    memory.write(addresses, said)
    memory.forget([memory.find(addresses[3], 1)[0][0]])
    (surprise,) = memory.write(addresses[3:4], said[3:4])
    assert surprise.min() == 1
    assert memory.read(memory.find(addresses[3], 1)[0][0]).ids == said[3]


def test_reading_and_finding_change_nothing(tmp_path):
    memory, (addresses, said) = build(), texts(20)
    memory.write(addresses, said)
    memory.save(tmp_path / "before.mem")
    slot, _ = memory.find(addresses[2], 3)[0]
    memory.read(slot)
    memory.save(tmp_path / "after.mem")
    assert (tmp_path / "before.mem").read_bytes() == (tmp_path / "after.mem").read_bytes()


@pytest.mark.parametrize(
    "options",
    [{"slots": 0}, {"features": 63}, {"longest": 0}, {"width": 0}, {"width": 100}, {"width": -64}],
    ids=str,
)
def test_sizes_that_cannot_work(options):
    with pytest.raises(ValueError, match=r"at least|multiple of 64"):
        build(**options)


@pytest.mark.parametrize("change", [{"fingerprint": "beef"}, {"addresses": "other"}], ids=str)
def test_a_memory_of_another_model(tmp_path, change):
    build().save(tmp_path / "x.mem")
    with pytest.raises(MemoryFileError, match=r"x\.mem was made with the model tiny .*f00d"):
        load(tmp_path / "x.mem", **change)


def test_another_version_and_another_kind(tmp_path):
    path = tmp_path / "x.mem"
    build().save(path)
    tensors, header = load_tensors(path)
    for change, message in (
        ({"version": VERSION + 1}, f"format version {VERSION + 1}; this program reads {VERSION}"),
        ({"format": "memory-titan addresses"}, "not a memory file"),
        ({"model": "tiny"}, "not a memory file"),
    ):
        save_tensors(path, tensors, {**header, **change})
        with pytest.raises(MemoryFileError, match=message):
            load_header(path)
        with pytest.raises(MemoryFileError, match=message):
            load(path)
    with pytest.raises(FileNotFoundError, match=r"gone\.mem"):
        load(tmp_path / "gone.mem")
