"""The whole server on the real model, engine and registry, through stock clients."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import bmt_core
import httpx2
import numpy as np
import openai
import pytest
from bmt_client import BmtClient, NotFound

from tests.support.masks import random_mask_of
from tests.support.requests.endpoint_picker import Endpoint
from tests.support.served import until

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def masks(smol) -> list[bmt_core.Mask]:
    return [random_mask_of(smol, seed, sparsity=0.02) for seed in range(4)]


@pytest.fixture(scope="module")
def bmt(server):
    with BmtClient(base_url=server.url, api_key=server.key) as client:
        yield client


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


@pytest.fixture(scope="module")
def two(bmt, masks):
    """Masks `a` and `b`, uploaded."""
    a = bmt.upload(bmt_core.encode(masks[0]), name="a", alias=["prod"])
    b = bmt.upload(bmt_core.encode(masks[1]), name="b")
    return a, b


def ask(client, model: str, prompt: str = "The sun is", tokens: int = 16):
    return client.completions.create(model=model, prompt=prompt, max_tokens=tokens, temperature=0)


def test_each_name_answers_with_its_own_version(client, two):
    a, b = two
    texts = {}
    for name, version in (("smol", None), ("a", a), ("a:prod", a), ("b", b)):
        answer = ask(client, name)
        assert answer.model == (version.model if version else "smol")
        texts[name] = answer.choices[0].text
    assert texts["a"] == texts["a:prod"]
    assert len({texts["smol"], texts["a"], texts["b"]}) == 3
    assert ask(client, f"a@{a.digest}").choices[0].text == texts["a"]


@pytest.mark.found
def test_base_and_masks_in_one_batch_answer_as_alone(server, client, two):
    names = ["smol", "a", "b"] * 4
    alone = {n: ask(client, n).choices[0].text for n in ("smol", "a", "b")}

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as many:
            return await asyncio.gather(*(ask(many, n) for n in names))

    for name, answer in zip(names, asyncio.run(together()), strict=True):
        assert answer.choices[0].text == alone[name]


@pytest.mark.found
def test_beams_are_of_the_mask_that_was_asked(server, client, two):
    """Alone as in one batch; one beam is the greedy answer."""
    names = ["smol", "a", "b"]

    def fields(name: str, n: int):
        beams = {"use_beam_search": True}
        return {"model": name, "prompt": "The sun is", "max_tokens": 6, "n": n, "extra_body": beams}

    def texts(answer):
        return [choice.text for choice in answer.choices]

    alone = {n: texts(client.completions.create(**fields(n, 3))) for n in names}
    for name in names:
        greedy = ask(client, name, tokens=6).choices[0].text
        assert texts(client.completions.create(**fields(name, 1))) == [greedy]
        assert len(set(alone[name])) == 3

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as many:
            return await asyncio.gather(*(many.completions.create(**fields(n, 3)) for n in names))

    for name, answer in zip(names, asyncio.run(together()), strict=True):
        assert texts(answer) == alone[name]
    assert len({tuple(found) for found in alone.values()}) == 3


def test_chat_stream_logprobs_and_models(client, two):
    a, _ = two
    messages = [{"role": "user", "content": "Hello"}]
    chat = client.chat.completions.create(
        model="a", messages=messages, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    )
    assert chat.model == a.model
    assert len(chat.choices[0].logprobs.content) == chat.usage.completion_tokens
    pieces = list(
        client.chat.completions.create(
            model="a", messages=messages, max_tokens=8, temperature=0, stream=True
        )
    )
    assert {p.model for p in pieces} == {a.model}
    streamed = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert streamed == chat.choices[0].message.content
    listed = {m.id for m in client.models.list()}
    assert {"smol", "a", "a:prod", "b"} <= listed
    assert a.model not in listed
    for name in ("smol", "a", "a:prod", a.model):
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_structured_output_and_tools(client, two):
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="a",
        messages=[{"role": "user", "content": "Which city?"}],
        max_tokens=40,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Rome")
    tool = {"type": "function", "function": {"name": "pick", "parameters": schema}}
    answer = client.chat.completions.create(
        model="a",
        messages=[{"role": "user", "content": "Pick a city"}],
        max_tokens=60,
        temperature=0,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "pick"}},
    )
    call = answer.choices[0].message.tool_calls[0].function
    assert call.name == "pick"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")


@pytest.mark.found
@pytest.mark.parametrize("stream", [False, True])
def test_structured_outputs_that_cannot_be_are_400_after_any_other(client, stream):
    """Each refusal has its reason, also in streams, whatever was asked first."""
    object_only = {"json": {"type": "object"}}
    wanted = [
        ({"structured_outputs": {"regex": "\\p{L}+"}}, "xgrammar, cannot do this"),
        ({"structured_outputs": {"json": {"type": "array", "items": [{}]}}}, "items must be"),
        ({"structured_outputs": {"json": {"$ref": "#"}}}, "no token at all"),
        ({"structured_outputs": object_only, "allowed_token_ids": [504]}, "`allowed_token_ids`"),
        ({"allowed_token_ids": [2], "min_tokens": 3}, "`min_tokens`"),
        ({"stream_interval": 2**70}, "64 bits"),
    ]
    for more, reason in (*wanted, *reversed(wanted)):
        with pytest.raises(openai.BadRequestError, match=reason):
            client.chat.completions.create(
                model="smol",
                messages=[{"role": "user", "content": "x"}],
                max_tokens=8,
                stream=stream,
                extra_body=more,
            )


def test_unknown_masks_are_404_and_never_the_base(client, server):
    for name in ("nothing", "a:nothing", "a@" + "0" * 12, "A", "../a", "default/a", "", "a@b"):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(client, name)
        assert caught.value.code == "model_not_found"
    refused = httpx2.post(f"{server.url}/v1/completions", json={"model": "a", "prompt": "x"})
    assert refused.status_code == 401


def test_bad_uploads_store_nothing(server, smol, masks):
    good = bmt_core.encode(masks[2])
    other = bmt_core.Mask(bmt_core.Base("other", "12" * 32), masks[2].tensors, {})
    url = f"{server.url}/v1/masks/bad"
    flipped = bytearray(good)
    flipped[-20] ^= 1
    cases = {
        422: [b"", b"not a mask", good[:-5], bytes(flipped), bmt_core.encode(other)],
        413: [good + bytes(40 << 20)],
    }
    for status, bodies in cases.items():
        for body in bodies:
            answer = httpx2.put(url, content=body, headers=server.headers, timeout=30)
            assert answer.status_code == status, (len(body), answer.text)
            assert answer.json()["error"]["code"]
    wrong = httpx2.put(f"{url}?digest={'0' * 64}", content=good, headers=server.headers)
    assert wrong.status_code == 400
    assert httpx2.get(url, headers=server.headers).status_code == 404


def test_reupload_during_a_stream(client, bmt, masks):
    """The stream ends on its old version, the next request gets the new one, nothing mixes."""
    old = bmt.upload(bmt_core.encode(masks[2]), name="live")
    whole = ask(client, "live", tokens=120).choices[0].text
    pieces, seen = [], set()
    stream = client.completions.create(
        model="live", prompt="The sun is", max_tokens=120, temperature=0, stream=True
    )
    new = None
    for number, piece in enumerate(stream):
        if number == 10:
            new = bmt.upload(bmt_core.encode(masks[3]), name="live")
            fresh = ask(client, "live")
        seen.add(piece.model)
        pieces.append(piece.choices[0].text)
    assert new is not None
    assert new.rev > old.rev
    assert seen == {old.model}
    assert "".join(pieces) == whole
    assert fresh.model == new.model
    assert fresh.choices[0].text != whole[: len(fresh.choices[0].text)]
    assert ask(client, old.model, tokens=120).choices[0].text == whole, (
        "old versions stay reachable"
    )


def test_deleted_and_made_again(client, bmt, masks):
    first = bmt.upload(bmt_core.encode(masks[0]), name="again")
    before = ask(client, "again").choices[0].text
    bmt.delete("again")
    with pytest.raises(openai.NotFoundError):
        ask(client, "again")
    second = bmt.upload(bmt_core.encode(masks[1]), name="again")
    assert second.rev > first.rev
    assert second.id != first.id
    answer = ask(client, "again")
    assert answer.model == second.model
    assert answer.choices[0].text != before
    third = bmt.upload(bmt_core.encode(masks[0]), name="again")
    assert third.rev > second.rev
    assert ask(client, "again").choices[0].text == before


def test_rollouts_are_of_the_version_that_was_pushed(server, client, bmt, masks, monkeypatch):
    """Steps that overlap: each one's samples have the log-probabilities of its own mask."""
    from bmt_trainer.methods.rollouts.checks import Requirements
    from bmt_trainer.methods.rollouts.connection import Connection
    from bmt_trainer.methods.rollouts.server import ServerRollouts
    from bmt_trainer.methods.rollouts.steps import StepRollouts

    class Step:
        state = SimpleNamespace(global_step=0)

        def _log_metric(self, *_):
            pass

    current = [masks[2]]
    needs = Requirements(masks[2].base.fingerprint, 3, 24, 4, masks[2].sparsity)
    monkeypatch.setenv("BMT_API_KEY", server.key)
    connection = Connection(server.url, needs, wait_s=60, limit_s=120, say=print)
    connection.open()
    served = ServerRollouts(connection, "rollout-policy", max_tokens=24, temperature=1.0)
    rollouts = StepRollouts([served], lambda: current[0])
    prompts = [[504, 2654, 314]] * 4 + [[1348, 327, 260]] * 4
    with ThreadPoolExecutor(2) as pool:
        earlier = pool.submit(rollouts.turn, prompts, Step(), first=True)
        while not served.push_seconds:
            time.sleep(0.01)
        current[0] = masks[3]  # while the first step's answers still run
        later = pool.submit(rollouts.turn, prompts, Step(), first=True)
        found = earlier.result(), later.result()
    assert bmt.get("rollout-policy").digest == masks[3].digest
    names = [bmt.upload(masks[k], f"alone-{k}").model for k in (2, 3)]
    for step, own in enumerate(names):
        completions, logprobs = found[step]
        ids = zip(prompts, completions, strict=True)
        rows = [prompt + completion for prompt, completion in ids]
        reported = np.concatenate(logprobs)
        errors = {name: np.abs(reported - scored(client, name, rows)).max() for name in names}
        assert errors.pop(own) < 1e-3
        assert min(errors.values()) > 0.5, "another version's samples would look the same"
    rollouts.close()
    with pytest.raises(NotFound):
        bmt.get("rollout-policy")


