"""Checkpoints of a job that runs: masks of its steps, published as they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from bmt_trainer.jobs.connection import Connection, Refused, Unreachable
from bmt_trainer.jobs.job import MASK, TrainingJob
from bmt_trainer.jobs.metrics import Metrics

_FILE = re.compile(r"step-(\d{1,9})\.bmt")
# The server keeps as many of a job: older ones that have not been published are not worth it.
_NEWEST = 3


class Checkpoints:
    """Checkpoints of one job, whose run is in `folder`. say: shows a line."""

    def __init__(
        self, api: Connection, job: TrainingJob, folder: Path, say: Callable[[str], None]
    ) -> None:
        self._api, self._job, self._say = api, job, say
        self._run = folder / f"{MASK}.run"
        self._last = max(job.checkpoints, default=0)
        self._metrics: dict[int, Metrics] = {}

    def publish(self, steps: Iterable[Metrics]) -> None:
        """Publish those that are new and whose metrics there are. Raises LeaseLost.

        steps: metrics that were read since the last call, also of steps that a worker before this
        one has reported: it may have ended before it published their masks.

        A server that is away gets them later, and one that refuses a mask loses the job nothing.
        """
        self._metrics |= {int(one["step"]): one for one in steps if one["step"] > self._last}
        try:
            found = {int(m[1]): p for p in self._run.iterdir() if (m := _FILE.fullmatch(p.name))}
        except OSError:  # before its first step, or at its end
            return
        for step in sorted(step for step in found if step > self._last)[-_NEWEST:]:
            if step not in self._metrics:
                # Not read yet, or lost with the disk that was full: that step is no checkpoint, and
                # keeps none of the later ones back.
                continue
            try:
                mask = found[step].read_bytes()
                self._api.checkpoint(self._job, step, mask, self._metrics[step])
            except OSError:
                return
            except Unreachable as error:
                self._say(f"{self._job.id}: {error}")
                return
            except Refused as error:
                self._say(f"{self._job.id}: checkpoint of step {step}: {error}")
            self._last = step
            self._metrics = {s: one for s, one in self._metrics.items() if s > step}
