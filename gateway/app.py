"""`create_app` puts the parts together; what is served where is in two tables."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from fetch.answers import Stop
from gateway import downloads, guard, logs, metrics, openapi, shapes, streams, webhooks, worker_api
from gateway.api import account, deployments, files, models, predictions, trainings
from gateway.api.call import Call
from gateway.jobs import Json
from gateway.problems import HANDLERS, Answer
from gateway.settings import Settings
from gateway.site import Site
from gateway.store import open_store
from gateway.waiting import Changed, Hub

API = (*predictions.CALLS, *trainings.CALLS, *models.CALLS, *deployments.CALLS, *files.CALLS, *account.CALLS)
TABLES: tuple[tuple[str, tuple[Call, ...]], ...] = (
    ("/v1", API),
    ("/v1/v1", API),  # Python's first client appends /v1 to its base URL, all others do not
    ("/_worker", worker_api.CALLS),
)
PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob: https: http:; media-src 'self' data: blob:; "
        b"object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]
SWEEP = 1.0  # seconds between two looks for leases and deadlines that have run out
CLEAN = 30.0  # seconds between two looks for what has expired

log = logging.getLogger("gateway")


def create_app(settings: Settings) -> Starlette:
    """The gateway. SettingsError, ValueError and OSError for settings that do not work; blocks for the database."""
    settings = settings.checked()
    site = Site(settings, open_store(settings.database), settings.blobs())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        site.hub = Hub()
        site.store.listen(site.hub.heard)
        stop = Stop()
        tasks = [asyncio.create_task(work) for work in (_sweep(site), _clean(site), _deliver(site, stop))]
        try:
            yield
        finally:
            stop.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await site.beside(site.store.close)

    middleware = [Middleware(metrics.Measured), Middleware(logs.Logged)]
    if settings.origins:
        all_ = ("*",)
        cors = Middleware(CORSMiddleware, allow_origins=settings.origins, allow_methods=all_, allow_headers=all_)
        middleware.insert(0, cors)
    return Starlette(routes=routes(site), middleware=middleware, exception_handlers=HANDLERS, lifespan=lifespan)


def routes(site: Site) -> list[BaseRoute]:
    """All that is served."""
    api = [_route(site, prefix, call) for prefix, calls in TABLES for call in calls]
    return [
        *api,
        *streams.routes(_look(site), _watch(site), site.key),
        *(Route(f"{prefix}/files/{{file_id}}/{{name:path}}", _download(site)) for prefix in ("/v1", "/v1/v1")),
        Route("/healthz", _healthy),
        Route("/readyz", _ready(site)),
        Route("/metrics", _metrics(site)),
        *(Route(f"{prefix}/openapi.json", _openapi(site)) for prefix in ("", "/v1")),
        Mount("/", Page(directory=PAGE, html=True, check_dir=False)),
    ]


def _route(site: Site, prefix: str, call: Call) -> Route:
    async def endpoint(request: Request) -> Response:
        return await call.respond(site, request)

    return Route(prefix + call.path, endpoint, methods=[call.method])


def _download(site: Site) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await site.beside(downloads.answer, site, request, request.path_params["file_id"])

    return endpoint


def _look(site: Site) -> streams.Look:
    """A job for its stream: the files of its output as URLs."""

    def shown(job_id: str) -> Json | None:
        job = site.store.get(job_id)
        return None if job is None else shapes.job(site, job)

    async def look(job_id: str) -> Json | None:
        return await site.beside(shown, job_id)

    return look


def _watch(site: Site) -> streams.Watch:
    def watch(job_id: str) -> AbstractContextManager[Changed]:
        return site.hub.watch(job_id)

    return watch


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok")


def _ready(site: Site) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_: Request) -> Response:
        await site.beside(site.store.list_models, limit=1)
        return PlainTextResponse("ready")

    return endpoint


def _metrics(site: Site) -> Callable[[Request], Awaitable[Response]]:
    """For any token: a machine that scrapes needs one, and numbers of queues are nobody else's business."""

    async def endpoint(request: Request) -> Response:
        if site.tokens.caller(request) is None:
            await site.beside(site.tokens.looked_up, request)
        return Response(await site.beside(metrics.text, site.store), media_type=metrics.CONTENT_TYPE)

    return endpoint


def _openapi(site: Site) -> Callable[[Request], Awaitable[Response]]:
    document = openapi.document(site.url, API)

    async def endpoint(_: Request) -> Response:
        return Answer(document)

    return endpoint


class Page(StaticFiles):
    """The page for people. It loads nothing from elsewhere but pictures, and nothing may frame it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One file; whatever else was asked for is not there."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *PAGE_HEADERS]
            await send(message)

        await super().__call__(scope, receive, guarded)


async def _sweep(site: Site) -> None:
    """Leases not for one lease after this or the database was away: who could not be heard of is not lost."""
    heard_from = time.monotonic()
    while True:
        await asyncio.sleep(SWEEP)
        leases = time.monotonic() - heard_from > site.settings.lease
        if not await _logged("leases and deadlines", site.beside(sweep, site, leases=leases)):
            heard_from = time.monotonic()


def sweep(site: Site, *, leases: bool) -> None:
    """End or queue again what has run out, and count it."""
    metrics.swept(site.store.sweep(time.time(), attempts=site.settings.attempts, leases=leases))


async def _clean(site: Site) -> None:
    while True:
        await _logged("what has expired", site.beside(expire, site))
        await asyncio.sleep(CLEAN)


def expire(site: Site) -> None:
    """Remove what is no longer kept; a file's row after its bytes, so that nothing is left behind."""
    while files_ := site.store.expire(time.time(), keep=site.settings.keep):
        for file in files_:
            site.blobs.delete(file.id)
            site.store.delete_file(file.id)


async def _logged(what: str, work: Awaitable[None]) -> bool:
    """Whether it went well. A database or bucket that is away for a while ends no loop."""
    try:
        await work
    except Exception:
        log.exception("%s could not be seen to; tried again soon", what)
        return False
    return True


async def _deliver(site: Site, stop: Stop) -> None:
    courier = webhooks.Courier(
        site.store, lambda job: shapes.job(site, job), site.webhook_key, guard.poster(site.settings.webhooks, stop)
    )
    with site.hub.watch("webhooks") as changed:
        await webhooks.deliver(courier, changed)
