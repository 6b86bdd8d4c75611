"""`TitansStore`: a `TitansManager` as LangGraph's long-term store.

One value is one *record* among the manager's items: its content the value as JSON, its metadata where it belongs. If
the whole value is to be searched, the record's own embedding does it. If only fields are, each of their texts is an
item beside the record, and the record has no embedding: a zero vector.

    {"langgraph": "record", "of": id, "under": [every prefix of its namespace], "searched": bool, "texts": count, ...}
    {"langgraph": "text",   "of": id, "under": [...], "searched": True, "place": 0, 1, ...}

Names are written as JSON, so any characters may be in them and no prefix is mistaken for another.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from memory_titan.embedders import BaseEmbedder
from memory_titan.integrations.filters import check_filter, matches_filter
from memory_titan.integrations.keeping import keeping, losing
from memory_titan.store.item import Item as Stored
from memory_titan.store.manager import BATCH, TitansManager

try:
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        Item,
        ListNamespacesOp,
        MatchCondition,
        Op,
        PutOp,
        Result,
        SearchItem,
        SearchOp,
        get_text_at_path,
        tokenize_path,
    )
except ImportError as error:
    raise ImportError(
        f"this needs LangGraph's checkpoint package ({error}): pip install 'memory-titan[langgraph]'"
    ) from error

Namespace = tuple[str, ...]
WHOLE = "$"  # the path of the whole value


class TitansStore(BaseStore):
    """LangGraph's `BaseStore` over a `TitansManager`.

        store = TitansStore.create(embeddings, path="agent.memory")
        graph = builder.compile(store=store)
        store.put(("users", "u1"), "dog", {"text": "The dog is called Bruno."})
        store.search(("users", "u1"), query="What is the dog's name?")

    Values are JSON objects. A search with a query comes in the manager's order: by words, vectors, and what its neural
    memory recalls; a value is scored by the best of its texts, and those that are not searched follow, without a score.
    A search without a query gives what was put last first. In a `batch`, what is read is what was there before it.
    `created_at` is that of the first put, `updated_at` that of the last. There is no time to live (`supports_ttl`).

    Safe for threads. One `TitansStore` should write to a manager; the manager may hold other things beside.

    Args:
        manager: what holds the values. It must not let go of anything by itself (see `keeping.py`).
        fields: paths of what is searched for in a value; ["$"] is the whole. `put(..., index=)` says otherwise for one.

    Raises:
        ValueError: the manager may evict or reject items.
    """

    supports_ttl = False

    def __init__(self, manager: TitansManager, *, fields: Sequence[str] = (WHOLE,)) -> None:
        if (why := losing(manager)) is not None:
            raise ValueError(
                f"a store must keep what it is given, and {why}. TitansStore.create makes a manager that does"
            )
        if isinstance(fields, str) or not fields:
            raise ValueError(f"fields are a list of paths, such as ['$'] or ['text']; got {fields!r}")
        self.manager = manager
        self.fields = list(fields)
        self._lock = threading.Lock()  # a put reads what it replaces

    @classmethod
    def create(cls, embedding: BaseEmbedder | Any, *, fields: Sequence[str] = (WHOLE,), **options: Any) -> TitansStore:
        """A store over a new manager, or one opened by its `path` or `url`, which keeps all that is put.

        Args:
            embedding: LangChain's embeddings, or what else `as_embedder` takes.
            fields: see the class.
            options: of `TitansManager`.
        """
        return cls(TitansManager(embedding, **keeping(**options)), fields=fields)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """The result of each operation; all reads come before all puts, and of two puts to one key the last counts.

        Raises:
            ValueError: an unknown operation, a filter that is none, a value that is no JSON object.
            NotImplementedError: a put with a time to live.
        """
        results: list[Result] = []
        puts: dict[str, PutOp] = {}
        for op in ops:
            if isinstance(op, GetOp):
                results.append(self._get(op))
            elif isinstance(op, SearchOp):
                results.append(self._search(op))
            elif isinstance(op, ListNamespacesOp):
                results.append(self._list(op))
            elif isinstance(op, PutOp):
                name = _name(op.namespace, op.key)
                puts.pop(name, None)  # its place is the last put's too
                puts[name] = op
                results.append(None)
            else:
                raise ValueError(f"a store knows GetOp, PutOp, SearchOp and ListNamespacesOp, not {type(op).__name__}")
        if puts:
            self._put(puts)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """`batch` in a thread."""
        return await asyncio.to_thread(self.batch, list(ops))

    # -- writing

    def _put(self, puts: dict[str, PutOp]) -> None:
        groups = {name: self._items_of(name, op) for name, op in puts.items() if op.value is not None}
        parts = list(_parts(groups))
        vectors = [self._vectors_of(part) for part in parts]  # a slow model keeps nobody waiting
        with self._lock:
            old = self._records(list(puts))
            now = _now()
            for part, rows in zip(parts, vectors, strict=True):
                for row in part:
                    if row["metadata"]["langgraph"] == "record":
                        held = old.get(row["id"])
                        row["metadata"] |= {
                            "created_at": held.metadata["created_at"] if held else now,
                            "updated_at": now,
                        }
                self.manager.add_documents(
                    [row["text"] for row in part],
                    [row["metadata"] for row in part],
                    ids=[row["id"] for row in part],
                    vectors=rows,
                )
            self._forget(puts, groups, old)

    def _forget(self, puts: dict[str, PutOp], groups: dict[str, list[dict[str, Any]]], old: dict[str, Stored]) -> None:
        """What was deleted, and the texts that a replaced value has no longer; readers pass these over already."""
        stale: list[str] = []
        for name in old:
            if puts[name].value is None:
                stale.append(name)
            kept = len(groups.get(name, [])) - 1
            stale += [f"{name}#{place}" for place in range(max(0, kept), old[name].metadata["texts"])]
        if stale:
            self.manager.forget(stale)

    def _items_of(self, name: str, op: PutOp) -> list[dict[str, Any]]:
        """A record and its texts, as documents."""
        if getattr(op, "ttl", None) is not None:
            raise NotImplementedError("TitansStore keeps values until they are deleted; set ttl=None")
        value = _json(op)
        paths = [] if op.index is False else self.fields if op.index is None else list(op.index)
        where = {"of": name, "under": [_prefix(op.namespace[:depth]) for depth in range(len(op.namespace) + 1)]}
        parsed = json.loads(value)
        found = [text for path in paths if path != WHOLE for text in get_text_at_path(parsed, tokenize_path(path))]
        texts = [text for text in map(_storable, found) if text.strip()]
        record = {
            **where,
            "langgraph": "record",
            "namespace": _prefix(op.namespace),
            "key": json.dumps(op.key),
            "searched": WHOLE in paths,
            "texts": len(texts),
        }
        beside = [
            {
                "id": f"{name}#{place}",
                "text": text,
                "metadata": {**where, "langgraph": "text", "searched": True, "place": place},
            }
            for place, text in enumerate(texts)
        ]
        return [{"id": name, "text": value, "metadata": record}, *beside]

    def _vectors_of(self, rows: list[dict[str, Any]]) -> Any:
        """`[n, dim]`; zeros for records that are not searched, which need not be embedded."""
        vectors = np.zeros((len(rows), self.manager.backend.dim or 0), np.float32)
        searched = [place for place, row in enumerate(rows) if row["metadata"]["searched"]]
        if searched:
            vectors[searched] = self.manager.embedder.encode([rows[place]["text"] for place in searched])
        return vectors

    # -- reading

    def _get(self, op: GetOp) -> Item | None:
        name = _name(op.namespace, op.key)
        found = self._records([name])
        return Item(**_fields(found[name])) if name in found else None

    def _records(self, names: Sequence[str]) -> dict[str, Stored]:
        backend = self.manager.backend
        return {item.id: item for item in backend.get(list(backend.seqs_of(names).values()))}

    def _all(self, prefix: Namespace, limit: int | None = None) -> Iterator[Stored]:
        """Records under a prefix, what was put last first; `limit` of them."""
        backend = self.manager.backend
        where = {"langgraph": "record", "under": {"$contains": _prefix(prefix)}}
        seqs = backend.select(where, order="-seq", limit=limit)
        for start in range(0, len(seqs), BATCH):
            yield from backend.get(seqs[start : start + BATCH])

    def _search(self, op: SearchOp) -> list[SearchItem]:
        if op.limit < 0 or op.offset < 0:
            raise ValueError(f"limit and offset must not be negative; got {op.limit} and {op.offset}")
        check_filter(op.filter)
        end = op.offset + op.limit
        found = self._ranked(op, end) if op.query and end else {}
        if len(found) < end:
            enough = None if op.filter else end + len(found)
            for record in self._all(op.namespace_prefix, enough):
                if record.id not in found and matches_filter(json.loads(record.content), op.filter):
                    found[record.id] = SearchItem(**_fields(record))
                    if len(found) == end:
                        break
        return list(found.values())[op.offset : end]

    def _ranked(self, op: SearchOp, end: int) -> dict[str, SearchItem]:
        """The first `end` records that a query finds, or all: several texts may be of one, or of none that counts."""
        where = {"searched": True, "under": {"$contains": _prefix(op.namespace_prefix)}}
        there = len(self.manager.backend.select(where))
        found: dict[str, SearchItem] = {}
        top = min(2 * end, there)
        while top and not found:
            scored: dict[str, float] = {}  # best first
            for hit in self.manager.query(str(op.query), top, where):
                for name in (hit["id"], *hit["duplicates"]):
                    scored.setdefault(name, hit["score"])
            records = self._records(list({_record_of(name) for name in scored}))
            for name, score in scored.items():
                record = records.get(_record_of(name))
                if record is None or record.id in found or not _counts(record, name):
                    continue
                if matches_filter(json.loads(record.content), op.filter):
                    found[record.id] = SearchItem(**_fields(record), score=score)
            if len(found) >= end or top == there:
                return dict(list(found.items())[:end])
            top, found = min(4 * top, there), {}
        return found

    def _list(self, op: ListNamespacesOp) -> list[Namespace]:
        conditions = list(op.match_conditions or ())
        for condition in conditions:
            if condition.match_type not in ("prefix", "suffix"):
                raise ValueError(f"namespaces match by prefix or suffix, not {condition.match_type!r}")
        heads = [_head(condition) for condition in conditions]
        names = {record.metadata["namespace"] for record in self._all(max(heads, key=len, default=()))}
        namespaces = {tuple(json.loads(name)) for name in names}
        namespaces = {name for name in namespaces if all(_matches(condition, name) for condition in conditions)}
        return sorted({name[: op.max_depth] for name in namespaces})[op.offset : op.offset + op.limit]


# -- names


def _prefix(namespace: Sequence[str]) -> str:
    if wrong := [label for label in namespace if not isinstance(label, str)]:
        raise ValueError(f"a namespace is a tuple of strings, and a key is one; got {wrong[0]!r}")
    return json.dumps(list(namespace))


def _name(namespace: Namespace, key: str) -> str:
    """The id of a record."""
    return f"langgraph:{_prefix((*namespace, key))}"


def _record_of(name: str) -> str:
    """The id of the record that an item belongs to: a record's ends in a bracket, a text's in its number."""
    return name if name.endswith("]") else name.rpartition("#")[0]


def _counts(record: Stored, name: str) -> bool:
    """Whether an item is what the record is found by now; a text of a value that was replaced meanwhile is not."""
    if name == record.id:
        return bool(record.metadata["searched"])
    return int(name.rpartition("#")[2]) < int(record.metadata["texts"])


def _head(condition: MatchCondition) -> Namespace:
    """The labels of a prefix before its first wildcard."""
    path = tuple(condition.path) if condition.match_type == "prefix" else ()
    return path[: path.index("*")] if "*" in path else path


def _matches(condition: MatchCondition, namespace: Namespace) -> bool:
    path = tuple(condition.path)
    if len(path) > len(namespace):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))


# -- values


def _json(op: PutOp) -> str:
    """A value as JSON text, in its own order. ValueError where it would not come back as it is."""
    value = dict(op.value or {})
    try:
        _check_names(value)
        text = json.dumps(value, ensure_ascii=False)
        return text if _storable(text) == text else json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the value of {op.key!r} is no JSON object: {error}") from error


def _check_names(value: Any) -> None:
    """JSON has no other names than strings; Python's encoder would quietly make strings of numbers."""
    if isinstance(value, dict):
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise ValueError(f"names are strings, not {wrong[0]!r}")
        for inner in value.values():
            _check_names(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_names(inner)


def _storable(text: str) -> str:
    """Text that any database takes: without NUL and halves of surrogate pairs."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


def _fields(record: Stored) -> dict[str, Any]:
    """Of an `Item`."""
    about = record.metadata
    return {
        "namespace": tuple(json.loads(about["namespace"])),
        "key": json.loads(about["key"]),
        "value": json.loads(record.content),
        "created_at": datetime.datetime.fromisoformat(about["created_at"]),
        "updated_at": datetime.datetime.fromisoformat(about["updated_at"]),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat()


def _parts(groups: dict[str, list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Records with their texts, as many as the manager writes in one transaction: a record never without its texts."""
    part: list[dict[str, Any]] = []
    for group in groups.values():
        if part and len(part) + len(group) > BATCH:
            yield part
            part = []
        part = [*part, *group]
    if part:
        yield part
