"""Workers that see neither the API process's disk nor its sockets get their masks by digest.

Three ranks on one host stand for three nodes: each has an empty cache folder of its own, and a
folder name too long for a socket leaves vLLM's engine as the only way to them.
"""

from __future__ import annotations

import bmt_core
import httpx2
import openai
import pytest

from tests.support.masks import random_mask_of
from tests.support.served import Served, Valkey

pytestmark = [pytest.mark.operate, pytest.mark.engine, pytest.mark.timeout(500)]


def test_each_worker_fetches_by_digest(smol, valkey, tmp_path, monkeypatch):
    long = tmp_path / ("long" * 25)
    long.mkdir()
    nodes, folder = tmp_path / "nodes", tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setenv("BMT_WORKER_CACHE_DIR", str(nodes / "{rank}"))
    # Their threads must not all bind to one core; ZeroMQ's sockets must have short names.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/tmp")
    flags = ["--enforce-eager", "--dtype", "float32", "--tensor-parallel-size", "3"]
    server = Served(smol, folder, *flags, registry=valkey.url)
    try:
        assert "No mask channel" in server.log.read_text()
        masks = [random_mask_of(smol, seed, sparsity=0.02) for seed in range(3)]
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)

        def ask(model: str):
            return client.completions.create(
                model=model, prompt="The sun is", max_tokens=8, temperature=0
            )

        texts = {ask("smol").choices[0].text}
        for i, mask in enumerate(masks[:2]):
            url = f"{server.url}/v1/masks/m{i}"
            put = httpx2.put(url, content=bmt_core.encode(mask), headers=server.headers, timeout=30)
            assert put.status_code == 201
            answer = ask(f"m{i}")
            assert answer.model == put.json()["model"]
            texts.add(answer.choices[0].text)
            for rank in range(3):
                assert (nodes / str(rank) / f"{mask.digest}.lay").exists()
        assert len(texts) == 3
        # A blob that is gone is that request's error, and the engine goes on.
        url = f"{server.url}/v1/masks/lost"
        data = bmt_core.encode(masks[2])
        stored = httpx2.put(url, content=data, headers=server.headers, timeout=30).json()
        lose(valkey, stored["file_digest"])
        with pytest.raises(openai.InternalServerError) as caught:
            ask("lost")
        assert caught.value.status_code == 503
        assert ask("m0").choices[0].text in texts
    finally:
        assert server.stop() in (0, -15), server.log.read_text()[-2000:]


def lose(valkey: Valkey, file_digest: str) -> None:
    import redis

    with redis.Redis(unix_socket_path=valkey.socket) as client:
        assert client.delete("{bmt}:blob:" + file_digest) == 1
