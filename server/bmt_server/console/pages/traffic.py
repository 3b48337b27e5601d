"""Traffic, cold loads and residency by mask, from the metrics that the server exports."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.responses import Response
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from bmt_server.console.calls import Call
from bmt_server.console.page import page, render
from bmt_server.console.session import Visitor


@dataclass
class _Mask:
    """Figures of one label `mask` since the start of the server."""

    name: str
    requests: float = 0
    errors: float = 0
    prompt: float = 0
    completion: float = 0
    first_token_s: float = 0
    first_tokens: float = 0
    resident: bool = False

    @property
    def mean_first_token_ms(self) -> float | None:
        return 1000 * self.first_token_s / self.first_tokens if self.first_tokens else None


@dataclass
class _Source:
    """Cold loads from one source."""

    name: str
    loads: float = 0
    seconds: float = 0

    @property
    def mean_ms(self) -> float | None:
        return 1000 * self.seconds / self.loads if self.loads else None


@dataclass
class Traffic:
    """All figures of the page. resident: public names of masks in memory, aliases included."""

    masks: dict[str, _Mask] = field(default_factory=dict)
    sources: dict[str, _Source] = field(default_factory=dict)
    resident: list[str] = field(default_factory=list)
    resident_bytes: float | None = None
    capacity_bytes: float | None = None
    resident_masks: float | None = None
    evictions: float = 0
    registry_up: bool | None = None


@page
async def show(request: Request, visitor: Visitor) -> Response:
    """Figures since the start of the server that answers, over all of its API processes."""
    answer = await visitor.api.send(Call.of("GET", "/metrics"))
    # Of a server with many masks it has many lines, and the event loop has other requests.
    traffic = await asyncio.to_thread(read_text, answer.body.decode())
    template = "traffic_live.html" if request.query_params.get("part") == "live" else "traffic.html"
    masks = sorted(traffic.masks.values(), key=lambda mask: (-mask.requests, mask.name))
    return render(request, visitor, template, traffic=traffic, masks=masks)


def read_text(text: str) -> Traffic:
    """The figures in the text of `/metrics`."""
    return read(text_string_to_metric_families(text))


def read(families: Iterable[Metric]) -> Traffic:
    """The figures among the metrics of a server. Of several workers, the first one's masks."""
    found = Traffic()
    for family in families:
        for sample in family.samples:
            name, labels, value = sample.name, sample.labels, sample.value
            if "mask" in labels:
                mask = found.masks.setdefault(labels["mask"], _Mask(labels["mask"]))
                _add(mask, name, labels, value)
            elif name == "bmt_cold_loads_total":
                _source(found, labels).loads += value
            elif name == "bmt_cold_load_seconds_sum":
                _source(found, labels).seconds += value
            elif name == "bmt_registry_up":
                found.registry_up = value == 1
            elif labels.get("rank", "0") == "0":
                _residency(found, name, labels, value)
    for name in found.resident:
        mask_name = name.partition("@")[0].partition(":")[0]
        found.masks.setdefault(mask_name, _Mask(mask_name)).resident = True
    return found


def _add(mask: _Mask, name: str, labels: dict[str, str], value: float) -> None:
    if name == "bmt_requests_total":
        mask.requests += value
        if labels.get("outcome") != "ok":
            mask.errors += value
    elif name == "bmt_tokens_total" and labels.get("kind") == "prompt":
        mask.prompt += value
    elif name == "bmt_tokens_total" and labels.get("kind") == "completion":
        mask.completion += value
    elif name == "bmt_time_to_first_token_seconds_sum":
        mask.first_token_s += value
    elif name == "bmt_time_to_first_token_seconds_count":
        mask.first_tokens += value


def _source(found: Traffic, labels: dict[str, str]) -> _Source:
    return found.sources.setdefault(labels["source"], _Source(labels["source"]))


def _residency(found: Traffic, name: str, labels: dict[str, str], value: float) -> None:
    if name == "vllm:lora_adapter_loaded" and labels["adapter_name"] not in found.resident:
        found.resident.append(labels["adapter_name"])
    elif name == "bmt_mask_evictions_total":
        found.evictions += value
    elif name == "bmt_masks_resident":
        found.resident_masks = value
    elif name == "bmt_masks_resident_bytes":
        found.resident_bytes = value
    elif name == "bmt_masks_capacity_bytes":
        found.capacity_bytes = value
