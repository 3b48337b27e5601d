"""Hooks around the engine client: the tenant's salt and metrics, whatever call it is."""

from __future__ import annotations

import ast
import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from bmt_server.api.engine_vllm.heartbeat import Heartbeat
from bmt_server.api.engine_vllm.request_hooks import install_request_hooks
from bmt_server.api.engine_vllm.sampling_buffers import STATES
from bmt_server.api.isolation import isolate, salt_of
from bmt_server.api.metrics.counters import Metrics
from bmt_server.api.response.refusals import watch
from prometheus_client import CollectorRegistry
from vllm.exceptions import GenerationError, VLLMNotFoundError, VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics
from vllm.v1.worker.gpu import sample


class Client:
    """Stands for AsyncLLM: both calls send one request to the engine's process."""

    def __init__(self) -> None:
        self.sent: list[SimpleNamespace] = []
        self.drafts: RequestSpecDecodeMetrics | None = None
        self.assigned: list[SimpleNamespace] = []
        self.engine_core = SimpleNamespace(add_request_async=self._send)
        self.input_processor = SimpleNamespace(assign_request_id=self.assigned.append)

    async def _send(self, request) -> None:
        self.sent.append(request)

    async def generate(self, prompt, sampling_params, request_id, **more):
        if isinstance(prompt["salt"], Exception):
            raise prompt["salt"]
        await self.engine_core.add_request_async(SimpleNamespace(cache_salt=prompt["salt"]))
        completion = SimpleNamespace(
            index=0, token_ids=[1, 2], finish_reason="length", spec_decode_metrics=self.drafts
        )
        yield SimpleNamespace(
            outputs=[completion],
            prompt_token_ids=[1, 2, 3],
            num_cached_tokens=2,
            finished=True,
            metrics=None,
        )

    async def encode(self, prompt, pooling_params, request_id, **more):
        await self.engine_core.add_request_async(SimpleNamespace(cache_salt=prompt["salt"]))
        vector = SimpleNamespace(data=[0.5])
        yield SimpleNamespace(
            outputs=vector, prompt_token_ids=[1, 2, 3], num_cached_tokens=2, finished=True
        )


@pytest.fixture
def hooked():
    client, finished = Client(), []

    @asynccontextmanager
    async def hold(adapter_id):
        yield

    def on_finished(mask, caller, **figures):
        assert caller is None
        finished.append((mask, figures))

    install_request_hooks(client, on_finished, hold, Heartbeat())
    return client, finished


async def call(client, name: str, salt: Exception | None = None, **more) -> None:
    parameters = {"generate": "sampling_params", "encode": "pooling_params"}[name]
    prompt = {"salt": salt}
    async for _ in getattr(client, name)(
        prompt=prompt, request_id="r", **{parameters: SimpleNamespace()}, **more
    ):
        pass


@pytest.mark.parametrize("name", ["generate", "encode"])
async def test_each_tenant_has_its_own_cache_salt(hooked, name):
    client, _ = hooked

    async def request(tenant: str) -> None:
        isolate(tenant)
        # Handlers of vLLM start tasks of their own.
        await asyncio.create_task(call(client, name))

    for tenant in ("default", "a", "b", "a"):
        await asyncio.create_task(request(tenant))
    salts = [sent.cache_salt for sent in client.sent]
    assert salts[0] is None
    assert salts[1] == salts[3] == salt_of("a")
    assert salts[2] == salt_of("b") != salt_of("a")


@pytest.mark.parametrize(("name", "completion"), [("generate", 2), ("encode", 0)])
async def test_both_calls_are_counted(hooked, name, completion):
    client, finished = hooked
    lora = SimpleNamespace(lora_int_id=1, lora_name="m@0123456789ab")
    await call(client, name, lora_request=lora)
    ((mask, figures),) = finished
    assert mask == "m@0123456789ab"
    assert figures["outcome"] == "ok"
    assert (figures["prompt_tokens"], figures["completion_tokens"]) == (3, completion)
    assert figures["cached_tokens"] == 2
    assert (figures["ttft_s"] is not None) == bool(completion)