def test_evaluation_asks_what_is_served(server, client, two, monkeypatch):
    """`bmt-train eval --server`: in the prompts' order, what a stock client is answered."""
    from bmt_trainer.data.examples import Example, chat
    from bmt_trainer.evaluation.server_backend import by_server

    monkeypatch.setenv("BMT_API_KEY", server.key)
    asked = [Example(chat(f"What is {n} + {n}?"), "") for n in range(6)]
    found = {
        who: answer(asked, 12)
        for who, answer in by_server(
            server.url, {"base": "smol", "mask": "a"}, concurrency=4
        ).items()
    }
    for who, name in ("base", "smol"), ("mask", "a"):
        alone = [
            client.chat.completions.create(
                model=name, messages=example.messages, max_tokens=12, temperature=0
            )
            for example in asked
        ]
        assert found[who] == [one.choices[0].message.content for one in alone]
    assert found["base"] != found["mask"]


def scored(client, model: str, rows: list[list[int]]) -> np.ndarray:
    """log p of each row's tokens after its third, all rows in a row."""
    answer = client.completions.create(
        model=model, prompt=rows, max_tokens=1, echo=True, logprobs=0, temperature=0
    )
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    return np.concatenate([c.logprobs.token_logprobs[3:-1] for c in choices])


def test_metrics_tell_masks(server, client, two):
    for name in ("a", "b", "smol"):
        ask(client, name)

    def gauge() -> str:
        return next(n for n in server.metrics() if n.startswith("vllm:lora_requests_info"))

    # Workers write their figures a few times a second.
    until(lambda: "a@" in gauge() and "b@" in gauge())
    until(lambda: server.metrics()['bmt_steps_total{applied="base",rank="0"}'] > 0)
    figures = server.metrics()
    assert figures['bmt_requests_total{mask="a",outcome="ok"}'] >= 1
    assert figures['bmt_tokens_total{kind="completion",mask="a"}'] >= 16
    assert figures['bmt_time_to_first_token_seconds_count{mask="a"}'] >= 1
    assert figures['bmt_masks_resident{rank="0"}'] >= 2
    assert figures['bmt_masks_resident_bytes{rank="0"}'] > 1e6
    assert figures['bmt_steps_total{applied="corrected",rank="0"}'] > 0
    assert figures['bmt_steps_total{applied="base",rank="0"}'] > 0
    assert any(n.startswith("bmt_cold_loads_total") or "uploads" in n for n in figures)
    assert any(n.startswith("vllm:num_requests_running") for n in figures)


