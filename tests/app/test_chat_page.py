"""The chat's page in a real browser: the experiment, its keyboard, bad input, other people, a restart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nicegui", reason="needs the extra chat")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = sync_api.expect
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium")
HERE = Path(__file__).parent
FACT, QUESTION = "The code of the boat shed is 5082.", "What code opens the boat shed?"


class Server:
    """The chat in a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "chat_server.py"), str(self.folder), str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("memories"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Opens the page as somebody new; what went wrong in the page fails the test."""
    contexts, wrong = [], []

    def visit(**options):
        context = browser.new_context(viewport={"width": 1280, "height": 860}, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: request.url.startswith((server.url, "data:")) or wrong.append(request.url))
        page.goto(server.url)
        expect(page.locator(".gauge")).to_be_visible()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def say(page, text, done=True):
    page.fill("#box", text)
    page.press("#box", "Enter")
    expect(page.locator("#box")).to_have_value("")
    if done:
        expect(page.locator("#stop")).to_be_hidden()
        expect(page.locator(".caret, .waiting")).to_have_count(0)


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def test_told_cleared_asked_recalled_forgotten_and_still_there_after_a_reload(visit):
    page = visit()
    expect(page.locator(".welcome")).to_contain_text("Wipe its context")
    page.locator(".fill").first.click()
    fact = page.locator("#box").input_value()
    press(page, "Send")
    expect(page.locator(".chip.written")).to_have_text("written")
    assert float(page.locator(".heat span").first.get_attribute("style")[4:]) >= 0.5
    expect(page.locator(".hint")).to_contain_text("clear the context")
    page.locator(".step").click()
    expect(page.locator(".cleared")).to_contain_text("sees nothing above this line")
    page.locator(".hint .fill").first.click()
    question = page.locator("#box").input_value()
    press(page, "Send")
    expect(page.locator(".entry").last.locator(".source")).to_contain_text(f"from memory {fact}")
    expect(page.locator(".weighed .used")).to_contain_text("nats")

    press(page, "Forget…")
    page.fill("#words", "boat shed door")
    page.press("#words", "Enter")
    expect(page.locator("#forget .list")).to_contain_text(fact)
    press(page, "Erase these")
    expect(page.locator(".event").last).to_contain_text("Erased from the weights")
    say(page, question)
    expect(page.locator(".entry").last.locator(".source")).to_contain_text("memory silent")

    press(page, "Undo")
    expect(page.locator(".event").last).to_contain_text(f"Taken back: forgot: {fact}")
    page.reload()
    expect(page.locator(".said")).to_have_count(3)
    say(page, question)
    expect(page.locator(".entry").last.locator(".source")).to_contain_text("from memory")


def test_with_and_without_memory(visit):
    page = visit()
    say(page, FACT)
    page.fill("#box", QUESTION)
    press(page, "Compare")
    expect(page.locator(".pair > div").first).to_contain_text(FACT)
    expect(page.locator(".pair > div").last).to_contain_text("I cannot know that")
    switch = page.get_by_role("switch", name="Memory")
    switch.click()
    expect(switch).to_have_attribute("aria-checked", "false")
    say(page, QUESTION)
    expect(page.locator(".entry").last).to_contain_text("the frozen model alone")
    expect(page.locator(".entry").last).to_contain_text("I cannot know that")


def test_two_people_never_see_each_others(visit):
    one, two = visit(), visit()
    say(one, FACT)
    say(two, QUESTION)
    expect(two.locator(".source")).to_contain_text("holds nothing")
    assert FACT not in two.content() and "welcome" in visit().content()
    tokens = [page.context.cookies()[0] for page in (one, two)]
    assert tokens[0]["value"] != tokens[1]["value"] and tokens[0]["httpOnly"] and tokens[0]["sameSite"] == "Strict"


def test_two_pages_of_one_person_show_the_same(visit):
    page = visit()
    other = page.context.new_page()
    other.goto(page.url)
    say(page, FACT)
    expect(other.locator(".bubble")).to_have_text(FACT)
    expect(other.locator(".held")).to_contain_text("1 of 8")


def test_a_queue_that_is_seen_and_an_answer_that_is_stopped(visit):
    one, two = visit(), visit()
    say(one, "Is this told slowly?", done=False)
    expect(one.locator(".answer")).to_contain_text("slowly slowly")
    say(two, FACT, done=False)
    expect(two.locator(".waiting")).to_have_text("1 before you")
    one.fill("#box", "not yet")
    one.press("#box", "Enter")  # one thing at a time
    press(one, "Stop")
    expect(one.locator(".it")).to_contain_text("stopped here")
    expect(one.locator("#box")).to_have_value("not yet")
    expect(two.locator(".chip.written")).to_be_visible()
    say(one, "hello")
    expect(one.locator(".chip").last).to_have_text("memory not asked")


def test_what_is_said_is_shown_and_never_run(visit):
    page = visit()
    texts = [
        "<img src=x onerror=alert(1)><script>alert(2)</script>",
        "船小屋の番号は5082です。🦜",
        "`${alert(3)}` {{ 7*7 }}</textarea>",
    ]
    for number, text in enumerate(texts):
        say(page, text)
        expect(page.locator(".bubble").nth(number)).to_have_text(text)
    page.locator("summary").click()
    expect(page.locator("#held q").first).to_have_text(texts[2])
    say(page, f"{texts[0]} again?")
    page.reload()
    expect(page.locator(".bubble")).to_have_text([*texts, f"{texts[0]} again?"])


def test_empty_and_enormous_messages(visit):
    page = visit()
    page.fill("#box", "  \n ")
    page.press("#box", "Enter")
    press(page, "Send")
    for length in (4_001, 1_100_000):  # the second would not fit through the page's channel
        page.evaluate("length => chat.fill('x'.repeat(length))", length)
        page.press("#box", "Enter")
        expect(page.locator("#notice")).to_contain_text(f"may have 4,000 characters, this one has {length:,}")
    expect(page.locator(".said")).to_have_count(0)
    say(page, FACT)
    expect(page.locator("#notice")).to_be_hidden()


def test_files(visit, tmp_path):
    page = visit()
    text, damaged, mine = tmp_path / "notes.txt", tmp_path / "damaged.mem", tmp_path / "mine.mem"
    text.write_text(f"{FACT} The vet is called Okonkwo.")
    page.set_input_files("#read-file", text)
    expect(page.locator(".event")).to_contain_text("2 texts, 2 written")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export").click()
    download.value.save_as(mine)

    text.write_bytes(b"x" * 200_001)
    page.set_input_files("#read-file", text)
    expect(page.locator("#notice")).to_contain_text("at most 200,000")
    answer = page.evaluate("fetch('read?name=n', {method: 'POST', body: 'x'.repeat(200001)}).then(a => a.text())")
    assert "up to 200,000" in answer  # and not only by the page's own leave
    text.write_bytes(b"\x00\xff\xfe")
    page.set_input_files("#read-file", text)
    expect(page.locator("#notice")).to_contain_text("not a text file")
    damaged.write_bytes(mine.read_bytes()[:30])
    page.set_input_files("#load-file", damaged)
    expect(page.locator("#notice")).to_have_text("not a memory file: damaged.mem")
    expect(page.locator(".held")).to_contain_text("2 of 8")

    other = visit()
    other.set_input_files("#load-file", mine)
    expect(other.locator(".event")).to_contain_text("Loaded mine.mem")
    page.locator("summary").click()
    page.locator("#filter").fill("okon")
    page.locator("#held button:visible").click()
    expect(page.locator(".held")).to_contain_text("1 of 8")
    expect(other.locator(".held")).to_contain_text("2 of 8")


def test_a_full_memory_says_so(visit):
    page = visit()
    rows = b"".join(b"Row %d has a full shelf.\n\n" % number for number in range(8))
    page.set_input_files("#read-file", {"name": "rows.txt", "mimeType": "text/plain", "buffer": rows})
    expect(page.locator(".panel .full")).to_contain_text("It is full")
    say(page, FACT)
    expect(page.locator(".it .full")).to_contain_text("1 text longest unused had to go")


def test_by_keyboard(visit):
    page = visit()
    page.locator("#box").focus()
    page.keyboard.type(FACT[:8])
    page.keyboard.press("Shift+Enter")
    page.keyboard.type(FACT[8:])
    assert page.locator("#box").input_value().count("\n") == 1
    page.keyboard.press("Enter")
    expect(page.locator(".chip.written").first).to_be_visible()
    expect(page.locator("[role=status]")).to_contain_text("Answer:")
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText || document.activeElement.id"))
    wanted = {"Memory", "Clear context", "Compare", "Send", "Save", "Undo", "Forget…", "Read a text file…", "Load…",
              "Export", "What it holds"}  # fmt: skip
    assert wanted <= set(reached)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    nameless = """[...document.querySelectorAll('button, input, textarea, a')].filter(each => each.checkVisibility()
        && !(each.ariaLabel || each.innerText?.trim() || each.labels?.length)).map(each => each.outerHTML)"""
    assert page.evaluate(nameless) == []


def test_on_a_phone(visit):
    page = visit()
    page.set_viewport_size({"width": 390, "height": 844})
    say(page, f"{FACT} {'x' * 300}")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    chat, panel = page.locator(".chat").bounding_box(), page.locator(".panel").bounding_box()
    assert panel["y"] >= chat["y"] + chat["height"] and panel["width"] == 390


def test_what_was_saved_outlives_the_program(visit, server):
    page = visit()
    say(page, FACT)
    expect(page.locator(".saved")).to_contain_text("1 change not saved yet")
    press(page, "Save")
    expect(page.locator(".saved")).to_have_text("All of it is saved.")
    say(page, "The vet is called Okonkwo.")
    server.kill()
    server.start()
    page.goto(server.url)
    expect(page.locator(".welcome")).to_contain_text("1 text is still in your memory")
    say(page, QUESTION)
    expect(page.locator(".source")).to_contain_text(f"from memory {FACT}")
