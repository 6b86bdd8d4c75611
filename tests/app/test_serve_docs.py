"""The requests of docs/serve.md are answered as it says, and its settings are the real ones."""

import json
import re
import shlex
from pathlib import Path

from fastapi.testclient import TestClient

from bag import BagEmbedder
from memory_titan.app.checks import NAME, QUERY, TEXT, TOP_K
from memory_titan.app.service import ServiceSettings, create_app
from memory_titan.app.tenants import Keys
from memory_titan.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")
EXAMPLES = re.findall(r"^\$ (curl .*?)\n(\{.*?)\n(?:\n|(?=```))", PAGE, re.DOTALL | re.MULTILINE)
KEY = "the-key-of-acme-0123456789"


def curl(client, command):
    """What curl would get: the options that the page uses."""
    words = shlex.split(command.replace("$KEY", KEY).replace("$URL", "http://testserver"))[1:]
    method, url, headers, data = "GET", "", {}, None
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "--json":
            method, data = "POST", json.loads(words.pop(0))
        elif word != "-s":
            url = word
    return client.request(method, url, headers=headers, json=data).json()


def holds(answer, shown):
    """Whether what is shown is in the answer."""
    if isinstance(shown, dict):
        return all(key in answer and holds(answer[key], value) for key, value in shown.items())
    if isinstance(shown, list):
        return len(answer) == len(shown) and all(map(holds, answer, shown))
    return answer == shown


def test_the_examples(tmp_path):
    keys = Keys()
    keys.add("acme", KEY)
    with TestClient(create_app(ServiceSettings(tmp_path, keys=keys), embedder=BagEmbedder())) as client:
        for command, shown in EXAMPLES:
            answer = curl(client, command)
            assert holds(answer, json.loads(shown)), (command, answer)
    assert len(EXAMPLES) == PAGE.count("$ curl") == 10


def test_the_limits():
    settings = ServiceSettings(no_auth=True, folder=Path("x"))
    rows = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", PAGE, re.MULTILINE))
    for row, *numbers in (
        ("body of a request", settings.max_body),
        ("documents in a call", settings.max_documents),
        ("a document, a query", TEXT, QUERY),
        ("metadata of a document", settings.max_metadata),
        ("an id, a session's name", NAME),
        ("`top_k`", TOP_K),
        ("requests at work", settings.workers, settings.queue),
        ("stores open while not in use", settings.open_stores),
    ):
        assert [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", rows[row])] == numbers, row


def test_the_options_are_there():
    known = {
        option for name in ("serve", "mcp") for parameter in main.commands[name].params for option in parameter.opts
    }
    assert set(re.findall(r"--[a-z][a-z_-]+", PAGE)) - {"--json"} <= known  # that one is curl's
