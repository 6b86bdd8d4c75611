"""The page of slots: whole in one file, what is in it is what was recorded, no token gets out of its text."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from memory_titan.viz.page import MAX_PAGE_CELLS, page_data, render_page, write_page
from memory_titan.viz.slots_record import SlotRecord
from test_slots_record import by_hand

EVIL = "</script><script>document.documentElement.dataset.evil = 1</script><!--&\u2028{{data}}"
RECORD = by_hand([[0, 1], [1, -1], [0, -1]], reads=[[[0, 0, 0]] * 2, [[0.5, 0.5, 0]] * 2, [[1, 0, 0]] * 2])
TOKENS = ["a", EVIL, "\n"]


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_data_come_back():
    data = data_of(render_page(RECORD, "t", TOKENS))
    assert data == page_data(RECORD, TOKENS)
    assert data["tokens"] == TOKENS and data["slots"] == 3
    first, second = data["heads"]
    assert first["writes"] == [[0, 1], [1, 1], [0, 1]] and second["writes"] == [[1, 1], [], []]
    assert first["reads"] == [[], [0, 0.5, 1, 0.5], [0, 1]]
    assert first["took"] == [0, 1, 0] and first["gate"] == [1, 1, 1] and second["surprise"] == [1, 0, 0]
    assert first["entropy"] == [None, 0.693, 0]
    assert first["usage"]["reads"] == [0.75, 0.25, 0]
    assert first["survival"]["times"] == [2] and first["survival"]["survival"] == [0]  # alone at risk by then
    assert first["survival"]["censored"] == [0, 1] and first["survival"]["median"] == 2
    assert page_data(by_hand([-1]))["heads"][0]["survival"] is None


def test_weights_of_a_bank_come_back_to_a_thousandth():
    weights = np.random.default_rng(0).dirichlet(np.ones(6), (20, 2)).astype(np.float32)
    record = SlotRecord(**{**vars(by_hand([[-1, -1]] * 20, slots=6)), "writes": weights})
    for head, told in enumerate(page_data(record)["heads"]):
        again = np.zeros((20, 6))
        for t, row in enumerate(told["writes"]):
            again[t, row[::2]] = row[1::2]
        assert np.abs(again - weights[:, head]).max() <= 0.0005 + 1e-6


def test_nothing_points_outside_and_tokens_stay_text():
    page = render_page(RECORD, f"Title {EVIL}", TOKENS)
    assert not re.search(r"\b(?:src|href|action)\s*=|url\(|@import|fetch\(|XMLHttp", page)
    assert set(re.findall(r"https?://[^\"'\s]*", page)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert page.count("</script>") == 2 and page.count("<script") == 2
    assert "default-src 'none'" in page


def test_what_cannot_be():
    nothing = SlotRecord(*(one[:0] for one in vars(RECORD).values()))
    many = by_hand([-1] * 11, slots=MAX_PAGE_CELLS // 10)
    for record, tokens, says in (
        (many, None, "at most 500,000, here 10 tokens"),
        (RECORD, ["a"], "3 tokens"),
        (nothing, None, "no tokens"),
    ):
        with pytest.raises(ValueError, match=says):
            render_page(record, "t", tokens)


def test_it_runs_in_a_browser(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    path = write_page(tmp_path / "new" / "page.html", RECORD, f"Title {EVIL}", TOKENS)
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", profile, "--dump-dom", path.as_uri()]
    seen = subprocess.run([browser, *options], capture_output=True, timeout=60, check=True).stdout.decode()
    root = re.search(r"<html[^>]*>", seen)[0]
    assert 'data-ready="yes"' in root and "data-error" not in root and "data-evil" not in root
    assert seen.count("<option") == 2 and seen.count("<svg") == 3
    assert len(re.findall(r"<span [^>]*data-t=", seen)) == 3
    assert "Token 0 “a”, slot 0: written 1.00, read 0.00; this token took it." in seen
    assert "half are taken again within 2 tokens" in seen
