"""Memories over HTTP: one store for each tenant, and the tenant follows from the key."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

try:
    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from fastapi.security import HTTPBearer
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from starlette.exceptions import HTTPException

    from memory_titan.app.service_gate import TENANT, Gate, Metrics, RefusedError, is_loopback
except ImportError as error:
    raise ImportError(f"the service needs fastapi and others ({error}): pip install memory-titan[serve]") from error

from memory_titan import __version__
from memory_titan.app import service_models as models
from memory_titan.app.checks import NAME, QUERY, TEXT, check_string, check_time, sentence
from memory_titan.app.embedding import load_embedder
from memory_titan.app.tenants import Keys, Stores, store_file
from memory_titan.embedders import BaseEmbedder, as_embedder
from memory_titan.store.errors import (
    EmbedderMismatchError,
    StoreError,
    StoreFileError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
)
from memory_titan.store.manager import TitansManager
from memory_titan.store.where import check_metadata

logger = logging.getLogger(__name__)

T = TypeVar("T")
# What is said of a store that refuses. Its own words name files.
STORE_ERRORS: dict[type[StoreError], tuple[int, str]] = {
    StoreLockedError: (409, "the store is in use by another process; try again later"),
    StoreReadOnlyError: (409, "the store may not be written"),
    EmbedderMismatchError: (409, "the store was made with another embedding model than the one in use here"),
    StoreFileError: (500, "the store is damaged, or cannot be opened; the service's log says more"),
}


@dataclass(frozen=True)
class ServiceSettings:
    """How the service runs. Values that cannot work raise ValueError."""

    folder: Path | None = None  # holds a file for each tenant; made if it is not there
    url: str | None = field(default=None, repr=False)  # or "postgresql://...", where a store's name is its tenant's
    keys: Keys = field(default_factory=Keys)
    no_auth: bool = False  # no keys: all who ask are tenant "default"; on loopback only
    host: str = "127.0.0.1"
    metrics_keys: Keys | None = None  # without, /metrics is open on loopback, and closed beyond
    open_stores: int = 32  # that stay open while they are not in use
    workers: int = 4  # requests at work at once
    queue: int = 64  # that wait for it
    max_body: int = 1_000_000  # bytes
    body_seconds: float = 30.0  # in which a body must have come
    max_documents: int = 256  # a call; the manager keeps so many at once, or none
    max_text: int = TEXT  # characters of a document
    max_query: int = QUERY  # characters
    max_metadata: int = 16_384  # bytes of a document's metadata as JSON
    store: dict[str, Any] = field(default_factory=dict)  # further arguments of TitansManager

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.url is None):
            raise ValueError("give a folder for the tenants' files or a postgresql:// url, one of them")
        if self.no_auth and not is_loopback(self.host):
            raise ValueError(f"without keys the service listens on loopback only, not on {self.host}")
        if self.no_auth and len(self.keys):
            raise ValueError("give keys or no_auth, not both")
        if not self.no_auth and not len(self.keys):
            raise ValueError("there is no key: give a tenant one, or say no_auth to serve this machine's user only")
        for name in ("open_stores", "workers", "max_body", "max_documents", "max_text", "max_query", "max_metadata"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.queue < 0 or self.body_seconds <= 0:
            raise ValueError("queue must not be negative, and body_seconds must be positive")


def create_app(settings: ServiceSettings, *, embedder: BaseEmbedder | Any | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: see there.
        embedder: shared by all tenants; None: all-MiniLM-L6-v2 by sentence-transformers.

    Raises:
        ValueError: the embedder does not work.
    """
    if settings.folder is not None:
        settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shared = _Shared(load_embedder() if embedder is None else as_embedder(embedder))
    stores = Stores(functools.partial(_open_store, settings, shared), settings.open_stores)
    pool = ThreadPoolExecutor(settings.workers, "memory-titan")
    metrics = Metrics(lambda: len(stores))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, pool.shutdown)  # after what is at work
        stores.close()

    app = FastAPI(
        title="memory-titan", version=__version__, description="A memory for applications.", lifespan=lifespan,
        docs_url=None, redoc_url=None,  # they would load scripts from elsewhere
    )  # fmt: skip
    app.add_middleware(
        Gate, keys=None if settings.no_auth else settings.keys, metrics_keys=settings.metrics_keys,
        open_metrics=settings.metrics_keys is None and is_loopback(settings.host), metrics=metrics,
        max_body=settings.max_body, body_seconds=settings.body_seconds, room=settings.workers + settings.queue,
    )  # fmt: skip
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _misshapen)
    app.add_exception_handler(HTTPException, _http_error)

    async def work(request: Request, job: Callable[[TitansManager], T]) -> T:
        """Do it in a thread, on the store of whoever asks, and say plainly what went wrong."""
        tenant: str = request.scope[TENANT]

        def run() -> T:
            with stores.use(tenant) as manager:
                return job(manager)

        try:
            return await asyncio.get_running_loop().run_in_executor(pool, run)
        except RefusedError:
            raise
        except StoreError as error:
            raise _store_refused(error) from error
        except ValueError as error:
            raise RefusedError(400, sentence(str(error))) from error

    keyed: dict[str, Any] = {
        "dependencies": [Depends(HTTPBearer(auto_error=False, description="The tenant's key."))],
        "responses": {status: {"model": models.Error} for status in (400, 401, 409, 413, 422, 500, 503)},
    }

    @app.post("/v1/documents", **keyed)
    async def add(request: Request, body: models.Documents) -> models.Added:
        """Add texts. When it answers, they are held."""

        def job(manager: TitansManager) -> list[str]:
            texts = _check_documents(body, settings)
            return manager.add_documents(
                texts, body.metadata, body.memory_type, ids=body.ids, times=body.times, session=body.session
            )

        return models.Added(ids=await work(request, job))

    @app.get("/v1/documents/{id:path}", **{**keyed, "responses": {**keyed["responses"], 404: {"model": models.Error}}})
    async def get(request: Request, id: str) -> models.Document:
        """One item by its id."""
        found = await work(request, lambda manager: manager.get([id]))
        if not found:
            raise RefusedError(404, "there is no document with this id")
        return models.Document(**found[0])

    @app.post("/v1/query", **keyed)
    async def query(request: Request, body: models.Query) -> models.Hits:
        """The items that answer a query best."""

        def job(manager: TitansManager) -> list[Any]:
            _checked(check_string, body.query, "query", settings.max_query)
            _checked(check_time, body.after, "after")
            _checked(check_time, body.before, "before")
            return manager.query(
                body.query, body.top_k, body.where, memory_types=body.memory_types, after=body.after, before=body.before
            )

        return models.Hits(hits=[models.Hit(**hit) for hit in await work(request, job)])

    @app.post("/v1/forget", **keyed)
    async def forget(request: Request, body: models.Forget) -> models.Forgotten:
        """Forget items for good."""
        return models.Forgotten(forgotten=await work(request, lambda manager: _forget(manager, body)))

    @app.post("/v1/consolidate", **keyed)
    async def consolidate(request: Request) -> models.Consolidated:
        """Let the long-term memory decide now on all that waits for it."""
        return models.Consolidated(**asdict(await work(request, lambda manager: manager.consolidate_memories())))

    @app.get("/v1/stats", **keyed)
    async def stats(request: Request) -> models.Stats:
        """How full the memory is."""
        return models.Stats(**await work(request, lambda manager: manager.stats()))

    @app.get("/health")
    async def health() -> models.Health:
        """Whether the service answers. Needs no key."""
        return models.Health(status="ok", version=__version__)

    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """Counts and latencies for Prometheus, of all tenants together."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class _Shared(BaseEmbedder):
    """The tenants' embedder. Texts are checked before they come here: an error is its own and not the client's."""

    def __init__(self, embedder: BaseEmbedder) -> None:
        self.embedder, self.name = embedder, embedder.name

    def embed(self, texts: list[str]) -> Any:
        return self._own(lambda: self.embedder.encode(texts))

    def embed_query(self, text: str) -> Any:
        return self._own(lambda: self.embedder.encode_query(text))

    def discard(self, texts: Any) -> None:
        self.embedder.discard(texts)

    def _own(self, encode: Callable[[], T]) -> T:
        try:
            return encode()
        except Exception as error:
            raise RuntimeError(f"{self.name} failed") from error


def _open_store(settings: ServiceSettings, embedder: BaseEmbedder, tenant: str) -> TitansManager:
    if settings.folder is None:
        return TitansManager(embedder, url=settings.url, name=tenant, **settings.store)
    return TitansManager(embedder, path=settings.folder / store_file(tenant), **settings.store)


def _forget(manager: TitansManager, body: models.Forget) -> int:
    if body.ids is None and body.where is None:
        raise RefusedError(422, "say what to forget: ids, or where ({} is everything)")
    return manager.forget(body.ids, body.where)


def _check_documents(body: models.Documents, settings: ServiceSettings) -> list[str]:
    """Refuse what is beyond the limits, and what a store would keep but could not give back."""
    texts = [body.documents] if isinstance(body.documents, str) else body.documents
    if len(texts) > settings.max_documents:
        raise RefusedError(422, f"{len(texts)} documents; a call takes at most {settings.max_documents}")
    for number, text in enumerate(texts):
        _checked(check_string, text, f"document {number}", settings.max_text)
    for number, name in enumerate(body.ids or []):
        _checked(check_string, name, f"id {number}", NAME)
    for session in body.session if isinstance(body.session, list) else [body.session]:
        if session is not None:
            _checked(check_string, session, "session", NAME)
    for when in body.times if isinstance(body.times, list) else [body.times]:
        _checked(check_time, when, "times")
    for metadata in body.metadata if isinstance(body.metadata, list) else [body.metadata]:
        if metadata is not None:
            _checked(check_metadata, metadata, settings.max_metadata)
    return texts


def _checked(check: Callable[..., None], *values: Any) -> None:
    try:
        check(*values)
    except ValueError as error:
        raise RefusedError(422, sentence(str(error))) from error


def _store_refused(error: StoreError) -> RefusedError:
    if type(error) in STORE_ERRORS:
        status, sentence = STORE_ERRORS[type(error)]
    elif isinstance(error, StoreFullError):
        status, sentence = 409, str(error).partition(".")[0]
    elif "erase()" in str(error):
        status, sentence = (
            409,
            "it is forgotten, but someone is reading the file; what it held there is overwritten later",
        )
    else:
        status, sentence = 409, "the store could not do this, and kept nothing of it; the service's log says more"
    logger.error("%s: %s", type(error).__name__, error)
    return RefusedError(status, sentence)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return JSONResponse({"error": error.sentence}, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {400: "the body is no JSON that can be read", 404: "there is nothing here", 405: "not by this method"}
    sentence = known.get(error.status_code, HTTPStatus(error.status_code).phrase.lower())
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _misshapen(request: Request, error: Exception) -> Response:
    """One sentence on the first thing that is wrong; it never repeats what was sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return JSONResponse({"error": "the body is no JSON that can be read"}, 400)
    place = [str(part) for part in first["loc"][1:]]
    if not place:
        return JSONResponse({"error": "the body must be a JSON object, with Content-Type: application/json"}, 422)
    # of a union, each branch has its say
    said = [each["msg"] for each in error.errors() if each["loc"][:2] == first["loc"][:2]]
    return JSONResponse({"error": sentence(f"{place[0]}: {', or '.join(dict.fromkeys(said))}")}, 422)
