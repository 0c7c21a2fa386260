"""Where jobs live: one table is the record and the queue. SQLite by default, Postgres for several machines.

Every change of a job is one transaction. A worker's change counts only with the job's present fence, so that one which
was given up for dead and comes back changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gateway.jobs import Claimed, Delivery, File, Job, Json, Model, Version

# Called with a job's id after each change of it, "queue" when there is work, "webhooks" when there is a delivery, and
# "*" when news may have been missed, so that whoever waits looks again. From any thread: it must not block.
Heard = Callable[[str], None]


class StaleError(Exception):
    """The fence is not the job's: it was canceled, ended, or given to another worker."""


class NoVersionError(Exception):
    """There is no version of this id, so that no job can run it."""


class UnavailableError(Exception):
    """The database did not answer for a while; nothing was changed, or all of it was."""


class Store(Protocol):
    """All methods may be called from any thread; they block, so the gateway calls them beside its event loop."""

    def listen(self, heard: Heard) -> None:
        """From now on tell of changes, by whichever gateway on this database (Postgres: LISTEN/NOTIFY)."""

    def close(self) -> None:
        """Ends its connections and threads; it is not used afterwards."""

    # jobs
    def create(self, job: Job) -> Job:
        """Queue it. An id that exists is answered with the job that has it. NoVersionError."""

    def get(self, job_id: str) -> Job | None: ...

    def list(
        self,
        kind: str,
        owner: str,
        *,
        before: tuple[float, str] | None = None,
        created_after: float | None = None,
        created_before: float | None = None,
        limit: int = 100,
    ) -> Sequence[Job]:
        """Newest first, from (created_at, id) on, exclusive."""

    def queued(self, owner: str) -> int:
        """How many jobs of an account have not ended."""

    def claim(
        self, worker: str, pools: Sequence[str], bases: Sequence[str], warm: Sequence[str], now: float, lease: float
    ) -> Claimed | None:
        """The next job for a worker that serves these pools and base versions and holds these weights
        ("pool:weights_key"), by gateway.policy: jobs for the same weights follow each other, and nobody starves."""

    def report(
        self,
        job_id: str,
        fence: int,
        now: float,
        *,
        status: str | None = None,
        output: Any = None,
        error: str | None = None,
        logs: str | None = None,
        metrics: Json | None = None,
    ) -> Job:
        """A worker's news; StaleError. A terminal status ends the job and, for a successful training, makes its version
        in the same transaction; deliveries that its webhook asks for are queued in it too. Said again, it is one."""

    def renew(self, worker: str, held: Sequence[tuple[str, int]], now: float, lease: float) -> Sequence[str]:
        """Extend the leases of (job, fence) pairs; the ids that are no longer this worker's to do."""

    def hand_back(self, job_id: str, fence: int, now: float, *, error: str | None, attempts: int) -> Job:
        """A worker cannot end it: queued again, or failed with `error` after so many attempts; without an error (the
        worker stops) the attempt does not count; StaleError."""

    def cancel(self, job_id: str, now: float) -> Job | None:
        """Ended as canceled at once, whoever runs it; an ended one is unchanged."""

    def sweep(self, now: float, *, attempts: int, leases: bool = True) -> Sequence[Job]:
        """Deadlines that passed (canceled) and, if `leases`, leases that ran out (queued again, or failed after so many
        attempts): the jobs as they are now."""

    def expire(self, now: float, *, keep: float) -> Sequence[File]:
        """Jobs that ended more than `keep` seconds ago lose input, output, error, logs (data_removed). Returned: files
        that have expired. Remove the bytes, then `delete_file`: so none are left behind if it stops in between.
        What versions use never expires, trained weights for one. At most 500 of each; empty when all is done."""

    # webhooks
    def due(self, now: float, limit: int = 32) -> Sequence[Delivery]:
        """Those due, taken for a minute: no two gateways deliver the same one at once."""

    def delivered(self, delivery_id: str) -> None: ...

    def postpone(self, delivery_id: str, due_at: float | None) -> None:
        """Try again then; None: never."""

    # models, versions, deployments
    def put_model(self, model: Model) -> None: ...

    def get_model(self, full_name: str) -> Model | None: ...

    def list_models(self, *, before: tuple[float, str] | None = None, limit: int = 100) -> Sequence[Model]: ...

    def delete_model(self, full_name: str) -> None:
        """And its versions; jobs of these that have not ended fail."""

    def put_version(self, version: Version, *, latest: bool = True) -> None: ...

    def get_version(self, version_id: str) -> Version | None: ...

    def list_versions(self, full_name: str) -> Sequence[Version]: ...

    def delete_version(self, version_id: str) -> None:
        """Jobs of it that have not ended fail. The newest that is left becomes the model's latest."""

    def put_deployment(self, full_name: str, details: Json | None) -> None:
        """None removes it."""

    def get_deployment(self, full_name: str) -> Json | None: ...

    def list_deployments(self) -> Sequence[Json]: ...

    # files
    def put_file(self, file: File) -> None: ...

    def get_file(self, file_id: str) -> File | None: ...

    def list_files(self, owner: str, limit: int = 100) -> Sequence[File]: ...

    def delete_file(self, file_id: str) -> None: ...

    # tokens, secrets, workers
    def put_token(self, digest: str, owner: str, scope: str) -> None:
        """scope: api or worker. digest: sha256 of the token, in hex; tokens themselves are not kept."""

    def find_token(self, digest: str) -> tuple[str, str] | None:
        """(owner, scope)"""

    def secret(self, name: str, make: Callable[[], str]) -> str:
        """A value that is made once and then the same for all gateways, the webhook signing key for one."""

    def seen(self, worker: str, now: float, details: Json) -> None:
        """A worker's heartbeat: what it serves, what is warm, how often its coglet was restarted."""

    def workers(self, since: float) -> Sequence[Json]: ...

    def counts(self) -> Json:
        """For metrics: {"jobs": {pool: {"queued" | "starting" | "processing": how many}}, "oldest": {pool: seconds that
        the oldest queued job has waited}, "deliveries": how many are due or waiting}. Ended jobs are not counted: they
        are as many as there ever were."""


def open_store(url: str) -> Store:
    """sqlite:///relative/path, sqlite:////absolute/path, with ?synchronous=full where a power cut may lose nothing that
    was acknowledged; or postgresql://... as libpq has it. ValueError for another."""
    scheme = url.partition(":")[0]
    if scheme == "sqlite" and url.startswith("sqlite:///"):
        from gateway.sqlite import SQLite

        path, _, options = url.removeprefix("sqlite:///").partition("?")
        if path and options in SYNCHRONOUS:
            return SQLite(path, synchronous=SYNCHRONOUS[options])
    if scheme in {"postgresql", "postgres"}:
        from gateway.postgres import Postgres  # only who has Postgres needs its client

        return Postgres(url)
    raise ValueError(f"{hidden(url)!r} is no database: give sqlite:///path or postgresql://user:password@host/name")


SYNCHRONOUS = {"": "normal", "synchronous=normal": "normal", "synchronous=full": "full"}


def hidden(url: str) -> str:
    """Without the password."""
    return re.sub(r"(//[^:/@]*:)[^@]*@", r"\1...@", url)
