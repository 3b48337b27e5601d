"""Fine-tuning jobs, `client.jobs`: routes, flows and models.

A request that makes a job is sent once: if its answer is lost, the job may exist, and is in
`list()` then.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from .._errors import UsageError
from .._models import Model, _require_text
from .._retry import RetryPolicy, exchange
from .._transport import Flow, Request, parse_json
from .pages import pages

_JOBS = "/v1/fine_tuning/jobs"
_PAGE = 100
#: States in which a job does not change any more.
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class JobInfo(Model):
    """A fine-tuning job."""

    id: str
    status: str = ""  # queued, running, paused, succeeded, failed or cancelled
    model: str = ""  # the base
    fine_tuned_model: str | None = None  # the mask's name, once the job has succeeded
    training_file: str = ""
    created_at: int = 0  # seconds since 1970
    finished_at: int | None = None
    seed: int = 0
    trained_tokens: int | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)  # code and message of a failed job

    def __post_init__(self) -> None:
        _require_text(self, "id")

    @property
    def ended(self) -> bool:
        """True if it does not change any more."""
        return self.status in ENDED

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class JobEvent(Model):
    """An event of a job; `data` has a step's metrics."""

    id: str
    created_at: int = 0  # seconds since 1970
    level: str = "info"
    message: str = ""
    type: str = "message"  # or metrics
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_text(self, "id")

    __hash__ = None  # type: ignore[assignment]


def _create(policy: RetryPolicy, body: Mapping[str, Any]) -> Flow[JobInfo]:
    sent = json.dumps({name: value for name, value in body.items() if value is not None})
    headers = {"Content-Type": "application/json"}
    request = Request("POST", _JOBS, headers=headers, body=sent.encode(), retry=False)
    response = yield from exchange(request, policy)
    return JobInfo.from_json(parse_json(response))


def _get(policy: RetryPolicy, job_id: str) -> Flow[JobInfo]:
    response = yield from exchange(Request("GET", _path(job_id)), policy)
    return JobInfo.from_json(parse_json(response))


def _ask(policy: RetryPolicy, job_id: str, what: str) -> Flow[JobInfo]:
    # Asked twice, it changes nothing: a lost answer is asked for again.
    response = yield from exchange(Request("POST", f"{_path(job_id)}/{what}"), policy)
    return JobInfo.from_json(parse_json(response))


def _events(policy: RetryPolicy, job_id: str, limit: int | None) -> Flow[tuple[JobEvent, ...]]:
    return (yield from pages(policy, f"{_path(job_id)}/events", JobEvent, limit, _PAGE))


def _path(job_id: str) -> str:
    if not job_id:
        raise UsageError("the id of the job is empty")
    return f"{_JOBS}/{quote(job_id, safe='')}"


def _body(
    training_file: str,
    model: str,
    method: str,
    hyperparameters: Mapping[str, Any] | None,
    suffix: str | None,
    seed: int | None,
    metadata: Mapping[str, str] | None,
    grader: Mapping[str, Any] | None,
    validation_file: str | None,
) -> dict[str, Any]:
    settings: dict[str, Any] = {"hyperparameters": dict(hyperparameters or {})}
    if grader is not None:
        settings["grader"] = grader
    return {
        "model": model,
        "training_file": training_file,
        "validation_file": validation_file,
        "method": {"type": method, method: settings},
        "suffix": suffix,
        "seed": seed,
        "metadata": metadata,
    }