def test_an_endpoint_picker_reads_the_metrics(server, client, two):
    """Families of vLLM and ours, of a real engine that has served masks."""
    for name in ("a", "b"):
        ask(client, name)

    def endpoint() -> Endpoint:
        return Endpoint.of(httpx2.get(f"{server.url}/metrics", headers=server.headers).text)

    until(lambda: {"a", "b"} <= endpoint().active)
    seen = endpoint()
    assert seen.waiting_requests == 0
    assert 0 <= seen.kv_usage <= 1
    assert seen.block_size > 0
    assert seen.blocks > 0
    version = next(name for name in seen.active if name.startswith("a@"))
    assert [seen.affinity(model) for model in ("a", version, "never")] == [1.0, 1.0, 0.8]


def test_a_seed_holds_where_a_prompt_takes_several_steps(server, client, two):
    """vLLM's own rewind of a generator ends the engine on the CPU (see cpu_seeds.py)."""
    prompts = [" ".join(map(str, range(at, at + 100))) for at in range(1000, 2200, 100)]

    def answer(prompt: str) -> openai.types.Completion:
        return client.completions.create(
            model="a", prompt=prompt, seed=3, temperature=1.0, max_tokens=12
        )

    with ThreadPoolExecutor(len(prompts)) as threads:
        several = list(threads.map(answer, prompts))
    tokens = [one.usage.prompt_tokens for one in several]
    assert sum(tokens[1:]) > 2048, "more than the tokens of one step"
    # Their prompts are cached by now, so that each takes one step.
    again = [answer(prompt) for prompt in prompts]
    assert [a.choices[0].text for a in several] == [a.choices[0].text for a in again]
    assert httpx2.get(f"{server.url}/livez").status_code == 200


