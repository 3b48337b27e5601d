"""Parts that tests of the console share: answers, a worker's words, metrics, hostile texts."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import bmt_core
import httpx2
from fastapi import Request
from fastapi.responses import StreamingResponse

from tests.support.replica import Api

HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>{{ 7*7 }}"""


METRICS = """\
# TYPE bmt_requests counter
bmt_requests_total{mask="base",outcome="ok"} 7
bmt_requests_total{mask="m",outcome="ok"} 3
bmt_requests_total{mask="m",outcome="cancelled"} 1
# TYPE bmt_tokens counter
bmt_tokens_total{mask="m",kind="prompt"} 40
bmt_tokens_total{mask="m",kind="completion"} 12
# TYPE bmt_time_to_first_token_seconds histogram
bmt_time_to_first_token_seconds_bucket{mask="m",le="+Inf"} 4
bmt_time_to_first_token_seconds_sum{mask="m"} 0.2
bmt_time_to_first_token_seconds_count{mask="m"} 4
# TYPE bmt_cold_loads counter
bmt_cold_loads_total{source="registry"} 2
# TYPE bmt_cold_load_seconds histogram
bmt_cold_load_seconds_bucket{source="registry",le="+Inf"} 2
bmt_cold_load_seconds_sum{source="registry"} 0.01
bmt_cold_load_seconds_count{source="registry"} 2
# TYPE vllm:lora_adapter_loaded gauge
vllm:lora_adapter_loaded{adapter_name="m:prod",level="gpu",pinned="false",rank="0"} 1
vllm:lora_adapter_loaded{adapter_name="m:prod",level="gpu",pinned="false",rank="1"} 1
# TYPE bmt_masks_resident gauge
bmt_masks_resident{rank="0"} 1
bmt_masks_resident{rank="1"} 1
# TYPE bmt_masks_resident_bytes gauge
bmt_masks_resident_bytes{rank="0"} 41000
# TYPE bmt_mask_evictions counter
bmt_mask_evictions_total{rank="0"} 5
bmt_mask_evictions_total{rank="1"} 5
# TYPE bmt_masks_capacity_bytes gauge
bmt_masks_capacity_bytes{rank="0"} 1000000
"""


def answering(
    site: Api,
    text: str = "<b>hi</b>",
    hold: asyncio.Event | None = None,
    pause_s: float = 0,
    *,
    breaks: bool = False,
) -> list[str]:
    """Replace a replica's stub of chats: streams in OpenAI's form, or whole answers.

    hold: set to go on after each event. breaks: streams fail after their first event. Returns the
    models whose streams have ended.
    """
    left: list[str] = []

    async def chat(request: Request) -> Any:
        body = await request.json()
        if not body.get("stream"):
            message = {"role": "assistant", "content": f"{text} of {body['model']}"}
            return {"model": body["model"], "choices": [{"message": message}]}

        async def pieces() -> AsyncIterator[str]:
            try:
                for word in (*re.split(r"(?<= )", text), " of ", body["model"]):
                    event = {"choices": [{"delta": {"content": word}}]}
                    yield f"data: {json.dumps(event)}\n\n"
                    await asyncio.sleep(pause_s)
                    if breaks:
                        raise RuntimeError("the answer breaks off")
                    if hold is not None:
                        await hold.wait()
                yield "data: [DONE]\n\n"
            finally:
                left.append(body["model"])

        return StreamingResponse(pieces(), media_type="text/event-stream")

    site.app.router.routes[:] = [
        route
        for route in site.app.router.routes
        if getattr(route, "path", "") != "/v1/chat/completions"
    ]
    site.app.post("/v1/chat/completions")(chat)
    return left


class Worker:
    """A worker's requests for one job, without a training: it leases, reports, and publishes."""

    def __init__(self, site: Api, key: str = "train") -> None:
        self._site, self._key = site, key
        self._job = self._token = ""

    async def lease(self) -> str:
        """Take the next job. Returns its id."""
        body = {"base": self._site.state.settings.fingerprint, "worker": "w"}
        job = (await self._send("POST", "lease", json=body)).json()
        self._job, self._token = job["id"], job["token"]
        return self._job

    async def report(self, first: int, last: int, of: int, message: str = "working") -> None:
        """Metrics of steps, and a message."""
        metrics = [
            {"step": n, "train_loss": 2.5 / n**0.5, "learning_rate": 0.1 * (1 - n / of)}
            for n in range(first, last + 1)
        ]
        body = {"token": self._token, "steps": of, "metrics": metrics}
        body["messages"] = [{"message": message}]
        await self._send("POST", f"jobs/{self._job}/report", json=body)

    async def finish(self, mask: bmt_core.Mask) -> None:
        """Publish the mask, and end the job."""
        headers = {"X-Bmt-Lease": self._token}
        data = bmt_core.encode(mask)
        await self._send("PUT", f"jobs/{self._job}/mask", content=data, headers=headers)

    async def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        async with self._site.client(self._key) as client:
            answer = await client.request(method, f"/v1/workers/{path}", **options)
        assert answer.status_code == 200, answer.text
        return answer