class Jobs:
    """Fine-tuning jobs of the key's tenant."""

    def __init__(self, run: Callable[[Flow[Any]], Any], policy: RetryPolicy) -> None:
        self._run = run
        self._policy = policy

    def create(
        self,
        training_file: str,
        model: str,
        *,
        method: str = "supervised",
        hyperparameters: Mapping[str, Any] | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
        grader: Mapping[str, Any] | None = None,
        validation_file: str | None = None,
    ) -> JobInfo:
        """Start a job.

        Parameters
        ----------
        training_file : id of a file
        model : name of the server's base
        method : supervised, dpo or reinforcement
        hyperparameters : by name; those that are left out are "auto"
        suffix : part of the mask's name, `ft-<suffix>-…`
        seed : default a random one, which the job shows
        grader : of reinforcement, in OpenAI's form
        validation_file : id of a file of the same form
        """
        body = _body(
            *(training_file, model, method, hyperparameters, suffix, seed, metadata),
            *(grader, validation_file),
        )
        made: JobInfo = self._run(_create(self._policy, body))
        return made

    def list(self, *, limit: int | None = None) -> tuple[JobInfo, ...]:
        """Return the jobs, newest first; all, or `limit` of them."""
        found: tuple[JobInfo, ...] = self._run(pages(self._policy, _JOBS, JobInfo, limit, _PAGE))
        return found

    def get(self, job_id: str) -> JobInfo:
        """Return one job."""
        found: JobInfo = self._run(_get(self._policy, job_id))
        return found

    def events(self, job_id: str, *, limit: int | None = None) -> tuple[JobEvent, ...]:
        """Return a job's events, newest first; all, or `limit` of them."""
        found: tuple[JobEvent, ...] = self._run(_events(self._policy, job_id, limit))
        return found

    def cancel(self, job_id: str) -> JobInfo:
        """Cancel a job; `Conflict` for one that has ended otherwise."""
        found: JobInfo = self._run(_ask(self._policy, job_id, "cancel"))
        return found

    def pause(self, job_id: str) -> JobInfo:
        """Pause a job."""
        found: JobInfo = self._run(_ask(self._policy, job_id, "pause"))
        return found

    def resume(self, job_id: str) -> JobInfo:
        """Let a paused job go on."""
        found: JobInfo = self._run(_ask(self._policy, job_id, "resume"))
        return found


class AsyncJobs:
    """Asyncio twin of `Jobs`."""

    def __init__(self, run: Callable[[Flow[Any]], Awaitable[Any]], policy: RetryPolicy) -> None:
        self._run = run
        self._policy = policy

    async def create(
        self,
        training_file: str,
        model: str,
        *,
        method: str = "supervised",
        hyperparameters: Mapping[str, Any] | None = None,
        suffix: str | None = None,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
        grader: Mapping[str, Any] | None = None,
        validation_file: str | None = None,
    ) -> JobInfo:
        """Start a job; see `Jobs.create`."""
        body = _body(
            *(training_file, model, method, hyperparameters, suffix, seed, metadata),
            *(grader, validation_file),
        )
        made: JobInfo = await self._run(_create(self._policy, body))
        return made

    async def list(self, *, limit: int | None = None) -> tuple[JobInfo, ...]:
        """Return the jobs; see `Jobs.list`."""
        found: tuple[JobInfo, ...] = await self._run(
            pages(self._policy, _JOBS, JobInfo, limit, _PAGE)
        )
        return found

    async def get(self, job_id: str) -> JobInfo:
        """Return one job."""
        found: JobInfo = await self._run(_get(self._policy, job_id))
        return found

    async def events(self, job_id: str, *, limit: int | None = None) -> tuple[JobEvent, ...]:
        """Return a job's events; see `Jobs.events`."""
        found: tuple[JobEvent, ...] = await self._run(_events(self._policy, job_id, limit))
        return found

    async def cancel(self, job_id: str) -> JobInfo:
        """Cancel a job; see `Jobs.cancel`."""
        found: JobInfo = await self._run(_ask(self._policy, job_id, "cancel"))
        return found

    async def pause(self, job_id: str) -> JobInfo:
        """Pause a job."""
        found: JobInfo = await self._run(_ask(self._policy, job_id, "pause"))
        return found

    async def resume(self, job_id: str) -> JobInfo:
        """Let a paused job go on."""
        found: JobInfo = await self._run(_ask(self._policy, job_id, "resume"))
        return found
