"""A worker's requests to its server, by the routes `/v1/workers/…`."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import openai
from bmt_client import BmtClient, BmtClientError

from bmt_trainer.errors import ConfigError, TrainerError
from bmt_trainer.jobs.job import TrainingJob

# Seconds for one request; uploads and downloads of files take longer.
_TIMEOUT_S, _TRANSFER_S = 30.0, 900.0
_RETRIES = 2
_PIECE_BYTES = 1 << 18
_NO_ROOM = 507


class Unreachable(TrainerError):
    """A server that does not answer now; the same request may succeed later."""


class NoRoom(Unreachable):
    """A registry or a disk that is full: the same request succeeds once there is room."""


class LeaseLost(TrainerError):
    """A job that is another worker's by now, or was paused, cancelled or removed."""


class TooLarge(TrainerError):
    """A training file beyond what this worker takes; another may have more room."""


class Refused(TrainerError):
    """A request that the server refuses for good, about the job or its mask."""


class Connection:
    """Requests of one worker. lease_s: seconds that a lease holds without a word.

    Methods raise Unreachable, NoRoom among them, LeaseLost and Refused. Raises ConfigError for a
    URL or a key that cannot be used.
    """

    def __init__(self, url: str, name: str, lease_s: int) -> None:
        try:
            client = BmtClient(url, max_retries=_RETRIES)
            self._api = client.openai(timeout=_TIMEOUT_S)
        except BmtClientError as error:
            raise ConfigError(f"server: {error}") from None
        self.url, self._name, self._lease_s = client.base_url, name, lease_s

    def lease(self, base: str) -> TrainingJob | None:
        """The next job for the weights with this fingerprint; None if none waits."""
        body = {"base": base, "worker": self._name, "lease_seconds": self._lease_s}
        answer = self._send("post", "/workers/lease", body=body)
        if answer.status_code == 204:
            return None
        found = self._json(answer)
        try:
            return TrainingJob.parse(found)
        except ConfigError as error:
            self._give_back(found, str(error))
            raise Unreachable(str(error)) from None

    def report(
        self,
        job: TrainingJob,
        metrics: Sequence[Mapping[str, float | int]] = (),
        *,
        steps: int | None = None,
        said: str = "",
    ) -> None:
        """Prolong the lease, with metrics of steps. said: an event of the job, a warning."""
        body = {"token": job.token, "lease_seconds": self._lease_s, "metrics": [*metrics]}
        if said:
            body["messages"] = [{"level": "warn", "message": said[:2000]}]
        if steps is not None:
            body["steps"] = steps
        self._send("post", f"/workers/jobs/{job.id}/report", body=body)

    def training_file(self, job: TrainingJob, of: str = "training") -> Iterator[bytes]:
        """The bytes of the job's file, or of its `validation` file, in pieces as they arrive."""
        path = f"/workers/jobs/{job.id}/file?of={of}"
        answer = self._send("get", path, token=job.token, stream=True)
        try:
            yield from answer.iter_bytes(_PIECE_BYTES)
        except httpx2.HTTPError as error:
            raise Unreachable(f"{self.url} cut the {of} file off ({error})") from None
        finally:
            answer.close()

    def checkpoint(
        self, job: TrainingJob, step: int, mask: bytes, metrics: Mapping[str, float | int]
    ) -> None:
        """Publish the mask of a step."""
        given = quote(json.dumps(metrics))
        self._send(
            "put",
            f"/workers/jobs/{job.id}/checkpoints/{step}?metrics={given}",
            content=mask,
            token=job.token,
            timeout=_TRANSFER_S,
        )

    def results(self, job: TrainingJob, data: bytes) -> None:
        """Keep the metrics of all steps, CSV, as a file of the job's tenant."""
        path = f"/workers/jobs/{job.id}/results"
        self._send("put", path, content=data, token=job.token, timeout=_TRANSFER_S)

    def publish(self, job: TrainingJob, mask: Path, trained_tokens: int | None) -> str:
        """Upload the mask and end the job; the mask's name."""
        counted = "" if trained_tokens is None else f"?trained_tokens={trained_tokens}"
        answer = self._send(
            "put",
            f"/workers/jobs/{job.id}/mask{counted}",
            content=mask.read_bytes(),
            token=job.token,
            timeout=_TRANSFER_S,
        )
        return str(self._json(answer).get("model", job.model))

    def end(self, job: TrainingJob, outcome: str, reason: str, code: str) -> None:
        """End a job as `failed`, for the reason of `code`, or give it back as `crashed` or
        `released`."""
        self._end(job.id, job.token, outcome, reason, code)

    def _end(self, job_id: str, token: str, outcome: str, reason: str, code: str) -> None:
        body = {"token": token, "outcome": outcome, "reason": reason[:2000] or outcome}
        self._send("post", f"/workers/jobs/{job_id}/end", body={**body, "code": code})

    def _give_back(self, found: Mapping[str, Any], reason: str) -> None:
        """Give back a job of another version's form: another worker may know it."""
        job_id, token = str(found.get("id")), str(found.get("token"))
        if re.fullmatch(r"ftjob-[0-9a-f]{24}", job_id):
            with contextlib.suppress(LeaseLost, Refused):
                self._end(job_id, token, "crashed", reason, "training_failed")

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        token: str | None = None,
        timeout: float = _TIMEOUT_S,
        stream: bool = False,
    ) -> httpx2.Response:
        headers: dict[str, str] = {}
        if stream:
            # The openai client's own word for a response whose body is not read yet.
            headers["X-Stainless-Raw-Response"] = "stream"
        if token is not None:
            headers["X-BMT-Lease"] = token
        given: dict[str, Any] = {}
        if content is not None:
            headers["Content-Type"] = "application/octet-stream"
            given["content"] = content
        elif body is not None:
            given["body"] = body
        options = {"headers": headers, "timeout": timeout}
        try:
            answer: httpx2.Response = getattr(self._api, method)(
                path, cast_to=httpx2.Response, options=options, **given
            )
            return answer
        except openai.APIConnectionError as error:
            raise Unreachable(f"{self.url} does not answer ({error.__cause__ or error})") from None
        except openai.APIStatusError as error:
            said = error.body if isinstance(error.body, dict) else {}
            message, code = str(said.get("message") or error.message), said.get("code")
            if code in ("lease_lost", "job_not_found"):
                raise LeaseLost(message) from None
            if error.status_code == _NO_ROOM or code == "quota_exceeded":
                raise NoRoom(message) from None
            if error.status_code in (408, 429) or error.status_code >= 500:
                raise Unreachable(f"{self.url}: {message}") from None
            if error.status_code in (401, 403, 404, 405) and code != "file_not_found":
                raise ConfigError(f"server: {self.url}: {message}") from None
            raise Refused(message) from None

    def _json(self, answer: httpx2.Response) -> dict[str, Any]:
        """The object of an answer. Raises Unreachable for another: a server between says that."""
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unreachable(
                f"{self.url} answered {answer.status_code} with {answer.text[:40]!r}, no JSON "
                "object; is a proxy in between, or the address another server's?"
            )
        return found


def worker_name() -> str:
    """A name for the server's log: this host's."""
    return socket.gethostname()[:100] or "worker"