@pytest.mark.found
async def test_drafted_and_accepted_tokens_are_counted_by_mask(hooked):
    """Two verified steps of a request: 3 of 4 drafted tokens accepted, then none of 4."""
    client, finished = hooked
    client.drafts = RequestSpecDecodeMetrics.new(4)
    client.drafts.observe(4, 3)
    client.drafts.observe(4, 0)
    registry = CollectorRegistry()
    metrics = Metrics(2, registry)
    for mask in ("m@0123456789ab", None):
        lora = mask and SimpleNamespace(lora_int_id=1, lora_name=mask)
        await call(client, "generate", lora_request=lora)
        client.drafts = None
    for mask, figures in finished:
        metrics.request_finished(mask, **figures)

    def count(mask: str, kind: str) -> float | None:
        return registry.get_sample_value("bmt_draft_tokens_total", {"mask": mask, "kind": kind})

    assert (count("m", "drafted"), count("m", "accepted")) == (8, 3)
    assert count("base", "drafted") is None


@pytest.mark.found
@pytest.mark.parametrize(
    ("fits", "more"),
    [
        ({"allowed_token_ids": [*range(1024)]}, {"allowed_token_ids": [*range(1025)]}),
        (
            {"stop_token_ids": [*range(100, 227)], "min_tokens": 1},
            {"stop_token_ids": [*range(100, 228)], "min_tokens": 1},
        ),
        (
            {"logit_bias": dict.fromkeys(range(1024), 1.0)},
            {"logit_bias": dict.fromkeys(range(1025), 1.0)},
        ),
        ({"bad_words": [*map(str, range(128))]}, {"bad_words": [*map(str, range(129))]}),
        ({"bad_words": ["x" * 512, "y" * 512]}, {"bad_words": ["x" * 512, "y" * 513]}),
        ({"logprob_token_ids": [*range(128)]}, {"logprob_token_ids": [*range(129)]}),
        ({"stop_token_ids": [*range(100, 228)]}, None),
    ],
    ids=["allowed", "stop", "bias", "bad words", "their tokens", "logprobs", "stop, no minimum"],
)
def test_what_the_runners_buffers_cannot_hold_is_refused(hooked, fits, more):
    """The model's own end of sequence takes one of the places of stop ids."""
    client, _ = hooked

    def assign(fields) -> None:
        params = SamplingParams(**fields)
        params._all_stop_token_ids.add(2)
        # As vLLM's tokenizer would set them: one token for each character.
        params._bad_words_token_ids = [[7] * len(word) for word in params.bad_words or ()]
        client.input_processor.assign_request_id(SimpleNamespace(params=params))

    assign(fits)
    assert len(client.assigned) == 1
    if more is not None:
        with pytest.raises(VLLMValidationError, match=r"Too many|max"):
            assign(more)
        assert len(client.assigned) == 1


def test_no_other_state_of_the_runner_raises():
    """Read from the installed vLLM: a further buffer with a bound fails here."""
    folder = Path(next(iter(sample.__path__)))
    found = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    raises = any(isinstance(n, ast.Raise) for n in ast.walk(method))
                    if raises and getattr(method, "name", "") == "add_request":
                        found.add(node.name)
    assert found == {state.__name__ for state in STATES}


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("stream_interval", {"stream_interval": 2**64}),
        ("seed", {"seed": -(2**63) - 1}),
        ("extra_args", {"extra_args": {"a": [{"b": 1}]}}),
    ],
)
def test_integers_that_no_message_holds_are_refused(hooked, field, fields):
    """The largest ones that fit are passed."""
    client, _ = hooked
    params = SamplingParams(**fields)
    if field == "extra_args":
        params.extra_args["a"][0]["b"] = 2**64
    with pytest.raises(VLLMValidationError, match=field):
        client.input_processor.assign_request_id(SimpleNamespace(params=params))
    client.input_processor.assign_request_id(
        SimpleNamespace(params=SamplingParams(stream_interval=2**63 - 1, seed=2**63 - 1))
    )
    assert len(client.assigned) == 1


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (VLLMValidationError("too long", parameter="stop", value="x" * 9), 400, "too long"),
        (VLLMNotFoundError("none"), 404, "none"),
        (ValueError("no such thing"), 400, "no such thing"),
        (RuntimeError("broken"), None, ""),
        (EngineDeadError(), None, ""),
        (GenerationError(), None, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_faults_of_the_client_are_noted_as_vllm_classes_them(hooked, error, status, message):
    client, finished = hooked
    refusal = watch()
    with pytest.raises(type(error)):
        # Routes call the engine in tasks of their own.
        await asyncio.create_task(call(client, "generate", error))
    assert [figures["outcome"] for _, figures in finished] == ["error"]
    assert (refusal.error and refusal.error.status) == status
    assert str(refusal.error or "") == message
    assert (refusal.error.param if status else None) == getattr(error, "parameter", None)