def test_routes_of_vllm_that_are_not_ours_are_closed(server):
    for path in ("/pause", "/collective_rpc", "/invocations", "/adapters"):
        assert httpx2.post(server.url + path, json={}).status_code == 401
        answer = httpx2.post(server.url + path, json={}, headers=server.headers)
        assert answer.status_code == 404
    for path in ("/docs", "/openapi.json", "/metrics", "/v1/models"):
        assert httpx2.get(server.url + path).status_code == 401


def test_bench_serve_drives_several_masks(server, smol, two, tmp_path):
    """vLLM's own load generator, unmodified: the `vllm bench serve` entry point as a module."""
    code = (
        "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
        "p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args())"
    )
    flags = "--dataset-name random --random-input-len 16 --random-output-len 8 --num-prompts 12"
    flags += " --lora-modules a b --lora-assignment round-robin --ignore-eos --save-result"
    done = subprocess.run(
        [sys.executable, "-c", code, "--base-url", server.url, "--model", "smol"]
        + ["--tokenizer", str(smol), "--result-dir", str(tmp_path), *flags.split()],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OPENAI_API_KEY": server.key},
    )
    results = list(Path(tmp_path).glob("*.json"))
    assert results, done.stdout[-2000:] + done.stderr[-3000:]
    assert json.loads(results[0].read_text())["completed"] == 12


