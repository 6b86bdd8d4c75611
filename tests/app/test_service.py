"""The service: what each endpoint does, who may see what, and what is refused."""

import asyncio
import contextlib
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import quote

import hypothesis.strategies as st
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings

from bag import BagEmbedder
from memory_titan import TitansManager
from memory_titan.app import service as service_module
from memory_titan.app.service import ServiceSettings, create_app
from memory_titan.app.tenants import Keys, Stores, store_file
from memory_titan.store.where import matches
from slow_bag import SlowBag

KEYS = {"acme": "acme-key-0123456789", "other": "other-key-0123456789"}
DOGS = ["my dog is called Bruno", "the cat sleeps all day", "we fly to Lisbon in May"]


def keys_of(tenants):
    keys = Keys()
    for tenant, key in tenants.items():
        keys.add(tenant, key)
    return keys


class Tenant:
    def __init__(self, client, key):
        self.client, self.headers = client, {"Authorization": f"Bearer {key}"}

    def post(self, path, body=None, **options):
        headers = {**self.headers, **options.pop("headers", {})}
        if body is not None:
            options["json"] = body
        return self.client.post(f"/v1/{path}", headers=headers, **options)

    def raw(self, path, content):
        return self.post(path, content=content, headers={"Content-Type": "application/json"})

    def get(self, path):
        return self.client.get(f"/v1/{path}", headers=self.headers)

    def ask(self, query, **options):
        return [hit["content"] for hit in self.post("query", {"query": query, **options}).json()["hits"]]


@contextlib.contextmanager
def serving(folder, tenants=KEYS, embedder=None, **options):
    app = create_app(ServiceSettings(folder, keys=keys_of(tenants), **options), embedder=embedder or BagEmbedder())
    with TestClient(app, raise_server_exceptions=False) as client:
        yield SimpleNamespace(client=client, **{name: Tenant(client, key) for name, key in tenants.items()})


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("stores")) as service:
        yield service


@pytest.fixture
def service(shared):
    for tenant in (shared.acme, shared.other):
        tenant.post("forget", {"where": {}})
    return shared


def refused(response, status, part):
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"} and part in response.json()["error"], response.text
    assert "\n" not in response.json()["error"]


def test_every_endpoint(service):
    acme = service.acme
    added = acme.post("documents", {"documents": DOGS, "metadata": [{"n": n} for n in range(3)], "times": [0, 10, 20]})
    ids = added.json()["ids"]
    assert added.status_code == 200 and len(set(ids)) == 3
    hit = acme.post("query", {"query": "what is the dog called", "top_k": 1}).json()["hits"][0]
    assert hit["content"] == DOGS[0] and hit["id"] == ids[0] and hit["metadata"] == {"n": 0} and hit["why"]
    assert acme.ask("cat", where={"n": {"$gte": 1}}, before="1970-01-01T00:00:20Z") == [DOGS[1]]
    assert acme.ask("cat", memory_types=["persistent"]) == []
    document = acme.get(f"documents/{ids[2]}").json()
    assert document["content"] == DOGS[2] and document["created"] == "1970-01-01T00:00:20+00:00"
    assert set(acme.post("consolidate").json()["admitted"]) == set(ids)
    assert acme.get("stats").json()["long_term"]["items"] == 3
    assert acme.post("forget", {"ids": [ids[0], "unknown"]}).json() == {"forgotten": 1}
    assert acme.post("forget", {"where": {"n": 1}}).json() == {"forgotten": 1}
    refused(acme.get(f"documents/{ids[0]}"), 404, "no document")
    assert service.client.get("/health").json()["status"] == "ok"


def test_metrics_count_and_name_nobody(service):
    service.acme.post("documents", {"documents": "a secret plan", "ids": ["secret-id"], "session": "secret"})
    service.acme.get("documents/secret-id")
    service.client.get("/v1/secret-path")
    page = service.client.get("/metrics").text
    assert 'requests_total{endpoint="/v1/documents/{id}",method="GET",status="200"}' in page
    assert 'endpoint="other",method="GET",status="401"' in page
    assert "secret" not in page and "acme" not in page and "memory_titan_open_stores" in page


