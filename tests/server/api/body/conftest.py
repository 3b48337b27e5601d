"""One replica behind whose gate stand the request models of vLLM's routes."""

from __future__ import annotations

import pytest
from bmt_server.api.body.schemas import RequestSchemas

from tests.support.requests.vllm_app import (
    add_stub_routes,
    body_schemas,
    build_vllm_app,
    request_models,
)


@pytest.fixture(scope="session")
def models():
    """Path -> type of the body, of vLLM's allowed routes."""
    return request_models(build_vllm_app())


@pytest.fixture(scope="session")
def schemas(models):
    """Path -> JSON schema of the body."""
    return body_schemas(models)


@pytest.fixture
def calls(api, models):
    """Calls of the app by path, with the validated requests."""
    # The stub of chat answers without validation.
    api.app.router.routes[:] = [
        r for r in api.app.router.routes if getattr(r, "path", "") not in models
    ]
    made = add_stub_routes(api.app, models)
    api.replace(schemas=RequestSchemas.of_routes(api.app.routes))
    return made
