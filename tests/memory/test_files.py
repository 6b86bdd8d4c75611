"""A memory file is written whole or not at all, and a file that is not one is refused by name."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_titan.memory import files
from memory_titan.memory.files import MemoryFileError, load_tensors, save_tensors
from memory_titan.memory.neural.rule import flush_small

HEADER = {"format": "test", "sizes": [1, 2], "nested": {"name": "Zoë", "none": None}}


def example() -> dict[str, torch.Tensor]:
    return {
        "weights": torch.randn(3, 5),
        "half": torch.randn(7).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "names": torch.tensor([-1, 2**62]),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name]), name


@pytest.fixture
def file(tmp_path):
    """A memory file that is there already."""
    path = tmp_path / "notes.mem"
    save_tensors(path, example(), HEADER)
    return path


def test_round_trip(tmp_path):
    tensors = example()
    save_tensors(tmp_path / "a b.mem", tensors, HEADER)
    found, header = load_tensors(str(tmp_path / "a b.mem"))
    assert_same(found, tensors)
    assert header == HEADER
    assert os.listdir(tmp_path) == ["a b.mem"]


def test_a_header_keeps_any_text(tmp_path):
    @given(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.none()))
    def check(header):
        save_tensors(tmp_path / "x.mem", {"x": torch.ones(1)}, header)
        assert load_tensors(tmp_path / "x.mem")[1] == header

    check()


def test_views_and_shared_storages(tmp_path):
    base = torch.randn(4, 6)
    tensors = {
        "whole": base,
        "again": base,
        "part": base[1:3],
        "turned": base.T,
        "stepped": base[:, ::2],
        "wide": torch.randn(1, 3).expand(5, 3),
        "learned": torch.nn.Parameter(base[0]),
        "none": base[:0],
        "nothing": base[:, :0],
    }
    kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    save_tensors(tmp_path / "x.mem", tensors, {})
    assert_same(load_tensors(tmp_path / "x.mem")[0], kept)
    assert_same({name: tensor.detach() for name, tensor in tensors.items()}, kept)


def test_a_part_of_a_large_tensor_is_saved_alone(tmp_path):
    save_tensors(tmp_path / "x.mem", {"part": torch.zeros(1000, 1000)[:2]}, {})
    assert (tmp_path / "x.mem").stat().st_size < 10_000


def test_a_new_file_replaces_the_old(file):
    first, _ = load_tensors(file)
    copies = {name: tensor.clone() for name, tensor in first.items()}
    save_tensors(file, {"other": torch.ones(2)}, {"new": True})
    assert_same(load_tensors(file)[0], {"other": torch.ones(2)})
    assert_same(first, copies)  # what was loaded stays readable after its file is replaced
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
@pytest.mark.parametrize("step", ["save_file", "os.fsync", "os.chmod", "os.replace"])
@pytest.mark.parametrize("there", [True, False], ids=["old", "no-old"])
def test_an_interrupted_write_leaves_the_old_file(file, monkeypatch, step, error, there):
    if not there:
        file.unlink()
    before = file.read_bytes() if there else None
    reached = []

    def fail(*args, **kwargs):
        reached.append(step)
        raise error

    def half_written(tensors, path, metadata):
        with open(path, "wb") as out:
            out.write(b"half of a file")
        fail()

    where, name = (os, step[3:]) if step.startswith("os.") else (files, step)
    monkeypatch.setattr(where, name, half_written if step == "save_file" else fail)
    with pytest.raises(type(error)):
        save_tensors(file, example(), HEADER)
    monkeypatch.undo()
    assert reached == [step]
    assert os.listdir(file.parent) == ([file.name] if there else [])
    assert not there or file.read_bytes() == before


def test_a_full_disk_is_an_os_error(file, monkeypatch):
    def full(tensors, path, metadata):
        raise files.SafetensorError("Error while serializing: IoError(Os { code: 28, kind: StorageFull })")

    before = file.read_bytes()
    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"could not write .*notes\.mem"):
        save_tensors(file, example(), HEADER)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_what_json_cannot_hold_leaves_the_old_file(file):
    before = file.read_bytes()
    with pytest.raises(TypeError):
        save_tensors(file, example(), {"path": file})
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        save_tensors(tmp_path / "nowhere" / "x.mem", example(), {})


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_permissions(file):
    umask = os.umask(0o027)
    try:
        save_tensors(file.with_name("new.mem"), example(), {})
        file.chmod(0o604)
        save_tensors(file, example(), {})
    finally:
        os.umask(umask)
    assert file.with_name("new.mem").stat().st_mode & 0o777 == 0o640
    assert file.stat().st_mode & 0o777 == 0o604


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such memory file: .*gone\.mem"):
        load_tensors(tmp_path / "gone.mem")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: whole[:5], id="in-the-length"),
        pytest.param(lambda whole: whole[:60], id="in-the-header"),
        pytest.param(lambda whole: whole[:-1], id="last-byte"),
        pytest.param(lambda whole: whole + b"\0", id="longer"),
        pytest.param(lambda whole: b"\xff" * 8 + whole[8:], id="length-of-the-header"),
        pytest.param(lambda whole: whole.replace(b'\\"format', b"\\{format"), id="json-in-the-header"),
        pytest.param(lambda whole: b"Dear diary,\nnothing of note.\n" * 50, id="text"),
        pytest.param(lambda whole: bytes(range(256)) * 8, id="bytes"),
    ],
)
def test_a_damaged_file_is_refused_by_name(file, damage):
    broken = damage(file.read_bytes())
    assert broken != file.read_bytes()
    file.write_bytes(broken)
    with pytest.raises(MemoryFileError, match=r"notes\.mem"):
        load_tensors(file)


def test_truncated_anywhere(file):
    whole = file.read_bytes()

    @given(st.integers(0, len(whole) - 1))
    def check(length):
        file.write_bytes(whole[:length])
        with pytest.raises(MemoryFileError, match=r"notes\.mem"):
            load_tensors(file)

    check()


@pytest.mark.parametrize("metadata", [None, {"other": "x"}, {"header": "[1, 2]"}, {"header": "{"}])
def test_a_safetensors_file_of_another_kind(tmp_path, metadata):
    files.save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(MemoryFileError, match=r"not a memory file.*model\.safetensors"):
        load_tensors(tmp_path / "model.safetensors")


def test_a_folder_is_no_memory_file(tmp_path):
    with pytest.raises(MemoryFileError, match="not a memory file"):
        load_tensors(tmp_path)


def test_flush_small():
    x = torch.tensor([0.0, 1e-31, -1e-40, 1e-30, -2e-30, 3.0, float("inf")])
    assert flush_small(x).tolist() == torch.tensor([0.0, 0.0, 0.0, 1e-30, -2e-30, 3.0, float("inf")]).tolist()
    assert flush_small(torch.tensor([0.5, 2.0]), floor=1.0).tolist() == [0.0, 2.0]