def test_openapi_has_examples_and_the_errors(service):
    api = service.client.get("/openapi.json").json()
    assert (
        api["components"]["schemas"]["Documents"]["examples"]
        and "422" in api["paths"]["/v1/query"]["post"]["responses"]
    )
    assert "ValidationError" not in str(api)
    assert service.client.get("/docs").status_code == 401  # it would load scripts from elsewhere


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer unknown-key-0123456"},
        {"Authorization": KEYS["acme"]},
        {"Authorization": f"Basic {KEYS['acme']}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {KEYS['acme']}x"},
        [("Authorization", f"Bearer {KEYS['acme']}"), ("Authorization", f"Bearer {KEYS['other']}")],
        {"X-Tenant": "acme"},
    ],
)
def test_without_a_known_key_all_get_the_same_answer(service, headers):
    for method, path in (("GET", "/v1/stats"), ("POST", "/v1/query"), ("GET", "/v1/nothing"), ("GET", "/")):
        response = service.client.request(method, path, headers=headers)
        refused(response, 401, "valid key")
        assert response.headers["www-authenticate"] == "Bearer"


def test_the_tenant_follows_from_the_key_alone(service):
    service.other.post("documents", {"documents": "theirs", "ids": ["x"]})
    refused(service.acme.post("query", {"query": "theirs", "tenant": "other"}), 422, "tenant")
    for headers in ({"X-Tenant": "other"}, {"Cookie": "tenant=other"}):
        assert service.acme.post("query?tenant=other", {"query": "theirs"}, headers=headers).json() == {"hits": []}


def test_two_keys_of_one_tenant(tmp_path):
    keys = keys_of(KEYS)
    keys.add("acme", "second-key-0123456789")
    assert keys.tenant("second-key-0123456789") == keys.tenant(KEYS["acme"]) == "acme"


