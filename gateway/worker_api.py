"""What agents call: docs/gateway.md has the protocol. All of it takes a token for workers."""

from __future__ import annotations

import time
from typing import Any

from anyio import to_thread
from starlette.responses import Response

from gateway import metrics, shapes
from gateway.api.call import Asked, Call
from gateway.api.files import media_type, safe_name
from gateway.api.jobs import ID
from gateway.checks import COMPONENTS
from gateway.downloads import answer as download
from gateway.ids import derived_id, version_id
from gateway.jobs import ENDED, POOLS, Claimed, File, Job, Json, Model, Version
from gateway.problems import Answer, Problem, invalid
from gateway.records import OWN_FILE
from gateway.settings import NAME
from gateway.store import StaleError

LONGEST_WAIT = 30.0  # seconds
STEP = 2.0  # seconds after which a waiting claim looks again without being told
STALE = Problem(410, "The job is not this worker's any more; drop it.")
DONE: Json = {}


def _register(asked: Asked) -> Response:
    """A version's id follows from the model and its schema: the same package is the same version on every machine."""
    body, store = asked.body, asked.site.store
    owner, _, name = body["model"].partition("/")
    if not (NAME.fullmatch(owner) and NAME.fullmatch(name)):
        raise invalid(f"- model: {body['model'][:80]!r} is no owner/name in small letters")
    documents = {pool: document for pool, document in body["schema"].items() if document}
    if not documents:
        raise invalid("- schema: needs the document of a pool")
    now, base = time.time(), version_id({**body["schema"], "model": body["model"]})
    if store.get_model(body["model"]) is None:
        store.put_model(Model(owner, name, now, visibility="public"))
    known = store.get_version(base)
    made_at = known.created_at if known else now
    version = Version(base, body["model"], made_at, _joined(documents), base, cog_version=body.get("cog_version") or "")
    store.put_version(version)
    asked.site.learn(version)
    store.seen(body["worker"], now, {name: body.get(name) for name in ("model", "hardware", "pools")})
    return Answer({"base": base, "url": asked.site.url})


def _joined(documents: Json) -> Json:
    """One document: that of predictions, with the components of trainings."""
    first = documents.get("predict") or documents["train"]
    components = {**first.get("components", {})}
    components["schemas"] = {
        name: schema
        for document in documents.values()
        for name, schema in ((document.get("components") or {}).get("schemas") or {}).items()
    }
    for pool, kind in ((pool, kind) for kind, pool in POOLS.items()):
        if pool not in documents:
            components["schemas"].pop(COMPONENTS[kind], None)
    return {**first, "components": components}


async def _claim(asked: Asked) -> Response:
    """The next job, waited for; 204 without."""
    site, body = asked.site, asked.body
    until = asked.at + min(body.get("wait") or 0, LONGEST_WAIT)
    with site.hub.watch("queue") as changed:
        while not await asked.request.is_disconnected():  # a job for nobody would wait for its lease to end
            claimed = await site.beside(_next, asked)
            if claimed is not None:
                metrics.claimed(claimed, frozenset(body.get("warm") or ()))
                return Answer(await site.beside(_task, asked, claimed))
            if (left := until - time.monotonic()) <= 0:
                break
            await changed(min(left, STEP))
    return Response(status_code=204)


def _next(asked: Asked) -> Claimed | None:
    body, settings = asked.body, asked.site.settings
    return asked.site.store.claim(
        body["worker"], body["pools"], [body["base"]], body.get("warm") or (), time.time(), settings.lease
    )


def _task(asked: Asked, claimed: Claimed) -> Json:
    """The job with what its version sets; a training takes what it has an input for."""
    job, version = claimed.job, claimed.version
    known = asked.site.version(version.id) or asked.site.learn(version)
    checker = known.checkers[job.kind]
    properties = checker.properties if checker else {}
    overrides = {name: _here(asked, value) for name, value in version.overrides.items() if name in properties}
    return {
        "id": job.id,
        "kind": job.kind,
        "fence": job.fence,
        "attempt": job.attempt,
        "input": shapes.with_secrets(job.input) | overrides,
        "model": job.model,
        "version": job.version,
        "weights_key": job.weights_key,
        "deadline": job.deadline,
        "lease": claimed.lease,
        "destination": job.destination,
    }


def _here(asked: Asked, value: Any) -> Any:
    """The address of a file of ours as it is now: weights outlive the port that the gateway had when they were made."""
    match = OWN_FILE.search(value) if isinstance(value, str) else None
    file = asked.site.store.get_file(match[1]) if match else None
    return value if file is None else shapes.file_url(asked.site, file)


def _report(asked: Asked) -> Response:
    body, now = asked.body, time.time()
    news = {name: body.get(name) for name in ("status", "output", "error", "logs", "metrics")}
    try:
        job = asked.site.store.report(_id(asked), body["fence"], now, **news)
    except StaleError:
        raise STALE from None
    if job.completed_at == now:
        metrics.ended(job)
    return Answer(DONE)


def _hand_back(asked: Asked) -> Response:
    body, now, attempts = asked.body, time.time(), asked.site.settings.attempts
    try:
        job = asked.site.store.hand_back(_id(asked), body["fence"], now, error=body.get("error"), attempts=attempts)
    except StaleError:
        raise STALE from None
    if job.completed_at == now:
        metrics.ended(job)
    return Answer(DONE)


