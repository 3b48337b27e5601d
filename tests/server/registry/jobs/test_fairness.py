"""Fairness between tenants whose jobs wait for workers, by simulation of the policy."""

from __future__ import annotations

import random

import pytest
from bmt_server.registry.leased.fairness import least_ms, next_job
from bmt_server.registry.leased.store import Waiting

LEASE_MS = 60_000


class Simulation:
    """Workers that take jobs by the policy. seconds: of a tenant's jobs."""

    def __init__(self, workers, seconds, seed=0):
        self.now, self.spent, self.queue, self.running = 0, {}, [], []
        self.workers, self.seconds, self.random = workers, seconds, random.Random(seed)
        self.number = 0

    def waiting(self):
        leased = [(tenant, id, self.now + LEASE_MS) for tenant, id, _, _ in self.running]
        # Workers report, so the time of running jobs is known.
        spent = dict(self.spent)
        for tenant, _, since, _ in self.running:
            spent[tenant] = spent.get(tenant, 0) + self.now - since
        return Waiting(self.now, list(self.queue), leased, spent)

    def add(self, tenant, jobs=1):
        for _ in range(jobs):
            least = least_ms(self.waiting(), tenant)
            self.spent[tenant] = max(self.spent.get(tenant, 0), least)
            self.number += 1
            self.queue.append((tenant, f"{self.number:04d}", self.now // 1000))

    def run(self, until_ms, done=lambda: False):
        while self.now < until_ms and not done():
            while len(self.running) < self.workers:
                chosen = next_job(self.waiting())
                if chosen is None:
                    break
                self.queue = [one for one in self.queue if one[:2] != chosen]
                length = int(1000 * self.seconds[chosen[0]] * self.random.uniform(0.5, 1.5))
                self.running.append((*chosen, self.now, self.now + length))
            if not self.running:
                break
            self.running.sort(key=lambda job: job[3])
            tenant, _, since, end = self.running.pop(0)
            self.now = end
            self.spent[tenant] = self.spent.get(tenant, 0) + end - since


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("seconds", [(60, 60, 60), (10, 60, 300), (5, 5, 60)])
def test_worker_time_is_shared_while_all_have_work_waiting(workers, seconds):
    tenants = dict(zip("abc", seconds, strict=True))
    simulation = Simulation(workers, tenants)
    simulation.add("a", 1000)
    simulation.add("b", 1000)
    simulation.add("c", 1000)
    simulation.run(40 * 300_000 // workers)
    total = sum(simulation.spent.values())
    for tenant in "abc":
        assert abs(simulation.spent[tenant] / total - 1 / 3) < 0.1, simulation.spent


def test_a_tenant_that_was_away_saves_up_no_time():
    simulation = Simulation(1, {"a": 10, "b": 10})
    simulation.add("a", 400)
    simulation.run(1_000_000)
    before = dict(simulation.spent)
    simulation.add("b", 400)
    simulation.run(simulation.now + 1_000_000)
    gained = simulation.spent["a"] - before["a"]
    assert 0.4 < gained / 1_000_000 < 0.6


def test_jobs_whose_worker_is_gone_come_first():
    waiting = Waiting(
        100, [("a", "1", 0)], [("b", "2", 99), ("b", "3", 98), ("b", "4", 101)], {"b": 10**9}
    )
    assert next_job(waiting) == ("b", "3")


def test_without_jobs_there_is_none():
    assert next_job(Waiting(0)) is None
    assert next_job(Waiting(0, leased=[("a", "1", 5)])) is None