def test_keys_are_refused_without_being_shown():
    keys = keys_of(KEYS)
    for tenant, key in [("a", "short"), ("a", "with space 0123456789"), ("b", KEYS["acme"]), ("", "k" * 20)]:
        with pytest.raises(ValueError, match=r"key|name") as caught:
            keys.add(tenant, key)
        assert key not in str(caught.value)
    assert not any(key in str(vars(keys)) for key in KEYS.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no key"),
        ({"no_auth": True, "host": "0.0.0.0"}, "loopback only"),
        ({"no_auth": True, "host": "example.org"}, "loopback only"),
        ({"no_auth": True, "keys": keys_of(KEYS)}, "not both"),
        ({"url": "postgresql://x", "keys": keys_of(KEYS)}, "one of them"),
        ({"keys": keys_of(KEYS), "workers": 0}, "workers"),
    ],
)
def test_settings_that_cannot_work(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ServiceSettings(tmp_path, **options)


def test_without_keys_only_programs_of_this_machine(tmp_path):
    app = create_app(ServiceSettings(tmp_path, no_auth=True), embedder=BagEmbedder())
    for base in ("http://127.0.0.1:8000", "http://localhost", "http://[::1]:80"):
        assert TestClient(app, base_url=base).post("/v1/documents", json={"documents": "x"}).status_code == 200
    refused(TestClient(app, base_url="http://evil.example").get("/v1/stats"), 403, "this machine")
    local = TestClient(app, base_url="http://localhost")
    refused(local.post("/v1/consolidate", headers={"Origin": "http://evil.example"}), 403, "web page")
    assert (tmp_path / store_file("default")).exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_who_may_see_metrics(tmp_path, host):
    with serving(tmp_path, host=host) as service:
        assert service.client.get("/metrics").status_code == (200 if host == "127.0.0.1" else 401)
    with serving(tmp_path, host=host, metrics_keys=keys_of({"metrics": "metrics-key-0123456789"})) as service:
        assert service.client.get("/metrics", headers=service.acme.headers).status_code == 401
        metrics = {"Authorization": "Bearer metrics-key-0123456789"}
        assert service.client.get("/metrics", headers=metrics).status_code == 200
        assert service.client.get("/v1/stats", headers=metrics).status_code == 401


NAMES = [
    "../../etc/passwd",
    "a/b",
    "a\\b",
    "..",
    ".",
    "A",
    "a",
    "a-",
    "é",
    "e\u0301",
    "a" * 200,
    "con",
    "a'; DROP TABLE x",
    "日本",
]


def test_no_tenant_leaves_the_folder_or_meets_another(tmp_path):
    files = {store_file(name) for name in NAMES}
    assert len({file.lower() for file in files}) == len(NAMES) and all(len(file) < 120 for file in files)
    folder = tmp_path / "stores"
    with serving(folder, {name: f"{n:020}" for n, name in enumerate(NAMES)}) as service:
        for n, name in enumerate(NAMES):
            tenant = Tenant(service.client, f"{n:020}")
            assert tenant.post("documents", {"documents": f"I am {name}"}).status_code == 200
            assert tenant.ask("I am") == [f"I am {name}"]
    assert {file.name for file in folder.glob("*.memory")} == files
    assert [file.name for file in tmp_path.iterdir()] == ["stores"] and folder.stat().st_mode & 0o077 == 0


IDS = st.sampled_from([f"id{n}" for n in range(4)])
FILTERS = st.sampled_from(
    [
        {},
        {"n": 1},
        {"n": {"$gte": 0}},
        {"owner": "other"},
        {"$not": {"owner": "acme"}},
        {"$or": [{"n": 0}, {"owner": "other"}]},
    ]
)
OPERATIONS = st.one_of(
    st.tuples(st.just("add"), st.lists(IDS, min_size=1, max_size=3, unique=True), st.integers(0, 2)),
    st.tuples(st.just("query"), FILTERS, st.sampled_from(["dog", "acme other", "id0"])),
    st.tuples(st.just("get"), IDS),
    st.tuples(st.just("forget"), st.one_of(st.none(), st.lists(IDS, max_size=3)), st.one_of(st.none(), FILTERS)),
)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["acme", "other"]), OPERATIONS), min_size=4, max_size=12))
def test_tenants_never_meet(shared, steps):
    """Both use the same ids and ask for each other's; what each sees is what it alone has put there."""
    held = {}
    for name in KEYS:
        getattr(shared, name).post("forget", {"where": {}})
        held[name] = {}
    for name, (what, *details) in steps:
        tenant, mine = getattr(shared, name), held[name]
        if what == "add":
            ids, n = details
            metadata = {"owner": name, "n": n}
            texts = [f"{name} dog {each}" for each in ids]
            assert tenant.post("documents", {"documents": texts, "ids": ids, "metadata": metadata}).json() == {
                "ids": ids
            }
            mine |= dict.fromkeys(ids, metadata)
        elif what == "query":
            where, text = details
            hits = tenant.post("query", {"query": text, "where": where, "top_k": 100}).json()["hits"]
            expected = {each for each, metadata in mine.items() if matches(where, metadata)}
            assert all(hit["metadata"]["owner"] == name and hit["content"].startswith(name) for hit in hits)
            assert {hit["id"] for hit in hits} <= expected
        elif what == "get":
            response = tenant.get(f"documents/{details[0]}")
            assert response.status_code == (200 if details[0] in mine else 404)
            assert response.status_code == 404 or response.json()["content"].startswith(name)
        else:
            ids, where = details
            body = {key: value for key, value in (("ids", ids), ("where", where)) if value is not None}
            gone = {
                each
                for each, metadata in mine.items()
                if (ids is None or each in ids) and (where is None or matches(where, metadata))
            }
            if body:
                assert tenant.post("forget", body).json() == {"forgotten": len(gone)}
                held[name] = {each: metadata for each, metadata in mine.items() if each not in gone}
    for name, mine in held.items():
        assert getattr(shared, name).get("stats").json()["items"] == len(mine)


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("documents", {}, 422, "documents: Field required"),
        ("documents", {"documents": 5}, 422, "string"),
        ("documents", {"documents": ["a", " "]}, 422, "document 1 is empty"),
        ("documents", {"documents": ["x"] * 257}, 422, "at most 256"),
        ("documents", {"documents": "x" * 100_001}, 422, "at most 100000"),
        ("documents", {"documents": "a\0b"}, 422, "NUL"),
        ("documents", {"documents": "a", "metadata": {"x": "y" * 17_000}}, 422, "16384"),
        ("documents", {"documents": "a", "metadata": {"x": 2**70}}, 422, "64 bits"),
        ("documents", {"documents": "a", "metadata": [{}, {}]}, 400, "2 metadata"),
        ("documents", {"documents": ["a", "b"], "ids": ["x", "x"]}, 400, "twice"),
        ("documents", {"documents": "a", "ids": ["x" * 257]}, 422, "at most 256"),
        ("documents", {"documents": "a", "session": "s" * 257}, 422, "session"),
        ("documents", {"documents": "a", "times": 1e300}, 422, "years 1 to 9999"),
        ("documents", {"documents": "a", "times": "0001-01-01T00:00:00+14:00"}, 422, "years 1 to 9999"),
        ("documents", {"documents": "a", "times": "tomorrow"}, 422, "ISO 8601"),
        ("documents", {"documents": "a", "times": True}, 422, "times"),
        ("documents", {"documents": "a", "memory_type": "medium"}, 422, "memory_type"),
        ("documents", {"documents": ["a"] * 65, "memory_type": "persistent"}, 409, "do not fit"),
        ("query", {"query": ""}, 422, "empty"),
        ("query", {"query": "x" * 10_001}, 422, "at most 10000"),
        ("query", {"query": "a", "top_k": 0}, 422, "top_k"),
        ("query", {"query": "a", "top_k": 101}, 422, "top_k"),
        ("query", {"query": "a", "top_k": 10**400}, 422, "top_k"),
        ("query", {"query": "a", "top_k": True}, 422, "top_k"),
        ("query", {"query": "a", "where": {"x": {"$evil": 1}}}, 400, "no operator"),
        ("query", {"query": "a", "where": {"x": {"$in": list(range(10_001))}}}, 400, "at most 10000"),
        ("query", {"query": "a", "where": [1]}, 422, "where"),
        ("query", {"query": "a", "memory_types": ["all"]}, 422, "memory_types"),
        ("query", {"query": "a", "after": "x"}, 422, "after"),
        ("forget", {}, 422, "say what to forget"),
        ("forget", {"ids": "all"}, 422, "ids"),
        ("forget", {"where": {"$where": "1"}}, 400, "no filter"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_is_wrong(service, path, body, status, part):
    refused(service.acme.post(path, body), status, part)
    assert service.acme.get("stats").json()["items"] == 0


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"", 422),
        (b"[]", 422),
        (b"null", 422),
        (b"[" * 200_000, 400),
        (b'{"query": "a", "where": ' + b'{"$not": ' * 500 + b"{}" + b"}" * 501, 400),
        (b'{"query": "a", "top_k": ' + b"9" * 5000 + b"}", 400),
        (b'{"query": "a", "top_k": NaN}', 422),
        (b'{"query": "a", "after": NaN}', 422),
        (b'{"query": "a", "where": {"x": NaN}}', 400),
        (b'{"query": "a", "where": {"x": 1e999}}', 400),
        (b'{"query": "a\\ud800"}', 422),
        (b'{"query": "a", "where": {"\\ud800": 1}}', 400),
        (b'{"query": "a", "where": {"x\\u0000": 1}}', 400),
    ],
)
def test_hostile_bodies(service, content, status):
    response = service.acme.raw("query", content)
    refused(response, status, "")
    assert len(response.json()["error"]) < 200