async def _heartbeat(asked: Asked) -> Response:
    """Renews what is held; answered early when some of it is not this worker's any more."""
    site, body = asked.site, asked.body
    held = [(job_id, fence) for job_id, fence in body.get("held") or ()]
    until = asked.at + min(body.get("wait") or 0, LONGEST_WAIT)
    await site.beside(site.store.seen, body["worker"], time.time(), body.get("details") or {})
    return Answer({"drop": await _renewed(asked, held, until) if held else []})


async def _renewed(asked: Asked, held: list[tuple[str, int]], until: float) -> list[str]:
    site = asked.site
    with site.hub.watch(held[0][0]) as changed:  # one lane of an agent holds one job
        while True:
            drop = await site.beside(site.store.renew, asked.body["worker"], held, time.time(), site.settings.lease)
            left = until - time.monotonic()
            if drop or left <= 0 or await asked.request.is_disconnected():
                return list(drop)
            await changed(left if len(held) == 1 else min(left, STEP))


async def _put_file(asked: Asked) -> Response:
    """Sent again by the same worker for the same job, it is the same file."""
    site, query = asked.site, asked.query
    number, fence = _number(asked.path["number"]), _number(query.get("fence", ""))
    job = await site.beside(_held, asked, fence)
    name, kind = safe_name(query.get("name", "")), media_type(asked.headers.get("content-type", ""))
    file_id = derived_id(site.key, "output", job.id, fence, number)
    writer = await to_thread.run_sync(site.blobs.writer, file_id)
    try:
        async for chunk in asked.request.stream():
            await to_thread.run_sync(writer.write, chunk)
    except BaseException as error:
        writer.__exit__(type(error), error, error.__traceback__)
        raise
    await to_thread.run_sync(writer.__exit__, None, None, None)  # to a bucket this takes long
    now = time.time()
    # What a version uses never expires: the store sees to it when a training succeeds.
    file = File(
        file_id, job.owner, name, kind, writer.size, writer.sha256, writer.md5, now, now + site.settings.keep,
        job=job.id,
    )  # fmt: skip
    await site.beside(_recorded, asked, file)
    return Answer({"url": shapes.file_url(site, file)})


def _recorded(asked: Asked, file: File) -> None:
    kept = asked.site.store.get_file(file.id)
    if kept is None or kept.expires_at is not None:
        asked.site.store.put_file(file)


def _held(asked: Asked, fence: int) -> Job:
    job = asked.site.store.get(_id(asked))
    if job is None or job.fence != fence:
        raise STALE
    return job


def _id(asked: Asked) -> str:
    if not ID.fullmatch(asked.path["job_id"]):
        raise STALE
    return asked.path["job_id"]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise invalid(f"- {text[:20]!r} is no number")
    return int(text)


def _file(asked: Asked) -> Response:
    return download(asked.site, asked.request, asked.path["file_id"])


TEXT: Json = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[ -~]+$"}  # a database takes no NUL
TEXTS: Json = {"type": "array", "items": TEXT, "maxItems": 100}
WAIT: Json = {"type": "number", "minimum": 0}
FENCE: Json = {"type": "integer", "minimum": 0, "maximum": 2**62}
DOCUMENT: Json = {"type": "object", "nullable": True, "properties": {"components": {"type": "object"}}}
ANY: Json = {"type": "object"}


def _body(required: list[str], **properties: Any) -> Json:
    return {"type": "object", "properties": properties, "required": required}


REGISTER = _body(
    ["worker", "model", "schema"],
    worker=TEXT, model=TEXT, pools=TEXTS,
    schema={"type": "object", "properties": dict.fromkeys(POOLS.values(), DOCUMENT), "additionalProperties": False},
    hardware={**TEXT, "nullable": True}, cog_version={**TEXT, "nullable": True},
)  # fmt: skip
CLAIM = _body(
    ["worker", "base", "pools"],
    worker=TEXT, base=TEXT, pools={**TEXTS, "items": {"enum": list(POOLS.values())}}, warm=TEXTS, wait=WAIT,
)  # fmt: skip
REPORT = _body(
    ["fence"],
    fence=FENCE, status={"type": "string", "enum": ["starting", "processing", *sorted(ENDED)], "nullable": True},
    error={"type": "string", "nullable": True}, logs={"type": "string", "nullable": True},
    metrics={**ANY, "nullable": True},
)  # fmt: skip
HAND_BACK = _body(["fence"], fence=FENCE, error={"type": "string", "nullable": True})
PAIR: Json = {"type": "array", "prefixItems": [TEXT, FENCE], "minItems": 2, "maxItems": 2}
HEARTBEAT = _body(
    ["worker"], worker=TEXT, held={"type": "array", "items": PAIR, "maxItems": 1000}, wait=WAIT, details=ANY
)

CALLS = (
    Call("POST", "/register", "Offer a package", _register, body=REGISTER, scope="worker"),
    Call("POST", "/claim", "Take the next job", awaits=_claim, body=CLAIM, scope="worker"),
    Call("POST", "/jobs/{job_id}/report", "Tell how a job goes", _report, body=REPORT, scope="worker"),
    Call("POST", "/jobs/{job_id}/hand-back", "Give a job up", _hand_back, body=HAND_BACK, scope="worker"),
    Call("POST", "/heartbeat", "Keep what is held", awaits=_heartbeat, body=HEARTBEAT, scope="worker"),
    Call("PUT", "/jobs/{job_id}/files/{number}", "Hand over a file", awaits=_put_file, scope="worker"),
    Call("GET", "/files/{file_id}", "Get a file", _file, scope="worker"),
)
