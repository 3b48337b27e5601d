"""Rollouts of a run's steps: its processes sample on its servers, each on all of them.

Before anything is sampled, the first process pushes the step's mask to every server. Seeds are
numbers of completions in the run, so prompts, step and mask decide the samples, and the number of
processes and servers does not.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from bmt_core import Mask

from bmt_trainer.distributed import failing_together, of_all_processes
from bmt_trainer.methods.rollouts.server import Completion, ServerRollouts
from bmt_trainer.process import is_main_process, rank, world_size
from bmt_trainer.waiting import next_of

T = TypeVar("T")

# More than a step has completions, and more than a run has steps; vLLM's seeds end at 2^63.
_SEEDS_OF_A_STEP, _SEEDS_OF_A_TURN = 1 << 20, 1 << 48


class StepRollouts:
    """Completions of prompts by one or several servers, in one turn or in several.

    mask: returns the hard mask of the gates' current values; collective in several processes.
    """

    def __init__(self, servers: Sequence[ServerRollouts], mask: Callable[[], Mask]) -> None:
        self._servers, self._mask = servers, mask
        self._turns = 0

    def turn(
        self, prompts: Sequence[list[int]], trainer: Any, *, first: bool
    ) -> tuple[list[list[int]], list[list[float]]]:
        """One turn of rollouts: a completion of each prompt, and its tokens' log-probabilities.

        TRL repeats each prompt, in adjacent entries, once per completion; first: the turn begins
        the step's rollouts, and pushes its mask. Raises RolloutError; in a first turn in all
        processes, which must all call it.
        """
        if not first:
            self._turns += 1
            return self._sampled(prompts, self._seed_of_turn(trainer.state.global_step))
        self._push(trainer)
        self._turns = 0
        counts = of_all_processes(len(prompts))
        start = trainer.state.global_step * sum(counts) + sum(counts[: rank()])
        with failing_together():
            found = self._sampled(prompts, start)
        return found

    def _seed_of_turn(self, step: int) -> int:
        """The first seed of a turn after the first, which has any number of prompts."""
        share = rank() * (_SEEDS_OF_A_STEP // world_size())
        return step * _SEEDS_OF_A_STEP + self._turns * _SEEDS_OF_A_TURN + share

    def _push(self, trainer: Any) -> None:
        """Make the current mask the latest version on every server."""
        mask = self._mask()
        with failing_together():
            if is_main_process():
                in_parallel([partial(server.push, mask) for server in self._servers])
            else:
                for server in self._servers:
                    server.follow(mask)
        trainer._log_metric("push_seconds", max(one.push_seconds for one in self._servers))
        trainer._log_metric("push_bytes", sum(one.push_bytes for one in self._servers))
        trainer._log_metric("flips", self._servers[0].flips)

    def _sampled(
        self, prompts: Sequence[list[int]], start: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Completions whose seeds begin with `start`, in the order of `prompts`."""
        servers, asked = self._servers, list[tuple[int, dict[str, Any]]]()
        models, at = [server.model for server in servers], 0
        for ids, same in groupby(prompts):
            left = len(list(same))
            while left:
                # By turns, so that all servers have as many; ranks begin with another one each.
                where = (len(asked) + rank()) % len(servers)
                count = min(servers[where].most or left, left)
                request = servers[where].request(models[where], ids, count, start + at)
                asked.append((where, request))
                at, left = at + count, left - count
        work = [
            partial(server.answers, [request for to, request in asked if to == where])
            for where, server in enumerate(servers)
        ]
        answered: list[list[list[Completion]]] = in_parallel(work)
        in_order = [iter(one) for one in answered]
        choices = [choice for where, _ in asked for choice in next(in_order[where])]
        return [tokens for tokens, _ in choices], [logprobs for _, logprobs in choices]

    def close(self, *, finished: bool = True) -> None:
        """End requests, and remove the mask from the servers; never raises.

        finished: the run is, so there is time for a server that restarts just now.
        """
        for server in self._servers:
            server.close(finished=finished)


def in_parallel(work: Sequence[Callable[[], T]]) -> list[T]:
    """The results of all, each in a thread of its own; the first error ends the wait.

    What still runs then is left to itself: its thread does not keep the process.
    """
    if len(work) == 1:
        return [work[0]()]
    done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()

    def run(at: int) -> None:
        try:
            done.put((at, work[at](), None))
        except BaseException as error:
            done.put((at, None, error))

    for at in range(len(work)):
        threading.Thread(target=run, args=(at,), name=f"server-{at}", daemon=True).start()
    results: dict[int, Any] = {}
    while len(results) < len(work):
        at, value, error = next_of(done)
        if error is not None:
            raise error
        results[at] = value
    return [results[at] for at in range(len(work))]
