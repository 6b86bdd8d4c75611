"""Who is let in to the chat's page, and who they are."""

from __future__ import annotations

import asyncio

import pytest

from memory_titan.app.chat_door import COOKIE, TOKEN, Door, is_loopback
from memory_titan.app.chat_people import new_token

TOKEN_OF_ONE = new_token()


async def inner(scope, receive, send):
    taken = 0
    while scope["type"] == "http":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        taken += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{scope[TOKEN]} {taken}".encode()})


def knock(headers=(), method="GET", path="/", body=(b"",), local=True, kind="http"):
    """The status, the headers and the body that come back."""
    door = Door(inner, lambda token: token == TOKEN_OF_ONE, local, largest=1000)
    given = {"host": "127.0.0.1:8760", **dict(headers)}
    scope = {"type": kind, "method": method, "path": path,
             "headers": [(name.encode(), value.encode()) for name, value in given.items()]}  # fmt: skip
    pieces, sent = list(body), []

    async def receive():
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    asyncio.run(door(scope, receive, send))
    if not sent or "status" not in sent[0]:
        return (sent[0]["type"] if sent else None), {}, ""
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, sent[1]["body"].decode()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8760", "127.9.9.9"])
def test_this_machines_names_are_let_in(host):
    assert knock({"host": host})[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8760", "127.0.0.1.evil.example", "", "192.168.0.7"])
def test_other_names_are_not_unless_asked(host):
    assert knock({"host": host})[0] == 403
    assert knock({"host": host}, local=False)[0] == 200


def test_other_pages_may_not_write_or_listen():
    evil, own = {"origin": "https://evil.example"}, {"origin": "http://127.0.0.1:8760"}
    assert knock(evil, "POST", "/load")[0] == 403 and knock(own, "POST", "/load")[0] == 200
    assert knock({"origin": "null"}, "POST", "/load")[0] == 403
    assert knock(evil, kind="websocket")[0] == "websocket.close"


def test_a_new_browser_gets_a_token_and_an_old_one_keeps_it():
    _, headers, body = knock()
    token = body.split()[0]
    assert len(token) == 43 and headers["set-cookie"].startswith(f"{COOKIE}={token}; Path=/; ")
    assert "HttpOnly; SameSite=Strict" in headers["set-cookie"]
    assert "default-src 'self'" in headers["content-security-policy"]
    _, headers, body = knock({"cookie": f"a=b; {COOKIE}={TOKEN_OF_ONE}"})
    assert body.startswith(TOKEN_OF_ONE) and "set-cookie" not in headers
    assert knock(path="/load", method="POST")[2].startswith("None")  # only the page makes somebody new
    for other in ("../../etc/passwd", "x" * 43, '"', ""):
        assert knock({"cookie": f"{COOKIE}={other}"})[2].split()[0] not in (other, TOKEN_OF_ONE)


def test_no_body_is_larger_than_allowed():
    assert knock(method="POST", body=(b"x" * 600, b"x" * 400))[2].endswith(" 1000")
    assert knock({"content-length": "1001"}, "POST")[0] == 413
    assert knock({"content-length": "-1"}, "POST")[0] == 413
    assert knock(method="POST", body=(b"x" * 600, b"x" * 401, b""))[0] is None  # its headers said nothing


def test_what_is_loopback():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "example.org", "")))
