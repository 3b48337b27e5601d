"""Places of uploads: taken when a body is complete, bounded by key and bytes."""

from __future__ import annotations

import asyncio
import time

import bmt_core
import pytest
from bmt_server.api.admission import UploadLimiter
from bmt_server.errors import RateLimited, Unavailable

from tests.support.replica import make_mask


@pytest.mark.found
async def test_silent_connections_delay_no_one(api):
    """Four uploads that send one byte of 300: another key's upload waited a minute for them."""
    gone = asyncio.Event()

    async def silent():
        yield b"b"
        await gone.wait()

    async def open_one(client, number):
        headers = {"content-length": "300", "content-type": "application/octet-stream"}
        return await client.put(f"/v1/masks/s{number}", content=silent(), headers=headers)

    async with api.client("upload") as slow:
        tasks = [asyncio.create_task(open_one(slow, number)) for number in range(4)]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        assert (await api.put("m", make_mask(), key="other")).status_code == 201
        assert (await api.put("m", make_mask(1), key="upload")).status_code == 201
        assert time.monotonic() - started < 5
        assert not any(task.done() for task in tasks)
        gone.set()
        assert {task.status_code for task in await asyncio.gather(*tasks)} <= {400, 422}
    assert api.state.uploads._of_key == {}
    assert api.state.uploads._arrived == 0


async def test_a_key_has_a_share_of_the_bytes():
    limiter = UploadLimiter(max_bytes=100)
    with limiter.receive("a") as first, limiter.receive("a") as second:
        first(100)
        second(300)
        with pytest.raises(RateLimited, match="more than 400 bytes"):
            second(1)
        with limiter.receive("b") as other:
            other(400)
            with limiter.receive("c") as third, pytest.raises(Unavailable) as caught:
                third(1)
            assert caught.value.code == "uploads_full"
    assert limiter._of_key == {}
    with limiter.receive("a") as again:
        again(400)


async def test_a_key_has_a_number_of_open_uploads():
    limiter, stack = UploadLimiter(1), []
    for _ in range(64):
        stack.append(limiter.receive("a"))
        stack[-1].__enter__()
    with pytest.raises(RateLimited, match="64 uploads"), limiter.receive("a"):
        pass
    with limiter.receive("b"):
        pass
    for one in stack:
        one.__exit__(None, None, None)
    with limiter.receive("a"):
        pass


async def test_many_uploads_of_one_key_at_once(api):
    answers = await asyncio.gather(
        *(api.put(f"m{i}", bmt_core.encode(make_mask(i))) for i in range(40))
    )
    assert {answer.status_code for answer in answers} == {201}
