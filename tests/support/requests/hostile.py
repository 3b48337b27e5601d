"""Hostile bodies for every route of the vLLM app that takes a body, the same ones in each run."""

from __future__ import annotations

import random

from bmt_server.api.body.bounds import BodyBounds
from bmt_server.api.permissions import find_route

from tests.support.requests.bodies import HostileBody, hostile_bodies
from tests.support.requests.vllm_app import body_schemas, build_vllm_app, request_models


def hostile_requests(context: int, model: str, count: int) -> list[tuple[str, HostileBody]]:
    """(path, body) of three sizes at any position of any route, `count` of them at most.

    context: tokens of the server's context, which bounds the bodies; model: the name in them.
    """
    made = []
    chance = random.Random(20)
    models = request_models(build_vllm_app())
    del models["/v1/embeddings"]  # which a server that generates does not have
    for path, schema in body_schemas(models).items():
        route = find_route("POST", path)
        assert route is not None
        bound = BodyBounds.of_context(context, route.prompts).max_bytes
        for size in (600, 16 << 10, bound * 15 // 16):
            positions = [p for p in schema.positions().items() if size < 1024 or len(p[0]) < 3]
            for position, kinds in chance.sample(positions, min(len(positions), 40)):
                bodies = list(hostile_bodies(schema, position, kinds, size, model))
                made += [(path, body) for body in chance.sample(bodies, min(len(bodies), 8))]
    return chance.sample(made, min(len(made), count))
