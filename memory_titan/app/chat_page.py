"""The chat's page: draws what `Person` tells, and passes on what is pressed. The HTML is `chat_panels`'s.

The page looks at its person several times a second and sends what has changed; so it does not matter which thread or
which other page of the same person changed it. What the browser does by itself is in chat_page.js.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Future
from html import escape
from typing import Any, TypeVar

from nicegui import Client, background_tasks, ui
from nicegui.element import Element

from memory_titan.app import chat_panels as panels
from memory_titan.app.chat_guide import guide_html
from memory_titan.app.chat_log import Entry
from memory_titan.app.chat_people import FullError, People
from memory_titan.app.chat_person import MEMORY_FILE, MESSAGE, TEXT_FILE, Found, Person, too_long

T = TypeVar("T")

_LOOK = 0.12  # seconds between two looks
_FULL = "All places are taken just now. Your memory is safe in its file; reload the page in a while."


class ChatPage:
    """One open page.

    Args:
        people: everybody.
        token: who has this page open.
        model: the frozen model's name, as the page shows it.
    """

    def __init__(self, people: People, token: str, model: str) -> None:
        self.people, self.token, self.model = people, token, model
        self.person: Person | None = None  # None until the page is connected
        self.memory = True
        self.seen = -1  # the person's version that the panels show
        self.held_seen = -1  # the person's `changes` that the list of what is held shows
        self.held_open = False
        self.recollections: dict[int, Any] = {}  # by slot, those that the list of what is held shows
        self.found: Found | None = None  # what the dialog would forget
        self.drawn: list[_Drawn] = []
        self._inside = False  # whether the person's `pages` counts this one
        self._busy: bool | None = None

    def build(self, client: Client) -> None:
        """The page's skeleton; what is the person's own comes once the page is connected."""
        self.client = client
        _html(_HEADER.format(model=escape(self.model)))
        with ui.element("div").classes("frame"):
            with ui.element("main").classes("chat"):
                with ui.element("section").classes("talk").props('aria-label="Conversation" id=talk tabindex=0'):
                    self.talk = ui.element("div")
                    self.guide = _html()
                with ui.element("div").classes("foot"):
                    self._build_composer()
            with ui.element("aside").classes("panel").props('id=panel aria-label="The memory" tabindex=-1'):
                self._build_panel()
        self._build_dialog()
        self.announce = _html().classes("unseen").props("role=status aria-live=polite")
        client.on_connect(self.enter)
        client.on_disconnect(self.leave)
        ui.timer(_LOOK, self.look)

    def _build_composer(self) -> None:
        _html('<p id="notice" role="alert"></p>')
        with ui.element("div").classes("composer"):
            box = ui.element("textarea").props(
                f'id=box rows=1 placeholder="Tell it something, or ask" aria-label="Message" data-limit={MESSAGE}'
            )
            box.on("keydown", self.send, js_handler="(event) => chat.key(event, emit)")
            with ui.element("div").classes("tools"):
                self.switch = _button("Memory", self.toggle, "quiet switch").props("role=switch aria-checked=true")
                self.clear_button = _button("Clear context", self.clear, "quiet").props("id=clear")
                self.compare_button = _button("Compare", self.compare, "quiet", "(event) => chat.send(emit)").props(
                    'title="Ask what is in the box with the memory and without, side by side"'
                )
                self.send_button = _button("Send", self.send, "main", "(event) => chat.send(emit)")
                self.stop_button = _button("Stop", self.stop, "main stop").props("id=stop")

    def _build_panel(self) -> None:
        _html("<h2>The memory</h2>")
        self.gauge = _html()
        self.saved = _html()
        with ui.element("div").classes("buttons"):
            self.save_button = _button("Save", self.save)
            self.undo_button = _button("Undo", self.undo)
            _button("Forget…", None, js="() => chat.open('forget')")
            _button("Read a text file…", None, js="() => chat.press('read-file')")
            _button("Load…", None, js="() => chat.press('load-file')")
            _html('<a class="button" href="memory.mem" download="memory.mem">Export</a>')
        _html(_UPLOADS)
        _html("<h2>What came to mind</h2>")
        self.recall = _html()
        _html('<h2>What it wrote</h2><p class="aside">What is new and worth keeping. Small talk it leaves.</p>')
        self.writes = _html()
        with ui.element("details").on("toggle", self.open_held, js_handler="(event) => emit(event.target.open)"):
            _html("What it holds", "summary")
            _html(_FILTER)
            self.held = _html('<p class="aside">reading it out of the weights…</p>').props("id=held")
            self.held.on("click", self.forget_one, js_handler="(event) => chat.slot(event, emit)")

    def _build_dialog(self) -> None:
        with ui.element("dialog").props("id=forget aria-labelledby=forget-title") as dialog:
            _html(_FORGET)
            words = ui.element("input").props("id=words type=text autocomplete=off maxlength=400")
            words.on("keydown.enter", self.find, js_handler="(event) => emit(event.target.value)")
            self.would_forget = _html().props("aria-live=polite")
            with ui.element("div").classes("tools"):
                _button("Close", None, "quiet", "() => chat.close('forget')")
                _button("Find", self.find, js="() => emit(document.getElementById('words').value)")
                self.forget_button = _button("Erase these", self.forget_found, "main")
        dialog.on("close", lambda: self._show_found(None, ""))
        self._show_found(None, "")

    def _show_found(self, found: Found | None, words: str) -> None:
        self.found = found
        self.would_forget.set_content("" if found is None else panels.found_html(found.recollections, words))
        self.forget_button.set_visibility(found is not None and bool(found.recollections))

    # What comes from the browser

    def enter(self) -> None:
        """The page is connected, for the first time or again."""
        self.leave()
        try:
            person = self.people.person(self.token)
        except FullError:
            self.tell(_FULL)
            return
        person.pages += 1
        if person is not self.person:
            self.person, self.seen, self.held_seen = person, -1, -1
        if person.set_aside:
            self.tell(f"Your memory's file was damaged; it is kept as {person.set_aside}. This is a new memory.")
        self._inside = True
        self.look()

    def leave(self) -> None:
        """The page is gone, for a moment or for good."""
        if self._inside and self.person is not None:
            self.person.pages -= 1
        self._inside = False

    def send(self, event: Any) -> None:
        """A message; what the browser found too long to send comes as its length."""
        self._take(event.args, lambda person, text: person.say(text, self.memory))

    def compare(self, event: Any) -> None:
        """A question to be answered twice."""
        self._take(event.args, lambda person, text: person.compare(text))

    def _take(self, said: Any, do: Callable[[Person, str], None]) -> None:
        if self.person is None:
            return
        if isinstance(said, int):
            self.tell(too_long(said))
            return
        if not isinstance(said, str) or not said.strip():
            return
        try:
            do(self.person, said)
        except ValueError as error:
            self.tell(str(error))
            return
        self.run("chat.taken()")
        self.look()

    def stop(self) -> None:
        """End the answer."""
        if self.person is not None:
            self.person.stop()

    def toggle(self) -> None:
        """The memory, on or off for what this page sends next."""
        self.memory = not self.memory
        self.switch.props(f"aria-checked={str(self.memory).lower()}")

    def clear(self) -> None:
        """The context."""
        if self.person is not None:
            try:
                self.person.clear()
            except ValueError as error:
                self.tell(str(error))

    async def save(self) -> None:
        """The memory, to its file."""
        await self.ask(lambda person: person.save())

    async def undo(self) -> None:
        """The last change."""
        await self.ask(lambda person: person.undo())

    async def find(self, event: Any) -> None:
        """What the dialog would forget."""
        words = str(event.args or "")
        found: Found | None = await self.ask(lambda person: person.find(words))
        self._show_found(found, words)

    async def forget_found(self) -> None:
        """What the dialog shows."""
        found = self.found
        self.run("chat.close('forget')")
        if found is not None:
            await self.ask(lambda person: person.forget(found))

    async def forget_one(self, event: Any) -> None:
        """One of the list of what is held."""
        each = self.recollections.get(event.args)
        if each is not None:
            self.run("chat.focus('filter')")
            await self.ask(lambda person: person.forget(Found([each], self.held_seen)))

    async def open_held(self, event: Any) -> None:
        """The list of what is held, opened or closed."""
        self.held_open = bool(event.args)

    async def ask(self, what: Callable[[Person], Future[T]]) -> T | None:
        """What a piece of work comes to; what is wrong with it is told, and None."""
        if self.person is None:
            return None
        try:
            return await asyncio.wrap_future(what(self.person))
        except (ValueError, OSError) as error:
            self.tell(str(error))
        return None

    # What goes to the browser

    def tell(self, sentence: str) -> None:
        """One line above the message box, until something else is done."""
        self.run(f"chat.tell({json.dumps(sentence)})")

    def run(self, script: str) -> None:
        """In the browser."""
        self.client.run_javascript(script)

    def look(self) -> None:
        """Show what has changed since the last look."""
        person = self.person
        if person is None or not self._inside:
            return
        person.follow()
        self._draw_talk(person)
        self._set_busy(person.busy)
        if self.seen != person.version or person.busy:
            self.recall.set_content(panels.recall_html(person.asked, person.engine.threshold))
        if self.seen != person.version:
            self.seen = person.version
            self.guide.set_content(guide_html(person.log, person.capacity.held))
            self.gauge.set_content(panels.gauge_html(person.capacity))
            self.writes.set_content(panels.writes_svg(person.history))
            self.saved.set_content(panels.saved_html(person.unsaved, person.saved is not None))
        if self.held_open and self.held_seen != person.changes and not person.busy:
            self.held_seen = person.changes
            background_tasks.create(self._draw_held())

    def _draw_talk(self, person: Person) -> None:
        log = person.log
        while self.drawn and (not log or self.drawn[0].entry is not log[0]):
            self.drawn.pop(0).element.delete()
        for entry in log[len(self.drawn) :]:
            with self.talk:
                self.drawn.append(_Drawn(entry, _html().classes("entry")))
        for drawn in self.drawn:
            if drawn.live:
                drawn.live = drawn.entry.live
                html = panels.entry_html(drawn.entry, person.engine.threshold, person.before)
                if html != drawn.element.content:
                    drawn.element.set_content(html)
                if not drawn.live:
                    self.announce.set_content(escape(panels.spoken(drawn.entry)))

    async def _draw_held(self) -> None:
        held = await self.ask(lambda person: person.held())
        if held is None or self.person is None:
            return
        self.held_seen = held.changes
        self.recollections = {each.slot: each for each in held.recollections}
        self.held.set_content(panels.held_html(held.recollections, self.person.capacity.held))

    def _set_busy(self, busy: bool) -> None:
        if busy == self._busy:
            return
        self._busy = busy
        self.stop_button.set_visibility(busy)
        self.send_button.set_visibility(not busy)
        for each in (self.clear_button, self.compare_button, self.undo_button, self.save_button):
            each.props(add="disabled") if busy else each.props(remove="disabled")


class _Drawn:
    """An entry and the element that shows it; `live` until it was drawn in its last state."""

    def __init__(self, entry: Entry, element: ui.html) -> None:
        self.entry, self.element, self.live = entry, element, True


def _html(content: str = "", tag: str = "div") -> ui.html:
    """HTML of our own making, in which all that others wrote is escaped."""
    return ui.html(content, sanitize=False, tag=tag)


def _button(label: str, press: Callable[..., Any] | None, classes: str = "", js: str | None = None) -> Element:
    """A real button. `js`: what the browser does; it calls `emit` for `press`."""
    button = ui.element("button").classes(f"button {classes}").props("type=button")
    with button:
        _html(escape(label), "span")
    if js is not None or press is not None:
        button.on("click", press, args=None if js else [], js_handler=js or "(...args) => emit(...args)")
    return button


_HEADER = """
<header class="top"><div><h1>memory-titan</h1>
<p>{model}, frozen, and a memory beside it that learns what you tell it</p></div><a href="#panel">Memory</a></header>
"""
_FORGET = """
<h2 id="forget-title">Forget</h2>
<label for="words">A topic, a question, or the sentence itself</label>
"""
_UPLOADS = f"""
<input type="file" id="read-file" hidden data-to="read" data-limit="{TEXT_FILE}" accept=".txt,.md,text/*">
<input type="file" id="load-file" hidden data-to="load" data-limit="{MEMORY_FILE}" accept=".mem">
"""
_FILTER = """
<label class="unseen" for="filter">Search what it holds</label>
<input id="filter" type="search" placeholder="Search" autocomplete="off">
"""
