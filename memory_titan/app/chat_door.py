"""What stands before the chat's page: who may come in, who they are, and how much they may bring.

Loopback alone does not keep other people's web pages out of a server on this machine; the names in the headers do.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from memory_titan.app.chat_people import new_token

COOKIE = "memory_titan_chat"
TOKEN = "memory_titan.token"  # in the scope; None: nobody's
_YEAR = 365 * 24 * 3600
# Nothing from outside, and no page around it. The framework compiles its templates in the browser, hence the evals.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Door:
    """An ASGI middleware; see the module.

    Args:
        app: what it stands before.
        known: whether a cookie's value is somebody's token; who opens the page without gets a new one.
        local: only requests to this machine's own names are let in.
        largest: bytes of a request's body.
    """

    def __init__(self, app: Any, known: Callable[[str | None], bool], local: bool, largest: int) -> None:
        self.app, self.known, self.local, self.largest = app, known, local, largest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal:
            await _refuse(scope, receive, send, *refusal)
            return
        token = _cookie(headers.get("cookie", ""))
        fresh = not self.known(token)
        if fresh:  # only the page makes somebody new: what else comes without a cookie is nobody's
            token = new_token() if scope["path"] == "/" else None
        scope[TOKEN] = token

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = dict(_HEADERS)
                if fresh and token is not None:
                    added["set-cookie"] = f"{COOKIE}={token}; Path=/; Max-Age={_YEAR}; HttpOnly; SameSite=Strict"
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in added.items())]
            await send(message)

        brought = 0

        async def bring() -> Any:
            nonlocal brought
            message = await receive()
            brought += len(message.get("body", b"")) if message["type"] == "http.request" else 0
            if brought > self.largest:  # whatever its headers said
                return {"type": "http.disconnect"}
            return message

        await self.app(scope, bring, answer)

    def _refusal(self, scope: Any, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.local and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return 403, "this page is for this machine only"
        origin = headers.get("origin")
        unsafe = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        if unsafe and origin is not None and urlsplit(origin).netloc != host:
            return 403, "another page's request"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.largest:
            return 413, f"more than {self.largest:,} bytes"
        return None


def _cookie(header: str) -> str | None:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


async def _refuse(scope: Any, receive: Any, send: Any, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode()})
