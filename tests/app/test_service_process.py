"""The commands `memory-titan serve` and `mcp`: what they refuse, and one real service."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from bag import BagEmbedder
from memory_titan import TitansManager
from memory_titan.app.tenants import store_file
from memory_titan.cli import main

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-acme-0123456789"
BAG = ["--embedder", "bag:BagEmbedder"]


def refusal(*arguments):
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 2 and result.stderr.startswith("Error: "), result.output
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no key"),
        (["--no-auth", "--host", "0.0.0.0"], "loopback only"),
        (["--no-auth", "--key", f"acme={KEY}"], "not both"),
        (["--key", KEY], "TENANT=KEY"),
        (["--key", "acme=short-secret"], "16 to 256"),
        (["--key", f"acme={KEY}", "--key", f"other={KEY}"], "same key"),
        (["--key", f"acme={KEY}", "--embedder", "bag:Nothing"], "no embedder bag:Nothing"),
    ],
)
def test_serve_refuses_plainly_and_shows_no_key(tmp_path, arguments, message):
    said = refusal("serve", "--folder", str(tmp_path / "new"), *arguments)
    assert message in " ".join(said.split()) and KEY not in said and "short-secret" not in said
    assert not list(tmp_path.rglob("*.memory"))


@pytest.mark.parametrize("content", ["{", "[]", '{"acme": 5}', f'{{"": "{KEY}"}}'])
def test_a_file_of_keys_that_is_none(tmp_path, content):
    (tmp_path / "keys.json").write_text(content)
    assert KEY not in refusal("serve", "--folder", str(tmp_path), "--keys", str(tmp_path / "keys.json"), *BAG)


def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refusal("serve", "--folder", str(tmp_path), "--no-auth", "--port", port, *BAG)
        assert "in use" in said


@pytest.mark.parametrize(
    ("library", "module", "command"),
    [
        ("fastapi", "service", "serve"),
        ("uvicorn", "service_run", "serve"),
        ("mcp.server.mcpserver", "mcp_server", "mcp"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, library, module, command):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"memory_titan.app.{module}", raising=False)
    where = ["--folder", str(tmp_path), "--no-auth"] if command == "serve" else ["--path", str(tmp_path / "a.memory")]
    assert f"pip install memory-titan[{command}]" in refusal(command, *where)


def test_mcp_wants_one_store():
    assert "one of them" in refusal("mcp")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM there is no request")
def test_the_real_service(tmp_path):
    """One process, from its start to its end: starting it is what takes long."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"acme": [KEY, "second-key-of-acme-0123"], "other": "a-key-of-other-0123456789"}))
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/app")]
    process = subprocess.Popen(
        [sys.executable, "-m", "memory_titan", "serve", "--folder", str(tmp_path / "stores"), "--keys", str(keys),
         "--port", "0", "--embedder", "slow_bag:SlowBag"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        address = process.stdout.readline().split()[-1]
        port = int(address.rpartition(":")[2])
        assert address == f"http://127.0.0.1:{port}"
        check_loopback_only(port)
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
            check_talk(client)
            check_endless_body(port)
            with ThreadPoolExecutor(1) as threads:
                late = threads.submit(client.post, "/v1/documents", json={"documents": "I was asleep", "ids": ["late"]})
                while "memory_titan_at_work 1" not in httpx.get(f"{address}/metrics").text:
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                assert late.result().json() == {"ids": ["late"]}  # what was at work is finished
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and (out, err) == ("", "")
    with TitansManager(BagEmbedder(), path=tmp_path / "stores" / store_file("acme")) as titans:
        assert titans.get(["late"])[0]["content"] == "I was asleep"
    assert not list((tmp_path / "stores").glob("*-wal"))  # it was closed


def check_loopback_only(port):
    for table, own in (("tcp", "0100007F"), ("tcp6", None)):
        file = Path("/proc/net") / table
        lines = [line.split() for line in file.read_text().splitlines()[1:]] if file.exists() else []
        listening = [line[1] for line in lines if line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port]
        assert all(where.rpartition(":")[0] == own for where in listening)


def check_talk(client):
    assert client.get("/health").json()["status"] == "ok"
    name = "a/../b%2f..?#é"
    assert (
        client.post("/v1/documents", json={"documents": "the key is under the mat", "ids": [name]}).status_code == 200
    )
    assert client.post("/v1/query", json={"query": "where is the key"}).json()["hits"][0]["id"] == name
    assert client.get("/v1/documents/a%2F..%2Fb%252f..%3F%23%C3%A9").json()["id"] == name
    assert client.get("/v1/documents/%2e%2e%2f%2e%2e%2fetc%2fpasswd").status_code == 404
    other = {"Authorization": "Bearer a-key-of-other-0123456789"}
    assert client.post("/v1/query", json={"query": "key"}, headers=other).json() == {"hits": []}
    assert client.get("/v1/stats", headers={"Authorization": "Bearer nobody"}).status_code == 401
    answer = client.get("/v1/stats")
    assert (
        answer.json()["items"] == 1 and "server" not in answer.headers and answer.headers["cache-control"] == "no-store"
    )


def check_endless_body(port):
    """Chunks without end: the service answers and hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = (
            f"POST /v1/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        sent = 0
        try:
            while sent < 100_000_000:
                connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                sent += 0x10000
        except OSError:  # it does not listen any more
            pass
        assert sent < 20_000_000
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"POST /v1/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000001\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