def test_a_body_that_is_not_called_json(service):
    response = service.acme.post("query", content=b'{"query": "a"}', headers={"Content-Type": "text/plain"})
    refused(response, 422, "Content-Type")


@pytest.mark.parametrize(
    "name",
    [
        "../other",
        "a'; DROP TABLE items; --",
        '"',
        "a/b?c#d",
        "%",
        "*",
        "{id}",
        "日本",
        " x ",
        '{"$ne": 1}',
        "stats",
    ],
)
def test_hostile_ids_are_only_names(service, name):
    service.other.post("documents", {"documents": "theirs", "ids": [name]})
    refused(service.acme.get(f"documents/{quote(name, safe='')}"), 404, "no document")
    assert service.acme.post("forget", {"ids": [name]}).json() == {"forgotten": 0}
    assert service.other.get(f"documents/{quote(name, safe='')}").json()["content"] == "theirs"
    assert service.other.post("forget", {"ids": [name]}).json() == {"forgotten": 1}


def test_ids_that_are_no_text(service):
    refused(service.acme.raw("forget", b'{"ids": ["\\ud800"]}'), 400, "")
    refused(service.acme.raw("documents", b'{"documents": "a", "ids": ["\\ud800"]}'), 422, "surrogate")


def test_sql_in_filters_finds_nothing(service):
    service.acme.post("documents", {"documents": DOGS, "metadata": {"user": "u1"}})
    for evil in ("' OR 1=1 --", '") OR 1=1', "u1' OR 'a'='a"):
        assert service.acme.ask("dog", where={"user": evil}) == []
        assert service.acme.ask("dog", where={evil: "u1"}) == []
    assert len(service.acme.ask("dog")) == 3


