"""Embeddings over HTTP, asked of a small server on this machine."""

import json
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from memory_titan.embedders import OpenAIEmbedder
from memory_titan.embedders.api import _retry_after

pytest.importorskip("httpx")
KEY = "sk-very-secret"


class Server(ThreadingHTTPServer):
    """Answers from a list of (status, headers, body), then with embeddings; keeps what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        data = [{"index": k, "embedding": [len(text), 1.0]} for k, text in enumerate(body["input"])]
        status, headers, answer = 200, {}, {"data": data[::-1]}  # in no order
        if self.server.answers:
            status, headers, answer = self.server.answers.pop(0)
        raw = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def test_batches_come_back_in_order(server):
    embedder = OpenAIEmbedder("small", server.url + "/", KEY, dimensions=2, batch_size=2)
    assert embedder.name == "openai:small:2"
    assert embedder.embed(["a", "bbb", "cc"]) == [[1, 1], [3, 1], [2, 1]]
    assert len(embedder.encode_query("a")) == 2
    path, headers, body = server.requests[0]
    assert path == "/v1/embeddings" and headers["Authorization"] == f"Bearer {KEY}"
    assert body == {"model": "small", "input": ["a", "bbb"], "encoding_format": "float", "dimensions": 2}
    embedder.close()


def test_the_key_comes_from_the_environment_and_none_is_sent_if_it_is_empty(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    for given in (None, ""):
        OpenAIEmbedder("small", server.url, given).embed(["a"])
    assert [headers.get("Authorization") for _, headers, _ in server.requests] == [f"Bearer {KEY}", None]
    with pytest.raises(ValueError, match="set OPENAI_API_KEY"):
        OpenAIEmbedder("small", api_key="")


def test_it_tries_again_and_waits_as_long_as_it_is_told(server, waits):
    server.answers = [(429, {"Retry-After": "7"}, "slow down"), (503, {}, "busy"), (500, {"Retry-After": "x"}, "")]
    assert OpenAIEmbedder("small", server.url, KEY).embed(["a"]) == [[1, 1]]
    assert waits[0] == 7 and 0.75 <= waits[1] <= 1.25 and 1.5 <= waits[2] <= 2.5


def test_it_gives_up_in_the_end(server, waits):
    server.answers = [(503, {}, f"busy, {KEY}")] * 3
    with pytest.raises(ConnectionError, match=r"small at 127.0.0.1 answered 503: busy, \*\*\* \(tried 3 times\)"):
        OpenAIEmbedder("small", server.url, KEY, retries=2).embed(["a"])
    server.answers = [(429, {"Retry-After": "3600"}, "quota")]
    with pytest.raises(ConnectionError, match=r"quota .it asks to wait 3600 s"):
        OpenAIEmbedder("small", server.url, KEY).embed(["a"])
    assert len(waits) == 2 and len(server.requests) == 4


def test_a_refusal_is_not_repeated_and_shows_no_key(server, waits):
    server.answers = [(401, {}, {"error": f"Incorrect API key: {KEY}\n" + "x" * 1000})]
    with pytest.raises(ValueError, match="answered 401: ") as caught:
        OpenAIEmbedder("small", server.url, KEY).embed(["a"])
    assert KEY not in str(caught.value) and len(str(caught.value)) < 300 and not waits


@pytest.mark.parametrize(
    "answer",
    [
        "<html>",
        {"error": "x"},
        {"data": []},
        {"data": [{"index": 1, "embedding": [1]}]},
        {"data": ["x"]},
        [1],
        {"data": 3},
    ],
)
def test_an_answer_of_another_kind_is_refused(server, answer):
    server.answers = [(200, {}, answer)]
    with pytest.raises(ValueError, match="answered with no embeddings"):
        OpenAIEmbedder("small", server.url, KEY).embed(["a"])


def test_nobody_there(server, waits):
    embedder = OpenAIEmbedder("small", "http://user:password@127.0.0.1:9", KEY, retries=1)
    with pytest.raises(ConnectionError, match=r"could not be reached: ConnectError.*tried 2 times") as caught:
        embedder.embed(["a"])
    assert "password" not in str(caught.value) and len(waits) == 1


def test_a_slow_server_times_out(server, waits):
    slow = threading.Event()
    server.answers = [(200, {}, "")]
    server.process_request = lambda request, address: slow.wait(5) and server.shutdown_request(request)
    with pytest.raises(ConnectionError, match="ReadTimeout"):
        OpenAIEmbedder("small", server.url, KEY, timeout=0.05, retries=0).embed(["a"])
    slow.set()


@pytest.mark.parametrize(
    "wrong", [{"base_url": "example.org"}, {"api_key": "sk\nx"}, {"api_key": "sk-é"}, {"batch_size": 0}, {"timeout": 0}]
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r".") as caught:
        OpenAIEmbedder("small", **{"api_key": KEY, **wrong})
    assert "sk" not in str(caught.value).replace("asks", "")


def test_retry_after_may_be_a_date():
    soon = datetime.now(timezone.utc) + timedelta(seconds=30)
    assert 25 < _retry_after(format_datetime(soon, usegmt=True)) <= 30
    assert _retry_after("Mon, 01 Jan 2001 00:00:00 GMT") == _retry_after("-5") == _retry_after("soon") == 0
