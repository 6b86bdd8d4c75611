"""Under a budget of bytes sentences may go before items: on every backend, in the file, and for readers."""

import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bag import BagEmbedder
from memory_titan import LongTermMemoryConfig, TitansManager
from memory_titan.embedders import CachedEmbedder
from memory_titan.store.abridging import GAP, ROOM, parts_of, shortened
from memory_titan.store.item import LONG, Item
from memory_titan.store.keeping import Keeper
from memory_titan.store.terms import pack, term_ids

DULL, LAST = "Oh, how are you then?", "It was, you know, like that."
NAMES = "Turku Lisbon Bergen Quito Dakar Osaka Perth Minsk Sofia Lagos".split()  # noqa: SIM905
FACTS = [f"Anna{n} moved to {name} in {1990 + n} with {n + 3} cats{n}." for n, name in enumerate(NAMES)]
TEXTS = [f"{DULL} {fact} {LAST}" for fact in FACTS]
CONFIG = LongTermMemoryConfig(max_bytes=sum(map(len, FACTS)) + 20, abridge=True)


@pytest.fixture(params=["memory", "file", "postgres"])
def opened(request, tmp_path):
    """Opens managers of one store, with a budget that all facts fit in."""
    where = {"path": tmp_path / "a.memory"} if request.param == "file" else {}
    if request.param == "postgres":
        where = {"url": request.getfixturevalue("postgres_url"), "name": request.node.nodeid}
    made = []

    def open_one(**options):
        options = {"long_term_config": CONFIG, "short_term_size": 1, **options}
        made.append(TitansManager(options.pop("embedder", BagEmbedder()), **where, **options))
        return made[-1]

    open_one.kept = request.param != "memory"
    yield open_one
    for manager in made:
        manager.close()


def filled(titans, texts=TEXTS):
    """All are in the long-term memory, and none of them in the window."""
    titans.add_documents(texts, ids=[f"i{n}" for n in range(len(texts))])
    titans.add_documents("nothing here", ids=["last"])
    return titans.consolidate_memories()


def held(titans):
    return {item.id: item for item in titans.backend.get(titans.backend.select(places=LONG), full=True)}


def test_the_dull_sentences_go(opened):
    titans = opened()
    report = filled(titans)
    items, stats = held(titans), titans.stats()["long_term"]
    assert [items[f"i{n}"].content for n in range(10)] == FACTS
    assert set(report.abridged) == {f"i{n}" for n in range(10)} and not set(report.evicted) - {"last"}
    assert stats["bytes"] <= CONFIG.max_bytes and stats["abridged"] == 10
    (hit,) = titans.query("Who moved to Quito?", 1)
    cut = len(DULL) + len(LAST) + 2
    assert hit["content"] == FACTS[3] and hit["abridged"] == cut == titans.get("i3")[0]["abridged"]
    for text in (DULL, LAST):
        assert len(titans.backend.lexical(term_ids(text), 9)[0]) == 0
    found, _ = titans.backend.lexical(term_ids("cats3"), 9)
    assert found.tolist() == [items["i3"].seq]
    assert titans.backend.words_of(term_ids("cats3"), found).lengths.tolist() == [len(term_ids(FACTS[3]))]
    assert titans.backend.same_words([items["i3"]])[0].tolist() == found.tolist()
    np.testing.assert_allclose(items["i3"].vector, titans.embedder.encode([TEXTS[3]])[0], atol=1e-6)  # the whole's
    assert titans.check() == []
    titans.forget("i3")
    assert titans.get("i3") == [] and titans.check() == []


def test_unless_told_so_it_shortens_nothing(opened):
    whole = LongTermMemoryConfig(max_bytes=CONFIG.max_bytes)
    titans = opened(long_term_config=whole)
    assert filled(titans).abridged == []
    assert set(TEXTS) > {item.content for name, item in held(titans).items() if name != "last"} > set()


def test_a_budget_of_items_shortens_nothing(opened):
    titans = opened(long_term_size=4, long_term_config=LongTermMemoryConfig(max_bytes=10**6, abridge=True))
    report = filled(titans)
    assert not report.abridged and len(held(titans)) == 4
    titans.add_documents(["So, well. " + text for text in TEXTS])
    assert not titans.consolidate_memories().abridged and len(held(titans)) == 4 and titans.check() == []


