"""What the gateway keeps: jobs, the versions that they run, files, and who may ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["prediction", "training"]
Status = Literal["starting", "processing", "succeeded", "failed", "canceled"]
ENDED: frozenset[str] = frozenset({"succeeded", "failed", "canceled"})
POOLS: dict[Kind, str] = {"prediction": "predict", "training": "train"}  # a coglet does one of the two


@dataclass(frozen=True)
class Job:
    """A prediction or training. Times are unix seconds; None where it has not come to that."""

    id: str  # 26 characters of a-z2-7
    kind: Kind
    owner: str  # the account whose token asked
    model: str  # owner/name
    version: str  # 64 hex digits
    input: Json
    created_at: float
    status: Status = "starting"
    output: Any = None
    error: str | None = None
    logs: str = ""
    metrics: Json = field(default_factory=dict)
    started_at: float | None = None
    completed_at: float | None = None
    deadline: float | None = None  # of Cancel-After
    weights_key: str = ""  # jobs with equal keys follow each other without a change of weights; "" is the plain model
    destination: str | None = None  # owner/name; trainings only
    webhook: str | None = None
    webhook_events: tuple[str, ...] = ()  # of start, output, logs, completed; empty: output and completed
    deployment: str | None = None
    data_removed: bool = False
    attempt: int = 0  # how often a worker has taken it
    fence: int = 0  # grows with every claim, hand-back and cancel: what carries an older one is late
    worker: str | None = None
    lease_until: float | None = None
    changed: int = 0  # grows with every change

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True)
class Model:
    """owner/name, and what is said of it."""

    owner: str
    name: str
    created_at: float
    description: str = ""
    visibility: str = "private"
    latest_version: str | None = None
    details: Json = field(default_factory=dict)  # github_url, cover_image_url, ... as the client gave them

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True)
class Version:
    """What a job runs: a base that workers serve, and inputs that it sets."""

    id: str  # 64 hex digits
    model: str  # owner/name
    created_at: float
    schema: Json  # OpenAPI document, as Cog's generator writes it; a training's is under the Training... names
    base: str  # id of the version that workers registered; its own for those
    overrides: Json = field(default_factory=dict)  # {"replicate_weights": "<url>"} for a trained one
    cog_version: str = ""
    training: str | None = None  # id of the job that made it


@dataclass(frozen=True)
class File:
    """An uploaded or produced file; its bytes are in the blobs under its id."""

    id: str  # >= 128 random bits; who has it may read it
    owner: str
    name: str
    content_type: str
    size: int
    sha256: str
    md5: str
    created_at: float
    expires_at: float | None  # None: never, as trained weights
    metadata: Json = field(default_factory=dict)
    job: str | None = None  # the job that made it


@dataclass(frozen=True)
class Delivery:
    """A webhook call that is due."""

    id: str  # msg_..., the same in every try
    job: str
    event: str  # start, output, logs, completed
    url: str
    due_at: float
    tries: int = 0


@dataclass(frozen=True)
class Claimed:
    """What a worker gets to do."""

    job: Job
    version: Version
    lease: float  # seconds until it must be heard of again
