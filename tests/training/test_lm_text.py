"""Text to train on: files found, held out by hash, as tokens, as streams."""

from __future__ import annotations

import pytest
import torch

from byte_tokens import byte_tokenizer
from memory_titan.models.language_model import IGNORE
from memory_titan.training.streams import Streams, read_beside
from memory_titan.training.text import Document, TextConfig, place_of, read_text


def write(folder, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def names(documents) -> list[str]:
    return [each.name for each in documents]


def test_folders_patterns_and_files(tmp_path):
    write(tmp_path, {"a.txt": "one", "deep/b.md": "two", "deep/again.txt": "one", ".git/c": "no", "deep/.d": "no"})
    write(tmp_path, {"picture": b"\x89\0\1", "empty.txt": ""})
    corpus = read_text(TextConfig([str(tmp_path)], held_out=0))
    assert names(corpus.train) == ["a.txt", "deep/b.md"] and corpus.skipped == 1  # again.txt says what a.txt says
    assert corpus.train[0].tokens.tolist() == [0, *b"one"] and corpus.vocab_size == 256
    assert names(read_text(TextConfig(f"{tmp_path}/**/*.txt", held_out=0)).train) == ["a.txt"]
    assert names(read_text(TextConfig([str(tmp_path / "deep/b.md")], held_out=0)).train) == ["b.md"]
    given = TextConfig([str(tmp_path)], held_out_files=[str(tmp_path / "deep/*.txt")], separator="\n")
    corpus = read_text(given)
    assert names(corpus.train) == ["deep/b.md"] and names(corpus.held_out) == ["again.txt"] and corpus.separator == 10


def test_what_is_held_out_stays_held_out(tmp_path):
    write(tmp_path, {f"{i}.txt": f"text {i}" for i in range(60)})
    before = read_text(TextConfig([str(tmp_path)], held_out=0.3))
    assert 6 < len(before.held_out) < 30 and not set(names(before.held_out)) & set(names(before.train))
    assert names(before.held_out) == sorted(names(before.held_out), key=place_of)
    write(tmp_path, {f"new/{i}.txt": f"new {i}" for i in range(60)})
    after = read_text(TextConfig([str(tmp_path)], held_out=0.3))
    assert set(names(before.held_out)) < set(names(after.held_out))
    assert set(names(before.train)) < set(names(after.train))
    assert before.fingerprint() != after.fingerprint()


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_tokenizer(tmp_path, form):
    byte_tokenizer().save_pretrained(tmp_path / "tok")
    write(tmp_path, {"a.txt": "größe", "b.txt": "ä" * 10})
    given = {"folder": tmp_path / "tok", "file": tmp_path / "tok/tokenizer.json"}[form]
    config = TextConfig([f"{tmp_path}/a.txt"], str(given), held_out_files=[f"{tmp_path}/b.txt"], eval_bytes=7)
    if form == "file":
        with pytest.raises(ValueError, match="name a separator"):
            read_text(config)
        config.separator = "<s>"
    corpus = read_text(config)
    assert corpus.train[0].tokens[0] == 0 and len(corpus.train[0].tokens) == 1 + len("größe".encode())
    assert corpus.vocab_size == 257
    assert corpus.held_out[0].size == 6 and len(corpus.held_out[0].tokens) == 7  # no half of a character
    assert corpus.tokenizer.decode(corpus.held_out[0].tokens[1:]) == "äää"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": ["nowhere/*.txt"]}, "nowhere/.* no file, folder or pattern"),
        ({"files": ["empty.txt"]}, "no text to train on"),
        ({"files": ["b.txt"]}, "of 1 files none fell to the 0.1 held out"),
        ({"files": ["a.txt"]}, "all 1 files are among those held out"),
        ({"files": ["latin.txt"], "tokenizer": "tok", "held_out": 0}, "latin.txt is not UTF-8"),
        ({"files": ["a.txt"], "tokenizer": "a.txt"}, "tokenizer: a.txt is none"),
        ({"files": ["a.txt"], "tokenizer": "nowhere"}, "no such file or folder: nowhere"),
        ({"files": ["a.txt"], "tokenizer": "tok", "separator": "<end>"}, "'<end>' is no token"),
        ({"files": ["a.txt"], "separator": "ab"}, "one byte"),
        ({"files": []}, "at least one"),
        ({"files": [1]}, "list of files"),
        ({"files": ["a.txt"], "held_out": 1.0}, "below 1"),
        ({"files": ["a.txt"], "boundaries": "ignore"}, "boundaries must be one of reset, read_on"),
        ({"files": ["a.txt"], "eval_bytes": 0}, "eval_bytes"),
    ],
)
def test_what_cannot_be_read(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    byte_tokenizer().save_pretrained("tok")
    write(tmp_path, {"a.txt": "hello", "b.txt": "you", "latin.txt": b"gr\xf6\xdfe", "empty.txt": ""})
    with pytest.raises(ValueError, match=message):
        read_text(TextConfig(**options))


def documents(*lengths: int) -> list[Document]:
    """Each token is told from all others; separators are 0."""
    made, at = [], 1
    for length in lengths:
        made.append(Document(str(at), torch.tensor([0, *range(at, at + length)], dtype=torch.int32), length))
        at += length
    return made


def test_rows_read_on_from_step_to_step():
    given = documents(50, 3, 20, 31)
    streams = Streams(given, rows=3, length=8, segment=4, reset=False, seed=5)
    assert streams.steps_per_epoch == 4  # 108 tokens; 3 rows of 32
    for epoch in range(2):
        pieces = [streams.piece(epoch * 4 + step) for step in range(4)]
        ids, labels = (torch.cat([getattr(p, name) for p in pieces], 1) for name in ("ids", "labels"))
        assert torch.equal(ids[:, 1:], labels[:, :-1])  # the last of a step is followed by the first of the next
        assert pieces[0].mask is None and pieces[0].begins.tolist() == [[True, False]] * 3
        assert not any(p.begins.any() for p in pieces[1:])
        follows = {(int(a), int(b)) for each in given for a, b in zip(each.tokens, each.tokens[1:], strict=False)}
        ends = {int(each.tokens[-1]) for each in given}
        for a, b in zip(ids.flatten().tolist(), labels.flatten().tolist(), strict=True):
            assert (a, b) in follows or (a in ends and b == 0)
        seen = [token for token in ids.flatten().tolist() if token]
        assert len(seen) == len(set(seen))
    assert not torch.equal(streams.piece(0).ids, streams.piece(4).ids)
    assert torch.equal(Streams(given, 3, 8, 4, reset=False, seed=5).piece(6).ids, streams.piece(6).ids)


@pytest.mark.parametrize("carry", [True, False])
def test_a_document_begins_afresh(carry):
    given = documents(5, 7, 9, 30, 8, 3)
    streams = Streams(given, rows=2, length=8, segment=4, carry=carry, reset=True, seed=1)
    found: dict[int, int] = {}
    for step in range(streams.steps_per_epoch):
        piece = streams.piece(step)
        for row in range(2):
            for index, segment in enumerate(piece.rows(slice(row, row + 1)).segments()):
                ids, labels = segment.ids[0], segment.labels[0]
                begins_document = bool(ids[0] == 0 and (segment.mask is None or segment.mask[0, 0]))
                afresh = begins_document if carry and step else begins_document or index == 0
                assert bool(segment.begins[0, 0]) == (afresh if carry else index == 0)
                valid = torch.ones(4, dtype=torch.bool) if segment.mask is None else segment.mask[0]
                assert bool((labels[~valid] == IGNORE).all())
                found |= {int(a): int(b) for a, b in zip(ids[valid], labels[valid], strict=True) if a}
    for each in given:
        own = each.tokens.tolist()
        for token, follower in zip(own[1:], [*own[2:], 0], strict=True):
            assert found.get(token, follower) == follower  # in the document, and its end is followed by a separator
    assert len(found) > 40


def test_rows_begin_in_turn():
    streams = Streams(documents(1000), rows=3, length=4, segment=4, carry=5, reset=False)
    begins = torch.stack([streams.piece(step).begins[:, 0] for step in range(1, 21)])
    assert begins.sum(0).tolist() == [4, 4, 4] and int(begins.sum(1).max()) == 1


def test_too_little_text():
    with pytest.raises(ValueError, match=r"10 tokens; one step reads 2 rows of 8"):
        Streams(documents(9), rows=2, length=8, segment=4, reset=False)


def test_held_out_text_is_read_once():
    given = documents(9, 1, 30, 4, 0, 8)
    own: dict[int, list[int]] = {}
    for piece in read_beside(given, rows=2, unit=4):
        for row in range(2):
            if piece.begins[row, 0]:
                own[row] = own.get(row, [])
                assert piece.ids[row, 0] == 0
            own.setdefault(row, []).extend(x for x in piece.labels[row].tolist() if x != IGNORE)
    assert sorted(own[0] + own[1]) == list(range(1, 53)) and len(own[0]) == 30
