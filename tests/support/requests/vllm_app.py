"""vLLM's own app without an engine, and a stub of its routes with its request models."""

from __future__ import annotations

import warnings
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
from bmt_server.api.permissions import find_route
from fastapi import FastAPI
from pydantic import TypeAdapter

from tests.support.requests.bodies import BodySchema


def build_vllm_app(*, plugins: str = "bmt_routes") -> Any:
    """vLLM's app with the routes of every task, in developer mode."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.tasks import GENERATION_TASKS, POOLING_TASKS
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        patch.setenv("VLLM_PLUGINS", plugins)
        # A model that embeds: with it, all pooling routes are there besides the generating ones.
        embedder: Any = SimpleNamespace(get_pooling_task=lambda tasks: "embed")
        args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        return build_app(args, (*GENERATION_TASKS, *POOLING_TASKS, "render"), embedder)


def request_models(app: Any) -> dict[str, Any]:
    """Path -> type of the body, of all allowed routes that name a model."""
    found = {}
    for route in app.routes:
        allowed = find_route("POST", getattr(route, "path", ""))
        if allowed is not None and allowed.names_model:
            found[route.path] = route.body_field.field_info.annotation
    return found


def body_schemas(models: dict[str, Any]) -> dict[str, BodySchema]:
    """Path -> JSON schema of the body."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            path: BodySchema(TypeAdapter(model).json_schema()) for path, model in models.items()
        }


def add_stub_routes(app: FastAPI, models: dict[str, Any]) -> list[tuple[str, Any]]:
    """Add routes that validate as vLLM's do, with its error handlers; return their calls."""
    from vllm.entrypoints.serve.exception_handling.register import (
        init_exception_handler,
    )

    calls: list[tuple[str, Any]] = []

    def add(path: str, model: Any) -> None:
        async def handler(request: Any) -> Any:
            calls.append((path, request))
            return {"object": path, "model": getattr(request, "model", None)}

        handler.__annotations__["request"] = model
        app.post(path)(handler)

    init_exception_handler(app)
    app.state.args = Namespace(log_error_stack=False)
    for path, model in models.items():
        add(path, model)
    return calls
