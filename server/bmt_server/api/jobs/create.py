"""Creation of a fine-tuning job from a body as OpenAI's clients send it, whatever is in it checked.

Fields that OpenAI has and jobs here have not are refused by name: nothing is left out in silence.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import bmt_core
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bmt_server.api.app_state import AppState
from bmt_server.api.files.routes import file_store
from bmt_server.api.jobs.grader_check import check_models, checked_grader
from bmt_server.api.jobs.masks import name_of
from bmt_server.api.routes.dependencies import check_free, principal_of
from bmt_server.errors import BadRequest, NotFound
from bmt_server.registry.files.record import BATCH, BATCH_OUTPUT, PURPOSE, RESULTS, FileRecord
from bmt_server.registry.jobs.methods import (
    AnyMethod,
    Dpo,
    Hyperparameters,
    Reinforcement,
    Supervised,
)
from bmt_server.registry.jobs.record import MAX_SUFFIX_CHARACTERS, Job, model_name, new_job_id
from bmt_server.registry.schemas import Principal

MAX_BODY_BYTES = 64 << 10
_DRAWS = 8
_OTHER = {
    PURPOSE: "nothing",
    RESULTS: "nothing: a job wrote it",
    BATCH: "a batch",
    BATCH_OUTPUT: "nothing: a batch wrote it",
}
_Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Value = Annotated[str, StringConstraints(max_length=512)]
_REFUSED = {
    "integrations": "a worker reports to no other service; read the job's events",
}


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class MethodBody(_Asked):
    """A method by its type, with an object of that name for its hyperparameters."""

    type: Annotated[str, StringConstraints(max_length=32)]
    supervised: dict[str, Any] | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class NewJob(_Asked):
    """Body of `POST /v1/fine_tuning/jobs`."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    training_file: Annotated[str, StringConstraints(max_length=64)]
    method: MethodBody | None = None
    hyperparameters: dict[str, Any] | None = None
    suffix: Annotated[str, StringConstraints(max_length=MAX_SUFFIX_CHARACTERS)] | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    metadata: dict[_Key, _Value] | None = Field(default=None, max_length=16)
    validation_file: Annotated[str, StringConstraints(max_length=64)] | None = None
    integrations: Any = None


async def job_of(request: Request, state: AppState, body: NewJob, now_ms: int) -> Job:
    """The job of a body. Raises ApiError."""
    for name, why in _REFUSED.items():
        if getattr(body, name):
            raise BadRequest(f"{name}: {why}", param=name)
    if body.model not in state.engine.base_names:
        raise NotFound(
            f"model {body.model[:200]!r} cannot be trained here; this server's base is "
            f"{state.engine.base_names[0]!r}",
            code="model_not_found",
            param="model",
        )
    principal = principal_of(request)
    method = _method(body)
    if isinstance(method, Reinforcement):
        check_models(state, principal, method)
    await _file(request, principal, body.training_file, method.type, "training_file")
    if body.validation_file is not None:
        await _file(request, principal, body.validation_file, method.type, "validation_file")
    job_id, name = await _free_name(state, principal.tenant, body.suffix)
    return Job(
        id=job_id,
        tenant=principal.tenant,
        key_id=principal.key_id,
        created_at=now_ms // 1000,
        created_ms=now_ms,
        model=body.model,
        base=state.settings.fingerprint,
        training_file=body.training_file,
        validation_file=body.validation_file,
        method=method,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        suffix=body.suffix,
        fine_tuned_model=name,
        metadata=body.metadata,
    )


async def _free_name(state: AppState, tenant: str, suffix: str | None) -> tuple[str, str]:
    """Id and model's name of a job. Raises BadRequest."""
    for _ in range(_DRAWS):
        job_id = new_job_id()
        try:
            name = model_name(job_id, suffix)
        except bmt_core.InvalidName as error:
            raise BadRequest(f"suffix: {error}", param="suffix") from None
        check_free(state, name)
        if await name_of(state, tenant, name) is None:
            return job_id, name
    raise BadRequest(
        f"suffix: {suffix} has {_DRAWS} random names that are all taken; choose another",
        param="suffix",
    )


_METHODS: dict[str, tuple[type[AnyMethod], type[Hyperparameters]]] = {
    kind.model_fields["type"].default: (kind, type(kind.model_fields["hyperparameters"].default))
    for kind in (Supervised, Dpo, Reinforcement)
}


def _method(body: NewJob) -> AnyMethod:
    given = body.method or MethodBody(type="supervised", supervised={})
    if given.type not in _METHODS:
        raise BadRequest(
            f"method.type is {given.type!r}; this server trains {', '.join(_METHODS)}",
            code="method_unknown",
            param="method.type",
        )
    objects = {name: getattr(given, name) for name in _METHODS}
    for name, other in objects.items():
        if other is not None and name != given.type:
            raise BadRequest(
                f"method.{name} is given, and method.type is {given.type}", param=f"method.{name}"
            )
    options = dict(objects[given.type] or {})
    hyperparameters = options.pop("hyperparameters", None) or {}
    where = f"method.{given.type}"
    kept: dict[str, Any] = {}
    if given.type == "reinforcement":
        kept["grader"] = checked_grader(options.pop("grader", None), f"{where}.grader")
    if options:
        raise BadRequest(f"{where}.{sorted(options)[0][:64]} is unknown", param=where)
    if body.hyperparameters:  # OpenAI's former place for them
        if body.method is not None:
            raise BadRequest(
                f"hyperparameters are given twice; leave them in {where}.hyperparameters",
                param="hyperparameters",
            )
        hyperparameters, where = body.hyperparameters, ""
    where = f"{where}.hyperparameters".lstrip(".")
    kind, known = _METHODS[given.type]
    return kind(hyperparameters=_checked(known, hyperparameters, where), **kept)  # type: ignore[arg-type]


def _checked(kind: type[Hyperparameters], values: Any, where: str) -> Hyperparameters:
    if not isinstance(values, dict):
        raise BadRequest(f"{where} must be an object", param=where)
    if unknown := sorted(values.keys() - kind.model_fields.keys()):
        raise BadRequest(
            f"{where}.{unknown[0][:64]} is unknown; there are {', '.join(kind.model_fields)}",
            code="hyperparameter_unknown",
            param=f"{where}.{unknown[0][:64]}",
        )
    for name, value in values.items():
        # One at a time, for an error with its name alone.
        try:
            kind.model_validate({name: value})
        except ValueError as error:
            raise BadRequest(
                f"{where}.{name} is {str(value)[:64]}: {_reason(error)}", param=f"{where}.{name}"
            ) from None
    return kind.model_validate(values)


def _reason(error: Any) -> str:
    # Of 'auto' or a number, the number's reason says more.
    return str(error.errors()[-1]["msg"]) + ", or 'auto'"


async def _file(
    request: Request, principal: Principal, file_id: str, kind: str, param: str
) -> FileRecord:
    try:
        record = await file_store(request).get(principal.tenant, file_id)
    except NotFound:
        raise BadRequest(
            f"{param}: no file {file_id}", code="file_not_found", param=param
        ) from None
    if record.form != kind:
        raise BadRequest(
            f"{param}: {file_id} has rows for {record.form or _OTHER[record.purpose]}, and the "
            f"method is {kind}",
            code="invalid_file",
            param=param,
        )
    return record
