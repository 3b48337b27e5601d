"""Cost of the worker of `serve --train` to those who chat with the same server.

A job is paused and resumed in turns, under clients that never stop and under one that thinks in
between; the times to first tokens of the slices are compared, and the job's steps are counted.
"""

from __future__ import annotations

import asyncio
import time

import openai
import pytest

from tests.support.requests.rows import jsonl, supervised
from tests.support.scenarios.figures import Figures, percentile, scaled
from tests.support.scenarios.load import Answer, Target
from tests.support.scenarios.servers import server, target
from tests.support.served import Served

pytestmark = [pytest.mark.operate, pytest.mark.engine, pytest.mark.timeout(2 * 3600)]

SLICES = scaled(4, 1)  # while the job runs; as many while it is paused
SLICE_S = float(scaled(40, 10))
TOKENS = 16
#: Clients of each load, and the seconds that each one thinks between its questions.
LOADS = {"saturated": (8, 0.0), "thinking": (1, 1.0)}
WAIT_S = 900.0


async def chats(where: Target, clients: int, pause_s: float, ends: asyncio.Event) -> list[Answer]:
    """Answers to live clients until the event is set."""
    found: list[Answer] = []

    async def one(number: int) -> None:
        while not ends.is_set():
            found.append(await where.ask("smol", tokens=TOKENS, prompt=f"Client {number} says"))
            number += clients
            await asyncio.sleep(pause_s)

    await asyncio.gather(*(one(number) for number in range(clients)))
    return found


class Job:
    """A job that is far from its end."""

    def __init__(self, served: Served) -> None:
        self._api = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=3)
        rows = jsonl([supervised(f"What is {n} + 1?", str(n + 1)) for n in range(4000)])
        file = self._api.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
        self.id = self._api.fine_tuning.jobs.create(
            model="smol",
            training_file=file.id,
            seed=0,
            hyperparameters={"n_epochs": 5, "batch_size": 4},
        ).id

    @property
    def jobs(self) -> openai.resources.fine_tuning.Jobs:
        return self._api.fine_tuning.jobs

    def steps(self) -> int:
        """Steps that it has reported."""
        for event in self.jobs.list_events(self.id, limit=20).data:
            if event.type == "metrics" and isinstance(event.data, dict) and "step" in event.data:
                return int(event.data["step"])
        return 0

    def until(self, *states: str) -> None:
        """Return once the job has one of the states."""
        deadline = time.monotonic() + WAIT_S
        while (status := self.jobs.retrieve(self.id).status) not in states:
            assert time.monotonic() < deadline, status
            assert status not in ("failed", "cancelled", "succeeded"), status
            time.sleep(0.5)

    def trains(self) -> None:
        """Resume it, and return once it makes steps."""
        if self.jobs.retrieve(self.id).status == "paused":
            self.jobs.resume(self.id)
        self.until("running")
        deadline, before = time.monotonic() + WAIT_S, self.steps()
        while self.steps() <= before:
            assert time.monotonic() < deadline, "it makes no step"
            time.sleep(0.5)

    def pauses(self) -> None:
        """Pause it, and return once its worker has left it."""
        self.jobs.pause(self.id)
        self.until("paused")
        time.sleep(5.0)


def test_chats_while_a_job_trains(smol, valkey, admin_key, tmp_path):
    figures = Figures("training", "test_chats_while_a_job_trains")
    flags = ("--files", str(tmp_path / "files"), "--train", "--train-flags", "--max-length 128")
    with server(smol, tmp_path / "one", valkey.url, admin_key, *flags) as served:
        job = Job(served)
        for load, (clients, pause_s) in LOADS.items():
            job.trains()
            asyncio.run(_compared(figures, served, job, load, clients, pause_s))
        job.jobs.cancel(job.id)
    figures.end()


async def _compared(
    figures: Figures, served: Served, job: Job, load: str, clients: int, pause_s: float
) -> None:
    spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    answers, steps = [], 0
    for number in range(2 * SLICES):
        trains = number % 2 == 0
        # Between chats: a saturated machine leaves the worker no time to pause or resume.
        await asyncio.to_thread(job.trains if trains else job.pauses)
        ends, before = asyncio.Event(), await asyncio.to_thread(job.steps)
        asking = asyncio.create_task(chats(target(served), clients, pause_s, ends))
        await asyncio.sleep(2.0)
        began = time.monotonic()
        await asyncio.sleep(SLICE_S)
        spans[trains].append((began, time.monotonic()))
        if trains:
            steps += await asyncio.to_thread(job.steps) - before
        ends.set()
        answers += await asking
    assert all(answer.ok for answer in answers), answers
    ttft, tokens = {}, {}
    for trains, of in spans.items():
        own = [a for a in answers if any(began <= a.began < end for began, end in of)]
        ttft[trains] = [a.ttft_s for a in own]
        tokens[trains] = sum(a.tokens for a in own)
    thinking = f", {pause_s:g} s between questions" if pause_s else ""
    size = f"{clients} clients{thinking}, {SLICES} slices of {SLICE_S:g} s each way"
    for share in (50, 99):
        alone, both = (percentile(ttft[trains], share) for trains in (False, True))
        figures.record(f"{load}_ttft_p{share}", 1000 * alone, "ms", size=size, note="paused")
        figures.record(f"{load}_ttft_p{share}_ratio", both / alone, "", "<= 2", size=size)
    figures.record(f"{load}_tokens_ratio", tokens[True] / tokens[False], "", ">= 0.5", size=size)
    figures.record(f"{load}_steps_per_s", steps / (SLICES * SLICE_S), "1/s", size=size)
