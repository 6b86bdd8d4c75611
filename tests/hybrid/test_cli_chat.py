"""`memory-titan chat`: turns reach one session, which can be saved, left and gone on with."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

import tiny
from memory_titan import MAGConfig, MemoryModel, get_memory_model
from memory_titan.cli import main
from memory_titan.hybrid.frozen import load_frozen


@pytest.fixture
def folder(tmp_path):
    base = tiny.save_llama(tmp_path / "base")
    frozen = load_frozen(str(base))
    torch.manual_seed(0)
    model = get_memory_model(frozen.model, MAGConfig(layers=[0], window=8, chunk_size=4))
    model.save_pretrained(str(tmp_path / "run" / "best"))
    return tmp_path


def talk(folder, lines, *options):
    given = ["chat", "--adapter", str(folder / "run"), "--model", str(folder / "base"), "--max_new_tokens", "3"]
    result = CliRunner().invoke(main, [*given, *options], input="\n".join(lines) + "\n")
    assert result.exit_code == 0, result.output
    return result


def read(folder, path):
    frozen = load_frozen(str(folder / "base"))
    model = MemoryModel.from_pretrained(frozen.model, str(folder / "run" / "best"))
    return frozen, model, model.load_session(str(path))


def test_turns_are_read_in_the_chat_format(folder):
    path = folder / "talk.session"
    talk(folder, ["The ferry leaves at six.", "When?", "/bye"], "--session", str(path))
    frozen, model, session = read(folder, path)
    before, after = frozen.user_turn
    turns = [frozen.prompt([{"role": "user", "content": "The ferry leaves at six."}]),
             before[1:] + frozen.encode("When?") + after]  # fmt: skip
    expected = model.new_session()
    for turn in turns:
        model.generate(torch.tensor([turn]), memory=expected, max_new_tokens=3, do_sample=False)
    assert session.columns == expected.columns
    for name, tensor in expected.state.tensors().items():
        torch.testing.assert_close(session.state.tensors()[name], tensor)


def test_a_session_goes_on_is_saved_and_forgotten(folder):
    path, other = folder / "talk.session", folder / "other.session"
    talk(folder, ["One."], "--session", str(path), "--raw")
    one = read(folder, path)[2].columns
    talk(folder, ["Two.", f"/save {other}", "/off", "Three.", "/on", "/new", "/help"], "--session", str(path), "--raw")
    assert read(folder, other)[2].columns > one  # it went on
    assert read(folder, path)[2].columns == 0  # /new; and what was said while off was not read
    result = talk(folder, [f"/load {folder / 'nowhere'}"])
    assert "nowhere" in result.output


def test_what_is_no_graft_is_refused(tmp_path):
    tiny.save_llama(tmp_path / "base")
    given = ["chat", "--adapter", str(tmp_path), "--model", str(tmp_path / "base")]
    result = CliRunner().invoke(main, given, input="")
    assert result.exit_code == 2 and "is no graft" in result.output
