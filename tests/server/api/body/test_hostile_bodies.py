"""Bodies that are costly or wrong, on every route of vLLM's that names a model."""

from __future__ import annotations

import asyncio
import gc
import json
import time

import pytest
from bmt_server.api.body.bounds import MAX_CONTAINERS, BodyBounds
from bmt_server.api.permissions import find_route
from bmt_server.api.request_limits import MAX_ENTRIES, MAX_INPUT_ITEMS

from tests.support.cpu_time import answer_and_cpu, least_cpu
from tests.support.requests.bodies import STOPPED_A_SERVER, hostile_bodies

JSON = {"Content-Type": "application/json"}
# CPU of the largest admitted body, of gate and validation together.
MOST_S = 0.2


@pytest.fixture(autouse=True)
def frozen_heap():
    """As vLLM's server does: a full collection of all that it imports takes longer than a body."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def bound_of(path: str) -> int:
    route = find_route("POST", path)
    assert route is not None
    return BodyBounds.of_context(128, route.prompts).max_bytes


async def send(client, path: str, data: bytes, bound_s: float = MOST_S):
    return await answer_and_cpu(lambda: client.post(path, content=data, headers=JSON), bound_s)


def assert_answered(answer, *what) -> None:
    """No 5xx, one shape of errors, and an answer that does not grow with the body."""
    assert answer.status_code < 500, (*what, answer.text)
    assert len(answer.content) < 4096, what
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "code", "param", "request_id"}, what
        assert error["message"], what
        assert isinstance(error["code"], str), what


@pytest.mark.parametrize(
    ("size", "deepest"), [(600, 6), (16 << 10, 2), (None, 1)], ids=["small", "medium", "bound"]
)
async def test_every_position_of_every_route(api, calls, schemas, size, deepest):
    """Wide, deep, long, and of a wrong type, at three sizes."""
    slow, statuses = [], []
    async with api.client("infer") as client:
        for path, schema in schemas.items():
            number = size or bound_of(path) * 15 // 16
            for position, kinds in schema.positions().items():
                if len(position) > deepest:
                    continue
                for body in hostile_bodies(schema, position, kinds, number, "tiny"):
                    answer, seconds = await send(client, path, body.data)
                    assert_answered(answer, path, body.name)
                    statuses.append(answer.status_code)
                    slow.append((seconds, path, body.name))
    slow.sort(reverse=True)
    assert slow[0][0] < MOST_S, slow[:5]
    assert 200 in statuses
    assert 400 in statuses


async def test_the_largest_admitted_arrays(api, calls, schemas):
    """As many valid items as are admitted, of each kind that the route's schema knows."""
    slow = []
    async with api.client("infer") as client:
        for path, schema in schemas.items():
            for position in schema.positions():
                if len(position) != 1:
                    continue
                most = MAX_INPUT_ITEMS if position == ("input",) else MAX_CONTAINERS // 4
                most = MAX_ENTRIES.get(str(position[0]), most)
                for item in schema.item(position):
                    body = {**schema.put(position, [item] * most), "model": "tiny"}
                    answer, seconds = await send(client, path, json.dumps(body).encode())
                    assert_answered(answer, path, position, item)
                    slow.append((seconds, path, position, item))
    slow.sort(key=lambda s: -s[0])
    assert slow[0][0] < MOST_S, slow[:5]


@pytest.mark.found
@pytest.mark.parametrize(
    ("path", "body"),
    STOPPED_A_SERVER,
    ids=["3 KB", "9 KB", "29 KB", "3 MiB of chat", "32 MiB of chat", "8 MiB of text"],
)
async def test_bodies_that_stopped_a_server(api, calls, path, body):
    data = json.dumps({"model": "tiny", "max_tokens": 1, **body}).encode()
    async with api.client("infer") as client:
        answer, seconds = await send(client, path, data, bound_s=0.1)
    assert answer.status_code in (400, 413)
    assert seconds < 0.1
    assert calls == []


async def test_probes_are_answered_while_many_hostile_bodies_are(api, calls, schemas):
    """Many at once of those that cost most do not starve the others."""
    item = {"type": "shell_call", "call_id": "x", "action": {"commands": []}}
    data = json.dumps({"model": "tiny", "input": [item] * MAX_INPUT_ITEMS}).encode()
    async with api.client("infer") as client:
        tasks = [asyncio.create_task(send(client, "/v1/responses", data)) for _ in range(24)]
        longest, probes = 0.0, 0
        while not all(task.done() for task in tasks):
            started = time.monotonic()
            assert (await client.get("/readyz")).status_code == 200
            longest, probes = max(longest, time.monotonic() - started), probes + 1
            await asyncio.sleep(0.01)
    assert {task.result()[0].status_code for task in tasks} == {200}
    assert probes > 10
    assert longest < 1


async def test_a_body_is_refused_while_it_arrives(api, calls):
    """The rest of it is never read."""
    sent = 0

    async def parts():
        nonlocal sent
        yield b'{"model": "tiny", "messages": ['
        for _ in range(60):
            sent += 1
            yield b"{}," * 1365
            await asyncio.sleep(0)

    async with api.client("infer") as client:
        answer = await client.post("/v1/chat/completions", content=parts(), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "body_too_complex")
    assert sent < 20


async def test_the_gate_is_fast(api, calls):
    """0.5 ms of CPU for a chat of 2 kB, 5 ms for 200 kB: the best of several."""
    from bmt_server.api.body.reader import parse_json
    from bmt_server.api.request_limits import check_body

    schema, bounds = api.state.schemas.get("/v1/chat/completions"), BodyBounds.of_context(8192)

    def seconds(count: int, bound_s: float) -> float:
        message = {"role": "user", "content": 'He said: "yes",\n\tthen left. ' * count}
        data = json.dumps({"model": "tiny", "messages": [message] * 10}).encode()

        def gate() -> None:
            bounds.check_structure(data)
            check_body(parse_json(data))
            schema.check(parse_json(data))

        # The first turn fills caches.
        gate()
        return least_cpu(gate, bound_s)

    assert seconds(6, 0.0005) < 0.0005
    assert seconds(600, 0.005) < 0.005
