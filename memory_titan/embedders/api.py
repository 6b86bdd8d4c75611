"""Embeddings over HTTP: any server with an /embeddings endpoint as OpenAI's."""

from __future__ import annotations

import os
import random
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from memory_titan.embedders.base import BaseEmbedder

if TYPE_CHECKING:
    import httpx

LONGEST_WAIT = 60.0  # seconds; a server that asks for more is taken at its word, and the call fails


class OpenAIEmbedder(BaseEmbedder):
    """Asks `base_url`/embeddings for the vectors. Threads may share it.

    Args:
        model: the model's name there.
        base_url: where the API is; any that is compatible, also on this machine.
        api_key: by default the environment's OPENAI_API_KEY, sent to whatever base_url names; "" sends none.
        dimensions: shorter vectors, of models that offer them.
        batch_size: texts per request.
        timeout: seconds for one request.
        retries: how often a request is repeated after a timeout, a broken connection or status 408, 409, 429 or 5xx;
            after 0.5, 1, 2, ... seconds, or as long as the server's Retry-After says, if that is at most a minute.

    Raises ValueError if the server refuses the request or answers with no embeddings, ConnectionError if it cannot be
    reached or goes on failing; both with the status and the beginning of the answer, never with the key.
    """

    def __init__(
        self,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        api_key: str | None = None,
        dimensions: int | None = None,
        batch_size: int = 128,
        timeout: float = 60.0,
        retries: int = 4,
    ) -> None:
        if batch_size < 1 or retries < 0 or timeout <= 0 or (dimensions is not None and dimensions < 1):
            raise ValueError("batch_size and dimensions are at least 1, retries at least 0, timeout is above 0 seconds")
        try:
            import httpx
        except ImportError as error:
            raise ValueError(f"OpenAIEmbedder needs httpx ({error}): pip install 'memory-titan[http]'") from error
        key = (os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key).strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError(
                "the API key holds a character that no key has (a space, a line break, a letter not ASCII)"
            )
        url = httpx.URL(base_url.rstrip("/") + "/embeddings")
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("base_url is an address such as https://api.openai.com/v1")
        if not key and url.host == "api.openai.com":
            raise ValueError("OpenAI's API needs a key: set OPENAI_API_KEY or pass api_key")
        self.model, self.dimensions = model, dimensions
        self.batch_size, self.retries = batch_size, retries
        self.name = f"openai:{model}" + (f":{dimensions}" if dimensions else "")
        self._key, self._url = key, url
        self._place = f"{model} at {url.host}"  # not the whole address: it may carry a password
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers)

    def embed(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text, in their order, `batch_size` of them a request."""
        starts = range(0, len(texts), self.batch_size)
        return [row for start in starts for row in self._batch(texts[start : start + self.batch_size])]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _batch(self, texts: list[str]) -> list[list[float]]:
        body: dict[str, Any] = {"model": self.model, "input": texts, "encoding_format": "float"}
        if self.dimensions:
            body["dimensions"] = self.dimensions
        response = self._post(body)
        try:
            data = response.json()["data"]
            rows = {item.get("index", place): item["embedding"] for place, item in enumerate(data)}
            if len(data) != len(texts):
                raise ValueError(f"{len(data)} vectors for {len(texts)} texts")
            return [rows[place] for place in range(len(texts))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{self._place} answered with no embeddings ({what}): {self._short(response)}") from None

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        import httpx

        for attempt in range(self.retries + 1):
            wait = 0.5 * 2**attempt * random.uniform(0.75, 1.25)  # so that many clients do not come back together
            try:
                response = self._client.post(self._url, json=body)
            except httpx.TransportError as error:  # timeouts too
                failure = f"{self._place} could not be reached: {type(error).__name__}: {self._clean(str(error))}"
            else:
                if response.is_success:
                    return response
                failure = f"{self._place} answered {response.status_code}: {self._short(response)}"
                if response.status_code not in (408, 409, 429) and response.status_code < 500:
                    raise ValueError(failure)
                wait = max(wait, _retry_after(response.headers.get("Retry-After", "")))
            if wait > LONGEST_WAIT:
                raise ConnectionError(f"{failure} (it asks to wait {wait:.0f} s)")
            if attempt < self.retries:
                time.sleep(wait)
        raise ConnectionError(f"{failure} (tried {self.retries + 1} times)")

    def _short(self, response: httpx.Response) -> str:
        text = " ".join(self._clean(response.text).split())
        return text if len(text) <= 200 else f"{text[:197]}..."

    def _clean(self, text: str) -> str:
        """A server may repeat the key it was given."""
        return text.replace(self._key, "***") if self._key else text


def _retry_after(header: str) -> float:
    """Seconds, from a number of them or a date; 0 if it is neither."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or timezone.utc) - datetime.now(timezone.utc)).total_seconds())
