"""The page in a browser: picked, walked, pointed at and pressed, it tells what the record holds."""

import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest

from memory_titan.viz.page import render_page
from test_neural_record import by_hand as neural_by_hand
from test_slots_record import by_hand

# Waits for nothing: what the page does on an event it does at once. `say` keeps what is then to be seen.
HANDS = """
const told = {}, at = id => document.getElementById(id);
const say = name => { told[name] = [at("now").textContent, at("cell").textContent, at("facts").textContent,
  at("time").value, document.querySelector("#tokens [aria-current]").textContent]; };
const press = key => { const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
  at("heat").dispatchEvent(event); return event.defaultPrevented; };
const point = (kind, t, slot) => {
  const box = at("heat").getBoundingClientRect(), { column, row } = shape();
  at("heat").dispatchEvent(new PointerEvent(kind, { bubbles: true,
    clientX: box.left + LEFT + (t - state.start + .5) * column, clientY: box.top + (slot + .5) * row }));
};
const change = (one, kind) => one.dispatchEvent(new Event(kind, { bubbles: true }));
const dark = (t, slot) => {  // how much of the colour is in a cell, 0 to 255; not where frame or triangle may stand
  const { column, row } = shape(), ratio = devicePixelRatio || 1;
  const x = (LEFT + (t - state.start + .3) * column) * ratio, y = (slot + .75) * row * ratio;
  return at("heat").getContext("2d").getImageData(x, y, 1, 1).data[3];
};
"""


def seen(tmp_path, record, tokens, script):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    end = "document.documentElement.dataset.told = JSON.stringify(told);"
    page = render_page(record, "t", tokens).replace("</body>", f"<script>{HANDS}{script}{end}</script></body>")
    path = tmp_path / "page.html"
    path.write_text(page, "utf-8")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=800,900", profile, "--dump-dom"]
    run = subprocess.run([browser, *options, path.as_uri()], capture_output=True, timeout=120, check=True)
    root = re.search(r"<html[^>]*>", run.stdout.decode())[0]
    assert "data-error" not in root, root
    return json.loads(unescape(re.search(r'data-told="([^"]*)"', root)[1]))


def test_slots(tmp_path):
    took = [[0, 2], [1, -1], [-1, 1], [0, 2]]
    reads = np.zeros((4, 2, 3))
    reads[1, 0], reads[3, 1] = [0.02, 0.98, 0], [0, 0.25, 0.75]
    told = seen(
        tmp_path,
        by_hand(took, reads=reads),
        ["a", "b", "c", "d"],
        """
say("start");
told.kept = press("ArrowRight"); say("right");
press("ArrowDown"); say("down");
press("End"); press("ArrowRight"); say("end");
told.other = press("a");
point("pointermove", 1, 1); say("hover");
point("pointerleave", 0, 0); say("left");
point("pointerdown", 1, 2); say("click");
at("tokens").children[2].click(); say("token");
at("time").value = 3; change(at("time"), "input"); say("slider");
at("head").value = 1; change(at("head"), "change"); say("head");
told.unread = dark(3, 1);
const reads = document.querySelector("input[value=reads]"); reads.checked = true; change(reads, "change");
told.read = dark(3, 1);
at("head").value = 0; change(at("head"), "change"); told.faint = dark(1, 0); told.none = dark(1, 2);
""",
    )
    where = {name: one[0] for name, one in told.items() if isinstance(one, list)}
    assert where == {
        **dict.fromkeys(("start",), "0 “a”"),
        **dict.fromkeys(("right", "down", "click"), "1 “b”"),
        **dict.fromkeys(("end", "hover", "left", "slider", "head"), "3 “d”"),
        "token": "2 “c”",
    }
    assert told["kept"] is True and told["other"] is False  # a key that the page has no use for stays the browser's
    assert told["right"][1] == "Token 1 “b”, slot 0: written 0.00, read 0.02; held by token 0 “a”."
    assert told["down"][1].startswith("Token 1 “b”, slot 1: written 1.00, read 0.98; this token took it.")
    assert told["hover"][1] == told["down"][1] and told["left"][1] == told["end"][1] != told["hover"][1]
    assert told["click"][1].endswith("slot 2: written 0.00, read 0.00; no token has taken it yet.")
    assert told["slider"][3:] == ["3", "d"] and "Tookslot 0" in told["slider"][2]
    assert "Tookslot 2" in told["head"][2]
    assert "slot 2: 0.75 (its own), slot 1: 0.25 (of token 2 “c”); entropy 0.56 nats" in told["head"][2]
    assert told["unread"] == 0 and 100 < told["read"] < 160  # 0.25 at half the depth
    assert told["faint"] > 25 and told["none"] == 0  # 0.02 can be seen


def test_a_neural_memory(tmp_path):
    T = 90
    values = np.arange(1.0, T + 1, dtype=np.float32)[:, None]
    moved = np.zeros((4, 1, 2), np.float32)
    moved[1:, 0, 0], moved[1:, 0, 1] = [1, 2, 4], [0.5, 0, 0]
    record = neural_by_hand(
        np.full(T, 0.9), matrices=2, loss=values, write=values, moved=moved, norm=moved, away=moved,
        looked_at=np.array([0, 30, 60, T]),
    )  # fmt: skip
    told = seen(
        tmp_path,
        record,
        None,
        """
say("start");
press("Home"); say("home"); told.high = dark(0, 1); told.low = dark(0, 0);
told.start = state.start;
at("time").value = 60; change(at("time"), "input"); press("ArrowUp"); say("slider"); told.none = dark(60, 1);
told.cursor = document.getElementById("cursor").getAttribute("x1");
told.charts = document.querySelectorAll("svg").length;
told.life = at("say-life").textContent;
told.shown = getComputedStyle(at("which")).display;
""",
    )
    assert (
        told["home"][1]
        == "Token 0, matrix 1: moved by 0.50 from token 0 to 29; then of norm 0.50, 0.50 from where it began."
    )
    assert told["slider"][1].startswith("Token 60, matrix 0: moved by 4.00 from token 60 to 89; then of norm 4.00")
    assert "Surprise61.00" in told["slider"][2] and "Decay α0.10" in told["slider"][2]
    assert "Momentum ηnone" in told["slider"][2]
    assert told["high"] > 250 and 120 < told["low"] < 136 and told["none"] == 0  # 1 / 4 at half the depth
    assert told["charts"] == 3 and told["shown"] == "none"
    assert told["life"].endswith("half after 7 tokens.")  # 0.9^7 = 0.48
