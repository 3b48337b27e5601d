"""Fine-tuning jobs: list, start, one job with its curves and events, cancel, pause, resume."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from bmt_server.console.calls import Call
from bmt_server.console.charts import curves
from bmt_server.console.forms import read_fields, read_number
from bmt_server.console.page import page, redirect, render
from bmt_server.console.session import Visitor, console_state
from bmt_server.errors import ApiError, BadRequest
from bmt_server.registry.files.record import PURPOSE

_PAGE = 50
_FILES = 200
# Events are read in pages; a job keeps about two thousand.
_EVENTS_OF_A_PAGE, _EVENT_PAGES = 100, 25
_SHOWN_MESSAGES = 50
_ENDED = ("succeeded", "failed", "cancelled")
_WORDS = ("cancel", "pause", "resume")
#: Hyperparameters of the form, with their types; empty ones are `auto`.
_NUMBERS: dict[str, type[int] | type[float]] = {
    "n_epochs": int,
    "batch_size": int,
    "learning_rate_multiplier": float,
    "beta": float,
}


@page
async def show_all(request: Request, visitor: Visitor) -> Response:
    """Jobs of the key's tenant, the newest first, and the form of a new one."""
    return await _list(request, visitor, {})


@page
async def create(request: Request, visitor: Visitor) -> Response:
    """Start a job."""
    fields: dict[str, str] = {}
    try:
        fields = await read_fields(request, visitor.csrf)
        body = _body(fields, console_state(request).engine.base_names[0])
        answer = await visitor.api.send(Call.of("POST", "/v1/fine_tuning/jobs", json=body))
    except ApiError as error:
        return await _list(request, visitor, fields, error)
    return redirect(request, f"/jobs/{answer.json()['id']}", "created")


@page
async def show(request: Request, visitor: Visitor) -> Response:
    """One job. With `?part=live`, the part of the page that changes while it runs."""
    return await _job(request, visitor)


@page
async def change(request: Request, visitor: Visitor) -> Response:
    """Cancel, pause or resume a job."""
    job_id, what = request.path_params["job"], request.path_params["what"]
    try:
        await read_fields(request, visitor.csrf)
        if what not in _WORDS:
            raise BadRequest(f"there is no change {what!r} of a job")
        await visitor.api.send(Call.of("POST", f"/v1/fine_tuning/jobs/{job_id}/{what}"))
    except ApiError as error:
        return await _job(request, visitor, error)
    return redirect(request, f"/jobs/{job_id}", what)


async def _list(
    request: Request, visitor: Visitor, fields: dict[str, str], error: ApiError | None = None
) -> Response:
    after = request.query_params.get("after", "")[:64] or None
    found = await visitor.api.get("/v1/fine_tuning/jobs", limit=_PAGE, after=after)
    files = await visitor.api.get("/v1/files", limit=_FILES, purpose=PURPOSE)
    jobs = found["data"]
    return render(
        request,
        visitor,
        "jobs.html",
        error=error,
        jobs=jobs,
        after=jobs[-1]["id"] if found["has_more"] and jobs else None,
        files=files["data"],
        fields=fields,
        base_model=console_state(request).engine.base_names[0],
    )


async def _job(request: Request, visitor: Visitor, error: ApiError | None = None) -> Response:
    job_id = request.path_params["job"]
    job = await visitor.api.get(f"/v1/fine_tuning/jobs/{job_id}")
    events = await _events(visitor, job_id)
    live = request.query_params.get("part") == "live"
    return render(
        request,
        visitor,
        "job_live.html" if live else "job.html",
        error=error,
        job=job,
        curves=curves([event["data"] for event in events if event["type"] == "metrics"]),
        messages=[event for event in events if event["type"] != "metrics"][:_SHOWN_MESSAGES],
        step=_last_step(events),
        has_ended=job["status"] in _ENDED,
        may_ask=visitor.may("POST", "/v1/chat/completions"),
    )


async def _events(visitor: Visitor, job_id: str) -> list[dict[str, Any]]:
    """Events of a job, the newest first."""
    events: list[dict[str, Any]] = []
    after = None
    for _ in range(_EVENT_PAGES):
        found = await visitor.api.get(
            f"/v1/fine_tuning/jobs/{job_id}/events", limit=_EVENTS_OF_A_PAGE, after=after
        )
        events += found["data"]
        if not found["has_more"] or not found["data"]:
            break
        after = found["data"][-1]["id"]
    return events


def _last_step(events: list[dict[str, Any]]) -> int | None:
    steps = [event["data"].get("step") for event in events if event["type"] == "metrics"]
    return max((step for step in steps if isinstance(step, int)), default=None)


def _body(fields: dict[str, str], base: str) -> dict[str, Any]:
    """Body of a new job. Raises BadRequest for figures that are none; the API checks the rest."""
    method = fields.get("method", "supervised")
    hyperparameters = {}
    for name, kind in _NUMBERS.items():
        value = read_number(fields, name, kind)
        if value is not None and (name != "beta" or method == "dpo"):
            hyperparameters[name] = value
    body: dict[str, Any] = {
        "model": base,
        "training_file": fields.get("training_file", ""),
        "method": {"type": method, method[:32]: {"hyperparameters": hyperparameters}},
    }
    if suffix := fields.get("suffix", "").strip():
        body["suffix"] = suffix
    if (seed := read_number(fields, "seed", int)) is not None:
        body["seed"] = seed
    return body
