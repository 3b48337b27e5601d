"""Graders of new jobs: their shape, and the models that they name."""

from __future__ import annotations

from typing import Any

import bmt_core
from bmt_core.fine_tuning import graders

from bmt_server.api.app_state import AppState
from bmt_server.errors import BadRequest
from bmt_server.registry.jobs.methods import Reinforcement
from bmt_server.registry.schemas import DEFAULT_TENANT, Principal


def checked_grader(value: Any, where: str) -> dict[str, Any]:
    """The grader of a body, as it is. Raises BadRequest with its field."""
    if value is None:
        raise BadRequest(f"{where}: missing; reinforcement learns from a grader", param=where)
    try:
        graders.parse(value, where)
    except bmt_core.GraderError as error:
        raise BadRequest(str(error), code=error.code, param=error.field) from None
    found: dict[str, Any] = value
    return found


def check_models(state: AppState, principal: Principal, method: Reinforcement) -> None:
    """Raise BadRequest for a model of `score_model` that the worker may not ask for this tenant.

    The worker asks with its own key, which is of the tenant `default`: masks of that tenant are
    for its own jobs alone, and those of others are out of the key's reach.
    """
    for one in graders.graders_of(graders.parse(method.grader)):
        if not isinstance(one, graders.ScoreModel) or one.model in state.engine.base_names:
            continue
        known = principal.tenant == DEFAULT_TENANT and _is_there(state, one.model)
        if not known:
            more = ", or one of your masks" if principal.tenant == DEFAULT_TENANT else ""
            raise BadRequest(
                f"score_model {one.name!r}: model {one.model[:200]!r} cannot grade; take "
                f"{state.engine.base_names[0]!r}{more}",
                code="model_not_found",
                param="method.reinforcement.grader",
            )


def _is_there(state: AppState, model: str) -> bool:
    try:
        ref = bmt_core.MaskRef.parse(model)
    except bmt_core.InvalidName:
        return False
    return state.replica.get(DEFAULT_TENANT, ref.name) is not None
