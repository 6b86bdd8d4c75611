"""Runs the service until it is told to stop, and lets requests at work finish."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from typing import Any

try:
    import uvicorn
except ImportError as error:
    raise ImportError("the service runs by uvicorn: pip install memory-titan[serve]") from error

GRACE = 30  # seconds for requests at work when the service is told to stop


def run_service(app: Any, host: str, port: int, on_listening: Callable[[str], object], ws: Any = "none") -> None:
    """Serve an ASGI application until SIGTERM or SIGINT; then finish what is at work, close, and return.

    Args:
        app: the application.
        host: name or address to listen on.
        port: 0 takes a free one.
        on_listening: called with the address, as a URL, once connections are taken.
        ws: uvicorn's, for websockets.

    Raises:
        OSError: it cannot listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listening:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws=ws,
            lifespan="on", timeout_graceful_shutdown=GRACE,
        )  # fmt: skip
        server = uvicorn.Server(config)

        def stop(number: int, frame: object) -> None:
            server.should_exit = True

        # uvicorn has handlers of its own while it runs; then it raises the signal once more, which would kill us
        before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            shown = f"[{host}]" if ":" in host else host
            on_listening(f"http://{shown}:{listening.getsockname()[1]}")
            server.run(sockets=[listening])
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