def test_registry_down_and_back(server, client, bmt, registry, two, masks):
    """Resident masks go on; what needs the registry is 503 with Retry-After; it recovers alone."""
    start = time.monotonic()
    ask(client, "a")
    usual = time.monotonic() - start
    registry.kill()
    try:
        for _ in range(3):
            start = time.monotonic()
            assert ask(client, "a").model == two[0].model
            assert time.monotonic() - start < 5 + 3 * usual
        unknown = {"model": "never-seen", "prompt": "x", "max_tokens": 1}
        start = time.monotonic()
        answer = httpx2.post(
            f"{server.url}/v1/completions", json=unknown, headers=server.headers, timeout=10
        )
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert time.monotonic() - start < 2
        put = httpx2.put(
            f"{server.url}/v1/masks/late",
            content=bmt_core.encode(masks[0]),
            headers=server.headers,
            timeout=30,
        )
        assert put.status_code == 503
        assert httpx2.get(f"{server.url}/readyz").status_code == 200
        assert httpx2.get(f"{server.url}/livez").status_code == 200
    finally:
        registry.start()
    deadline = time.monotonic() + 10
    while True:
        try:
            ask(client, "never-seen")
        except openai.NotFoundError:
            break
        except openai.InternalServerError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert bmt.upload(bmt_core.encode(masks[0]), name="late").name == "late"
    assert ask(client, "late").model.startswith("late@")


@pytest.mark.found
def test_clients_that_leave_free_their_masks(server, client, bmt, masks):
    bmt.upload(bmt_core.encode(masks[1]), name="left")

    def leave():
        with (
            httpx2.Client(timeout=30) as http,
            http.stream(
                "POST",
                f"{server.url}/v1/completions",
                headers=server.headers,
                json={"model": "left", "prompt": "x", "max_tokens": 400, "stream": True},
            ) as stream,
        ):
            next(stream.iter_lines())

    threads = [threading.Thread(target=leave) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bmt.delete("left")

    def running() -> list[float]:
        return [
            v for n, v in server.metrics().items() if n.startswith("vllm:num_requests_running{")
        ]

    until(lambda: not any(running()))
    # A deleted version leaves the worker after a grace of some seconds.
    until(lambda: "left@" not in next(n for n in server.metrics() if n.startswith("vllm:lora_req")))
    assert ask(client, "a").choices[0].text


def test_a_plugin_that_cannot_import_stops_the_server(smol, tmp_path):
    broken = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'bmt_server.vllm_integration.patches':\n"
        "            raise ImportError('broken on purpose')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from bmt_server.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", broken, "serve", str(smol), "--data-dir", str(tmp_path / "d")]
        + ["--host", "127.0.0.1", "--port", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "broken on purpose" in done.stderr


def test_flags_that_do_not_go_with_masks_are_refused(smol, tmp_path):
    cases = [
        (["--enable-lora"], "--enable-lora"),
        (["--api-key", "x"], "--api-key"),
        (["--no-auth", "--host", "0.0.0.0"], "loopback"),
    ]
    # One process for all, since importing vLLM takes longer than the rest of this test.
    code = (
        "import json, sys; from typer.testing import CliRunner\n"
        "from bmt_server.cli.main import app\n"
        "answers = [CliRunner().invoke(app, a) for a in json.loads(sys.argv[1])]\n"
        "print(json.dumps([[a.exit_code, a.stderr] for a in answers]))"
    )
    arguments = [["serve", str(smol), "--data-dir", str(tmp_path), *flags] for flags, _ in cases]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answers = json.loads(done.stdout.splitlines()[-1])
    for (_, word), (exit_code, message) in zip(cases, answers, strict=True):
        assert exit_code == 1
        assert word in message


def test_a_request_can_be_followed_through_log_and_trace(server, client, two, collector):
    """By its id, with the mask's digest; the engine's own span belongs to ours."""
    digest = httpx2.get(f"{server.url}/v1/masks/a", headers=server.headers).json()["digest"]
    prompt, name = "Unmistakable words of a prompt", "followed-1"
    client.completions.create(
        model="a", prompt=prompt, max_tokens=2, extra_headers={"X-Request-Id": name}
    )
    span = collector.wait(lambda s: s.attributes.get("bmt.request.id") == name)
    assert span.attributes["bmt.mask.digest"] == digest
    inner = collector.wait(lambda s: s.name == "llm_request" and s.parent == span.id)
    assert inner.trace == span.trace
    lines = [x for x in server.log.read_text().splitlines() if x.startswith("{")]
    entries = [json.loads(x) for x in lines]
    (line,) = [x for x in entries if x.get("request_id") == name]
    assert (line["status"], line["mask_digest"]) == (200, digest)
    for text in (*lines, *(str(s.attributes) for s in collector.spans)):
        assert prompt not in text
        assert server.key not in text
