"""Records of fine-tuning jobs and their events, as JSON of closed models."""

from __future__ import annotations

import re
import secrets
from typing import Any, Literal

import bmt_core
from pydantic import Field, ValidationError

from bmt_server.registry.jobs.methods import Method, shown
from bmt_server.registry.leased.record import Closed, WorkRecord

#: queued -> running -> succeeded, failed; paused and cancelled from both of the first.
JobState = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
ENDED: tuple[JobState, ...] = ("succeeded", "failed", "cancelled")
Level = Literal["info", "warn", "error"]
JOB_ID = re.compile(r"ftjob-[0-9a-f]{24}")
#: Prefix of the names of masks that jobs make.
MODEL_PREFIX = "ft-"
MAX_SUFFIX_CHARACTERS = 64
_SHOWN_ID = 8


class JobError(Closed):
    """The reason of a failure, for the tenant."""

    code: str = Field(max_length=64)
    message: str = Field(max_length=2048)
    param: str | None = Field(default=None, max_length=64)


class Checkpoint(Closed):
    """The mask of a step. metrics: of that step; digest, file_digest: of the mask."""

    step: int = Field(ge=1, lt=2**31)
    created_at: int
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    file_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    metrics: dict[str, float | int]

    @property
    def alias(self) -> str:
        """The alias of the job's name that is this checkpoint."""
        return f"ckpt-step-{self.step}"


class Job(WorkRecord):
    """One job of a tenant.

    fine_tuned_model: name of the mask that it
    makes. checkpoints: the newest, in the order of their steps. leases: how many it had; fault:
    the reason of the last one that was lost or given back; step: the last step with metrics, which
    are in `metrics`; steps: of all. events: their number. digest: of the mask. result_file: the
    file of all steps' metrics.
    """

    id: str = Field(pattern=r"^ftjob-[0-9a-f]{24}$")
    key_id: str = Field(max_length=64)
    model: str = Field(max_length=1024)
    training_file: str = Field(pattern=r"^file-[0-9a-f]{24}$")
    validation_file: str | None = Field(default=None, pattern=r"^file-[0-9a-f]{24}$")
    method: Method
    seed: int = Field(ge=0, lt=2**32)
    suffix: str | None = Field(default=None, max_length=MAX_SUFFIX_CHARACTERS)
    fine_tuned_model: str = Field(max_length=128)
    metadata: dict[str, str] | None = None
    state: JobState = "queued"
    started_at: int | None = None
    finished_at: int | None = None
    leases: int = 0
    fault: str | None = Field(default=None, max_length=2048)
    step: int = 0
    metrics: dict[str, float | int] = Field(default={})
    steps: int | None = None
    events: int = 0
    error: JobError | None = None
    digest: str | None = None
    trained_tokens: int | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    result_file: str | None = Field(default=None, pattern=r"^file-[0-9a-f]{24}$")

    @property
    def waits(self) -> bool:
        return self.state == "queued"

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def extended(self, items: int) -> Job:
        return self.model_copy(update={"events": self.events + items})

    def shown(self) -> dict[str, Any]:
        """OpenAI's job object."""
        method = shown(self.method)
        return {
            "id": self.id,
            "object": "fine_tuning.job",
            "created_at": self.created_at,
            "finished_at": self.finished_at,
            "model": self.model,
            "fine_tuned_model": self.fine_tuned_model if self.state == "succeeded" else None,
            "organization_id": self.tenant,
            "status": self.state,
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "result_files": [] if self.result_file is None else [self.result_file],
            "hyperparameters": method[self.method.type]["hyperparameters"],
            "method": method,
            "seed": self.seed,
            "trained_tokens": self.trained_tokens,
            "error": self.error.model_dump() if self.error is not None else None,
            "estimated_finish": None,
            "integrations": [],
            "metadata": self.metadata,
        }

    def for_worker(self) -> dict[str, Any]:
        """The part of the job that a worker needs, and its lease's token."""
        assert self.lease is not None
        return {
            "id": self.id,
            "base": self.base,
            "method": self.method.model_dump(mode="json"),
            "seed": self.seed,
            "model": self.fine_tuned_model,
            "step": self.step,
            "token": self.lease.token,
            "validation": self.validation_file is not None,
            "checkpoints": [one.step for one in self.checkpoints],
            "results": self.result_file is not None,
        }


class JobEvent(Closed):
    """One event; its place in the job's list is its id."""

    created_at: int
    message: str = Field(max_length=2048)
    level: Level = "info"
    type: Literal["message", "metrics"] = "message"
    data: dict[str, float | int | str | None] | None = None

    def shown(self, job_id: str, number: int) -> dict[str, Any]:
        """OpenAI's event object."""
        return {
            "id": f"ftevent-{job_id.removeprefix('ftjob-')}-{number}",
            "object": "fine_tuning.job.event",
            "created_at": self.created_at,
            "level": self.level,
            "message": self.message,
            "type": self.type,
            "data": self.data or {},
        }


def new_job_id() -> str:
    """A random id."""
    return f"ftjob-{secrets.token_hex(12)}"


def model_name(job_id: str, suffix: str | None) -> str:
    """The name of the mask that a job makes. Raises bmt_core.InvalidName for a suffix."""
    middle = f"{suffix}-" if suffix else ""
    end = job_id.removeprefix("ftjob-")[:_SHOWN_ID]
    return bmt_core.validate_name(f"{MODEL_PREFIX}{middle}{end}")


def read_job(data: bytes | None) -> Job | None:
    """Parse a record; None for one that is missing, forged or of another version."""
    if data is None:
        return None
    try:
        return Job.model_validate_json(data)
    except ValidationError:
        return None


def read_event(data: bytes) -> JobEvent | None:
    """Parse an event; None for one that cannot be read."""
    try:
        return JobEvent.model_validate_json(data)
    except ValidationError:
        return None
