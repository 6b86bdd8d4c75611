"""The pictures of docs/chat.md: the chat on the real model, in Debian's chromium. python runs/chat_pictures.py"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from memory_titan.app.chat_guide import EXAMPLES

FOLDER = Path(__file__).parents[1] / "docs" / "images"
(FACT, QUESTION), *_ = EXAMPLES


def say(page: Page, text: str) -> None:
    before = page.locator(".said").count()
    page.fill("#box", text)
    page.press("#box", "Enter")
    expect(page.locator(".said")).to_have_count(before + 1)
    expect(page.locator(".caret, .waiting")).to_have_count(0, timeout=120_000)


def take(page: Page, name: str) -> None:
    page.locator("#box").blur()
    page.mouse.move(600, 300)
    page.wait_for_timeout(800)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        command = [
            sys.executable,
            "-u",
            "-m",
            "memory_titan",
            "chat",
            "--memories",
            folder,
            "--port",
            "0",
            "--no-browser",
        ]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            found = re.search(r"http://\S+", server.stdout.readline())
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            context = browser.new_context(viewport={"width": 1280, "height": 980})
            page = context.new_page()
            page.goto(found[0])
            expect(page.locator(".gauge")).to_be_visible()
            say(page, FACT)
            say(page, "Thanks, that is good to know!")
            page.click("#clear")
            say(page, QUESTION)
            take(page, "chat.png")
            phone = browser.new_context(
                viewport={"width": 390, "height": 844}, color_scheme="dark", storage_state=context.storage_state()
            ).new_page()
            phone.goto(found[0])
            expect(phone.locator(".said")).to_have_count(3)
            take(phone, "chat-phone.png")
            browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
