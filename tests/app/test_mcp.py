"""The memory as an MCP server, through the SDK's own client: within the process, and as a client starts it."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from mcp import Client, StdioServerParameters

from bag import BagEmbedder
from memory_titan import TitansManager
from memory_titan.app.mcp_server import create_server
from memory_titan.cli import main

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


@pytest.fixture
def call():
    """Calls a tool of a server over a store in memory; an error comes back as its text."""
    with TitansManager(BagEmbedder(), persistent_size=1) as manager:

        def run(tool, **arguments):
            async def once():
                async with Client(create_server(manager)) as client:
                    result = await client.call_tool(tool, arguments)
                    return result.content[0].text if result.is_error else result.structured_content

            return asyncio.run(once())

        yield run


def test_remember_recall_forget(call):
    dog = call("remember", text="Anna's dog is called Bruno", metadata={"topic": "dogs"}, session="monday")["id"]
    call("remember", text="Anna flies to Lisbon in May", metadata={"topic": "travel"})
    (first, _) = call("recall", query="what is the dog called")["memories"]
    assert first["id"] == dog and first["text"] == "Anna's dog is called Bruno" and first["session"] == "monday"
    assert first["metadata"] == {"topic": "dogs"} and first["said"].startswith("20") and 0 < first["score"] <= 1
    assert len(call("recall", query="Anna", top_k=1)["memories"]) == 1
    assert [m["id"] for m in call("recall", query="Anna", where={"topic": "dogs"})["memories"]] == [dog]
    assert call("recall", query="Anna", before="2001-01-01") == {"memories": []}
    assert len(call("recall", query="Anna", after="2001-01-01")["memories"]) == 2
    assert call("stats")["items"] == 2
    assert call("forget", ids=[dog, "unknown"]) == {"forgotten": 1}
    assert call("forget", where={"topic": "travel"}) == {"forgotten": 1}
    assert call("recall", query="Anna") == {"memories": []}


def test_always_is_kept_and_has_little_room(call):
    call("remember", text="Answer in English", always=True)
    assert call("recall", query="English")["memories"][0]["kept_in"] == "persistent"
    assert "1 of 1" in call("remember", text="Answer at length", always=True)


@pytest.mark.parametrize(
    ("tool", "arguments", "part"),
    [
        ("remember", {"text": " "}, "text is empty"),
        ("remember", {}, "text: Field required"),
        ("remember", {"text": "x" * 100_001}, "at most 100000"),
        ("remember", {"text": "x", "metadata": {"n": 2**70}}, "64 bits"),
        ("remember", {"text": "x", "metadata": "none"}, "metadata"),
        ("recall", {"query": ""}, "query is empty"),
        ("recall", {"query": "x", "top_k": 101}, "less than or equal to 100"),
        ("recall", {"query": "x", "where": {"n": {"$near": 1}}}, "no operator"),
        ("recall", {"query": "x", "after": "last week"}, "ISO 8601"),
        ("forget", {}, "say what to forget"),
        ("forget", {"where": {}}, "not empty"),
    ],
)
def test_errors_are_one_sentence(call, tool, arguments, part):
    call("remember", text="something")
    error = call(tool, **arguments)
    assert part in error and "\n" not in error and len(error) < 300
    assert call("stats")["items"] == 1


def test_what_is_unexpected_stays_inside():
    class Broken(BagEmbedder):
        def embed(self, texts):
            if "secret" in texts[0]:
                raise RuntimeError("inside")
            return super().embed(texts)

    async def once(manager):
        async with Client(create_server(manager)) as client:
            return await client.call_tool("recall", {"query": "secret"})

    with TitansManager(Broken()) as manager:
        result = asyncio.run(once(manager))
    assert result.is_error and "inside" not in result.content[0].text


def test_tools_tell_a_model_what_it_needs():
    async def once(manager):
        async with Client(create_server(manager)) as client:
            return client.instructions, (await client.list_tools()).tools

    with TitansManager(BagEmbedder()) as manager:
        instructions, listed = asyncio.run(once(manager))
    tools = {tool.name: tool for tool in listed}
    assert set(tools) == {"remember", "recall", "forget", "stats"} and "recall" in instructions
    for tool in listed:
        assert "Use it" in tool.description and tool.output_schema
        assert all("description" in each for each in tool.input_schema["properties"].values())
    assert tools["forget"].annotations.destructive_hint and tools["recall"].annotations.read_only_hint
    assert tools["remember"].input_schema["required"] == ["text"]


def test_as_a_client_starts_it(tmp_path):
    """A process over stdio; what it was told is in the file afterwards, and nothing but the protocol was on stdout."""
    path = tmp_path / "my.memory"
    command = ["mcp", "--path", str(path), "--embedder", "bag:BagEmbedder"]
    environment = {**os.environ, "PYTHONPATH": PATHS}
    server = StdioServerParameters(command=sys.executable, args=["-m", "memory_titan", *command], env=environment)

    async def talk():
        async with Client(server, mode="legacy") as client:
            await client.call_tool("remember", {"text": "the key is under the mat"})
            result = await client.call_tool("recall", {"query": "where is the key"})
            return client.server_info.name, result.structured_content

    name, recalled = asyncio.run(talk())
    assert name == "memory-titan" and recalled["memories"][0]["text"] == "the key is under the mat"
    with TitansManager(BagEmbedder(), path=path) as manager:
        assert len(manager) == 1
        # the file is in use: the next one says so, and says nothing on stdout
        result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and result.stdout == "" and "another process" in result.stderr