def test_the_window_and_the_persistent_memory_stay_whole(opened):
    titans = opened(short_term_size=4)
    titans.add_documents(f"{DULL} {LAST}", memory_type="persistent", ids=["p"])
    titans.add_documents(TEXTS, ids=[f"i{n}" for n in range(10)])
    titans.consolidate_memories()
    there = {record["id"]: record for record in titans.get([f"i{n}" for n in range(10)])}
    assert [there[f"i{n}"]["content"] for n in range(6, 10)] == TEXTS[6:]
    assert not any(there[f"i{n}"]["abridged"] for n in range(6, 10)) and any(r["abridged"] for r in there.values())
    assert (
        titans.get("p")[0]["content"] == f"{DULL} {LAST}" and titans.stats()["long_term"]["bytes"] <= CONFIG.max_bytes
    )


def test_readers_follow_and_it_opens_as_it_was(opened):
    if not opened.kept:
        pytest.skip("in memory")
    titans = opened()
    titans.add_documents(TEXTS, ids=[f"i{n}" for n in range(10)])
    reader = opened(read_only=True)
    assert len(reader.query("how are you", 9)) and len(reader.backend.lexical(term_ids(LAST), 99)[0])
    titans.add_documents("nothing here", ids=["last"])
    titans.consolidate_memories()
    assert reader.query("Who moved to Quito?", 1) == titans.query("Who moved to Quito?", 1)
    assert len(reader.backend.lexical(term_ids(LAST), 99)[0]) == 0
    titans.close()
    again = opened()
    assert again.get("i3")[0] == reader.get("i3")[0] and again.get("i3")[0]["abridged"]


def test_what_fails_on_the_way_cuts_nothing(opened, monkeypatch):
    titans = opened()
    titans.add_documents(TEXTS[:2])
    shorten = titans.backend.shorten

    def fail(items):
        shorten(items)
        raise RuntimeError

    monkeypatch.setattr(titans.backend, "shorten", fail)
    with pytest.raises(RuntimeError):
        filled(titans)
    assert {item.content for item in titans.backend.get(titans.backend.select())} >= set(TEXTS)
    assert len(titans.backend.lexical(term_ids(LAST), 99)[0]) and titans.check() == []
    monkeypatch.undo()
    assert titans.consolidate_memories().abridged and titans.stats()["long_term"]["bytes"] <= CONFIG.max_bytes


def state(keeper):
    """What a keeper knows, units numbered by their places."""
    items = {
        seq: (
            each.size,
            each.when,
            each.whole is None,
            [(p.terms, p.weights.tolist(), p.size) for p in each.parts.values()],
        )
        for seq, each in keeper._held.items()
    }
    return items, keeper.size, keeper.known._holders, keeper.known.items


def test_what_it_knows_is_what_the_store_holds(opened):
    """After many rounds a keeper is as one made anew from the database."""
    titans = opened(long_term_config=LongTermMemoryConfig(max_bytes=900, abridge=True))
    rng = np.random.default_rng(0)
    for _ in range(12):
        said = [[f"W{rng.integers(99)} W{n}." for n in rng.integers(0, 99, rng.integers(1, 5))] for _ in range(70)]
        titans.add_documents(["Ann: " + " Oh, you know, that. ".join(each) for each in said])
        titans.consolidate_memories()
    old = titans.long_term._keeper
    titans.long_term.lost_track()
    new = titans.long_term._keeping()
    for keeper in (old, new):
        keeper.settle({item.seq for item in held(titans).values() if item.places & 1})
    assert state(old) == state(new) and old.size == titans.backend.nbytes(LONG) <= 900
    assert any(GAP in item.content for item in held(titans).values()) and titans.check() == []
    assert len(old._seqs) < 200 and len(old._units._heap) < 2000


# -- one file