def test_methods_and_paths_that_are_not(service):
    refused(service.client.put("/v1/query", headers=service.acme.headers), 405, "method")
    refused(service.acme.get("nothing"), 404, "nothing here")


# -- limits, at the protocol itself


async def speak(app, messages, headers=(), path="/v1/query", method="POST"):
    """What an ASGI server would hear, and how many of `messages` were taken."""
    sent, taken = [], 0

    async def receive():
        nonlocal taken
        if taken == len(messages):
            await asyncio.Event().wait()  # the client sends no more, and waits
        taken += 1
        return {"type": "http.request", **messages[taken - 1]}

    async def send(message):
        sent.append(message)

    given = [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers]
    given.append((b"authorization", f"Bearer {KEYS['acme']}".encode()))
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
             "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": given,
             "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8000)}  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), taken


@pytest.mark.parametrize("claimed", [None, b"10", b"0"])
def test_a_long_body_is_refused_while_it_comes(tmp_path, claimed):
    app = create_app(ServiceSettings(tmp_path, keys=keys_of(KEYS), max_body=1000), embedder=BagEmbedder())
    chunks = [{"body": b"x" * 100, "more_body": True}] * 500
    headers = [] if claimed is None else [(b"content-length", claimed)]
    status, answer, taken = asyncio.run(speak(app, chunks, headers))
    assert status == 413 and taken == 11 and answer[b"connection"] == b"close"


@pytest.mark.parametrize(("claimed", "status"), [(b"1001", 413), (b"9" * 5000, 413), (b"-5", 400), (b"ten", 400)])
def test_a_body_that_says_it_is_long_is_not_read(tmp_path, claimed, status):
    app = create_app(ServiceSettings(tmp_path, keys=keys_of(KEYS), max_body=1000), embedder=BagEmbedder())
    got, _, taken = asyncio.run(speak(app, [{"body": b"{}"}], [(b"content-length", claimed)]))
    assert (got, taken) == (status, 0)


def test_a_body_that_never_ends_is_given_up(tmp_path):
    app = create_app(ServiceSettings(tmp_path, keys=keys_of(KEYS), body_seconds=0.05), embedder=BagEmbedder())
    assert asyncio.run(speak(app, [{"body": b"{", "more_body": True}]))[0] == 408


def test_nothing_is_read_without_a_key(tmp_path):
    app = create_app(ServiceSettings(tmp_path, keys=keys_of(KEYS)), embedder=BagEmbedder())
    status, _, taken = asyncio.run(speak(app, [{"body": b"{}"}], [(b"authorization", b"Bearer x")]))
    assert (status, taken) == (401, 0)


def test_a_full_queue_says_come_back(tmp_path):
    embedder = SlowBag()
    with serving(tmp_path, embedder=embedder, workers=1, queue=1) as service, ThreadPoolExecutor(2) as threads:
        first = threads.submit(service.acme.post, "query", {"query": "slow"})
        assert embedder.began.wait(10)
        second = threads.submit(service.acme.post, "query", {"query": "quick"})
        while "memory_titan_at_work 2" not in service.client.get("/metrics").text:  # the event loop is free
            pass
        third = service.acme.post("query", {"query": "quick"})
        refused(third, 503, "too many")
        assert third.headers["retry-after"] == "1" and service.client.get("/health").status_code == 200
        embedder.go_on.set()
        assert first.result().status_code == second.result().status_code == 200
        assert service.acme.post("query", {"query": "quick"}).status_code == 200


def test_what_is_unexpected_stays_inside(tmp_path, caplog):
    with serving(tmp_path, embedder=SlowBag()) as service:
        response = service.acme.post("documents", {"documents": "broken"})
        refused(response, 500, "something went wrong")
        assert "secret" not in response.text and "secret" in caplog.text
        assert KEYS["acme"] not in caplog.text
        assert service.acme.post("documents", {"documents": "whole"}).status_code == 200


# -- stores


def test_fifty_at_once(tmp_path):
    with serving(tmp_path, open_stores=1) as service, ThreadPoolExecutor(50) as threads:

        def one(number):
            tenant = service.acme if number % 2 else service.other
            added = tenant.post("documents", {"documents": f"fact number{number} about dogs", "ids": [f"n{number}"]})
            found = tenant.post("query", {"query": f"number{number}", "top_k": 1}).json()["hits"]
            return added.status_code == 200 and found[0]["id"] == f"n{number}"

        assert all(threads.map(one, range(50)))
        assert [tenant.get("stats").json()["items"] for tenant in (service.acme, service.other)] == [25, 25]


