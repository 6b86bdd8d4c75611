"""The chat in the browser: its page, what it uploads and downloads, and the server for all of it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files

try:
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import PlainTextResponse
    from nicegui import ui
except ImportError as error:
    raise ImportError("the chat in the browser needs: pip install memory-titan[chat]") from error

from memory_titan.app.chat_door import TOKEN, Door
from memory_titan.app.chat_page import ChatPage
from memory_titan.app.chat_people import FullError, People
from memory_titan.app.chat_person import MEMORY_FILE, Person

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#0d6e66"/>'
    '<path d="M8 23V9l8 8 8-8v14" fill="none" stroke="#fff" stroke-width="3.2" stroke-linejoin="round" '
    'stroke-linecap="round"/></svg>'
)


def create_app(people: People, model: str, local: bool) -> FastAPI:
    """The ASGI application; one a process, because the framework under it is. It closes `people` when it ends.

    Args:
        people: who uses it.
        model: the frozen model's name, as the page shows it.
        local: only requests to this machine's own names are let in.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(people.close)

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.post("/read")
    async def read(request: Request, name: str) -> Response:
        return await _upload(request, lambda person, data: person.read(_plain(name), data))

    @app.post("/load")
    async def load(request: Request, name: str) -> Response:
        async def take(person: Person, data: bytes) -> None:
            await asyncio.wrap_future(person.load(_plain(name), data))

        return await _upload(request, take)

    @app.get("/memory.mem")
    async def export(request: Request) -> Response:
        try:
            data = await asyncio.wrap_future(people.person(request.scope[TOKEN]).export())
        except (OSError, FullError) as error:
            return PlainTextResponse(str(error), 503)
        return Response(data, media_type="application/octet-stream", headers={"cache-control": "no-store"})

    async def _upload(request: Request, take: Callable[[Person, bytes], object]) -> Response:
        data = await request.body()
        try:
            taken = take(people.person(request.scope[TOKEN]), data)
            if asyncio.iscoroutine(taken):
                await taken
        except ValueError as error:
            return PlainTextResponse(str(error), 422)
        except FullError as error:
            return PlainTextResponse(str(error), 503)
        return PlainTextResponse("")

    @ui.page("/")
    def page(request: Request) -> None:
        ChatPage(people, request.scope[TOKEN], model).build(ui.context.client)

    # It looks for its server among all objects there are, and so touches some of torch's that warn of their age.
    warnings.filterwarnings("ignore", category=FutureWarning, module="nicegui")
    here = files("memory_titan.app")
    ui.add_head_html(
        f"<style>{(here / 'chat_page.css').read_text('utf-8')}</style>"
        f"<script>{(here / 'chat_page.js').read_text('utf-8')}</script>",
        shared=True,
    )
    ui.run_with(
        app, title="memory-titan", favicon=_ICON, dark=None, language="en-US", tailwind=False, reconnect_timeout=10,
        show_welcome_message=False,
    )  # fmt: skip
    app.add_middleware(Door, known=people.known, local=local, largest=MEMORY_FILE)
    return app


def _plain(name: str) -> str:
    """A file's name as it may be shown."""
    return "".join(letter for letter in name if letter.isprintable())[:80] or "the file"
