"""Routes of vLLM's own app, with all that its switches add, behind our middleware."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace

import httpx2
import pytest
from bmt_server.api.admission import KeyLimiter, SequenceLimiter
from bmt_server.api.body.schemas import RequestSchemas
from bmt_server.api.body.turns import Turns
from bmt_server.api.middleware import RequestMiddleware
from bmt_server.api.permissions import find_route
from bmt_server.api.shutdown import Shutdown
from bmt_server.errors import Unauthorized
from bmt_server.registry.schemas import Principal
from bmt_server.vllm_integration.versions.check import cli_arguments

from tests.support.requests.vllm_app import REACHED_ROUTES

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
KEYS = {
    "infer": frozenset({"infer"}),
    "upload": frozenset({"upload"}),
    "train": frozenset({"train"}),
    "admin": frozenset({"infer", "upload", "admin"}),
}


@pytest.fixture(scope="module")
def routes() -> dict[str, set[str]]:
    """Path -> methods of an app that was built for every task, in developer mode."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.tasks import GENERATION_TASKS, POOLING_TASKS
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        patch.setenv("VLLM_PLUGINS", "bmt_routes")
        args = cli_arguments().make_arg_parser(FlexibleArgumentParser()).parse_args([])
        app = build_app(args, (*GENERATION_TASKS, *POOLING_TASKS, "render"), None)
    found: dict[str, set[str]] = {}
    for route in app.routes:
        path = getattr(route, "path", None)
        if path:
            methods = getattr(route, "methods", None) or set(METHODS)
            found.setdefault(re.sub(r"\{[^}]*\}", "x", path), set()).update(methods)
    return found


class Inner:
    """App behind the middleware; its response says that it was reached."""

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"reached"})


@pytest.fixture
def client():
    async def verify(key: str, peer: str) -> Principal:
        if key not in KEYS:
            raise Unauthorized("no")
        return Principal(key, "default", KEYS[key])

    async def acquire(tenant, model, condition, *, draw, load):
        async def ready():
            return None

        return SimpleNamespace(
            model=model, version=None, ready=ready, release=lambda: None, arm=None, copy=None
        )

    async def admit(key_id, tenant, headers, *, engine):
        return None

    state = SimpleNamespace(
        settings=SimpleNamespace(no_auth=False, metrics_open=False, precision="bf16"),
        keys=SimpleNamespace(verify=verify),
        shutdown=Shutdown(1),
        key_limiter=KeyLimiter(0, 0),
        sequence_limiter=SequenceLimiter(8),
        budgets=SimpleNamespace(admit=admit),
        usage=SimpleNamespace(add=lambda caller, counts: None),
        engine=SimpleNamespace(max_model_len=128),
        schemas=RequestSchemas({}),
        turns=Turns(),
        resolver=SimpleNamespace(acquire=acquire),
        metrics=SimpleNamespace(
            errors=SimpleNamespace(labels=lambda code: SimpleNamespace(inc=int)),
            http_request=lambda route, status: None,
        ),
    )
    middleware = RequestMiddleware(Inner())
    app = SimpleNamespace(state=SimpleNamespace(bmt=state))

    async def asgi(scope, receive, send):
        await middleware({**scope, "app": app}, receive, send)

    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=asgi), base_url="http://test")


def test_the_app_has_dangerous_routes(routes):
    assert len(routes) > 40, sorted(routes)
    for path in ("/invocations", "/v1/load_lora_adapter", "/pause", "/collective_rpc", "/docs"):
        assert path in routes


def test_reachable_vllm_routes_are_the_allowed_ones(routes):
    reached = {p for p, methods in routes.items() if any(find_route(m, p) for m in METHODS)}
    own = (
        r"/v1/(masks|blobs|keys|limits|usage|me$|(un)?load_lora|files|batches|fine_tuning/jobs|workers/)"
        r"|/(livez|readyz)|/v1/models/|/console(/|$)"
    )
    ours = {p for p in reached if re.match(own, p)}
    assert reached - ours == REACHED_ROUTES & set(routes)


@pytest.mark.found
async def test_every_route_with_every_key(routes, client):
    """Keys with the route's scope pass, others do not, and unlisted routes are closed to all."""
    async with client:
        for path in routes:
            # Also with methods that the route does not have.
            for method in METHODS:
                route = find_route(method, path)
                for key in ("", "wrong", *KEYS):
                    headers = {"Authorization": f"Bearer {key}"} if key else {}
                    answer = await client.request(
                        method, path, headers=headers, json={"model": "m"}
                    )
                    case = (method, path, key, answer.status_code)
                    if route is not None and route.scope in ("open", "session"):
                        assert answer.status_code == 200, case
                    elif key not in KEYS:
                        assert answer.status_code == 401, case
                    elif route is None:
                        assert answer.status_code == 404, case
                    elif route.scope == "any" or {route.scope, "admin"} & KEYS[key]:
                        assert answer.status_code == 200, case
                    else:
                        assert answer.status_code == 403, case
