"""The file of a memory: it reads as the memory did, its size is fixed, damage is named, and no text is in it."""

from __future__ import annotations

import json

import pytest
import torch

from memory_titan.hybrid.memory import load_header
from memory_titan.memory.files import MemoryFileError, load_tensors, save_tensors
from test_hybrid_memory import LENGTH, build, held, load, texts

TENSORS = ("names", "lengths", "touched", "surprises", "addresses", "weights", "addresses_scale", "weights_scale")


@pytest.fixture
def file(tmp_path):
    memory, (addresses, said) = build(), texts(20)
    memory.write(addresses, said)
    memory.save(tmp_path / "x.mem")
    return tmp_path / "x.mem"


def traces(path, ids: list[int], run: int = 3) -> list[str]:
    """Where a file holds `run` token ids in a row, as numbers of any kind or in its header."""
    raw, header = path.read_bytes(), json.dumps(load_tensors(path)[1])
    found = []
    for at in range(len(ids) - run + 1):
        part = torch.tensor(ids[at : at + run])
        for dtype in (torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64):
            if part.to(dtype).numpy().tobytes() in raw:
                found.append(f"{at} as {dtype}")
        if ", ".join(map(str, part.tolist())) in header:
            found.append(f"{at} in the header")
    return found


def test_it_reads_as_the_memory_did(tmp_path):
    memory, (addresses, said) = build(), texts(20)
    memory.write(addresses, said)
    memory.write(addresses[:3], said[:3])
    memory.forget([5])
    memory.touch(7)
    memory.save(tmp_path / "x.mem")
    again = load(tmp_path / "x.mem")
    assert held(again) == held(memory) == [ids for which, ids in enumerate(said) if which != 5]
    assert again.counts == memory.counts
    assert again.config == memory.config
    for name in ("names", "lengths", "touched", "surprises"):
        assert torch.equal(getattr(again, name), getattr(memory, name)), name
    assert [again.find(address, 1)[0][0] for address in addresses[6:]] == list(range(6, 20))
    assert again.load == memory.load


def test_saving_what_was_loaded_gives_the_same_file(file):
    before = file.read_bytes()
    load(file).save(file)
    assert file.read_bytes() == before


def test_it_goes_on_after_loading_as_without(tmp_path):
    straight, (addresses, said) = build(), texts(20)
    for begin in range(0, 20, 5):
        straight.write(addresses[begin : begin + 5], said[begin : begin + 5])
    paused = build()
    for begin in range(0, 20, 5):
        paused.write(addresses[begin : begin + 5], said[begin : begin + 5])
        paused.save(tmp_path / "x.mem")
        paused = load(tmp_path / "x.mem")
    assert held(paused) == held(straight) == said
    assert paused.counts == straight.counts
    # A file holds the weights in steps of a 127th of the largest of a row; here they were rounded four times.
    steps = straight.content.weights.abs().amax(-1, keepdim=True) / 127
    assert ((paused.content.weights - straight.content.weights).abs() <= 4 * steps + 1e-6).all()


def test_its_size_is_the_same_whatever_was_written(tmp_path):
    memory, sizes = build(), []
    for turn in range(6):
        memory.save(tmp_path / "x.mem")
        _, header = load_tensors(tmp_path / "x.mem")
        # The counts in the header grow by a digit now and then.
        sizes.append((tmp_path / "x.mem").stat().st_size - len(json.dumps(header["counts"])))
        memory.write(*texts(16, seed=turn))
    assert memory.counts["evicted"] > 0
    assert max(sizes) - min(sizes) <= 8  # to which safetensors rounds


def test_no_token_of_the_text_is_in_it(file):
    for ids in texts(20)[1]:
        assert traces(file, ids) == []


def test_a_trace_would_be_found(file):
    """The search finds what it looks for, in whatever form it were kept."""
    tensors, header = load_tensors(file)
    ids = texts(20)[1][3]
    kept = torch.zeros(4, LENGTH, dtype=torch.long)
    kept[2] = torch.tensor(ids)
    for dtype in (torch.int16, torch.int32, torch.int64, torch.float32):
        save_tensors(file, {**tensors, "kept": kept.to(dtype)}, header)
        assert traces(file, ids)
    save_tensors(file, tensors, {**header, "kept": ids})
    assert traces(file, ids)


def test_its_header_says_what_it_was_made_with(file):
    _, header = load_header(file)
    assert set(header) == {"format", "version", "model", "config", "counts"}
    build().save(file, {"source": "notes"})
    assert load_header(file)[1]["source"] == "notes"


@pytest.mark.parametrize("missing", TENSORS)
def test_a_missing_tensor(file, missing):
    tensors, header = load_tensors(file)
    del tensors[missing]
    save_tensors(file, tensors, header)
    with pytest.raises(MemoryFileError, match=rf"x\.mem is damaged.*{missing}"):
        load(file)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_another_size(file, name):
    tensors, header = load_tensors(file)
    save_tensors(file, {**tensors, name: tensors[name][:-1]}, header)
    with pytest.raises(MemoryFileError, match=rf"x\.mem is damaged: {name} ha(s|ve) shape"):
        load(file)


@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"config": {"slots": 32, "rows": 2}},
        {"config": {"slots": "many"}},
        {"config": {"slots": -1}},
        {"counts": None},
        {"counts": {"time": 1}},
        {"counts": {"time": "late"}},
        {"config": {"slots": 10**14}},
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense(file, change):
    tensors, header = load_tensors(file)
    save_tensors(file, tensors, {**header, **change})
    with pytest.raises(MemoryFileError, match=r"x\.mem is damaged"):
        load(file)


@pytest.mark.parametrize(
    "name, spoil",
    [("lengths", lambda x: x - 100), ("lengths", lambda x: x + 10**9), ("weights", lambda x: x * float("nan"))],
    ids=["negative", "huge", "nan"],
)
def test_values_that_make_no_sense(file, name, spoil):
    tensors, header = load_tensors(file)
    save_tensors(file, {**tensors, name: spoil(tensors[name])}, header)
    with pytest.raises(MemoryFileError, match=r"x\.mem is damaged"):
        load(file)
