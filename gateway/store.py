"""Where jobs live: one table is the record and the queue. SQLite by default, Postgres for several machines.

Every change of a job is one transaction. A worker's change counts only with the job's present fence, so that one which
was given up for dead and comes back changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gateway.jobs import Claimed, Delivery, File, Job, Json, Model, Version

Heard = Callable[[str], None]  # called with a job's id after each change of it, and with "queue" when there is work


class StaleError(Exception):
    """The fence is not the job's: it was canceled, ended, or given to another worker."""


class Store(Protocol):
    """All methods may be called from any thread; they block, so the gateway calls them beside its event loop."""

    def listen(self, heard: Heard) -> None:
        """From now on tell of changes, by whichever gateway on this database (Postgres: LISTEN/NOTIFY)."""

    # jobs
    def create(self, job: Job) -> Job:
        """Queue it. An id that exists is answered with the job that has it."""

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
        """The next job for a worker that serves these pools and base versions: the oldest with warm weights
        ("pool:weights_key") unless another has waited longer than LONGEST_WAIT or was passed over more than MOST_PASSED times; else the oldest."""

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
        in the same transaction; deliveries that its webhook asks for are queued in it too."""

    def renew(self, worker: str, held: Sequence[tuple[str, int]], now: float, lease: float) -> Sequence[str]:
        """Extend the leases of (job, fence) pairs; the ids that are no longer this worker's to do."""

    def hand_back(self, job_id: str, fence: int, now: float, *, error: str | None, attempts: int) -> Job:
        """A worker cannot end it: queued again, or failed with `error` after so many attempts; StaleError."""

    def cancel(self, job_id: str, now: float) -> Job | None:
        """Ended as canceled at once, whoever runs it; an ended one is unchanged."""

    def sweep(self, now: float, *, attempts: int) -> None:
        """Leases that ran out (queued again, or failed after `attempts`) and deadlines that passed (canceled)."""

    def expire(self, now: float, *, keep: float) -> Sequence[File]:
        """Jobs that ended more than `keep` seconds ago lose input, output, error, logs (data_removed); the files that
        have expired are removed and returned, for their bytes. Trained weights and what versions use stay."""

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

    def delete_model(self, full_name: str) -> None: ...

    def put_version(self, version: Version, *, latest: bool = True) -> None: ...

    def get_version(self, version_id: str) -> Version | None: ...

    def list_versions(self, full_name: str) -> Sequence[Version]: ...

    def delete_version(self, version_id: str) -> None: ...

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
        """For metrics: jobs by pool and status, age of the oldest queued one per pool, deliveries waiting."""