def test_cut_sentences_leave_no_bytes(tmp_path):
    secret = "Quarrington was, you know, like that, then."
    titans = TitansManager(BagEmbedder(), path=tmp_path / "a.memory", short_term_size=1, long_term_config=CONFIG)
    titans.add_documents([f"{DULL} {FACTS[0]} {secret}", *TEXTS[1:]], ids=[f"i{n}" for n in range(10)])
    traces = [b"Quarrington", secret.encode(), pack(term_ids(secret))[:8]]

    def left():
        data = b"".join(file.read_bytes() for file in sorted(tmp_path.iterdir()))
        return [trace for trace in traces if trace in data]

    assert left() == traces
    titans.add_documents("nothing here")
    titans.consolidate_memories()
    assert titans.get("i0")[0]["content"] == FACTS[0]
    vector = titans.embedder.encode([f"{DULL} {FACTS[0]} {secret}"])[0][:4].tobytes()
    titans.backend.erase()
    assert left() == []
    assert vector in (tmp_path / "a.memory").read_bytes()  # which tells of the whole
    titans.forget("i0")
    titans.close()
    assert left() == [] and vector not in (tmp_path / "a.memory").read_bytes()


def test_cut_sentences_leave_the_embedders_cache():
    embedder = CachedEmbedder(BagEmbedder())
    titans = TitansManager(embedder, short_term_size=1, long_term_config=CONFIG)
    filled(titans)
    calls = embedder.embedder.calls
    embedder.encode([TEXTS[3]])
    assert embedder.embedder.calls == calls + 1


def test_a_file_of_an_earlier_day(tmp_path):
    path = tmp_path / "a.memory"
    TitansManager(BagEmbedder(), path=path).close()
    db = sqlite3.connect(path)
    db.execute("DROP TABLE abridged")
    db.close()
    reader = TitansManager(BagEmbedder(), path=path, read_only=True)
    assert reader.query("anything") == []
    titans = TitansManager(BagEmbedder(), path=path, short_term_size=1, long_term_config=CONFIG)
    filled(titans)
    assert reader.query("Who moved to Quito?", 1)[0]["abridged"]
    reader.close()
    titans.close()


# -- texts

piece = st.sampled_from(["Oh. ", "No. ", "I went home. ", "Why?! ", "Mr. Li left. ", GAP, "a line\n", "“Yes.” ", "end"])


@settings(max_examples=300, deadline=None)
@given(st.lists(piece, max_size=8).map("".join), st.sampled_from(["", "Ann: "]), st.data())
def test_what_is_left_falls_into_the_same_parts(text, name, data):
    whole = name + text
    parts = parts_of(whole, "Ann")
    numbers = list(range(len(parts.texts)))
    assert shortened(whole, "Ann", numbers) == whole.rstrip() or text[:1].isspace()
    assert all(len(each.encode()) > ROOM for each in parts.texts) or len(parts.texts) == 1
    if not numbers:
        return
    left = sorted(data.draw(st.sets(st.sampled_from(numbers), min_size=1)))
    short = shortened(whole, "Ann", left)
    again = parts_of(short, "Ann")
    assert [each.strip() for each in again.texts] == [parts.texts[n].strip() for n in left]
    assert again.name == parts.name and shortened(short, "Ann", range(len(left))) == short


def test_gaps_are_marked_between_sentences_only():
    text = "Ann: Oh! I moved to Turku. It rains. You know. My flat is here. Bye then."
    assert parts_of(text, "Ann").texts == [
        "Oh! I moved to Turku. ",
        "It rains. ",
        "You know. ",
        "My flat is here. ",
        "Bye then.",
    ]
    assert shortened(text, "Ann", [0, 3]) == "Ann: Oh! I moved to Turku. … My flat is here."
    assert shortened(text, "Ann", [3]) == "Ann: My flat is here."
    assert shortened(shortened(text, "Ann", [0, 2, 3, 4]), "Ann", [0, 1, 3]) == (
        "Ann: Oh! I moved to Turku. … You know. … Bye then."
    )
    assert parts_of("没有空格。没有句子。", None).texts == ["没有空格。没有句子。"]


def test_of_a_budget_nothing_is_left():
    keeper = Keeper(0.0, abridge=True)
    for seq, text in enumerate(TEXTS):
        keeper.hold(Item(str(seq), text, {}, 0.0, None, np.zeros(1), np.zeros(0), LONG, seq, surprise=1.0))
    keeper.settle(set())
    while len(keeper):
        before = keeper.size
        keeper.let_go()
        assert keeper.size < before
    assert keeper.size == keeper.known.items == 0 and set(map(len, keeper.went().values())) == {0}
