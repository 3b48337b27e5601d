"""Faults of a worker's host and of what is between it and its server: the job is another's then."""

from __future__ import annotations

import asyncio
import http.server
import shutil
import threading
import time

import pytest
from bmt_trainer.jobs.connection import Connection
from bmt_trainer.jobs.transfers import Times
from bmt_trainer.jobs.worker import Worker, WorkerSettings

from tests.support.requests.rows import jsonl, supervised

pytestmark = pytest.mark.found


def a_worker(jobs, folder, monkeypatch, said=None, **settings):
    monkeypatch.setenv("BMT_API_KEY", jobs.worker_key)
    folder.mkdir(exist_ok=True)
    base = jobs.api.state.settings.fingerprint
    chosen = WorkerSettings(base=base, folder=folder, times=Times(0.05, 0.2), **settings)
    say = print if said is None else said.append
    return Worker(Connection(jobs.url, "w", 2), chosen, say)


async def a_job(client, rows=1):
    data = jsonl([supervised()] * rows)
    file = await client.files.create(file=("f.jsonl", data), purpose="fine-tune")
    return await client.fine_tuning.jobs.create(model="tiny", training_file=file.id)


async def events_of(client, job):
    return [e.message async for e in client.fine_tuning.jobs.list_events(job.id, limit=100)]


async def test_a_slow_download_keeps_its_lease_and_holds_no_file_in_memory(
    jobs, tmp_path, monkeypatch
):
    store = jobs.api.state.files
    read, pieces = store.read, []

    async def slowly(record):
        async for piece in read(record):
            for at in range(0, len(piece), 1 << 16):
                yield piece[at : at + (1 << 16)]
                await asyncio.sleep(3 if not pieces else 0)  # longer than the lease
                pieces.append(1)

    monkeypatch.setattr(store, "read", slowly)
    async with jobs.client() as client:
        job = await a_job(client, rows=4000)
        first = a_worker(jobs, tmp_path / "a", monkeypatch)
        leased = await asyncio.to_thread(first.next)
        (tmp_path / "a" / job.id).mkdir()
        fetching = asyncio.create_task(
            asyncio.to_thread(first._transfers.fetch, leased, tmp_path / "a" / job.id, 1 << 30)
        )
        await asyncio.sleep(2.5)
        assert not fetching.done()
        assert (await client.fine_tuning.jobs.retrieve(job.id)).status == "running"
        other = a_worker(jobs, tmp_path / "b", monkeypatch)
        assert await asyncio.to_thread(other.next) is None
        await fetching
    assert len(pieces) > 1
    (rows,) = (tmp_path / "a" / job.id).iterdir()
    assert len(rows.read_bytes().splitlines()) == 4000


@pytest.mark.parametrize("fault", ["disk", "size"])
async def test_a_host_without_room_gives_the_job_back(jobs, tmp_path, monkeypatch, fault):
    async with jobs.client() as client:
        job = await a_job(client, rows=100)
        said = []
        settings = {"max_file_bytes": 1000} if fault == "size" else {}
        worker = a_worker(jobs, tmp_path / "work", monkeypatch, said, **settings)
        if fault == "disk":
            folder = tmp_path / "work" / job.id
            folder.mkdir()
            (folder / ".training.jsonl.part").symlink_to("/dev/full")
        await asyncio.to_thread(lambda: worker.work(worker.next()))
        waits = await client.fine_tuning.jobs.retrieve(job.id)
        events = await events_of(client, job)
    assert waits.status == "queued"
    assert ("No space left" if fault == "disk" else "1000 bytes") in events[0]
    assert str(tmp_path) not in events[0]
    assert job.id in said[-1]


async def test_a_job_goes_to_another_worker_if_the_base_is_gone(jobs, tmp_path, checkpoint):
    """The first worker's checkpoint is removed after its start."""
    gone = tmp_path / "gone" / checkpoint.name
    shutil.copytree(checkpoint, gone)
    good, jobs.model = jobs.model, gone
    async with jobs.client() as client:
        first = await jobs.worker(tmp_path / "a", "--lease-seconds", "20")
        while not (tmp_path / "a").exists():
            assert first.returncode is None
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        shutil.rmtree(gone)
        job = await a_job(client, rows=8)
        while not any("could not train" in e for e in await events_of(client, job)):
            await asyncio.sleep(0.2)
        first.kill()
        await first.wait()
        jobs.model = good
        second = await jobs.worker(tmp_path / "b", "--once")
        deadline = time.monotonic() + 240
        while (ended := await client.fine_tuning.jobs.retrieve(job.id)).status != "succeeded":
            assert ended.status != "failed", ended.error
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        await second.wait()


async def test_an_answer_that_is_not_json_is_a_line_and_another_try(monkeypatch, tmp_path):
    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = b"<html>please log in</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("BMT_API_KEY", "bmt_x")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = []
        url = f"http://127.0.0.1:{server.server_port}"
        settings = WorkerSettings(base="ab" * 32, folder=tmp_path, times=Times(0.01))
        worker = Worker(Connection(url, "w", 60), settings, said.append)
        assert worker.next() is None
        server.shutdown()
    assert "no JSON" in said[0]
    assert "trying again" in said[0]
