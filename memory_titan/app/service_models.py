"""What the service's requests and answers look like, with examples for its OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from memory_titan.app.checks import NAME, TOP_K
from memory_titan.store.item import MemoryType, Source

Where = dict[str, Any]
Time = Annotated[float | str, Field(description="Seconds since 1970, or ISO 8601 (UTC where it names no zone).")]


class _Request(BaseModel):
    """Types as they are in JSON, nothing converted; an unknown name is refused, for it may be a misspelt one."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class Documents(_Request):
    """Texts to add. What has the same id already is replaced. All of a call is kept, or nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "documents": ["My sister's dog is called Bruno.", "We fly to Lisbon in May."],
                    "metadata": [{"user": "u1"}, {"user": "u1", "topic": "travel"}],
                    "ids": ["dog", "trip"],
                    "times": "2026-03-01T09:30:00Z",
                    "session": "chat-17",
                }
            ]
        }
    )

    documents: Annotated[str | list[str], Field(description="One text or several, none empty.")]
    metadata: Annotated[
        dict[str, Any] | list[dict[str, Any] | None] | None, Field(description="A JSON object for all, or one each.")
    ] = None
    ids: Annotated[list[str] | None, Field(description=f"Unique names, at most {NAME} characters; else made.")] = None
    times: Annotated[
        Time | list[Time] | None, Field(description="When they were said: one for all or one each; else now.")
    ] = None
    session: Annotated[
        str | list[str | None] | None, Field(description="What they were said in: one for all or one each.")
    ] = None
    memory_type: Annotated[
        MemoryType, Field(description="persistent: always held; the others are the memory's to keep or let go.")
    ] = "all"


class Added(_Answer):
    """The ids of what was added, in order."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["dog", "trip"]}]})
    ids: list[str]


class Query(_Request):
    """A question, and which items may answer it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "What is the dog called?", "top_k": 3, "where": {"user": "u1"}, "after": "2026-01-01"}
            ]
        }
    )

    query: str
    top_k: Annotated[int, Field(ge=1, le=TOP_K)] = 5
    where: Annotated[
        Where | None, Field(description='A filter on metadata, such as {"user": "u1", "age": {"$gt": 3}}.')
    ] = None
    memory_types: list[Literal["short_term", "long_term", "persistent"]] | None = None
    after: Annotated[Time | None, Field(description="Said then or later.")] = None
    before: Annotated[Time | None, Field(description="Said earlier than that.")] = None


class Hit(_Answer):
    """One item that answers a query."""

    content: str
    score: Annotated[float, Field(description="0 to 1, comparable within one answer.")]
    source: Source
    id: str
    metadata: dict[str, Any]
    surprise: Annotated[float | None, Field(description="0 (known) to 1 (new); null: not decided on yet.")]
    created: Annotated[str, Field(description="ISO 8601, UTC.")]
    session: str | None
    why: Annotated[dict[str, float], Field(description="What the score is made of.")]
    duplicates: Annotated[list[str], Field(description="Ids of items that say the same.")]
    replaces: Annotated[list[str], Field(description="Ids of older statements about the same thing.")]
    replaced_by: Annotated[str | None, Field(description="Id of the newer statement about the same thing.")]
    abridged: Annotated[int, Field(description="Bytes of the content that were let go to make room.")]


class Hits(_Answer):
    """The best first."""

    hits: list[Hit]


class Forget(_Request):
    """What to forget: `ids`, or all that a filter lets through, or those of `ids` that it lets through."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"where": {"user": "u1"}}, {"ids": ["trip"]}]})

    ids: Annotated[list[str] | None, Field(description="Unknown ones are passed over.")] = None
    where: Annotated[Where | None, Field(description="{} is everything.")] = None


class Forgotten(_Answer):
    """How many items were forgotten."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"forgotten": 2}]})
    forgotten: int


class Consolidated(_Answer):
    """Ids of what the long-term memory admitted, rejected, let go to make room, and shortened to make room."""

    admitted: list[str]
    rejected: list[str]
    evicted: list[str]
    abridged: list[str]


class Document(_Answer):
    """One item."""

    id: str
    content: str
    metadata: dict[str, Any]
    created: str
    session: str | None
    source: Source
    memory_type: str
    surprise: float | None
    abridged: int


class Stats(_Answer):
    """How full each memory is, and what the long-term memory has done."""

    items: int
    architecture: str
    embedder: str
    vector_dim: int
    short_term: dict[str, Any]
    long_term: dict[str, Any]
    persistent: dict[str, Any]
    file_bytes: int


class Health(_Answer):
    """That the service answers."""

    status: Literal["ok"]
    version: str


class Error(_Answer):
    """What was wrong, in one sentence."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": "document 0 is empty"}]})
    error: str