def test_a_restart_keeps_what_is_held(tmp_path):
    with serving(tmp_path) as service:
        service.acme.post("documents", {"documents": DOGS})
        service.acme.post("consolidate")
    for file in tmp_path.glob("*.memory"):
        TitansManager(BagEmbedder(), path=file).close()  # it was let go of
    with serving(tmp_path) as service:
        assert service.acme.ask("what is the dog called", top_k=1) == DOGS[:1] and service.other.ask("dog") == []


def test_a_store_in_use_elsewhere_or_of_another_model(tmp_path):
    with serving(tmp_path) as service, TitansManager(BagEmbedder(), path=tmp_path / store_file("acme")) as held:
        response = service.acme.get("stats")
        refused(response, 409, "in use by another process")
        held.close()
        assert service.acme.get("stats").status_code == 200
    with serving(tmp_path, embedder=BagEmbedder(32)) as service:
        refused(service.acme.get("stats"), 409, "another embedding model")
    (tmp_path / store_file("other")).write_bytes(b"no store" * 1000)
    with serving(tmp_path) as service:
        response = service.other.get("stats")
        refused(response, 500, "damaged")
        assert str(tmp_path) not in response.text


def test_a_store_by_url_is_named_after_its_tenant(monkeypatch, tmp_path):
    opened = []

    def make(embedder, **options):
        opened.append(options)
        return TitansManager(embedder)

    monkeypatch.setattr(service_module, "TitansManager", make)
    with serving(None, url="postgresql://somewhere", store={"architecture": "mag"}) as service:
        service.acme.get("stats")
    assert opened == [{"url": "postgresql://somewhere", "name": "acme", "architecture": "mag"}]


class Kept:
    open = 0

    def __init__(self, tenant):
        self.tenant, self.closed = tenant, False
        Kept.open += 1

    def close(self):
        assert not self.closed
        self.closed = True
        Kept.open -= 1


def test_the_longest_unused_store_is_closed():
    stores = Stores(Kept, 2)
    kept = {}
    for tenant in "abac":
        with stores.use(tenant) as manager:
            kept[tenant] = manager
    assert len(stores) == 2 and kept["b"].closed and not kept["a"].closed
    with stores.use("a") as a, stores.use("b"), stores.use("d"):  # more than the limit, all in use
        assert not a.closed and len(stores) == 3
    stores.close()
    assert Kept.open == 0 and len(stores) == 0


def test_a_store_that_cannot_be_opened_is_tried_again():
    attempts = []

    def open_store(tenant):
        attempts.append(tenant)
        if len(attempts) == 1:
            raise ValueError("not yet")
        return Kept(tenant)

    stores = Stores(open_store, 2)
    with pytest.raises(ValueError, match="not yet"), stores.use("a"):
        pass
    assert len(stores) == 0
    with stores.use("a") as manager:
        assert manager.tenant == "a"
    stores.close()


def test_stores_under_pressure_are_opened_once_and_never_closed_in_use():
    owners, lock = {}, threading.Lock()

    class Alone(Kept):
        def __init__(self, tenant):
            with lock:
                assert tenant not in owners  # the one before is closed
                owners[tenant] = self
            self.tenant, self.closed = tenant, False

        def close(self):
            with lock:
                del owners[self.tenant]
                self.closed = True

    stores = Stores(Alone, 2)

    def work(number):
        for step in range(100):
            with stores.use("abcd"[(number * 7 + step * step) % 4]) as manager:
                assert not manager.closed

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert len(stores) == 2 == len(owners)
    stores.close()
    assert not owners


def test_json_numbers_stay_numbers(service):
    """What is kept comes back as it was."""
    metadata = {"i": 2**62, "f": 0.1, "deep": [{"a": [None, True, "é"]}], "tiny": 5e-324}
    service.acme.post("documents", {"documents": "a", "ids": ["a"], "metadata": metadata})
    assert service.acme.get("documents/a").json()["metadata"] == metadata
    assert math.isfinite(json.loads(service.acme.get("stats").text)["long_term"]["weights"]["norm"])
