"""What stands before the service: keys, limits and counts, each before a request costs anything.

request -> counted -> key -> room among those at work -> its body, up to the limit -> the service

An ASGI middleware: a body that is too long is refused while it comes in, whatever its headers say.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from memory_titan.app.tenants import Keys

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
TENANT = "memory_titan.tenant"  # in the scope
OPEN = {"/health", "/openapi.json"}  # say nothing of anyone
ENDPOINTS = OPEN | {"/metrics", "/v1/documents", "/v1/query", "/v1/forget", "/v1/consolidate", "/v1/stats"}
METHODS = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"}
UNKNOWN_KEY = "this needs a valid key: Authorization: Bearer KEY"


class Metrics:
    """Counts and latencies by endpoint, method and status, in a registry of their own."""

    def __init__(self, open_stores: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        labels = ["endpoint", "method", "status"]
        self.requests = Counter("memory_titan_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "memory_titan_request_seconds", "From a request's headers to its answer's end.", ["endpoint"],
            registry=self.registry,
        )  # fmt: skip
        self.at_work = Gauge("memory_titan_at_work", "Requests at work or waiting for it.", registry=self.registry)
        stores = Gauge("memory_titan_open_stores", "Stores that are open.", registry=self.registry)
        stores.set_function(open_stores)

    def count(self, scope: Message, status: int, began: float) -> None:
        """One request. Labels are few, whatever is asked for: ids do not get in."""
        path = scope["path"]
        endpoint = path if path in ENDPOINTS else "other"
        if path.startswith("/v1/documents/"):
            endpoint = "/v1/documents/{id}"
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.requests.labels(endpoint, method, str(status)).inc()
        self.seconds.labels(endpoint).observe(time.perf_counter() - began)


class RefusedError(Exception):
    """An answer that says why not."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


class Gate:
    """See the module.

    Args:
        app: what it stands before.
        keys: whose key opens which tenant; None: all may ask, as tenant "default", from this machine only.
        metrics_keys: whose key opens /metrics; None: nobody's, or everybody's with `open_metrics`.
        metrics: what counts.
        max_body: bytes.
        body_seconds: in which a body must have come.
        room: requests at work or waiting for it.
    """

    def __init__(
        self, app: Any, *, keys: Keys | None, metrics_keys: Keys | None, open_metrics: bool, metrics: Metrics,
        max_body: int, body_seconds: float, room: int,
    ) -> None:  # fmt: skip
        self.app, self.keys, self.metrics_keys, self.open_metrics = app, keys, metrics_keys, open_metrics
        self.metrics, self.max_body, self.body_seconds, self.room = metrics, max_body, body_seconds, room
        self._inside = 0

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # the client went away

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                safe = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", []), *safe]
            await send(message)

        try:
            await self._enter(scope, receive, answer)
        except RefusedError as refusal:
            await _refuse(answer, refusal)
        except _GoneError:
            pass
        except Exception:
            logger.exception("unexpected, at %s", scope["method"])
            if status != 499:  # the answer had begun
                raise
            await _refuse(answer, RefusedError(500, "something went wrong here; it is in the service's log"))
        finally:
            self.metrics.count(scope, status, began)

    async def _enter(self, scope: Message, receive: Any, answer: Any) -> None:
        headers = scope["headers"]
        if self.keys is None:
            _check_local(headers)
        if scope["path"] in OPEN:
            await self.app(scope, receive, answer)
            return
        if scope["path"] == "/metrics":
            if not self.open_metrics and (self.metrics_keys is None or _whose(headers, self.metrics_keys) is None):
                raise _unauthorized()
            await self.app(scope, receive, answer)
            return
        tenant = "default" if self.keys is None else _whose(headers, self.keys)
        if tenant is None:
            raise _unauthorized()
        if self._inside >= self.room:
            raise RefusedError(503, "too many requests at once; try again in a second", {"Retry-After": "1"})
        self._inside += 1
        self.metrics.at_work.set(self._inside)
        try:
            body = await self._body(headers, receive)
            scope[TENANT] = tenant
            await self.app(scope, _replay(body, receive), answer)
        finally:
            self._inside -= 1
            self.metrics.at_work.set(self._inside)

    async def _body(self, headers: Any, receive: Any) -> bytes:
        too_long = RefusedError(413, f"a request has at most {self.max_body} bytes", {"Connection": "close"})
        for value in _values(headers, b"content-length"):
            if not value.isdigit():
                raise RefusedError(400, "Content-Length is no number", {"Connection": "close"})
            if len(value) > 18 or int(value) > self.max_body:
                raise too_long
        body = bytearray()

        async def read() -> None:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _GoneError
                body.extend(message.get("body", b""))
                if len(body) > self.max_body:
                    raise too_long
                more = message.get("more_body", False)

        try:
            await asyncio.wait_for(read(), self.body_seconds)
        except asyncio.TimeoutError:
            seconds = f"the request did not arrive within {self.body_seconds:g} seconds"
            raise RefusedError(408, seconds, {"Connection": "close"}) from None
        return bytes(body)


class _GoneError(Exception):
    """The client hung up."""


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, unreachable from others."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_local(headers: Any) -> None:
    """Without keys, a web page in a browser of this machine could ask: by a name it made resolve here, or blindly."""
    hosts = _values(headers, b"host")
    try:
        local = len(hosts) == 1 and is_loopback(urlsplit(f"//{hosts[0].decode('ascii')}").hostname or "")
    except ValueError:  # UnicodeDecodeError is one
        local = False
    if not local or _values(headers, b"origin"):
        raise RefusedError(403, "without keys, only programs on this machine may ask, and no web page")


def _whose(headers: Any, keys: Keys) -> str | None:
    given = _values(headers, b"authorization")
    scheme, _, key = given[0].decode("latin-1").partition(" ") if len(given) == 1 else ("", "", "")
    tenant = keys.tenant(key.strip())
    return tenant if scheme.lower() == "bearer" else None


def _unauthorized() -> RefusedError:
    return RefusedError(401, UNKNOWN_KEY, {"WWW-Authenticate": "Bearer", "Connection": "close"})


def _values(headers: Any, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def _replay(body: bytes, receive: Any) -> Any:
    """A receive() that gives the body, and then whatever else there is: that the client hung up."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            message: Message = await receive()
            return message
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(answer: Any, refusal: RefusedError) -> None:
    body = json.dumps({"error": refusal.sentence}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await answer({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await answer({"type": "http.response.body", "body": body})
